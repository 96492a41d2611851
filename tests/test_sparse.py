"""Crossed designs of many effects: panels of a large dense system."""

import numpy as np
import pytest

from lme_jax.core import panels


@pytest.mark.parametrize("K", [7, 24, 31])
def test_panels_are_lapack(K, monkeypatch):
    monkeypatch.setattr(panels, "WHOLE", 4)
    monkeypatch.setattr(panels, "PANEL", 6)
    rng = np.random.default_rng(K)
    half = rng.normal(size=(K, K))
    S = half @ half.T + np.eye(K)
    # What stands above the diagonal must not be read.
    L = np.tril(S) + np.triu(rng.normal(size=(K, K)), 1)
    assert panels.factor(L)
    np.testing.assert_allclose(np.tril(L), np.linalg.cholesky(S), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.tril(panels.inverse(L)), np.tril(np.linalg.inv(S)), rtol=1e-9, atol=1e-12)
    assert not panels.factor(S - 2.0 * np.linalg.eigvalsh(S)[0] * np.eye(K))
