"""Predictions, their uncertainty, simulation and refits: against dense mixed-model equations and R."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.special
from reference_data import inference_entries, lmer_entry, load_frame

import lme_jax as lme
from lme_jax.errors import DataError, UnsupportedError

FORMULA = "y ~ x + (1 | a) + (x | b)"


def make_frame(n=120, m1=14, m2=9):
    rng = np.random.default_rng(11)
    a, b = rng.integers(0, m1, n), rng.integers(0, m2, n)
    x = rng.normal(size=n)
    y = 2 + x + rng.normal(size=m1)[a] + rng.normal(size=m2)[b] + rng.normal(size=m2)[b] * x + rng.normal(size=n)
    w = rng.uniform(0.5, 2, n)
    return pd.DataFrame({"y": y, "x": x, "a": [f"a{i:02d}" for i in a], "b": [f"b{i}" for i in b], "w": w})


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def fitted(frame):
    return lme.lmer(FORMULA, frame, weights="w")


def dense_parts(result, frame, columns):
    """[X Z], and the precision of b, from the labels alone; columns: factor -> numeric columns of Z."""
    X = np.column_stack([np.ones(len(frame)), frame.x])
    Z, prior = [], []
    for factor, names in columns.items():
        levels = result.ranef[factor].index
        hit = (frame[factor].to_numpy()[:, None] == levels.to_numpy()[None]).astype(float)
        values = np.column_stack([np.ones(len(frame)) if n == "1" else frame[n] for n in names])
        Z.append((hit[:, :, None] * values[:, None, :]).reshape(len(frame), -1))
        prior.append(np.kron(np.eye(len(levels)), result.factor_cov[factor]))
    return X, Z, prior


def henderson(result, frame, columns, weights):
    """Joint covariance of (β̂, b̂ − b): the inverse of the mixed-model equations."""
    import scipy.linalg

    X, Z, prior = dense_parts(result, frame, columns)
    W = np.concatenate([X, *Z], axis=1)
    p = X.shape[1]
    C = W.T @ (W * weights[:, None]) / result.scale
    C[p:, p:] += np.linalg.inv(scipy.linalg.block_diag(*prior))
    return np.linalg.inv(C)


class TestPredict:
    def test_reference(self):
        entry = inference_entries("predict_new")["sleepstudy_slope_reml"]
        data = load_frame(lmer_entry("sleepstudy_slope_reml")["dataset"])
        result = lme.lmer("Reaction ~ Days + (Days | Subject)", data)
        new = pd.DataFrame(entry["newdata"])
        found = result.predict(new, allow_new_levels=True)
        np.testing.assert_allclose(found, entry["conditional"], rtol=1e-7)
        np.testing.assert_allclose(result.predict(new, random_effects=False), entry["population"], rtol=1e-7)
        with pytest.raises(DataError, match=r"(?s)Subject.*999.*allow_new_levels"):
            result.predict(new)

    def test_fitted_rows(self, fitted, frame):
        np.testing.assert_allclose(fitted.predict(), fitted.fittedvalues, rtol=1e-12)
        np.testing.assert_allclose(fitted.predict(frame.iloc[::-1]), fitted.fittedvalues[::-1], rtol=1e-12)

    def test_any_subset(self, fitted, frame):
        new = frame.iloc[[3, 50, 7]]
        fixed = fitted.fe_params.iloc[0] + fitted.fe_params.iloc[1] * new.x
        a = fitted.ranef["a"].loc[new.a, "(Intercept)"].to_numpy()
        b = fitted.ranef["b"].loc[new.b].to_numpy()
        both = fixed + a + b[:, 0] + b[:, 1] * new.x
        np.testing.assert_allclose(fitted.predict(new[["x"]], random_effects=False), fixed, rtol=1e-12)
        np.testing.assert_allclose(fitted.predict(new[["x", "a"]], random_effects=["a"]), fixed + a, rtol=1e-12)
        np.testing.assert_allclose(fitted.predict(new.drop(columns="y"), random_effects=["b", "a"]), both, rtol=1e-12)
        with pytest.raises(DataError, match="c"):
            fitted.predict(new, random_effects=["c"])
        with pytest.raises(DataError, match="'b'"):
            fitted.predict(new[["x", "a"]])

    def test_term_labels(self, frame):
        result = lme.lmer("y ~ x + (x || b)", frame)
        new = frame.iloc[:4]
        b = result.ranef["b"].loc[new.b].to_numpy()
        with_slope = result.fe_params.iloc[0] + (result.fe_params.iloc[1] + b[:, 1]) * new.x
        assert result._data.term_labels == ("b",)
        separate = lme.lmer("y ~ x + (1 | b) + (0 + x | b)", frame)
        np.testing.assert_allclose(separate.predict(new, random_effects="b.1"), with_slope, rtol=1e-6)
        np.testing.assert_allclose(separate.predict(new, random_effects="b"), result.predict(new), rtol=1e-6)

    def test_missing_values_and_index(self, fitted, frame):
        new = frame.iloc[:4].copy()
        new.index = list("abcd")
        new.loc["b", "x"] = np.nan
        new["b"] = new.b.astype(object)
        new.loc["c", "b"] = None
        found = fitted.predict(new)
        assert list(found.index) == list("abcd")
        assert list(found.isna()) == [False, True, True, False]
        assert list(fitted.predict(new, random_effects=["a"]).isna()) == [False, True, False, False]
        table = fitted.prediction(new)
        assert list(table.isna().all(axis=1)) == [False, True, True, False]

    def test_offset(self, frame):
        frame = frame.assign(o=np.linspace(0, 1, len(frame)))
        named = lme.lmer("y ~ x + (1 | a)", frame, offset="o")
        given = lme.lmer("y ~ x + (1 | a)", frame, offset=frame.o.to_numpy())
        np.testing.assert_allclose(named.predict(frame), named.fittedvalues, rtol=1e-12)
        np.testing.assert_allclose(given.predict(frame, offset=frame.o), named.fittedvalues, rtol=1e-12)
        with pytest.raises(DataError, match="offset="):
            given.predict(frame)

    def test_nested_and_interaction_levels(self, frame):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = lme.lmer("y ~ x + (1 | b/a)", frame)
        np.testing.assert_allclose(result.predict(frame), result.fittedvalues, rtol=1e-12)
        cells = set(zip(frame.a, frame.b, strict=True))
        pair = next((a, b) for a in sorted(frame.a.unique()) for b in sorted(frame.b.unique()) if (a, b) not in cells)
        new = frame.iloc[:1].assign(a=pair[0], b=pair[1])
        with pytest.raises(DataError, match=":".join(pair)):
            result.predict(new)
        expected = result.predict(new, random_effects=["b"])
        np.testing.assert_allclose(result.predict(new, allow_new_levels=True), expected, rtol=1e-12)


class TestUncertainty:
    COLUMNS = {"a": ["1"], "b": ["1", "x"]}  # noqa: RUF012

    def test_against_the_mixed_model_equations(self, fitted, frame):
        joint = henderson(fitted, frame, self.COLUMNS, frame.w.to_numpy())
        new = pd.concat([frame.iloc[:9], frame.iloc[:1].assign(x=7.0), frame.iloc[:1].assign(a="new")])
        X, Z, _ = dense_parts(fitted, new, self.COLUMNS)
        K = np.concatenate([X, *Z], axis=1)
        table = fitted.prediction(new, allow_new_levels=True, level=0.9)
        se = np.sqrt(np.einsum("nk,kl,nl->n", K, joint, K))
        np.testing.assert_allclose(table["mean"], fitted.predict(new, allow_new_levels=True), rtol=1e-12)
        np.testing.assert_allclose(table.se, se, rtol=1e-8)
        extra = np.zeros(11)
        extra[-1] = fitted.factor_cov["a"].iloc[0, 0]
        half = scipy.special.ndtri(0.95)
        np.testing.assert_allclose(table.ci_upper - table["mean"], half * se, rtol=1e-8)
        total = np.sqrt(se**2 + fitted.scale + extra)
        np.testing.assert_allclose(table["mean"] - table.pi_lower, half * total, rtol=1e-8)

    def test_left_out_effects(self, fitted, frame):
        new = frame.iloc[:6]
        table = fitted.prediction(new[["x", "a"]], random_effects=False)
        X = np.column_stack([np.ones(6), new.x])
        se2 = np.einsum("np,pq,nq->n", X, fitted.cov_fe, X)
        np.testing.assert_allclose(table.se, np.sqrt(se2), rtol=1e-10)
        outside = np.einsum("np,pq,nq->n", X, fitted.factor_cov["b"], X) + fitted.factor_cov["a"].iloc[0, 0]
        half = scipy.special.ndtri(0.975)
        expected = half * np.sqrt(se2 + outside + fitted.scale)
        np.testing.assert_allclose(table.pi_upper - table["mean"], expected, rtol=1e-8)

    def test_fitted_rows_have_their_weights(self, fitted, frame):
        table = fitted.prediction()
        by_hand = fitted.prediction(frame, weights="w")
        np.testing.assert_allclose(table, by_hand, rtol=1e-10)

    def test_blocks_equal_the_core_prediction_covariances(self, fitted, frame):
        from lme_jax.inference.prediction import related_effects

        found = related_effects(fitted._data, fitted.fit, fitted._equations)
        for host, core in zip(found, fitted._random_effects, strict=True):
            m = len(host.b)
            np.testing.assert_allclose(host.b, core.b[:m], rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(host.conditional_cov, core.conditional_cov[:m], rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(host.prediction_cov, core.prediction_cov[:m], rtol=1e-7, atol=1e-10)

    def test_singular_fit(self, frame):
        with pytest.warns(lme.errors.SingularFitWarning):
            result = lme.lmer("Yield ~ 1 + (1 | Batch)", lme.datasets.load("Dyestuff2"))
        table = result.prediction()
        np.testing.assert_allclose(table.se, result.bse_fe.iloc[0], rtol=1e-6)


class TestSimulate:
    def test_seeded_and_moments(self, fitted, frame):
        one = fitted.simulate(4000, seed=1)
        pd.testing.assert_frame_equal(one, fitted.simulate(4000, seed=1))
        assert one.shape == (len(frame), 4000)
        X, Z, prior = dense_parts(fitted, frame, TestUncertainty.COLUMNS)
        V = sum(z @ P @ z.T for z, P in zip(Z, prior, strict=True)) + fitted.scale * np.diag(1 / frame.w)
        spread = np.cov(one)
        error = np.abs(spread - V) / np.sqrt(np.outer(np.diag(V), np.diag(V)))
        assert error.max() < 0.1
        # Means and variances of 4000 draws: standard errors of √(V/4000) and, relative, √(2/4000) = 2 %.
        np.testing.assert_allclose(one.mean(axis=1), X @ fitted.fe_params, atol=0.2)

    def test_conditional_keeps_the_effects(self, fitted, frame):
        draws = fitted.simulate(4000, seed=2, random_effects="conditional")
        deviation = (draws.mean(axis=1) - fitted.fittedvalues) * np.sqrt(4000 * frame.w / fitted.scale)
        assert np.abs(deviation).max() < 5
        np.testing.assert_allclose(draws.var(axis=1), fitted.scale / frame.w, rtol=0.15)

    def test_refit(self, fitted, frame):
        before = fitted.deviance
        y = fitted.simulate(1, seed=3)[0]
        again = fitted.refit(y)
        whole = lme.lmer(FORMULA, frame.assign(y=y), weights="w")
        assert again.deviance == pytest.approx(whole.deviance, abs=1e-9)
        shuffled = fitted.refit(y.sample(frac=1.0, random_state=0))
        assert shuffled.deviance == again.deviance
        assert fitted.deviance == before and not np.allclose(fitted._data.y, y)
        for bad, says in ((y[:5], "labels"), (y.to_numpy()[:5], "shape"), (y.mask(y.index == 3), "missing")):
            with pytest.raises(DataError, match=says):
                fitted.refit(bad)


class TestUpdate:
    def test_terms_come_and_go(self, frame):
        frame = frame.assign(z=np.linspace(-1, 1, len(frame)) ** 2)
        first = lme.lmer("y ~ x + (1 | a)", frame, weights="w")
        second = first.update(". ~ . + z - x + (1 | b)")
        direct = lme.lmer("y ~ z + (1 | a) + (1 | b)", frame, weights="w")
        assert second.deviance == pytest.approx(direct.deviance, abs=1e-9)
        assert list(second.fe_params.index) == ["(Intercept)", "z"]
        third = second.update(". ~ . - (1 | b) + x", reml=False, weights=None)
        direct = lme.lmer("y ~ z + x + (1 | a)", frame, reml=False)
        assert third.deviance == pytest.approx(direct.deviance, abs=1e-9)
        assert third.method == "ML" and first.method == "REML"
        assert third.update(reml=True).method == "REML"
        with pytest.raises(lme.errors.FormulaError, match="remove"):
            first.update(". ~ . - (1 | c)")
        with pytest.raises(TypeError, match="wieghts"):
            first.update(wieghts="w")

    def test_data_are_those_of_the_fit(self, frame):
        mine = frame.copy()
        first = lme.lmer("y ~ x + (1 | a)", mine)
        mine["y"] = 0.0
        assert first.update(reml=True).deviance == first.deviance
        half = first.update(data=frame.iloc[:80])
        assert half.nobs == 80 and first.nobs == 120

    def test_other_doors_say_so(self, frame):
        with pytest.raises(UnsupportedError, match="lmer"):
            lme.mixedlm("y ~ x", frame, groups="a").fit().update(reml=False)


class TestSingular:
    def test_regular(self, fitted):
        assert not fitted.is_singular()
        assert fitted.is_singular(tol=10.0)

    def test_null_direction(self):
        rng = np.random.default_rng(3)
        g = np.repeat(np.arange(12), 10)
        x = rng.normal(size=120)
        u = rng.normal(size=12)
        y = u[g] + 2 * u[g] * x + rng.normal(size=120)
        with pytest.warns(lme.errors.SingularFitWarning):
            result = lme.lmer("y ~ x + (x | g)", {"y": y, "x": x, "g": g})
        assert result.is_singular()
        table = result.re_pca()["g"]
        assert list(table.columns) == ["sd", "proportion", "cumulative", "(Intercept)", "x"]
        assert table.sd.iloc[1] < 1e-4 * table.sd.iloc[0]
        null = table.iloc[1][["(Intercept)", "x"]].to_numpy(float)
        np.testing.assert_allclose(null @ result.factor_cov["g"] @ null, 0.0, atol=1e-8)
        assert table.cumulative.iloc[-1] == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")
@pytest.mark.parametrize(
    "formula", ["Reaction ~ Days + (Days | Subject)", "Reaction ~ Days + (Days | Subject) + (1 | pair)"]
)
def test_blocks_of_the_inverse_tell_what_its_factors_tell(formula, monkeypatch):
    data = lme.datasets.load("sleepstudy")
    data["pair"] = data.Subject.cat.codes // 2
    new = data.iloc[::7].assign(Days=lambda d: d.Days + 0.5)
    fast = lme.lmer(formula, data).prediction(new)
    monkeypatch.setattr("lme_jax.core.henderson.INVERSE_ENTRIES", 0)
    result = lme.lmer(formula, data)
    assert result._data.equations(result.fit).inverse is None
    np.testing.assert_allclose(fast, result.prediction(new), rtol=1e-10)
