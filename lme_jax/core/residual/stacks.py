"""Blocks of dependent rows, those alike pooled into patterns, patterns of one size stacked.

A *block* is a connected component of rows that share a subject or a level of a bar. Blocks with the same visits, times,
strata, covariates, Z and arrangement of levels have one V: they are a *pattern*. In a stack the rows of a pattern stand
at places 0 … n − 1, or, on the *grid* of a structure by visit alone, at their visits; empty places are rows with V = 1
and C = 0, which change nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from ...errors import UnsupportedError
from ..compression import bucket
from . import roots
from .distances import between

# Rows of one block whose dense covariance is still factored.
LARGEST = 2_000
# Entries of all V of a stack: what of them is looked at together stays in the cache.
ENTRIES = 1 << 18
# Visits up to which patterns stand on a grid whatever is missing.
SMALL_GRID, LARGE_GRID = 12, 40


class Rows(NamedTuple):
    """Per row what a pattern is made of, (n,) or (n, ·).

    Attributes
    ----------
    subject : (n,) codes; clock : (n,) visits or (n, d) coordinates; group : (n,) arms.
    strata, covariates : per variance function; Z, codes : per bar.
    """

    subject: np.ndarray
    clock: np.ndarray
    group: np.ndarray
    strata: tuple[np.ndarray, ...]
    covariates: tuple[np.ndarray, ...]
    Z: tuple[np.ndarray, ...]
    codes: tuple[np.ndarray, ...]

    def map(self, of: np.ndarray | slice) -> "Rows":
        """The rows ``of``, which may have any shape."""
        several = [tuple(a[of] for a in field) for field in (self.strata, self.covariates, self.Z, self.codes)]
        return Rows(self.subject[of], self.clock[of], self.group[of], *several)

    def joined(self, other: "Rows") -> "Rows":
        """These rows, then those."""
        several = [tuple(map(np.concatenate, zip(a, b, strict=True))) for a, b in zip(self[3:], other[3:], strict=True)]
        subject, clock, group = (np.concatenate(pair) for pair in zip(self[:3], other[:3], strict=True))
        return Rows(subject, clock, group, *several)


class Stack(NamedTuple):
    """P patterns of one padded size n, R root blocks, B blocks of rows.

    Attributes
    ----------
    copies : (P,) blocks of each pattern. present : (P, n). at : ``Rows`` (P, n, …) of each pattern.
    owner : (R,) pattern of each root, increasing; first : (P,) the first root of each. C : (R, n, p+1) roots of [X y].
    rows : (B, n) row numbers of every block, −1 where there is none; member : (B,) its pattern.
    together : (P, n, n) rows of one subject; levels : per bar (P, n, n) rows of one level. None where that is all rows.
    distance : (P, n, n) of structures by distance, else None.
    """

    copies: np.ndarray
    present: np.ndarray
    at: Rows
    owner: np.ndarray
    first: np.ndarray
    C: np.ndarray
    rows: np.ndarray
    member: np.ndarray
    together: np.ndarray | None
    levels: tuple[np.ndarray | None, ...]
    distance: np.ndarray | None


def components(subject: np.ndarray, codes: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) the block of every row: connected components of subjects and levels."""
    codes = [c for c in codes if not np.array_equal(c, subject)]
    if not codes:
        return subject
    offset, edges = int(subject.max()) + 1, []
    for c in codes:
        edges.append(np.stack([subject, c + offset]))
        offset += int(c.max()) + 1
    i, j = np.concatenate(edges, axis=1)
    graph = scipy.sparse.coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(offset, offset))
    return connected_components(graph, directed=False)[1][subject]


def sorted_rows(block: np.ndarray, r: Rows) -> np.ndarray:
    """Rows by block, then by subject, its clock, and the levels of the bars."""
    clock = [r.clock] if r.clock.ndim == 1 else list(r.clock.T[::-1])
    keys = [*r.codes[::-1], *clock, r.subject, block]
    return np.arange(len(block)) if in_order(keys[::-1]) else np.lexsort(keys)


def in_order(keys: list[np.ndarray]) -> bool:
    """Whether rows are sorted by the keys (n,), the first the slowest."""
    later = np.zeros(max(len(keys[0]) - 1, 0), bool)
    for key in keys:
        step = key[1:] - key[:-1]
        if (~later & (step < 0)).any():
            return False
        later |= step > 0
    return True


def within(block: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Codes counted anew within every block; both (n,)."""
    width = int(codes.max()) + 1
    both, inverse = np.unique(block.astype(np.int64) * width + codes, return_inverse=True)
    owner = both // width
    return inverse - np.searchsorted(owner, owner)[inverse]


def _features(block: np.ndarray, r: Rows) -> np.ndarray:
    """(n, f) all that V depends on, row by row."""
    clock = r.clock[:, None] if r.clock.ndim == 1 else r.clock
    columns = [clock, r.group[:, None], *(s[:, None] for s in r.strata), *(v[:, None] for v in r.covariates), *r.Z]
    columns += [within(block, c)[:, None] for c in (r.subject, *r.codes) if not np.array_equal(c, block)]
    kept = [np.asarray(c, float) for c in columns if c.any()]
    return np.concatenate(kept, axis=1) if kept else np.zeros((len(block), 1))


def patterns(starts: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A block of every pattern, and the pattern of every block; blocks of sorted rows begin at ``starts`` (B,)."""
    n = len(features)
    size = np.diff(np.append(starts, n))
    place = np.arange(n) - np.repeat(starts, size)
    rng = np.random.default_rng(0)
    weight = rng.uniform(1.0, 2.0, (int(size.max()), 2))
    row = features @ rng.uniform(1.0, 2.0, (features.shape[1], 2)) + 1.0
    keys = np.stack([np.add.reduceat(row[:, i] * weight[place, i], starts) for i in (0, 1)] + [size.astype(float)], 1)
    order = np.lexsort(keys.T)
    new = np.ones(len(order), bool)
    new[1:] = (keys[order][1:] != keys[order][:-1]).any(1)
    of = np.empty(len(order), int)
    of[order] = np.cumsum(new) - 1
    # The first block of each pattern; lexsort keeps equal ones in their order.
    first = order[new]
    same = features == features[np.repeat(starts[first[of]], size) + place]
    if not same.all():
        return np.arange(len(starts)), np.arange(len(starts))
    return first, of


def build(block: np.ndarray, r: Rows, W: np.ndarray, n_visits: int, metric: str | None) -> list[Stack]:
    """The stacks; W (n, p+1) are the weighted rows [X y].

    Parameters
    ----------
    n_visits : T where the rows of a block are the visits of one subject and nothing else correlates them, else 0.
    metric : of structures by distance, else None.
    """
    order = sorted_rows(block, r)
    block, ordered = block[order], r.map(order)
    starts = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    size = np.diff(np.append(starts, len(block)))
    if size.max() > LARGEST:
        raise UnsupportedError(
            f"{size.max()} rows depend on each other through the levels and subjects they share; this engine factors "
            f"blocks of up to {LARGEST:,}: use fewer crossed terms beside the residual structure, or a random effect"
        )
    first, of = patterns(starts, _features(block, ordered))
    grid = _grid(size, n_visits)
    place = ordered.clock if grid else np.arange(len(block)) - np.repeat(starts, size)
    padded = np.full(len(size), grid) if grid else _buckets(size)
    out = []
    for n in np.unique(padded[first]):
        chosen = np.flatnonzero(padded[first] == n)
        step = len(chosen) if grid else max(1, ENTRIES // int(n * n))
        for lo in range(0, len(chosen), step):
            mine = chosen[lo : lo + step]
            number = np.full(len(first), -1)
            number[mine] = np.arange(len(mine))
            members = np.flatnonzero(number[of] >= 0)
            members = members[np.argsort(number[of[members]], kind="stable")]
            rows = _placed(members, starts, size, place, int(n))
            out.append(_stack(rows, number[of[members]], ordered, W, order, metric))
    return out


def _grid(size: np.ndarray, n_visits: int) -> int:
    """T where patterns are to stand on the grid of visits, 0 otherwise."""
    dense = n_visits <= SMALL_GRID or (n_visits <= LARGE_GRID and size.mean() >= 0.5 * n_visits)
    return n_visits if n_visits and dense else 0


def _buckets(size: np.ndarray) -> np.ndarray:
    of = np.array([0, *(bucket(s) for s in range(1, int(size.max()) + 1))])
    return of[size]


def _placed(members: np.ndarray, starts: np.ndarray, size: np.ndarray, place: np.ndarray, n: int) -> np.ndarray:
    """(B, n) positions of the members' rows among the sorted ones, −1 where there is none."""
    out = np.full((len(members), n), -1)
    owner = np.repeat(np.arange(len(members)), size[members])
    inside = np.arange(len(owner)) - np.repeat(np.cumsum(size[members]) - size[members], size[members])
    at = np.repeat(starts[members], size[members]) + inside
    out[owner, place[at]] = at
    return out


def _stack(
    rows: np.ndarray, member: np.ndarray, ordered: Rows, W: np.ndarray, order: np.ndarray, metric: str | None
) -> Stack:
    count = np.bincount(member)
    begin = np.cumsum(count) - count
    lead = rows[begin]
    present = lead >= 0
    at = ordered.map(np.where(present, lead, 0))
    numbers = np.where(rows >= 0, order[rows], -1)
    C, owner = _roots(numbers, member, present, W)
    return Stack(
        copies=count.astype(float),
        present=present,
        at=at,
        owner=owner,
        first=np.searchsorted(owner, np.arange(len(count))),
        C=C,
        rows=numbers,
        member=member,
        together=_pairs(at.subject, present),
        levels=tuple(_pairs(c, present) for c in at.codes),
        distance=None if metric is None else between(at.clock, metric),
    )


def _pairs(codes: np.ndarray, present: np.ndarray) -> np.ndarray | None:
    """(P, n, n) rows with one code; None where that is all rows of a pattern."""
    lead = codes[np.arange(len(codes)), present.argmax(1)]
    if ((codes == lead[:, None]) | ~present).all():
        return None
    return codes[:, :, None] == codes[:, None, :]


def _roots(rows: np.ndarray, member: np.ndarray, present: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C (R, n, p+1) and its owners: patterns of many blocks reduced, the others as they are."""
    count, n, w = np.bincount(member), rows.shape[1], W.shape[1]
    begin, size = np.cumsum(count) - count, present.sum(1)
    many = count > np.maximum(roots.FEW, size)
    plain = ~many[member]
    parts, owners = [np.zeros((0, n, w))], [np.zeros(0, int)]
    if plain.any():
        own = rows[plain]
        parts.append(np.where((own >= 0)[:, :, None], W[own], 0.0))
        owners.append(member[plain])
    for p in np.flatnonzero(many):
        here = np.flatnonzero(present[p])
        own = rows[begin[p] : begin[p] + count[p]][:, here]
        found = roots.reduced(W[own].reshape(len(own), -1)).reshape(-1, len(here), w)
        spread = np.zeros((len(found), n, w))
        spread[:, here] = found
        parts.append(spread)
        owners.append(np.full(len(found), p))
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.concatenate(parts)[order], owner[order]
