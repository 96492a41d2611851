"""Fit any compressed model: start → optimise → canonical sign → Fit; one compiled program per model shape."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from . import covariance, crossed, grouped, linalg
from .compression import GroupData
from .crossed_data import CrossedData, NestedData
from .optimize import NewtonOptions, initial_state, newton
from .profiled import AtOptimum, derivatives
from .records import Fit, RandomEffects, assemble
from .types import Array, float64_on_host

ModelStatistics = GroupData | CrossedData | NestedData


def fit(
    data: ModelStatistics, *, reml: bool = True, start: Any = None, options: NewtonOptions = NewtonOptions()
) -> Fit:
    """Maximum-likelihood or REML fit of a linear mixed model.

    Parameters
    ----------
    data : what ``compress`` returned.
    reml : bool, static.
    start : (k,), optional
        θ to start from, user's units.
    options : NewtonOptions, static.

    Returns
    -------
    Fit
        With ``status``; nothing raises inside traced code.

    Notes
    -----
    Newton with a trust region on θ alone, unbounded. One factor: about 6 evaluations of O(P·kq²·kw).
    Several: see ``core.crossed``.
    """
    if isinstance(data, GroupData):
        return _fit_grouped(data, start, reml=reml, options=options)
    return crossed.fit_crossed(data, reml=reml, start=start, options=options)


@float64_on_host
def _fit_grouped(data: GroupData, start: Any, *, reml: bool, options: NewtonOptions) -> Fit:
    return _fit(data, start, reml, options)


@functools.partial(jax.jit, static_argnames=("reml", "options"))
def _fit(data: GroupData, start: Array | None, reml: bool, options: NewtonOptions) -> Fit:
    template, moments = data.template, data.moments
    k, dtype = covariance.n_theta(template), moments.WtW.dtype
    scale = covariance.theta_scale(template, moments.basis.z_scale)
    x0 = covariance.start(template, dtype) if start is None else jnp.asarray(start, dtype) * scale

    def objective(x: Array) -> tuple[Array, Array, Array, AtOptimum]:
        return derivatives(grouped.expansion(x, data), k, moments, reml)

    found = newton(objective, initial_state(x0, objective), options)
    return assemble(found, moments, template, reml)


def deviance(theta: Any, data: ModelStatistics, *, reml: bool = True) -> Array:
    """Profiled deviance (−2 log L, or the REML criterion) at θ: to put in your own optimiser or sampler.

    Parameters
    ----------
    theta : (k,) relative covariance parameters, dimensionless, in the user's units of Z; any sign.
    data : what ``compress`` returned.
    reml : bool, static.

    Returns
    -------
    () the deviance, differentiable in θ and in the data. NaN where the data leave no residual.

    References
    ----------
    Bates, Mächler, Bolker & Walker (2015), eqs 34 and 41.
    """
    engine = grouped if isinstance(data, GroupData) else crossed
    return engine.deviance(theta, data, reml=reml)


def random_effects(fitted: Fit, data: ModelStatistics) -> tuple[RandomEffects, ...]:
    """BLUPs with conditional and prediction-error covariances of every level, one record per factor.

    Levels that pad a one-factor model to its bucketed length are included, as zeros.

    References
    ----------
    Henderson (1975); Bates et al. (2015), eq. 58.
    """
    if isinstance(data, GroupData):
        return (_grouped_effects(fitted, data),)
    return crossed.random_effects(fitted, data)


@float64_on_host
def _grouped_effects(fitted: Fit, data: GroupData) -> RandomEffects:
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
