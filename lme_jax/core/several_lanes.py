"""Many models of one design with several grouping factors: deviance, gradient and exact Hessian, NumPy, lanes last.

The factor with the most effects is eliminated level by level, the K₂ effects of all the others are one dense system,
and from the two comes the whole of U = ZᵀV⁻¹Z (K, K) and D = ZᵀV⁻¹[X y], of which everything else is sums
(``criterion``). All lanes share the design, so N = Z₂ᵀV₁⁻¹Z₂ of every lane is one matrix product. With
E = FᵀZ₁ᵀZ₂ of the first factor, S = I + Λ₂ᵀNΛ₂ = KKᵀ, P = K⁻¹Λ₂ᵀ[N Z₂ᵀV₁⁻¹W] and V = Λ₂K⁻ᵀ,
    U₂₂ = N − PₐᵀPₐ,   U₁₂ = E(I − VPₐ),   U₁₁ = GF − EVVᵀEᵀ,   D₂ = Z₂ᵀV₁⁻¹W − PₐᵀP_b,   D₁ = Fᵀ(Z₁ᵀW − Z₁ᵀZ₂VP_b).
Inside, lanes stand first, as NumPy's stacked LAPACK wants them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import assembly, covariance, levels, linalg, multistart, starts
from .covariance import Template
from .criterion import Part, parts
from .crossed_start import Moments, theta_from
from .moments import Basis
from .profiled import AtOptimum, deviance_of_root
from .small import FURTHER_STARTS
from .types import pytree, static

# Doubles of a call's largest arrays together: some eight megabytes.
CACHED_DOUBLES = 1 << 20
MOST_LANES = 256


@dataclass(frozen=True, eq=False)
class SharedMoments:
    """What all lanes of a design have in common, conditioned; effects stand level by level, the first factor's first.

    Attributes
    ----------
    sizes, levels : effects per level and levels of every factor, in the caller's order; first : who is eliminated.
    spans : where each factor's effects stand among the K.
    G : (q₁, q₁, 1, P) distinct Z₁ᵀZ₁; count : (P,) levels that share each; pattern : (m₁,) of each level.
    cross : (m₁q₁, K₂) Z₁ᵀZ₂; dense : (K₂, K₂) Z₂ᵀZ₂; products : (Pq₁², K₂²) Σ over a pattern's levels of cross ⊗ cross.
    ZtX : (K, p); XtX : (p, p). start : the design's part of the moment equations.
    certain : see ``starts.is_balanced_chain``.
    """

    template: Template
    sizes: tuple[int, ...]
    levels: tuple[int, ...]
    first: int
    spans: tuple[slice, ...]
    G: np.ndarray
    count: np.ndarray
    pattern: np.ndarray
    cross: np.ndarray
    dense: np.ndarray
    products: np.ndarray
    ZtX: np.ndarray
    XtX: np.ndarray
    start: Moments
    certain: bool

    @property
    def width(self) -> int:
        """Lanes per call that keep its arrays in the cache."""
        K, (m, n) = len(self.ZtX), self.cross.shape
        per_lane = 3 * K * K + 6 * n * n + 3 * m * n
        return int(max(8, min(MOST_LANES, CACHED_DOUBLES // per_lane)))


@pytree
class SeveralLanes:
    """Sufficient statistics of R responses of one design; a last axis of length 1 is shared by all.

    Attributes
    ----------
    Zty : (K, R); Wty : (p+1, R) of W = [X y], conditioned; n_rows, log_weights : (R or 1,).
    basis : map (p+1, p+1, R), log_det_x (1,), z_scale (Σq, 1) in the caller's order of the factors.
    """

    Zty: np.ndarray
    Wty: np.ndarray
    n_rows: np.ndarray
    log_weights: np.ndarray
    basis: Basis
    shared: SharedMoments = static()

    @property
    def n_lanes(self) -> int:
        return self.Zty.shape[-1]

    @property
    def n_fixed(self) -> int:
        return len(self.Wty) - 1

    @property
    def template(self) -> Template:
        return self.shared.template


def moment_start(data: SeveralLanes) -> np.ndarray:
    """Scaled θ (k, R) from moments of the responses; see ``crossed_start``."""
    shared = data.shared
    rhs = np.stack([(own**2).sum(0) for own in _by_effect(data.Zty, shared)])
    moments = shared.start._replace(rhs=rhs)
    n = np.nanmax(data.n_rows, initial=len(data.Wty) + 1)
    theta = theta_from(moments, data.Wty[-1], n, data.n_fixed, data.template, data.basis.z_scale)
    return theta * covariance.theta_scale(data.template, data.basis.z_scale)


def _by_effect(columns: np.ndarray, shared: SharedMoments) -> list[np.ndarray]:
    """The rows (m, ·) of every effect, in the caller's order, of what runs over all K."""
    out = []
    for span, q in zip(shared.spans, shared.sizes, strict=True):
        out += [columns[span][a::q] for a in range(q)]
    return out


def plan(data: SeveralLanes) -> multistart.Plan:
    """Search again, as single fits of such designs do; see ``criterion.plan``."""
    return starts.plan_of_several(data.template, FURTHER_STARTS, np.bool_(data.shared.certain))


# ---------------------------------------------------------------- solving


class Solved(NamedTuple):
    """log|V| (R,), H (R, p+1, p+1), U (R, K, K) and D (R, K, p+1)."""

    log_det: np.ndarray
    H: np.ndarray
    U: np.ndarray
    D: np.ndarray


class _First(NamedTuple):
    """The first factor eliminated: log|V₁| (R,), M, F and GF (R, m₁, q₁, q₁) of its levels, N (R, K₂, K₂)."""

    log_det: np.ndarray
    M: np.ndarray
    F: np.ndarray
    GF: np.ndarray
    N: np.ndarray


def _eliminate(L: np.ndarray, shared: SharedMoments) -> _First:
    log_det, M, F = levels.eliminated(L[..., None], shared.G)
    GF = linalg.matmul(shared.G, F)
    M, F, GF = (np.moveaxis(a, (0, 1), (2, 3)) for a in (M, F, GF))
    n = len(shared.dense)
    N = shared.dense - (M.reshape(len(M), -1) @ shared.products).reshape(-1, n, n)
    own = shared.pattern
    return _First(log_det @ shared.count, M[:, own], F[:, own], GF[:, own], N)


def _roots(Ls: list[np.ndarray], X: np.ndarray, shared: SharedMoments, *, transpose: bool) -> np.ndarray:
    """Λ₂X or Λ₂ᵀX of X (R, K₂, c)."""
    out, before = np.empty(X.shape), len(shared.cross)
    for j, span in enumerate(shared.spans):
        if j == shared.first:
            continue
        here = slice(span.start - before, span.stop - before)
        L = np.moveaxis(Ls[j], 2, 0)
        if L.shape[1] == 1:
            np.multiply(X[:, here], L, out=out[:, here])
            continue
        L = np.swapaxes(L, 1, 2) if transpose else L
        block = X[:, here].reshape(len(X), -1, L.shape[1], X.shape[2])
        out[:, here] = (L[:, None] @ block).reshape(len(X), -1, X.shape[2])
    return out


def _cholesky(S: np.ndarray) -> np.ndarray:
    """Cholesky factors (R, n, n); NaN where a matrix is not finite."""
    lost = ~np.isfinite(S).all((1, 2))
    if lost.any():
        S = np.where(lost[:, None, None], np.eye(S.shape[1]), S)
    root = np.linalg.cholesky(S)
    root[lost] = np.nan
    return root


def _t(A: np.ndarray) -> np.ndarray:
    return np.swapaxes(A, 1, 2)


def solve(Ls: list[np.ndarray], data: SeveralLanes) -> Solved:
    """V⁻¹ of every lane, as far as it is ever asked for, at L (q, q, R) of every factor."""
    shared, lanes = data.shared, data.n_lanes
    first = _eliminate(Ls[shared.first], shared)
    W, WtW = _right_hand_sides(data)
    C, q = shared.cross, shared.sizes[shared.first]
    n_first, n = C.shape
    W1 = W[:, :n_first]
    MW = (first.M @ W1.reshape(lanes, -1, q, W.shape[2])).reshape(W1.shape)
    B = W[:, n_first:] - C.T @ MW
    H = WtW - _t(W1) @ MW
    right = _roots(Ls, np.concatenate([first.N, B], axis=2), shared, transpose=True)
    S = _roots(Ls, np.ascontiguousarray(_t(right[:, :, :n])), shared, transpose=True)
    S.reshape(lanes, -1)[:, :: n + 1] += 1.0
    root = _cholesky(S)
    log_det = first.log_det + 2.0 * np.log(root.diagonal(axis1=1, axis2=2)).sum(1)
    inverse = np.linalg.inv(root)
    P = inverse @ right
    left = np.concatenate([first.N, B], axis=2) - _t(P[:, :, :n]) @ P
    V = _roots(Ls, np.ascontiguousarray(_t(inverse)), shared, transpose=False)
    return _joined(first, left, P, V, W1, H - _t(P[:, :, n:]) @ P[:, :, n:], log_det, shared)


def _joined(
    first: _First,
    left: np.ndarray,
    P: np.ndarray,
    V: np.ndarray,
    W1: np.ndarray,
    H: np.ndarray,
    log_det: np.ndarray,
    shared: SharedMoments,
) -> Solved:
    """U and D over all effects; ``left`` (R, K₂, K₂ + p + 1) is [U₂₂ D₂]."""
    C, q, lanes = shared.cross, shared.sizes[shared.first], len(P)
    n_first, n = C.shape
    Ft = np.swapaxes(first.F, 2, 3)
    E = (Ft @ C.reshape(-1, q, n)).reshape(lanes, n_first, n)
    D1 = W1 - C @ (V @ P[:, :, n:])
    D1 = (Ft @ D1.reshape(lanes, -1, q, D1.shape[2])).reshape(D1.shape)
    EV = E @ V
    U = np.empty((lanes, n_first + n, n_first + n))
    np.negative(EV @ _t(EV), out=U[:, :n_first, :n_first])
    blocks = U[:, :n_first, :n_first].reshape(lanes, n_first // q, q, n_first // q, q)
    own = np.arange(n_first // q)
    blocks[:, own, :, own] += np.moveaxis(first.GF, 1, 0)
    U[:, :n_first, :n_first] = blocks.reshape(lanes, n_first, n_first)
    U[:, :n_first, n_first:] = E - EV @ P[:, :, :n]
    U[:, n_first:, :n_first] = _t(U[:, :n_first, n_first:])
    U[:, n_first:, n_first:] = left[:, :, :n]
    return Solved(log_det, H, U, np.concatenate([D1, left[:, :, n:]], axis=1))


def _right_hand_sides(data: SeveralLanes) -> tuple[np.ndarray, np.ndarray]:
    """ZᵀW (R, K, p+1) and WᵀW (R, p+1, p+1)."""
    shared, p = data.shared, data.n_fixed
    W = np.empty((data.n_lanes, len(data.Zty), p + 1))
    W[:, :, :p], W[:, :, p] = shared.ZtX, data.Zty.T
    WtW = np.empty((data.n_lanes, p + 1, p + 1))
    WtW[:, :p, :p] = shared.XtX
    WtW[:, p] = WtW[:, :, p] = data.Wty.T
    return W, WtW


# ---------------------------------------------------------------- derivatives


def objective(theta: Any, data: SeveralLanes, reml: bool) -> tuple[Any, Any, Any, AtOptimum]:
    """Deviance (R,), gradient (k, R), exact Hessian (k, k, R) and what the fit keeps, at scaled θ (k, R).

    Notes
    -----
    O(K₂³ + K²K₂) per lane with K₂ the effects of all factors but the largest.
    """
    shared, p = data.shared, data.n_fixed
    places = parts(data.template, shared.sizes)
    solved = solve([covariance.factor(theta[part.theta], part.template) for part in places], data)
    H = np.ascontiguousarray(np.moveaxis(solved.H, 0, 2))
    R = linalg.cholesky(H)
    rss, dof = R[p, p] ** 2, data.n_rows - (p if reml else 0)
    T = solved.D @ np.moveaxis(assembly.whitening(R), 2, 0)
    moved = _moves(theta, T, solved.U, dof / rss, places, shared, reml)
    columns = moved.Y.shape[3]
    Y = moved.Y.reshape(len(T), T.shape[1], -1)
    k = len(theta)
    YUY = (_t(Y) @ (solved.U @ Y)).reshape(-1, k, columns, k, columns)
    YT = (_t(Y) @ T).reshape(-1, k, columns, p + 1)
    slopes, across = YT[:, :, -1, p], YT[:, :, -1, :p]
    per_rss = (dof / rss)[:, None, None]
    quadratic = YUY[:, :, -1, :, -1] - across @ _t(across)
    outer = slopes[:, :, None] * slopes[:, None] / rss[:, None, None]
    hessian = moved.bend + per_rss * (2.0 * quadratic - outer) - moved.products
    if reml and p:
        fixed = YT[:, :, :p, :p].reshape(len(T), k, -1)
        hessian += 2.0 * np.einsum("racbc->rab", YUY[:, :, :p, :, :p]) - fixed @ _t(fixed)
    value = deviance_of_root(solved.log_det, R, data, reml)
    return value, moved.gradient.T, np.moveaxis(hessian, 0, 2), AtOptimum(H, -(slopes / rss[:, None]).T)


class _Moved(NamedTuple):
    """Gradient (R, k), the part (R, k, k) of the Hessian that ∂²Ψ makes, tr(V⁻¹V_aV⁻¹V_b), and Δ_aT̃ (R, K, k, ·)."""

    gradient: np.ndarray
    bend: np.ndarray
    products: np.ndarray
    Y: np.ndarray


def _moves(
    theta: np.ndarray,
    T: np.ndarray,
    U: np.ndarray,
    per_rss: np.ndarray,
    places: tuple[Part, ...],
    shared: SharedMoments,
    reml: bool,
) -> _Moved:
    """What moving every factor's Ψ changes; ``T`` (R, K, p+1) is D whitened."""
    lanes, K, _ = T.shape
    k, moving = len(theta), T if reml else T[:, :, -1:]
    gradient, bend, products = np.empty((lanes, k)), np.zeros((lanes, k, k)), np.empty((lanes, k, k))
    Y = np.zeros((lanes, K, k, moving.shape[2]))
    steps = []
    for part, q, span in zip(places, shared.sizes, shared.spans, strict=True):
        here = part.theta
        J, J2 = covariance.squared_derivatives(theta[here], part.template)
        step, curve = np.moveaxis(J[_position(q)], 3, 0), J2[_position(q)]
        steps.append(step)
        slope = _slope(T[:, span], U[:, span, span], per_rss, q, reml)
        gradient[:, here] = np.einsum("rij,rija->ra", slope, step)
        bend[:, here, here] = np.einsum("rij,ijabr->rab", slope, np.broadcast_to(curve, (*curve.shape[:4], lanes)))
        own = moving[:, span].reshape(lanes, -1, q, moving.shape[2])
        Y[:, span, here] = np.einsum("rija,rmjc->rmiac", step, own).reshape(lanes, -1, step.shape[3], own.shape[3])
    for j, (one, left) in enumerate(zip(places, steps, strict=True)):
        for i, (other, right) in enumerate(zip(places[: j + 1], steps[: j + 1], strict=True)):
            found = _trace_products(U[:, shared.spans[j], shared.spans[i]], left, right)
            products[:, one.theta, other.theta] = found
            products[:, other.theta, one.theta] = _t(found)
    return _Moved(gradient, bend, products, Y)


def _position(q: int) -> np.ndarray:
    """(q, q): where an entry of a symmetric matrix stands in its packed form."""
    i, j = np.ogrid[:q, :q]
    high, low = np.maximum(i, j), np.minimum(i, j)
    return high * (high + 1) // 2 + low


def _slope(T: np.ndarray, U: np.ndarray, per_rss: np.ndarray, q: int, reml: bool) -> np.ndarray:
    """The derivative (R, q, q) of the deviance in a factor's Ψ."""
    lanes, w = len(T), T.shape[2]
    m = T.shape[1] // q
    trace = np.einsum("rmimj->rij", U.reshape(lanes, m, q, m, q))
    own = np.moveaxis(T.reshape(lanes, m, q, w), 2, 1)
    e = own[..., -1]
    slope = trace - per_rss[:, None, None] * (e @ _t(e))
    if reml and w > 1:
        fixed = own[..., :-1].reshape(lanes, q, -1)
        slope = slope - fixed @ _t(fixed)
    return slope


def _trace_products(U: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """tr(Δ_aUΔ_bUᵀ) (R, k_j, k_i) of a block U (R, mq, nr) between factors, for Δ (R, q, q, k_j), (R, r, r, k_i)."""
    lanes, q, r = len(U), left.shape[1], right.shape[1]
    if q == r == 1:
        return np.einsum("rij,rij->r", U, U)[:, None, None] * left[:, 0, 0, :, None] * right[:, 0, 0, None]
    blocks = U.reshape(lanes, U.shape[1] // q, q, U.shape[2] // r, r)
    flat = blocks.transpose(0, 2, 4, 1, 3).reshape(lanes, q * r, -1)
    gram = (flat @ _t(flat)).reshape(lanes, q, r, q, r)
    return np.einsum("xsra,xrtsu,xtub->xab", left, gram, right, optimize=True)
