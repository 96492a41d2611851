"""The closed forms of one factor = autodiff of the deviance; those of all designs: test_likelihood.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_design

from lme_jax.core import compression, covariance, fit, grouped, profiled


def model(structure="unstructured", seed=7, **shape):
    y, X, Z, codes, m, w = random_design(seed, **({"n": 130, "m": 13, "weighted": True} | shape))
    return compression.compress(y, X, Z, codes, weights=w, structure=structure), (y, X, Z, codes, m, w)


def central_difference(f, x, h=1e-5):
    steps = np.eye(len(x)) * h * np.maximum(1.0, np.abs(x))
    return np.array([(np.asarray(f(x + s)) - np.asarray(f(x - s))) / (2 * s.sum()) for s in steps])


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
