"""Many one-factor models in one program: deviance, gradient and exact Hessian, lanes on the last axis.

The algebra is that of ``grouped`` (MATH §3), laid out for thousands of small models that often share a
design: a scan over the levels does elementwise arithmetic on vectors over the lanes, which no library call
on small matrices matches. Two passes. With Ψ = LLᵀ and, per level, F = (I + ΨG)⁻¹, U = GF, D = FᵀC:
first log|V| and H = WᵀV⁻¹W; then, with RRᵀ = XᵀV⁻¹X, T = DₓR⁻ᵀ and e = D(−β̂, 1), moving Ψ by Δ changes
    log|V|       by tr(Δ ΣU) − ½ Σ tr(ΔUΔU),
    rᵀV⁻¹r       by −Σ eᵀΔe + Σ eᵀΔUΔe − |Σ TᵀΔe|²           (β̂ profiled out),
    log|XᵀV⁻¹X|  by −Σ tr(ΔTTᵀ) + Σ tr(ΔUΔTTᵀ) − ½‖Σ TᵀΔT‖²,
exactly to second order, also where Ψ is singular.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import covariance, linalg
from .compression import Basis
from .covariance import Template
from .profiled import AtOptimum, deviance_of_root
from .types import Array, pytree, static


@pytree
class LaneData:
    """Sufficient statistics of R models with one grouping factor each; a last axis of length 1 is shared by all.

    Attributes
    ----------
    G : (P, q, q, R or 1) ZᵀZ per level; count : (P, R or 1) levels whose log-determinant an entry stands for.
    CX : (P, q, p, R or 1) ZᵀX; Cy : (P, q, R) Zᵀy; WtW : (p+1, p+1, R) of W = [X y]; all conditioned.
    n_rows, log_weights : (R or 1,).
    basis : map (p+1, p+1, R), log_det_x (R or 1,), z_scale (q, R or 1).
    """

    G: Array
    count: Array
    CX: Array
    Cy: Array
    WtW: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()

    @property
    def n_lanes(self) -> int:
        return self.Cy.shape[-1]


def moment_start(data: LaneData) -> Array:
    """Scaled θ (k, R) from moments of the residuals of least squares; see ``fit.moment_start``."""
    q = data.G.shape[1]
    own = data.G[:, np.arange(q), np.arange(q)]
    count = data.count[:, None]
    R = (data.Cy**2).sum(0)
    A, B = (count * own**2).sum(0), (count * own).sum(0)
    return covariance.moment_start(data.template, R, A, B, data.WtW[-1, -1], data.n_rows)


# ---------------------------------------------------------------- one level


Rows = list[list[Any]]


def _dot(us: list[Any], vs: list[Any]) -> Any:
    """Σ uᵢvᵢ, skipping what is structurally zero (None)."""
    terms = [u * v for u, v in zip(us, vs, strict=True) if u is not None and v is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _columns(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


def _factor_rows(theta: Array, template: Template) -> Rows:
    """L(θ) entry by entry, None where the template has a structural zero."""
    L = covariance.factor(theta, template)
    filled = covariance.structural_nonzeros(template)
    return [[L[i, j] if filled[i, j] else None for j in range(len(L))] for i in range(len(L))]


class _Level(NamedTuple):
    log_det: Array
    left: Rows
    F: Rows
    U: Array


def _level(L: Rows, G: Array) -> _Level:
    """log|M|, K⁻¹Lᵀ, F = I − WG and packed U = GF (kq, lanes), with M = I + LᵀGL = KKᵀ and W = LM⁻¹Lᵀ.

    Entry by entry, so that XLA fuses it.
    """
    q = len(L)
    pairs = [(i, j) for i in range(q) for j in range(i + 1)]
    Gs = [[G[i, j] for j in range(q)] for i in range(q)]
    Lt = _columns(L)
    GL = [[_dot(row, column) for column in Lt] for row in Gs]
    M = {(i, j): _dot(Lt[i], [GL[m][j] for m in range(q)]) for i, j in pairs}
    K: dict[tuple[int, int], Array] = {}
    inverse: list[Array] = []
    for j in range(q):
        pivot = 1.0 + M[j, j] - sum(K[j, m] ** 2 for m in range(j))
        K[j, j] = jnp.sqrt(pivot)
        inverse.append(1.0 / K[j, j])
        for i in range(j + 1, q):
            K[i, j] = (M[i, j] - sum(K[i, m] * K[j, m] for m in range(j))) * inverse[j]
    left: Rows = []
    for i in range(q):
        row = []
        for c in range(q):
            known = _dot([K[i, m] for m in range(i)], [left[m][c] for m in range(i)])
            rest = Lt[i][c] if known is None else -known if Lt[i][c] is None else Lt[i][c] - known
            row.append(None if rest is None else rest * inverse[i])
        left.append(row)
    columns = _columns(left)
    W = [[_dot(a, b) for b in columns] for a in columns]
    G_columns = _columns(Gs)
    WG = [[_dot(row, column) for column in G_columns] for row in W]
    F = [[(1.0 if i == j else 0.0) - WG[i][j] for j in range(q)] for i in range(q)]
    U = jnp.stack([_dot(Gs[i], [F[m][j] for m in range(q)]) for i, j in pairs])
    determinant = K[0, 0]
    for j in range(1, q):
        determinant = determinant * K[j, j]
    return _Level(2.0 * jnp.log(determinant), left, F, U)


def _cross_products(CX: Array, Cy: Array) -> list[Array]:
    """Rows (p+1, lanes) of C = Zᵀ[X y] of one level."""
    q, p, _ = CX.shape
    shared = jnp.broadcast_to(CX, (q, p, Cy.shape[-1]))
    return [jnp.concatenate([shared[a], Cy[a][None]]) for a in range(q)]


# ---------------------------------------------------------------- the two passes


def log_det_and_cross(theta: Array, data: LaneData) -> tuple[Array, Array, Array, Array]:
    """log|V| (R,), H (p+1, p+1, R), and over the levels ΣU (kq, R) and ΣU⊗U (kq, kq, R), at scaled θ."""
    L = _factor_rows(theta, data.template)
    kq, width = len(L) * (len(L) + 1) // 2, data.WtW.shape[0]
    lanes, dtype = data.n_lanes, data.Cy.dtype

    def add(sums: Any, level_data: Any) -> tuple[Any, None]:
        G, count, CX, Cy = level_data
        level = _level(L, G)
        C = _cross_products(CX, Cy)
        Y = [_dot([None if l is None else l[None] for l in row], C) for row in level.left]
        log_det, U, UU, cross = sums
        counted = count * level.U
        cross = cross + sum(y[:, None] * y[None] for y in Y)
        return (log_det + count * level.log_det, U + counted, UU + counted[:, None] * level.U[None], cross), None

    def zeros(*shape: int) -> Array:
        return jnp.zeros((*shape, lanes), dtype)

    start = (zeros(), zeros(kq), zeros(kq, kq), zeros(width, width))
    log_det, U, UU, cross = jax.lax.scan(add, start, (data.G, data.count, data.CX, data.Cy))[0]
    return log_det, data.WtW - cross, U, UU


class _Residual(NamedTuple):
    """Over the levels, with T̃ = [T e]: Σ T̃⊗T̃ (kq, p+1, p+1, R), Σ U⊗ee and Σ U⊗TTᵀ (kq, kq, R)."""

    TT: Array
    U_ee: Array
    U_TT: Array


def _residual_sums(theta: Array, data: LaneData, A: Array, reml: bool) -> _Residual:
    """Sums of D·A, A (p+1, p+1, R) turning the columns of D into [T e]."""
    L = _factor_rows(theta, data.template)
    q, width = len(L), A.shape[0]
    p, pairs = width - 1, list(zip(*np.tril_indices(q), strict=True))

    def add(sums: _Residual, level_data: Any) -> tuple[_Residual, None]:
        G, _, CX, Cy = level_data
        level = _level(L, G)
        C = _cross_products(CX, Cy)
        D = [_dot([entry[None] for entry in column], C) for column in _columns(level.F)]
        T = [sum(D[a][m][None] * A[m] for m in range(width)) for a in range(q)]
        products = jnp.stack([T[i][:, None] * T[j][None] for i, j in pairs])
        ee = jnp.stack([T[i][p] * T[j][p] for i, j in pairs])
        U_TT = sums.U_TT
        if reml and p:
            own = jnp.stack([(T[i][:p] * T[j][:p]).sum(0) for i, j in pairs])
            U_TT = U_TT + level.U[:, None] * own[None]
        return _Residual(sums.TT + products, sums.U_ee + level.U[:, None] * ee[None], U_TT), None

    kq = len(pairs)
    square = jnp.zeros((kq, kq, data.n_lanes), A.dtype)
    start = _Residual(jnp.zeros((kq, width, width, data.n_lanes), A.dtype), square, square)
    sums = jax.lax.scan(add, start, (data.G, data.count, data.CX, data.Cy))[0]
    return sums._replace(TT=0.5 * (sums.TT + jnp.swapaxes(sums.TT, 1, 2)))


def _step_products(q: int) -> np.ndarray:
    """(kq², kq²) constants Q: Σ tr(ΔUΔE) = δᵀ(Q vec ΣU⊗E)δ for packed symmetric Δ, U, E; symmetric in δ."""
    i, j = np.tril_indices(q)
    unit = np.zeros((len(i), q, q))
    unit[np.arange(len(i)), i, j] = unit[np.arange(len(i)), j, i] = 1.0
    Q = np.einsum("xij,ujk,ykl,vli->xyuv", unit, unit, unit, unit, optimize=True)
    return (0.5 * (Q + Q.transpose(1, 0, 2, 3))).reshape(len(i) ** 2, -1)


# ---------------------------------------------------------------- deviance and derivatives


def objective(theta: Array, data: LaneData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (R,), gradient (k, R), exact Hessian (k, k, R) and what the fit keeps, at scaled θ (k, R).

    Notes
    -----
    O(P·(q³ + q p² + kq·p²)) per lane, P levels or merged levels; nothing of size P × R is formed.
    """
    log_det, H, U, UU = log_det_and_cross(theta, data)
    R = linalg.cholesky(H)
    sums = _residual_sums(theta, data, _whitening(R), reml)
    value = deviance_of_root(log_det, R, data, reml)
    return value, *_derivatives(theta, data, R, U, UU, sums, reml), AtOptimum(H, _log_scale_slope(theta, data, R, sums))


def _whitening(R: Array) -> Array:
    """A (p+1, p+1, R) with [X y]·A = [X R⁻ᵀ, y − Xβ̂] for the Cholesky factor R of H."""
    width, _, lanes = R.shape
    p = width - 1
    eye = jnp.broadcast_to(jnp.eye(p, dtype=R.dtype)[:, :, None], (p, p, lanes))
    inverse = linalg.solve_lower(R[:p, :p], eye)
    beta = (inverse * R[p, :p][:, None]).sum(0)
    A = jnp.zeros_like(R).at[p, p].set(1.0)
    return A.at[:p, :p].set(linalg.transpose(inverse)).at[:p, p].set(-beta)


def _twice_off_diagonal(q: int) -> np.ndarray:
    return np.where(np.equal(*np.tril_indices(q)), 1.0, 2.0)


def _rss_slope(data: LaneData, sums: _Residual) -> Array:
    """∂ rᵀV⁻¹r / ∂ packed Ψ (kq, R), conditioned units."""
    return -_twice_off_diagonal(data.G.shape[1])[:, None] * sums.TT[:, -1, -1]


def _log_scale_slope(theta: Array, data: LaneData, R: Array, sums: _Residual) -> Array:
    J = covariance.squared_derivatives(theta, data.template)[0]
    return (J * _rss_slope(data, sums)[:, None]).sum(0) / R[-1, -1] ** 2


def _derivatives(
    theta: Array, data: LaneData, R: Array, U: Array, UU: Array, sums: _Residual, reml: bool
) -> tuple[Array, Array]:
    """Gradient and Hessian in θ: those of log|V| + N log rss (+ log|XᵀV⁻¹X|) in Ψ, carried over by the chain rule."""
    q, kq, lanes = data.G.shape[1], len(U), U.shape[-1]
    p = R.shape[0] - 1
    weight = _twice_off_diagonal(q)[:, None]
    stacked = jnp.stack([UU, sums.U_ee, sums.U_TT], axis=2).reshape(kq * kq, 3 * lanes)
    Q = (jnp.asarray(_step_products(q), U.dtype) @ stacked).reshape(kq, kq, 3, lanes)
    moved = weight[:, :, None, None] * sums.TT
    rss, rss_slope = R[p, p] ** 2, _rss_slope(data, sums)
    dof = data.n_rows - (p if reml else 0)
    slope = weight * U + dof / rss * rss_slope
    across = moved[:, p, :p]
    rss_curvature = 2.0 * (Q[:, :, 1] - (across[:, None] * across[None]).sum(2))
    curvature = dof / rss * (rss_curvature - rss_slope[:, None] * rss_slope[None] / rss) - Q[:, :, 0]
    if reml and p:
        slope = slope - jnp.trace(moved[:, :p, :p], axis1=1, axis2=2)
        fixed = moved[:, :p, :p].reshape(kq, p * p, lanes)
        curvature = curvature + 2.0 * Q[:, :, 2] - (fixed[:, None] * fixed[None]).sum(2)
    J, J2 = covariance.squared_derivatives(theta, data.template)
    gradient = (J * slope[:, None]).sum(0)
    hessian = linalg.matmul(linalg.transpose(J), linalg.matmul(curvature, J))
    return gradient, hessian + (J2 * slope[:, None, None]).sum(0)
