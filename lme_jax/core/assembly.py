"""From sums over the levels to the deviance with its gradient and exact Hessian, in closed form.

Moving Ψ by a symmetric Δ changes, exactly to second order and also where Ψ is singular,
    log|V|       by tr(Δ ΣU) − ½ Σ tr(ΔUΔU),
    rᵀV⁻¹r       by −Σ eᵀΔe + Σ eᵀΔUΔe − |Σ TᵀΔe|²           (β̂ profiled out),
    log|XᵀV⁻¹X|  by −Σ tr(ΔTTᵀ) + Σ tr(ΔUΔTTᵀ) − ½‖Σ TᵀΔT‖²,
with U, D per level as in ``levels``, RRᵀ = XᵀV⁻¹X, T = DₓR⁻ᵀ and e = D(−β̂, 1). The chain rule carries this
to θ. Arrays may carry lanes on their last axes.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

import functools
from typing import NamedTuple

import numpy as np

from . import covariance, linalg
from .covariance import Template
from .levels import pairs
from .profiled import AtOptimum, RowTotals, deviance_of_root
from .types import Array, namespace


class LevelSums(NamedTuple):
    """Sums over the levels, the pairs of effects packed; T̃ = [T e].

    Attributes
    ----------
    U : (kq, *lanes) ΣU; UU : (kq, kq, *lanes) ΣU⊗U.
    TT : (kq, p+1, p+1, *lanes) Σ T̃⊗T̃, symmetric; U_ee : (kq, kq, *lanes) Σ U⊗ee; U_TT : Σ U⊗TTᵀ, which ML leaves out.
    """

    U: Array
    UU: Array
    TT: Array
    U_ee: Array
    U_TT: Array | None


def whitening(R: Array) -> Array:
    """A (p+1, p+1, *lanes) with [X y]·A = [X R₁⁻ᵀ, y − Xβ̂], R the Cholesky factor of H and R₁R₁ᵀ = XᵀV⁻¹X."""
    p, lanes, xp = R.shape[0] - 1, R.shape[2:], namespace(R)
    inverse = linalg.inverse_lower(R[:p, :p])
    beta = (inverse * R[p, :p][:, None]).sum(0)
    left = xp.concatenate([linalg.transpose(inverse), xp.zeros((1, p, *lanes), R.dtype)])
    right = xp.concatenate([-beta, xp.ones((1, *lanes), R.dtype)])
    return xp.concatenate([left, right[:, None]], axis=1)


@functools.lru_cache(maxsize=64)
def _twice_off_diagonal(kq: int, ndim: int) -> np.ndarray:
    """(kq, 1, …): 2 where a packed entry stands for two, 1 on the diagonal."""
    q = int(np.sqrt(2 * kq))
    return np.array([1.0 if i == j else 2.0 for i, j in pairs(q)]).reshape(-1, *[1] * (ndim - 1))


@functools.lru_cache(maxsize=64)
def _step_terms(kq: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns (terms, kq, kq) of S, and their weights, that ``step_products`` adds up."""
    q = int(np.sqrt(2 * kq))
    position = np.zeros((q, q), np.int32)
    lower, upper = np.array(pairs(q)).T
    position[lower, upper] = position[upper, lower] = np.arange(kq)
    # A packed entry off the diagonal stands for (i, j) and (j, i): Δ_ij U_jk Δ_kl E_li.
    both = [(lower, upper, np.ones(kq)), (upper, lower, np.where(lower == upper, 0.0, 1.0))]
    left, right, weight = [], [], []
    for i, j, once in both:
        for k, l, again in both:
            left.append(position[j[:, None], k])
            right.append(position[l, i[:, None]])
            weight.append(once[:, None] * again)
    # Symmetrised: what (x, y) takes (y, x) takes too.
    left += [np.swapaxes(a, 0, 1) for a in left]
    right += [np.swapaxes(a, 0, 1) for a in right]
    weight += [np.swapaxes(a, 0, 1) for a in weight]
    return np.stack(left), np.stack(right), 0.5 * np.stack(weight)


@functools.lru_cache(maxsize=16)
def _step_matrix(kq: int) -> np.ndarray:
    """``step_products`` as a matrix (kq², kq²) on the entries of S."""
    left, right, weight = _step_terms(kq)
    out = np.zeros((kq * kq, kq * kq))
    into = np.broadcast_to(np.arange(kq * kq).reshape(kq, kq), left.shape)
    np.add.at(out, (into, left * kq + right), weight)
    return out


def step_products(S: Array) -> Array:
    """K (kq, kq, *lanes) with Σ tr(ΔUΔE) = δᵀKδ for packed symmetric Δ, from S = ΣU⊗E over packed pairs."""
    kq = S.shape[0]
    if kq <= 10:
        return (_step_matrix(kq).astype(S.dtype) @ S.reshape(kq * kq, -1)).reshape(S.shape)
    total = 0.0
    for left, right, weight in zip(*_step_terms(kq), strict=True):
        total = total + weight.reshape(kq, kq, *[1] * (S.ndim - 2)).astype(S.dtype) * S[left, right]
    return total


def moments(sums: LevelSums, p: int) -> tuple[Array, Array, Array]:
    """K (kq, kq), t (kq,) and cᵀE_xc (kq,) of ``starts.from_moments``, from the sums at Ψ = 0, no lanes.

    With Q = I − X(XᵀX)⁻¹Xᵀ: K_xy = tr(QZE_xZᵀQZE_yZᵀ), t_x = tr(QZE_xZᵀ).
    """
    kq = len(sums.U)
    weight = _twice_off_diagonal(kq, 1).astype(sums.U.dtype)
    fixed = (weight[:, None, None] * sums.TT[:, :p, :p]).reshape(kq, p * p)
    by_U = sums.UU if sums.U_TT is None else sums.UU - 2.0 * sums.U_TT
    K = step_products(by_U) + fixed @ fixed.T
    t = weight * sums.U - sum(fixed.reshape(kq, p, p)[:, c, c] for c in range(p))
    return K, t, weight * sums.TT[:, p, p]


def assemble_derivatives(
    theta: Array,
    template: Template,
    log_det: Array,
    H: Array,
    R: Array,
    sums: LevelSums,
    totals: RowTotals,
    reml: bool,
) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (*lanes), gradient (k, *lanes), Hessian (k, k, *lanes) in scaled θ, and what the fit keeps.

    H = [X y]ᵀV⁻¹[X y] with Cholesky factor R, and ``sums`` were whitened by it.
    """
    p, kq = R.shape[0] - 1, len(sums.U)
    weight = _twice_off_diagonal(kq, sums.U.ndim).astype(sums.U.dtype)
    moved = _twice_off_diagonal(kq, sums.TT.ndim).astype(sums.U.dtype) * sums.TT
    rss, rss_slope = R[p, p] ** 2, -weight * sums.TT[:, p, p]
    per_rss = (totals.n_rows - (p if reml else 0)) / rss
    slope = weight * sums.U + per_rss * rss_slope
    by_U = 2.0 * per_rss * sums.U_ee - sums.UU
    if sums.U_TT is not None:
        slope = slope - sum(moved[:, c, c] for c in range(p))
        by_U = by_U + 2.0 * sums.U_TT
    squares = moved.reshape(kq, (p + 1) ** 2, *moved.shape[3:]) * _square_weights(per_rss, rss, p, reml)
    outer = squares @ squares.T if squares.ndim == 2 else (squares[:, None] * squares[None]).sum(2)
    curvature = step_products(by_U) - outer
    J, J2 = covariance.squared_derivatives(theta, template)
    gradient = (J * slope[:, None]).sum(0)
    hessian = linalg.matmul(linalg.transpose(J), linalg.matmul(curvature, J)) + (J2 * slope[:, None, None]).sum(0)
    log_scale_slope = (J * rss_slope[:, None]).sum(0) / rss
    value = deviance_of_root(log_det, R, totals, reml)
    return value, gradient, hessian, AtOptimum(H, log_scale_slope)


def _square_weights(per_rss: Array, rss: Array, p: int, reml: bool) -> Array:
    """((p+1)², *lanes) roots of what the squares of Σ T̃ᵀΔT̃ weigh in the curvature.

    (2/rss)·|Σ TᵀΔe|² and (Σ eᵀΔe)²/rss² times the degrees of freedom, and ‖Σ TᵀΔT‖² under REML.
    """
    xp = namespace(per_rss, rss)
    one = per_rss * 0.0 + 1.0
    rows = [[one * float(reml)] * p + [one * 0.0]] * p
    rows.append([xp.sqrt(2.0 * per_rss)] * p + [xp.sqrt(per_rss / rss)])
    return linalg.stack_rows(rows).reshape((p + 1) ** 2, *np.shape(one))
