"""Unprofiled log-likelihood ℓ(β, covariance, σ²), ML or REML, with autodiff score and Hessian.

Derivatives come from the exact second-order expansion of log|V| and WᵀV⁻¹W in Ψ, so they are right at a
singular covariance too. On the profile and square-root scales σ² may be left out (None): it is then
profiled, σ̂² = (y − Xβ)ᵀV⁻¹(y − Xβ)/N with N = n (ML) or n − p (REML), as statsmodels does.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import covariance, grouped, levels, linalg, programs
from .moments import GroupData
from .parameterizations import Scale, covariance_of, sqrt_from_profile
from .profiled import Expansion
from .types import Array, at_least_float


class Likelihood(NamedTuple):
    """ℓ (), its score (m,) and Hessian (m, m) in the packed parameters (β, ω[, σ²])."""

    value: Array
    score: Array
    hessian: Array


def covariance_expansion(L: Array, data: GroupData) -> Expansion:
    """log|V| and H around Ψ = LLᵀ as functions of a symmetric step Δ (q, q), exact to second order.

    Smooth at a singular Ψ too, where no square root of Ψ + Δ is.

    Notes
    -----
    log|V| += tr(Δ ΣU) − ½ Σ tr(ΔUΔU) and H −= Σ Dᵀ(Δ − ΔUΔ)D.
    """
    q, width = len(L), data.n_fixed + 1
    log_det, W = levels.weigh(L, data.G, levels.dense(q))
    F = levels.complement(W, data.G)
    U = levels.precision(data.G, F)
    D = jnp.concatenate(levels.spread(F, data.C))
    value, explained = (data.count * log_det).sum(), grouped.quadratic(W, data.C)
    counted = jnp.stack(U) * data.count
    U_sum = levels.stacked(counted.sum(-1))
    UU = levels.stacked([levels.stacked(row) for row in counted @ jnp.stack(U).T])
    DD = (D @ D.T).reshape(q, width, q, width)
    DUD = levels.stacked([((u * D) @ D.T).reshape(q, width, q, width) for u in U])

    def at(step: Array) -> tuple[Array, Array]:
        log_v = value + (step * U_sum).sum() - 0.5 * jnp.einsum("ij,kl,jkli->", step, step, UU)
        shift = jnp.einsum("ij,iwjv->wv", step, DD) - jnp.einsum("ij,kl,jkiwlv->wv", step, step, DUD)
        return log_v, data.moments.WtW - explained - 0.5 * (shift + shift.T)

    return Expansion(at)


def _split(params: Array, data: GroupData) -> tuple[Array, Array, Array | None]:
    p, k = data.n_fixed, covariance.n_theta(data.template)
    return params[:p], params[p : p + k], params[p + k] if params.shape[0] > p + k else None


def _relative_covariance(omega: Array, sigma2: Array | None, scale: Scale, data: GroupData) -> Array:
    """LLᵀ of packed ω in conditioned units of Z."""
    if scale == "sqrt":
        L = covariance.factor(omega, data.template)
        D = L @ L.T
    else:
        D = covariance_of(omega, data.template)
        if scale == "natural":
            D = D / sigma2
    s = data.moments.basis.z_scale
    return D * s[:, None] * s[None, :]


def _start_root(omega: Array, sigma2: Array | None, scale: Scale, data: GroupData) -> Array:
    """A square root of the same covariance, constant under differentiation."""
    if scale == "natural":
        omega = omega / sigma2
    theta = omega if scale == "sqrt" else sqrt_from_profile(omega, data.template)
    return jax.lax.stop_gradient(covariance.factor(theta, data.template) * data.moments.basis.z_scale[:, None])


def _from_sums(log_det: Array, H: Array, beta: Array, sigma2: Array | None, data: GroupData, reml: bool) -> Array:
    moments, p = data.moments, data.n_fixed
    # The map is upper triangular.
    contrast = linalg.solve_upper(moments.basis.map.T, jnp.concatenate([-beta, jnp.ones(1, beta.dtype)])[:, None])[:, 0]
    Q = contrast @ H @ contrast
    N = moments.n_rows - (p if reml else 0)
    if sigma2 is None:
        fit = N * (1.0 + jnp.log(2.0 * jnp.pi * Q / N))
    else:
        fit = N * jnp.log(2.0 * jnp.pi * sigma2) + Q / sigma2
    value = log_det - moments.log_weights + fit
    if reml:
        value = value + linalg.log_det(linalg.cholesky(H[:p, :p])) - 2.0 * moments.basis.log_det_x
    return -0.5 * value


def _local(params: Array, data: GroupData, scale: Scale, reml: bool) -> Callable[[Array], Array]:
    """ℓ as a function of the packed parameters, exact to second order at ``params``."""
    _, omega, sigma2 = _split(params, data)
    root = _start_root(omega, sigma2, scale, data)
    around = covariance_expansion(root, data)

    def at(moved: Array) -> Array:
        beta, omega, sigma2 = _split(moved, data)
        step = _relative_covariance(omega, sigma2, scale, data) - root @ root.T
        return _from_sums(*around.at(step), beta, sigma2, data, reml)

    return at


def loglike(params: Array, data: GroupData, *, scale: Scale = "natural", reml: bool = True) -> Array:
    """Log-likelihood (ML) or restricted log-likelihood at packed (β, ω[, σ²]) on the named scale.

    Parameters
    ----------
    params : (p + k + 1,) or, with σ² profiled out (profile and sqrt scales), (p + k,).
    scale : "natural" (ω = Ψ), "profile" (ω = Ψ/σ²) or "sqrt" (ω = packed L).

    References
    ----------
    Lindstrom & Bates (1988), eqs 2.3 and 2.4.
    """
    return programs.run(_loglike, at_least_float(params), data, scale=scale, reml=reml, backend="jax")


def _loglike(params: Array, data: GroupData, *, scale: Scale, reml: bool) -> Array:
    return _local(params, data, scale, reml)(params)


def derivatives(params: Array, data: GroupData, *, scale: Scale = "natural", reml: bool = True) -> Likelihood:
    """Log-likelihood with exact score and Hessian, by autodiff; arguments as ``loglike``."""
    return programs.run(_derivatives, at_least_float(params), data, scale=scale, reml=reml, backend="jax")


def _derivatives(params: Array, data: GroupData, *, scale: Scale, reml: bool) -> Likelihood:
    at = _local(params, data, scale, reml)

    def score(moved: Array) -> tuple[Array, tuple[Array, Array]]:
        value, slope = jax.value_and_grad(at)(moved)
        return slope, (value, slope)

    hessian, (value, slope) = jax.jacfwd(score, has_aux=True)(params)
    return Likelihood(value, slope, hessian)
