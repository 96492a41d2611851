"""Results as a person keeps them: own copies, pickles, starts, statuses with reasons, names for other packages."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

import lme_jax as lme
from lme_jax import datasets
from lme_jax.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    RankWarning,
    SingularFitWarning,
    UnsupportedError,
)

FORMULA = "Reaction ~ Days + (Days | Subject)"
NEW = datasets.load("sleepstudy").iloc[:3]


@pytest.fixture
def sleepstudy():
    return datasets.load("sleepstudy")


@pytest.fixture(scope="module")
def fitted():
    return lme.lmer(FORMULA, datasets.load("sleepstudy"))


@pytest.fixture(scope="module")
def many(fitted):
    return fitted.refit_many(fitted.simulate(4, seed=1), progress=False)


class TestOwnMemory:
    def test_what_is_handed_out_is_a_copy(self, fitted):
        text, limits = str(fitted.summary()), fitted.conf_int()
        for name in ("fe_params", "bse_fe", "cov_fe", "theta", "cov_re", "bse_re", "varcorr", "fittedvalues", "resid"):
            before, taken = getattr(fitted, name), getattr(fitted, name)
            if taken.ndim == 1:
                taken.iloc[0] = 99.0
            else:
                taken.iloc[:, -1] = 99.0
            assert getattr(fitted, name).equals(before) and not taken.equals(before)
        taken = fitted.ranef["Subject"]
        taken.iloc[0, 0] = 99.0
        assert fitted.ranef["Subject"].iloc[0, 0] != 99.0
        fitted.ranef_cov["Subject"][:] = 0.0
        assert fitted.ranef_cov["Subject"].any()
        assert str(fitted.summary()) == text
        pd.testing.assert_frame_equal(fitted.conf_int(), limits)

    def test_a_result_cannot_be_written_to(self, fitted, many):
        with pytest.raises(AttributeError):
            fitted.fit = None
        with pytest.raises(AttributeError):
            many.fit = None
        with pytest.raises(AttributeError):
            fitted.reml = False
        with pytest.raises(AttributeError, match="immutable"):
            fitted.fe_params = None
        copies = pickle.loads(pickle.dumps((fitted, many)))
        for array in (
            *(result.fit.theta for result in (fitted, many, many.one(1), *copies)),
            fitted.fit.beta,
            many.fit.deviance,
        ):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0.0

    def test_the_callers_arrays_are_not_read_late(self, sleepstudy):
        y = sleepstudy.Reaction.to_numpy(copy=True)
        X = np.column_stack([np.ones(180), sleepstudy.Days])
        Z, groups, weights = X.copy(), sleepstudy.Subject.to_numpy(), np.linspace(0.5, 1, 180)

        def untouched():
            return lme.MixedLM(y.copy(), X.copy(), groups, Z.copy(), weights=weights.copy()).fit()

        expected = untouched()
        result = lme.MixedLM(y, X, groups, Z, weights=weights).fit()
        Y = np.column_stack([y, y + 1.0, np.where(np.arange(180) == 3, np.nan, y)])
        offset = np.linspace(-1, 1, 180)
        batch = lme.fit_many(Y, X, Z, groups, weights=weights, offset=offset, progress=False)
        again = lme.fit_many(Y.copy(), X.copy(), Z.copy(), groups, weights=weights.copy(), offset=offset.copy())
        for array in (y, X, Z, weights, Y, offset):
            array[:] = 0.0
        for name in ("fittedvalues", "resid"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
            for number in (0, 2):
                found, right = batch.one(number), again.one(number)
                np.testing.assert_array_equal(getattr(found, name), getattr(right, name))
        np.testing.assert_array_equal(result.bse, expected.bse)

    def test_values_of_the_data_frame_overwritten_in_place(self, sleepstudy):
        values = sleepstudy.Reaction.to_numpy(copy=True)
        data = {"Reaction": values, "Days": sleepstudy.Days.to_numpy(copy=True), "Subject": sleepstudy.Subject}
        result = lme.lmer("Reaction ~ Days + (0 + Days | Subject)", data)
        before = result._data.y.copy(), result._data.factors[0].Z.copy()
        data["Reaction"][:] = 0.0
        data["Days"][:] = 0.0
        np.testing.assert_array_equal(result._data.y, before[0])
        np.testing.assert_array_equal(result._data.factors[0].Z, before[1])


class TestPickle:
    def test_in_another_process(self, fitted, many, tmp_path):
        frame = datasets.load("sleepstudy")
        frame["half"] = np.where(np.arange(180) % 2, "odd", "even")
        by = lme.lmer_many("Reaction ~ Days + (1 | Subject)", frame, by="half", progress=False)
        boot = fitted.bootstrap(40, seed=1, progress=False)
        (tmp_path / "all").write_bytes(pickle.dumps((fitted, many, by, boot)))
        program = (
            "import pickle, pathlib, sys\n"
            "fitted, many, by, boot = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
            "print(repr(fitted.deviance), repr(float(many.one(2).fittedvalues.iloc[7])))\n"
            "print(repr(float(by.one('odd').resid.iloc[3])), repr(float(boot.intervals().lower.iloc[0])))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "all")], capture_output=True, text=True, check=True
        )
        shown = [float(number) for number in done.stdout.split()]
        here = [
            fitted.deviance,
            many.one(2).fittedvalues.iloc[7],
            by.one("odd").resid.iloc[3],
            boot.intervals().lower.iloc[0],
        ]
        np.testing.assert_allclose(shown, here, rtol=1e-12)

    def test_the_state_of_another_version_is_refused(self, fitted):
        state = fitted.__getstate__()
        for version in (state["_state_version"] + 1, None):
            with pytest.raises(DataError, match="another version"):
                type(fitted).__new__(type(fitted)).__setstate__({**state, "_state_version": version})

    def test_the_jackknife_survives(self, fitted):
        boot = pickle.loads(pickle.dumps(fitted.bootstrap(60, seed=2, progress=False)))
        assert boot.intervals(method="bca").notna().all(axis=None)


class TestArguments:
    @pytest.mark.parametrize(
        "start", [[1.0], [], "abc", {"a": 1.0}, [[1.0, 2.0], [3.0]], [np.nan, 1.0, 1.0], [1j, 1.0, 1.0], 3.0]
    )
    def test_a_start_of_the_wrong_kind_names_the_parameters(self, sleepstudy, fitted, start):
        Y = sleepstudy[["Reaction"]]
        X = np.column_stack([np.ones(180), sleepstudy.Days])
        doors = [
            lambda: lme.lmer(FORMULA, sleepstudy, start=start),
            lambda: fitted.refit(sleepstudy.Reaction, start=start),
            lambda: fitted.refit_many(Y, start=start),
            lambda: lme.fit_many(Y, X, X, sleepstudy.Subject, start=start),
            lambda: lme.lmer_many(FORMULA, sleepstudy.assign(k=1), by="k", start=start),
            lambda: lme.MixedLM(sleepstudy.Reaction, X, sleepstudy.Subject, X).fit(start=start),
        ]
        for door in doors:
            with pytest.raises(DataError, match=r"(?s)start.*3 finite numbers, for (Subject|Group)\."):
                door()

    def test_theta_of_a_fit_is_a_start(self, sleepstudy, fitted):
        far = lme.lmer(FORMULA, sleepstudy, start=[9.0, 0.0, 9.0])
        for start in (fitted.theta, fitted.theta.iloc[::-1], fitted.theta.to_list()):
            again = lme.lmer(FORMULA, sleepstudy, start=start)
            assert again.deviance == pytest.approx(fitted.deviance, abs=1e-9)
            assert again.fit.iterations < far.fit.iterations

    @pytest.mark.parametrize("reml", ["ML", "no", 1, None])
    def test_reml_is_true_or_false(self, sleepstudy, fitted, reml):
        X = np.ones((180, 1))
        doors = [
            lambda: lme.lmer(FORMULA, sleepstudy, reml=reml),
            lambda: lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject").fit(reml=reml),
            lambda: lme.fit_many(sleepstudy[["Reaction"]], X, None, sleepstudy.Subject, reml=reml),
            lambda: lme.lmer_many(FORMULA, sleepstudy.assign(k=1), by="k", reml=reml),
        ]
        for door in doors:
            with pytest.raises(DataError, match=r"reml=.* True .*False"):
                door()

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"max_iter": 3}, r"NewtonOptions\(max_iter=3\)"),
            (None, "NewtonOptions"),
            (lme.NewtonOptions(max_iter=0), "max_iter=0"),
            (lme.NewtonOptions(tol=-1.0), "tol=-1.0"),
            (lme.NewtonOptions(tol=np.nan), "tol=nan"),
        ],
    )
    def test_options_are_newton_options(self, sleepstudy, options, says):
        with pytest.raises(DataError, match=says):
            lme.lmer(FORMULA, sleepstudy, options=options)
        with pytest.raises(DataError, match=says):
            lme.lmer_many(FORMULA, sleepstudy.assign(k=1), by="k", options=options)

    def test_complex_numbers(self, sleepstudy, fitted):
        y, X = sleepstudy.Reaction.to_numpy(), np.ones((180, 1))
        for arguments in ((y + 1j, X), (y, X + 1j), (y, X, X + 1j)):
            endog, exog, *exog_re = arguments
            with pytest.raises(DataError, match="complex"):
                lme.MixedLM(endog, exog, sleepstudy.Subject, *exog_re)
        with pytest.raises(DataError, match="complex"):
            fitted.refit(y + 1j)
        with pytest.raises(DataError, match="complex"):
            lme.fit_many(y, X + 1j, None, sleepstudy.Subject)
        with pytest.raises(DataError, match="complex"):
            lme.fit_many(y, X, None, sleepstudy.Subject, offset=np.full(180, 1j))

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            (lambda r: r.conf_int(2), "alpha=2"),
            (lambda r: r.summary(alpha=0), "alpha=0"),
            (lambda r: r.simulate(0, seed=1), "n=0"),
            (lambda r: r.simulate(1.5, seed=1), "n=1.5"),
            (lambda r: r.bootstrap(1.5, seed=1), "n=1.5"),
            (lambda r: r.predict(random_effects=3), "random_effects=3"),
            (lambda r: r.predict(NEW, offset=[1.0, 2.0]), r"offset has shape \(2,\)"),
            (lambda r: r.prediction(NEW, weights=[1.0, 2.0]), r"weights has shape \(2,\)"),
            (lambda r: r.prediction(NEW, weights="w"), "'w'"),
            (lambda r: r.prediction(NEW, weights=-1.0), "> 0"),
            (lambda r: r.compare_lr_test(3), "int"),
            (lambda r: r.update(3), "update"),
            (lambda r: r.refit(["a"] * 180), "numbers"),
            (lambda r: r.refit_many(np.ones((180, 1)), memory_limit=-1), "memory_limit=-1"),
        ],
    )
    def test_nonsense_is_refused_in_words(self, fitted, call, says):
        with pytest.raises(DataError, match=says):
            call(fitted)


class TestWarnings:
    def test_they_point_at_the_persons_own_line(self, sleepstudy):
        # Unbalanced: in balanced data the search starts at its optimum.
        sleepstudy = sleepstudy.iloc[3:-4].reset_index(drop=True)
        noise = pd.DataFrame(np.random.default_rng(0).normal(size=(len(sleepstudy), 2)))
        few = lme.NewtonOptions(max_iter=1)
        calls = [
            lambda: lme.lmer(FORMULA, sleepstudy, options=few),
            lambda: lme.lmer(FORMULA, sleepstudy).update(options=few),
            lambda: lme.lmer_many("~ Days + (Days | Subject)", sleepstudy, noise, options=few, progress=False),
            lambda: lme.lmer_many(FORMULA, sleepstudy.assign(k=1), by="k", options=few, progress=False),
            lambda: lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject", re_formula="~Days").fit(options=few),
        ]
        for call in calls:
            with pytest.warns(ConvergenceWarning) as caught:
                call()
            assert {warning.filename for warning in caught} == {__file__}


class TestParameters:
    def test_held_parameters_are_not_counted(self, sleepstudy):
        model = lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject", re_formula="~Days")
        free = lme.MixedLMParams.from_components(np.ones(2), np.eye(2))
        independent = model.fit(free=free, reml=False)
        same = lme.lmer("Reaction ~ Days + (Days || Subject)", sleepstudy, reml=False)
        assert independent.n_params == same.n_params == 5
        assert independent.aic == pytest.approx(same.aic, abs=1e-6)
        assert independent.bic == pytest.approx(same.bic, abs=1e-6)
        one = lme.MixedLMParams.from_components(np.ones(2), np.array([[1.0, 0.0], [0.0, 0.0]]))
        start = lme.MixedLMParams.from_components(np.zeros(2), np.diag([1.0, 0.05]))
        held = model.fit(free=one, start_params=start, reml=False)
        assert held.n_params == 4
        assert held.aic == pytest.approx(-2 * held.llf + 8)

    def test_params_of_lmer_are_the_fixed_effects(self, fitted):
        np.testing.assert_array_equal(fitted.params, fitted.fe_params)
        np.testing.assert_array_equal(fitted.bse, fitted.bse_fe)
        np.testing.assert_allclose(fitted.tvalues, fitted.fe_params / fitted.bse_fe)
        np.testing.assert_array_equal(fitted.cov_params(), fitted.cov_fe)
        assert fitted.params.index.equals(fitted.conf_int().index)
        assert fitted.wald_test(np.eye(2)).df_num == 2
        test = fitted.t_test("Days = 0")
        assert test.pvalue[0] == pytest.approx(fitted.pvalues["Days"])

    def test_likelihood_ratio_of_lmer_fits(self, fitted, sleepstudy):
        small = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
        statistic, p, df = fitted.compare_lr_test(small)
        assert (statistic, df) == (pytest.approx(small.deviance - fitted.deviance), 2)
        # One variance and one covariance more: half of χ²₁, half of χ²₂.
        assert p == pytest.approx(0.5 * (scipy.stats.chi2.sf(statistic, 1) + scipy.stats.chi2.sf(statistic, 2)))

    def test_likelihood_ratio_has_names_and_wants_one_response(self, fitted, sleepstudy):
        small = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
        test = fitted.compare_lr_test(small)
        assert test == (test.statistic, test.pvalue, test.df)
        assert "2 parameters more" in repr(test)
        shuffled = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy.sample(frac=1.0, random_state=0))
        assert fitted.compare_lr_test(shuffled).statistic == pytest.approx(test.statistic, abs=1e-8)
        other = lme.lmer("np.log(Reaction) ~ Days + (1 | Subject)", sleepstudy)
        with pytest.raises(DataError, match="different responses"):
            fitted.compare_lr_test(other)
        other.remove_data()
        with pytest.raises(DataError, match=r"'Reaction' and 'np\.log"):
            fitted.compare_lr_test(other)
        with pytest.raises(DataError, match=r"update\(reml=False\)"):
            fitted.compare_lr_test(lme.lmer("Reaction ~ 1 + (1 | Subject)", sleepstudy))

    def test_normalized_covariance_is_that_of_statsmodels(self):
        smf = pytest.importorskip("statsmodels.formula.api")
        data = datasets.load("dietox")
        theirs = smf.mixedlm("Weight ~ Time", data, groups="Pig").fit()
        ours = lme.mixedlm("Weight ~ Time", data, groups="Pig").fit()
        np.testing.assert_allclose(ours.normalized_cov_params, theirs.normalized_cov_params, rtol=2e-3, atol=1e-9)
        np.testing.assert_allclose(ours.cov_params(), theirs.cov_params(), rtol=2e-3, atol=1e-8)
        np.testing.assert_allclose(ours.cov_params(scale=2.0), 2.0 * ours.normalized_cov_params)
        assert ours.df_modelwc == theirs.df_modelwc == 3

    def test_summary_col_reads_every_result(self, fitted, sleepstudy):
        summary_col = pytest.importorskip("statsmodels.iolib.summary2").summary_col
        other = lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject").fit()
        text = str(summary_col([fitted, other], model_names=["lmer", "mixedlm"]))
        assert "251.4051" in text and "10.4673" in text and "Reaction" not in text.split("lmer")[0]


class TestNoRandomEffects:
    """Is the random effect needed? Against the same fixed effects alone."""

    # R 4.2.2, lme4 1.1-31: −2 logLik(lm(Reaction ~ Days, sleepstudy), REML = TRUE), of lmer with (1 | Subject); ML.
    ALONE, WITH = 1893.663663472109, 1786.465085394921
    ALONE_ML, WITH_ML = 1900.293056356364, 1794.078643005226

    @pytest.mark.parametrize(("reml", "alone", "full"), [(True, ALONE, WITH), (False, ALONE_ML, WITH_ML)])
    def test_one_variance(self, sleepstudy, reml, alone, full):
        smf = pytest.importorskip("statsmodels.formula.api")
        fit = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, reml=reml)
        null = fit.without_random_effects()
        assert null.deviance == pytest.approx(alone, abs=1e-9)
        assert null.deviance == pytest.approx(float(lme.fit_at(np.zeros(1), fit._data.compressed, reml=reml).deviance))
        ols = smf.ols("Reaction ~ Days", sleepstudy).fit()
        np.testing.assert_allclose(null.beta, ols.params, rtol=1e-10)
        for smaller in (None, null, ols):
            statistic, p, df = fit.compare_lr_test(smaller)
            assert (statistic, df) == (pytest.approx(alone - full, abs=1e-8), 1)
            assert p == pytest.approx(0.5 * scipy.stats.chi2.sf(statistic, 1), rel=1e-8)

    def test_weights_slopes_and_fewer_fixed_effects(self, sleepstudy):
        smf = pytest.importorskip("statsmodels.formula.api")
        data = sleepstudy.assign(w=1 + np.arange(1, 181) % 3)
        fit = lme.lmer(FORMULA, data, weights="w")
        wls = smf.wls("Reaction ~ Days", data, weights=data.w).fit()
        # R: logLik(lm(Reaction ~ Days, sleepstudy, weights = w), REML = TRUE)
        assert fit.without_random_effects().deviance == pytest.approx(1900.59567938427, abs=1e-9)
        test = fit.compare_lr_test(wls)
        tails = scipy.stats.chi2.sf(test.statistic, [1, 2, 3])
        assert (test.df, test.pvalue) == (3, pytest.approx(tails @ [0.25, 0.5, 0.25]))
        ml = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, reml=False)
        test = ml.compare_lr_test(smf.ols("Reaction ~ 1", sleepstudy).fit())
        # R: anova(lmer(Reaction ~ Days + (1 | Subject), REML = FALSE), lm(Reaction ~ 1)): 166.97031 on 2
        assert (test.statistic, test.df) == (pytest.approx(1961.048951702 - self.WITH_ML, abs=1e-8), 2)

    def test_a_variance_of_zero(self, rng):
        data = pd.DataFrame({"g": np.repeat(np.arange(10), 5), "y": np.tile(np.arange(5.0), 10)})
        data["y"] += 0.01 * rng.normal(size=50)
        with pytest.warns(SingularFitWarning):
            fit = lme.lmer("y ~ 1 + (1 | g)", data)
        assert fit.compare_lr_test() == (pytest.approx(0.0, abs=1e-9), 1.0, 1)

    def test_an_offset(self, sleepstudy):
        fit = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy, offset=10.0 * sleepstudy.Days)
        assert fit.without_random_effects().deviance == pytest.approx(self.ALONE, abs=1e-9)
        ols = pytest.importorskip("statsmodels.formula.api").ols("Reaction ~ Days", sleepstudy).fit()
        with pytest.raises(DataError, match="offset"):
            fit.compare_lr_test(ols)

    @pytest.mark.parametrize(
        ("formula", "kind", "says"),
        [
            ("np.log(Reaction) ~ Days", "ols", "different responses"),
            ("Reaction ~ np.log(Days + 1)", "ols", "not nested"),
            ("Reaction ~ 1", "ols", "under REML"),
            ("Reaction ~ Days", "wls", "prior weights"),
            ("Reaction ~ Days", "gls", "no least-squares fit"),
        ],
    )
    def test_what_cannot_be_compared(self, fitted, sleepstudy, formula, kind, says):
        smf = pytest.importorskip("statsmodels.formula.api")
        options = {"wls": {"weights": 1.0 + sleepstudy.Days}, "gls": {"sigma": 1.0 + sleepstudy.Days}}
        smaller = getattr(smf, kind)(formula, sleepstudy, **options.get(kind, {})).fit()
        with pytest.raises(DataError, match=says):
            fitted.compare_lr_test(smaller)
        with pytest.raises(DataError, match="180 and 100"):
            fitted.compare_lr_test(smf.ols("Reaction ~ Days", sleepstudy[:100]).fit())


class TestProfile:
    """ℓ with a variance held, beside its maximum over the other parameters in dense algebra."""

    def frame(self):
        rng = np.random.default_rng(5)
        g = np.repeat(np.arange(9), 6)
        x = rng.normal(size=54)
        y = 1.0 + x + rng.normal(size=9)[g] + 0.7 * rng.normal(size=9)[g] * x + rng.normal(size=54)
        return pd.DataFrame({"y": y, "x": x, "g": g})

    def dense(self, data, covariance, reml, x0):
        """max ℓ over (log σ², the arguments of ``covariance``)."""
        Z, X = np.column_stack([np.ones(54), data.x]), np.column_stack([np.ones(54), data.x])
        same = np.equal.outer(data.g.to_numpy(), data.g.to_numpy())

        def deviance(x):
            V = np.exp(x[0]) * np.eye(54) + same * (Z @ covariance(*x[1:]) @ Z.T)
            A = X.T @ np.linalg.solve(V, X)
            r = data.y - X @ np.linalg.solve(A, X.T @ np.linalg.solve(V, data.y))
            value = np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r) + 54 * np.log(2 * np.pi)
            return value + (np.linalg.slogdet(A)[1] - 2 * np.log(2 * np.pi) if reml else 0.0)

        starts = [np.array(x0) + 0.1 * k for k in (-1, 0, 1)]
        options = {"maxiter": 10**5, "maxfev": 10**5, "xatol": 1e-9, "fatol": 1e-12}
        ends = [scipy.optimize.minimize(deviance, x, method="Nelder-Mead", options=options).fun for x in starts]
        return -0.5 * min(ends)

    @pytest.mark.parametrize("reml", [True, False])
    @pytest.mark.parametrize("effect", [0, 1])
    def test_correlated_effects(self, reml, effect):
        data = self.frame()
        fit = lme.lmer("y ~ x + (x | g)", data, reml=reml)
        curve = fit.profile_re(effect, "re", 2, 0.4, 2, 3.0)

        def psi(v, log_other, z):
            sd = np.sqrt([v, np.exp(log_other)]) if effect == 0 else np.sqrt([np.exp(log_other), v])
            return np.outer(sd, sd) * [[1.0, np.tanh(z)], [np.tanh(z), 1.0]]

        for value, llf in curve:
            expected = self.dense(data, lambda a, z, v=value: psi(v, a, z), reml, [0.0, 0.0, 0.0])
            assert llf == pytest.approx(expected, abs=1e-7)
        assert curve[2] == pytest.approx([fit.cov_re.iloc[effect, effect], fit.llf])

    def test_compound_symmetry(self):
        data = self.frame()
        fit = lme.lmer("y ~ x + (x | g)", data, structures={"g": "compound_symmetry"})
        curve = fit.profile_re(0, "re", 1, 0.3, 1, 2.0)
        for value, llf in curve:
            expected = self.dense(
                data, lambda z, v=value: v * np.array([[1.0, np.tanh(z)], [np.tanh(z), 1.0]]), True, [0.0, 0.0]
            )
            assert llf == pytest.approx(expected, abs=1e-7)

    def test_at_zero_it_is_the_model_without_the_effect(self, fitted, sleepstudy):
        without = lme.lmer("Reaction ~ Days + (1 | Subject)", sleepstudy)
        curve = fitted.profile_re(1, "re", 2, 1e9, 1, 1.0)
        assert curve[0] == pytest.approx([0.0, without.llf], abs=1e-7)
        data = datasets.load("penicillin")
        both = lme.lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", data)
        curve = both.profile_re("sample (Intercept)", "vc", 1, 1e9, 1, 1.0)
        assert curve[0, 1] == pytest.approx(lme.lmer("diameter ~ 1 + (1 | plate)", data).llf, abs=1e-7)

    def test_of_a_variance_estimated_as_zero(self):
        data = pd.DataFrame({"g": np.repeat(np.arange(10), 5), "y": np.tile(np.arange(5.0), 10)})
        data["y"] += 0.01 * np.random.default_rng(0).normal(size=50)
        with pytest.warns(SingularFitWarning):
            fit = lme.lmer("y ~ 1 + (1 | g)", data)
        curve = fit.profile_re(0, "re", 1, 1.0, 3, 1.0)
        assert curve[:2] == pytest.approx(np.array([[0.0, fit.llf]] * 2), abs=1e-9)
        assert (np.diff(curve[1:, 1]) < 0).all()

    def test_names(self, fitted):
        with pytest.raises(DataError, match="2 correlated"):
            fitted.profile_re(2, "re")
        with pytest.raises(DataError, match="'Subject Days'"):
            fitted.profile_re("Days", "vc")


class TestTerms:
    def test_each_term_is_tested_at_once(self):
        data = datasets.load("dietox")
        data["Cu"] = data.Cu.astype(str)
        ours = lme.lmer("Weight ~ Time * Cu + (1 | Pig)", data).wald_test_terms()
        other = lme.mixedlm("Weight ~ Time * Cu", data, groups="Pig").fit().wald_test_terms()
        other = other.rename(index={"Intercept": "(Intercept)"}).loc[ours.index]
        assert ours.df_constraint.to_dict() == {"(Intercept)": 1, "Time": 1, "Cu": 2, "Time:Cu": 2}
        np.testing.assert_allclose(ours.statistic, other.statistic, rtol=1e-6)

    @pytest.mark.parametrize(
        ("formula", "expected"),
        [
            ("y ~ poly(x, 2) * f + (1 | g)", {"(Intercept)": 1, "poly(x, 2)": 2, "f": 2, "poly(x, 2):f": 4}),
            ("y ~ 0 + f + x + (1 | g)", {"f": 3, "x": 1}),
            ("y ~ x + x:f + (1 | g)", {"(Intercept)": 1, "x": 1, "x:f": 2}),
            ("y ~ x + z + f + (1 | g)", {"(Intercept)": 1, "x": 1, "f": 2}),
        ],
    )
    def test_terms_of_many_columns_and_dropped_ones(self, formula, expected):
        rng = np.random.default_rng(0)
        data = pd.DataFrame({"g": np.arange(60) % 6, "f": np.array(list("abc"))[np.arange(60) // 20]})
        data["x"] = rng.normal(size=60)
        data["z"] = 2.0 * data.x
        data["y"] = rng.normal(size=60) + 2.0 * rng.normal(size=6)[data.g]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = lme.lmer(formula, data)
        assert result.wald_test_terms().df_constraint.to_dict() == expected


class TestPrediction:
    def test_standard_error_of_an_observation_whatever_the_level(self, fitted, sleepstudy):
        new = sleepstudy.iloc[:3]
        usual, half = fitted.get_prediction(new), fitted.get_prediction(new, level=0.5)
        np.testing.assert_allclose(half.se_obs, usual.se_obs, rtol=1e-12)
        Z = np.column_stack([np.ones(3), new.Days])
        X = Z
        expected = np.einsum("ni,ij,nj->n", X, fitted.cov_fe, X) + np.einsum("ni,ij,nj->n", Z, fitted.cov_re, Z)
        np.testing.assert_allclose(half.se_obs, np.sqrt(expected + fitted.scale), rtol=1e-8)

    def test_predict_after_the_rows_are_gone(self, sleepstudy, tmp_path):
        new = sleepstudy.iloc[[3, 100]]
        whole = lme.lmer(FORMULA, sleepstudy, offset=np.ones(180))
        expected = whole.predict(new, offset=1.0)
        whole.save(tmp_path / "thin", remove_data=True)
        thin = lme.MixedLMResults.load(tmp_path / "thin")
        pd.testing.assert_series_equal(thin.predict(new, offset=1.0), expected)
        assert thin.ranef["Subject"].shape == (18, 2)
        np.testing.assert_array_equal(thin.bse_re, whole.bse_re)
        with pytest.raises(DataError, match="offset"):
            thin.predict(new)
        with pytest.raises(DataError, match="removed"):
            _ = thin.resid
        model = lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject")
        result = model.fit()
        means = [result.predict(new), result.predict(new, random_effects=True)]
        result.remove_data()
        pd.testing.assert_series_equal(result.predict(new), means[0])
        pd.testing.assert_series_equal(result.predict(new, random_effects=True), means[1])


class TestNoResidual:
    """An exact response has no optimum: the same plain word from every door, single or in a batch."""

    def frame(self):
        rng = np.random.default_rng(0)
        g, h = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
        x, level = rng.normal(size=72), rng.normal(size=12)
        return pd.DataFrame(
            {
                "g": g,
                "h": h,
                "x": x,
                "exact": 1.0 + 2.0 * x,
                "by_group": level[g],
                "with_slope": level[g] + 2.0 * x,
                "near": level[g] + 1e-13 * rng.normal(size=72),
                "usual": level[g] + rng.normal(size=72),
            }
        )

    EXACT = ("exact", "by_group", "with_slope", "near")

    def test_single(self):
        data = self.frame()
        for name in self.EXACT:
            for rest in ("(1 | g)", "(1 | g) + (1 | h)"):
                with pytest.raises(ConvergenceError, match="no residual variation"):
                    lme.lmer(f"{name} ~ x + {rest}", data)

    def test_lanes(self):
        data = self.frame()
        for rest in ("(1 | g)", "(1 | g) + (1 | h)"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SingularFitWarning)
                single = lme.lmer(f"usual ~ x + {rest}", data)
            with pytest.warns(ConvergenceWarning, match=r"4 of 5 fits .*no residual variation"):
                many = single.refit_many(data[[*self.EXACT, "usual"]], progress=False)
            assert many.status.tolist()[:4] == ["not_finite"] * 4
            assert many.converged.tolist() == [False] * 4 + [True]
            assert np.isnan(many.fit.beta[:4]).all() and np.isnan(many.fit.sigma[:4]).all()
            assert many.reasons.index.tolist() == list(self.EXACT)
            assert all("no residual variation" in text for text in many.reasons)
            for name in self.EXACT:
                with pytest.raises(ConvergenceError, match="no residual variation"):
                    many.one(name)

    def test_data_sets(self):
        data = self.frame()
        both = pd.concat([data.assign(k=name, y=data[name]) for name in (*self.EXACT, "usual")])
        with pytest.warns(ConvergenceWarning, match="4 of 5 fits"):
            many = lme.lmer_many("y ~ x + (1 | g)", both, by="k", progress=False)
        assert many.status[list(self.EXACT)].tolist() == ["not_finite"] * 4
        assert many.status["usual"] == "converged"

    def test_the_unit_of_the_weights_does_not_matter(self):
        data = self.frame()
        usual = lme.lmer("usual ~ x + (1 | g)", data)
        for unit in (1e-12, 1e12):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SingularFitWarning)  # core/records.py: θ against an absolute number
                warnings.simplefilter("ignore", ConvergenceWarning)
                scaled = lme.lmer("usual ~ x + (1 | g)", data, weights=np.full(72, unit))
            assert np.isfinite(scaled.deviance) and np.isfinite(usual.deviance)
            for name in self.EXACT:
                with pytest.raises(ConvergenceError, match="no residual variation"):
                    lme.lmer(f"{name} ~ x + (1 | g)", data, weights=np.full(72, unit))


class TestNotIdentified:
    def test_lanes_that_lmer_refuses_are_no_estimates(self, sleepstudy):
        subjects = sleepstudy.Subject.astype(str)
        kinds = {
            "one level": subjects == "372",
            "two rows each": subjects.isin(["308", "309", "310", "330", "331"]) & (sleepstudy.Days < 2),
            "one row each": sleepstudy.Days
            == subjects.map({"332": 0, "333": 1, "334": 2, "335": 3, "337": 4, "349": 5}),
            "usual": subjects > "349",
        }
        k = np.select(list(kinds.values()), list(kinds), "left out")
        data = sleepstudy.assign(k=k)[k != "left out"]
        with pytest.warns(ConvergenceWarning, match=r"3 of 4 fits .*3 not_identified"):
            many = lme.lmer_many(FORMULA, data, by="k", progress=False)
        assert many.n_obs.sum() == len(data)
        says = {"one level": "has one level", "two rows each": r"5 \* 2 = 10", "one row each": "6 levels for 6 rows"}
        for name in kinds:
            if name == "usual":
                assert many.status[name] == "converged"
                continue
            with pytest.raises(DataError, match=says[name]):
                lme.lmer(FORMULA, data[data.k == name])
            assert many.status[name] == "not_identified"
            row = many.fits.loc[name]
            assert np.isnan(row.deviance) and np.isnan(row.sigma) and not many.params.loc[name].notna().any()
            assert pd.Series(many.reasons[name]).str.contains(says[name]).all()
            with pytest.raises(ConvergenceError, match=says[name]):
                many.one(name)

    def test_a_response_observed_in_one_group_only(self, sleepstudy):
        Y = np.repeat(sleepstudy.Reaction.to_numpy()[:, None], 4, axis=1)
        subject = sleepstudy.Subject.astype(str).to_numpy()
        Y[subject != "372", 1] = np.nan
        Y[sleepstudy.Days != 3, 2] = np.nan
        Y[~np.isin(subject, ["308", "309"]) | (sleepstudy.Days > 1), 3] = np.nan
        X = np.column_stack([np.ones(180), sleepstudy.Days])
        with pytest.warns(ConvergenceWarning, match=r"3 of 4 fits .*3 not_identified"):
            many = lme.fit_many(Y, X, X, sleepstudy.Subject, progress=False)
        assert many.status.tolist() == ["converged"] + ["not_identified"] * 3
        assert np.isnan(many.fit.deviance[1:]).all()
        assert "one level" in many.reasons[1] and "18 levels for 18 rows" in many.reasons[2]

    def test_levels_absent_from_a_subset_are_left_out_and_named(self, sleepstudy):
        data = sleepstudy.assign(site=np.array(list("ABC"))[np.arange(180) % 3], k=np.repeat(["x", "y"], 90)).query(
            "~(k == 'x' and site == 'C')"
        )
        formula = "Reaction ~ Days + site + (1 | Subject)"
        with pytest.warns(RankWarning, match="1 of 2 fits leave out .* 'x', without siteC"):
            many = lme.lmer_many(formula, data, by="k", progress=False)
        part = data[data.k == "x"]
        single = lme.lmer(formula, part)
        assert many.converged.all()
        assert many.dropped_columns.to_dict() == {"x": ("siteC",)}
        assert many.llf["x"] == pytest.approx(single.llf, abs=1e-8)
        assert many.fits.loc["x", "bic"] == pytest.approx(single.bic, abs=1e-8)
        np.testing.assert_allclose(many.fe_params.loc["x"].dropna(), single.fe_params, rtol=1e-8)
        np.testing.assert_allclose(many.bse_fe.loc["x"].dropna(), single.bse_fe, rtol=1e-8)
        np.testing.assert_allclose(many.bse_vcov.loc["x"].iloc[:-1], single.bse_re, rtol=1e-6)
        one = pickle.loads(pickle.dumps(many)).one("x")
        np.testing.assert_allclose(one.predict(part.iloc[:5]), single.predict(part.iloc[:5]), rtol=1e-8)
        assert "siteC" in str(one.summary())

    def test_other_structures_may_have_more_effects_than_rows(self, rng):
        """Four occasions of each subject, complete: an unstructured covariance cannot be told from σ², AR(1) can."""
        g, occasion = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
        Z, X = np.eye(4)[occasion], np.ones((80, 1))
        Y = np.repeat(rng.normal(size=(20, 3)), 4, axis=0) + rng.normal(size=(80, 3))
        with pytest.raises(DataError, match="20 \\* 4 = 80"):
            lme.fit_many(Y, X, Z, g)
        many = lme.fit_many(Y, X, Z, g, structure="compound_symmetry", progress=False)
        assert np.isfinite(many.fit.deviance).all()


class TestManyDoors:
    def test_views_of_subsets_predict(self, sleepstudy):
        data = sleepstudy.assign(k=np.where(np.arange(180) < 90, "a", "b"))
        many = lme.lmer_many(FORMULA, data, by="k", progress=False)
        new = data[data.k == "b"].iloc[:4]
        single = lme.lmer(FORMULA, data[data.k == "b"])
        np.testing.assert_allclose(many.one("b").predict(new), single.predict(new), rtol=1e-7)
        np.testing.assert_allclose(many.one("b").prediction(new), single.prediction(new), rtol=1e-5)
        Y = np.column_stack([sleepstudy.Reaction, sleepstudy.Reaction])
        Y[5, 1] = np.nan
        holes = lme.lmer_many("~ Days + (Days | Subject)", sleepstudy, Y, progress=False)
        assert holes.one(1).predict(new).notna().all()

    def test_several_columns_split(self, sleepstudy):
        data = sleepstudy.assign(site=np.where(np.arange(180) < 90, "a", "b"), odd=sleepstudy.Days.to_numpy() % 2 == 1)
        many = lme.lmer_many("Reaction ~ Days + (1 | Subject)", data, by=["site", "odd"], progress=False)
        assert many.names.names == ["site", "odd"]
        part = data[(data.site == "b") & data.odd]
        single = lme.lmer("Reaction ~ Days + (1 | Subject)", part)
        assert many.one(("b", True)).deviance == pytest.approx(single.deviance, abs=1e-8)
        assert many.fits.loc[("b", True), "n_obs"] == len(part)
        assert len(many.frame()) == 4 * 4
        with pytest.raises(DataError, match="'sight'"):
            lme.lmer_many("Reaction ~ Days + (1 | Subject)", data, by=["site", "sight"])

    def test_responses_are_matched_by_label(self, sleepstudy, rng):
        data = sleepstudy.set_axis([f"row{i}" for i in range(180)])
        Y = pd.DataFrame({"a": data.Reaction, "b": rng.normal(size=180)})
        formula = "~ Days + (1 | Subject)"
        expected = lme.lmer_many(formula, data, Y, progress=False)
        shuffled = lme.lmer_many(formula, data, Y.sample(frac=1.0, random_state=0), progress=False)
        np.testing.assert_allclose(shuffled.llf, expected.llf, rtol=1e-12)
        by_position = lme.lmer_many(formula, data, Y.to_numpy(), progress=False)
        np.testing.assert_allclose(by_position.llf, expected.llf, rtol=1e-12)
        for other in (Y.reset_index(drop=True), Y.rename(index={"row3": "row4"})):
            with pytest.raises(DataError, match="labels of the responses"):
                lme.lmer_many(formula, data, other)
        with pytest.raises(DataError, match=r"\(90, 2\)"):
            lme.lmer_many(formula, data, Y.iloc[:90])

    def test_compare_needs_batches(self):
        with pytest.raises(DataError, match="ManyFits"):
            lme.compare([])


class TestBootstrap:
    def test_samples_of_groups_have_rows_of_their_own(self):
        data = datasets.load("sleepstudy")
        short = data[~((data.Subject.astype(str) < "333") & (data.Days > 6))]
        model = lme.lmer("Reaction ~ Days + (1 | Subject)", short)
        boot = model.bootstrap(40, seed=3, kind="cases", progress=False)
        sizes = model._data.factors[0].sizes
        left_out = boot._left_out()
        np.testing.assert_array_equal(left_out.n_obs, len(short) - sizes)
        assert len(set(boot.fits.n_obs.tolist())) > 1
        from lme_jax.many.resampling import level_times

        times = level_times(len(sizes), 3, np.array([7]))[:, 0]
        assert boot.fits.n_obs[7] == times @ sizes
        bic = boot.fits.fits.bic[7]
        assert bic == pytest.approx(boot.fits.fits.deviance[7] + 4 * np.log(times @ sizes))

    @pytest.mark.parametrize("kind", ["parametric", "residual"])
    def test_samples_of_several_factors_are_the_fits_of_what_was_drawn(self, monkeypatch, kind):
        """Two samples at a time."""
        import lme_jax.many.bootstrap as module
        from lme_jax.many import resampling

        model = lme.lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", datasets.load("penicillin"))
        monkeypatch.setattr(resampling, "BLOCK_NUMBERS", 2 * model.nobs)
        seen, real_draw = [], getattr(module, f"{kind}_responses")

        def watched(*arguments):
            for block in real_draw(*arguments):
                assert block.shape[1] == 2
                seen.extend(block.T.copy())
                yield block

        monkeypatch.setattr(module, f"{kind}_responses", watched)
        boot = model.bootstrap(6, seed=1, kind=kind, progress=False)
        for number in (0, 5):
            assert boot.fits.fit.deviance[number] == pytest.approx(model.refit(seen[number]).deviance, abs=1e-7)

    def test_related_levels_are_not_called_several_factors(self):
        rng = np.random.default_rng(0)
        g = np.repeat(np.arange(10), 6)
        K = pd.DataFrame(0.5 * np.eye(10) + 0.5, index=np.arange(10), columns=np.arange(10))
        data = pd.DataFrame({"y": 2 * rng.normal(size=10)[g] + rng.normal(size=60), "g": g})
        model = lme.lmer("y ~ 1 + (1 | g)", data, relatedness={"g": K})
        with pytest.raises(UnsupportedError, match="'g' has related levels"):
            model.bootstrap(3, seed=0, kind="cases")
        many = model.refit_many(np.where(np.arange(60)[:, None] == 3, np.nan, data[["y"]]), progress=False)
        alone = lme.lmer("y ~ 1 + (1 | g)", data.drop(index=3), relatedness={"g": K})
        assert many.llf.iloc[0] == pytest.approx(alone.llf, abs=1e-8)


def test_what_is_imported_at_once():
    """Formulas, statistics, figures and optimisers load when something asks for them."""
    program = (
        "import sys, lme_jax.results, lme_jax.many.doors, lme_jax.compat.mixed_lm\n"
        "print([m for m in ('scipy.stats', 'scipy.optimize', 'matplotlib', 'optax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_statsmodels_packing_are_on_its_own_results_only(fitted, sleepstudy):
    theirs = lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject", re_formula="~Days").fit()
    public = [{name for name in dir(result) if not name.startswith("_")} for result in (fitted, theirs)]
    packing = {"k_re", "k_re2", "k_vc", "df_modelwc", "vcomp", "freepat", "hist", "fe_pen", "cov_pen"}
    packing |= {"params_object", "conf_int_params", "normalized_cov_params", "bse_fe_joint"}
    assert public[1] - public[0] == packing
    assert public[0] <= public[1]
