"""Structures of low rank in crossed designs, dense engine against the small one; two effects against lme4."""

import numpy as np
import pandas as pd
import pytest

import lme_jax as lme
from lme_jax.core import covariance, criterion
from lme_jax.core.dense import Dense
from lme_jax.core.small import Small

SINGULAR = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
BARS = {
    "first": "rr(0 + f | a, d = 1) + (1 | b)",
    "dense": "(1 | a) + rr(0 + f | b, d = 1)",
    "two dense": "(0 + f | a) + rr(0 + f | b, d = 2) + (1 | c)",
    "known": "(1 | a) + fixed(0 + f | b, SINGULAR)",
    "both": "rr(0 + f | a, d = 2) + rr(0 + f | b, d = 1)",
}


def crossed(seed=0, n=900):
    """More levels of a than of b and c; effects of full rank, so that the gradient in Ψ is not zero at a fit."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.integers(0, 60, n), "b": rng.integers(0, 12, n), "c": rng.integers(0, 5, n)})
    visit = rng.integers(0, 3, n)
    frame["f"] = np.array(list("uvw"))[visit]
    A, B = rng.normal(size=(60, 3)), rng.normal(size=(12, 3)) + rng.normal(size=(12, 1))
    frame["y"] = A[frame.a, visit] + B[frame.b, visit] + rng.normal(size=n)
    return frame


@pytest.fixture(scope="module")
def fits():
    frame = crossed()
    return {name: lme.lmer("y ~ 1 + " + bars, frame) for name, bars in BARS.items()}


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", BARS)
def test_exact_curvature(fits, name, reml):
    data = fits[name]._data.compressed
    scale = covariance.theta_scale(data.template, data.basis.z_scale)
    theta = fits[name].theta.to_numpy() * scale * 1.1 + 0.05
    value, gradient, hessian, _ = criterion.objective(Dense(data), data, reml, exact=True)(theta)
    expected = criterion.objective(Small(data), data, reml, exact=True)(theta)
    assert value == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-8, atol=1e-8 * np.abs(expected[1]).max())
    np.testing.assert_allclose(hessian, expected[2], rtol=1e-7, atol=1e-8 * np.abs(expected[2]).max())


@pytest.mark.parametrize("name", BARS)
def test_searches_of_both_engines_end_together(fits, name):
    """Where Ψ is held on a surface the average information may be indefinite at the optimum; the Hessian is not."""
    fitted = fits[name]
    data = fitted._data.compressed
    scale = covariance.theta_scale(data.template, data.basis.z_scale)
    assert fitted.status.name == "CONVERGED"
    start = covariance.start(data.template, np.full(len(data.basis.z_scale), 0.7))
    found, _ = criterion.search(Dense(data), data, start, 1e-10, 100, True)
    assert found.value == pytest.approx(fitted.deviance, abs=1e-6)
    at, _ = covariance.canonical(found.x, data.template)
    psi = [covariance.factor(x, data.template) for x in (at / scale, fitted.theta.to_numpy())]
    np.testing.assert_allclose(psi[0] @ psi[0].T, psi[1] @ psi[1].T, atol=1e-5)
    assert fitted.covariance_parameters.se.notna().all()


@pytest.mark.parametrize("bar", ["cs(1 + Days | Subject)", "hetar1({} | Subject)", "toep({} | Subject)"])
def test_two_effects_with_variances_of_their_own_are_unstructured(bar):
    """lme4: the REML criterion of sleepstudy is 1743.628; its vignette fits it with cs() too."""
    frame = lme.datasets.load("sleepstudy").assign(one=1.0)
    fitted = lme.lmer("Reaction ~ Days + " + bar.format("0 + one + Days"), frame)
    plain = lme.lmer("Reaction ~ Days + (Days | Subject)", frame)
    assert fitted.deviance == pytest.approx(1743.6283, abs=1e-4)
    assert fitted.deviance == pytest.approx(plain.deviance, abs=1e-8)
    ours, theirs = fitted.covariance_parameters, plain.covariance_parameters
    np.testing.assert_allclose(ours.estimate, theirs.estimate, rtol=1e-5)
    np.testing.assert_allclose(ours.se, theirs.se, rtol=1e-4)
