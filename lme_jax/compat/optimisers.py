"""Optimisers by name, held parameters and penalties: what ``MixedLM.fit`` offers beyond the default Newton."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # scipy.optimize loads at its first use

from ..core import covariance
from ..core import fit as core
from ..core.covariance import SINGULAR_BELOW
from ..core.records import Fit
from ..core.structures import entry
from ..core.types import Status
from ..data import ModelData
from ..errors import ConvergenceError, DataError, warn_caller
from ..inference.profile import curvature, slopes, theta_units
from .layout import PackedLayout

METHODS = ("newton", "lbfgs", "bfgs", "cg", "nm", "powell")
FIT_OPTIONS = ("gtol", "maxiter", "eps", "maxcor", "ftol", "xtol", "tol", "disp", "maxls", "m", "pgtol", "use_t")
_SCIPY = {"lbfgs": "L-BFGS-B", "bfgs": "BFGS", "cg": "CG", "nm": "Nelder-Mead", "powell": "Powell"}
# A fit counts as converged when at most this many deviance units remain to be gained, ½gᵀH⁻¹g.
REMAINING = 1e-5

History = list[dict[str, Any]]


def default_start(data: ModelData) -> np.ndarray:
    """θ (k,) of L = I in conditioned units."""
    return covariance.start(data.template, np.ones(sum(b.size for b in data.template))) / theta_units(data)


def objective(data: ModelData, reml: bool) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Deviance and exact gradient in θ, float64; +∞ where it is not finite."""

    def at(theta: np.ndarray) -> tuple[float, np.ndarray]:
        return slopes(theta, data.compressed, reml)[:2]

    return at


# ---------------------------------------------------------------- searches


def checked_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tolerances; a FutureWarning names what is not used, as statsmodels gives."""
    unknown = sorted(set(given) - set(FIT_OPTIONS))
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        warn_caller(f"Argument{plural} {', '.join(unknown)} not used by MixedLM.fit.", FutureWarning)
    return {name: value for name, value in given.items() if name in FIT_OPTIONS and name != "use_t"}


def checked_methods(method: str | Sequence[str] | None) -> list[str]:
    methods = ["newton"] if method is None else [method] if isinstance(method, str) else list(method)
    methods = [m.lower() for m in methods]
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise DataError(f"unknown method {unknown}; choose from {METHODS}")
    return methods


def search(
    data: ModelData,
    reml: bool,
    start: np.ndarray,
    free: np.ndarray,
    method: str,
    options: Mapping[str, Any],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Minimise the deviance over the free entries of θ by a named method; returns θ and what happened."""
    scale, at = theta_units(data), objective(data, reml)
    path: list[float] = []

    def reduced(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = start.copy()
        theta[free] = x / scale[free]
        value, slope = at(theta)
        path.append(value)
        return value, slope[free] / scale[free]

    x0 = start[free] * scale[free]
    if not free.any():
        x = x0
    else:
        x = minimize(reduced, x0, method, options)
    theta = start.copy()
    theta[free] = x / scale[free]
    return theta, {"method": method, "evaluations": len(path), "deviances": path, "params": theta}


def minimize(fun: Any, x0: np.ndarray, method: str, options: Mapping[str, Any]) -> np.ndarray:
    """scipy's minimiser of a (value, gradient) function, with statsmodels' names of the tolerances."""
    settings: dict[str, Any] = {}
    if "maxiter" in options:
        settings["maxiter"] = int(options["maxiter"])
    if method in ("nm", "powell"):
        names = {"xtol": "xatol", "ftol": "fatol"} if method == "nm" else {"xtol": "xtol", "ftol": "ftol"}
        settings |= {to: options.get(name, 1e-10) for name, to in names.items()}
        settings.setdefault("maxiter", 2000 * len(x0))
        settings.setdefault("maxfev", 4000 * len(x0))
        found = scipy.optimize.minimize(lambda x: fun(x)[0], x0, method=_SCIPY[method], options=settings)
    else:
        settings["gtol"] = options.get("gtol", options.get("pgtol", 1e-5))
        if method == "lbfgs":
            settings |= {"maxcor": int(options.get("maxcor", options.get("m", 10))), "ftol": options.get("ftol", 1e-14)}
        found = scipy.optimize.minimize(fun, x0, jac=True, method=_SCIPY[method], options=settings)
    return np.atleast_1d(found.x)


def newton_held(data: ModelData, reml: bool, start: np.ndarray, free: np.ndarray, gtol: float) -> np.ndarray:
    """Trust-region Newton over the free entries of θ, exact second derivatives."""
    if not free.any():
        return start
    scale = theta_units(data)[free]

    def theta_of(x: np.ndarray) -> np.ndarray:
        theta = start.copy()
        theta[free] = x / scale
        return theta

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        there = slopes(theta_of(x), data.compressed, reml)
        return there.deviance, there.gradient[free] / scale

    found = scipy.optimize.minimize(
        value,
        start[free] * scale,
        jac=True,
        hess=lambda x: curvature(theta_of(x), data.compressed, reml)[np.ix_(free, free)] / np.outer(scale, scale),
        method="trust-exact",
        options={"gtol": gtol, "maxiter": 200},
    )
    return theta_of(found.x)


def em_start(layout: PackedLayout, reml: bool, theta: np.ndarray, steps: int) -> tuple[np.ndarray, dict[str, Any]]:
    """θ after some EM steps."""
    omega, path = layout.em(layout.roots_to_omega(theta[layout.theta_order])[0], steps, reml)
    theta = layout.unpack_theta(layout.omega_to_roots(omega))
    return theta, {"method": "em", "evaluations": steps, "deviances": [-2.0 * v for v in path], "params": theta}


def ascent_start(
    data: ModelData, reml: bool, theta: np.ndarray, free: np.ndarray, steps: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """θ after some steepest-ascent steps, each halved until ℓ rises."""
    at, scale = objective(data, reml), theta_units(data)
    value, slope = at(theta)
    path, size = [value], 1.0
    for _ in range(steps):
        direction = np.where(free, -slope / scale, 0.0)
        length = np.linalg.norm(direction)
        if length == 0:
            break
        direction = direction / length
        for _ in range(60):
            trial = theta + size * direction / scale
            new, new_slope = at(trial)
            if new < value:
                break
            size *= 0.5
        else:
            break
        theta, value, slope = trial, new, new_slope
        path.append(value)
        size *= 2.0
    return theta, {"method": "steepest ascent", "evaluations": len(path), "deviances": path, "params": theta}


# ---------------------------------------------------------------- penalties


def penalised(
    layout: PackedLayout,
    reml: bool,
    theta: np.ndarray,
    fe_pen: Any,
    cov_pen: Any,
    options: Mapping[str, Any],
    method: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Maximise ℓ(β, ω) − fe_pen(β) − cov_pen(D) jointly over β and θ; returns β and θ (the data's order)."""
    p, packed = layout.data.X.shape[1], theta[layout.theta_order]
    omega = layout.roots_to_omega(packed)[0]
    beta0 = layout.gls(omega)
    hessian = layout.score_and_hessian(beta0, omega, reml)[1]
    unit = np.concatenate([1.0 / np.sqrt(-np.diag(hessian)[:p]), 1.0 / theta_units(layout.data)[layout.theta_order]])

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        beta, root = x[:p] * unit[:p], x[p:] * unit[p:]
        omega, jacobian = layout.roots_to_omega(root)
        value = layout.loglike(beta, omega, reml)
        if not np.isfinite(value):
            return np.inf, np.zeros(len(x))
        score = layout.score_and_hessian(beta, omega, reml)[0]
        if fe_pen is not None:
            value -= float(fe_pen.func(beta))
            score[:p] -= fe_pen.deriv(beta)
        if cov_pen is not None:
            cost, slope = _covariance_penalty(cov_pen, omega, layout)
            value, score[p:] = value - cost, score[p:] - slope
        if not np.isfinite(value):
            return np.inf, np.zeros(len(x))
        return -value, -np.concatenate([score[:p], jacobian.T @ score[p:]]) * unit

    start = np.concatenate([beta0, packed]) / unit
    x = minimize(fun, start, "bfgs" if method in ("newton", "lbfgs") else method, options)
    # The last digits: a line search ends where differences of the criterion are rounding, its gradient does not.
    closer = scipy.optimize.root(lambda x: fun(x)[1], x).x
    if np.abs(fun(closer)[1]).max() < np.abs(fun(x)[1]).max() and np.abs(closer - x).max() < 1e-3 * (
        1.0 + np.abs(x).max()
    ):
        x = closer
    return x[:p] * unit[:p], layout.unpack_theta(x[p:] * unit[p:])


def _covariance_penalty(pen: Any, omega: np.ndarray, layout: PackedLayout) -> tuple[float, np.ndarray]:
    """Value and slope of a penalty on D = Ψ/σ² of the correlated effects."""
    block = layout.template[0]
    slope = np.zeros(len(omega))
    if not entry(block).free:
        return 0.0, slope
    relative = np.zeros((block.size,) * 2)
    relative[np.tril_indices(block.size)] = omega[: block.n_theta]
    relative = relative + np.tril(relative, -1).T
    try:
        inverse = np.linalg.inv(relative)
    except np.linalg.LinAlgError:
        return np.inf, slope
    slope[: block.n_theta] = pen.deriv(relative, inverse)
    return float(pen.func(relative, inverse)), slope


# ---------------------------------------------------------------- the record of a point


def judged_fit(
    data: ModelData, reml: bool, theta: np.ndarray, free: np.ndarray, evaluations: int, *, searched: bool = True
) -> Fit:
    """The Fit of given θ (k,): nothing moves. Converged if the free parameters have nothing left to gain."""
    found = core.fit_at(theta, data.compressed, reml=reml)
    if int(found.status) == Status.NOT_FINITE:
        raise ConvergenceError("the deviance is not finite at these parameters: try another start or method")
    remaining = _remaining(np.asarray(found.gradient)[free], np.asarray(found.hessian)[np.ix_(free, free)])
    smallest = float(covariance.smallest_root(found.theta * theta_units(data), data.template))
    status = Status.CONVERGED if remaining < REMAINING else Status.STALLED
    if status is Status.CONVERGED and smallest < SINGULAR_BELOW:
        status = Status.SINGULAR
    if not searched:
        status = Status.MAX_ITER
    hessian = np.array(found.hessian)
    if not free.all():
        # A held parameter has no uncertainty: it is as if the deviance rose without bound beside it.
        held = ~free
        hessian[held, :] = hessian[:, held] = 0.0
        hessian[held, held] = 1e20 * max(1.0, np.abs(hessian).max())
    return dataclasses.replace(
        found,
        hessian=hessian,
        decrease=np.float64(remaining),
        status=np.int32(status),
        iterations=np.int32(evaluations),
    )


def _remaining(gradient: np.ndarray, hessian: np.ndarray) -> float:
    """½gᵀ|H|⁻¹g in deviance units; directions of no curvature and no slope do not count."""
    if len(gradient) == 0:
        return 0.0
    unit = np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
    values, vectors = np.linalg.eigh(hessian / np.outer(unit, unit))
    along = vectors.T @ (gradient / unit)
    return float(0.5 * (along**2 / np.maximum(np.abs(values), 1e-8)).sum())
