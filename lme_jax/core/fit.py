"""start → optimise → canonical sign → Fit: one compiled program per model shape."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import covariance, grouped, linalg
from .compression import GroupData
from .optimize import NewtonOptions, initial_state, newton
from .profiled import AtOptimum, derivatives, estimates
from .types import Status, float64_on_host, pytree

SINGULAR_BELOW = 1e-4


@pytree
class Fit:
    """A fitted model: arrays only, immutable, a pytree (lanes of a batch add a leading axis).

    Attributes
    ----------
    theta : (k,) relative covariance parameters, canonical signs, user's units of Z.
    relative_factor : (q, q) L(θ); Cov(b) = σ²LLᵀ.
    beta : (p,) fixed effects; sigma : () residual standard deviation, response units.
    unscaled_cov : (p, p) (XᵀV⁻¹X)⁻¹, so that Cov β̂ = σ²·unscaled_cov.
    deviance : () −2 log L, or the REML criterion.
    gradient, hessian : (k,), (k, k) of the deviance in θ.
    log_scale_slope : (k,) ∂ log σ̂²/∂θ of the profiled σ̂².
    decrease : () ½gᵀH⁻¹g, the scale-free gradient, in deviance units.
    iterations, status : () int32; see ``Status``.
    """

    theta: Array
    relative_factor: Array
    beta: Array
    sigma: Array
    unscaled_cov: Array
    deviance: Array
    gradient: Array
    hessian: Array
    log_scale_slope: Array
    decrease: Array
    iterations: Array
    status: Array


@pytree
class RandomEffects:
    """Predicted random effects of every level.

    Attributes
    ----------
    b : (G, q) BLUPs, response units per unit of Z.
    conditional_cov : (G, q, q) Var(b | y) with β fixed (lme4's condVar).
    prediction_cov : (G, q, q) Var(b̂ − b), which adds the uncertainty of β̂ (Henderson).
    """

    b: Array
    conditional_cov: Array
    prediction_cov: Array


@float64_on_host
def fit(
    data: GroupData, *, reml: bool = True, start: Any = None, options: NewtonOptions = NewtonOptions()
) -> Fit:
    """Maximum-likelihood or REML fit of a one-factor model.

    Parameters
    ----------
    data : GroupData from ``compress``.
    reml : bool, static.
    start : (k,), optional
        θ to start from, user's units; L = I in scaled units of Z if None.
    options : NewtonOptions, static.

    Returns
    -------
    Fit
        With ``status``; nothing raises inside traced code.

    Notes
    -----
    Newton with a trust region on θ alone, unbounded: about 6 evaluations of O(P·kq²·kw).
    """
    return _fit(data, start, reml, options)


@functools.partial(jax.jit, static_argnames=("reml", "options"))
def _fit(data: GroupData, start: Array | None, reml: bool, options: NewtonOptions) -> Fit:
    template, moments = data.template, data.moments
    k = covariance.n_theta(template)
    scale = covariance.theta_scale(template, moments.basis.z_scale)
    dtype = moments.WtW.dtype
    x0 = covariance.start(template, dtype) if start is None else jnp.asarray(start, dtype) * scale
    def objective(x: Array) -> tuple[Array, Array, Array, AtOptimum]:
        return derivatives(grouped.expansion(x, data), k, moments, reml)

    found = newton(objective, initial_state(x0, objective), options)
    theta = covariance.canonical(found.x, template)
    sign = jnp.where(theta * found.x < 0, -1.0, 1.0)
    gls = estimates(found.aux.H, moments, reml)
    singular = covariance.smallest_root(theta, template) < SINGULAR_BELOW
    status = jnp.where((found.status == Status.CONVERGED) & singular, Status.SINGULAR, found.status)
    finite = jnp.isfinite(found.value) & jnp.isfinite(gls.sigma) & jnp.isfinite(gls.beta).all()
    user_theta, to_user = theta / scale, sign * scale
    return Fit(
        theta=user_theta,
        relative_factor=covariance.factor(user_theta, template),
        beta=gls.beta,
        sigma=gls.sigma,
        unscaled_cov=gls.unscaled_cov,
        deviance=found.value,
        gradient=found.gradient * to_user,
        hessian=found.hessian * jnp.outer(to_user, to_user),
        log_scale_slope=found.aux.log_scale_slope * to_user,
        decrease=found.decrease,
        iterations=found.iterations,
        status=jnp.where(finite, status, Status.NOT_FINITE).astype(jnp.int32),
    )


@float64_on_host
def random_effects(fitted: Fit, data: GroupData) -> RandomEffects:
    """BLUPs with conditional and prediction-error covariances, for every level (padded ones included).

    References
    ----------
    Henderson (1975); Bates et al. (2015), eq. 58.
    """
    return _random_effects(fitted, data)


@jax.jit
def _random_effects(fitted: Fit, data: GroupData) -> RandomEffects:
    basis, p = data.moments.basis, data.n_fixed
    scale = covariance.theta_scale(data.template, basis.z_scale)
    W, ZtW = grouped.level_weights(fitted.theta * scale, data)
    A, c, d = basis.map[:p, :p], basis.map[:p, p], basis.map[p, p]
    # y − Xβ in conditioned columns: (W̃_y − X̃ a)/d with a = A⁻¹(c + dβ).
    a = jnp.linalg.solve(A, c + d * fitted.beta) if p else jnp.zeros(0, W.dtype)
    residual = (ZtW[:, p] - jnp.einsum("qpg,p->qg", ZtW[:, :p], a)) / d
    unit = 1.0 / basis.z_scale
    b = jnp.einsum("abg,bg->ga", W, residual) * unit
    variance = fitted.sigma**2 * unit[:, None] * unit[None, :]
    projected = linalg.matmul(W, ZtW[:, :p])
    root = jnp.linalg.solve(A, fitted.unscaled_cov) if p else fitted.unscaled_cov
    inner = jnp.linalg.solve(A, root.T) if p else root
    extra = jnp.einsum("apg,pr,brg->gab", projected, inner, projected)
    conditional = jnp.moveaxis(W, 2, 0)
    return RandomEffects(b, variance * conditional, variance * (conditional + extra))
