"""Fit: starts from moments → Newton on (θ, ρ, δ) → a record of arrays."""

from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from .. import covariance, multistart
from ..optimize import NewtonOptions, NewtonState, initial_state
from ..profiled import estimates, nothing_kept
from ..types import Status
from . import objective
from .data import BlockData
from .families import NEAR_EDGE
from .starts import starts

# Further searches where an end is in doubt, and always where a range and a nugget make several optima likely.
FURTHER = 3
# Rows from which a range alone is searched once.
MANY_ROWS = 10_000
# A deviance that falls by this for each tenth of what vanishes has no minimum there.
FALLS = 0.1
# What must not vanish at the optimum of some of the rows, if a search of all is to begin there.
INNER = 0.05
# What a search that stalled on an edge might still have gained, at most.
GAINED = 1e-6
DECADES = 5
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
    if not len(xs[0]):
        value, gradient, hessian, kept = objective.evaluate(xs[0], data, reml)
        state = initial_state(xs[0], kept)._replace(value=value, gradient=gradient, hessian=hessian)
        return state._replace(decrease=np.float64(0.0), iterations=np.int32(1), status=np.int32(Status.CONVERGED)), 1
    always = len(xs) > 1 and _has_several_optima(data)
    further = _apart(xs)[: FURTHER + 1]

    def again(s: multistart.Multistart) -> Any:
        doubtful = s.best.status != Status.CONVERGED
        singular = s.best.status == Status.CONVERGED and smallest(s.best.x, data) < covariance.SINGULAR_BELOW
        return np.bool_(s.attempt + 1 < len(further) and (always or doubtful or singular))

    plan = multistart.Plan(again, lambda s: further[int(s.attempt) + 1]) if len(further) > 1 else None
    first = multistart.begin(further[0], nothing_kept(data.n_fixed, further[0]))
    # Where the likelihood has no bound a search goes until numbers overflow.
    with np.errstate(all="ignore"):
        done = multistart.minimise(lambda x: objective.evaluate(x, data, reml), first, plan, tol, max_iter)
    return done.found, done.optima


def _has_several_optima(data: BlockData) -> bool:
    """Whether an optimum is to be earned twice: range beside nugget, AR beside MA, constant beside power; any range."""
    model = data.model
    doubtful = model.settings.get("nugget") or model.word == "arma" or "constpower" in dict(model.variances)
    return bool(doubtful or (model.family.distance and len(data.y) <= MANY_ROWS))


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
    for here, (word, _) in zip(model.delta, model.variances, strict=True):
        if word == "ident":
            found += np.exp(-np.abs(x[here])).tolist()
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
    least = smallest(found.x, data)
    converged = found.status == Status.CONVERGED
    if converged:
        return int(Status.SINGULAR if least < covariance.SINGULAR_BELOW else Status.CONVERGED)
    if least < NEAR_EDGE and (_lacks_patients(data) or _is_unbounded(found, data, reml)):
        return int(Status.UNBOUNDED)
    # A deviance that only approaches its infimum leaves a search nothing to gain and no curvature to trust.
    plateau = least < covariance.SINGULAR_BELOW and found.decrease < GAINED
    return int(Status.SINGULAR if plateau else found.status)


def _lacks_patients(data: BlockData) -> bool:
    """Whether fewer subjects of an arm than visits are complete, so that an unstructured Σ has no maximum of ℓ.

    What ℓ gains from their null direction nothing outweighs; a search may all the same have ended in a local maximum.
    """
    model = data.model
    if not model.family.each or model.bars or len(data.stacks) > 1:
        return False
    stack = data.stacks[0]
    complete = stack.copies * (stack.present.sum(1) == model.n_visits)
    arm = stack.at.group[np.arange(len(complete)), stack.present.argmax(1)]
    return bool((np.bincount(arm, complete, model.n_groups) < model.n_visits).any())


def _is_unbounded(found: NewtonState, data: BlockData, reml: bool) -> bool:
    """Whether the deviance falls as the logarithm of what vanishes: by as much in two successive decades.

    The last decades that a search saw may be rounding.
    """
    values = [float(found.value)]
    x = found.x
    for _ in range(DECADES):
        x = _blunter(x, data)
        at = objective.point(x, data, reml)
        values.append(np.nan if at is None else float(at.value))
    falls = np.diff(values)
    near, far = falls[:-1], falls[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return bool(((near > FALLS) & (far > FALLS) & (far < 2.0 * near) & (near < 2.0 * far)).any())


def _blunter(x: np.ndarray, data: BlockData) -> np.ndarray:
    """x with all that nearly vanishes tenfold: edges of the correlation, and scales of strata."""
    model, out = data.model, x.copy()
    for a in range(model.n_groups):
        mine = model.arm(a)[1]
        if model.family.blunter is not None:
            out[mine] = model.family.blunter(x[mine], model.n_visits)
    for here, (word, _) in zip(model.delta, model.variances, strict=True):
        if word == "ident":
            far = np.abs(x[here]) > -np.log(NEAR_EDGE)
            out[here] = np.where(far, x[here] - np.sign(x[here]) * np.log(10.0), x[here])
    return out


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
