"""Fit any compressed model: start → optimise → canonical sign → Fit; one compiled program per model shape."""

from typing import Any

import numpy as np

from . import centring, covariance, crossed, grouped, multistart, programs, starts
from .crossed_data import CrossedData, NestedData
from .implicit import implicit
from .moments import GroupData
from .optimize import NewtonOptions, NewtonState, initial_state
from .profiled import AtOptimum, nothing_kept
from .programs import Backend
from .records import Fit, assemble
from .types import Array, Status, at_least_float, namespace

# Levels from which a second search is no longer a matter of milliseconds.
MANY_LEVELS = 1000
# Levels up to which a look at a hundred points costs no more than a few evaluations.
LEVELS_TO_GLIMPSE = 200

ModelStatistics = GroupData | CrossedData | NestedData


def fit(
    data: ModelStatistics,
    *,
    reml: bool = True,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
    backend: Backend | None = None,
) -> Fit:
    """Maximum-likelihood or REML fit of a linear mixed model.

    Parameters
    ----------
    data : what ``compress`` returned.
    reml : bool, static.
    start : (k,), optional
        θ to start from, user's units.
    options : NewtonOptions
    backend : {"numpy", "jax"}, optional
        What computes on NumPy data: at once in NumPy (default), or a compiled program. JAX arrays and tracers
        always go through JAX.

    Returns
    -------
    Fit
        With ``status``; nothing raises inside traced code.

    Notes
    -----
    Newton with a trust region on θ alone, unbounded. One factor: about 6 evaluations; see ``grouped.objective``.
    Several: see ``core.crossed``.
    """
    backend = programs.check_backend(options.backend if backend is None else backend)
    start = None if start is None else at_least_float(start)
    if isinstance(data, GroupData):
        return programs.run(_fit, data, start, *options.limits(data.C.dtype), reml=reml, backend=backend)
    return crossed.fit_crossed(data, reml=reml, start=start, options=options, backend=backend)


def _fit(data: GroupData, start: Array | None, tol: Any, max_iter: Any, *, reml: bool) -> Fit:
    template, moments = data.template, data.moments
    if start is None:
        x0 = moment_start(data)
    else:
        x0 = start * covariance.theta_scale(template, moments.basis.z_scale)
    N = centring.mixing(data) if namespace(data.G, data.C, x0) is np else None
    if N is None:
        found, optima = search(data, x0, tol, max_iter, reml)
    else:
        found, optima = _search_mixed(data, None if start is None else x0, N, tol, max_iter, reml)
    return assemble(found, moments, template, reml, optima)


def _search_mixed(
    data: GroupData, x0: Array | None, N: Array, tol: Any, max_iter: Any, reml: bool
) -> tuple[NewtonState, Array]:
    """``search`` in columns ZN."""
    inner, M = centring.mixed(data, N), centring.theta_map(data.template, N)
    x0 = moment_start(inner) if x0 is None else np.linalg.solve(M, x0)
    found, optima = search(inner, x0, tol, max_iter, reml)
    return centring.restored(found, M), optima


@implicit(grouped.objective)
def search(data: GroupData, x0: Array, tol: Any, max_iter: Any, reml: bool) -> tuple[NewtonState, Array]:
    """The optimum as a function of the data, and how many were seen; by the implicit function theorem in JAX."""
    template, xp = data.template, namespace(data.G, data.C)
    certain = starts.has_one_optimum(template, data.G, -1)
    searches, seen = np.int32(1), None
    n_levels = data.count.shape[-1]
    if xp is np and not certain and n_levels <= MANY_LEVELS:
        look = n_levels <= LEVELS_TO_GLIMPSE
        searches = starts.n_searches(template, data.G, -1, glimpsed=look)
        seen = starts.glimpse(template, lambda points: grouped.profile(points, data, reml)) if look else None

    def objective(x: Array) -> tuple[Array, Array, Array, AtOptimum]:
        return grouped.objective(x, data, reml)

    first = multistart.begin(x0, nothing_kept(data.n_fixed, x0))
    plan = None if xp is np and certain else starts.plan(template, searches, certain, seen)
    done = multistart.minimise(objective, first, plan, tol, max_iter)
    return done.found, done.optima


def fit_at(theta: Any, data: ModelStatistics, *, reml: bool = True) -> Fit:
    """The fit with θ held: β̂(θ), σ̂(θ), the deviance and its derivatives there; differentiable in θ and the data.

    Parameters
    ----------
    theta : (k,) relative covariance parameters, user's units of Z.
    """
    return programs.run(_fit_at, at_least_float(theta), data, reml=reml)


def _fit_at(theta: Array, data: ModelStatistics, *, reml: bool) -> Fit:
    totals = data.moments if isinstance(data, GroupData) else data
    x = theta * covariance.theta_scale(data.template, totals.basis.z_scale)
    if isinstance(data, GroupData):
        value, gradient, hessian, kept = grouped.objective(x, data, reml)
    else:
        value, gradient, hessian, kept = crossed.derivatives(x, data, reml)
    state = initial_state(x, kept)._replace(value=value, gradient=gradient, hessian=hessian)
    state = state._replace(iterations=np.int32(1), status=np.int32(Status.CONVERGED))
    return assemble(state, totals, data.template, reml)


def moment_start(data: GroupData) -> Array:
    """Scaled θ (k,) from moments of the residuals of least squares; exact REML estimates in balanced designs."""
    return starts.from_moments(data.template, *grouped.residual_moments(data))


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
