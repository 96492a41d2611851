"""Fit: starts from moments → Newton on (θ, ρ, δ) → a record of arrays."""

from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from .. import covariance, multistart
from ..optimize import NewtonOptions, NewtonState
from ..profiled import estimates, nothing_kept
from ..types import Status
from . import objective
from .data import BlockData
from .starts import starts

# Further searches where an end is in doubt, and always where a range and a nugget make several optima likely.
FURTHER = 3
# A deviance that falls by this for a smallest root a tenth of what it is has no minimum there.
FALLS = 0.1
# What must not vanish at the optimum of some of the rows, if a search of all is to begin there.
INNER = 0.05
# The curvature of the deviance in a direction, search's units, below which it counts as not told: SE > 2.
FLAT = 0.5


class ResidualFit(NamedTuple):
    """A fit: arrays only.

    Attributes
    ----------
    params : (k,) all that is searched: θ of the bars, then the correlation's, then the variance functions'.
    beta : (p,); unscaled_cov : (p, p) with Cov β̂ = σ²·unscaled_cov; sigma : ().
    deviance : () −2 log L or the REML criterion; gradient (k,), hessian (k, k) of it in params.
    log_scale_slope : (k,) ∂ log σ̂²/∂params.
    decrease : () ½gᵀH⁻¹g; status : ``core.types.Status``; n_iter : evaluations; optima : distinct optima seen.
    flat : (k,) a unit direction of params, in the search's units, that the data hardly tell; zeros where there is none.
    """

    params: np.ndarray
    beta: np.ndarray
    unscaled_cov: np.ndarray
    sigma: float
    deviance: float
    gradient: np.ndarray
    hessian: np.ndarray
    log_scale_slope: np.ndarray
    decrease: float
    status: int
    n_iter: int
    optima: int
    flat: np.ndarray


def fit(
    data: BlockData, *, reml: bool = True, start: Any = None, options: NewtonOptions = NewtonOptions()
) -> ResidualFit:
    """Maximum-likelihood or REML fit of what ``residual.data.compress`` returned.

    Parameters
    ----------
    start : (k,), optional
        params to start from; several searches are made from moments otherwise, where one may not be enough.
    """
    xs = ranked(data, reml) if start is None else [_read(start, data) * data.unit]
    found, optima = _search(data, xs, *options.limits(np.float64), reml=reml)
    return _assembled(found, int(optima), data, reml)


def deviance(params: Any, data: BlockData, *, reml: bool = True) -> float:
    """−2 log L, or the REML criterion, at params; NaN where V is not positive definite."""
    at = objective.point(_read(params, data) * data.unit, data, reml)
    return float("nan") if at is None else float(at.value)


def fit_at(params: Any, data: BlockData, *, reml: bool = True) -> ResidualFit:
    """The fit with the covariance parameters held."""
    x = _read(params, data) * data.unit
    return fit(data, reml=reml, start=x / data.unit, options=NewtonOptions(max_iter=1))


def _read(params: Any, data: BlockData) -> np.ndarray:
    values = np.asarray(params, float)
    if values.shape != (data.model.size,) or not np.isfinite(values).all():
        raise DataError(f"params of shape {values.shape}: give {data.model.size} finite numbers, as a fit holds them")
    return values


def ranked(data: BlockData, reml: bool) -> list[np.ndarray]:
    """Starts, the lowest first; of long data the optimum of some of the rows, then theirs."""
    if data.sample is not None:
        xs = ranked(data.sample, reml)
        near = _search(data.sample, xs, *NewtonOptions().limits(np.float64), reml=reml)[0]
        inner = near.status == Status.CONVERGED and smallest(near.x, data.sample) > INNER
        return [near.x, *xs] if inner else xs
    xs = starts(data)
    if len(xs) == 1:
        return xs
    points = [objective.point(x, data, reml) for x in xs]
    values = np.array([np.inf if at is None else float(at.value) for at in points])
    return [xs[i] for i in np.argsort(values, kind="stable")]


def _search(data: BlockData, xs: list[np.ndarray], tol: Any, max_iter: Any, *, reml: bool) -> tuple[NewtonState, Any]:
    always = len(xs) > 1 and bool(data.model.settings.get("nugget") or data.model.word == "arma")
    further = _apart(xs)[: FURTHER + 1]

    def again(s: multistart.Multistart) -> Any:
        doubtful = s.best.status != Status.CONVERGED
        singular = s.best.status == Status.CONVERGED and smallest(s.best.x, data) < covariance.SINGULAR_BELOW
        return np.bool_(s.attempt + 1 < len(further) and (always or doubtful or singular))

    plan = multistart.Plan(again, lambda s: further[int(s.attempt) + 1]) if len(further) > 1 else None
    first = multistart.begin(further[0], nothing_kept(data.n_fixed, further[0]))
    done = multistart.minimise(lambda x: objective.evaluate(x, data, reml), first, plan, tol, max_iter)
    return done.found, done.optima


def _apart(xs: list[np.ndarray]) -> list[np.ndarray]:
    """The first, and those that are not near an earlier one."""
    kept: list[np.ndarray] = []
    for x in xs:
        if all(np.abs(x - other).max(initial=0.0) > 0.3 for other in kept):
            kept.append(x)
    return kept


def smallest(x: np.ndarray, data: BlockData) -> float:
    """What vanishes at a singular fit: the least conditional standard deviation of bars and correlation."""
    model = data.model
    found = [1.0]
    for here, block in zip(model.theta, model.bars, strict=True):
        found.append(float(covariance.smallest_root(x[here], (block,))))
    for a in range(model.n_groups):
        found += np.abs(model.family.edges(x[model.arm(a)[1]], model.n_visits, model.settings)).tolist()
    return min(found)


def _assembled(found: NewtonState, optima: int, data: BlockData, reml: bool) -> ResidualFit:
    gls = estimates(found.aux.H, data, reml)
    x, unit = found.x, data.unit
    return ResidualFit(
        params=x / unit,
        beta=gls.beta,
        unscaled_cov=gls.unscaled_cov,
        sigma=float(gls.sigma),
        deviance=float(found.value),
        gradient=found.gradient * unit,
        hessian=found.hessian * np.outer(unit, unit),
        log_scale_slope=found.aux.log_scale_slope * unit,
        decrease=float(found.decrease),
        status=_status(found, gls, data, reml),
        n_iter=int(found.iterations),
        optima=optima,
        flat=_flat(found, data),
    )


def _status(found: NewtonState, gls: Any, data: BlockData, reml: bool) -> int:
    finite = np.isfinite(found.value) and np.isfinite(gls.sigma) and np.isfinite(gls.beta).all()
    if not finite:
        return int(Status.NOT_FINITE)
    if smallest(found.x, data) >= covariance.SINGULAR_BELOW:
        return int(found.status)
    if _is_unbounded(found, data, reml):
        return int(Status.UNBOUNDED)
    return int(Status.SINGULAR if found.status == Status.CONVERGED else found.status)


def _is_unbounded(found: NewtonState, data: BlockData, reml: bool) -> bool:
    """Whether the deviance goes on falling as an unstructured Σ becomes singular."""
    model = data.model
    if not model.family.each:
        return False
    x = found.x.copy()
    for a in range(model.n_groups):
        mine = model.arm(a)[1]
        edges = model.family.edges(x[mine], model.n_visits, model.settings)
        t = int(np.argmin(edges[1:])) + 1
        if edges[t] < covariance.SINGULAR_BELOW:
            at = mine.start + t * (t + 1) // 2 + t - 1
            x[at] *= 0.1
    beyond = objective.point(x, data, reml)
    return beyond is not None and float(beyond.value) < float(found.value) - FALLS


def _flat(found: NewtonState, data: BlockData) -> np.ndarray:
    """The direction of least curvature where that is small, standard deviations on a logarithmic scale."""
    model, x = data.model, found.x
    if not len(x) or not np.isfinite(found.hessian).all():
        return np.zeros(len(x))
    size = np.ones(len(x))
    roots = [*model.theta, *(model.arm(a)[1] for a in range(model.n_groups) if model.family.each)]
    for here in roots:
        size[here] = max(1.0, float(np.abs(x[here]).max(initial=0.0)))
    values, vectors = np.linalg.eigh(found.hessian * np.outer(size, size))
    return vectors[:, 0] if values[0] < FLAT else np.zeros(len(x))
