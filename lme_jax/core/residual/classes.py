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
# Links that are looked at before all of them are sorted.
SAMPLE = 4_096


class Sets(NamedTuple):
    """S sets: m₀ of rows, m₁ of the ends of links, m₂ of links.

    Attributes
    ----------
    own : ``Rows`` (m₀,), a row of each; n_own : (m₀,) how many. ends : (m₁,) a row of each and the number of its link.
    left, right : ``Rows`` (m₂,); links : (m₂,); n_links : (m₂,).
    M : (S, F, P) of the levels, pooled; WW : (S, w, w); count : (P,) levels whose log-determinant an entry stands for.
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
    count: np.ndarray


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
    own, end, left, right = (markov.log_sds(model, x, r, derivatives) for r in (sets.own, sets.ends, sets.left, sets.right))
    parts = [
        markov.packed(markov.shrunk(None, own + own)),
        markov.packed(markov.shrunk(at_ends.kappa, end + end)),
        -markov.packed(markov.shrunk(at_links.omega, left + right)),
    ]
    log_det = 2.0 * markov.packed(own) @ sets.n_own + markov.packed(at_links.log_rest) @ sets.n_links
    return np.concatenate(parts, axis=1), log_det


# ---------------------------------------------------------------- compression


class _Codes(NamedTuple):
    """Classes of rows (n,) and of gaps (n,), 0 where there is no link; a row of each."""

    own: np.ndarray
    n_own: int
    gap: np.ndarray
    gaps: np.ndarray


def compress(model: Model, chain: Chain) -> Sets | None:
    """The sets, or None where there would be too many."""
    codes = _codes(model, chain)
    if codes is None:
        return None
    m, g = codes.n_own, len(codes.gaps)
    at = np.flatnonzero(chain.joined)
    ends = [codes.gap[at] * m + codes.own[at], codes.gap[at] * m + codes.own[at - 1]]
    low = np.minimum(codes.own[at], codes.own[at - 1])
    link = (codes.gap[at] * m + low) * m + np.maximum(codes.own[at], codes.own[at - 1])
    end_seen, link_seen = (_seen(np.concatenate(c), size) for c, size in ((ends, g * m), ([link], g * m * m)))
    S = m + len(end_seen.first) + len(link_seen.first)
    n = len(chain.level)
    if S > MOST or S * max(chain.n_levels, 1) > 2 * n:
        return None
    small = np.uint8
    own = codes.own.astype(small)
    near = [np.zeros(n, small), np.zeros(n, small)]
    for into, code in zip(near, ends, strict=True):
        into[at] = end_seen.number[code]
    linked = np.zeros(n, small)
    linked[at] = link_seen.number[link]
    M, WW = _sums(chain, own, near, linked, (m, len(end_seen.first), len(link_seen.first)))
    M, count = pooled(M, len(chain.Z))
    end_row = np.concatenate([at, at - 1])[end_seen.first]
    end_link = np.concatenate([at, at])[end_seen.first]
    right = at[link_seen.first]
    return Sets(
        own=chain.at.map(_seen(codes.own, m).first),
        n_own=np.bincount(own, minlength=m),
        ends=chain.at.map(end_row),
        end_links=Links(chain.gap[end_link], chain.at.group[end_link]),
        left=chain.at.map(right - 1),
        right=chain.at.map(right),
        links=Links(chain.gap[right], chain.at.group[right]),
        n_links=np.bincount(linked[at], minlength=len(right)),
        M=M,
        WW=WW,
        count=count,
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
    gap = chain.gap[chain.joined]
    if len(np.unique(gap[:SAMPLE])) > MOST:
        return None
    by_number = gap.dtype.kind in "iu" and len(gap) and gap.max() < len(gap)
    gaps = np.flatnonzero(np.bincount(gap)) if by_number else np.unique(gap)
    if len(gaps) > MOST:
        return None
    number = np.zeros(len(chain.gap), np.int64)
    number[chain.joined] = np.searchsorted(gaps, gap)
    own, n_own = np.zeros(len(chain.gap), np.int64), 1
    features: list[np.ndarray] = [] if model.n_groups == 1 else [chain.at.group]
    features += [chain.at.clock] if model.family.heterogeneous else []
    for (_, S), strata, v in zip(model.variances, chain.at.strata, chain.at.covariates, strict=True):
        features += [strata] if S > 1 else []
        features += [v] if v.any() else []
    for f in features:
        if len(np.unique(f[:SAMPLE])) > MOST:
            return None
        values, each = np.unique(f, return_inverse=True)
        if len(values) > MOST:
            return None
        own = own * len(values) + each.reshape(-1)
        n_own *= len(values)
        seen = _seen(own, n_own)
        own, n_own = seen.number[own], len(seen.first)
        if n_own > MOST:
            return None
    return _Codes(own, n_own, number, gaps)


def _sums(
    chain: Chain, own: np.ndarray, near: list[np.ndarray], link: np.ndarray, sizes: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """M (S, F, L) and WW (S, w, w)."""
    w, S, offsets = len(chain.W), sum(sizes), np.cumsum([0, *sizes])
    M, WW = np.zeros((S, chain.width, chain.n_levels)), np.zeros((S, w, w))
    parts = [slice(a, b) for a, b in zip(offsets, offsets[1:], strict=False)]
    for rows in chain.chunks():
        at = np.flatnonzero(chain.joined[rows]) + rows.start
        _add_totals(WW, chain.W, own, near, link, at, rows, parts)
        if len(chain.Z):
            _add_levels(M, chain, own, near, link, at, rows, parts)
    return M, WW


def _add_totals(
    WW: np.ndarray,
    W: np.ndarray,
    own: np.ndarray,
    near: list[np.ndarray],
    link: np.ndarray,
    at: np.ndarray,
    rows: slice,
    parts: list[slice],
) -> None:
    _add_grams(WW[parts[0]], own[rows], W[:, rows], W[:, rows])
    for code, shift in zip(near, (0, 1), strict=True):
        mine = W[:, at - shift]
        _add_grams(WW[parts[1]], code[at], mine, mine)
    halves = np.zeros_like(WW[parts[2]])
    _add_grams(halves, link[at], W[:, at], W[:, at - 1])
    WW[parts[2]] += halves + halves.swapaxes(1, 2)


def _add_grams(into: np.ndarray, code: np.ndarray, A: np.ndarray, B: np.ndarray) -> None:
    """into[c] += ABᵀ over the columns of class c."""
    if len(into) == 1:
        into[0] += A @ B.T
        return
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code, minlength=len(into)))
    A, B = A[:, order], B[:, order]
    for total, lo, hi in zip(into, [0, *ends], ends, strict=False):
        if hi > lo:
            total += A[:, lo:hi] @ B[:, lo:hi].T


def _add_levels(
    M: np.ndarray,
    chain: Chain,
    own: np.ndarray,
    near: list[np.ndarray],
    link: np.ndarray,
    at: np.ndarray,
    rows: slice,
    parts: list[slice],
) -> None:
    here = slice(max(rows.start - 1, 0), rows.stop)
    square, lo = chains.products(chain, here), int(chain.level[here.start])
    size = int(chain.level[rows.stop - 1]) - lo + 1
    into = M[:, :, lo : lo + size]
    local = chain.level[rows] - lo
    _add_by_class(into[parts[0]], own[rows], local, square[:, rows.start - here.start :])
    inside = chain.level[at] - lo
    if parts[0].stop == 1:
        both = square[:, at - here.start] + square[:, at - 1 - here.start]
        _add_by_class(into[parts[1]], near[0][at], inside, both)
    else:
        for code, shift in zip(near, (0, 1), strict=True):
            _add_by_class(into[parts[1]], code[at], inside, square[:, at - shift - here.start])
    across = chains.neighbours(chain, slice(here.start + 1, here.stop))
    _add_by_class(into[parts[2]], link[at], inside, across[:, at - here.start - 1])


def _add_by_class(into: np.ndarray, code: np.ndarray, level: np.ndarray, columns: np.ndarray) -> None:
    """into[c, f, l] += the sums of columns (F, m) over the rows of class c and level l."""
    m, _, size = into.shape
    place = code.astype(np.int64) * size + level
    for f, column in enumerate(columns):
        into[:, f] += np.bincount(place, column, m * size).reshape(m, size)


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
