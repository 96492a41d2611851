"""The statsmodels surface: likelihood against dense algebra, options of fit, results, and lmer's printed numbers."""

import csv
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

import lme_jax as lme
from lme_jax.compat.params import MixedLMParams, VCSpec
from lme_jax.core import likelihood
from lme_jax.core.crossed_data import compress_crossed
from lme_jax.core.em import em
from lme_jax.core.henderson import MixedModelEquations
from lme_jax.errors import DataError, UnsupportedError
from lme_jax.inference.hypotheses import hypotheses

WHEEL = Path(import_module("statsmodels.regression").__file__).parent / "tests" / "results"


@pytest.fixture(scope="module")
def dietox():
    return pd.read_csv(WHEEL / "dietox.csv")


@pytest.fixture(scope="module")
def slopes(dietox):
    return lme.mixedlm("Weight ~ Time", dietox, groups="Pig", re_formula="~Time")


@pytest.fixture(scope="module")
def fitted(slopes):
    return slopes.fit()


@pytest.fixture(scope="module")
def three_terms():
    """Correlated slopes in groups, cells within them, and a factor that crosses everything."""
    rng = np.random.default_rng(4)
    n, m = 120, 12
    codes, cells, crossed = np.arange(n) // 10, np.arange(n) // 5, np.arange(n) % 7
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    Z = np.column_stack([np.ones(n), rng.normal(size=n)])
    y = 1e4 + X[:, 1] + rng.normal(size=n) + rng.normal(size=m)[codes] + rng.normal(size=24)[cells]
    weights = rng.uniform(0.5, 2.0, n)
    one = np.ones((n, 1))
    Zs, levels = [Z, one, one], [m, 24, 7]
    templates = ("unstructured", "identity", "identity")
    data = compress_crossed(y, X, Zs, [codes, cells, crossed], levels, templates, weights=weights)
    spread = zip(Zs, [codes, cells, crossed], levels, strict=True)
    A = [np.einsum("nq,nm->nmq", z, np.eye(k)[c]).reshape(n, -1) for z, c, k in spread]
    return y, X, weights, data, A


OMEGA = np.array([1.0, 0.2, 0.7, 0.5, 0.3])
BETA = np.array([1e4 + 0.1, 0.2])


def numeric(f, x, h=1e-5):
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])


class TestLikelihoodOfTerms:
    @pytest.mark.parametrize("reml", [False, True])
    def test_loglike_is_dense(self, three_terms, reml):
        y, X, w, data, A = three_terms
        blocks = [np.kron(np.eye(12), [[1.0, 0.2], [0.2, 0.7]]), 0.5 * np.eye(24), 0.3 * np.eye(7)]
        V = np.diag(1 / w) + sum(a @ b @ a.T for a, b in zip(A, blocks, strict=True))
        Vi, N, r = np.linalg.inv(V), len(y) - 2 * reml, y - X @ BETA
        q = r @ Vi @ r
        expected = -0.5 * (np.linalg.slogdet(V)[1] + N * (1 + np.log(2 * np.pi * q / N)))
        if reml:
            expected -= 0.5 * np.linalg.slogdet(X.T @ Vi @ X)[1]
        value = likelihood.loglike(np.append(BETA, OMEGA), data, scale="profile", reml=reml)
        assert value == pytest.approx(expected, abs=1e-8)
        np.testing.assert_allclose(likelihood.gls(OMEGA, data), np.linalg.solve(X.T @ Vi @ X, X.T @ Vi @ y), rtol=1e-10)
        assert likelihood.scale_at(BETA, OMEGA, "profile", data, reml) == pytest.approx(q / N, rel=1e-10)

    def test_joint_covariance_of_effects_is_dense(self, three_terms):
        """Of the levels of the first factor with the cells in them."""
        _, X, w, _, A = three_terms
        A = A[:2]
        B = np.zeros((48, 48))
        B[:24, :24], B[24:, 24:] = np.kron(np.eye(12), [[1.0, 0.2], [0.2, 0.7]]), 0.5 * np.eye(24)
        full = np.column_stack(A)
        V = np.linalg.inv(np.diag(1 / w) + full @ B @ full.T)
        expected = B - B @ full.T @ V @ full @ B
        roots = [np.linalg.cholesky([[1.0, 0.2], [0.2, 0.7]]), np.sqrt([[0.5]])]
        equations = MixedModelEquations(X, A, roots, w, np.eye(2))
        sets = [np.array([2 * g, 2 * g + 1, 24 + 2 * g, 25 + 2 * g]) for g in range(12)]
        for members, found in zip(sets, equations.within(sets), strict=True):
            np.testing.assert_allclose(found, expected[np.ix_(members, members)], atol=1e-11)

    @pytest.mark.parametrize("reml", [False, True])
    def test_em_never_goes_down(self, three_terms, reml):
        model = three_terms[3]
        omega, path = em(model, OMEGA, 60, reml)
        assert np.all(np.diff(path) > -1e-9)
        assert path[-1] > path[0] + 1
        longer, _ = em(model, omega, 1, reml)
        # EM converges linearly: after 60 steps one more still moves Ψ/σ² in the second decimal, no further.
        np.testing.assert_allclose(longer, omega, atol=0.02)


class TestParams:
    def test_round_trip(self):
        p = MixedLMParams.from_components([1.0, 2.0], [[2.0, 0.5], [0.5, 1.0]], None, [4.0])
        for use_sqrt in (False, True):
            for has_fe in (False, True):
                again = MixedLMParams.from_packed(p.get_packed(use_sqrt, has_fe), 2, 2, use_sqrt, has_fe)
                np.testing.assert_allclose(again.cov_re, p.cov_re, atol=1e-15)
                np.testing.assert_allclose(again.vcomp, p.vcomp)
        assert p.copy() == p
        assert p.copy() is not p
        singular = MixedLMParams.from_components([], [[1.0, 1.0], [1.0, 1.0]])
        np.testing.assert_array_equal(singular.get_packed(use_sqrt=True), [1.0, 1.0, 0.0])
        with pytest.raises(DataError, match="semidefinite"):
            MixedLMParams.from_components([], [[1.0, 2.0], [2.0, 1.0]]).get_packed(use_sqrt=True)


class TestModel:
    def test_likelihood_at_the_estimates(self, slopes, fitted):
        slopes.reml = True
        assert slopes.loglike(fitted.params_object) == pytest.approx(fitted.llf, abs=1e-9)
        assert np.abs(slopes.score(fitted.params_object)).max() < 1e-4
        hessian, singular = slopes.hessian(fitted.params_object)
        np.testing.assert_allclose(np.linalg.inv(-hessian), fitted.cov_params(), rtol=1e-6)
        assert not singular
        beta, _ = slopes.get_fe_params(fitted.params_object.cov_re, [])
        np.testing.assert_allclose(beta, fitted.fe_params, rtol=1e-10)
        assert slopes.get_scale(beta, fitted.params_object.cov_re, []) == pytest.approx(fitted.scale)

    def test_beta_at_zero_variance_is_least_squares(self, slopes, dietox):
        beta, singular = slopes.get_fe_params(np.zeros((2, 2)), [])
        np.testing.assert_allclose(beta, np.linalg.lstsq(slopes.exog, dietox.Weight, rcond=None)[0], rtol=1e-10)
        assert singular

    def test_attributes(self, slopes):
        assert (slopes.k_fe, slopes.k_re, slopes.k_re2, slopes.k_vc, slopes.k_params) == (2, 2, 3, 0, 5)
        assert (slopes.n_groups, slopes.nobs) == (72, 861)
        assert slopes.data.exog_re_names_full == ["Pig Var", "Pig x Time Cov", "Time Var"]
        assert sum(map(len, slopes.endog_li)) == 861
        assert slopes.group_list(slopes.exog)[0].shape == slopes.exog_re_li[0].shape

    def test_arguments(self, dietox):
        with pytest.raises(DataError, match="groups"):
            lme.mixedlm("Weight ~ Time", dietox)
        with pytest.raises(DataError, match="hasconst"):
            lme.mixedlm("Weight ~ Time", dietox, groups="Pig", hasconst=True)
        assert lme.mixedlm("Weight ~ Time", dietox, groups="Pig", subset=dietox.Time < 5).nobs == 288
        assert lme.mixedlm("Weight ~ Time", dietox, groups="Pig", drop_cols=["Intercept"]).exog_names == ["Time"]
        doubled = lme.mixedlm("Weight ~ f(Time)", dietox, groups="Pig", eval_env={"f": lambda x: 2 * x})
        np.testing.assert_allclose(doubled.exog[:, 1], 2 * dietox.Time)

    def test_distribution(self, slopes, fitted):
        draws = slopes.get_distribution(fitted.params, fitted.scale).rvs(400, rng=1)
        expected = fitted.scale + np.einsum("ni,ij,nj->n", slopes.exog_re, fitted.cov_re, slopes.exog_re)
        # A variance from 400 draws has a relative standard error of √(2/400) = 7 %; rows of a group share it.
        np.testing.assert_allclose(draws.var(0).mean(), expected.mean(), rtol=0.1)


class TestFit:
    @pytest.mark.parametrize("method", ["lbfgs", "bfgs", "cg", "nm", "powell"])
    def test_methods_agree(self, slopes, fitted, method):
        other = slopes.fit(method=method, full_output=True)
        assert other.converged
        assert other.llf == pytest.approx(fitted.llf, abs=1e-6)
        # ℓ is flat to second order: 1e-6 in ℓ is 1e-3 in the parameters, where scipy's own tolerances stop.
        np.testing.assert_allclose(other.params, fitted.params, rtol=1e-3, atol=1e-4)
        assert other.hist[-1]["method"] == method

    def test_steps_before_the_search(self, slopes, fitted):
        other = slopes.fit(niter_em=3, niter_sa=2, full_output=True)
        assert [h["method"] for h in other.hist] == ["em", "steepest ascent", "newton"]
        assert all(np.all(np.diff(h["deviances"]) < 1e-9) for h in other.hist[:2])
        assert other.llf == pytest.approx(fitted.llf, abs=1e-8)
        assert not slopes.fit(do_cg=False).converged

    def test_free(self, slopes, dietox):
        free = MixedLMParams.from_components(np.ones(2), np.eye(2))
        independent = slopes.fit(free=free)
        reference = lme.lmer("Weight ~ Time + (Time || Pig)", dietox)
        assert independent.llf == pytest.approx(reference.llf, abs=1e-8)
        assert len(independent.params) == 5
        assert independent.bse.iloc[3] == 0.0
        held = MixedLMParams.from_components(np.ones(2), np.diag([0.0, 1.0]))
        start = MixedLMParams.from_components(np.zeros(2), np.diag([2.0, 0.05]))
        fits = [slopes.fit(free=held, start_params=start, method=m) for m in ("newton", "bfgs", "nm")]
        for other in fits:
            assert other.params_object.cov_re[0, 0] == pytest.approx(2.0)
            assert other.llf == pytest.approx(fits[0].llf, abs=1e-6)
        assert fits[0].llf < independent.llf

    def test_unknown_options(self, slopes):
        with pytest.warns(FutureWarning, match="cov_type"):
            slopes.fit(cov_type="hc1")
        with pytest.raises(DataError, match="method"):
            slopes.fit(method="ncg2")

    def test_results_survive_a_refit(self, slopes):
        first = slopes.fit()
        before = (first.llf, first.aic)
        slopes.fit(reml=False)
        assert (first.llf, first.aic) == before
        assert np.isfinite(first.aic)

    def test_lasso(self, slopes, fitted):
        assert slopes.fit_regularized(alpha=0.0).llf == fitted.llf
        shrunk = slopes.fit_regularized(alpha=100.0)
        gap = np.asarray(shrunk.fe_params) - np.asarray(fitted.fe_params)
        pull = np.linalg.solve(fitted.cov_fe, gap)
        active = np.asarray(shrunk.fe_params) != 0
        np.testing.assert_allclose(2 * pull[active], -100.0 * np.sign(shrunk.fe_params[active]), rtol=1e-5)
        assert np.all(np.abs(2 * pull[~active]) <= 100.0)
        np.testing.assert_array_equal(slopes.fit_regularized(alpha=1e9).fe_params, 0.0)

    def test_smooth_penalties_shrink(self, dietox, fitted):
        penalties = pytest.importorskip("statsmodels.base._penalties")
        slopes = lme.mixedlm("Weight ~ Time", dietox, groups="Pig", re_formula="~Time")
        ridge = slopes.fit_regularized(method=penalties.L2(), alpha=1.0)
        assert np.linalg.norm(ridge.fe_params) < 0.8 * np.linalg.norm(fitted.fe_params)
        slopes.reml = True
        slope = slopes.score(ridge.params_object, profile_fe=False)
        # The penalised criterion is stationary: what is left is where its search stops (1e-7 of some hundreds).
        np.testing.assert_allclose(slope[:2], 0.0, atol=1e-5)
        barrier = slopes.fit(cov_pen=penalties.PSD(1.0))
        assert np.linalg.det(barrier.cov_re_unscaled) > np.linalg.det(fitted.cov_re_unscaled)


class TestComponentsOfVariance:
    @pytest.fixture
    def crossed(self):
        rng = np.random.default_rng(1)
        n = 400
        a, b = rng.integers(0, 12, n), rng.integers(0, 9, n)
        y = rng.normal(size=12)[a] + rng.normal(size=9)[b] + rng.normal(size=n)
        return pd.DataFrame({"y": y, "a": a, "b": b, "g": 1})

    def test_formula_matrices_and_lmer_agree(self, crossed):
        reference = lme.lmer("y ~ 1 + (1|a) + (1|b)", crossed)
        by_formula = lme.mixedlm("y ~ 1", crossed, groups="g", vc_formula={"a": "0+C(a)", "b": "0+C(b)"}).fit()
        mats = [[pd.get_dummies(crossed[c]).to_numpy(float)] for c in "ab"]
        names = [[[str(j) for j in range(m[0].shape[1])]] for m in mats]
        model = lme.MixedLM(crossed.y, np.ones(400), np.ones(400), exog_vc=VCSpec(["a", "b"], names, mats))
        by_matrix = model.fit()
        for other in (by_formula, by_matrix):
            assert other.llf == pytest.approx(reference.llf, abs=1e-8)
            np.testing.assert_allclose(other.vcomp, reference.varcorr.vcov[:2], rtol=1e-6)
            np.testing.assert_allclose(other.bse, by_formula.bse, rtol=1e-5)
            np.testing.assert_allclose(other.bse_fe, reference.bse_fe, rtol=1e-5)
        assert by_matrix.random_effects[1.0].size == 21
        assert by_matrix.random_effects_cov[1.0].shape == (21, 21)
        np.testing.assert_array_equal(model.exog_vc.mats[0][0], mats[0][0])
        assert "a Var" in str(by_matrix.summary())

    def test_categorical_cells(self):
        data = pd.read_csv(WHEEL / "pastes.csv")
        arguments = dict(groups="batch", re_formula="1", vc_formula={"cask": "0 + cask"})
        plain = lme.mixedlm("strength ~ 1", data, **arguments).fit()
        data["cask"] = pd.Categorical(data.cask)
        other = lme.mixedlm("strength ~ 1", data, **arguments).fit()
        assert other.llf == plain.llf
        # Printed by lmer, as many digits as the wheel holds.
        assert plain.fe_params.iloc[0] == pytest.approx(60.0533, abs=5e-5)
        assert plain.bse_fe.iloc[0] == pytest.approx(0.6769, abs=6e-5)
        assert plain.cov_re.iloc[0, 0] == pytest.approx(1.657, abs=5e-4)
        assert plain.scale == pytest.approx(0.678, abs=5e-5)
        # The polished fit of the same data, pastes_reml of tests/reference.
        assert plain.llf == pytest.approx(-0.5 * 246.990745853486, abs=5e-7)

    def test_dense_matrices(self, rng):
        n = 200
        groups, E = np.arange(n) // 10, rng.normal(size=(n, 3))
        y = rng.normal(size=n) + np.einsum("nq,nq->n", E, rng.normal(size=(20, 3))[groups])
        mats = [[E[groups == g] for g in range(20)]]
        spec = VCSpec(["e"], [[["0", "1", "2"]] * 20], mats)
        result = lme.MixedLM(y, np.ones(n), groups, exog_vc=spec).fit()
        frame = pd.DataFrame({"y": y, "g": groups, "e0": E[:, 0], "e1": E[:, 1], "e2": E[:, 2]})
        other = lme.mixedlm("y ~ 1", frame, groups="g", vc_formula={"e": "0 + e0 + e1 + e2"}).fit()
        assert result.llf == pytest.approx(other.llf, abs=1e-9)
        wide = VCSpec(["e"], [[[str(j) for j in range(40)]] * 20], [[rng.normal(size=(10, 40)) for _ in range(20)]])
        with pytest.raises(UnsupportedError, match="indicator"):
            lme.MixedLM(y, np.ones(n), groups, exog_vc=wide)


class TestResults:
    def test_hypotheses(self, fitted):
        test = fitted.t_test("Time - 7")
        one = fitted.t_test([0.0, 1.0])
        assert one.tvalue[0] == pytest.approx(fitted.fe_params["Time"] / fitted.bse_fe["Time"])
        assert test.pvalue[0] == pytest.approx(fitted.t_test("Time = 7").pvalue[0])
        both = fitted.wald_test("Intercept = 0, Time = 0")
        beta = fitted.fe_params.to_numpy()
        assert both.statistic == pytest.approx(beta @ np.linalg.solve(fitted.cov_fe, beta))
        assert fitted.f_test(np.eye(2)).statistic == pytest.approx(both.statistic / 2)
        terms = fitted.wald_test_terms()
        assert terms.loc["Time", "statistic"] == pytest.approx(one.tvalue[0] ** 2)
        variance = fitted.wald_test(np.eye(5)[2])
        assert variance.statistic == pytest.approx(fitted.tvalues.iloc[2] ** 2)
        with pytest.raises(DataError, match="linear"):
            fitted.t_test("Time * Intercept")
        with pytest.raises(DataError, match="columns"):
            fitted.t_test(np.eye(3))

    def test_names_that_are_formulas(self):
        names = ["Intercept", "C(a, Sum)[S.1]", "x", "I(x ** 2)", "x2"]
        R, c = hypotheses("C(a, Sum)[S.1] = 2, I(x ** 2) - 3 * x + x2 / 2", names)
        np.testing.assert_array_equal(R, [[0, 1, 0, 0, 0], [0, 0, -3, 1, 0.5]])
        np.testing.assert_array_equal(c, [2, 0])

    def test_use_t(self, slopes, fitted):
        with_t = slopes.fit(use_t=True)
        expected = 2.0 * scipy.stats.t.sf(np.abs(fitted.tvalues), fitted.df_resid)
        np.testing.assert_allclose(with_t.pvalues, expected, rtol=1e-10)
        half = scipy.stats.t.ppf(0.975, fitted.df_resid) * fitted.bse
        np.testing.assert_allclose(with_t.conf_int()[1] - with_t.params, half, rtol=1e-10)

    def test_units(self, dietox, fitted):
        heavy = dietox.assign(Weight=dietox.Weight * 10)
        scaled = lme.mixedlm("Weight ~ Time", heavy, groups="Pig", re_formula="~Time")
        np.testing.assert_allclose(scaled.fit().bse_re, 100 * fitted.bse_re, rtol=1e-6)

    def test_likelihood_ratio(self, dietox, fitted):
        small = lme.mixedlm("Weight ~ Time", dietox, groups="Pig").fit()
        statistic, p, df = fitted.compare_lr_test(small)
        assert (statistic, df) == (pytest.approx(2 * (fitted.llf - small.llf)), 2)
        assert p < fitted.compare_lr_test(small, boundary=False)[1]
        with pytest.raises(DataError, match="larger"):
            small.compare_lr_test(fitted)

    def test_profile(self, fitted):
        profile = fitted.profile_re(1, "re", num_low=2, num_high=2, dist_low=0.2, dist_high=0.2)
        assert profile[2, 0] == pytest.approx(fitted.cov_re.iloc[1, 1])
        assert np.all(profile[[0, 1, 3, 4], 1] < fitted.llf)
        assert np.all(np.diff(profile[:3, 1]) > 0)
        with pytest.raises(DataError, match="vtype"):
            fitted.profile_re(0, "other")

    def test_predictions(self, dietox, fitted):
        new = dietox.iloc[:3]
        np.testing.assert_allclose(fitted.predict(new), fitted.predict().iloc[:3])
        np.testing.assert_allclose(fitted.predict(new, random_effects=True), fitted.fittedvalues.iloc[:3])
        frame = fitted.get_prediction(new, random_effects=True).summary_frame()
        assert np.all(frame.obs_ci_upper > frame.mean_ci_upper)
        marginal = fitted.get_prediction(new).summary_frame()
        X = np.column_stack([np.ones(3), new.Time])
        np.testing.assert_allclose(marginal.mean_se, np.sqrt(np.einsum("ni,ij,nj->n", X, fitted.cov_fe, X)), rtol=1e-6)

    def test_save_and_remove_data(self, slopes, tmp_path):
        result = slopes.fit()
        result.get_prediction()
        result.save(tmp_path / "full")
        loaded = type(result).load(tmp_path / "full")
        loaded.save(tmp_path / "thin", remove_data=True)
        thin = type(result).load(tmp_path / "thin")
        assert (tmp_path / "thin").stat().st_size < 0.5 * (tmp_path / "full").stat().st_size
        np.testing.assert_array_equal(thin.bse, result.bse)
        assert str(thin.summary()) == str(result.summary())
        with pytest.raises(DataError, match="removed"):
            _ = thin.fittedvalues

    def test_array_models_take_positions(self, dietox):
        X = np.column_stack([np.ones(861), dietox.Time])
        result = lme.MixedLM(dietox.Weight.to_numpy(), X, dietox.Pig.to_numpy()).fit()
        assert isinstance(result.params, np.ndarray)
        assert result.fe_params[0] == result.fe_params["const"]
        assert result.cov_params()[0:2, 0:2].shape == (2, 2)
        assert result.cov_re[0, 0] == pytest.approx(40.39395, rel=1e-6)

    def test_every_labelled_attribute_of_array_models_takes_positions(self, dietox):
        X = np.column_stack([np.ones(861), dietox.Time])
        result = lme.MixedLM(dietox.Weight.to_numpy(), X, dietox.Pig.to_numpy(), X).fit()
        labelled = [
            name
            for name in dir(result)
            if not name.startswith("_") and isinstance(getattr(result, name), pd.core.base.PandasObject)
        ]
        assert len(labelled) == 13
        for name in labelled:
            value = getattr(result, name)
            picked = value[0] if value.ndim == 1 else value[0, 0]
            assert picked == (value.iloc[0] if value.ndim == 1 else value.iloc[0, 0])
        for name in ("params", "bse", "tvalues", "pvalues"):
            assert type(getattr(result, name)) is np.ndarray

    def test_what_the_fit_was_asked_for(self, slopes):
        free = MixedLMParams.from_components(np.ones(2), np.eye(2))
        result = slopes.fit(free=free, full_output=True, use_t=True)
        assert result.model is slopes and result.freepat is free and result.use_t
        assert [record["method"] for record in result.hist] == ["newton"]
        assert slopes.fit().hist is None and not slopes.fit().use_t
        with pytest.raises(AttributeError):
            result.model = None

    def test_profile_with_a_held_variance(self, slopes):
        """Cov(b)₀₀/σ² stays at 2, as in the fit: the profile of the slope's variance has its top at that fit."""
        free = MixedLMParams.from_components(np.ones(2), np.diag([0.0, 1.0]))
        start = MixedLMParams.from_components(np.zeros(2), np.diag([2.0, 0.05]))
        result = slopes.fit(free=free, start_params=start)
        curve = result.profile_re(1, "re", 1, 0.05, 1, 0.05)
        assert curve[1] == pytest.approx([result.cov_re.iloc[1, 1], result.llf])
        layout, N = slopes._layout, 861 - 2

        def deviance(log_scale, variance):
            omega = np.array([2.0, 0.0, variance / np.exp(log_scale)])
            beta = layout.gls(omega)
            ratio = layout.sigma2(beta, omega, True) / np.exp(log_scale)
            return -2.0 * layout.loglike(beta, omega, True) + N * (ratio - 1.0 - np.log(ratio))

        for value, llf in curve:
            best = scipy.optimize.minimize_scalar(deviance, (1.5, 2.0), args=(value,), tol=1e-10).fun
            assert llf == pytest.approx(-0.5 * best, abs=1e-7)


class TestOptimisers:
    @pytest.mark.parametrize("reml", [True, False])
    def test_gradient_at_theta_of_any_sign(self, slopes, reml):
        """A Fit has its derivatives in the canonical θ; a search may stand at another."""
        from lme_jax.compat.optimisers import objective

        at = objective(slopes._data, reml)
        for theta in ([-1.5, 0.1, 0.3], [1.5, 0.1, -0.3], [-1.5, -0.1, -0.3]):
            difference = numeric(lambda x: at(x)[0], np.array(theta))
            np.testing.assert_allclose(at(np.array(theta))[1], difference, rtol=1e-6, atol=1e-6)


def lmer_numbers(meth, kind, number):
    numbers = import_module("statsmodels.regression.tests.results.lme_r_results")
    names = ("coef", "vcov", "cov_re", "scale", "loglike")
    return {name: np.asarray(getattr(numbers, f"{name}_{meth}_{kind}_{number}")) for name in names}


def lme_data(number):
    with (WHEEL / f"lme{number:02d}.csv").open() as file:
        rows = list(csv.reader(file))
    data = np.array(rows[1:], float)
    pick = {name: [j for j, h in enumerate(rows[0]) if h.startswith(name)] for name in ("exog_fe", "exog_re")}
    y, groups = data[:, rows[0].index("endog")], data[:, rows[0].index("groups")]
    return y, data[:, pick["exog_fe"]], groups, data[:, pick["exog_re"]]


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")
def test_lmer_files(number, reml):
    """Seven printed digits; lmer's own optimiser stops at about 1e-5 in the variances."""
    y, X, groups, Z = lme_data(number)
    model = lme.MixedLM(y, X, groups, Z)
    kinds = ["drf"] if number < 6 else ["drf", "irf"]
    for kind in kinds:
        expected = lmer_numbers("reml" if reml else "ml", kind, number)
        free = MixedLMParams.from_components(np.ones(X.shape[1]), np.eye(Z.shape[1])) if kind == "irf" else None
        result = model.fit(reml=reml, free=free)
        np.testing.assert_allclose(result.fe_params, expected["coef"], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(result.cov_fe, expected["vcov"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(result.cov_re, expected["cov_re"], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(result.scale, expected["scale"][0], rtol=1e-5)
        assert result.llf == pytest.approx(expected["loglike"][0], abs=6e-5)
