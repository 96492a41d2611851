"""Wald standard errors: fixed effects from generalised least squares, variances from the Hessian."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.special

from ..core.covariance import Template, packed_positions, squared_derivatives
from ..core.records import Fit
from ..core.types import Status
from ..errors import DataError


class WaldTable(NamedTuple):
    """Estimate, standard error, z, two-sided normal p-value and confidence limits, each (p,)."""

    estimate: np.ndarray
    se: np.ndarray
    z: np.ndarray
    p_value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def check_alpha(alpha: Any) -> float:
    """The share left outside of the limits, in (0, 1)."""
    if not isinstance(alpha, (int, float, np.number)) or not 0.0 < alpha < 1.0:
        raise DataError(f"alpha={alpha!r} must lie between 0 and 1: 0.05 gives limits of 95 %")
    return float(alpha)


def wald_table(estimate: np.ndarray, se: np.ndarray, alpha: float = 0.05) -> WaldTable:
    """Normal-theory table of estimates (p,) with standard errors (p,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = estimate / se
    half = scipy.special.ndtri(1.0 - check_alpha(alpha) / 2.0) * se
    return WaldTable(estimate, se, z, 2.0 * scipy.special.ndtr(-np.abs(z)), estimate - half, estimate + half)


def variance_parameter_covariance(fit: Fit, dof: Any) -> np.ndarray:
    """Asymptotic covariance (*lanes, k + 1, k + 1) of (θ̂, log σ̂²) from the profiled deviance.

    With g = ∂ log σ̂²/∂θ: Cov θ̂ = 2H⁻¹, Cov(θ̂, log σ̂²) = Cov(θ̂)g, Var(log σ̂²) = 2/N + gᵀCov(θ̂)g.
    All NaN where H is not positive definite or the fit is singular: on the boundary the normal
    approximation does not hold, and no standard error is better than a wrong one.

    Parameters
    ----------
    fit : of one model, or of many with a leading axis over the lanes.
    dof : N, the number of rows (ML) or rows less fixed effects (REML), per lane or shared.
    """
    hessian = np.asarray(fit.hessian)
    k = hessian.shape[-1]
    scale = np.sqrt(np.abs(np.diagonal(hessian, axis1=-2, axis2=-1)))
    regular = (np.asarray(fit.status) == Status.CONVERGED) & np.isfinite(hessian).all((-2, -1)) & (scale > 0).all(-1)
    safe = np.where(regular[..., None, None], hessian, np.eye(k))
    unit = np.where(regular[..., None], scale, 1.0)
    regular &= np.linalg.eigvalsh(safe / unit[..., :, None] / unit[..., None, :])[..., 0] > 0
    cov = 2.0 * np.linalg.inv(np.where(regular[..., None, None], hessian, np.eye(k)))
    slope = np.asarray(fit.log_scale_slope)
    cross = np.einsum("...ij,...j->...i", cov, slope)
    joint = np.empty((*regular.shape, k + 1, k + 1))
    joint[..., :k, :k] = cov
    joint[..., :k, k] = joint[..., k, :k] = cross
    dof = np.asarray(dof, float)
    joint[..., k, k] = 2.0 / np.where(dof > 0, dof, np.nan) + (slope * cross).sum(-1)
    return np.where(regular[..., None, None], joint, np.nan)


def covariance_standard_errors(fit: Fit, template: Template, dof: Any) -> np.ndarray:
    """Standard errors (*lanes, q, q) of Ψ = σ²LLᵀ by the delta method, response units²."""
    joint = variance_parameter_covariance(fit, dof)
    L, sigma2 = np.asarray(fit.relative_factor), np.asarray(fit.sigma)[..., None, None, None] ** 2
    slopes = squared_derivatives(np.moveaxis(np.asarray(fit.theta), -1, 0), template)[0]
    steps = np.moveaxis(slopes[packed_positions(L.shape[-1])], (2, 0, 1), (-3, -2, -1))
    own = np.einsum("...ij,...kj->...ik", L, L)[..., None, :, :]
    jacobian = np.concatenate([steps, own], axis=-3) * sigma2
    return np.sqrt(np.einsum("...aij,...ab,...bij->...ij", jacobian, joint, jacobian))


def chosen_covariance(cov: pd.DataFrame, r_matrix: Any, column: Any) -> Any:
    """The covariance, the part of some positions (``column``), or R·cov·Rᵀ."""
    if column is not None:
        places = np.atleast_1d(column)
        picked = cov.to_numpy()[np.ix_(places, places)]
        return picked[0, 0] if np.ndim(column) == 0 else picked
    if r_matrix is None:
        return cov
    r = np.asarray(r_matrix, float)
    return r @ cov.to_numpy() @ r.T
