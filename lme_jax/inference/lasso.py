"""Fixed effects under an L1 penalty, the covariance held."""

from typing import Any

import numpy as np


def lasso(cov: np.ndarray, beta_hat: np.ndarray, alpha: np.ndarray, start: Any, tol: float, maxit: int) -> np.ndarray:
    """argmin (β − β̂)ᵀC⁻¹(β − β̂) + Σ α|β| by cyclic coordinate descent; C the GLS covariance of β̂."""
    precision = np.linalg.inv(cov)
    beta = beta_hat.copy() if start is None else np.asarray(start, float)[: len(beta_hat)].copy()
    unit = 1.0 / np.sqrt(np.diag(precision))
    for _ in range(maxit):
        before = beta.copy()
        for j in range(len(beta)):
            pull = precision[j] @ (beta_hat - beta) + precision[j, j] * beta[j]
            beta[j] = np.sign(pull) * max(abs(pull) - 0.5 * alpha[j], 0.0) / precision[j, j]
        if np.max(np.abs(beta - before) / unit) < tol:
            break
    return beta
