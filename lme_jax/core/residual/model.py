"""V of a pattern, its derivative in every parameter and the second derivative along a symmetric S.

V = Σ_bars ZΨZᵀ∘[same level] + uuᵀ∘M∘[same subject], M from the correlation's family, u = exp η from the variance
functions. Parameters x in the search's units: θ of the bars; ρ of arm 0, then (log scale, ρ) of each further arm; δ.
"""

from typing import NamedTuple

import numpy as np

from .. import covariance
from ..blocks import Block
from .families import Family, Options
from .registry import VARIANCES, family
from .stacks import Rows, Stack


class Model(NamedTuple):
    """What is asked of the data: bars, the correlation and the variance functions.

    Attributes
    ----------
    bars : structures of the random terms.
    word, options, n_visits, n_groups : of the correlation; T is 0 of one by distance.
    variances : (word, S) with S strata each; delta_units : what their parameters are divided by, δ = x / unit.
    """

    bars: tuple[Block, ...]
    word: str
    options: tuple[tuple[str, object], ...]
    n_visits: int
    n_groups: int
    variances: tuple[tuple[str, int], ...]
    delta_units: tuple[float, ...]

    @property
    def family(self) -> Family:
        """The correlation's entry."""
        return family(self.word)

    @property
    def settings(self) -> Options:
        """The correlation's options."""
        return dict(self.options)

    @property
    def n_rho(self) -> int:
        """Parameters of one arm, its scale aside."""
        return self.family.size(self.n_visits, self.settings)

    def arm(self, a: int) -> tuple[int | None, slice]:
        """Where arm a has its log scale (None: arm 0) and its ρ."""
        start, k = self.n_theta, self.n_rho
        if a == 0:
            return None, slice(start, start + k)
        at = start + k + (a - 1) * (k + 1)
        return at, slice(at + 1, at + 1 + k)

    @property
    def n_theta(self) -> int:
        """Parameters of the bars."""
        return sum(block.n_theta for block in self.bars)

    @property
    def theta(self) -> list[slice]:
        """Where the parameters of each bar stand."""
        ends = np.cumsum([block.n_theta for block in self.bars], dtype=int)
        return [slice(int(e) - b.n_theta, int(e)) for e, b in zip(ends, self.bars, strict=True)]

    @property
    def correlation(self) -> slice:
        """Where the correlation's parameters stand, scales of arms among them."""
        return slice(self.n_theta, self.n_theta + self.n_groups * (self.n_rho + 1) - 1)

    @property
    def delta(self) -> list[slice]:
        """Where the parameters of each variance function stand."""
        at, out = self.correlation.stop, []
        for word, strata in self.variances:
            k = VARIANCES[word].size(strata)
            out.append(slice(at, at + k))
            at += k
        return out

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.delta[-1].stop if self.variances else self.correlation.stop


# ---------------------------------------------------------------- by visit: on the grids of the arms


def grids(model: Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M (A, T, T) of every arm and its derivative (k, A, T, T) in all parameters."""
    A, T = model.n_groups, model.n_visits
    M, M1 = np.empty((A, T, T)), np.zeros((len(x), A, T, T))
    for a in range(A):
        scale, mine = model.arm(a)
        size = 1.0 if scale is None else np.exp(2.0 * x[scale])
        one, first = model.family.first(x[mine], T, model.settings)
        M[a], M1[mine, a] = size * one, size * first
        if scale is not None:
            M1[scale, a] = 2.0 * M[a]
    return M, M1


def bend_of_grids(model: Model, x: np.ndarray, S: np.ndarray, M1: np.ndarray) -> np.ndarray:
    """(k, k) Σ S ∂²M for S (A, T, T), M1 from ``grids``."""
    out = np.zeros((len(x), len(x)))
    for a in range(model.n_groups):
        scale, mine = model.arm(a)
        size = 1.0 if scale is None else np.exp(2.0 * x[scale])
        out[mine, mine] = size * model.family.bend(x[mine], model.n_visits, model.settings, S[a])
        if scale is not None:
            out[mine, scale] = out[scale, mine] = 2.0 * np.tensordot(M1[mine, a], S[a], 2)
            out[scale, scale] = 2.0 * (M1[scale, a] * S[a]).sum()
    return out


# ---------------------------------------------------------------- any pattern


class Pattern(NamedTuple):
    """V (P, n, n) of a stack and its derivatives (k, P, n, n), with what the second ones are made of.

    Attributes
    ----------
    R : (P, n, n) the residuals' part; R1 : (kρ, P, n, n) its derivative in the correlation's parameters.
    eta1 : (kδ, P, n); eta2 : (kδ, kδ, P, n) or None.
    grid : M1 of ``grids``, or None by distance.
    """

    V: np.ndarray
    first: np.ndarray
    R: np.ndarray
    R1: np.ndarray
    u: np.ndarray
    eta1: np.ndarray
    eta2: np.ndarray | None
    grid: np.ndarray | None


def _mask(stack: Stack) -> np.ndarray:
    """(P, n, n) rows of one subject, as numbers."""
    both = stack.present[:, :, None] & stack.present[:, None, :]
    return (both if stack.together is None else both & stack.together).astype(float)


def log_sd(
    model: Model, x: np.ndarray, rows: Rows, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """η (*shape), ∂η (kδ, *shape) and ∂²η of all variance functions together, of rows of that shape."""
    places = model.delta
    k = sum(s.stop - s.start for s in places)
    eta, first, second = np.zeros(shape), np.zeros((k, *shape)), None
    at, units, ones = 0, np.array(model.delta_units), [1] * len(shape)
    for (word, S), here, strata, v in zip(model.variances, places, rows.strata, rows.covariates, strict=True):
        mine = slice(at, at + here.stop - here.start)
        unit = units[mine]
        own, own1, own2 = VARIANCES[word].eta(x[here] / unit, v, strata, S)
        eta, first[mine] = eta + own, own1 / unit.reshape(-1, *ones)
        if own2 is not None:
            second = np.zeros((k, k, *shape)) if second is None else second
            second[mine, mine] = own2 / np.outer(unit, unit).reshape(len(unit), len(unit), *ones)
        at = mine.stop
    return eta, first, second


def _correlation(model: Model, x: np.ndarray, stack: Stack) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """M (P, n, n), ∂M (kρ, P, n, n) in the correlation's parameters, and the grids."""
    here = model.correlation
    if model.family.distance:
        return (*_by_distance(model, x, stack), None)
    M, M1 = grids(model, x)
    T, visit = model.n_visits, stack.at.clock
    flat = ((stack.at.group * T + visit) * T)[:, :, None] + visit[:, None, :]
    return M.reshape(-1)[flat], M1[here].reshape(here.stop - here.start, M.size)[:, flat], M1


def _by_distance(model: Model, x: np.ndarray, stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    here, d = model.correlation, stack.distance
    assert d is not None
    M, M1 = np.zeros(d.shape), np.zeros((here.stop - here.start, *d.shape))
    for a, rows in _arms(model, stack):
        scale, mine = model.arm(a)
        size = 1.0 if scale is None else np.exp(2.0 * x[scale])
        one, first = model.family.first(x[mine], d, model.settings)
        M += size * one * rows
        M1[mine.start - here.start : mine.stop - here.start] = size * first * rows
        if scale is not None:
            M1[scale - here.start] = 2.0 * size * one * rows
    return M, M1


def _arms(model: Model, stack: Stack) -> list[tuple[int, np.ndarray | float]]:
    if model.n_groups == 1:
        return [(0, 1.0)]
    return [(a, (stack.at.group == a)[:, :, None].astype(float)) for a in range(model.n_groups)]


def pattern(model: Model, x: np.ndarray, stack: Stack, derivatives: bool = True) -> Pattern:
    """``Pattern`` at x (k,)."""
    mask = _mask(stack)
    eta, eta1, eta2 = log_sd(model, x, stack.at, stack.present.shape)
    u = np.exp(eta)
    M, M1, grid = _correlation(model, x, stack)
    across = mask * u[:, :, None] * u[:, None, :]
    R = across * M
    V = R + _empty(stack)
    first, R1 = np.zeros((len(x) if derivatives else 0, *R.shape)), np.zeros((0, *R.shape))
    if derivatives:
        R1 = across * M1
        first[model.correlation] = R1
        for a, e in enumerate(eta1):
            first[model.correlation.stop + a] = (e[:, :, None] + e[:, None, :]) * R
    for j, here in enumerate(model.theta):
        L = covariance.factor(x[here], (model.bars[j],))
        own = _levels(stack, j)
        half = stack.at.Z[j] @ L
        V = V + own * (half @ half.swapaxes(1, 2))
        if derivatives:
            moved = np.tensordot(steps(x[here], model.bars[j])[0], stack.at.Z[j], (1, 2))
            first[here] = own * _sandwich(moved, stack.at.Z[j])
    return Pattern(V, first, R, R1, u, eta1, eta2, grid)


def _sandwich(moved: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """(k, P, n, n) ZΔ_aZᵀ from ΔZᵀ (k, q, P, n)."""
    return np.moveaxis(moved, 1, 3) @ Z.swapaxes(1, 2)


def steps(theta: np.ndarray, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """∂Ψ (k, q, q) and ∂²Ψ (k, k, q, q)."""
    first, second = covariance.squared_derivatives(theta, (block,))
    at = covariance.packed_positions(block.size)
    return np.moveaxis(first[at], 2, 0), np.moveaxis(second[at], (2, 3), (0, 1))


def _levels(stack: Stack, j: int) -> np.ndarray:
    both = stack.present[:, :, None] & stack.present[:, None, :]
    own = stack.levels[j]
    return (both if own is None else both & own).astype(float)


def _empty(stack: Stack) -> np.ndarray:
    """1 on the diagonal of places without a row."""
    n = stack.present.shape[1]
    return np.eye(n) * (~stack.present)[:, :, None]


def bend(model: Model, x: np.ndarray, stack: Stack, at: Pattern, S: np.ndarray) -> np.ndarray:
    """(k, k) Σ_p Σ_ij S ∂²V for symmetric S (P, n, n)."""
    out = np.zeros((len(x), len(x)))
    for j, here in enumerate(model.theta):
        Z = stack.at.Z[j]
        inner = (Z.swapaxes(1, 2) @ (S * _levels(stack, j)) @ Z).sum(0)
        out[here, here] = np.tensordot(steps(x[here], model.bars[j])[1], inner, 2)
    _bend_residual(model, x, stack, at, S, out)
    return out


def _bend_residual(model: Model, x: np.ndarray, stack: Stack, at: Pattern, S: np.ndarray, out: np.ndarray) -> None:
    rho = model.correlation
    delta = slice(rho.stop, len(x))
    weighed = S * _mask(stack) * at.u[:, :, None] * at.u[:, None, :]
    if rho.stop > rho.start:
        out[rho, rho] = _bend_correlation(model, x, stack, at, weighed)
    if not len(at.eta1):
        return
    P = S * at.R
    rows = P.sum(2)
    moved = np.einsum("apn,pnm->apm", at.eta1, P)
    inner = np.einsum("apm,bpm->ab", moved, at.eta1) + np.einsum("apm,pm,bpm->ab", at.eta1, rows, at.eta1)
    if at.eta2 is not None:
        inner = inner + np.einsum("abpm,pm->ab", at.eta2, rows)
    out[delta, delta] = 2.0 * inner
    across = 2.0 * np.einsum("rpn,apn->ra", (at.R1 * S).sum(3), at.eta1)
    out[rho, delta], out[delta, rho] = across, across.T


def _bend_correlation(model: Model, x: np.ndarray, stack: Stack, at: Pattern, S: np.ndarray) -> np.ndarray:
    rho = model.correlation
    if at.grid is not None:
        return bend_of_grids(model, x, gathered(model, stack, S), at.grid)[rho, rho]
    d, out = stack.distance, np.zeros((len(x), len(x)))
    assert d is not None
    for a, rows in _arms(model, stack):
        scale, mine = model.arm(a)
        size, own = (1.0 if scale is None else np.exp(2.0 * x[scale])), S * rows
        out[mine, mine] = size * model.family.bend(x[mine], d, model.settings, own)
        if scale is not None:
            one, first = model.family.first(x[mine], d, model.settings)
            out[scale, scale] = 4.0 * size * (own * one).sum()
            out[mine, scale] = out[scale, mine] = 2.0 * size * (first * own).sum((1, 2, 3))
    return out[rho, rho]


def gathered(model: Model, stack: Stack, S: np.ndarray) -> np.ndarray:
    """(A, T, T) sums of S (P, n, n) over the places of every pair of visits of every arm."""
    T, visit = model.n_visits, stack.at.clock
    flat = ((stack.at.group * T + visit) * T)[:, :, None] + visit[:, None, :]
    size = model.n_groups * T * T
    return np.bincount(flat.ravel(), S.ravel(), size).reshape(model.n_groups, T, T)
