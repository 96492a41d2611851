"""What a fit leaves behind: arrays in frozen pytrees, whichever engine made them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from . import covariance
from .covariance import Template
from .optimize import NewtonState
from .profiled import RowTotals, estimates
from .types import Array, Status, namespace, pytree


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
    gradient, hessian : (k,), (k, k) of the deviance in θ; of large models with several factors the Hessian is
        computed when it is first read.
    log_scale_slope : (k,) ∂ log σ̂²/∂θ of the profiled σ̂².
    decrease : () ½gᵀH⁻¹g, the scale-free gradient, in deviance units.
    iterations, status : () int32; see ``Status``. optima : () int32, distinct optima that the searches ended in.
    compiled : () bool, whether a compiled program made it, or NumPy.
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
    optima: Array
    compiled: Array


class _ComputedWhenRead:
    """A field of ``Fit`` that may be given as a function of no arguments: called when the field is first read."""

    def __set__(self, fit: Fit, value: Any) -> None:
        fit.__dict__["hessian"] = value

    def __get__(self, fit: Fit | None, owner: type) -> Any:
        if fit is None:
            return self
        value = fit.__dict__["hessian"]
        if callable(value):
            value = fit.__dict__["hessian"] = value()
        return value


def _read(fit: Fit) -> dict[str, Any]:
    """The state to pickle: what is not computed yet would take the data along."""
    return {field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)}


# After the dataclass is made, so that the field has no default.
Fit.hessian = _ComputedWhenRead()
Fit.__getstate__ = _read  # type: ignore[method-assign,assignment]


def with_hessian(fit: Fit, compute: Callable[[], Array]) -> Fit:
    """The fit with a Hessian that is computed when it is first read; what ``compute`` holds is held till then."""
    return dataclasses.replace(fit, hessian=compute)


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


def assemble(found: NewtonState, totals: RowTotals, template: Template, reml: bool, optima: Any = 1) -> Fit:
    """The Fit of a finished search over scaled θ: canonical signs, GLS estimates, the user's units.

    Lanes stay on the last axes here.
    """
    xp = namespace(found.x, found.value)
    scale = covariance.theta_scale(template, totals.basis.z_scale)
    theta, sign = covariance.canonical(found.x, template)
    gls = estimates(found.aux.H, totals, reml)
    singular = covariance.smallest_root(theta, template) < covariance.SINGULAR_BELOW
    status = xp.where((found.status == Status.CONVERGED) & singular, np.int32(Status.SINGULAR), found.status)
    finite = xp.isfinite(found.value) & xp.isfinite(gls.sigma) & xp.isfinite(gls.beta).all(0)
    user_theta, to_user = theta / scale, sign * scale
    return Fit(
        theta=user_theta,
        relative_factor=covariance.factor(user_theta, template),
        beta=gls.beta,
        sigma=gls.sigma,
        unscaled_cov=gls.unscaled_cov,
        deviance=found.value,
        gradient=found.gradient * to_user,
        hessian=found.hessian * to_user[:, None] * to_user[None],
        log_scale_slope=found.aux.log_scale_slope * to_user,
        decrease=found.decrease,
        iterations=found.iterations,
        status=xp.where(finite, status, np.int32(Status.NOT_FINITE)),
        optima=optima + xp.zeros_like(found.iterations),
        compiled=xp.full(xp.shape(found.status), xp is not np),
    )
