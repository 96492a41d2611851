"""Autodiff = Lindstrom–Bates = finite differences, at the optimum and away from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_design

from lme_jax.core import compression, covariance, fit, grouped, likelihood, lindstrom_bates, parameterizations, profiled

STRUCTURES = ["unstructured", "diagonal", "identity"]
SCALES = ["natural", "profile", "sqrt"]


def model(structure="unstructured", seed=7, **shape):
    y, X, Z, codes, m, w = random_design(seed, **({"n": 130, "m": 13, "weighted": True} | shape))
    return compression.compress(y, X, Z, codes, weights=w, structure=structure), (y, X, Z, codes, m, w)


def packed_point(data, result, scale, away):
    p = data.n_fixed
    params = np.concatenate([result.beta, result.theta, [result.sigma**2]])
    if away:
        params = params + 0.1 * np.random.default_rng(2).normal(size=len(params)) * np.abs(params).max() ** 0.5
        params[-1] = abs(params[-1])
    return parameterizations.convert(params, "sqrt", scale, n_fixed=p, template=data.template)


def central_difference(f, x, h=1e-5):
    steps = np.eye(len(x)) * h * np.maximum(1.0, np.abs(x))
    return np.array([(np.asarray(f(x + s)) - np.asarray(f(x - s))) / (2 * s.sum()) for s in steps])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("away", [False, True])
def test_lindstrom_bates_equals_autodiff(structure, reml, away):
    data, _ = model(structure)
    params = packed_point(data, fit.fit(data, reml=reml), "profile", away)[:-1]
    auto = likelihood.derivatives(params, data, scale="profile", reml=reml)
    score, hessian = lindstrom_bates.score_and_hessian(params[: data.n_fixed], params[data.n_fixed :], data, reml=reml)
    size = np.abs(hessian).max()
    np.testing.assert_allclose(auto.score, score, rtol=1e-10, atol=1e-10 * size)
    np.testing.assert_allclose(auto.hessian, hessian, rtol=1e-9, atol=1e-12 * size)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("away", [False, True])
def test_autodiff_equals_finite_differences(scale, reml, away):
    data, _ = model()
    params = packed_point(data, fit.fit(data, reml=reml), scale, away)
    auto = likelihood.derivatives(params, data, scale=scale, reml=reml)
    value = central_difference(lambda x: likelihood.loglike(x, data, scale=scale, reml=reml), params)
    score = central_difference(lambda x: likelihood.derivatives(x, data, scale=scale, reml=reml).score, params)
    size = np.abs(auto.hessian).max()
    # Central differences of a value near 200 with h = 1e-5: rounding 1e-13/1e-5, truncation h².
    np.testing.assert_allclose(auto.score, value, rtol=1e-6, atol=1e-7 * size)
    np.testing.assert_allclose(auto.hessian, score, rtol=1e-6, atol=1e-7 * size)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reml", [True, False])
def test_likelihood_equals_dense(scale, reml):
    data, (y, X, Z, codes, m, w) = model()
    params = packed_point(data, fit.fit(data, reml=reml), "natural", True)
    p = data.n_fixed
    Psi = np.array([[params[p], params[p + 1]], [params[p + 1], params[p + 2]]])
    V = np.diag(params[-1] / w)
    for i in range(m):
        rows = np.flatnonzero(codes == i)
        V[np.ix_(rows, rows)] += Z[rows] @ Psi @ Z[rows].T
    Vi, r = np.linalg.inv(V), y - X @ params[:p]
    expected = np.linalg.slogdet(V)[1] + r @ Vi @ r + (len(y) - p * reml) * np.log(2 * np.pi)
    if reml:
        expected += np.linalg.slogdet(X.T @ Vi @ X)[1]
    there = parameterizations.convert(params, "natural", scale, n_fixed=p, template=data.template)
    assert likelihood.loglike(there, data, scale=scale, reml=reml) == pytest.approx(-0.5 * expected, abs=1e-8)


NEWTON_CASES = [
    ("unstructured", 1),
    ("unstructured", 2),
    ("unstructured", 6),
    ("diagonal", 3),
    ("identity", 2),
    ("compound_symmetry", 3),
    ("ar1", 3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "q"), NEWTON_CASES)
def test_newton_derivatives_equal_autodiff_of_the_deviance(structure, q):
    data, _ = model(structure, q=q, p=2)
    k = covariance.n_theta(data.template)
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, data)
        theta = jnp.asarray(np.random.default_rng(5).normal(size=k))
        scale = covariance.theta_scale(data.template, data.moments.basis.z_scale)
        for reml in (True, False):
            value, slope, hessian, _ = jax.jit(lambda x, reml=reml: grouped.objective(x, data, reml))(theta)

            def deviance(x, reml=reml):
                return grouped.deviance(x / scale, data, reml=reml)

            np.testing.assert_allclose(value, deviance(theta), rtol=1e-12)
            np.testing.assert_allclose(slope, jax.jit(jax.grad(deviance))(theta), rtol=1e-8, atol=1e-8)
            expected = jax.jit(jax.hessian(deviance))(theta)
            np.testing.assert_allclose(hessian, expected, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


def test_slope_of_the_residual_variance():
    data, _ = model()
    result = fit.fit(data)

    def log_scale(theta):
        with jax.enable_x64(True):
            scaled = jnp.asarray(theta) * covariance.theta_scale(data.template, data.moments.basis.z_scale)
            _, H = grouped.log_det_and_cross(scaled, data)
            return np.log(float(profiled.estimates(H, data.moments, True).sigma) ** 2)

    np.testing.assert_allclose(result.log_scale_slope, central_difference(log_scale, result.theta), rtol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("source", SCALES)
@pytest.mark.parametrize("target", SCALES)
def test_parameterizations_are_bijections(structure, source, target):
    data, _ = model(structure)
    params = packed_point(data, fit.fit(data), source, False)
    options = dict(n_fixed=data.n_fixed, template=data.template)
    there = parameterizations.convert(params, source, target, **options)
    back = parameterizations.convert(there, target, source, **options)
    np.testing.assert_allclose(back, params, rtol=1e-10, atol=1e-12)
    forward = parameterizations.jacobian(params, source, target, **options)
    backward = parameterizations.jacobian(there, target, source, **options)
    np.testing.assert_allclose(forward @ backward, np.eye(len(params)), atol=1e-9)
    numeric = central_difference(lambda x: parameterizations.convert(x, source, target, **options), params).T
    np.testing.assert_allclose(forward, numeric, rtol=1e-6, atol=1e-7 * np.abs(numeric).max())


def test_scores_hold_at_a_singular_covariance():
    data, _ = model("diagonal")
    params = np.array(packed_point(data, fit.fit(data), "profile", False)[:-1])
    params[-1] = 0.0
    auto = likelihood.derivatives(params, data, scale="profile")
    score, hessian = lindstrom_bates.score_and_hessian(params[: data.n_fixed], params[data.n_fixed :], data)
    np.testing.assert_allclose(auto.score, score, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(auto.hessian, hessian, rtol=1e-9, atol=1e-9 * np.abs(hessian).max())
