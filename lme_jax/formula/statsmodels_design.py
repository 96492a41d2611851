"""How formulaic builds the design of statsmodels' `mixedlm`; imported when the first such formula comes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import FactorEvaluationError, FormulaicError
from formulaic.parser.types import Term
from formulaic.transforms import TRANSFORMS

from lme_jax.errors import DataError, FormulaError, LmeJaxError, UnsupportedError
from lme_jax.formula.columns import Columns, read_columns
from lme_jax.formula.crossing import Crossing, interact, meet_new_rows
from lme_jax.formula.design import (
    Design,
    MissingRows,
    NewDesign,
    RandomTerm,
    check_design,
    check_missing_argument,
    reduce_rank,
    row_numbers,
    subset_rows,
)
from lme_jax.formula.guard import check_python
from lme_jax.formula.notes import shown
from lme_jax.formula.syntax import Call, Name, Node, parse
from lme_jax.formula.values import Factor, as_frame, column, factorize, plain_values

_GROUP = "Group"


@dataclass(frozen=True)
class Matrix:
    """A one-sided formula with what it learned from the training data."""

    spec: ModelSpec
    context: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.spec.column_names)

    def build(self, frame: pd.DataFrame) -> np.ndarray:
        """The matrix on new data, with NaN in rows whose variables are missing."""
        frame = _with_logical_factors(frame, self.spec.formula)
        used = [str(v) for v in self.spec.required_variables]
        for name in used:
            if name not in self.context:
                column(frame, name)
        complete = ~frame[[name for name in used if name in frame.columns]].isna().any(axis=1).to_numpy()
        self._check_levels(frame[complete])
        out = np.full((len(frame), len(self.names)), np.nan)
        if complete.any() and self.names:
            with np.errstate(all="ignore"):
                part = self.spec.get_model_matrix(frame[complete], context=self.context)
            out[complete] = np.asarray(part, dtype=np.float64)
        return out

    def _check_levels(self, frame: pd.DataFrame) -> None:
        for expression, (_, state) in self.spec.encoder_state.items():
            known = state.get("categories")
            name = _factor_column(expression)
            if known is None or name is None or name not in frame.columns:
                continue
            unseen = [v for v in pd.unique(frame[name]) if v not in known]
            if unseen:
                raise DataError(
                    f"{expression} has the levels {shown(unseen)} in the new data, which the training data did "
                    f"not; known: {shown(known, 20)}."
                )


@dataclass(frozen=True)
class Effect:
    """One random term before it meets the data: what to build, and what divides each group into cells."""

    component: str | None
    formula: Formula
    within: tuple[str, ...] = ()

    def term(
        self, label: str, Z: np.ndarray, names: tuple[str, ...], crossed: Factor, one_group: bool = False
    ) -> RandomTerm:
        if self.component is None:
            names = tuple(name.replace("Intercept", label) for name in names)
        elif self.within:
            names = (self.component,)
        factor = label
        if self.within and self.component is not None:
            factor = self.component if one_group else f"{label}:{self.component}"
        structure = "unstructured" if self.component is None else "identity"
        return RandomTerm(factor, names, crossed.levels, crossed.codes.astype(np.int32), Z, structure)


@dataclass(frozen=True)
class StatsmodelsState:
    """Rebuilds the design of a `mixedlm` call."""

    fixed: Matrix
    keep: np.ndarray
    groups: str | None
    effects: tuple[tuple[Matrix, tuple[str, ...]], ...]
    crossings: tuple[Crossing, ...]
    offset_column: str | None
    one_group: bool = False
    columns: Columns | None = None

    def fixed_columns(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
        """X (n, P) of new data with the columns that were left out, and the offset by column."""
        return self.fixed.build(frame), row_numbers(frame, self.offset_column, "offset", None)

    def rebuild(self, frame: pd.DataFrame, random: bool, needed: Sequence[bool] | None = None) -> NewDesign:
        X = self.fixed.build(frame)[:, self.keep]
        offset = row_numbers(frame, self.offset_column, "offset", None)
        if not random:
            return NewDesign(X, (), offset, frame.index)
        needed = [True] * len(self.effects) if needed is None else needed
        terms, groups = [], []
        for (matrix, within), crossing, need in zip(self.effects, self.crossings, needed, strict=True):
            parts = partial(self._parts, frame, within)
            codes, group = meet_new_rows(crossing, parts, need, len(frame))
            terms.append((matrix.build(frame), codes))
            groups.append(group)
        return NewDesign(X, tuple(terms), offset, frame.index, tuple(groups))

    def _parts(self, frame: pd.DataFrame, within: tuple[str, ...]) -> list[Factor]:
        """The factors that divide the rows: the groups, unless there is only one, and the cells in them."""
        cells = [factorize(column(frame, name), name) for name in within]
        if self.one_group and within:
            return cells
        if self.groups is None:
            raise DataError(
                "`groups` was an array, so the groups of new rows are unknown; fit with a column name, "
                "or predict without random effects."
            )
        return [_group_factor(column(frame, self.groups), self.groups), *cells]


def build(
    formula: str,
    data: Any,
    groups: Any,
    re_formula: str | None,
    vc_formula: Mapping[str, str] | None,
    *,
    weights: Any,
    offset: Any,
    subset: Any,
    missing: str,
    context: Mapping[str, Any],
    restricted: bool,
) -> Design:
    """What ``design_from_statsmodels`` returns; `restricted` keeps the formulas from calling unlisted code."""
    check_missing_argument(missing, ("none", "drop", "raise"))
    frame = as_frame(data)
    response, fixed = _two_sides(formula)
    frame = _with_context_arrays(frame, formula, context)
    rows = subset_rows(frame, subset, restricted)
    label = groups if isinstance(groups, str) else _GROUP
    group = _group_factor(_group_values(frame, groups, rows), label)
    weight_values = row_numbers(frame, weights, "weights", rows)
    offset_values = row_numbers(frame, offset, "offset", rows)
    frame = frame if rows is None else frame.iloc[rows]
    if len(frame) == 0:
        raise DataError("The data have no rows" + (" in the subset." if subset is not None else "."))
    effects = _effects(re_formula, vc_formula, frame)
    formulas = [response, fixed, *(effect.formula for effect in effects)]
    _check_safe(formulas, frame, restricted)

    lost = MissingRows(len(frame), frame.index)
    lost.check("the groups", group)
    lost.check("the weights", weight_values)
    lost.check("the offset", offset_values)
    for name in dict.fromkeys(w for effect in effects for w in effect.within):
        lost.note(name, column(frame, name).isna().to_numpy(), "missing")
    built = _materialize_all(formulas, frame, context, lost)
    keep = lost.settle("drop" if missing == "drop" else "raise")
    if keep is not None:
        frame, group = frame.iloc[keep], group.take(keep)
        weight_values, offset_values = (None if v is None else v[keep] for v in (weight_values, offset_values))

    y, endog_name = _response(*built[0])
    fixed_matrix, X = built[1]
    whole = X
    X, exog_names, dropped, kept_columns = reduce_rank(whole, fixed_matrix.names)
    one_group = len(np.unique(group.codes)) == 1
    present = [(effect, *pair) for effect, pair in zip(effects, built[2:], strict=True) if pair[0].names]
    if not present:
        raise FormulaError(f"re_formula={re_formula!r} has no columns, and there is no `vc_formula`.")
    terms, crossings = _random_terms(present, group, frame, label, one_group)
    check_design(y, endog_name, weight_values, X, terms)
    state = StatsmodelsState(
        fixed=fixed_matrix,
        keep=kept_columns,
        groups=groups if isinstance(groups, str) else None,
        effects=tuple((matrix, effect.within) for effect, matrix, _ in present),
        crossings=crossings,
        offset_column=offset if isinstance(offset, str) else None,
        one_group=one_group,
        columns=_columns(fixed_matrix, [offset] if isinstance(offset, str) else [], frame, whole, kept_columns),
    )
    return Design(
        y=y,
        X=X,
        terms=terms,
        weights=weight_values,
        offset=offset_values,
        endog_name=endog_name,
        exog_names=exog_names,
        dropped_columns=dropped,
        index=frame.index,
        n_dropped=lost.n - len(frame),
        formula=formula,
        state=state,
    )


def _columns(
    fixed: Matrix, offset: Sequence[str], frame: pd.DataFrame, X: np.ndarray, keep: np.ndarray
) -> Columns | None:
    """What marginal means ask of the columns behind the fixed effects and the offset; None where one cannot be read."""
    used = [str(v) for v in fixed.spec.required_variables if str(v) in frame.columns]
    coded = {_factor_column(f.expr) for t in fixed.spec.formula for f in t.factors if _is_categorical(f.expr, frame)}
    try:
        columns = {
            name: factorize(frame[name], name) if name in coded else plain_values(column(frame, name), name)
            for name in dict.fromkeys([*used, *offset])
        }
    except LmeJaxError:
        return None
    numbers = [name for name in columns if name in coded and pd.api.types.is_numeric_dtype(frame[name].dtype)]
    return read_columns(columns, numbers, {}, X, keep, None)


def _random_terms(
    present: Sequence[tuple[Effect, Matrix, np.ndarray]],
    group: Factor,
    frame: pd.DataFrame,
    label: str,
    one_group: bool,
) -> tuple[tuple[RandomTerm, ...], tuple[Crossing, ...]]:
    terms, crossings = [], []
    for effect, matrix, Z in present:
        cells = [factorize(frame[name], name) for name in effect.within]
        # statsmodels' idiom for crossed factors: in one group of all rows, cells are just the factor.
        crossed, crossing = interact(cells if one_group and cells else [group, *cells])
        terms.append(effect.term(label, Z, matrix.names, crossed, one_group))
        crossings.append(crossing)
    return tuple(terms), tuple(crossings)


def _check_safe(formulas: Sequence[Formula], frame: pd.DataFrame, restricted: bool) -> None:
    """Refuse Python's internals in every formula, and where `restricted` all but formulaic's transforms."""
    listed = [name for name in TRANSFORMS if name != "np"] if restricted else None
    for expression in {f.expr for formula in formulas for term in formula for f in term.factors}:
        if expression not in frame.columns:
            check_python(expression, listed, "The formula's term")


def _group_values(frame: pd.DataFrame, groups: Any, rows: np.ndarray | None) -> pd.Series:
    values = column(frame, groups) if isinstance(groups, str) else pd.Series(np.asarray(groups).ravel())
    if len(values) != len(frame):
        raise DataError(f"`groups` must hold one label per row: {len(frame)} rows, got {len(values)}.")
    return values if rows is None else values.iloc[rows]


def _group_factor(values: pd.Series, label: str) -> Factor:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    return factorize(values, label)


@lru_cache(maxsize=256)
def _formula(text: str) -> Any:
    if not isinstance(text, str):
        raise FormulaError(f"A formula must be text, not {type(text).__name__}.")
    try:
        return Formula(text, _ordering="none")
    except RecursionError:
        raise FormulaError(f"The formula {text[:60]!r}… is nested too deeply.") from None
    except SyntaxError as error:
        raise FormulaError(f"Cannot read the formula {text!r}: {error.msg}.") from error
    except FormulaicError as error:
        hint = " For (1 | g) terms use an lme4 formula (`lmer`)." if "|" in text else ""
        raise FormulaError(f"Cannot read the formula {text!r}: {_plain(error)}.{hint}") from error


def _plain(error: Exception) -> str:
    """formulaic's message without its terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error))
    return " ".join(text.split()).rstrip(".")


def _two_sides(formula: str) -> tuple[Formula, Formula]:
    parsed = _formula(formula)
    if not hasattr(parsed, "lhs") or not hasattr(parsed, "rhs"):
        raise FormulaError(f"The formula {formula!r} has no response; write 'y ~ x'.")
    return parsed.lhs, parsed.rhs


def _with_context_arrays(frame: pd.DataFrame, formula: str, context: Mapping[str, Any]) -> pd.DataFrame:
    """Arrays that the formula takes from the context become columns, so that they lose rows alike."""
    wanted = {str(v) for v in _formula(formula).required_variables} - set(frame.columns)
    found = {name: context[name] for name in wanted if isinstance(context.get(name), list | np.ndarray | pd.Series)}
    found = {name: np.asarray(value) for name, value in found.items() if np.shape(value) == (len(frame),)}
    return frame.assign(**found) if found else frame


def _one_side(text: str, what: str) -> Formula:
    parsed = _formula(text)
    if hasattr(parsed, "lhs"):
        raise FormulaError(f"The {what} {text!r} must have no response; write '~ x'.")
    return getattr(parsed, "rhs", parsed)


def _effects(re_formula: str | None, vc_formula: Mapping[str, str] | None, frame: pd.DataFrame) -> list[Effect]:
    if vc_formula is not None and not isinstance(vc_formula, Mapping):
        raise FormulaError(f"`vc_formula` must map names to formulas, {{'a': '0 + C(a)'}}; got {vc_formula!r}.")
    effects = []
    if re_formula is not None or vc_formula is None:
        effects.append(Effect(None, _one_side(re_formula or "1", "re_formula")))
    for name in sorted(vc_formula or {}):
        effects.append(_component(name, vc_formula[name], frame))  # type: ignore[index]
    if not effects:
        raise FormulaError("An empty `vc_formula` and no `re_formula` leave no random effects.")
    return effects


def _component(name: str, text: str, frame: pd.DataFrame) -> Effect:
    """A variance component: numeric columns as they are, or one product of indicators and numbers."""
    formula = _one_side(text, f"vc_formula[{name!r}]")
    cells = [[f for f in term.factors if _is_categorical(f.expr, frame)] for term in formula]
    if not any(cells):
        return Effect(name, formula)
    within = [_factor_column(f.expr) for f in cells[0]]
    if len(formula) > 1 or None in within:
        raise UnsupportedError(
            f"vc_formula[{name!r}] = {text!r} is not a product of an indicator and a number. Write "
            "'0 + C(a)', '0 + C(a):C(b)' or '0 + C(a):z' with plain columns in C(), "
            "one component per entry of `vc_formula`."
        )
    numbers = [f.expr for f in formula[0].factors if f not in cells[0]]
    return Effect(name, _formula("0 + " + ":".join(numbers) if numbers else "1"), tuple(map(str, within)))


def _factor_column(expression: str) -> str | None:
    """The column that a factor such as ``f`` or ``C(f)`` codes."""
    try:
        node: Node = parse(expression)
    except FormulaError:
        return None
    if isinstance(node, Call) and node.function == "C" and node.args:
        node = node.args[0]
    return node.name if isinstance(node, Name) else None


def _is_categorical(expression: str, frame: pd.DataFrame) -> bool:
    if expression.startswith("C("):
        return True
    name = _factor_column(expression)
    if name is None or name not in frame.columns:
        return False
    dtype = column(frame, name).dtype
    return not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)


def _variables(formula: Formula, frame: pd.DataFrame) -> list[str]:
    return sorted(str(v) for v in formula.required_variables if str(v) in frame.columns)


def _with_logical_factors(frame: pd.DataFrame, formula: Formula) -> pd.DataFrame:
    """statsmodels codes a logical column as a factor, ``x[T.True]``; formulaic as a number."""
    names = {f.expr for term in formula for f in term.factors}
    logical = [n for n in names if n in frame.columns and pd.api.types.is_bool_dtype(column(frame, n).dtype)]
    return frame.assign(**{n: pd.Categorical(frame[n], [False, True]) for n in logical}) if logical else frame


def _materialize_all(
    formulas: list[Formula], frame: pd.DataFrame, context: Mapping[str, Any], lost: MissingRows
) -> list[tuple[Matrix, np.ndarray]]:
    """Build every formula on the rows that all of them can use."""
    for name in dict.fromkeys(v for f in formulas for v in _variables(f, frame)):
        lost.note(name, column(frame, name).isna().to_numpy(), "missing")
    while True:
        keep = np.flatnonzero(~lost.bad)
        if len(keep) == 0:
            return []
        part = frame.iloc[keep]
        built = [_materialize(f, part, context) for f in formulas]
        for matrix, values in built:
            _note_non_finite(lost, keep, matrix, values)
        if lost.bad.sum() == lost.n - len(keep):
            return built


def _note_non_finite(lost: MissingRows, keep: np.ndarray, matrix: Matrix, values: np.ndarray) -> None:
    for j, name in enumerate(matrix.names):
        for kind, test in (("missing", np.isnan), ("infinite", np.isinf)):
            bad = test(values[:, j])
            if bad.any():
                mask = np.zeros(lost.n, dtype=bool)
                mask[keep[bad]] = True
                lost.note(name, mask, kind)


def _materialize(formula: Formula, frame: pd.DataFrame, context: Mapping[str, Any]) -> tuple[Matrix, np.ndarray]:
    frame = _with_logical_factors(frame, formula)
    used = _variables(formula, frame)
    stale = [n for n in used if isinstance(frame[n].dtype, pd.CategoricalDtype)]
    frame = frame.assign(**{n: frame[n].cat.remove_unused_categories() for n in stale}) if stale else frame
    matrix = _model_matrix(formula, frame, context)
    ordered = _statsmodels_order(formula, {str(f) for f in matrix.model_spec.factor_contrasts})
    if ordered != list(formula):
        matrix = _model_matrix(Formula(ordered, _ordering="none"), frame, context)
    spec = matrix.model_spec
    kept = {str(v): context[str(v)] for v in spec.required_variables if str(v) in context}
    kept |= {
        root: context[root]
        for name in map(str, spec.variables_by_source.get("context", ()))
        if (root := name.split(".")[0]) in context and context[root] is not np
    }
    return Matrix(spec, kept), np.asarray(matrix, dtype=np.float64).reshape(len(frame), -1)


def _model_matrix(formula: Formula, frame: pd.DataFrame, context: Mapping[str, Any]) -> Any:
    try:
        with np.errstate(all="ignore"):
            return ModelSpec(formula, output="numpy", na_action="ignore").get_model_matrix(frame, context=context)
    except FactorEvaluationError as error:
        missing = re.search(r"NameError: (?:name )?[`']([^`']+)[`']", str(error))
        if missing is not None and f"{missing[1]}(" not in str(formula):
            column(frame, missing[1])
        raise FormulaError(f"Cannot evaluate the formula '{formula}': {_plain(error)}.") from error
    except (FormulaicError, TypeError, ValueError, KeyError) as error:
        raise FormulaError(f"Cannot build the formula '{formula}': {_plain(error)}.") from error


def _statsmodels_order(formula: Formula, categorical: set[str]) -> list[Term]:
    """Intercept, categorical terms, then the others bundled by their numeric factors; by degree in each."""
    bundles: dict[tuple[str, ...], list[Term]] = {(): []}
    for term in formula:
        numeric = tuple(sorted(f.expr for f in term.factors if f.expr not in categorical and f.expr != "1"))
        bundles.setdefault(numeric, []).append(term)
    return [term for bundle in bundles.values() for term in sorted(bundle, key=lambda t: t.degree)]


def _response(matrix: Matrix, values: np.ndarray) -> tuple[np.ndarray, str]:
    if values.shape[1] != 1 or matrix.spec.factor_contrasts:
        raise DataError(f"The response must be one numeric column; it gave {list(matrix.names)[:5]}.")
    return values[:, 0], matrix.names[0]
