"""Residual structures on data: visits, coordinates, subjects, arms and strata as codes, with what new rows need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, LmeJaxWarning
from lme_jax.formula.crossing import Crossing, interact
from lme_jax.formula.evaluate import Evaluator
from lme_jax.formula.matrix import Value
from lme_jax.formula.notes import shown, warn
from lme_jax.formula.residual_words import CorrelationSpelling, ResidualSpelling, VarianceSpelling
from lme_jax.formula.syntax import Name, Node
from lme_jax.formula.values import Factor, level_labels

# Words in which visits have no order; of these a level without rows changes nothing.
_UNORDERED = ("us", "cs", "csh")
# Words whose integers count as they are, lags in units; of the others the distinct values are the visits.
_COUNTING = ("ar1", "arma")
# Words in which a visit without rows between others stays as it is: only lags count.
_BY_LAG = ("ar1", "arma", "toep")
# Words whose lags must be the same between all neighbours.
_EQUALLY_SPACED = ("toep", "toeph", "ar1h")
_ORDER = ("order of the rows", "")

# Variables of the rows: ("grouping" or "variable", label) → value.
Values = Mapping[tuple[str, str], Value]


@dataclass(frozen=True)
class VarianceRows:
    """One variance function on the rows: strata's codes (n,) or None, their labels, the covariate (n,) or None."""

    word: str
    codes: np.ndarray | None
    levels: tuple[Any, ...]
    covariate: np.ndarray | None
    fitted: bool
    text: str


@dataclass(frozen=True)
class ResidualRows:
    """The residual structure on some rows; a code −1 marks what the fit did not have.

    Attributes
    ----------
    subject : (n,) codes; clock : (n,) visits, or (n, d) coordinates; arm : (n,) codes or None; variances : by function.
    """

    subject: np.ndarray
    clock: np.ndarray
    arm: np.ndarray | None
    variances: tuple[VarianceRows, ...]


@dataclass(frozen=True)
class ResidualTerm:
    """A residual structure on the rows that were fitted.

    Attributes
    ----------
    spelling : what was asked for. rows : its codes.
    subjects : (m,) labels; subject_name : such as "USUBJID".
    visits : labels of the T visits, empty for structures of distances. clock_name, arm_name : variables, or "".
    arms : labels of the groups with parameters of their own, empty if none.
    crossings : of the subject's parts and of each function's strata, for new rows.
    """

    spelling: ResidualSpelling
    rows: ResidualRows
    subjects: np.ndarray
    subject_name: str
    visits: tuple[Any, ...]
    clock_name: str
    arms: tuple[Any, ...]
    arm_name: str
    crossings: tuple[Crossing | None, ...]

    def rebuild(self, evaluator: Evaluator) -> ResidualRows:
        """The structure on new rows; subjects, arms and strata that the fit did not have are −1."""
        values, n = evaluate_residual(self.spelling, evaluator, fitted=False), evaluator.n
        subject = clock = np.full(n, -1)
        arm = None
        spelled = self.spelling.correlation
        if spelled is not None:
            parts = [_factor(values, part) for part in spelled.subject]
            subject = self.crossings[0].lookup(parts) if self.crossings[0] is not None else np.zeros(n, int)
            clock = self._new_clock(spelled, values)
            arm = None if spelled.group is None else _found(_factor(values, spelled.group), self.arms)
        variances = tuple(self._new_variance(i, function, values) for i, function in enumerate(self.spelling.variances))
        return ResidualRows(subject, clock, arm, variances)

    def _new_clock(self, spelled: CorrelationSpelling, values: Values) -> np.ndarray:
        if not spelled.by_visit:
            return _coordinates(spelled, values)
        value = values[_clock_key(spelled)]
        if isinstance(value, Factor):
            return _found(value, self.visits, self.clock_name)
        if spelled.word in _COUNTING:
            return _whole(value, spelled) - int(self.visits[0])
        at = pd.Index(self.visits).get_indexer(pd.Index(value))
        _refuse_unknown(at, value, self.clock_name, self.visits)
        return at

    def _new_variance(self, i: int, function: VarianceSpelling, values: Values) -> VarianceRows:
        old, crossing = self.rows.variances[i], self.crossings[1 + i]
        codes = None if crossing is None else crossing.lookup([_factor(values, part) for part in function.strata])
        return VarianceRows(old.word, codes, old.levels, _covariate(function, values), old.fitted, old.text)


# ---------------------------------------------------------------- variables


def evaluate_residual(spelling: ResidualSpelling, evaluator: Evaluator, fitted: bool = True) -> dict:
    """Every variable of a residual structure, row by row; ``fitted`` is False for new rows, which have no order."""
    groups: list[Node] = [part for function in spelling.variances for part in function.strata]
    variables = [f.covariate for f in spelling.variances if f.covariate is not None and not _is_fitted(f, evaluator)]
    correlation = spelling.correlation
    if correlation is not None:
        groups += [*correlation.subject, *([] if correlation.group is None else [correlation.group])]
        variables += correlation.clock
    values: dict[tuple[str, str], Value] = {("grouping", str(g)): evaluator.grouping(g) for g in groups}
    values |= {("variable", str(v)): evaluator.variable(v) for v in variables}
    if correlation is not None and not correlation.clock:
        if not fitted:
            raise DataError(f"{correlation.text} takes the order of the rows as clock, which new rows do not have.")
        values[_ORDER] = _row_order(correlation, values, evaluator.n)
    return values


def _is_fitted(function: VarianceSpelling, evaluator: Evaluator) -> bool:
    """Whether the covariate is ``fitted``, the fitted values, and no column of that name."""
    return function.covariate == Name("fitted") and "fitted" not in evaluator.frame.columns


def _row_order(spelled: CorrelationSpelling, values: Values, n: int) -> np.ndarray:
    """The number of each row within its subject, before rows with missing values go."""
    subject, _ = _crossed(spelled.subject, values, n)
    order = pd.Series(subject).groupby(subject).cumcount().to_numpy(float)
    sizes = np.bincount(subject[subject >= 0])
    if len(sizes) and sizes.min() < sizes.max() and spelled.word != "cs":
        warn(
            f"{spelled.text} counts the rows of a subject in their order, and subjects have {sizes.min()} to "
            f"{sizes.max()} rows: where one is missing in between, later lags are too short. Name the visit instead.",
            LmeJaxWarning,
        )
    return order


def _factor(values: Values, node: Node) -> Factor:
    value = values[("grouping", str(node))]
    assert isinstance(value, Factor)
    return value


def _crossed(parts: tuple[Node, ...], values: Values, n: int) -> tuple[np.ndarray, Any]:
    """Codes (n,) of the combinations of factors, with (their factor, crossing); one subject of no parts."""
    if not parts:
        return np.zeros(n, int), None
    found = interact([_factor(values, part) for part in parts])
    return np.asarray(found[0].codes, int), found


# ---------------------------------------------------------------- rows that are fitted


def resolve_residual(spelling: ResidualSpelling, values: Values, n: int) -> ResidualTerm:
    """The structure on the rows in use, everything checked that needs no likelihood."""
    crossings: list[Crossing | None] = [None]
    subjects, visits, arms = np.arange(n), (), ()
    subject = clock = np.arange(n)
    arm = None
    spelled = spelling.correlation
    if spelled is not None:
        subject, found = _crossed(spelled.subject, values, n)
        subjects = np.array([None], object) if found is None else found[0].levels
        crossings[0] = None if found is None else found[1]
        clock, visits = _clock(spelled, values)
        _refuse_duplicates(spelled, subject, subjects, clock, visits)
        if spelled.group is not None:
            group = _factor(values, spelled.group).without_unused_levels()
            arm, arms = np.asarray(group.codes, int), tuple(group.levels.tolist())
            _refuse_changing_arm(spelled, subject, subjects, arm, arms)
    functions = []
    for function in spelling.variances:
        own, crossing = _variance_rows(function, values, n)
        functions.append(own)
        crossings.append(crossing)
    names = ("row", "row", "") if spelled is None else _names(spelled)
    rows = ResidualRows(subject, clock, arm, tuple(functions))
    return ResidualTerm(spelling, rows, subjects, names[0], visits, names[1], arms, names[2], tuple(crossings))


def _names(spelled: CorrelationSpelling) -> tuple[str, str, str]:
    """Of the subject, the clock and the arm, as people wrote them."""
    subject = ":".join(part.name if isinstance(part, Name) else str(part) for part in spelled.subject)
    clock = ", ".join(part.name if isinstance(part, Name) else str(part) for part in spelled.clock)
    return subject, clock or "row", "" if spelled.group is None else str(spelled.group)


def _variance_rows(function: VarianceSpelling, values: Values, n: int) -> tuple[VarianceRows, Crossing | None]:
    codes, found = _crossed(function.strata, values, n)
    levels = () if found is None else tuple(level_labels(found[0].levels))
    covariate = _covariate(function, values)
    fitted = function.covariate is not None and covariate is None
    rows = VarianceRows(function.word, None if found is None else codes, levels, covariate, fitted, function.text)
    return rows, None if found is None else found[1]


def _covariate(function: VarianceSpelling, values: Values) -> np.ndarray | None:
    value = values.get(("variable", str(function.covariate)))
    if value is None:
        return None
    return _numbers(value, str(function.covariate), function.text)


def _numbers(value: Value, name: str, text: str) -> np.ndarray:
    if isinstance(value, Factor):
        raise DataError(f"{text}: {name} must be numbers; it is a factor with the levels {shown(value.levels, 4)}.")
    if value.ndim != 1:
        raise DataError(f"{text}: {name} has {value.shape[1]} columns; one is wanted.")
    return value


# ---------------------------------------------------------------- clock


def _clock_key(spelled: CorrelationSpelling) -> tuple[str, str]:
    return ("variable", str(spelled.clock[0])) if spelled.clock else _ORDER


def _clock(spelled: CorrelationSpelling, values: Values) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Visits (n,) 0 … T − 1 with their labels, or coordinates (n, d) and no labels."""
    if not spelled.by_visit:
        return _coordinates(spelled, values), ()
    value = values[_clock_key(spelled)]
    if isinstance(value, Factor):
        return _visits_of_levels(spelled, value)
    if not spelled.clock:
        return value.astype(int), tuple(range(1, int(value.max()) + 2))
    if spelled.word in _COUNTING:
        whole = _whole(value, spelled)
        return whole - whole.min(), tuple(range(whole.min(), whole.max() + 1))
    levels, codes = np.unique(value, return_inverse=True)
    if spelled.word in _EQUALLY_SPACED:
        _refuse_unequal_spacing(spelled, levels)
    return codes.reshape(-1), tuple(int(v) if float(v).is_integer() else float(v) for v in levels)


def _coordinates(spelled: CorrelationSpelling, values: Values) -> np.ndarray:
    if not spelled.clock:
        return np.asarray(values[_ORDER], float)
    columns = [
        _numbers(values[("variable", str(part))], str(part), f"{spelled.text} measures distances")
        for part in spelled.clock
    ]
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def _whole(value: Value, spelled: CorrelationSpelling) -> np.ndarray:
    name = str(spelled.clock[0])
    number = _numbers(value, name, spelled.text)
    odd = np.flatnonzero(number != np.round(number))
    if len(odd):
        subject = ":".join(map(str, spelled.subject))
        raise DataError(
            f"{spelled.text} counts whole steps, but {name} holds {number[odd[0]]:g} (row used {odd[0]}, from 0): "
            f"write car1({name} | {subject}) for any times, or factor({name}) to count its values as visits."
        )
    return number.astype(int)


def _visits_of_levels(spelled: CorrelationSpelling, value: Factor) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The level numbers of a factor. Levels without rows go where that changes no lag and no parameter."""
    if value.text and spelled.word not in _UNORDERED:
        _refuse_text_order(spelled, value)
    used = np.bincount(value.codes, minlength=len(value.levels)) > 0
    keep = used.copy()
    if spelled.word not in _UNORDERED:
        first, last = np.flatnonzero(used)[[0, -1]]
        keep[first : last + 1] = True
        empty = np.flatnonzero(keep & ~used)
        if len(empty) and spelled.word not in _BY_LAG:
            raise DataError(
                f"{spelled.text}: the level {level_labels(value.levels)[empty[0]]!r} of {spelled.clock[0]} has no "
                f"rows, so the data do not tell its parameters. Take it away ({spelled.clock[0]}"
                ".cat.remove_unused_categories()) if its neighbours are one step apart, or use ar1 or toep."
            )
    codes = (np.cumsum(keep) - 1)[value.codes]
    return codes, tuple(value.levels[keep].tolist())


def _refuse_text_order(spelled: CorrelationSpelling, value: Factor) -> None:
    """Text sorts "week 10" before "week 2"; visits in that order would have wrong lags."""
    found = [re.findall(r"-?\d+(?:\.\d+)?", str(level)) for level in value.levels]
    if len(found) < 2 or any(len(numbers) != 1 for numbers in found):
        return
    numbers = [float(one[0]) for one in found]
    if numbers != sorted(numbers):
        raise DataError(
            f"{spelled.text}: {spelled.clock[0]} is text, which sorts as {shown(value.levels, 4)}; these visits have "
            "an order: make the column a pandas.Categorical whose categories stand in it."
        )


def _refuse_unequal_spacing(spelled: CorrelationSpelling, levels: np.ndarray) -> None:
    steps = np.diff(levels)
    if len(steps) and not np.allclose(steps, steps[0], rtol=1e-9, atol=0):
        name = str(spelled.clock[0])
        raise DataError(
            f"{spelled.text}: the values {shown(levels)} of {name} are not equally spaced, so their lags are not: "
            f"write factor({name}) to count them as visits one step apart, or use us, adh, csh, car1 or sp_exp."
        )


def _refuse_duplicates(
    spelled: CorrelationSpelling, subject: np.ndarray, subjects: np.ndarray, clock: np.ndarray, visits: tuple[Any, ...]
) -> None:
    """Two rows of one subject at one visit, or at one place: which is which?"""
    if not spelled.clock:
        return
    if visits and np.bincount(subject * len(visits) + clock).max() == 1:
        return
    keys = pd.DataFrame(clock.reshape(len(clock), -1)).assign(subject=subject)
    twice = np.flatnonzero(keys.duplicated().to_numpy())
    if not len(twice):
        return
    at = twice[0]
    first = int(np.flatnonzero((keys == keys.iloc[at]).all(axis=1).to_numpy())[0])
    where = repr(visits[clock[at]]) if visits else ", ".join(f"{c:g}" for c in np.atleast_1d(clock[at]))
    who = "" if subjects[0] is None else f" of {_names(spelled)[0]} {_plain(subjects[subject[at]])!r}"
    advice = "Keep one, average them, or name a subject that tells them apart (id:part)."
    raise DataError(
        f"{spelled.text}: two rows{who} have the same {_names(spelled)[1]}, {where} (rows used {first} and {at}, "
        f"from 0; {len(twice)} in all). {advice}"
    )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _refuse_changing_arm(
    spelled: CorrelationSpelling, subject: np.ndarray, subjects: np.ndarray, arm: np.ndarray, arms: tuple[Any, ...]
) -> None:
    first = np.empty(len(subjects), int)
    first[subject[::-1]] = arm[::-1]
    bad = np.flatnonzero(arm != first[subject])
    if len(bad):
        at = bad[0]
        subject_name, _, arm_name = _names(spelled)
        own, also = arms[first[subject[at]]], arms[arm[at]]
        raise DataError(
            f"{spelled.text}: {subject_name} {_plain(subjects[subject[at]])!r} has rows in {arm_name} {own!r} and "
            f"{also!r}, but a subject has one {arm_name}. Where labels start anew in each arm, write "
            f"{arm_name}:{subject_name}."
        )


# ---------------------------------------------------------------- new rows


def _found(value: Factor, levels: tuple[Any, ...], name: str = "") -> np.ndarray:
    """Positions (n,) among known levels; −1 for others, which are refused if ``name`` says of what."""
    at = np.append(pd.Index(levels).get_indexer(pd.Index(value.levels)), -1)[value.codes]
    if name:
        labels = np.append(value.levels.astype(object), [None])[value.codes]
        _refuse_unknown(np.where(value.codes < 0, 0, at), labels, name, levels)
    return at


def _refuse_unknown(at: np.ndarray, values: Any, name: str, levels: tuple[Any, ...]) -> None:
    new = np.flatnonzero(at < 0)
    if len(new):
        raise DataError(f"{name} {_plain(values[new[0]])!r} is new; the fit had {shown(levels, 8)}.")
