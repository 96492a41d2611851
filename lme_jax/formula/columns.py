"""What marginal means ask of the data: levels, typical values and counts of the columns behind the fixed effects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from lme_jax.formula.functions import FACTOR_CALLS
from lme_jax.formula.syntax import Call, Name, Node, walk
from lme_jax.formula.values import Factor, factorize

Kind = Literal["number", "time", "duration"]
# Crossings of more cells than this are not counted; weights by frequency are then refused.
MAX_CELLS = 1_000_000


@dataclass(frozen=True)
class Variable:
    """A column that the fixed effects use, in the rows that were fitted.

    Attributes
    ----------
    levels : (k,) array or None
        Of a factor, or the two values of a number that has no others.
    is_factor, ordered, text : bool
    made : whether the column holds numbers or booleans, of which the formula makes a factor.
    mean, low, high : float
        Of a number; of times in days since 1970-01-01.
    kind : {"number", "time", "duration"}
    """

    levels: np.ndarray | None
    is_factor: bool = False
    ordered: bool = False
    text: bool = False
    made: bool = False
    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    kind: Kind = "number"

    @property
    def values(self) -> np.ndarray:
        """The values of the reference grid: all levels, or the mean."""
        return np.array([self.mean]) if self.levels is None else self.levels

    def column(self, values: np.ndarray) -> Any:
        """Values as a column of a data frame that the formula reads as it read the data."""
        if self.kind == "time":
            return pd.Timestamp(0) + pd.to_timedelta(values, unit="D")
        if self.kind == "duration":
            return pd.to_timedelta(values, unit="D")
        if self.is_factor and not self.text and not self.made:
            return pd.Categorical(values, categories=list(self.values), ordered=self.ordered)
        return values


@dataclass(frozen=True)
class Columns:
    """The columns behind the fixed effects.

    Attributes
    ----------
    variables : mapping from the column's name, in the formula's order
    cells : (c, f) int array
        The combinations of levels that occur, for the f variables that have levels; None if there are too many.
    counts : (c,) rows of each.
    dependence : (p, d) array
        The d columns of X that were left out as combinations of the p kept ones.
    """

    variables: Mapping[str, Variable]
    cells: np.ndarray | None
    counts: np.ndarray
    dependence: np.ndarray

    @property
    def counted(self) -> list[str]:
        """The variables that have levels, in the order of the columns of ``cells``."""
        return [name for name, variable in self.variables.items() if variable.levels is not None]


def used_columns(nodes: Iterable[Node], columns: Iterable[object]) -> dict[str, bool]:
    """Column → whether it is a factor because the formula makes it one, of the columns that the nodes name."""
    known = set(map(str, columns))
    found: dict[str, bool] = {}
    for node in nodes:
        inside = _made_factor(node)
        for part in walk(node):
            if isinstance(part, Name) and part.name in known:
                found[part.name] = found.get(part.name, False) or part.name in inside
    return found


def _made_factor(node: Node) -> set[str]:
    """Columns that stand directly in ``factor()`` and the like; ``cut`` makes levels of its own."""
    calls = [n for n in walk(node) if isinstance(n, Call) and n.function in FACTOR_CALLS and n.function != "cut"]
    return {arg.name for call in calls for arg in call.args if isinstance(arg, Name)}


def read_columns(
    columns: Mapping[str, Any],
    made: Collection[str],
    kinds: Mapping[str, Kind],
    X: np.ndarray,
    keep: np.ndarray,
    rows: np.ndarray | None,
) -> Columns:
    """Summarise columns.

    Parameters
    ----------
    columns : their values, as ``plain_values`` gives them; of those that the formula makes a factor of, the factor.
    made : those of numbers or booleans that the formula makes factors of.
    kinds : of those that hold times.
    X : (n, P) fixed effects before dependent columns go; keep : positions of those that stay.
    rows : positions of the rows that are fitted among those of ``columns``; None is all.
    """
    variables, codes = {}, []
    for name, value in columns.items():
        value = value if isinstance(value, Factor) or rows is None else np.asarray(value)[rows]
        variables[name], own = _summary(value, name, kinds.get(name, "number"), rows)
        variables[name] = replace(variables[name], made=variables[name].made or name in made)
        codes += [] if own is None else [own]
    cells, counts = _cells(codes, [len(v.levels) for v in variables.values() if v.levels is not None], len(X))
    return Columns(variables, cells, counts, dependence(X, keep))


def _summary(value: Any, name: str, kind: Kind, rows: np.ndarray | None) -> tuple[Variable, np.ndarray | None]:
    """A variable and the codes of its levels in the rows that are fitted."""
    n = len(value.codes if isinstance(value, Factor) else value)
    if isinstance(value, Factor):
        factor = (value if rows is None else value.take(rows)).without_unused_levels()
        return Variable(factor.levels, True, factor.ordered, factor.text), factor.codes
    if value.dtype == bool:
        variable, codes = _summary(factorize(pd.Series(value), name), name, kind, None)
        return replace(variable, made=True), codes
    # Functions such as is.na() and ifelse() may have used rows whose own value is missing.
    value = value if np.isfinite(value.sum()) else value[np.isfinite(value)]
    if len(value) == 0:
        return Variable(None, kind=kind), None
    low, high = float(value.min()), float(value.max())
    upper = value == high
    mean = float(value.mean()) if low < high else low
    if kind == "number" and low < high and len(value) == n and bool((upper | (value == low)).all()):
        return Variable(np.array([low, high]), mean=mean, low=low, high=high), upper.astype(np.int64)
    return Variable(None, mean=mean, low=low, high=high, kind=kind), None


def _cells(codes: list[np.ndarray], sizes: list[int], n: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The combinations that occur, and how often."""
    if not codes:
        return np.zeros((1, 0), int), np.array([n])
    if float(np.prod(np.array(sizes, float))) > MAX_CELLS:
        return None, np.zeros(0, int)
    known = np.all([own >= 0 for own in codes], axis=0)
    joint = np.ravel_multi_index([own[known] for own in codes], sizes)
    counts = np.bincount(joint, minlength=1)
    found = np.flatnonzero(counts)
    return np.column_stack(np.unravel_index(found, sizes)), counts[found]


def dependence(X: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """C with X[:, left out] = X[:, keep] C, by least squares in columns of unit length."""
    lost = np.setdiff1d(np.arange(X.shape[1]), keep)
    if len(lost) == 0:
        return np.zeros((len(keep), 0))
    size = np.sqrt((X**2).sum(0))
    size[size == 0.0] = 1.0
    unit = np.linalg.lstsq(X[:, keep] / size[keep], X[:, lost] / size[lost], rcond=None)[0]
    return unit * size[lost] / size[keep][:, None]
