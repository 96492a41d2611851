"""Rows as chains: sorted, each beside the one before it, summed level by level with given coefficients."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .. import linalg
from . import markov
from .markov import Links
from .model import Model
from .stacks import Rows

# Rows that are looked at together: what of them is at hand stays in the cache.
CHUNK = 1 << 13


class Chain(NamedTuple):
    """Rows sorted by level, subject and clock.

    Attributes
    ----------
    W : (w, n) [X y] conditioned and weighted; Z : (q, n). at : ``Rows`` (n,).
    level : (n,) 0 … L − 1, increasing. joined : (n,) whether the row before is of the same subject; gap : (n,) how far.
    apart : whether links count by the difference of their rows, see ``markov``, or by their product.
    """

    W: np.ndarray
    Z: np.ndarray
    at: Rows
    level: np.ndarray
    joined: np.ndarray
    gap: np.ndarray
    apart: bool

    @property
    def n_levels(self) -> int:
        """L; 0 where there is no bar."""
        return int(self.level[-1]) + 1 if len(self.Z) else 0

    @property
    def width(self) -> int:
        """F: q(q + 1)/2 entries of ZᵀBZ and wq of [X y]ᵀBZ."""
        q = len(self.Z)
        return q * (q + 1) // 2 + q * len(self.W)

    def chunks(self) -> Iterator[slice]:
        """Rows lo … hi, some thousands at a time."""
        n = self.W.shape[1]
        for lo in range(0, n, CHUNK):
            yield slice(lo, min(lo + CHUNK, n))


def products(chain: Chain, rows: slice) -> np.ndarray:
    """(F, m) of every row with itself."""
    Z, W = chain.Z[:, rows], chain.W[:, rows]
    i, j = linalg.tril(len(Z))
    return np.concatenate([Z[i] * Z[j], (W[:, None] * Z).reshape(-1, Z.shape[1])])


def linked(chain: Chain, rows: slice) -> np.ndarray:
    """(F, m) of every row and the one before: of their difference, or both ways; rows from 1 on."""
    before = slice(rows.start - 1, rows.stop - 1)
    Z, W, Z0, W0 = chain.Z[:, rows], chain.W[:, rows], chain.Z[:, before], chain.W[:, before]
    i, j = linalg.tril(len(Z))
    if chain.apart:
        Z, W = Z - Z0, W - W0
        return np.concatenate([Z[i] * Z[j], (W[:, None] * Z).reshape(-1, Z.shape[1])])
    both = W[:, None] * Z0 + W0[:, None] * Z
    return np.concatenate([Z[i] * Z0[j] + Z0[i] * Z[j], both.reshape(-1, Z.shape[1])])


class Mixed(NamedTuple):
    """log|R| (J,) and [Z X y]ᵀR⁻¹[Z X y], M (J, F, L) by level and WW (J, w, w); J as in ``markov.packed``."""

    log_det: np.ndarray
    M: np.ndarray
    WW: np.ndarray


def mixed(model: Model, x: np.ndarray, chain: Chain, derivatives: bool) -> Mixed:
    """From the rows: O(n) at every x."""
    k = markov.size(model) if derivatives else 0
    J, w = 1 + k + k * (k + 1) // 2, len(chain.W)
    log_det, M, WW = np.zeros(J), np.zeros((J, chain.width, chain.n_levels)), np.zeros((J, w, w))
    for rows in chain.chunks():
        here = slice(rows.start - int(chain.joined[rows.start]), rows.stop)
        d, o, own = _coefficients(model, x, chain, here, rows.start, derivatives)
        log_det += own
        _add_totals(WW, chain.W[:, here], d, o, chain.apart)
        if len(chain.Z):
            _add_levels(M, chain, here, d, o)
    return Mixed(log_det, M, WW)


def _coefficients(
    model: Model, x: np.ndarray, chain: Chain, here: slice, first: int, derivatives: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (J, m) of the rows ``here`` and, from the second on, of neighbours (J, m − 1); log|R| (J,).

    Rows before ``first`` are there as neighbours only.
    """
    joined = chain.joined[here][1:]
    # A gap of 1 stands in where there is no link.
    links = Links(np.where(joined, chain.gap[here][1:], 1), chain.at.group[here][1:])
    e = markov.entries(model, x, links, derivatives)
    log_det = markov.packed(e.log_rest) @ joined
    d = np.zeros((len(log_det), here.stop - here.start))
    skip = first - here.start
    if chain.apart:
        d[0, skip:] = 1.0
        kappa = markov.packed(e.kappa) * joined
        d[:, 1:] += kappa
        d[:, :-1] += kappa
        return d, markov.packed(e.omega) * joined, log_det
    eta = markov.log_sds(model, x, chain.at.map(here), derivatives)
    twice = eta + eta
    d[:, skip:] = markov.packed(markov.shrunk(None, twice[skip:]))
    d[:, 1:] += markov.packed(markov.shrunk(e.kappa, twice[1:])) * joined
    d[:, :-1] += markov.packed(markov.shrunk(e.kappa, twice[:-1])) * joined
    o = markov.packed(markov.shrunk(e.omega, eta[1:] + eta[:-1])) * np.where(joined, -1.0, 0.0)
    return d, o, log_det + markov.packed(twice)[:, skip:].sum(1)


def _add_totals(WW: np.ndarray, W: np.ndarray, d: np.ndarray, o: np.ndarray, apart: bool) -> None:
    WW += _grams(W, d, W)
    if apart:
        step = W[:, 1:] - W[:, :-1]
        WW += _grams(step, o, step)
        return
    half = _grams(W[:, 1:], o, W[:, :-1])
    WW += half + half.swapaxes(1, 2)


def _grams(A: np.ndarray, weights: np.ndarray, B: np.ndarray) -> np.ndarray:
    """(J, w, w) AD_jBᵀ."""
    w = len(A)
    return ((weights[:, None] * A).reshape(-1, A.shape[1]) @ B.T).reshape(-1, w, w)


def _add_levels(M: np.ndarray, chain: Chain, here: slice, d: np.ndarray, o: np.ndarray) -> None:
    own, across = products(chain, here), linked(chain, slice(here.start + 1, here.stop))
    level = chain.level[here]
    starts = np.flatnonzero(np.diff(level, prepend=-1))
    into = slice(level[0], level[-1] + 1)
    for total, a, b in zip(M, d, o, strict=True):
        each = own * a
        each[:, 1:] += across * b
        total[:, into] += np.add.reduceat(each, starts, axis=1)
