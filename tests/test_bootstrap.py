"""Bootstrap samples are the samples they claim to be, and the intervals those of the literature."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import lme_jax
from lme_jax import lmer
from lme_jax.errors import DataError, UnsupportedError
from lme_jax.inference.intervals import basic, bca, percentile
from lme_jax.many.resampling import LevelSamples, parametric_responses, residual_responses


@pytest.fixture(scope="module")
def sleep():
    df = lme_jax.datasets.load("sleepstudy").iloc[:-3]
    weights = np.linspace(0.5, 2.0, len(df))
    return df.assign(w=weights), lmer("Reaction ~ Days + (Days | Subject)", df.assign(w=weights), weights="w")


def assert_sample_is(fits, number, single):
    assert fits.fit.deviance[number] == pytest.approx(single.deviance, abs=1e-8)
    np.testing.assert_allclose(fits.fit.beta[number], single.fit.beta, rtol=1e-8)
    np.testing.assert_allclose(fits.fit.theta[number], single.fit.theta, rtol=1e-6, atol=1e-8)


def test_parametric_samples_are_refits_of_simulated_responses(sleep):
    _, model = sleep
    found = model.bootstrap(300, seed=4)
    Y = np.concatenate(list(parametric_responses(model._data, model.fit, 300, 4)), axis=1)
    for number in (0, 17, 299):
        assert_sample_is(found.fits, number, model.refit(Y[:, number]))
    again = model.bootstrap(300, seed=4, memory_limit=1)
    np.testing.assert_allclose(again.fits.fit.beta, found.fits.fit.beta, rtol=1e-9)
    assert not np.array_equal(model.bootstrap(300, seed=5).fits.fit.beta, found.fits.fit.beta)


def test_residual_samples_have_the_estimated_covariances(sleep):
    _, model = sleep
    data = model._data
    found = model.bootstrap(300, seed=4, kind="residual")
    Y = np.concatenate(list(residual_responses(data, model.fit, model._blups, 300, 4)), axis=1)
    assert_sample_is(found.fits, 3, model.refit(Y[:, 3]))
    # Averaged over many draws the responses have the model's covariance. A variance from 30 000 draws has a sampling
    # error of 0.8 %, the largest of 55 of them about four times that.
    many = np.concatenate(list(residual_responses(data, model.fit, model._blups, 30_000, 1)), axis=1)
    rows = data.factors[0].codes == 2
    Z, weights = data.factors[0].Z[rows], data.design.weights[rows]
    expected = Z @ model.cov_re.to_numpy() @ Z.T + model.scale * np.diag(1.0 / weights)
    error = np.cov(many[rows]) - expected
    assert np.abs(error).max() < 0.035 * np.abs(expected).max()
    # Four standard errors of the means.
    limit = 4.0 * np.sqrt(np.diag(expected).max() / 30_000)
    np.testing.assert_allclose(many[rows].mean(1), (data.X @ model.fit.beta)[rows], rtol=0, atol=limit)


def test_cases_samples_are_fits_of_the_groups_drawn(sleep):
    df, model = sleep
    samples = LevelSamples(model._data)
    lanes = next(iter(samples.bootstrap(20, 9, 20, None).pieces)).data
    found = model.bootstrap(20, seed=9, kind="cases")
    levels = model._data.factors[0].levels
    for number in (0, 11):
        times = lanes.count[: len(levels), number].astype(int)
        parts = [
            df[df.Subject == level].assign(Subject=f"{level}-{copy}")
            for level, m in zip(levels, times, strict=True)
            for copy in range(m)
        ]
        drawn = lmer("Reaction ~ Days + (Days | Subject)", pd.concat(parts), weights="w")
        assert_sample_is(found.fits, number, drawn)


def test_the_jackknife_leaves_each_group_out(sleep):
    df, model = sleep
    left_out = model.bootstrap(50, seed=0)._left_out()
    for number, level in list(enumerate(model._data.factors[0].levels))[::7]:
        assert_sample_is(
            left_out, number, lmer("Reaction ~ Days + (Days | Subject)", df[df.Subject != level], weights="w")
        )


def test_intervals_are_those_of_scipy():
    """Of a mean, where scipy has all three methods: the same replicates give the same limits."""
    sample = np.random.default_rng(0).exponential(size=30)
    replicates = None
    for method in ("percentile", "basic", "BCa"):
        found = scipy.stats.bootstrap(
            (sample,), np.mean, n_resamples=2000, method=method, rng=np.random.default_rng(1), vectorized=True
        )
        replicates = found.bootstrap_distribution[:, None]
        estimate = np.array([sample.mean()])
        if method == "percentile":
            lower, upper = percentile(replicates, 0.95)
        elif method == "basic":
            lower, upper = basic(replicates, estimate, 0.95)
        else:
            jackknife = ((sample.sum() - sample) / 29)[:, None]
            lower, upper = bca(replicates, estimate, jackknife, 0.95)
        np.testing.assert_allclose([lower[0], upper[0]], found.confidence_interval, rtol=1e-12)


def test_summary_statistics_and_methods(sleep):
    _, model = sleep
    found = model.bootstrap(400, seed=1)
    table = found.summary()
    np.testing.assert_allclose(table.estimate[:2], model.fe_params)
    # The standard deviation of 400 draws has an error of 3.5 %: three times that.
    np.testing.assert_allclose(table.std_error[:2], model.bse_fe, rtol=0.105)
    np.testing.assert_allclose(table.bias[:2], 0.0, atol=3.0 * model.bse_fe.max() / np.sqrt(400))

    def ratio(many):
        return pd.DataFrame({"icc": many.vcov.iloc[:, 0] / (many.vcov.iloc[:, 0] + many.vcov["Residual Var"])})

    draws = ratio(found.fits)[found.fits.converged].to_numpy()
    estimate = ratio(model.refit_many(model._data.y)).to_numpy()[0]
    left_out = ratio(found._left_out()).to_numpy()
    expected = {
        "percentile": np.quantile(draws, [0.05, 0.95]),
        "basic": 2.0 * estimate - np.quantile(draws, [0.95, 0.05]),
        "bca": np.ravel(bca(draws, estimate, left_out, 0.9)),
    }
    for method, limits in expected.items():
        table = found.intervals(level=0.9, method=method, statistic=ratio)
        np.testing.assert_allclose(table.loc["icc"], [estimate[0], *limits], rtol=1e-6)


def test_what_cannot_be_done_is_said(sleep):
    _, model = sleep
    with pytest.raises(DataError, match="kind='wild'"):
        model.bootstrap(10, seed=0, kind="wild")
    small = model.bootstrap(10, seed=0)
    with pytest.raises(DataError, match="too few"):
        small.intervals()
    with pytest.raises(DataError, match="method='normal'"):
        small.intervals(method="normal")
    with pytest.raises(UnsupportedError, match="keeps estimates"):
        small.fits.one(0)
    crossed = lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", lme_jax.datasets.load("penicillin"))
    with pytest.raises(DataError, match="name the one"):
        crossed.bootstrap(3, seed=0, kind="cases")
    assert len(crossed.bootstrap(2, seed=0, progress=False).fits) == 2
