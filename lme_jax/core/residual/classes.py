"""Chains whose rows have few classes: products summed by class once, mixed by the parameters afterwards."""

from typing import NamedTuple

import numpy as np

from . import chains, markov, roots
from .chains import Chain, Mixed
from .markov import Links
from .model import Model
from .stacks import Rows

# Sets of sums that are made at most.
MOST = 60
# Rows that are looked at before all of them are sorted.
SAMPLE = 4_096


class Sets(NamedTuple):
    """S sets: m₀ of rows, m₁ of the ends of links, m₂ of links.

    Attributes
    ----------
    own : ``Rows`` (m₀,), a row of each; n_own : (m₀,) how many. ends : (m₁,) a row of each and the number of its link.
    left, right : ``Rows`` (m₂,); links : (m₂,); n_links : (m₂,).
    M : (S, F, P) of the levels, pooled; WW : (S, w, w); counts : (P,) levels whose log-determinant an entry stands for.
    """

    own: Rows
    n_own: np.ndarray
    ends: Rows
    end_links: Links
    left: Rows
    right: Rows
    links: Links
    n_links: np.ndarray
    M: np.ndarray
    WW: np.ndarray
    counts: np.ndarray


def mixed(model: Model, x: np.ndarray, sets: Sets, derivatives: bool) -> Mixed:
    """From the sets: no row is looked at."""
    c, log_det = _coefficients(model, x, sets, derivatives)
    S = len(sets.WW)
    M = (c @ sets.M.reshape(S, -1)).reshape(len(c), *sets.M.shape[1:])
    return Mixed(log_det, M, (c @ sets.WW.reshape(S, -1)).reshape(len(c), *sets.WW.shape[1:]))


def _coefficients(model: Model, x: np.ndarray, sets: Sets, derivatives: bool) -> tuple[np.ndarray, np.ndarray]:
    """c (J, S) and log|R| (J,)."""
    at_ends = markov.entries(model, x, sets.end_links, derivatives)
    at_links = markov.entries(model, x, sets.links, derivatives)
    own, end, left, right = (
        markov.log_sds(model, x, r, derivatives) for r in (sets.own, sets.ends, sets.left, sets.right)
    )
    sign = 1.0 if markov.homoscedastic(model) else -1.0
    parts = [
        markov.packed(markov.shrunk(None, own + own)),
        markov.packed(markov.shrunk(at_ends.kappa, end + end)),
        sign * markov.packed(markov.shrunk(at_links.omega, left + right)),
    ]
    log_det = 2.0 * markov.packed(own) @ sets.n_own + markov.packed(at_links.log_rest) @ sets.n_links
    return np.concatenate(parts, axis=1), log_det


# ---------------------------------------------------------------- compression


class _Codes(NamedTuple):
    """Classes of rows (n,) and of gaps (n,), 0 where there is no link; how many."""

    own: np.ndarray
    n_own: int
    gap: np.ndarray
    n_gaps: int


def compress(model: Model, chain: Chain) -> Sets | None:
    """The sets, or None where there would be too many."""
    codes = _codes(model, chain)
    if codes is None:
        return None
    places = _places(codes, chain.joined)
    S, n = sum(places.sizes), len(chain.level)
    if S > MOST or S * max(chain.n_levels, 1) > 2 * n:
        return None
    M, WW = _sums(chain, places)
    M, counts = pooled(M, len(chain.Z))
    end, right = places.end_row, places.link_row
    end_link = np.where(places.end_is_left, end + 1, end)
    return Sets(
        own=chain.at.map(places.own_row),
        n_own=places.n_own,
        ends=chain.at.map(end),
        end_links=Links(chain.gap[end_link], chain.at.group[end_link]),
        left=chain.at.map(right - 1),
        right=chain.at.map(right),
        links=Links(chain.gap[right], chain.at.group[right]),
        n_links=places.n_links,
        M=M,
        WW=WW,
        counts=counts,
    )


class _Places(NamedTuple):
    """Numbers of the sets that every row (n,) counts to: of itself, of a link's right and left end, of the link.

    Attributes
    ----------
    own, right, left, link : (n,), 0 where there is no link. own_row, end_row, link_row : a row of each, of a link its
        right one. end_is_left : whether such an end is the left one. n_own, n_links : how many rows each stands for.
    """

    own: np.ndarray
    right: np.ndarray
    left: np.ndarray
    link: np.ndarray
    own_row: np.ndarray
    end_row: np.ndarray
    end_is_left: np.ndarray
    link_row: np.ndarray
    n_own: np.ndarray
    n_links: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int]:
        """m₀, m₁, m₂."""
        return len(self.own_row), len(self.end_row), len(self.link_row)


def _places(codes: _Codes, joined: np.ndarray) -> _Places:
    m, g, at = codes.n_own, codes.n_gaps, np.flatnonzero(joined)
    if m == 1:
        seen = _seen(codes.gap[at], g)
        none, n_links = np.zeros(len(seen.first), bool), np.bincount(codes.gap[at], minlength=g)
        row = at[seen.first]
        return _Places(
            codes.own,
            codes.gap,
            codes.gap,
            codes.gap,
            np.zeros(1, int),
            row,
            none,
            row,
            np.array([len(joined)]),
            n_links,
        )
    gap, own, before = codes.gap[at], codes.own[at], codes.own[at - 1]
    ends = np.concatenate([gap * m + own, gap * m + before])
    link = (gap * m + np.minimum(own, before)) * m + np.maximum(own, before)
    end_seen, link_seen = _seen(ends, g * m), _seen(link, g * m * m)
    right, left, linked = (np.zeros(len(joined), np.int64) for _ in range(3))
    right[at], left[at] = end_seen.number[ends].reshape(2, -1)
    linked[at] = link_seen.number[link]
    return _Places(
        own=codes.own,
        right=right,
        left=left,
        link=linked,
        own_row=_seen(codes.own, m).first,
        end_row=np.concatenate([at, at - 1])[end_seen.first],
        end_is_left=end_seen.first >= len(at),
        link_row=at[link_seen.first],
        n_own=np.bincount(codes.own, minlength=m),
        n_links=np.bincount(linked[at], minlength=len(link_seen.first)),
    )


class _Seen(NamedTuple):
    """Of codes that occur: the first place of each, and its number (by code)."""

    first: np.ndarray
    number: np.ndarray


def _seen(codes: np.ndarray, size: int) -> _Seen:
    first = np.full(size, -1)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    here = first >= 0
    return _Seen(first[here], np.cumsum(here) - 1)


def _codes(model: Model, chain: Chain) -> _Codes | None:
    found = _gap_codes(chain)
    if found is None:
        return None
    own, n_own = np.zeros(len(chain.gap), np.int64), 1
    for f in _features(model, chain):
        if len(np.unique(f[:SAMPLE])) > MOST:
            return None
        values, each = np.unique(f, return_inverse=True)
        if len(values) > MOST:
            return None
        own = own * len(values) + each.reshape(-1)
        seen = _seen(own, n_own * len(values))
        own, n_own = seen.number[own], len(seen.first)
        if n_own > MOST:
            return None
    return _Codes(own, n_own, *found)


def _gap_codes(chain: Chain) -> tuple[np.ndarray, int] | None:
    gap, most = chain.gap, 8 * len(chain.gap)
    if len(np.unique(gap[:SAMPLE])) > MOST + 1 or (gap.dtype.kind in "iu" and gap.max(initial=0) > most):
        return None
    if gap.dtype.kind in "iu":
        # Gap 0 stands for no link.
        seen = np.bincount(gap) > 0
        seen[0] = False
        number = np.maximum(np.cumsum(seen) - 1, 0)
        return number[gap], int(seen.sum())
    values = np.unique(gap[chain.joined])
    return None if len(values) > MOST else (np.where(chain.joined, np.searchsorted(values, gap), 0), len(values))


def _features(model: Model, chain: Chain) -> list[np.ndarray]:
    """What the standard deviation of a row depends on."""
    out: list[np.ndarray] = [] if model.n_groups == 1 else [chain.at.group]
    out += [chain.at.clock] if model.family.heterogeneous else []
    for (_, S), strata, v in zip(model.variances, chain.at.strata, chain.at.covariates, strict=True):
        out += [strata] if S > 1 else []
        out += [v] if v.any() else []
    return out


def _sums(chain: Chain, places: _Places) -> tuple[np.ndarray, np.ndarray]:
    """M (S, F, L) and WW (S, w, w)."""
    w, S = len(chain.W), sum(places.sizes)
    M, WW = np.zeros((S, chain.width, chain.n_levels)), np.zeros((S, w, w))
    own, end, link = (slice(b - m, b) for m, b in zip(places.sizes, np.cumsum(places.sizes), strict=True))
    for rows in chain.chunks():
        here = slice(rows.start - int(chain.joined[rows.start]), rows.stop)
        after = slice(here.start + 1, here.stop)
        joined = chain.joined[after].astype(float)
        W = chain.W[:, here]
        right, left = W[:, 1:] * joined, W[:, :-1] * joined
        _add_grams(WW[own], places.own[rows], chain.W[:, rows], chain.W[:, rows])
        _add_grams(WW[end], places.right[after], right, W[:, 1:])
        _add_grams(WW[end], places.left[after], left, W[:, :-1])
        step = (W[:, 1:] - W[:, :-1]) * joined
        _add_grams(WW[link], places.link[after], *((step, step) if chain.apart else (right, W[:, :-1])))
        if not len(chain.Z):
            continue
        square, lo = chains.products(chain, here), int(chain.level[here.start])
        into = M[:, :, lo : int(chain.level[rows.stop - 1]) + 1]
        level = chain.level[here] - lo
        skip = rows.start - here.start
        _add_levels(into[own], places.own[rows], level[skip:], square[:, skip:])
        if places.right is places.left:
            _add_levels(into[end], places.right[after], level[1:], (square[:, 1:] + square[:, :-1]) * joined)
        else:
            _add_levels(into[end], places.right[after], level[1:], square[:, 1:] * joined)
            _add_levels(into[end], places.left[after], level[1:], square[:, :-1] * joined)
        _add_levels(into[link], places.link[after], level[1:], chains.linked(chain, after) * joined)
    WW[link] += 0.0 if chain.apart else WW[link].swapaxes(1, 2).copy()
    return M, WW


def _add_grams(into: np.ndarray, code: np.ndarray, A: np.ndarray, B: np.ndarray) -> None:
    """into[c] += ABᵀ over the columns of class c; what is not of another class is of the first."""
    if not len(into):
        return
    into[0] += A @ B.T
    if len(into) == 1:
        return
    other = np.flatnonzero(code)
    for c in np.flatnonzero(np.bincount(code[other], minlength=len(into))):
        at = other[code[other] == c]
        own = A[:, at] @ B[:, at].T
        into[c] += own
        into[0] -= own


def _add_levels(into: np.ndarray, code: np.ndarray, level: np.ndarray, columns: np.ndarray) -> None:
    """into[c, f, l] += the sums of columns (F, m) over the rows of class c and level l; levels increase."""
    m, _, size = into.shape
    if not m or not len(level):
        return
    starts = np.flatnonzero(np.diff(level, prepend=-1))
    into[0][:, level[starts]] += np.add.reduceat(columns, starts, axis=1)
    if m == 1:
        return
    other = np.flatnonzero(code)
    place, few = code[other] * size + level[other], columns[:, other]
    for f, column in enumerate(few):
        sums = np.bincount(place, column, m * size).reshape(m, size)
        into[:, f] += sums
        into[0, f] -= sums.sum(0)


# ---------------------------------------------------------------- pooling


def pooled(M: np.ndarray, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels with equal ZᵀBZ in all sets replaced by few, where that makes them far fewer; and their counts."""
    S, F, L = M.shape
    if not L:
        return M, np.zeros(0)
    kq = q * (q + 1) // 2
    key = M[:, :kq].reshape(S * kq, L)
    h = np.random.default_rng(0).uniform(1.0, 2.0, S * kq) @ key
    _, first, of = np.unique(h, return_index=True, return_inverse=True)
    of = of.reshape(-1)
    size = np.bincount(of)
    # A root of Σ vec(C)vec(C)ᵀ has as many rows as columns that are not multiples of one another.
    many = size > 2 * S * (F - kq)
    if not many.any() or not np.array_equal(key[:, first[of]], key):
        return M, np.ones(L)
    order = np.argsort(of, kind="stable")
    begin = np.cumsum(size) - size
    alone = np.flatnonzero(~many[of])
    parts, counts = [M[:, :, alone]], [np.ones(len(alone))]
    for p in np.flatnonzero(many):
        members = order[begin[p] : begin[p] + size[p]]
        root = roots.reduced(M[:, kq:, members].reshape(S * (F - kq), -1).T)
        entry = np.empty((S, F, len(root)))
        entry[:, :kq] = M[:, :kq, members[:1]]
        entry[:, kq:] = root.T.reshape(S, F - kq, -1)
        parts.append(entry)
        counts.append(np.where(np.arange(len(root)) == 0, float(size[p]), 0.0))
    return np.concatenate(parts, axis=2), np.concatenate(counts)
