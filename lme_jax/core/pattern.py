"""Which blocks of the dense factors' system are not zero: pairs of levels that meet, and the plan of their fronts."""

import weakref
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from . import fronts
from .types import Array


class Group(NamedTuple):
    """The blocks (b, q_i, q_j) of levels ``row`` (b,) of factor i with levels ``column`` (b,) of factor j, at ``span``.

    Of one factor's level with itself a block holds both triangles; other blocks stand once, row after column.
    """

    i: int
    j: int
    row: np.ndarray
    column: np.ndarray
    span: slice


class Pattern(NamedTuple):
    """The blocks, one after another as T numbers, and how the columns of the system are eliminated.

    Attributes
    ----------
    pair : (N,) place of every listed pair; lower : (E,) places with row ≥ column; source : (T,) which of these holds
        each number. diagonal : (K,) which of these is each diagonal entry.
    key : (E,) row·K + column, and sorted : (E,) what sorts them.
    plan : of the entries ``lower``.
    """

    groups: list[Group]
    pair: np.ndarray
    lower: np.ndarray
    source: np.ndarray
    diagonal: np.ndarray
    key: np.ndarray
    sorted: np.ndarray
    plan: fronts.Plan

    @property
    def nbytes(self) -> int:
        """Bytes of the plan, of a factor and of the selected inverse."""
        places = sum(stack.places.size for stack in self.plan.stacks)
        return 8 * (3 * self.plan.size + 3 * places + 8 * len(self.source))


# The pattern of the data that were last asked for, with what tells them: fits, random effects and Hessians ask in turn.
# One tuple, replaced as a whole, so that threads that fit side by side never see one's pattern with another's data.
_last: tuple[Any, "Pattern | None"] = (lambda: None, None)

# Fewer effects than this, or a pattern that is full to this share, make a dense system at once.
FEW = 192
FULL = 0.3
# A multiplication of fronts costs this many of one dense factorisation.
HANDICAP = 4.0


def pattern_of(data: Any) -> Pattern | None:
    """The pattern of ``CrossedData``, or None where one dense system is the better way."""
    global _last
    held, met = _last
    if held() is not data.pair_row:
        met = _pattern(data)
        _last = (weakref.ref(data.pair_row), met)
    return met


class _Columns(NamedTuple):
    """Of the system's factors: q, the first level and the first column; of its K columns: factor, level, effect."""

    sizes: np.ndarray
    first_level: np.ndarray
    first_column: np.ndarray
    owner: np.ndarray
    level: np.ndarray
    effect: np.ndarray


def _columns(layout: Any) -> _Columns:
    factors = [j for j, _ in layout.dense_slices]
    sizes, levels = (np.array([of[j] for j in factors]) for of in (layout.sizes, layout.levels))
    first_level, first_column = (np.concatenate([[0], np.cumsum(x)]) for x in (levels, sizes * levels))
    owner = np.repeat(np.arange(len(factors)), sizes * levels)
    inner = np.arange(layout.n_dense) - first_column[owner]
    return _Columns(
        sizes, first_level, first_column, owner, first_level[owner] + inner // sizes[owner], inner % sizes[owner]
    )


def _pattern(data: Any) -> Pattern | None:
    layout, K = data.layout, data.layout.n_dense
    if K < FEW or len(data.pair_row) > FULL * K * K / 2:
        return None
    c = _columns(layout)
    n = int(c.first_level[-1])
    row, column = _structural(data, K)
    key = np.unique(np.concatenate([c.level[row] * n + c.level[column], np.arange(n) * (n + 1)]))
    groups, begin, entry_row, entry_column = _blocks(layout, c, key)
    lower = np.flatnonzero(entry_row >= entry_column)
    plan = fronts.plan(entry_row[lower], entry_column[lower], K, K**3 / (3.0 * HANDICAP))
    if plan is None:
        return None
    keys = entry_row[lower] * K + entry_column[lower]
    order = np.argsort(keys)
    whole = np.maximum(entry_row, entry_column) * K + np.minimum(entry_row, entry_column)
    source, diagonal = (order[np.searchsorted(keys, at, sorter=order)] for at in (whole, np.arange(K) * (K + 1)))
    row, column = data.pair_row, data.pair_column
    block = np.searchsorted(key, c.level[row] * n + c.level[column])
    pair = begin[block] + c.effect[row] * c.sizes[c.owner[column]] + c.effect[column]
    return Pattern(groups, pair, lower, source, diagonal, keys, order, plan)


def _blocks(layout: Any, c: _Columns, key: np.ndarray) -> tuple[list[Group], np.ndarray, np.ndarray, np.ndarray]:
    """The blocks of the pairs of levels ``key``, where each begins, and row and column of every number."""
    factors, n = [j for j, _ in layout.dense_slices], int(c.first_level[-1])
    owner = np.repeat(np.arange(len(factors)), np.diff(c.first_level))
    row, column = key // n, key % n
    kind = owner[row] * len(factors) + owner[column]
    begin = np.empty(len(key), np.int64)
    groups, rows, columns, at = [], [], [], 0
    for each in np.unique(kind):
        i, j = divmod(int(each), len(factors))
        q, r = int(c.sizes[i]), int(c.sizes[j])
        members = np.flatnonzero(kind == each)
        a, b = row[members] - c.first_level[i], column[members] - c.first_level[j]
        begin[members] = at + np.arange(len(members)) * q * r
        groups.append(Group(factors[i], factors[j], a, b, slice(at, at + len(members) * q * r)))
        at = groups[-1].span.stop
        across = np.broadcast_arrays(
            (c.first_column[i] + a * q)[:, None, None] + np.arange(q)[:, None],
            (c.first_column[j] + b * r)[:, None, None] + np.arange(r),
        )
        rows.append(across[0].ravel())
        columns.append(across[1].ravel())
    return groups, begin, np.concatenate(rows), np.concatenate(columns)


def _structural(data: Any, K: int) -> tuple[np.ndarray, np.ndarray]:
    """The listed pairs, and those that meet in a level of factor 1 though their products happen to add to zero."""
    row, column = data.pair_row.astype(np.int64), data.pair_column.astype(np.int64)
    if len(data.entry_value) == 1 and (data.entry_value > 0).all():
        return row, column
    shape = (K, int(data.Z1W.shape[-1]))
    met = scipy.sparse.csr_matrix((np.ones(len(data.entry_level)), (data.entry_column, data.entry_level)), shape=shape)
    both = scipy.sparse.tril(met @ met.T, format="coo")
    return np.concatenate([row, both.row]), np.concatenate([column, both.col])


def lookup(pattern: Pattern, row: Array, column: Array, K: int) -> np.ndarray:
    """Which of the entries ``lower`` stands at row and column, in either order."""
    key = np.maximum(row, column).astype(np.int64) * K + np.minimum(row, column)
    return pattern.sorted[np.searchsorted(pattern.key, key, sorter=pattern.sorted)]
