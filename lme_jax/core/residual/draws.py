"""Covariances of all rows at a fit: standard deviations, matrices of the visits, noise with the fitted correlations."""

import numpy as np

from .data import BlockData
from .fit import ResidualFit
from .model import grids, pattern
from .stacks import Stack


def visit_covariances(fit: ResidualFit, data: BlockData) -> np.ndarray:
    """(A, T, T) covariance of residuals at all visits, per arm; of structures by visit, without variance functions."""
    return fit.sigma**2 * grids(data.model, fit.params * data.unit)[0]


def coloured(fit: ResidualFit, data: BlockData, z: np.ndarray, *, marginal: bool) -> np.ndarray:
    """Noise (n, m) of the covariance of the residuals, or if ``marginal`` of the responses, from white z (n, m)."""
    out = np.empty_like(z)
    for stack in data.stacks:
        L = np.linalg.cholesky(_covariance(fit, data, stack, marginal))
        here = stack.rows >= 0
        drawn = np.where(here[:, :, None], z[stack.rows], 0.0)
        out[stack.rows[here]] = (L[stack.member] @ drawn)[here]
    return fit.sigma * out / _root_weights(data)[:, None]


def _covariance(fit: ResidualFit, data: BlockData, stack: Stack, marginal: bool) -> np.ndarray:
    """(P, n, n) V or R of a stack, σ = 1, the identity where it has no rows."""
    at = pattern(data.model, fit.params * data.unit, stack, derivatives=False)
    if marginal:
        return at.V
    return at.R + np.eye(at.R.shape[1]) * (~stack.present)[:, :, None]


def _root_weights(data: BlockData) -> np.ndarray:
    return np.ones(len(data.y)) if data.weights is None else np.sqrt(data.weights)
