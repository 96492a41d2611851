"""Lanes of several grouping factors are the single fits: value, derivatives, starts, optima, statuses, every door."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import isotonic_regression

import lme_jax
from lme_jax import NewtonOptions, Status, lmer, lmer_many
from lme_jax.core import batch, covariance, crossed, several_data, several_lanes, starts
from lme_jax.core.several_data import suits_lanes
from lme_jax.errors import ConvergenceWarning, DataError, RankWarning
from lme_jax.many.alone import OneByOne
from lme_jax.many.resampling import level_times

# Singular fits are wanted here.
pytestmark = pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")

FORMULAS = {
    "crossed": "y ~ x + (1 | a) + (1 | b)",
    "nested": "y ~ x + (1 | c) + (1 | a)",
    "nested and crossed": "y ~ x + (1 | c) + (1 | a) + (1 | b)",
    "slopes": "y ~ x + (x | a) + (x | b)",
    "two terms per factor": "y ~ x + (1 | a) + (0 + x | a) + (1 | b)",
    "no fixed effects": "y ~ 0 + (1 | a) + (1 | b)",
    "compound symmetry": "y ~ x + cs(1 + x | a) + (1 | b)",
    "autoregressive": "y ~ x + ar1(0 + factor(t) | a) + (1 | b)",
    "diagonal, wide": "y ~ x + (x + z || a) + (1 | b)",
}


@pytest.fixture(scope="module")
def df():
    rng = np.random.default_rng(3)
    n = 240
    a, b = rng.integers(0, 14, n), rng.integers(0, 6, n)
    x, z = rng.normal(size=(2, n))
    slopes = rng.normal(size=(14, 2))
    y = 5.0 + x + slopes[a, 0] + slopes[a, 1] * x + rng.normal(size=6)[b] + rng.normal(size=n)
    w, o = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    return pd.DataFrame(dict(y=y, x=x, z=z, t=rng.integers(0, 3, n), a=a, b=b, c=a % 4, w=w, o=o))


@functools.cache
def responses(n, R):
    """From almost no effects to large ones, so that singular fits and searches from several starts occur."""
    rng = np.random.default_rng(8)
    return rng.normal(size=(n, R)) * rng.uniform(0.1, 10.0, R)


def fitted(df, name, **arguments):
    return lmer(FORMULAS[name], df, **arguments)


def mixed_responses(result, R=8):
    drawn = result.simulate(R, seed=5).to_numpy()
    return np.concatenate([drawn, responses(len(drawn), R)], axis=1)


def assert_lane(many, number, single):
    """The single fit is another engine, so optima agree to what each search leaves: far less than these."""
    assert many.status[number] == single.status
    assert many.deviance[number] == pytest.approx(float(single.deviance), abs=1e-8)
    size = 1.0 + np.abs(single.theta).max()
    np.testing.assert_allclose(many.theta[number], single.theta, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(many.beta[number], single.beta, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(many.unscaled_cov[number], single.unscaled_cov, rtol=1e-6, atol=1e-12)
    if single.status == Status.CONVERGED:
        np.testing.assert_allclose(many.hessian[number], single.hessian, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_derivatives_are_those_of_single_models(df, name, reml):
    """At random θ, and at θ = 0; the other engines know nothing of this one."""
    result = fitted(df, name, weights="w", offset="o")
    Y = mixed_responses(result, 2)
    lanes = result._data.several_design.compress(Y)
    theta = np.random.default_rng(2).normal(size=(covariance.n_theta(lanes.template), Y.shape[1]))
    theta[:, 1] = 0.0
    scale = covariance.theta_scale(lanes.template, lanes.basis.z_scale)
    value, gradient, hessian, kept = several_lanes.objective(theta * scale, lanes, reml)
    start = several_lanes.moment_start(lanes) / scale
    for r in range(Y.shape[1]):
        data = result._data.with_response(Y[:, r]).compressed
        own = covariance.theta_scale(data.template, data.basis.z_scale)
        expected = crossed.derivatives(theta[:, r] * own, data, reml)
        assert value[r] == pytest.approx(float(expected[0]), abs=1e-9)
        slope, bend = expected[1] * own, expected[2] * np.outer(own, own)
        np.testing.assert_allclose(gradient[:, r] * scale[:, 0], slope, rtol=0, atol=1e-10 * (1 + np.abs(slope).max()))
        mine = hessian[:, :, r] * np.outer(scale, scale)
        np.testing.assert_allclose(mine, bend, rtol=0, atol=1e-9 * (1 + np.abs(bend).max()))
        np.testing.assert_allclose(
            kept.log_scale_slope[:, r] * scale[:, 0], expected[3].log_scale_slope * own, atol=1e-10
        )
        np.testing.assert_allclose(start[:, r], crossed.moment_start(data), rtol=1e-9)


def test_the_hessian_is_the_difference_of_gradients(df):
    for name in ("slopes", "nested and crossed"):
        lanes = fitted(df, name)._data.several_design.compress(responses(len(df), 3))
        k, h = covariance.n_theta(lanes.template), 1e-5
        theta = np.random.default_rng(4).normal(size=(k, 3))
        hessian = several_lanes.objective(theta, lanes, True)[2]
        for a in range(k):
            step = h * np.eye(k)[:, a, None]
            up, down = (several_lanes.objective(theta + s, lanes, True) for s in (step, -step))
            np.testing.assert_allclose((up[1] - down[1]) / (2 * h), hessian[a], rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose((up[0] - down[0]) / (2 * h), (up[1] + down[1])[a] / 2, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_many_responses_equal_single_fits(df, name, reml):
    result = fitted(df, name, reml=reml, weights="w", offset="o")
    Y = mixed_responses(result)
    many = result.refit_many(Y)
    assert many.backend == "numpy"
    for r in range(Y.shape[1]):
        assert_lane(many.fit, r, result.refit(Y[:, r]).fit)
    assert {Status(s).name for s in many.fit.status} >= {"CONVERGED"}


def test_designs_that_single_fits_hold_otherwise():
    """Some hundred effects: single fits take the engines of chains and of dense crossings."""
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 70, 500), rng.integers(0, 30, 500)
    y = rng.normal(size=70)[a] + rng.normal(size=30)[b] + rng.normal(size=500)
    data = pd.DataFrame(dict(y=y, x=rng.normal(size=500), a=a, b=b, c=a % 20))
    for formula in ("y ~ x + (1 | a) + (1 | b)", "y ~ x + (1 | c/a)"):
        result = lmer(formula, data)
        Y = result.simulate(4, seed=2)
        many = result.refit_many(Y)
        for r in range(4):
            assert_lane(many.fit, r, result.refit(Y[r]).fit)


def test_some_of_these_fits_are_singular_and_some_begin_again(df):
    """So that what the tests above compare is not the easy case alone."""
    result = fitted(df, "nested and crossed")
    many = result.refit_many(mixed_responses(result))
    assert {"CONVERGED", "SINGULAR"} <= {Status(s).name for s in many.fit.status}
    assert many.fit.iterations.max() > 2 * many.fit.iterations.min()


def test_a_formula_for_many_responses_and_its_views(df):
    Y = pd.DataFrame(responses(len(df), 4), columns=list("pqrs")) + df[["y"]].to_numpy()
    many = lmer_many("~ x + (1 | a) + (1 | b)", df, Y)
    single = lmer("r ~ x + (1 | a) + (1 | b)", df.assign(**Y))
    assert many.llf["r"] == pytest.approx(single.llf, abs=1e-8)
    one = pickle.loads(pickle.dumps(many)).one("r")
    for factor in ("a", "b"):
        pd.testing.assert_frame_equal(one.ranef[factor], single.ranef[factor], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(many.bse_vcov.loc["r"].iloc[:-1], single.bse_re, rtol=1e-5)


def test_lanes_that_fail_leave_the_others_alone(df):
    result = fitted(df, "crossed")
    Y = mixed_responses(result, 2)
    Y[:, 0] = 3.0
    Y[:, 1] = 2.0 - df.x
    with pytest.warns(ConvergenceWarning, match="2 of 4 fits"):
        many = result.refit_many(Y)
    assert [Status(s).name for s in many.fit.status[:2]] == ["NOT_FINITE", "NOT_FINITE"]
    assert np.isnan(many.fit.deviance[:2]).all()
    assert_lane(many.fit, 2, result.refit(Y[:, 2]).fit)


def test_any_cut_of_the_work_gives_the_same_numbers(df, monkeypatch):
    result = fitted(df, "nested and crossed")
    Y = mixed_responses(result, 20)
    whole = result.refit_many(Y).fit
    monkeypatch.setattr(batch, "NARROW", 4)
    monkeypatch.setattr(batch, "SEVERAL_ROUNDS", 1)
    pieces = result.refit_many(Y, memory_limit=1).fit
    np.testing.assert_array_equal(pieces.status, whole.status)
    for name in ("theta", "beta", "sigma", "deviance"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-8, atol=1e-8)


def test_a_search_that_is_cut_short_says_so(df):
    result = fitted(df, "slopes")
    Y = mixed_responses(result, 3)
    with pytest.warns(ConvergenceWarning, match="iteration limit"):
        short = lmer(FORMULAS["slopes"], df, options=NewtonOptions(max_iter=2))
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        many = short.refit_many(Y)
    assert (many.fit.status == Status.MAX_ITER).any()


@pytest.mark.parametrize("kind", ["parametric", "residual"])
def test_bootstraps_are_refits_of_their_samples(kind):
    data = lme_jax.datasets.load("pastes")
    result = lmer("strength ~ 1 + (1 | batch/cask)", data)
    found = result.bootstrap(300, seed=4, kind=kind)
    again = result.bootstrap(300, seed=4, kind=kind, memory_limit=1)
    np.testing.assert_allclose(again.fits.fit.beta, found.fits.fit.beta, rtol=1e-9)
    if kind == "parametric":
        from lme_jax.many.resampling import parametric_responses

        Y = np.concatenate(list(parametric_responses(result._data, result.fit, 300, 4)), axis=1)
        for number in (0, 17, 299):
            assert_lane(found.fits.fit, number, result.refit(Y[:, number]).fit)
    # The mean of 300 draws of σ̂² has a standard error of 1.5 % of it: four of them.
    scale = found.replicates()["Residual Var"]
    assert scale.mean() == pytest.approx(result.scale, rel=4 * scale.std() / scale.mean() / np.sqrt(len(scale)))


def test_balanced_chains_end_at_their_only_optimum_in_one_search():
    """REML of a balanced nest has a closed form: the strata's mean squares, pooled where they are out of order."""
    data = lme_jax.datasets.load("pastes")
    result = lmer("strength ~ 1 + (1 | batch/cask)", data)
    held = result._data.compressed
    assert starts.is_balanced_chain(held.template, held.G)
    Y = mixed_responses(result, 200)
    many = result.refit_many(Y)
    cell = data.groupby(["batch", "cask"], observed=True).ngroup().to_numpy()
    batch = data.batch.cat.codes.to_numpy()
    for number in range(200):
        y = np.asarray(Y)[:, number]
        cells, batches = pd.Series(y).groupby(cell).transform("mean"), pd.Series(y).groupby(batch).transform("mean")
        squares = [((y - cells) ** 2).sum(), ((cells - batches) ** 2).sum(), ((batches - y.mean()) ** 2).sum()]
        strata = isotonic_regression(np.divide(squares, (30, 20, 9)), weights=(30, 20, 9)).x
        assert float(many.fit.sigma[number]) ** 2 == pytest.approx(strata[0], rel=1e-7)
    assert 0.1 < (many.fit.status == Status.SINGULAR).mean() < 0.9


def test_what_is_fitted_as_lanes():
    assert suits_lanes([24, 6], [True, True])
    assert suits_lanes([30, 10], [True, True])
    assert not suits_lanes([1000, 150], [True, True])
    assert not suits_lanes([24, 6], [False, False])
    # A factor of shared levels is solved beside the others; it cannot be the one that is eliminated.
    assert suits_lanes([24, 60], [True, False])
    assert not suits_lanes([24, 100], [True, False])


# ---------------------------------------------------------------- missing rows, data sets, whole levels


def with_holes(Y, df):
    rng = np.random.default_rng(9)
    Y = Y.copy()
    Y[rng.random(Y.shape) < 0.15] = np.nan
    Y[:, 1] = np.where(df.a == 3, np.nan, Y[:, 1])
    Y[:, 2] = df.y
    return Y


@pytest.mark.parametrize("name", FORMULAS)
def test_missing_rows_equal_dropped_rows(df, name):
    result = fitted(df, name, weights="w", offset="o")
    Y = with_holes(mixed_responses(result, 3), df)
    mask = np.ones(Y.shape, bool)
    mask[:3, 2] = False
    many = result.refit_many(Y, mask=mask)
    for r in range(Y.shape[1]):
        seen = np.isfinite(Y[:, r]) & mask[:, r]
        single = lmer(FORMULAS[name], df[seen].assign(y=Y[seen, r]), weights="w", offset="o")
        assert_lane(many.fit, r, single.fit)
        assert many.n_obs[r] == seen.sum()
    one = many.one(0)
    assert one.nobs == many.n_obs[0]
    np.testing.assert_allclose(one.bse_fe, many.bse_fe.loc[0], rtol=1e-10)


def test_rows_that_do_not_identify_the_model_say_so(df):
    result = fitted(df, "crossed")
    Y = mixed_responses(result, 2)
    Y[2:, 0] = np.nan
    Y[:, 1] = np.nan
    Y[df.b > 0, 2] = np.nan
    Y[:, 3] = np.where(np.arange(len(Y)) < 60, np.nan, 2.0)
    with pytest.warns(ConvergenceWarning, match="4 of 4 fits"):
        many = result.refit_many(Y)
    assert many.status.tolist() == ["not_identified", "not_identified", "not_identified", "not_finite"]
    assert "one level" in many.reasons[2]
    assert "no rows" in many.reasons[1]
    assert np.isnan(many.fit.deviance).all()


def test_columns_lost_by_missing_rows_are_left_out(df):
    data = df.assign(z=np.where(np.arange(len(df)) < 5, 1.0, 0.0))
    result = lmer("y ~ x + z + (1 | a) + (1 | b)", data)
    Y = mixed_responses(result, 1)
    Y[:5, 1] = np.nan
    with pytest.warns(RankWarning, match="1 of 2 fits leave out .* is 1, without z"):
        many = result.refit_many(Y)
    single = lmer("y ~ x + (1 | a) + (1 | b)", data[5:].assign(y=Y[5:, 1]))
    assert many.fit.deviance[1] == pytest.approx(single.deviance, abs=1e-8)
    np.testing.assert_allclose(many.fit.beta[1], [*single.fit.beta, np.nan], rtol=1e-8)


# Without an intercept a constant response is one like any other.
@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "no fixed effects"])
def test_data_sets_are_separate_fits(df, name):
    rng = np.random.default_rng(14)
    data = pd.concat([df, df.assign(a=df.a + 20, y=df.y + rng.normal(size=len(df))), df.assign(y=1.0)])
    data = data.assign(site=np.repeat(["p", "q", "constant"], len(df)), c=data.a % 4 + 10 * (data.a >= 20))
    with pytest.warns(ConvergenceWarning, match="1 of 3 fits"):
        many = lmer_many(FORMULAS[name], data.sample(frac=1.0, random_state=1), by="site", weights="w")
    assert many.status["constant"] == "not_finite"
    for site in ("p", "q"):
        single = lmer(FORMULAS[name], data[data.site == site], weights="w")
        assert_lane(many.fit, list(many.names).index(site), single.fit)
        assert many.one(site).deviance == pytest.approx(single.deviance, abs=1e-8)


def copies(df, name, times, inside):
    """The rows of the levels of a factor, each copy with labels of its own for it and the factors inside it."""
    parts = []
    for level, m in zip(sorted(df[name].unique()), times, strict=True):
        for copy in range(m):
            own = df[df[name] == level]
            parts.append(own.assign(**{factor: [f"{copy}-{value}" for value in own[factor]] for factor in inside}))
    return pd.concat(parts)


@pytest.mark.parametrize(
    ("name", "factor", "inside"),
    [
        ("nested", None, ["a", "c"]),
        ("crossed", "a", ["a"]),
        ("nested and crossed", "c", ["a", "c"]),
        ("slopes", "b", ["b"]),
    ],
)
def test_cases_samples_are_fits_of_the_levels_drawn(df, name, factor, inside):
    result = fitted(df, name, weights="w")
    drawn = factor or "c"
    found = result.bootstrap(12, seed=9, kind="cases", factor=factor)
    times = level_times(df[drawn].nunique(), 9, np.arange(12))
    for number in (0, 5, 11):
        sample = copies(df, drawn, times[:, number], inside)
        assert found.fits.n_obs[number] == len(sample)
        assert_lane(found.fits.fit, number, lmer(FORMULAS[name], sample, weights="w").fit)
    left_out = found._left_out()
    for number, level in list(enumerate(sorted(df[drawn].unique())))[::3]:
        assert_lane(left_out.fit, number, lmer(FORMULAS[name], df[df[drawn] != level], weights="w").fit)


def test_what_cannot_be_drawn_is_said(df):
    result = fitted(df, "crossed")
    with pytest.raises(DataError, match="cross, and no resampling is right"):
        result.bootstrap(3, seed=0, kind="cases")
    with pytest.raises(DataError, match="factor='k' is no grouping factor"):
        result.bootstrap(3, seed=0, kind="cases", factor="k")
    found = result.bootstrap(60, seed=0)
    with pytest.raises(DataError, match="name the one whose levels"):
        found.intervals(method="bca")
    table = result.bootstrap(60, seed=0, factor="a").intervals(method="bca")
    assert (table.lower < table.upper).all()


def test_large_designs_go_one_by_one_through_the_same_door(df, monkeypatch):
    """Lanes, and fits of their own, are one batch: the same numbers, cut or whole, and the start that is given."""
    result = fitted(df, "slopes")
    Y = mixed_responses(result, 3)
    lanes = result.refit_many(Y).fit
    monkeypatch.setattr(several_data, "MOST_EFFECTS", 1)
    again = fitted(df, "slopes")
    alone = again.refit_many(Y)
    for r in range(Y.shape[1]):
        assert_lane(lanes, r, alone._lane(r))
    found = again.bootstrap(4, seed=3)
    np.testing.assert_allclose(found.fits.fit.deviance, result.bootstrap(4, seed=3).fits.fit.deviance, atol=1e-8)


def test_an_interrupt_keeps_the_fits_that_are_done(df):
    result = fitted(df, "crossed")
    Y = mixed_responses(result, 3)

    def data_of(number):
        if number == 4:
            raise KeyboardInterrupt
        return result._data.with_response(Y[:, number])

    models = OneByOne(result._data, data_of, 6)
    with pytest.warns(RuntimeWarning, match="4 of 6 fits are done"):
        found = batch.fit_lanes([models.family(np.arange(6), None)])
    assert (found.status[4:] == Status.INTERRUPTED).all()
    for r in range(4):
        assert_lane(found, r, result.refit(Y[:, r]).fit)
