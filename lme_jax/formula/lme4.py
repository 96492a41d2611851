"""lme4 formulas to a Design, with the coding and the column names of R's model.matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.contrasts import contrast_matrix
from lme_jax.formula.design import (
    Design,
    MissingRows,
    NewDesign,
    RandomTerm,
    check_design,
    check_missing_argument,
    check_response,
    reduce_rank,
    row_numbers,
    subset_rows,
)
from lme_jax.formula.known import (
    check_names,
    heaviest,
    membership_rows,
    relatedness_matrix,
    semidefinite_root,
)
from lme_jax.formula.syntax import Node
from lme_jax.formula.terms import STRUCTURES, Bar, Linear, MixedFormula, parse_mixed
from lme_jax.formula.values import (
    Crossing,
    Evaluator,
    Factor,
    as_frame,
    interact,
    level_labels,
    meet_new_rows,
    namespace,
    take,
)

Value = np.ndarray | Factor
Piece = tuple[np.ndarray, tuple[str, ...]]


@dataclass(frozen=True)
class FactorCoding:
    """Levels and contrasts of a factor, fixed at training."""

    levels: np.ndarray
    labels: tuple[str, ...]
    contrasts: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Lme4State:
    """Rebuilds the design of an lme4 formula; the transforms' memory is in `memory`."""

    parsed: MixedFormula
    codings: dict[str, FactorCoding]
    crossings: tuple[Crossing | None, ...]
    memory: dict[str, dict]
    context: dict[str, Any]
    keep: np.ndarray
    offset_column: str | None

    def rebuild(self, frame: pd.DataFrame, random: bool, needed: Sequence[bool] | None = None) -> NewDesign:
        evaluator = Evaluator(frame, self.context, self.memory)
        X, _ = self._matrix(self.parsed.fixed, evaluator)
        bars = self.parsed.bars if random else ()
        needed = [True] * len(self.parsed.bars) if needed is None else needed
        terms: list[tuple[np.ndarray, np.ndarray]] = []
        groups: list[Factor | None] = []
        for bar, crossing, need in zip(bars, self.crossings, needed, strict=False):
            codes, group = np.full(len(frame), -1, np.int32), None
            if crossing is not None:
                parts = partial(_parts, evaluator, bar)
                codes, group = meet_new_rows(crossing, parts, need, len(frame))
            terms.append((self._matrix(bar.lhs, evaluator)[0], codes))
            groups.append(group)
        offset = _formula_offset(self.parsed.fixed, evaluator)
        named = row_numbers(frame, self.offset_column, "offset", None)
        return NewDesign(X[:, self.keep], tuple(terms), _add(offset, named), frame.index, tuple(groups))

    def _matrix(self, linear: Linear, evaluator: Evaluator) -> Piece:
        values = {label: self._value(label, node, evaluator) for label, node in linear.variables}
        return model_matrix(linear, values, self.codings, len(evaluator.frame))

    def _value(self, label: str, node: Node, evaluator: Evaluator) -> Value:
        value = evaluator.variable(node)
        coding = self.codings.get(label)
        if (coding is None) != isinstance(value, np.ndarray):
            kinds = ("a factor", "numeric") if coding is None else ("numeric", "a factor")
            raise DataError(f"{label} is {kinds[0]} in the new data but was {kinds[1]} when the model was fitted.")
        return value if coding is None else _recode(value, coding, label)


def _parts(evaluator: Evaluator, bar: Bar) -> list[Factor]:
    return [evaluator.grouping(part) for part in bar.parts]


def design_from_formula(
    formula: str,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    missing: str = "drop",
    subset: Any = None,
    structures: Mapping[str, str] | None = None,
    memberships: Mapping[str, Any] | None = None,
    relatedness: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | int | None = None,
) -> Design:
    """Turn an lme4 formula and data into arrays.

    Parameters
    ----------
    formula : str
        Such as ``"y ~ x * f + (x | g) + (1 | a/b)"``. ``(x || g)`` gives every column of the model matrix
        its own variance, a factor's columns too. ``us()``, ``diag()``, ``ident()``, ``cs()`` and ``ar1()``
        around a bar choose its structure. ``.`` stands for the columns that are neither in the response
        nor grouping factors.
    data : DataFrame or dict of arrays
        Not changed.
    weights, offset : str or (n,) array, optional
        Column name, or one number per row of `data`. ``offset()`` in the formula adds to `offset`.
    contrasts : dict, optional
        Variable -> "treatment", "sum", "helmert", "poly", an array (levels, columns) or a DataFrame indexed
        by level. Default: treatment, and poly for ordered Categoricals.
    missing : {"drop", "raise"}
        What to do with rows that have missing or infinite values in anything the model uses.
    subset : mask or str, optional
        Rows to use: one True or False per row, or a query for ``DataFrame.eval``.
    structures : dict, optional
        Factor label or bar text (``"Days | Subject"``) -> "unstructured", "diagonal", "identity",
        "compound_symmetry" or "ar1".
    memberships : dict, optional
        Factor label -> weights (n, m) of the m levels in each row, for rows that belong to several: a
        DataFrame whose columns name the levels, or an array, dense or scipy sparse. The label need not be
        a column of `data`. Rows are those of `data`, before any are left out.
    relatedness : dict, optional
        Factor label -> K (m, m), the known covariance of the levels' effects up to the factor's own: Cov(b)
        = K ⊗ Ψ. A DataFrame labelled by level, which may hold levels that no row has, or an array, dense or
        scipy sparse, in the order of the levels.
    context : mapping or int, optional
        Functions and arrays that the formula may use beyond the columns. A number takes them from the caller
        that many frames up: 1 for the caller of this function, 2 for the caller's caller.

    Returns
    -------
    Design

    Raises
    ------
    FormulaError
        If the formula is not one of a mixed model.
    DataError
        If the data cannot be fitted as they are.

    Warns
    -----
    DroppedRowsWarning, RankWarning

    Notes
    -----
    Coding and column names are those of R's ``model.matrix``, with two differences: text is sorted by code
    point whatever the locale, and levels that no used row has are left out. As in R, the transforms
    ``scale``, ``poly`` … learn from every row of the subset that has their own variable, before rows with
    other missing values go.
    """
    check_missing_argument(missing, ("drop", "raise"))
    frame = as_frame(data)
    parsed = parse_mixed(formula, [str(c) for c in frame.columns])
    rows = subset_rows(frame, subset)
    weight_values = row_numbers(frame, weights, "weights", rows)
    offset_values = row_numbers(frame, offset, "offset", rows)
    frame = frame if rows is None else frame.iloc[rows]
    if len(frame) == 0:
        raise DataError("The data have no rows" + (" in the subset." if subset is not None else "."))
    memory: dict[str, dict] = {}
    used: dict[str, Any] = {}
    evaluator = Evaluator(frame, namespace(context), memory, used, rows)
    memberships = memberships or {}
    labels = [bar.label for bar in parsed.bars]
    check_names(memberships, labels, "memberships")
    check_names(relatedness or {}, labels, "relatedness")
    n_given = len(frame) if rows is None else len(as_frame(data))
    shares = {name: membership_rows(given, name, n_given) for name, given in memberships.items()}
    variables = _evaluate(parsed, evaluator, weight_values, offset_values, frozenset(shares))
    keep = variables.usable_rows(frame.index, missing)
    variables = (variables if keep is None else variables.take(keep)).without_unused_levels()
    index = frame.index if keep is None else frame.index[keep]

    codings = _codings(variables.values, contrasts or {}, parsed)
    X, names = model_matrix(parsed.fixed, variables.values, codings, len(index))
    X, exog_names, dropped, kept_columns = reduce_rank(X, names)
    used_rows = np.arange(len(frame)) if rows is None else rows
    used_rows = used_rows if keep is None else used_rows[keep]
    known = _Known({k: (W[used_rows], levels) for k, (W, levels) in shares.items()}, relatedness or {})
    structures_used = _structures(parsed.bars, structures or {})
    terms, crossings = _random_terms(parsed.bars, structures_used, variables, codings, known)
    check_design(variables.y, str(parsed.response), variables.weights, X, terms)
    offset_column = offset if isinstance(offset, str) else None
    state = Lme4State(parsed, codings, crossings, memory, used, kept_columns, offset_column)
    return Design(
        y=variables.y,
        X=X,
        terms=terms,
        weights=variables.weights,
        offset=variables.offset,
        endog_name=str(parsed.response),
        exog_names=exog_names,
        dropped_columns=dropped,
        index=index,
        n_dropped=len(frame) - len(index),
        formula=formula,
        state=state,
    )


@dataclass(frozen=True)
class _Variables:
    """Every variable of the model, row by row: R's model frame."""

    endog_name: str
    y: np.ndarray
    values: dict[str, Value]
    parts: dict[Node, Factor]
    weights: np.ndarray | None
    offset: np.ndarray | None

    def usable_rows(self, index: pd.Index, missing: str) -> np.ndarray | None:
        lost = MissingRows(len(self.y), index)
        lost.check(self.endog_name, self.y)
        for label, value in self.values.items():
            lost.check(label, value)
        for node, factor in self.parts.items():
            lost.check(str(node), factor)
        lost.check("the weights", self.weights)
        lost.check("the offset", self.offset)
        return lost.settle(missing)

    def take(self, rows: np.ndarray) -> _Variables:
        return _Variables(
            self.endog_name,
            self.y[rows],
            {label: take(value, rows) for label, value in self.values.items()},
            {node: factor.take(rows) for node, factor in self.parts.items()},
            None if self.weights is None else self.weights[rows],
            None if self.offset is None else self.offset[rows],
        )

    def without_unused_levels(self) -> _Variables:
        values = {k: v.without_unused_levels() if isinstance(v, Factor) else v for k, v in self.values.items()}
        return replace(self, values=values)


def _evaluate(
    parsed: MixedFormula,
    evaluator: Evaluator,
    weights: np.ndarray | None,
    offset: np.ndarray | None,
    shared: frozenset[str] = frozenset(),
) -> _Variables:
    name = str(parsed.response)
    y = check_response(evaluator.variable(parsed.response), name)
    nodes = {label: node for linear in _linears(parsed) for label, node in linear.variables}
    values = {label: evaluator.variable(node) for label, node in nodes.items()}
    parts = {part: evaluator.grouping(part) for bar in parsed.bars if bar.label not in shared for part in bar.parts}
    return _Variables(name, y, values, parts, weights, _add(_formula_offset(parsed.fixed, evaluator), offset))


@dataclass(frozen=True)
class _Known:
    """Shares of the rows used in several levels, with the levels' labels; relatedness of levels."""

    shares: dict[str, tuple[Any, np.ndarray]]
    relatedness: Mapping[str, Any]


def _random_terms(
    bars: Sequence[Bar],
    structures: list[str],
    variables: _Variables,
    codings: dict[str, FactorCoding],
    known: _Known,
) -> tuple[tuple[RandomTerm, ...], tuple[Crossing | None, ...]]:
    terms: list[RandomTerm] = []
    crossings: list[Crossing | None] = []
    roots: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for bar, structure in zip(bars, structures, strict=True):
        Z, columns = model_matrix(bar.lhs, variables.values, codings, len(variables.y))
        if not columns:
            raise FormulaError(f"The random-effects term ({bar.text}) has no columns.")
        rows, crossing = None, None
        if bar.label in known.shares:
            rows, levels = known.shares[bar.label]
            codes = heaviest(rows)
        else:
            crossed, crossing = interact([variables.parts[part] for part in bar.parts])
            codes, levels = crossed.codes.astype(np.int32), crossed.levels
        root = None
        if bar.label in known.relatedness:
            single = len(bar.parts) == 1 and crossing is not None
            if bar.label not in roots:
                related, labels = relatedness_matrix(known.relatedness[bar.label], bar.label, levels, extend=single)
                roots[bar.label] = semidefinite_root(related, bar.label), labels
            root, labels = roots[bar.label]
            if single:
                codes = pd.Index(labels).get_indexer(pd.Index(levels)).astype(np.int32)[codes]
                levels, crossing = labels, Crossing((labels,), np.arange(len(labels)))
        terms.append(RandomTerm(bar.label, columns, levels, codes, Z, structure, rows, root))
        crossings.append(crossing)
    return tuple(terms), tuple(crossings)


def _linears(parsed: MixedFormula) -> Iterable[Linear]:
    return (parsed.fixed, *(bar.lhs for bar in parsed.bars))


def _add(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a + b


def _formula_offset(fixed: Linear, evaluator: Evaluator) -> np.ndarray | None:
    total = None
    for node in fixed.offsets:
        value = evaluator.variable(node)
        if isinstance(value, Factor) or value.ndim != 1:
            raise DataError(f"offset({node}) must be one number per row.")
        total = _add(total, value)
    return total


def _codings(values: Mapping[str, Value], chosen: Mapping[str, Any], parsed: MixedFormula) -> dict[str, FactorCoding]:
    factors = {label: v for label, v in values.items() if isinstance(v, Factor)}
    unknown = [k for k in chosen if k not in factors]
    if unknown:
        raise FormulaError(f"`contrasts` names {unknown}, but the factors in the formula are {list(factors)}.")
    by_contrast = _coded_by_contrasts(parsed, frozenset(factors))
    return {
        label: _coding(f, chosen.get(label, f.contrast), label, label in by_contrast) for label, f in factors.items()
    }


def _coded_by_contrasts(parsed: MixedFormula, factors: frozenset[str]) -> set[str]:
    found = set()
    for linear in _linears(parsed):
        full = linear.full_coding(factors)
        found |= {v for i, term in enumerate(linear.terms) for v in term & factors if (i, v) not in full}
    return found


def _coding(factor: Factor, spec: Any, label: str, by_contrasts: bool) -> FactorCoding:
    labels = tuple(level_labels(factor.levels))
    if not by_contrasts:
        return FactorCoding(factor.levels, labels, np.empty((len(labels), 0)), ())
    matrix, names = contrast_matrix(factor, spec, label)
    return FactorCoding(factor.levels, labels, matrix, tuple(names))


def model_matrix(linear: Linear, values: Mapping[str, Value], codings: Mapping[str, FactorCoding], n: int) -> Piece:
    """Columns and names of one linear predictor; within a term the first variable runs fastest."""
    order = {label: i for i, (label, _) in enumerate(linear.variables)}
    full = linear.full_coding(frozenset(order) & frozenset(codings))
    pieces: list[Piece] = [(np.ones((n, 1)), ("(Intercept)",))] if linear.intercept else []
    for i, term in enumerate(linear.terms):
        product: Piece | None = None
        for label in sorted(term, key=order.__getitem__):
            piece = _columns(label, values[label], codings.get(label), (i, label) in full)
            product = piece if product is None else _product(product, piece)
        pieces.append(product)  # type: ignore[arg-type]
    if not pieces:
        return np.empty((n, 0)), ()
    return np.concatenate([p for p, _ in pieces], axis=1), tuple(name for _, names in pieces for name in names)


def _columns(label: str, value: Value, coding: FactorCoding | None, full: bool) -> Piece:
    if isinstance(value, Factor):
        assert coding is not None
        matrix, suffixes = (np.eye(len(coding.labels)), coding.labels) if full else (coding.contrasts, coding.names)
        # Code -1, a missing value in new data, picks the last row.
        padded = np.vstack([matrix, np.full(matrix.shape[1], np.nan)])
        return padded[value.codes], tuple(label + s for s in suffixes)
    if value.ndim == 1:
        return value[:, None], (label,)
    k = value.shape[1]
    return value, (label,) if k == 1 else tuple(f"{label}{j + 1}" for j in range(k))


def _product(a: Piece, b: Piece) -> Piece:
    columns = (b[0][:, :, None] * a[0][:, None, :]).reshape(len(a[0]), -1)
    return columns, tuple(f"{left}:{right}" for right in b[1] for left in a[1])


def _structures(bars: Sequence[Bar], chosen: Mapping[str, str]) -> list[str]:
    squeezed = {key.replace(" ", ""): value for key, value in chosen.items()}
    known = {bar.label.replace(" ", "") for bar in bars} | {bar.text.replace(" ", "") for bar in bars}
    unknown = [key for key in chosen if key.replace(" ", "") not in known]
    if unknown:
        raise FormulaError(f"`structures` names {unknown}; the terms are {[bar.text for bar in bars]}.")
    wrong = [value for value in chosen.values() if value not in STRUCTURES]
    if wrong:
        raise FormulaError(f"Unknown structures {wrong}; known: {', '.join(STRUCTURES)}.")
    found = []
    for bar in bars:
        by_label = squeezed.get(bar.label.replace(" ", ""), bar.structure)
        found.append(squeezed.get(bar.text.replace(" ", ""), by_label))
    return found


def _recode(value: Value, coding: FactorCoding, label: str) -> Factor:
    assert isinstance(value, Factor)
    positions = pd.Index(coding.levels).get_indexer(pd.Index(value.levels))
    used = np.unique(value.codes[value.codes >= 0])
    unseen = value.levels[used[positions[used] < 0]]
    if len(unseen):
        raise DataError(
            f"{label} has the levels {list(unseen[:5])} in the new data, which the training data did not; "
            f"known: {list(coding.levels[:20])}."
        )
    return replace(value, codes=np.append(positions, -1)[value.codes], levels=coding.levels)
