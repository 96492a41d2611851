"""Cov β̂ to second order in the covariance parameters, and their information, against differences and lmerTest."""

import numpy as np
import pytest
from test_likelihood import DESIGNS, model

import lme_jax as lme
from lme_jax import datasets
from lme_jax.core.fixed_effects import first_jets, jets
from lme_jax.core.records import Fit

pytestmark = pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")


def at(data, x, reml):
    """A Fit that holds β̂(θ), θ and σ, x = (θ, σ²)."""
    found = lme.fit_at(x[:-1], data, reml=reml)
    values = {name: np.asarray(value) for name, value in vars(found).items()} | {"sigma": np.sqrt(x[-1])}
    return Fit(**values)


def slopes(f, x):
    steps = 1e-3 * np.eye(len(x))
    return np.array([(8 * (f(x + s) - f(x - s)) - (f(x + 2 * s) - f(x - 2 * s))) / 12e-3 for s in steps])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", DESIGNS)
def test_slopes_and_curves_are_those_of_cov_beta(name, reml):
    data = model(name).compressed
    k = len(lme.fit(data).theta)
    x = np.append(np.random.default_rng(1).uniform(0.4, 1.2, k), 1.7)
    found = jets(at(data, x, reml), data, reml=reml, second=True)
    fit = lme.fit_at(x[:-1], data, reml=reml)
    np.testing.assert_allclose(found.cov, x[-1] * np.asarray(fit.unscaled_cov), rtol=1e-10)
    # Fourth-order differences, h = 1e-3: h⁴ and rounding 1e-13.
    numeric = slopes(lambda v: v[-1] * np.asarray(lme.fit_at(v[:-1], data, reml=reml).unscaled_cov), x)
    np.testing.assert_allclose(found.slope, numeric, rtol=1e-8, atol=1e-10 * np.abs(numeric).max())
    numeric = slopes(lambda v: jets(at(data, v, reml), data, reml=reml).slope, x)
    np.testing.assert_allclose(found.curve, numeric, rtol=1e-8, atol=1e-9 * np.abs(numeric).max())


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", DESIGNS)
def test_first_jets_are_those_of_the_second_order(name, reml):
    """From the Hessian of the profiled deviance, at a fit and at any θ."""
    data = model(name).compressed
    k = len(lme.fit(data).theta)
    for fit in (lme.fit(data, reml=reml), lme.fit_at(np.random.default_rng(3).uniform(0.4, 1.2, k), data, reml=reml)):
        found, expected = first_jets(fit, data, reml=reml), jets(fit, data, reml=reml)
        for name in ("cov", "slope", "information"):
            one, other = getattr(found, name), getattr(expected, name)
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9 * np.abs(other).max())


@pytest.mark.parametrize("name", ["one factor", "crossed slopes"])
def test_observed_information_is_the_curvature_of_the_profile(name):
    data = model(name).compressed
    k = len(lme.fit(data).theta)
    x = np.append(np.random.default_rng(2).uniform(0.4, 1.2, k), 1.7)

    def loglike(v):
        return lme.loglike(np.concatenate([lme.fit_at(v[:-1], data).beta, v]), data, scale="sqrt")

    numeric = -slopes(lambda v: slopes(loglike, v), x)
    found = jets(at(data, x, True), data)
    np.testing.assert_allclose(found.information, numeric, atol=1e-5 * np.abs(numeric).max())


def test_expected_information_is_the_mean_of_the_observed():
    """Over responses drawn from the model the score's covariance and the observed information have this mean."""
    result = lme.lmer("Reaction ~ Days + (Days | Subject)", datasets.load("sleepstudy"))
    data, draws = result._data, result.simulate(400, seed=1).to_numpy()
    x = np.append(result.theta, result.scale)
    inner = [jets(at(data.with_response(y).compressed, x, True), data.with_response(y).compressed) for y in draws.T]
    seen = np.array([one.information for one in inner])
    error = seen.std(0) / np.sqrt(len(seen))
    assert (np.abs(seen.mean(0) - inner[0].expected) < 4.5 * error + 1e-12).all()


def test_satterthwaite_degrees_of_freedom_are_lmertests():
    """Of sleepstudy 17, which balance makes exact."""
    result = lme.lmer("Reaction ~ Days + (Days | Subject)", datasets.load("sleepstudy"))
    found = jets(result.fit, result._data.compressed)
    spread = np.linalg.inv(found.information)
    for j in range(2):
        slope = found.slope[:, j, j]
        assert 2 * found.cov[j, j] ** 2 / (slope @ spread @ slope) == pytest.approx(17.0, abs=1e-6)
