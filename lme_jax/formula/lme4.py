"""lme4 formulas to a Design, with the coding and the column names of R's model.matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.core.structures import REGISTRY, suggestion
from lme_jax.errors import DataError, FormulaError, LmeJaxError, LmeJaxWarning
from lme_jax.formula.columns import Columns, read_columns, used_columns
from lme_jax.formula.crossing import Crossing, interact, meet_new_rows
from lme_jax.formula.design import (
    Design,
    MissingRows,
    NewDesign,
    RandomTerm,
    check_design,
    check_missing_argument,
    check_response,
    expressed_numbers,
    reduce_rank,
    row_numbers,
    subset_rows,
)
from lme_jax.formula.evaluate import Evaluator
from lme_jax.formula.expansion import Linear
from lme_jax.formula.known import (
    check_mapping,
    check_names,
    heaviest,
    membership_rows,
    relatedness_matrix,
    semidefinite_root,
)
from lme_jax.formula.matrix import FactorCoding, Piece, Value, factor_codings, model_matrix, recode
from lme_jax.formula.notes import warn
from lme_jax.formula.syntax import Name, Node, parse
from lme_jax.formula.term_blocks import resolve
from lme_jax.formula.terms import Bar, MixedFormula, parse_mixed
from lme_jax.formula.values import Factor, as_frame, namespace, take
from lme_jax.formula.wrappers import Spelled


@dataclass(frozen=True)
class Lme4State:
    """Rebuilds the design of an lme4 formula; the transforms' memory is in `memory`.

    `widths` are the columns of each variable of numbers: several for such as poly(x, 2).
    """

    parsed: MixedFormula
    codings: dict[str, FactorCoding]
    crossings: tuple[Crossing | None, ...]
    memory: dict[str, dict]
    context: dict[str, Any]
    keep: np.ndarray
    offset_text: str | None
    widths: dict[str, int] = field(default_factory=dict)
    columns: Columns | None = None

    def fixed_columns(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
        """X (n, P) of new data with the columns that were left out, and the offset that formula and columns give."""
        evaluator = Evaluator(frame, self.context, self.memory)
        offset = _formula_offset(self.parsed.fixed, evaluator)
        given = _given_numbers(frame, self.offset_text, "offset", evaluator, None)
        return self._matrix(self.parsed.fixed, evaluator)[0], _add(offset, given)

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
        given = _given_numbers(frame, self.offset_text, "offset", evaluator, None)
        return NewDesign(X[:, self.keep], tuple(terms), _add(offset, given), frame.index, tuple(groups))

    def _matrix(self, linear: Linear, evaluator: Evaluator) -> Piece:
        values = {label: self._value(label, node, evaluator) for label, node in linear.variables}
        return model_matrix(linear, values, self.codings, len(evaluator.frame))

    def _value(self, label: str, node: Node, evaluator: Evaluator) -> Value:
        value = evaluator.variable(node)
        coding = self.codings.get(label)
        if (coding is None) != isinstance(value, np.ndarray):
            kinds = ("a factor", "numeric") if coding is None else ("numeric", "a factor")
            raise DataError(f"{label} is {kinds[0]} in the new data but was {kinds[1]} when the model was fitted.")
        return recode(value, coding, label) if isinstance(value, Factor) and coding is not None else value


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
    structures: Mapping[str, Any] | None = None,
    memberships: Mapping[str, Any] | None = None,
    relatedness: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | int | None = None,
) -> Design:
    """Turn an lme4 formula and data into arrays.

    Parameters
    ----------
    formula : str
        Such as ``"y ~ x * f + (x | g) + (1 | a/b)"``. ``(x || g)`` gives every column of the model matrix
        its own variance, a factor's columns too. ``cs()``, ``rr(…, d = 2)`` … around a bar choose its covariance
        structure (``docs/structures.md``). ``.`` stands for the columns that are neither in the response
        nor grouping factors.
    data : DataFrame or dict of arrays
        Not changed.
    weights, offset : str or (n,) array, optional
        Column name, an expression such as ``"log(exposure)"``, or one number per row of `data`. ``offset()`` in
        the formula adds to `offset`.
    contrasts : dict, optional
        Variable -> "treatment", "sum", "helmert", "poly", an array (levels, columns) or a DataFrame indexed
        by level. Default: treatment, and poly for ordered Categoricals.
    missing : {"drop", "raise"}
        What to do with rows that have missing or infinite values in anything the model uses.
    subset : mask or str, optional
        Rows to use: one True or False per row, or a query for ``DataFrame.eval``.
    structures : dict, optional
        Factor label or bar text (``"Days | Subject"``) -> a name in ``core.structures.REGISTRY``, or (name, what it
        needs).
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
        that many frames up: 1 for the caller of this function, 2 for the caller's caller. None: the formula
        (and a text given as weights, offset or subset) reaches columns, the listed functions, NumPy's
        elementwise functions and operators, and no other code; for formulas that others wrote.

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
    point whatever the locale, and levels that no used row has are left out. As in R, ``scale``, ``poly`` …
    learn from every row of the subset that has their own variable, before rows with other missing values
    go; unlike R, so do ``mean``, ``sd``, ``max`` …, whose value at the fit is kept for new rows.
    """
    check_missing_argument(missing, ("drop", "raise"))
    whole = as_frame(data)
    parsed = parse_mixed(formula, whole.columns)
    rows = subset_rows(whole, subset, restricted=context is None)
    frame = whole if rows is None else whole.iloc[rows]
    if len(frame) == 0:
        raise DataError("The data have no rows" + (" in the subset." if subset is not None else "."))
    if parsed.echoed:
        warn(f"The response {parsed.response} stood on the right-hand side too and was dropped there.", LmeJaxWarning)
    evaluator = Evaluator(frame, namespace(context), {}, {}, rows)
    known = _known(parsed.bars, memberships or {}, relatedness or {}, len(whole))
    given = [_given_numbers(whole, v, what, evaluator, rows) for v, what in ((weights, "weights"), (offset, "offset"))]
    variables = _evaluate(parsed, evaluator, given[0], given[1], frozenset(known.shares))
    keep = variables.usable_rows(frame.index, missing)
    variables = (variables if keep is None else variables.take(keep)).without_unused_levels()
    known = known.take(rows).take(keep)
    how = _How(contrasts or {}, structures or {}, offset if isinstance(offset, str) else None)
    return _assemble(parsed, variables, frame.index, keep, known, how, evaluator)


def _assemble(
    parsed: MixedFormula,
    variables: _Variables,
    index: pd.Index,
    keep: np.ndarray | None,
    known: _Known,
    how: _How,
    evaluator: Evaluator,
) -> Design:
    """The design from the variables of the rows in use; `index` and `keep` are those of all rows looked at."""
    codings = factor_codings(variables.values, how.contrasts, _linears(parsed))
    whole, names = model_matrix(parsed.fixed, variables.values, codings, len(variables.y))
    X, exog_names, dropped, kept_columns = reduce_rank(whole, names)
    structures = _structures(parsed.bars, how.structures)
    terms, crossings = _random_terms(parsed.bars, structures, variables, codings, known, evaluator)
    check_design(variables.y, variables.endog_name, variables.weights, X, terms)
    widths = {k: v.shape[1] if v.ndim == 2 else 1 for k, v in variables.values.items() if not isinstance(v, Factor)}
    seen = _columns(parsed.fixed, how.offset_text, evaluator, whole, kept_columns, keep)
    state = Lme4State(
        parsed, codings, crossings, evaluator.state, evaluator.used, kept_columns, how.offset_text, widths, seen
    )
    return Design(
        y=np.array(variables.y),
        X=X,
        terms=terms,
        weights=variables.weights,
        offset=variables.offset,
        endog_name=variables.endog_name,
        exog_names=exog_names,
        dropped_columns=dropped,
        index=index if keep is None else index[keep],
        n_dropped=0 if keep is None else len(index) - len(keep),
        formula=parsed.text,
        state=state,
    )


def _columns(
    fixed: Linear, offset: str | None, evaluator: Evaluator, X: np.ndarray, keep: np.ndarray, rows: np.ndarray | None
) -> Columns | None:
    """What marginal means ask of the columns behind the fixed effects and the offset; None where one cannot be read."""
    nodes = [node for _, node in fixed.variables] + list(fixed.offsets)
    nodes += [] if offset is None else [Name(offset) if offset in evaluator.frame.columns else _expression(offset)]
    arrays = [name for name, value in evaluator.used.items() if isinstance(value, list | np.ndarray | pd.Series)]
    made_factor = used_columns(nodes, [*evaluator.frame.columns, *arrays])
    try:
        columns = {
            name: evaluator.grouping(Name(name)) if made else evaluator.name(name) for name, made in made_factor.items()
        }
    except LmeJaxError:
        return None
    numbers = [name for name, made in made_factor.items() if made and _holds_numbers(evaluator, name)]
    return read_columns(columns, numbers, evaluator.time_kinds(), X, keep, rows)


def _holds_numbers(evaluator: Evaluator, name: str) -> bool:
    return name not in evaluator.frame.columns or pd.api.types.is_numeric_dtype(evaluator.frame[name].dtype)


def _given_numbers(
    whole: pd.DataFrame, given: Any, what: str, evaluator: Evaluator, rows: np.ndarray | None
) -> np.ndarray | None:
    """Weights or an offset: numbers per row of the whole data, or text that is evaluated on the rows in use."""
    if isinstance(given, str):
        return expressed_numbers(evaluator.frame, given, what, lambda text: evaluator.variable(_expression(text)))
    return row_numbers(whole, given, what, rows)


@lru_cache(maxsize=256)
def _expression(text: str) -> Node:
    return parse(text)


@dataclass(frozen=True)
class _How:
    """The caller's wishes that concern the design but not its rows."""

    contrasts: Mapping[str, Any]
    structures: Mapping[str, str]
    offset_text: str | None


@dataclass(frozen=True)
class _Variables:
    """Every variable of the model, row by row: R's model frame."""

    endog_name: str
    y: np.ndarray
    values: dict[str, Value]
    parts: dict[str, Factor]
    weights: np.ndarray | None
    offset: np.ndarray | None

    def usable_rows(self, index: pd.Index, missing: str) -> np.ndarray | None:
        lost = MissingRows(len(self.y), index)
        lost.check(self.endog_name, self.y)
        for label, value in self.values.items():
            lost.check(label, value)
        for label, factor in self.parts.items():
            lost.check(label, factor)
        lost.check("the weights", self.weights)
        lost.check("the offset", self.offset)
        return lost.settle(missing)

    def take(self, rows: np.ndarray) -> _Variables:
        return _Variables(
            self.endog_name,
            self.y[rows],
            {label: take(value, rows) for label, value in self.values.items()},
            {label: factor.take(rows) for label, factor in self.parts.items()},
            None if self.weights is None else self.weights[rows],
            None if self.offset is None else self.offset[rows],
        )

    def without_unused_levels(self) -> _Variables:
        if not any(isinstance(v, Factor) for v in self.values.values()):
            return self
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
    used = {str(part): part for bar in parsed.bars if bar.label not in shared for part in bar.parts}
    parts = {label: evaluator.grouping(part) for label, part in used.items()}
    return _Variables(name, y, values, parts, weights, _add(_formula_offset(parsed.fixed, evaluator), offset))


@dataclass(frozen=True)
class _Known:
    """Shares of the rows in several levels, with the levels' labels; relatedness of levels."""

    shares: dict[str, tuple[Any, np.ndarray]]
    relatedness: Mapping[str, Any]

    def take(self, rows: np.ndarray | None) -> _Known:
        if rows is None or not self.shares:
            return self
        return replace(self, shares={k: (W[rows], levels) for k, (W, levels) in self.shares.items()})


def _known(bars: Sequence[Bar], memberships: Mapping[str, Any], relatedness: Mapping[str, Any], n: int) -> _Known:
    check_mapping(memberships, "memberships")
    check_mapping(relatedness, "relatedness")
    if memberships or relatedness:
        labels = [bar.label for bar in bars]
        check_names(memberships, labels, "memberships")
        check_names(relatedness, labels, "relatedness")
    return _Known({name: membership_rows(given, name, n) for name, given in memberships.items()}, relatedness)


def _random_terms(
    bars: Sequence[Bar],
    structures: list[Spelled],
    variables: _Variables,
    codings: dict[str, FactorCoding],
    known: _Known,
    evaluator: Evaluator,
) -> tuple[tuple[RandomTerm, ...], tuple[Crossing | None, ...]]:
    terms: list[RandomTerm] = []
    crossings: list[Crossing | None] = []
    roots: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for bar, structure in zip(bars, structures, strict=True):
        Z, columns = model_matrix(bar.lhs, variables.values, codings, len(variables.y))
        if not columns:
            raise FormulaError(f"The random-effects term ({bar.text}) has no columns.")
        block = resolve(structure, bar.text, bar.lhs, columns, codings, evaluator)
        rows, crossing = None, None
        if bar.label in known.shares:
            rows, levels = known.shares[bar.label]
            codes = heaviest(rows)
        else:
            crossed, crossing = interact([variables.parts[str(part)] for part in bar.parts])
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
        terms.append(RandomTerm(bar.label, columns, levels, codes, Z, block.structure, rows, root, block.detail))
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
        total = value.copy() if total is None else total + value
    return total


def _structures(bars: Sequence[Bar], chosen: Mapping[str, Any]) -> list[Spelled]:
    check_mapping(chosen, "structures")
    if not chosen:
        return [bar.structure for bar in bars]
    squeezed = {str(key).replace(" ", ""): _chosen(value) for key, value in chosen.items()}
    known = {bar.label.replace(" ", "") for bar in bars} | {bar.text.replace(" ", "") for bar in bars}
    unknown = [key for key in chosen if str(key).replace(" ", "") not in known]
    if unknown:
        raise FormulaError(f"`structures` names {unknown}; the terms are {[bar.text for bar in bars]}.")
    found = []
    for bar in bars:
        by_label = squeezed.get(bar.label.replace(" ", ""), bar.structure)
        found.append(squeezed.get(bar.text.replace(" ", ""), by_label))
    return found


def _chosen(value: Any) -> Spelled:
    """A structure as `structures` gives it: a name, or (name, what it needs)."""
    name, argument = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not isinstance(name, str) or name not in REGISTRY:
        raise FormulaError(f"`structures`: unknown covariance structure {value!r}{suggestion(name)}.")
    return Spelled(name, argument)
