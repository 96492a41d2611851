"""Wald standard errors: fixed effects from generalised least squares, variances from the Hessian."""

from typing import NamedTuple

import numpy as np
import scipy.special

from ..core.covariance import Template, factor_basis
from ..core.records import Fit
from ..core.types import Status


class WaldTable(NamedTuple):
    """Estimate, standard error, z, two-sided normal p-value and confidence limits, each (p,)."""

    estimate: np.ndarray
    se: np.ndarray
    z: np.ndarray
    p_value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def wald_table(estimate: np.ndarray, se: np.ndarray, alpha: float = 0.05) -> WaldTable:
    """Normal-theory table of estimates (p,) with standard errors (p,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = estimate / se
    half = scipy.special.ndtri(1.0 - alpha / 2.0) * se
    return WaldTable(estimate, se, z, 2.0 * scipy.special.ndtr(-np.abs(z)), estimate - half, estimate + half)


def variance_parameter_covariance(fit: Fit, dof: float) -> np.ndarray:
    """Asymptotic covariance (k + 1, k + 1) of (θ̂, log σ̂²) from the profiled deviance.

    With g = ∂ log σ̂²/∂θ: Cov θ̂ = 2H⁻¹, Cov(θ̂, log σ̂²) = Cov(θ̂)g, Var(log σ̂²) = 2/N + gᵀCov(θ̂)g.
    All NaN where H is not positive definite or the fit is singular: on the boundary the normal
    approximation does not hold, and no standard error is better than a wrong one.

    Parameters
    ----------
    dof : N, the number of rows (ML) or rows less fixed effects (REML).
    """
    k = len(fit.theta)
    hessian = np.asarray(fit.hessian)
    scale = np.sqrt(np.abs(np.diag(hessian)))
    if int(fit.status) != Status.CONVERGED or np.linalg.eigvalsh(hessian / np.outer(scale, scale)).min() <= 0:
        return np.full((k + 1, k + 1), np.nan)
    cov = 2.0 * np.linalg.inv(hessian)
    cross = cov @ fit.log_scale_slope
    variance = 2.0 / dof + fit.log_scale_slope @ cross
    return np.block([[cov, cross[:, None]], [cross[None, :], variance]])


def covariance_standard_errors(fit: Fit, template: Template, dof: float) -> np.ndarray:
    """Standard errors (q, q) of Ψ = σ²LLᵀ by the delta method, response units²; NaN for AR(1) blocks."""
    joint = variance_parameter_covariance(fit, dof)
    L, sigma2 = np.asarray(fit.relative_factor), float(fit.sigma) ** 2
    steps = np.zeros((len(fit.theta), *L.shape))
    column = row = 0
    for block in template:
        part = slice(column, column + block.size)
        linear = block.structure != "ar1" or block.size == 1
        steps[row : row + block.n_theta, part, part] = factor_basis(block) if linear else np.nan
        column, row = column + block.size, row + block.n_theta
    root = np.einsum("aij,kj->aik", steps, L)
    jacobian = np.concatenate([root + np.swapaxes(root, 1, 2), (L @ L.T)[None]]) * sigma2
    return np.sqrt(np.einsum("aij,ab,bij->ij", jacobian, joint, jacobian))
