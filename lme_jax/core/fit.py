"""Fit any compressed model: start → optimise → canonical sign → Fit; one compiled program per model shape."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import covariance, crossed, grouped, linalg
from .compression import GroupData
from .crossed_data import CrossedData, NestedData
from .optimize import NewtonOptions, NewtonState, initial_state, newton
from .profiled import AtOptimum
from .records import Fit, RandomEffects, assemble
from .types import Array, Status, float64_on_host

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
    Newton with a trust region on θ alone, unbounded. One factor: about 6 evaluations; see ``grouped.objective``.
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
    scale = covariance.theta_scale(template, moments.basis.z_scale)
    x0 = moment_start(data) if start is None else jnp.asarray(start, moments.WtW.dtype) * scale
    return assemble(_search(data, jax.lax.stop_gradient(x0), reml, options), moments, template, reml)


def fit_at(theta: Any, data: ModelStatistics, *, reml: bool = True) -> Fit:
    """The fit with θ held: β̂(θ), σ̂(θ), the deviance and its derivatives there; differentiable in θ and the data.

    Parameters
    ----------
    theta : (k,) relative covariance parameters, user's units of Z.
    """
    return _fit_at(jnp.asarray(theta) if isinstance(theta, jax.Array) else np.asarray(theta), data, reml=reml)


@float64_on_host
def _fit_at(theta: Any, data: ModelStatistics, *, reml: bool) -> Fit:
    return _fit_at_jitted(theta, data, reml)


@functools.partial(jax.jit, static_argnames="reml")
def _fit_at_jitted(theta: Array, data: ModelStatistics, reml: bool) -> Fit:
    totals = data.moments if isinstance(data, GroupData) else data
    x = theta * covariance.theta_scale(data.template, totals.basis.z_scale)

    def at(x: Array) -> tuple[Array, Array, Array, AtOptimum]:
        return grouped.objective(x, data, reml) if isinstance(data, GroupData) else crossed.derivatives(x, data, reml)

    value, gradient, hessian, kept = at(x)
    state = initial_state(x, at)._replace(value=value, gradient=gradient, hessian=hessian, aux=kept)
    state = state._replace(iterations=jnp.asarray(1, jnp.int32), status=jnp.asarray(Status.CONVERGED, jnp.int32))
    return assemble(state, totals, data.template, reml)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _search(data: GroupData, x0: Array, reml: bool, options: NewtonOptions) -> NewtonState:
    """The optimum as a function of the data, differentiable by the implicit function theorem."""

    def at(x: Array) -> tuple[Array, Array, Array, AtOptimum]:
        return grouped.objective(x, data, reml)

    return newton(at, initial_state(x0, at), options)


@_search.defjvp
def _search_jvp(
    reml: bool, options: NewtonOptions, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[NewtonState, NewtonState]:
    """dθ̂ = −H⁻¹ ∂²D/∂θ∂d · ḋ; what was evaluated at θ̂ moves with θ̂ and the data.

    At a singular optimum the deviance is even in the vanished direction, so the mixed derivative is zero
    there and θ̂ moves within its face; a flat direction (H singular) is held by a tiny ridge.
    """
    (data, x0), (data_dot, _) = primals, tangents
    found = _search(data, x0, reml, options)
    x, H = found.x, grouped.objective(found.x, data, reml)[2]
    slope_dot = jax.jvp(lambda d: grouped.objective(x, d, reml)[1], (data,), (data_dot,))[1]
    ridge = 1e3 * jnp.finfo(H.dtype).eps * jnp.abs(jnp.diagonal(H)).max()
    K = linalg.cholesky(H + ridge * jnp.eye(len(x), dtype=H.dtype))
    x_dot = -linalg.solve_upper(K, linalg.solve_lower(K, slope_dot[:, None]))[:, 0]
    moved = jax.jvp(lambda x, d: grouped.objective(x, d, reml), (x, data), (x_dot, data_dot))[1]
    value_dot, gradient_dot, hessian_dot, aux_dot = moved
    still = jax.tree.map(_zero_tangent, found)
    return found, still._replace(x=x_dot, value=value_dot, gradient=gradient_dot, hessian=hessian_dot, aux=aux_dot)


def _zero_tangent(a: Array) -> Array:
    if jnp.issubdtype(a.dtype, jnp.floating):
        return jnp.zeros_like(a)
    return np.zeros(a.shape, jax.dtypes.float0)


def moment_start(data: GroupData) -> Array:
    """Scaled θ (k,) from moments of the pilot residuals; see ``covariance.moment_start``."""
    R = (data.C[:, -1] ** 2).sum(-1)
    own = jnp.diagonal(data.G).T
    A, B = (data.count * own**2).sum(-1), (data.count * own).sum(-1)
    moments = data.moments
    return covariance.moment_start(data.template, R, A, B, moments.WtW[-1, -1], moments.n_rows)


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
    a = linalg.solve_upper(A.T, (c + d * fitted.beta)[:, None])[:, 0]
    residual = (ZtW[:, p] - jnp.einsum("qpg,p->qg", ZtW[:, :p], a)) / d
    unit = 1.0 / basis.z_scale
    b = jnp.einsum("abg,bg->ga", W, residual) * unit
    variance = fitted.sigma**2 * unit[:, None] * unit[None, :]
    projected = linalg.matmul(W, ZtW[:, :p])
    inner = linalg.solve_upper(A.T, linalg.solve_upper(A.T, fitted.unscaled_cov).T)
    extra = jnp.einsum("apg,pr,brg->gab", projected, inner, projected)
    conditional = jnp.moveaxis(W, 2, 0)
    return RandomEffects(b, variance * conditional, variance * (conditional + extra))


def predict(fitted: Fit, data: GroupData, X: Any, Z: Any, groups: Any) -> Array:
    """Predicted means Xβ̂ + Zb̂ of new rows of a one-factor model; differentiable in all arrays.

    Parameters
    ----------
    fitted, data : a fit and the data it was fitted to.
    X : (m, p); Z : (m, q); groups : (m,) codes of the levels as ``data`` has them; −1 for a new level, whose
        effects are 0.
    """
    return _predict(fitted, data, X, Z, groups)


@float64_on_host
def _predict(fitted: Fit, data: GroupData, X: Any, Z: Any, groups: Any) -> Array:
    return _predict_jitted(fitted, data, X, Z, groups)


@jax.jit
def _predict_jitted(fitted: Fit, data: GroupData, X: Array, Z: Array, groups: Array) -> Array:
    b = jnp.where((groups >= 0)[:, None], _random_effects(fitted, data).b[groups], 0.0)
    return X @ fitted.beta + (Z * b).sum(1)
