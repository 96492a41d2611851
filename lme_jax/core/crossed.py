"""Models with several grouping factors: deviance and fit, nested chains and crossed designs (MATH §5).

Four engines hold V, all with the verbs of ``criterion.Engine``: ``small`` for few effects of any kind, ``nested`` for
chains, ``dense`` for what is crossed, ``sparse`` where few levels meet. NumPy data go through them at once. JAX arrays,
and NumPy data with ``backend="jax"``, go through compiled programs of log|V| and H, which JAX differentiates.
"""

from functools import partial
from typing import Any

import numpy as np

from . import covariance, criterion, multistart, pattern, programs
from .crossed_data import MEMORY_LIMIT, CrossedData, NestedData, compress_crossed
from .crossed_start import moment_start
from .dense import Dense
from .implicit import implicit
from .nested import Nested
from .optimize import NewtonOptions, NewtonState
from .profiled import AtOptimum, nothing_kept, profiled_deviance
from .programs import Backend
from .records import Fit, assemble, with_hessian
from .small import FURTHER_STARTS, SMALL, Small
from .sparse import Sparse
from .types import Array, at_least_float, namespace

__all__ = [
    "MEMORY_LIMIT",
    "CrossedData",
    "NestedData",
    "compress_crossed",
    "derivatives",
    "deviance",
    "engine_of",
    "fit_crossed",
    "hessian",
    "log_det_and_cross",
]

Data = CrossedData | NestedData

# A singular dense factor's exact traces are taken this far inside the boundary, in scaled θ.
NUDGE = 1e-5


def engine_of(data: Data) -> criterion.Engine:
    """The engine that suits NumPy data."""
    if sum(q * m for q, m in zip(data.layout.sizes, data.layout.levels, strict=True)) <= SMALL:
        return Small(data)
    if isinstance(data, NestedData):
        return Nested(data)
    met = pattern.pattern_of(data)
    return Dense(data) if met is None else Sparse(data, met)


def log_det_and_cross(theta: Array, data: Data) -> tuple[Array, Array]:
    """log|V| () and H = [X y]ᵀV⁻¹[X y] (p+1, p+1) in the conditioned basis, at scaled θ.

    Of JAX arrays, differentiable to any order in θ and in the data.

    Notes
    -----
    Nested: O(Σ m_j w_j²) with w_j the width of what is left. Crossed: K³/3 + O(T) for T pair products;
    a derivative adds one inverse, a second one 4K³ per direction.
    """
    Ls = criterion.factors(theta, data.template, data.layout.sizes)
    if namespace(theta, data.WtW) is not np:
        solved = traced_engine(data).solve(Ls)
        return solved.log_det, solved.H
    solved = engine_of(data).solve(Ls)
    w = len(data.WtW)
    return (solved.log_det, solved.H) if solved is not None else (np.float64(np.nan), np.full((w, w), np.nan))


def traced_engine(data: Data) -> Any:
    """An engine of JAX arrays: solve, project, rooted_traces and variances, differentiable to any order."""
    if isinstance(data, NestedData):
        return Nested(data)
    from .crossed_rules import Traced

    return Traced(data)


# ---------------------------------------------------------------- deviance and derivatives


def deviance(theta: Array, data: Data, *, reml: bool = True) -> Array:
    """Profiled deviance (−2 log L, or the REML criterion) at θ in the user's units of Z; see ``fit.deviance``."""
    return programs.run(_deviance, at_least_float(theta), data, reml=reml)


def _deviance(theta: Array, data: Data, *, reml: bool) -> Array:
    scaled = theta * covariance.theta_scale(data.template, data.basis.z_scale)
    return profiled_deviance(*log_det_and_cross(scaled, data), data, reml)


def derivatives(theta: Array, data: Data, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (), gradient (k,) and exact Hessian (k, k) at scaled θ, and what the fit keeps."""
    if namespace(theta, data.WtW) is np:
        return _exactly(engine_of(data), theta, data, reml)
    return criterion.differentiated(traced_engine(data), theta, data, reml)


def _exactly(engine: criterion.Engine, theta: np.ndarray, data: Data, reml: bool) -> tuple[Any, ...]:
    found = criterion.objective(engine, data, reml, exact=not isinstance(engine, Dense))(theta)
    if not isinstance(engine, Dense):
        return found
    inside = theta
    if covariance.smallest_root(theta, data.template) < 10.0 * NUDGE:
        # The exact traces divide by L: take them a hair inside, where they differ by O(NUDGE).
        unit = covariance.start(data.template, np.ones(len(data.basis.z_scale)))
        inside = theta + NUDGE * unit * np.where(theta < 0, -1.0, 1.0)
    return *found[:2], criterion.objective(engine, data, reml, exact=True)(inside)[2], found[3]


def hessian(theta: Any, data: Data, *, reml: bool = True) -> Any:
    """Exact Hessian (k, k) of the deviance at θ, user's units.

    Notes
    -----
    NumPy data: closed form. Chains: some 4 evaluations per parameter. Crossed designs: 2K³ operations per parameter
    of the first factor; where a dense factor is singular it is taken 1e-5 inside the boundary.
    """
    return programs.run(_hessian, at_least_float(theta), data, reml=reml)


def _hessian(theta: Array, data: Data, *, reml: bool) -> Array:
    scale = covariance.theta_scale(data.template, data.basis.z_scale)
    return derivatives(theta * scale, data, reml)[2] * scale[:, None] * scale[None]


# ---------------------------------------------------------------- fit


def fit_crossed(
    data: Data,
    *,
    reml: bool = True,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
    backend: Backend | None = None,
) -> Fit:
    """Maximum-likelihood or REML fit of a model with several grouping factors.

    Parameters
    ----------
    data : from ``compress_crossed``.
    reml : bool, static.
    start : (k,), optional
        θ to start from, user's units, factors in the caller's order; moment estimates if None.
    options : NewtonOptions
    backend : {"numpy", "jax"}, optional
        What computes on NumPy data; NumPy by default.

    Returns
    -------
    Fit
        θ concatenated over the caller's factors; ``relative_factor`` (Σq, Σq) is block diagonal.

    Notes
    -----
    Newton with a trust region. On NumPy data of many effects each of about 8 evaluations costs one Cholesky factor and
    one inverse of the dense system (K³ operations), or one pass over the chain, with the average information as
    curvature; the exact Hessian is computed when it is first read. Small designs and compiled programs take
    the exact one.
    """
    start = None if start is None else at_least_float(start)
    tol, max_iter = options.limits(data.WtW.dtype)
    return programs.run(_fit, data, start, tol, max_iter, reml=reml, backend=programs.check_backend(backend))


def _fit(data: Data, start: Array | None, tol: Any, max_iter: Any, *, reml: bool) -> Fit:
    scale = covariance.theta_scale(data.template, data.basis.z_scale)
    x0 = (moment_start(data) if start is None else start) * scale
    if namespace(x0, data.WtW) is not np:
        found, optima = search(data, x0, tol, max_iter, reml)
        return assemble(found, data, data.template, reml, optima)
    engine = engine_of(data)
    found, optima = criterion.search(engine, data, x0, tol, max_iter, reml)
    fitted = assemble(found, data, data.template, reml, optima)
    return fitted if engine.exact else with_hessian(fitted, partial(hessian, fitted.theta, data, reml=reml))


@implicit(derivatives)
def search(data: Data, x0: Array, tol: Any, max_iter: Any, reml: bool) -> tuple[NewtonState, Array]:
    """The optimum of JAX arrays as a function of the data, and how many were seen."""
    first, plan = multistart.begin(x0, nothing_kept(data.n_fixed, x0)), criterion.plan(data, FURTHER_STARTS)
    done = multistart.minimise(lambda x: derivatives(x, data, reml), first, plan, tol, max_iter)
    return done.found, done.optima
