"""Estimates, standard errors and degrees of freedom of contrasts in every lane, without Cov β̂'s derivatives at length.

In u = R⁻¹l, XᵀV⁻¹X = RRᵀ, the derivatives of lᵀΦl, Φ = Cov β̂, are σ²uᵀX_au, and Kenward and Roger's sum over pairs of
parameters, Σ W_ab(Q_ab − P_aΦP_b − R_ab/4), is a product of arrays summed over patterns: with N = Σ W_abΣ_aUΣ_b one
T × T matrix per pattern holds all Q_ab. Directions of V are those of the params and of log σ².
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from ...errors import DataError
from .. import threads
from ..likelihood import flat_inverse
from . import grid_lanes
from .data import BlockData
from .fit import ResidualFit
from .grid_lanes import Fixed, Grid
from .inference import natural_map
from .lanes import HELD, TOGETHER, LaneFits
from .model import bend_of_grids

Method = Literal["satterthwaite", "kenward-roger"]
METHODS: tuple[Method, Method] = ("satterthwaite", "kenward-roger")


class Contrasts(NamedTuple):
    """Of every lane and contrast (L, m): lᵀβ̂, its standard error and the degrees of freedom of their ratio."""

    estimate: np.ndarray
    se: np.ndarray
    df: np.ndarray


def contrasts(
    fits: LaneFits,
    data: BlockData,
    L: Any,
    *,
    method: Method = "satterthwaite",
    reml: bool = True,
    observed: bool = False,
) -> Contrasts:
    """Of fits that ``fit_lanes`` returned, L (m, p); NaN in lanes that did not end in an optimum.

    ``observed`` : Kenward and Roger's with the observed information, as SAS has it, for the expected one.

    Notes
    -----
    As ``inference.degrees.satterthwaite`` and ``kenward_roger`` of ``residual.inference.jets`` have them, row by row.
    """
    rows = np.atleast_2d(np.asarray(L, float))
    if rows.shape[1] != data.n_fixed:
        raise DataError(
            f"contrasts of shape {rows.shape}: give ({len(rows)}, {data.n_fixed}), a column per fixed effect"
        )
    if method not in METHODS:
        raise DataError(f"method={method!r}: choose from {', '.join(map(repr, METHODS))}")
    if not grid_lanes.possible(data):
        raise DataError("contrasts of lanes need one covariance by visit, or one an arm: use jets of every fit")
    grid = grid_lanes.shared(data)
    told = np.flatnonzero(np.isfinite(fits.hessian).all((1, 2)) & np.isfinite(fits.sigma))
    out = np.full((3, len(fits.sigma), len(rows)), np.nan)
    (P, T), p, k = grid.present.shape, grid.n_fixed, grid.model.size + 1
    size = min(TOGETHER, max(1, HELD // (P * T * T * (4 * k + 8) + 4 * k * p * p)))
    pieces = [told[lo : lo + size] for lo in range(0, len(told), size)]

    def piece(which: np.ndarray) -> np.ndarray:
        return _piece(fits.some(which), data, grid, rows, method, reml, observed)

    for which, found in zip(pieces, threads.each(piece, pieces), strict=True):
        out[:, which] = found
    return Contrasts(*out)


class _Piece(NamedTuple):
    """Some lanes and what was solved at their estimates; steps (L, k + 1, A, T, T) of Σ along (x, log σ²)."""

    fits: LaneFits
    data: BlockData
    grid: Grid
    here: grid_lanes.At
    fixed: Fixed
    steps: np.ndarray


def _piece(
    fits: LaneFits, data: BlockData, grid: Grid, rows: np.ndarray, method: Method, reml: bool, observed: bool
) -> np.ndarray:
    """(3, L, m)."""
    x, p = (fits.params * data.unit).T, grid.n_fixed
    here = grid_lanes.at(grid, x)
    H = grid_lanes.symmetric(grid_lanes.times_A(grid, grid_lanes.packed(here.U)), p)
    steps = np.concatenate([here.M1, here.M[:, None]], 1)
    s = grid_lanes.fixed(grid, here.U, np.linalg.cholesky(H), steps)
    u = np.swapaxes(s.whitening, 1, 2) @ (rows @ grid.to_x).T
    variance = (u * u).sum(1)
    slopes = np.einsum("lim,laij,ljm->lma", u, s.X_a, u, optimize=True)
    N = data.n_rows - (p if reml else 0)
    if method == "satterthwaite":
        spread, scaled = _observed(fits, data, float(N)), variance
    else:
        spread = _observed(fits, data, float(N)) if observed else np.linalg.inv(_expected(s, reml))
        scaled = variance + _adjustment(_Piece(fits, data, grid, here, s, steps), u, spread)
    spreads = np.einsum("lma,lab,lmb->lm", slopes, spread, slopes, optimize=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = 2.0 * variance**2 / spreads
    return np.stack([fits.beta @ rows.T, fits.sigma[:, None] * np.sqrt(scaled), df])


def _observed(fits: LaneFits, data: BlockData, N: float) -> np.ndarray:
    """(L, k + 1, k + 1) covariance of (x, log σ²): x from the deviance's Hessian, flat directions left out."""
    unit = data.unit
    hessian, slope = fits.hessian / np.outer(unit, unit), fits.log_scale_slope / unit
    k = hessian.shape[1]
    # The information of (x, log σ²) whose profile over log σ² is half the deviance's Hessian.
    whole = np.empty((len(hessian), k + 1, k + 1))
    whole[:, :k, :k] = 0.5 * hessian + 0.5 * N * slope[:, :, None] * slope[:, None]
    whole[:, :k, k] = whole[:, k, :k] = -0.5 * N * slope
    whole[:, k, k] = 0.5 * N
    return flat_inverse(whole)


def _expected(s: Fixed, reml: bool) -> np.ndarray:
    """(L, k + 1, k + 1) expected information of (x, log σ²)."""
    if not reml:
        return 0.5 * s.trace2
    return 0.5 * (s.trace2 - s.F - s.F.swapaxes(1, 2) + s.products)


def _adjustment(at: _Piece, u: np.ndarray, W: np.ndarray) -> np.ndarray:
    """(L, m) 2uᵀ(ΣW_ab(Q_ab − P_aΦP_b − R_ab/4))u over σ²."""
    grid, s, U = at.grid, at.fixed, at.here.U
    L, r, p = *W.shape[:2], grid.n_fixed
    inner = U @ _between(grid, U, at.steps, W) @ U
    Q = grid_lanes.symmetric(grid_lanes.times_A(grid, grid_lanes.packed(0.5 * (inner + inner.swapaxes(2, 3)))), p)
    PP = ((W @ s.X_a.reshape(L, r, -1)).reshape(L, r, p, p) @ s.X_a).sum(1)
    inside = s.whitening.swapaxes(1, 2) @ Q @ s.whitening - PP
    out = 2.0 * np.einsum("lim,lij,ljm->lm", u, inside, u, optimize=True)
    if grid.model.family.each:
        return out
    return out - 0.5 * _bent(at, u, W)


def _between(grid: Grid, U: np.ndarray, steps: np.ndarray, W: np.ndarray) -> np.ndarray:
    """(L, P, T, T) Σ_ab W_abΣ_aUΣ_b of every pattern."""
    L, k, A, T, _ = steps.shape
    out = np.empty_like(U)
    for a in range(A):
        mine, own = grid.arm == a, steps[:, :, a].reshape(L, k, T * T)
        # Of (ij, kl) to (il, jk), which U_jk meets.
        c = (own.swapaxes(1, 2) @ W @ own).reshape(L, T, T, T, T).transpose(0, 1, 4, 2, 3).reshape(L, T * T, T * T)
        met = U[:, mine].reshape(L, -1, T * T) @ c.swapaxes(1, 2)
        out[:, mine] = met.reshape(L, -1, T, T)
    return out


def _bent(at: _Piece, u: np.ndarray, W: np.ndarray) -> np.ndarray:
    """(L, m) ΣW_ab uᵀR_abu, R_ab = XᵀV⁻¹V_abV⁻¹X in the parameters that SAS estimates."""
    grid = at.grid
    v = at.fixed.whitening @ u
    (P, T), rows = grid.present.shape, v.swapaxes(1, 2)
    lower = grid_lanes.twice_lower(rows[..., None] * rows[:, :, None])
    squares = grid_lanes.A_times(grid, lower.reshape(-1, lower.shape[2])).reshape(*lower.shape[:2], P, -1)
    K = at.here.U[:, None] @ grid_lanes.full(squares, T) @ at.here.U[:, None]
    arms = np.stack([K[:, :, grid.arm == a].sum(2) for a in range(grid.model.n_groups)], 2)
    out, k = np.empty(arms.shape[:2]), grid.model.size
    for i in range(len(arms)):
        one = at.fits.one(i)
        turned = _turned(one, at.data)
        for j, S in enumerate(arms[i]):
            moved = np.einsum("aAij,Aij->a", at.steps[i], S)
            bend = np.empty((k + 1, k + 1))
            bend[:k, :k] = bend_of_grids(grid.model, one.params * at.data.unit, S, at.steps[i, :k])
            bend[k], bend[:, k] = moved, moved
            out[i, j] = (W[i] * (bend - np.tensordot(moved, turned, 1))).sum()
    return out


def _turned(one: ResidualFit, data: BlockData) -> np.ndarray:
    """(r, r, r) what ∂²ω of SAS's parameters ω means as directions of (x, log σ²): c of [c, a, b]."""
    J, J2 = natural_map(one, data)
    s2, r = float(one.sigma) ** 2, len(J)
    scale = np.append(1.0 / data.unit, s2)
    first, second = J * scale, J2 * np.outer(scale, scale)
    second[:, r - 1, r - 1] += first[:, r - 1]
    return np.einsum("cl,lab->cab", np.linalg.pinv(first), second)
