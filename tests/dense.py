"""Random one-factor designs as arrays."""

import numpy as np


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
