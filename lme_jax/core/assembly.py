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


def whitening(H: Array) -> Array:
    """A (p+1, p+1, *lanes) with [X y]·A = [X R⁻ᵀ, y − Xβ̂], where RRᵀ = XᵀV⁻¹X is the leading block of H."""
    return whitening_of_root(linalg.cholesky(H))


def whitening_of_root(R: Array) -> Array:
    """``whitening`` from the Cholesky factor of H."""
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
    position = np.zeros((q, q), int)
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
    if namespace(S) is np and kq <= 10:
        return (_step_matrix(kq) @ S.reshape(kq * kq, -1)).reshape(S.shape)
    total = 0.0
    for left, right, weight in zip(*_step_terms(kq), strict=True):
        total = total + weight.reshape(kq, kq, *[1] * (S.ndim - 2)).astype(S.dtype) * S[left, right]
    return total


def assemble_derivatives(
    theta: Array, template: Template, log_det: Array, H: Array, sums: LevelSums, totals: RowTotals, reml: bool
) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (*lanes), gradient (k, *lanes), Hessian (k, k, *lanes) in scaled θ, and what the fit keeps.

    H = [X y]ᵀV⁻¹[X y], and ``sums`` were whitened by it.
    """
    return assemble_from_root(theta, template, log_det, H, linalg.cholesky(H), sums, totals, reml)


def assemble_from_root(
    theta: Array,
    template: Template,
    log_det: Array,
    H: Array,
    R: Array,
    sums: LevelSums,
    totals: RowTotals,
    reml: bool,
) -> tuple[Array, Array, Array, AtOptimum]:
    """``assemble_derivatives`` where the Cholesky factor R of H is at hand."""
    p, kq = R.shape[0] - 1, len(sums.U)
    weight = _twice_off_diagonal(kq, sums.U.ndim).astype(sums.U.dtype)
    moved = _twice_off_diagonal(kq, sums.TT.ndim).astype(sums.U.dtype) * sums.TT
    rss, rss_slope = R[p, p] ** 2, -weight * sums.TT[:, p, p]
    dof = totals.n_rows - (p if reml else 0)
    slope = weight * sums.U + dof / rss * rss_slope
    across = moved[:, p, :p]
    if across.ndim == 2:
        across_squared = across @ across.T
    else:
        across_squared = (across[:, None] * across[None]).sum(2)
    rss_curvature = 2.0 * (step_products(sums.U_ee) - across_squared)
    curvature = dof / rss * (rss_curvature - rss_slope[:, None] * rss_slope[None] / rss) - step_products(sums.UU)
    if sums.U_TT is not None and p:
        fixed = moved[:, :p, :p]
        slope = slope - sum(fixed[:, c, c] for c in range(p))
        flat = fixed.reshape(kq, p * p, *fixed.shape[3:])
        squared = flat @ flat.T if flat.ndim == 2 else (flat[:, None] * flat[None]).sum(2)
        curvature = curvature + 2.0 * step_products(sums.U_TT) - squared
    J, J2 = covariance.squared_derivatives(theta, template)
    gradient = (J * slope[:, None]).sum(0)
    hessian = linalg.matmul(linalg.transpose(J), linalg.matmul(curvature, J)) + (J2 * slope[:, None, None]).sum(0)
    log_scale_slope = (J * rss_slope[:, None]).sum(0) / rss
    value = deviance_of_root(log_det, R, totals, reml)
    return value, gradient, hessian, AtOptimum(H, log_scale_slope)
