"""The oracle: every quantity of a mixed model from the dense n × n covariance, in NumPy."""

from typing import NamedTuple

import numpy as np


class Dense(NamedTuple):
    """Deviance, β̂, σ̂, Cov β̂/σ², BLUPs (m, q), Var(b|y) at fixed β and the prediction-error covariance (m, q, q)."""

    deviance: float
    beta: np.ndarray
    sigma: float
    unscaled_cov: np.ndarray
    b: np.ndarray
    conditional_cov: np.ndarray
    prediction_cov: np.ndarray


def indicator(Z, codes, m):
    """(n, m·q) design of all random effects, level by level."""
    n, q = Z.shape
    full = np.zeros((n, m, q))
    full[np.arange(n), codes] = Z
    return full.reshape(n, m * q)


def dense_fit(y, X, Z, codes, m, L, *, reml, weights=None):
    """Everything at a given relative factor L (q, q) of one grouping factor."""
    n, p = X.shape
    q = Z.shape[1]
    full = indicator(Z, codes, m)
    Psi = np.kron(np.eye(m), L @ L.T)
    w = np.ones(n) if weights is None else weights
    V = full @ Psi @ full.T + np.diag(1.0 / w)
    Vi = np.linalg.inv(V)
    XVX = X.T @ Vi @ X
    cov = np.linalg.inv(XVX) if p else np.zeros((0, 0))
    beta = cov @ (X.T @ Vi @ y)
    r = y - X @ beta
    rss = r @ Vi @ r
    N = n - (p if reml else 0)
    deviance = np.linalg.slogdet(V)[1] + N * (1 + np.log(2 * np.pi * rss / N))
    if reml:
        deviance += np.linalg.slogdet(XVX)[1]
    sigma2 = rss / N
    PZ = Psi @ full.T @ Vi
    b = PZ @ r
    conditional = sigma2 * (Psi - PZ @ full @ Psi)
    prediction = conditional + sigma2 * PZ @ X @ cov @ X.T @ PZ.T

    def blocks(M):
        return np.array([M[i * q : (i + 1) * q, i * q : (i + 1) * q] for i in range(m)])

    return Dense(deviance, beta, np.sqrt(sigma2), cov, b.reshape(m, q), blocks(conditional), blocks(prediction))


def random_design(seed, *, n=90, m=9, p=3, q=2, weighted=False, balanced=False):
    """y, X, Z, codes, m, weights of a random one-factor design; balanced ones share ZᵀZ exactly."""
    rng = np.random.default_rng(seed)
    if balanced:
        visits = np.repeat(np.arange(n // m), m).reshape(n // m, m).T.ravel().astype(float)
        codes = np.repeat(np.arange(m), n // m)
        x = visits
    else:
        codes = np.concatenate([np.arange(m), rng.integers(0, m, n - m)])
        x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x, rng.normal(size=(n, max(p - 2, 0)))])[:, :p]
    Z = np.column_stack([np.ones(n), x, rng.normal(size=(n, max(q - 2, 0)))])[:, :q]
    y = 1.0 + 2.0 * x + (Z * rng.normal(size=(m, q))[codes]).sum(1) + rng.normal(size=n)
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    return y, X, Z, codes, m, weights
