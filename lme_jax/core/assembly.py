"""From sums over the levels to the deviance with its gradient and exact Hessian, in closed form.

Moving Ψ by a symmetric Δ changes, exactly to second order and also where Ψ is singular,
    log|V|       by tr(Δ ΣU) − ½ Σ tr(ΔUΔU),
    rᵀV⁻¹r       by −Σ eᵀΔe + Σ eᵀΔUΔe − |Σ TᵀΔe|²           (β̂ profiled out),
    log|XᵀV⁻¹X|  by −Σ tr(ΔTTᵀ) + Σ tr(ΔUΔTTᵀ) − ½‖Σ TᵀΔT‖²,
with U, D per level as in ``levels``, RRᵀ = XᵀV⁻¹X, T = DₓR⁻ᵀ and e = D(−β̂, 1). The chain rule carries this
to θ. Arrays may carry lanes on their last axes.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from . import covariance, linalg
from .covariance import Template
from .levels import pairs
from .profiled import AtOptimum, RowTotals, deviance_of_root
from .types import Array


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
    R = linalg.cholesky(H)
    p, lanes = R.shape[0] - 1, R.shape[2:]
    eye = jnp.eye(p, dtype=R.dtype).reshape(p, p, *[1] * len(lanes))
    inverse = linalg.solve_lower(R[:p, :p], jnp.broadcast_to(eye, (p, p, *lanes)))
    beta = (inverse * R[p, :p][:, None]).sum(0)
    A = jnp.zeros_like(R).at[p, p].set(1.0)
    return A.at[:p, :p].set(linalg.transpose(inverse)).at[:p, p].set(-beta)


def _twice_off_diagonal(kq: int, like: Array) -> Array:
    """(kq, 1, …): 2 where a packed entry stands for two, 1 on the diagonal."""
    q = int(np.sqrt(2 * kq))
    weight = np.array([1.0 if i == j else 2.0 for i, j in pairs(q)])
    return jnp.asarray(weight.reshape(-1, *[1] * (like.ndim - 1)), like.dtype)


def step_products(S: Array) -> Array:
    """K (kq, kq, *lanes) with Σ tr(ΔUΔE) = δᵀKδ for packed symmetric Δ, from S = ΣU⊗E over packed pairs."""
    kq = S.shape[0]
    q = int(np.sqrt(2 * kq))
    position = np.zeros((q, q), int)
    lower, upper = np.array(pairs(q)).T
    position[lower, upper] = position[upper, lower] = np.arange(kq)
    # A packed entry off the diagonal stands for (i, j) and (j, i).
    both = [(lower, upper, np.ones(kq)), (upper, lower, np.where(lower == upper, 0.0, 1.0))]
    total = jnp.zeros_like(S)
    for i, j, once in both:
        for k, l, again in both:
            # Δ_ij U_jk Δ_kl E_li
            weight = (once[:, None] * again).reshape(kq, kq, *[1] * (S.ndim - 2))
            total = total + weight.astype(S.dtype) * S[position[j[:, None], k], position[l, i[:, None]]]
    return 0.5 * (total + linalg.transpose(total))


def assemble_derivatives(
    theta: Array, template: Template, log_det: Array, H: Array, sums: LevelSums, totals: RowTotals, reml: bool
) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (*lanes), gradient (k, *lanes), Hessian (k, k, *lanes) in scaled θ, and what the fit keeps.

    H = [X y]ᵀV⁻¹[X y], and ``sums`` were whitened by it.
    """
    R = linalg.cholesky(H)
    p, kq = R.shape[0] - 1, len(sums.U)
    weight = _twice_off_diagonal(kq, sums.U)
    moved = _twice_off_diagonal(kq, sums.TT) * sums.TT
    rss, rss_slope = R[p, p] ** 2, -weight * sums.TT[:, p, p]
    dof = totals.n_rows - (p if reml else 0)
    slope = weight * sums.U + dof / rss * rss_slope
    across = moved[:, p, :p]
    rss_curvature = 2.0 * (step_products(sums.U_ee) - (across[:, None] * across[None]).sum(2))
    curvature = dof / rss * (rss_curvature - rss_slope[:, None] * rss_slope[None] / rss) - step_products(sums.UU)
    if sums.U_TT is not None and p:
        fixed = moved[:, :p, :p]
        slope = slope - sum(fixed[:, c, c] for c in range(p))
        flat = fixed.reshape(kq, p * p, *fixed.shape[3:])
        curvature = curvature + 2.0 * step_products(sums.U_TT) - (flat[:, None] * flat[None]).sum(2)
    J, J2 = covariance.squared_derivatives(theta, template)
    gradient = (J * slope[:, None]).sum(0)
    hessian = linalg.matmul(linalg.transpose(J), linalg.matmul(curvature, J)) + (J2 * slope[:, None, None]).sum(0)
    log_scale_slope = (J * rss_slope[:, None]).sum(0) / rss
    value = deviance_of_root(log_det, R, totals, reml)
    return value, gradient, hessian, AtOptimum(H, log_scale_slope)
