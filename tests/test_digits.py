"""Digits of the profiled residual sum of squares where effects are far larger than residuals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import exact

from lme_jax.core import compression, covariance, fit, grouped, lanes
from lme_jax.core.data_sets import DataSets
from lme_jax.core.lane_data import SharedDesign
from lme_jax.core.types import Status

RATIOS = (1e2, 1e4, 1e6)
TIGHT = 1e-9
# Before within-level sums: 1e-11, 1e-7 and 1e-3 at these ratios.


def design(seed, q, ratio, *, balanced=False, offset=0.0, mean=0.0, weights=None, levels=12):
    """y, X, Z, codes, weights: effects ``ratio`` times as large as residuals; X varies within and between levels."""
    rng = np.random.default_rng(seed)
    if balanced:
        codes = np.repeat(np.arange(levels), 8)
        x, z = np.tile(np.arange(8.0), levels), np.tile(rng.normal(size=8), levels)
    else:
        codes = np.concatenate([np.arange(levels), np.arange(levels), rng.integers(0, levels, 7 * levels)])
        x, z = rng.normal(size=(2, len(codes)))
    n = len(codes)
    Z = np.column_stack([np.ones(n), x, z])[:, :q]
    X = np.column_stack([np.ones(n), x + mean, rng.normal(size=n), rng.normal(size=levels)[codes]])
    w = None if weights is None else rng.choice(weights, n)
    e = rng.normal(size=n) / (1.0 if w is None else np.sqrt(w))
    y = offset + 2.0 * x + ratio * (Z * rng.normal(size=(levels, q))[codes]).sum(1) + e
    return y, X, Z, codes, w


def factor(q, ratio):
    return ratio * (np.eye(q) + 0.3 * np.tril(np.random.default_rng(5).normal(size=(q, q))))


def rss(theta, data):
    """The engine's profiled residual sum of squares at θ in the user's units."""
    basis = data.moments.basis
    H = np.asarray(grouped.log_det_and_cross(theta * covariance.theta_scale(data.template, basis.z_scale), data)[1])
    return (np.linalg.cholesky(H)[-1, -1] / float(basis.map[-1, -1])) ** 2


def error(y, X, Z, codes, w, L, data, theta=None):
    theta = L[np.tril_indices(len(L))] if theta is None else theta
    return exact.relative_error(rss(theta, data), exact.rss(y, X, Z, codes, L, w))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("balanced", [True, False])
def test_effects_far_larger_than_residuals(q, ratio, balanced):
    y, X, Z, codes, w = design(1, q, ratio, balanced=balanced)
    L = factor(q, ratio)
    assert error(y, X, Z, codes, w, L, compression.compress(y, X, Z, codes)) < TIGHT
    with jax.enable_x64(True):
        data = compression.compress(*map(jnp.asarray, (y, X, Z, codes)), n_groups=12)
        assert error(y, X, Z, codes, w, L, data, jnp.asarray(L[np.tril_indices(q)])) < TIGHT


@pytest.mark.parametrize("ratio", RATIOS)
def test_covariates_far_from_zero(ratio):
    y, X, Z, codes, w = design(2, 2, ratio, mean=1e6)
    assert error(y, X, Z, codes, w, factor(2, ratio), compression.compress(y, X, Z, codes)) < TIGHT


@pytest.mark.parametrize("ratio", RATIOS)
def test_response_far_from_zero(ratio):
    """y − Xβ̂ of y near 1e8 is rounded at 1e-8 of a residual, row by row."""
    y, X, Z, codes, w = design(3, 2, ratio, offset=1e8)
    assert error(y, X, Z, codes, w, factor(2, ratio), compression.compress(y, X, Z, codes)) < 1e-8


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_extreme_weights(q, ratio):
    """A row of weight 1e6 knows its level a thousand times better: the effects are 1e3·ratio of its residual."""
    y, X, Z, codes, w = design(4, q, ratio, weights=(1e-6, 1.0, 1e6))
    data = compression.compress(y, X, Z, codes, weights=w)
    assert error(y, X, Z, codes, w, factor(q, ratio), data) < TIGHT


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("chunks", ["any rows", "whole levels", "one level each"])
def test_chunks(ratio, chunks):
    """Of one level a chunk has no variation between levels, and columns of X that do not vary within."""
    y, X, Z, codes, w = design(5, 2, ratio)
    template = covariance.make_template("unstructured", 2)
    part = {"any rows": np.random.default_rng(0).integers(0, 3, len(y)), "whole levels": codes % 3}.get(chunks, codes)
    pieces = [
        compression.group_moments(y[s], X[s], Z[s], codes[s], 12, template=template)
        for s in (part == i for i in np.unique(part))
    ]
    merged = functools.reduce(compression.merge, pieces)
    assert error(y, X, Z, codes, w, factor(2, ratio), compression.pool(compression.merge(*pieces))) < TIGHT
    assert error(y, X, Z, codes, w, factor(2, ratio), compression.pool(merged)) < TIGHT


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("balanced", [True, False])
def test_lanes(q, balanced):
    drawn = [design(1, q, ratio, balanced=balanced) for ratio in RATIOS]
    _, X, Z, codes, _ = drawn[0]
    Y = np.column_stack([d[0] for d in drawn])
    n, R = Y.shape
    shared = SharedDesign(X, Z, codes)
    again = [np.concatenate([d[j] for d in drawn]) for j in range(4)]
    sets = DataSets(*again, np.repeat(np.arange(R), n), R, template=shared.template)
    exactly = [exact.rss(y, X, Z, codes, factor(q, r)) for y, r in zip(Y.T, RATIOS, strict=True)]
    theta = np.stack([factor(q, ratio)[np.tril_indices(q)] for ratio in RATIOS], axis=1)
    observed = shared.compress_observed(Y, np.ones_like(Y, bool))[0]
    for data in (shared.compress(Y), observed, sets.compress(np.arange(R), 12)):
        scaled = theta * covariance.theta_scale(data.template, data.basis.z_scale)
        H = lanes.objective(scaled, data, True)[3].H
        for lane in range(R):
            found = (np.linalg.cholesky(H[..., lane])[-1, -1] / data.basis.map[-1, -1, lane]) ** 2
            assert exact.relative_error(found, exactly[lane]) < TIGHT


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("ratio", RATIOS)
def test_fits(q, ratio):
    y, X, Z, codes, _ = design(6, q, ratio)
    found = fit.fit(compression.compress(y, X, Z, codes))
    assert found.status == Status.CONVERGED
    dof = len(y) - X.shape[1]
    assert exact.relative_error(found.sigma**2 * dof, exact.rss(y, X, Z, codes, found.relative_factor)) < TIGHT
