"""The labelled design of a mixed model and what every front door checks about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from lme_jax.core.structures import Block, entry
from lme_jax.errors import DataError, DroppedRowsWarning
from lme_jax.formula.guard import check_python
from lme_jax.formula.notes import shown, warn
from lme_jax.formula.rank import drop_dependent_columns
from lme_jax.formula.values import Factor, as_frame, column, in_order, odd_value


@dataclass(frozen=True)
class RandomTerm:
    """One random-effects term.

    Attributes
    ----------
    factor : str
        Label of the grouping factor, such as "Subject" or "cask:batch".
    columns : tuple of str
        Names of the q columns of `Z`.
    levels : (m,) array
        Labels of the levels that occur, in factor order.
    codes : (n,) int32 array
        Level of each row, in [0, m).
    Z : (n, q) float64 array
    structure : str
        Its name in ``core.structures.REGISTRY``; `detail` is what the structure knows beside.
    membership : (n, m) scipy CSR array or None
        Weights of the levels in each row where rows belong to several; `codes` then names the heaviest.
    root : (m, r) float64 array or None
        Known relatedness RRᵀ of the levels.
    """

    factor: str
    columns: tuple[str, ...]
    levels: np.ndarray
    codes: np.ndarray
    Z: np.ndarray
    structure: str
    membership: Any = None
    root: np.ndarray | None = None
    detail: tuple[Any, ...] = ()

    @property
    def block(self) -> Block:
        """The covariance structure of the q effects."""
        return Block(self.structure, len(self.columns), self.detail)


@dataclass(frozen=True)
class NewDesign:
    """A design rebuilt on new data with the training levels, contrasts and transforms.

    Attributes
    ----------
    X : (n, p) float64 array
        NaN where the new data are missing.
    terms : tuple of (Z, codes)
        Per random term; code -1 marks an unseen or missing level. Empty if not asked for.
    groups : tuple of Factor or None
        Per random term, the levels that the new rows have (code -1: missing); None where the grouping
        columns are absent or rows belong to several levels.
    offset : (n,) float64 array or None
    index : pandas.Index
    """

    X: np.ndarray
    terms: tuple[tuple[np.ndarray, np.ndarray], ...]
    offset: np.ndarray | None
    index: pd.Index
    groups: tuple[Factor | None, ...] = ()


class DesignState(Protocol):
    """What a front door remembers to rebuild its design."""

    def rebuild(self, frame: pd.DataFrame, random: bool, needed: Sequence[bool] | None = None) -> NewDesign: ...


@dataclass(frozen=True)
class Design:
    """Arrays and labels of a linear mixed model.

    Attributes
    ----------
    y : (n,) float64 array
        Response; the offset is not subtracted.
    X : (n, p) float64 array
        Fixed effects, full column rank.
    terms : tuple of RandomTerm
    weights, offset : (n,) float64 array or None
    endog_name : str
    exog_names : tuple of str
    dropped_columns : tuple of str
        Columns of X that others determine; a RankWarning named them.
    index : pandas.Index
        Index of the rows kept.
    n_dropped : int
        Rows left out for missing values.
    formula : str
    state : DesignState
        Rebuilds X and Z for prediction.
    residual : ResidualTerm or None
        Correlation and variances of the residuals, where they are not independent and alike.
    """

    y: np.ndarray
    X: np.ndarray
    terms: tuple[RandomTerm, ...]
    weights: np.ndarray | None
    offset: np.ndarray | None
    endog_name: str
    exog_names: tuple[str, ...]
    dropped_columns: tuple[str, ...]
    index: pd.Index
    n_dropped: int
    formula: str
    state: DesignState
    residual: Any = None


def design_new_data(
    design: Design, new_data: Any, *, random: bool = True, needed: Sequence[bool] | None = None
) -> NewDesign:
    """Rebuild a design on new data.

    Parameters
    ----------
    design : Design
    new_data : DataFrame or dict of arrays
    random : bool
        Also build the random-effects terms, which needs the grouping columns.
    needed : one bool per random term, optional
        Terms whose grouping columns may be absent are False; all levels are then unknown (-1).

    Returns
    -------
    NewDesign
        One row per row of `new_data`; missing values give NaN in X and Z, and code -1. The offset holds the
        formula's ``offset()`` terms and an offset named by column; one given as an array is not known here.

    Raises
    ------
    DataError
        For a missing column, or a level of a factor in X or Z that the training data did not have.
    """
    return design.state.rebuild(as_frame(new_data), random, needed)


def subset_rows(frame: pd.DataFrame, subset: Any, restricted: bool = False) -> np.ndarray | None:
    """Positions of the rows that a mask or a query text selects; None for all. `restricted`: no calls in the text."""
    if subset is None:
        return None
    if isinstance(subset, str):
        try:
            check_python(subset, () if restricted else None, "The text")
            # Empty scopes: pandas' "@name" would find the names of this module.
            mask: Any = frame.eval(subset, local_dict={}, global_dict={})
        except Exception as error:
            raise DataError(f"Cannot evaluate the subset {subset!r}: {error}") from error
    else:
        mask = in_order(subset, frame.index, "`subset`")
    if np.ndim(mask) == 0:
        raise DataError(f"`subset` must hold one True or False per row: {len(frame)} rows, got {mask!r}.")
    mask = np.asarray(pd.array(mask, dtype="boolean").fillna(False)) if _is_mask(mask) else np.asarray(mask)
    if mask.dtype != bool or mask.shape != (len(frame),):
        raise DataError(
            f"`subset` must hold one True or False per row: {len(frame)} rows, got {mask.dtype} of shape {mask.shape}."
        )
    return np.flatnonzero(mask)


def _is_mask(mask: Any) -> bool:
    return pd.api.types.infer_dtype(np.asarray(mask).ravel(), skipna=True) == "boolean"


def row_numbers(frame: pd.DataFrame, given: Any, what: str, rows: np.ndarray | None) -> np.ndarray | None:
    """Weights or an offset, as a column name or one number per row of the frame before `rows` are taken."""
    if given is None:
        return None
    named = isinstance(given, str)
    values = column(frame, given) if named else given
    label = f"{what} (column {given!r})" if named else what
    values = values if named else in_order(values, frame.index, f"`{what}`")
    array = _numbers(values, label, len(frame))
    return array if rows is None else array[rows]


def _numbers(values: Any, label: str, n: int) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            array = np.asarray(pd.to_numeric(pd.Series(array)))
        array = np.array(array, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"The {label} must be numbers: {error}") from error
    if array.shape != (n,):
        raise DataError(f"The {label} must hold one number per row: {n} rows, got shape {array.shape}.")
    return array


def expressed_numbers(
    frame: pd.DataFrame, text: str, what: str, evaluate: Callable[[str], np.ndarray | Factor]
) -> np.ndarray:
    """Weights or an offset given as text: a column, or an expression such as ``"log(exposure)"``."""
    if text in frame.columns:
        numbers = row_numbers(frame, text, what, None)
        assert numbers is not None
        return numbers
    value = evaluate(text)
    if isinstance(value, Factor) or value.ndim != 1:
        raise DataError(f"The {what} {text!r} must give one number per row.")
    return np.array(value)


@dataclass
class MissingRows:
    """Collects which rows cannot be used, and why."""

    n: int
    index: pd.Index

    def __post_init__(self) -> None:
        self.bad = np.zeros(self.n, dtype=bool)
        self.found: list[tuple[str, np.ndarray, str]] = []

    def check(self, label: str, value: np.ndarray | Factor | None) -> None:
        """Note missing and infinite entries of a variable of the model."""
        if value is None:
            return
        if isinstance(value, Factor):
            if len(value.codes) and value.codes.min() < 0:
                self.note(label, value.codes < 0, "missing")
            if value.levels.dtype.kind == "f" and np.isinf(value.levels).any():
                self.note(label, np.append(np.isinf(value.levels), False)[value.codes], "infinite")
            return
        # The sum is finite whenever all entries are, short of overflow: one cheap pass for clean data.
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(value.sum()):
                return
        across = (lambda a: a.any(axis=1)) if value.ndim == 2 else (lambda a: a)
        self.note(label, across(np.isnan(value)), "missing")
        self.note(label, across(np.isinf(value)), "infinite")

    def note(self, label: str, mask: np.ndarray, kind: str) -> None:
        if mask.any() and not any(seen == label and k == kind for seen, _, k in self.found):
            self.found.append((label, mask, kind))
            self.bad |= mask

    def settle(self, missing: str) -> np.ndarray | None:
        """Positions of the rows to keep (None: all), after the warning or error that `missing` asks for."""
        if not self.found:
            return None
        if missing == "raise":
            rows = np.flatnonzero(self.bad)
            shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
            raise DataError(
                f"{len(rows)} of {self.n} rows cannot be used (row numbers from 0: {shown}): "
                f"{self.reasons()}. Fix or remove them, or use missing='drop'."
            )
        if self.bad.all():
            raise DataError(f"No row is left: {self.reasons()}.")
        warn(f"Left out {self.bad.sum()} of {self.n} rows: {self.reasons()}.", DroppedRowsWarning)
        return np.flatnonzero(~self.bad)

    def reasons(self) -> str:
        return "; ".join(f"{kind} values in {label} ({mask.sum()})" for label, mask, kind in self.found)


def check_missing_argument(missing: str, allowed: Sequence[str]) -> None:
    if missing not in allowed:
        raise DataError(f"missing={missing!r} is unknown; use {' or '.join(map(repr, allowed))}.")


def check_response(y: Any, name: str) -> np.ndarray:
    """A numeric response that varies; a logical one counts as 0 and 1."""
    if isinstance(y, Factor) and y.levels.dtype == bool:
        y = np.where(y.codes < 0, np.nan, y.codes.astype(np.float64))
    if isinstance(y, Factor):
        odd = odd_value(y)
        cause = f"it has the levels {shown(y.levels, 4)}" if odd is None else f"it holds {odd[0]!r} in row {odd[1]}"
        raise DataError(f"The response {name!r} is not numeric: {cause}.")
    if y.ndim != 1:
        raise DataError(f"The response {name!r} has {y.shape[1]} columns; a model takes one.")
    return y


def check_design(
    y: np.ndarray, name: str, weights: np.ndarray | None, X: np.ndarray, terms: Sequence[RandomTerm]
) -> None:
    """Conditions under which no mixed model can be estimated; lme4's default checks for the random terms."""
    check_varies(y.min(), y.max(), name)
    check_weights(weights)
    check_counts(len(y), X.shape[1], terms)


def check_varies(low: float, high: float, name: str) -> None:
    """Whether the response is not the same in all rows."""
    if low == high:
        raise DataError(f"The response {name!r} is constant ({low:g}); there is no variation to model.")


def check_weights(weights: np.ndarray | None) -> None:
    """Whether the weights are positive."""
    if weights is not None and (weights <= 0).any():
        rows = np.flatnonzero(weights <= 0)
        raise DataError(f"Weights must be positive; {len(rows)} are not (rows used, from 0: {shown(rows)}).")


def check_counts(n: int, n_fixed: int, terms: Sequence[RandomTerm]) -> None:
    """Whether n rows are enough for the fixed effects and the levels."""
    if n_fixed >= n:
        raise DataError(f"{n_fixed} fixed effects for {n} rows leave nothing to estimate a variance from.")
    for term in terms:
        if term.membership is None and term.root is None:
            _check_term(term, n)


def _check_term(term: RandomTerm, n: int) -> None:
    m, q = len(term.levels), len(term.columns)
    if m < 2:
        raise DataError(f"The grouping factor {term.factor!r} has one level in the rows used; it needs at least 2.")
    if m >= n:
        raise DataError(
            f"The grouping factor {term.factor!r} has {m} levels for {n} rows; with one row per level its "
            "variance cannot be told from the residual variance. Use a coarser factor."
        )
    if entry(term.block).free and m * q >= n:
        raise DataError(
            f"The term ({' + '.join(term.columns)} | {term.factor}) has {m} * {q} = {m * q} random effects "
            f"for {n} rows, so they cannot be told from the residuals. "
            "Use fewer effects, or || for uncorrelated ones; for correlated residuals of repeated measures "
            "residual='us(visit | id)', or mmrm()."
        )


def reduce_rank(X: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...], np.ndarray]:
    """X without dependent columns, the names kept, the names dropped, and the positions kept."""
    keep = drop_dependent_columns(X, names)
    if len(keep) == X.shape[1]:
        return X, tuple(names), (), keep
    kept = set(keep.tolist())
    dropped = tuple(name for j, name in enumerate(names) if j not in kept)
    return np.ascontiguousarray(X[:, keep]), tuple(names[j] for j in keep), dropped, keep
