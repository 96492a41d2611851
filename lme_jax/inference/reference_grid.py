"""The reference grid: values at which the fixed effects are evaluated, and means over them as rows of L.

Searle, Speed & Milliken (1980), Am. Stat. 34, 216–221; Lenth's emmeans is where the conventions come from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ..errors import DataError, UnsupportedError
from ..formula import Design
from ..formula.columns import Columns, Variable
from ..formula.notes import shown
from ..formula.values import level_labels

Weights = Literal["equal", "proportional", "outer", "cells"]
WEIGHTS = ("equal", "proportional", "outer", "cells")
MAX_BYTES = 2**30
# The step of a numerical derivative, relative to the scale of the variable; its error is of fourth order.
STEP = 1e-3


class Functions(NamedTuple):
    """Linear functions of the fixed effects, Lβ + offset.

    Attributes
    ----------
    L : (m, p) in the columns that were fitted.
    gap : (m, d) by how much a function leaves what the data determine: zero where it is estimable.
    offset : (m,)
    """

    L: np.ndarray
    gap: np.ndarray
    offset: np.ndarray

    def combined(self, K: np.ndarray) -> "Functions":
        """K (r, m) combinations of them."""
        return Functions(K @ self.L, K @ self.gap, K @ self.offset)

    def rows(self, which: Any) -> "Functions":
        """Some of them."""
        return Functions(self.L[which], self.gap[which], self.offset[which])

    @property
    def estimable(self) -> np.ndarray:
        """(m,) whether the data determine each function."""
        size = np.abs(self.L).max(axis=1, initial=1.0)
        return np.abs(self.gap).max(axis=1, initial=0.0) <= 1e-8 * size


def unit_functions(p: int) -> Functions:
    """The p fixed effects themselves."""
    return Functions(np.eye(p), np.zeros((p, 0)), np.zeros(p))


class Axis(NamedTuple):
    """A variable of the grid and its values there."""

    name: str
    variable: Variable
    values: np.ndarray


def columns_of(design: Design) -> Columns:
    """What the design remembers of its columns; refuses designs of arrays."""
    found = getattr(design.state, "columns", None)
    if found is None:
        raise UnsupportedError(
            "marginal means need a formula whose columns can be read one by one: arrays do not say what theirs mean"
        )
    lost = len(design.dropped_columns)
    if found.dependence.shape != (len(design.exog_names), lost):
        raise UnsupportedError(
            "this fit of a batch leaves out fixed effects that its rows do not tell apart: fit its rows alone with lmer"
        )
    return found


def named(names: Any, what: str) -> list[str]:
    """Names from a list or from text such as ``"a * b"``, ``"a:b"``, ``"a + b"``."""
    if names is None:
        return []
    if isinstance(names, str):
        text = names.replace("~", " ")
        for mark in "*:+,":
            text = text.replace(mark, "\n")
        names = [part.strip() for part in text.split("\n")]
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{what}={names!r}: give a variable's name, or a list of them")
    return [name for name in dict.fromkeys(names) if name not in ("", "1")]


def read_specs(specs: Any, by: Any) -> tuple[list[str], list[str]]:
    """Names whose means are asked for, and those within whose values they are compared (``"a | b"``)."""
    if isinstance(specs, str) and "|" in specs:
        specs, _, given = specs.partition("|")
        by = [*named(given, "specs"), *named(by, "by")]
    inner, outer = named(specs, "specs"), named(by, "by")
    return [name for name in inner if name not in outer], outer


def axes(found: Columns, first: Sequence[str], at: Mapping[str, Any] | None) -> list[Axis]:
    """The grid's variables: ``first`` in their order, then all others."""
    given = dict(at or {})
    for name in (*first, *given):
        if name not in found.variables:
            known = shown(found.variables, 20) if found.variables else "none"
            raise DataError(f"{name!r} is no variable of the fixed effects; there are {known}")
    order = [*first, *(name for name in found.variables if name not in first)]
    out = [Axis(n, v, _values(n, v, given.get(n))) for n, v in ((n, found.variables[n]) for n in order)]
    size, most = 8.0 * np.prod([float(len(axis.values)) for axis in out]), MAX_BYTES / 64
    if size > most:
        raise DataError(f"the reference grid has {size / 8:.0f} points: choose values of some variables with at=")
    return out


def _values(name: str, variable: Variable, given: Any) -> np.ndarray:
    if given is None:
        return variable.values
    chosen: np.ndarray = np.atleast_1d(np.asarray(given)).reshape(-1)
    if not variable.is_factor:
        try:
            return _days(chosen, variable) if variable.kind != "number" else np.asarray(chosen, float)
        except (TypeError, ValueError) as error:
            raise DataError(f"at: {name!r} is a number, not {shown(chosen)}") from error
    labels, wanted = level_labels(variable.levels), level_labels(chosen)  # type: ignore[arg-type]
    unknown = [w for w in wanted if w not in labels]
    if unknown:
        raise DataError(f"at: {name!r} has no level {shown(unknown)}; there are {shown(labels, 20)}")
    return variable.values[[labels.index(w) for w in wanted]]


def _days(values: np.ndarray, variable: Variable) -> np.ndarray:
    if values.dtype.kind in "iuf":
        return values.astype(float)
    if variable.kind == "duration":
        return np.asarray(pd.to_timedelta(list(values)) / pd.Timedelta(1, "D"), float)
    return np.asarray((pd.to_datetime(list(values)) - pd.Timestamp(0)) / pd.Timedelta(1, "D"), float)


def labels_of(axis: Axis) -> list[Any]:
    """The values of an axis as they are shown."""
    if axis.variable.kind == "time":
        return list(pd.Timestamp(0) + pd.to_timedelta(axis.values, unit="D"))
    values = axis.values
    if axis.variable.is_factor and values.dtype.kind == "f" and (values == np.round(values)).all():
        values = values.astype(np.int64)
    return [value.item() if hasattr(value, "item") else value for value in values]


def means(
    design: Design,
    specs: Sequence[str],
    by: Sequence[str],
    at: Mapping[str, Any] | None,
    weights: str,
    var: str | None = None,
) -> tuple[pd.DataFrame, Functions]:
    """Means over the grid within the values of ``specs`` and ``by``, whose first variable varies fastest.

    Parameters
    ----------
    var : the variable by which the grid is differentiated, for slopes.

    Returns
    -------
    keys : (m, ·) frame of the values of ``specs`` and ``by``; functions : m of them.
    """
    if weights not in WEIGHTS:
        raise DataError(f"weights={weights!r} is unknown; use {', '.join(map(repr, WEIGHTS))}")
    found = columns_of(design)
    shown_names = [*specs, *by]
    grid = axes(found, list(reversed(shown_names)), at)
    shape = tuple(len(axis.values) for axis in grid)
    cells = int(np.prod(shape[: len(shown_names)]))
    average = _averages(found, grid, len(shown_names), weights).reshape(cells, -1)
    X, offset = _evaluated(design, grid) if var is None else _slopes(design, grid, var)
    with np.errstate(invalid="ignore"):
        whole = np.einsum("cop,co->cp", X.reshape(*average.shape, -1), average)
        shift = (offset.reshape(average.shape) * average).sum(1)
    at_cell = _codes(shape[: len(shown_names)])
    keys = {axis.name: [labels_of(axis)[i] for i in codes] for axis, codes in zip(grid, at_cell, strict=False)}
    frame = pd.DataFrame({name: keys[name] for name in shown_names}, index=pd.RangeIndex(cells))
    return frame, _functions(design, found, whole, shift)


def _functions(design: Design, found: Columns, X: np.ndarray, offset: np.ndarray) -> Functions:
    state: Any = design.state
    keep = np.asarray(state.keep)
    lost = np.setdiff1d(np.arange(X.shape[1]), keep)
    L = X[:, keep]
    return Functions(L, X[:, lost] - L @ found.dependence, offset)


def _codes(shape: tuple[int, ...]) -> np.ndarray:
    """(axes, points) positions of every combination, the last axis fastest."""
    return np.indices(shape).reshape(len(shape), int(np.prod(shape)))


def _frame(grid: Sequence[Axis], moved: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Every combination of values, the last axis fastest; ``moved`` adds to the values of numbers."""
    shape = tuple(len(axis.values) for axis in grid)
    codes = _codes(shape)
    columns = {}
    for axis, own in zip(grid, codes, strict=True):
        values = axis.values[own]
        if moved is not None and axis.name in moved:
            values = values + moved[axis.name]
        columns[axis.name] = axis.variable.column(values)
    return pd.DataFrame(columns, index=pd.RangeIndex(codes.shape[1]))


def _evaluated(design: Design, grid: Sequence[Axis], moved: Mapping[str, float] | None = None) -> Any:
    """X (N, P) and the offset (N,) at the points of the grid."""
    state: Any = design.state
    frame = _frame(grid, moved)
    X, offset = state.fixed_columns(frame)
    if not np.isfinite(X).all():
        row = int(np.flatnonzero(~np.isfinite(X).all(axis=1))[0])
        point = ", ".join(f"{name} = {frame[name].iloc[row]}" for name in frame)
        raise DataError(f"the fixed effects cannot be evaluated at {point}: choose other values with at=")
    return X, np.zeros(len(X)) if offset is None else offset


def _slopes(design: Design, grid: Sequence[Axis], var: str) -> Any:
    """dX/dvar and d offset/dvar at the points of the grid, by central differences of two steps, extrapolated."""
    axis = next((axis for axis in grid if axis.name == var), None)
    if axis is None or axis.variable.is_factor:
        kind = "no variable of the fixed effects" if axis is None else "a factor, which has no slope"
        raise DataError(f"emtrends: {var!r} is {kind}")
    step = STEP * _scale(axis)
    halves = []
    for h in (step, step / 2.0):
        (up, above), (down, below) = (_evaluated(design, grid, {var: move}) for move in (h, -h))
        halves.append(((up - down) / (2.0 * h), (above - below) / (2.0 * h)))
    return tuple((4.0 * fine - coarse) / 3.0 for coarse, fine in zip(*halves, strict=True))


def _scale(axis: Axis) -> float:
    """The range of the variable; of one that is never negative its smallest value here, if less: log(x) stays known."""
    variable = axis.variable
    spread = (variable.high - variable.low) or abs(variable.mean) or 1.0
    near = axis.values[axis.values > 0] if variable.low >= 0 else axis.values[:0]
    return float(np.min(near, initial=spread))


def _averages(found: Columns, grid: Sequence[Axis], n_shown: int, weights: str) -> np.ndarray:
    """Weights over the grid that sum to one over all but its first ``n_shown`` axes; NaN in empty cells."""
    shape = tuple(len(axis.values) for axis in grid)
    others = tuple(range(n_shown, len(shape)))
    if weights == "equal" or not others:
        return np.full(shape, 1.0 / np.prod([shape[j] for j in others], dtype=float))
    counts = _counts(found, grid)
    shown_axes = tuple(range(n_shown))
    if weights == "proportional":
        counts = counts.sum(axis=shown_axes, keepdims=True)
    elif weights == "outer":
        parts = [counts.sum(axis=tuple(a for a in range(len(shape)) if a != j), keepdims=True) for j in others]
        product = parts[0]
        for part in parts[1:]:
            product = product * part
        counts = product
    counts = np.broadcast_to(counts, shape)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=others, keepdims=True)


def _counts(found: Columns, grid: Sequence[Axis]) -> np.ndarray:
    """Rows of the data at the levels of the grid; numbers without levels count alike everywhere."""
    if found.cells is None:
        raise DataError("the variables have too many combinations to count: use weights='equal'")
    positions: list[tuple[int, list[int]] | None] = []
    sizes: list[int] = []
    for axis in grid:
        column = found.counted.index(axis.name) if axis.name in found.counted else None
        levels = [] if column is None else level_labels(axis.variable.values)
        at = [levels.index(v) if v in levels else -1 for v in level_labels(axis.values)]
        if column is None or -1 in at:
            positions.append(None)
            sizes.append(1)
        else:
            positions.append((column, at))
            sizes.append(len(levels))
    none = np.zeros(len(found.cells), int)
    codes = [none if p is None else found.cells[:, p[0]] for p in positions]
    flat = np.ravel_multi_index(codes, sizes) if codes else none
    table = np.bincount(flat, found.counts, int(np.prod(sizes))).reshape(sizes)
    for j, p in enumerate(positions):
        if p is not None:
            table = np.take(table, p[1], axis=j)
    return table
