"""What a person meets: labels, reports, warnings, and errors that say what, where and what to do."""

import numpy as np
import pandas as pd
import pytest

import lme_jax as lme
from lme_jax import datasets
from lme_jax.errors import (
    ConvergenceWarning,
    DataError,
    DroppedRowsWarning,
    FormulaError,
    RankWarning,
    SingularFitWarning,
)

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture
def sleepstudy():
    return datasets.load("sleepstudy")


@pytest.fixture(scope="module")
def fitted():
    return lme.lmer(FORMULA, datasets.load("sleepstudy"))


class TestResults:
    def test_labels(self, fitted):
        assert list(fitted.fe_params.index) == ["(Intercept)", "Days"]
        assert list(fitted.theta.index) == ["Subject.(Intercept)", "Subject.Days.(Intercept)", "Subject.Days"]
        assert fitted.varcorr.columns.tolist() == ["grp", "var1", "var2", "vcov", "sdcor"]
        assert fitted.varcorr.grp.tolist() == ["Subject"] * 3 + ["Residual"]
        assert fitted.cov_re.shape == (2, 2)
        assert set(fitted.random_effects) == set(datasets.load("sleepstudy").Subject.unique())

    def test_pieces_agree(self, fitted, sleepstudy):
        np.testing.assert_allclose(fitted.fittedvalues + fitted.resid, sleepstudy.Reaction, rtol=1e-12)
        np.testing.assert_allclose(fitted.cov_re_unscaled * fitted.scale, fitted.cov_re, rtol=1e-12)
        assert fitted.llf == -fitted.deviance / 2
        first = fitted.ranef["Subject"].iloc[0]
        pd.testing.assert_series_equal(fitted.random_effects[first.name], first, check_names=False)
        np.testing.assert_array_equal(fitted.random_effects_cov[first.name], fitted.ranef_cov["Subject"][0])

    def test_summary_in_three_formats(self, fitted):
        summary = fitted.summary()
        for text in (str(summary), summary.as_html(), summary.as_latex()):
            for piece in ("1743.6283", "251.4051", "24.7405", "converged", "180", "18"):
                assert piece in text
        assert "\\begin{tabular}" in summary.as_latex()
        assert "&lt;" not in str(summary)
        assert summary.tables[1].index[0] == "(Intercept)"

    def test_standard_errors_of_variances_scale_as_variances(self, fitted, sleepstudy):
        sleepstudy["Reaction"] *= 10.0
        bigger = lme.lmer(FORMULA, sleepstudy)
        np.testing.assert_allclose(bigger.bse_re, 100 * fitted.bse_re, rtol=1e-6)

    def test_standard_errors_of_variances_equal_the_inverse_natural_information(self, fitted):
        from lme_jax.core import likelihood, parameterizations

        data = fitted._data.compressed
        packed = np.concatenate([fitted.fit.beta, fitted.fit.theta, [fitted.scale]])
        natural = parameterizations.convert(packed, "sqrt", "natural", n_fixed=2, template=data.template)
        hessian = likelihood.score_and_hessian(natural, data, scale="natural", reml=True).hessian
        expected = np.sqrt(np.diag(np.linalg.inv(-hessian)))[2:]
        np.testing.assert_allclose(fitted.bse_re, expected[:3], rtol=1e-6)
        many = fitted.refit_many(fitted._data.y, progress=False)
        np.testing.assert_allclose(many.bse_vcov.iloc[0], expected, rtol=1e-6)

    def test_nothing_of_the_user_changes(self, sleepstudy):
        before = sleepstudy.copy()
        first = lme.lmer(FORMULA, sleepstudy)
        deviance, text = first.deviance, str(first.summary())
        pd.testing.assert_frame_equal(sleepstudy, before)
        sleepstudy["Reaction"] = 0.0
        lme.lmer(FORMULA, before, reml=False)
        assert (first.deviance, str(first.summary())) == (deviance, text)

    def test_refitting_a_model_leaves_older_results_alone(self):
        data = datasets.load("dietox")
        model = lme.mixedlm("Weight ~ Time", data, groups="Pig")
        restricted = model.fit()
        before = restricted.llf
        model.fit(reml=False)
        assert restricted.llf == before

    def test_three_doors_one_fit(self, fitted, sleepstudy):
        by_formula = lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject", re_formula="~Days").fit()
        X = np.column_stack([np.ones(180), sleepstudy.Days])
        by_arrays = lme.MixedLM(sleepstudy.Reaction, X, sleepstudy.Subject, X).fit()
        data = lme.compress(sleepstudy.Reaction.to_numpy(), X, X, sleepstudy.Subject.to_numpy())
        core = lme.fit(data)
        for other in (by_formula.fit, by_arrays.fit, core):
            np.testing.assert_allclose(other.theta, fitted.fit.theta, rtol=1e-8)
            np.testing.assert_allclose(other.beta, fitted.fit.beta, rtol=1e-9)
        assert list(by_formula.fe_params.index) == ["Intercept", "Days"]
        assert list(by_arrays.fe_params.index) == ["const", "x1"]

    def test_weights_are_repeated_rows_in_the_mean(self, sleepstudy):
        sleepstudy["w"] = np.linspace(0.5, 2.0, 180)
        by_name = lme.lmer(FORMULA, sleepstudy, weights="w")
        by_array = lme.lmer(FORMULA, sleepstudy, weights=sleepstudy.w.to_numpy())
        assert by_name.deviance == by_array.deviance
        # A row that is the mean of w rows weighs w: at the same θ both give the same β̂, its covariance and BLUPs.
        times = np.tile([1, 2, 3], 60)
        rows = np.repeat(np.arange(180), times)
        X = np.column_stack([np.ones(180), sleepstudy.Days])
        groups, noise = sleepstudy.Subject.to_numpy(), np.random.default_rng(0).normal(size=len(rows))
        y = sleepstudy.Reaction.to_numpy()[rows] + noise
        means = np.bincount(rows, y) / times
        repeated = lme.compress(y, X[rows], X[rows], groups[rows])
        weighted = lme.compress(means, X, X, groups, weights=times.astype(float))
        theta = np.array([0.9, 0.02, 0.2])
        one, other = lme.fit_at(theta, repeated), lme.fit_at(theta, weighted)
        np.testing.assert_allclose(one.beta, other.beta, rtol=1e-10)
        np.testing.assert_allclose(one.unscaled_cov, other.unscaled_cov, rtol=1e-10)
        effects = [lme.random_effects(fit, data)[0].b for fit, data in ((one, repeated), (other, weighted))]
        np.testing.assert_allclose(*effects, rtol=1e-8, atol=1e-8)

    def test_dropped_rows_are_counted_and_equal_dropping_by_hand(self, sleepstudy):
        sleepstudy.loc[[3, 50], "Reaction"] = np.nan
        sleepstudy.loc[[60], "Days"] = np.nan
        with pytest.warns(DroppedRowsWarning, match="3"):
            dropped = lme.lmer(FORMULA, sleepstudy)
        by_hand = lme.lmer(FORMULA, sleepstudy.dropna())
        assert dropped.deviance == pytest.approx(by_hand.deviance, abs=1e-10)
        assert dropped.nobs == 177
        assert "3 rows" in str(dropped.summary())
        assert 3 not in dropped.resid.index


class TestStatus:
    def test_singular_fit_warns_and_says_so(self):
        with pytest.warns(SingularFitWarning, match="singular"):
            result = lme.lmer("Yield ~ 1 + (1 | Batch)", datasets.load("Dyestuff2"))
        assert result.singular and result.converged
        assert result.varcorr.vcov[0] < 1e-12
        assert "singular" in str(result.summary())
        assert np.isnan(result.bse_re).all()

    def test_iteration_limit_warns(self, sleepstudy):
        with pytest.warns(ConvergenceWarning, match="iteration limit"):
            # Unbalanced: in balanced data the search starts at its optimum.
            result = lme.lmer(FORMULA, sleepstudy.iloc[3:-4], options=lme.NewtonOptions(max_iter=1))
        assert not result.converged

    def test_perfect_fit_does_not_pass_for_a_fit(self, sleepstudy):
        sleepstudy["Reaction"] = 3.0 + 2.0 * sleepstudy.Days
        with pytest.raises(lme.errors.ConvergenceError, match="no residual variation"):
            lme.lmer(FORMULA, sleepstudy)
        with pytest.raises(lme.errors.ConvergenceError, match="no residual variation"):
            lme.mixedlm("Reaction ~ Days", sleepstudy, groups="Subject", re_formula="~Days").fit()


class TestWrongInput:
    """Formulas are tried in test_formula.py; here, what reaches a fit through the front doors."""

    @pytest.mark.parametrize(
        ("formula", "error", "says"),
        [
            ("Reaction ~ Dayz + (1 | Subject)", DataError, "Days"),
            ("Reaction ~ Days * (1 | Subject)", FormulaError, "1 | Subject"),
            ("Reaction ~ Days + (1 | )", FormulaError, "1"),
            ("Reaction ~ Days", FormulaError, "random"),
            ("Reaction ~ Days + 1 | Subject", FormulaError, "parenthes"),
        ],
    )
    def test_formulas(self, sleepstudy, formula, error, says):
        with pytest.raises(error, match=says):
            lme.lmer(formula, sleepstudy)

    @pytest.mark.parametrize("column", ["Reaction", "Days", "w", "Subject"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_non_finite_values_are_named(self, sleepstudy, column, bad):
        sleepstudy["w"] = 1.0
        if column == "Subject":
            sleepstudy["Subject"] = sleepstudy.Subject.astype(object)
            bad = None
        sleepstudy.loc[7, column] = bad
        with pytest.raises(DataError, match=rf"(?s)(?=.*{column}|.*[Ww]eights)(?=.*7)"):
            lme.lmer(FORMULA, sleepstudy, weights="w", missing="raise")
        with pytest.warns(DroppedRowsWarning, match="1"):
            assert lme.lmer(FORMULA, sleepstudy, weights="w").nobs == 179

    def test_groups(self, sleepstudy):
        one = sleepstudy[sleepstudy.Subject == sleepstudy.Subject.iloc[0]]
        with pytest.raises(DataError, match="Subject"):
            lme.lmer("Reaction ~ Days + (1 | Subject)", one)
        sleepstudy["row"] = np.arange(180)
        with pytest.raises(DataError, match="180 levels for 180 rows"):
            lme.lmer("Reaction ~ Days + (1 | row)", sleepstudy)
        few = sleepstudy.groupby("Subject", observed=True).head(2)
        with pytest.raises(DataError, match="36"):
            lme.lmer(FORMULA, few)
        sleepstudy["mixed"] = [1, "a"] * 90
        with pytest.raises(DataError, match="mixed"):
            lme.lmer("Reaction ~ Days + (1 | mixed)", sleepstudy)

    def test_response_and_weights(self, sleepstudy):
        with pytest.raises(DataError, match="constant"):
            lme.lmer(FORMULA, sleepstudy.assign(Reaction=5.0))
        with pytest.raises(DataError, match=r"[Ww]eights"):
            lme.lmer(FORMULA, sleepstudy, weights=np.r_[0.0, np.ones(179)])
        with pytest.raises(DataError):
            lme.lmer(FORMULA, sleepstudy.iloc[:0])

    def test_dependent_columns_are_dropped_and_named(self, sleepstudy, fitted):
        sleepstudy["Weeks"] = sleepstudy.Days / 7.0
        with pytest.warns(RankWarning, match="Weeks"):
            result = lme.lmer("Reaction ~ Days + Weeks + (Days | Subject)", sleepstudy)
        assert list(result.fe_params.index) == ["(Intercept)", "Days"]
        assert result.deviance == pytest.approx(fitted.deviance, abs=1e-9)
        assert "Weeks" in str(result.summary())

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_scaled_columns(self, sleepstudy, fitted, scale):
        sleepstudy["Days"] *= scale
        result = lme.lmer(FORMULA, sleepstudy)
        np.testing.assert_allclose(result.fe_params["Days"] * scale, fitted.fe_params["Days"], rtol=1e-8)
        assert result.deviance == pytest.approx(fitted.deviance + 2 * np.log(scale), abs=1e-6)

    def test_offset_in_y(self, sleepstudy, fitted):
        sleepstudy["Reaction"] += 1e8
        result = lme.lmer(FORMULA, sleepstudy)
        # The shifted response itself is rounded at 1.5e-8.
        assert result.deviance == pytest.approx(fitted.deviance, abs=1e-6)
        np.testing.assert_allclose(result.bse_fe, fitted.bse_fe, rtol=1e-7)

    def test_arrays(self):
        X = np.ones((6, 1))
        with pytest.raises(DataError, match="groups"):
            lme.MixedLM(np.arange(6.0), X, [1, 1, 2])
        with pytest.raises(DataError, match="exog"):
            lme.MixedLM(np.arange(6.0), X[:3], [1, 1, 2, 2, 3, 3])
        with pytest.raises(DataError, match="endog"):
            lme.MixedLM(["a"] * 6, X, [1, 1, 2, 2, 3, 3])
        y = np.array([1.0, 2.0, np.nan, 3.0, 4.0, 6.0])
        with pytest.raises(DataError, match="2"):
            lme.MixedLM(y, X, [1, 1, 2, 2, 3, 3])
        with pytest.raises(DataError, match=r"(?s)weights.*> 0"):
            lme.compress(np.arange(6.0), X, X, [1, 1, 2, 2, 3, 3], weights=np.r_[-1.0, np.ones(5)])
        with pytest.raises(DataError, match="non-finite"):
            lme.compress(y, X, X, [1, 1, 2, 2, 3, 3])
        with pytest.raises(DataError, match="rows"):
            lme.compress(y[:5], X, X, [1, 1, 2, 2, 3, 3])
