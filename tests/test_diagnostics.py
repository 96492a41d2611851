"""Residuals, leverage, influence, R² and the like beside lme4's and performance's, and beside dense algebra."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from reference_data import as_frame, load_frame

import lme_jax as lme
from lme_jax import datasets
from lme_jax.errors import DataError, SingularFitWarning

REFERENCE = json.loads((Path(__file__).parent / "reference" / "robust.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fitted():
    """id → result."""
    kept = {}

    def get(name):
        if name not in kept:
            entry = REFERENCE[name]
            frame = load_frame(entry["dataset"])
            frame = frame.drop(index=[i - 1 for i in entry["dropped_rows"] or []])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SingularFitWarning)
                kept[name] = lme.lmer(entry["formula"], frame, weights=entry["weights"])
        return kept[name]

    return get


def close(found, expected, tolerance=1e-8):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", list(REFERENCE))
def test_rows(fitted, name):
    fit, parts = fitted(name), REFERENCE[name]["rows"]
    table = pd.DataFrame(parts["rows"]["values"], columns=parts["rows"]["cols"])
    n = len(table)
    # θ̂ of both fits holds to 1e-9; residuals and leverages move with it.
    close(fit.hatvalues()[:n], table["hat"])
    assert fit.hatvalues().sum() == pytest.approx(parts["hat_sum"], rel=1e-8)
    close(fit.residuals("scaled")[:n], table["pearson_scaled"])
    close(fit.residuals("marginal")[:n], table["resid_marginal"])
    close(fit.residuals("studentized")[:n], table["rstudent"])
    close(fit.residuals()[:n], table["resid"])
    close(fit.cooks_distance()[:n], table["cooks"])
    assert fit.cooks_distance().max() == pytest.approx(parts["cooks_max"], rel=1e-7)


@pytest.mark.parametrize("name", list(REFERENCE))
def test_shares_of_variance(fitted, name):
    fit, expected = fitted(name), REFERENCE[name]["r2"]
    table = fit.variance_partition()
    assert table["share"].sum() == pytest.approx(1.0)
    found = [table.loc["fixed", "variance"], table["variance"].iloc[1:-1].sum(), *fit.r2(), *fit.icc()]
    names = ["var_fixed", "var_random", "r2_marginal", "r2_conditional", "icc_adjusted", "icc_unadjusted"]
    assert found == pytest.approx([expected[key] for key in names], rel=1e-8, abs=1e-12)


# Of the others chickweight takes seconds: a fit without one chick is searched for from many starts.
LEFT_OUT = [name for name, entry in REFERENCE.items() if entry.get("group") and name != "chickweight_reml"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_levels_left_out(fitted, name):
    fit, group = fitted(name), REFERENCE[name]["group"]
    for key, refit in (("kept", False), ("full", True)):
        found = fit.influence(group["factor"], refit=refit, progress=False)
        expected = as_frame(group[key]).reindex(found.labels.astype(str))
        close(found.estimates, expected[list(found.names)])
        close(found.sigma_deleted, expected["sigma"])
        close(found.cooks, expected["cook"], 5e-8)


# ---------------------------------------------------------------- dense algebra


def frame_of(seed=6):
    rng = np.random.default_rng(seed)
    n = 60
    frame = pd.DataFrame({"g": rng.integers(0, 7, n), "h": rng.integers(0, 5, n), "x": rng.normal(size=n)})
    frame["w"] = rng.uniform(0.5, 2.0, n)
    effects = rng.normal(size=(7, 2))
    frame["y"] = frame.x + effects[frame.g, 0] + effects[frame.g, 1] * frame.x + rng.normal(size=5)[frame.h]
    frame["y"] += 0.7 * rng.normal(size=n)
    return frame


def marginal(data, fit):
    """V/σ² of the fitted rows."""
    V = np.diag(np.ones(data.n_rows) if data.design.weights is None else 1.0 / data.design.weights)
    L = np.asarray(fit.relative_factor)
    for factor, span in zip(data.factors, data.factor_slices, strict=True):
        V += np.equal.outer(factor.codes, factor.codes) * (factor.Z @ L[span, span] @ L[span, span].T @ factor.Z.T)
    return V


def gls_without(data, fit, left_out, reml):
    """β̂, Cov β̂ and σ̂ of the other rows, θ kept, by dense algebra."""
    keep = np.setdiff1d(np.arange(data.n_rows), left_out)
    V, X, y = marginal(data, fit)[np.ix_(keep, keep)], data.X[keep], data.y[keep]
    M = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    beta = M @ X.T @ np.linalg.solve(V, y)
    r = y - X @ beta
    sigma2 = r @ np.linalg.solve(V, r) / (len(keep) - (X.shape[1] if reml else 0))
    return beta, sigma2 * M, np.sqrt(sigma2)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("formula", ["y ~ x + (x | g)", "y ~ x + (x | g) + (1 | h)"])
def test_deletions_with_theta_kept(formula, weights, reml):
    frame = frame_of()
    fit = lme.lmer(formula, frame, weights=weights, reml=reml)
    data, cov = fit._data, np.asarray(fit.cov_fe)
    ways = [(fit.influence(), [[i] for i in range(60)])]
    ways.append((fit.influence("g", refit=False), [np.flatnonzero(frame.g == g) for g in range(7)]))
    for found, sets in ways:
        for i, left_out in enumerate(sets):
            beta, own, sigma = gls_without(data, fit.fit, left_out, reml)
            gap = np.asarray(fit.fe_params) - beta
            np.testing.assert_allclose(found.dfbeta.iloc[i], gap, rtol=1e-8, atol=1e-11)
            np.testing.assert_allclose(found.dfbetas.iloc[i], gap / np.sqrt(np.diag(own)), rtol=1e-8, atol=1e-11)
            assert found.sigma_deleted.iloc[i] == pytest.approx(sigma, rel=1e-9)
            assert found.cooks.iloc[i] == pytest.approx(gap @ np.linalg.solve(cov, gap) / 2, rel=1e-8)
            assert found.covratio.iloc[i] == pytest.approx(np.linalg.det(own) / np.linalg.det(cov), rel=1e-8)


@pytest.mark.parametrize("formula", ["y ~ x + (x | g)", "y ~ x + (x | g) + (1 | h)"])
def test_leverage_is_how_far_a_response_moves_its_fitted_value(formula):
    frame = frame_of()
    fit = lme.lmer(formula, frame, weights="w")
    data = fit._data
    V, X = marginal(data, fit.fit), data.X
    W = np.linalg.inv(V)
    P = W - W @ X @ np.linalg.inv(X.T @ W @ X) @ X.T @ W
    # y − fitted = diag(1/w) P y.
    expected = 1.0 - np.diag(P) / data.design.weights
    np.testing.assert_allclose(fit.hatvalues(), expected, rtol=1e-9)


def test_distances_of_effects():
    """BLUPs are linear in y, b̂ = ΨZᵀPy/σ², whence their covariance."""
    frame = frame_of()
    fit = lme.lmer("y ~ x + (x | g)", frame)
    V, X, Psi = marginal(fit._data, fit.fit), fit._data.X, np.asarray(fit.cov_re)
    W = np.linalg.inv(V)
    P = W - W @ X @ np.linalg.inv(X.T @ W @ X) @ X.T @ W
    table = fit.mahalanobis()["g"]
    for level, b in enumerate(fit.ranef["g"].to_numpy()):
        Zg = X * (frame.g == level).to_numpy()[:, None]
        spread = Psi @ Zg.T @ P @ Zg @ Psi / fit.scale
        assert table["distance2"].iloc[level] == pytest.approx(b @ np.linalg.solve(spread, b), rel=1e-7)
    assert list(table["df"]) == [2] * 7
    np.testing.assert_allclose(table["p"], scipy.stats.chi2.sf(table["distance2"], 2), rtol=1e-12)


def test_an_interval_of_the_repeatability():
    """Of one factor it is what the profile of θ says: ICC = θ²/(1 + θ²)."""
    fit = lme.lmer("Yield ~ 1 + (1 | Batch)", datasets.load("dyestuff"))
    theta = fit.profile_ci("theta").iloc[0]
    icc = fit.icc(level=0.95)
    share = [theta[key] ** 2 / (1 + theta[key] ** 2) for key in ("estimate", "lower", "upper")]
    assert [icc["adjusted"], icc["lower"], icc["upper"]] == pytest.approx(share, rel=1e-6)
    assert list(fit.repeatability().loc["Batch"]) == pytest.approx(share, rel=1e-6)
    effect = fit.design_effect().loc["Batch"]
    assert effect["design_effect"] == pytest.approx(1 + 4 * share[0]) and effect["size"] == 5.0
    nested = lme.lmer("strength ~ 1 + (1 | batch/cask)", datasets.load("pastes"))
    apart = nested.repeatability()["estimate"]
    assert apart.sum() == pytest.approx(nested.icc()["adjusted"])


def test_inflation():
    """Of single columns the diagonal of a correlation's inverse; of a term it does not depend on its coding."""
    rng = np.random.default_rng(0)
    frame = frame_of()
    frame["z"] = frame.x + 0.3 * rng.normal(size=60)
    frame["f"] = pd.Categorical(rng.choice(["a", "b", "c"], size=60))
    fit = lme.lmer("y ~ x + z + f + (1 | g)", frame)
    table = fit.vif()
    cov = np.asarray(fit.cov_fe)[1:, 1:]
    expected = np.diag(cov)[:2] * np.diag(np.linalg.inv(cov))[:2]
    np.testing.assert_allclose(table.loc[["x", "z"], "gvif"], expected, rtol=1e-9)
    other = frame.assign(f=frame.f.cat.reorder_categories(["c", "a", "b"]))
    np.testing.assert_allclose(lme.lmer("y ~ x + z + f + (1 | g)", other).vif(), table, rtol=1e-6)
    assert list(table["df"]) == [1, 1, 2]


# ---------------------------------------------------------------- in words


def good(seed=1, n_levels=30):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(n_levels), 8)
    frame = pd.DataFrame({"g": g, "x": rng.normal(size=len(g)), "z": rng.normal(size=len(g))})
    frame["y"] = frame.x + rng.normal(size=n_levels)[g] + 0.5 * rng.normal(size=len(g))
    return frame


def spoilt(what):
    """A good data set with one thing wrong."""
    frame, rng = good(), np.random.default_rng(3)
    e = rng.normal(size=len(frame))
    if what == "shape":
        frame["y"] += 0.5 * np.exp(1.3 * e)
    elif what == "spread":
        frame["y"] += 2 * frame.x + np.exp(0.8 * frame.x) * e
    elif what == "row":
        frame.loc[17, "y"] += 8.0
    elif what == "level":
        frame.loc[frame.g == 4, "y"] += 12.0
    elif what == "order":
        frame["y"] += np.convolve(e, 0.9 ** np.arange(20))[: len(e)]
    elif what == "leverage":
        frame.loc[frame.g == 4, "x"] += 25.0
    elif what == "columns":
        frame["z"] = frame.x + 0.05 * e
    return frame


WORDS = {
    "shape": "shape of the residuals: skewness .*transform the response",
    "spread": "size goes up with the fitted values .*robust",
    "row": "outlying rows: .*17",
    "level": "effects of g: 1 of 30 far from the rest: 4",
    "order": "successive rows of a g correlate by 0",
    "leverage": "influence of a g: largest Cook's distance .*, of 4; without 4",
    "columns": "say nearly the same",
}


def test_nothing_wrong():
    check = lme.lmer("y ~ x + z + (1 | g)", good()).check()
    assert check.ok and check.problems == []
    assert set(check.frame().columns) == {"aspect", "ok", "text"}
    assert "!!" not in repr(check) and "30 levels" in repr(check)


@pytest.mark.parametrize("what", list(WORDS))
def test_what_is_wrong_is_said(what):
    check = lme.lmer("y ~ x + z + (1 | g)", spoilt(what)).check()
    wrong = "\n".join(line for line in repr(check).split("\n") if line.startswith("!!"))
    assert not check.ok
    assert re.search(WORDS[what], wrong), wrong


def test_other_designs_are_checked(fitted):
    with pytest.warns(SingularFitWarning):
        few = lme.lmer("y ~ x + (x | g)", good(n_levels=4).assign(y=lambda d: d.x + d.z))
    text = repr(few.check())
    assert "4 levels: variances from fewer than 5" in text and "a variance is zero" in text
    assert "influence of a row" in repr(fitted("penicillin_reml").check())


def test_shares_of_fixed_terms():
    """They sum to the variance of the fixed part, and are the terms' own where these do not correlate."""
    oats = lme.lmer("yield ~ Variety + nitro + (1 | Block/Variety)", datasets.load("oats"))
    parts, whole = oats.variance_partition(by_term=True), oats.variance_partition()
    assert parts.loc[["Variety", "nitro"], "variance"].sum() == pytest.approx(whole.loc["fixed", "variance"])
    slope = oats.fe_params["nitro"]
    assert parts.loc["nitro", "variance"] == pytest.approx(slope**2 * np.var(oats._data.X[:, -1], ddof=1))
    assert list(parts.index) == ["Variety", "nitro", *whole.index[1:]]


def test_without_rows(fitted):
    fit = lme.lmer("Reaction ~ Days + (Days | Subject)", datasets.load("sleepstudy"))
    fit.remove_data()
    for ask in (fit.robust, fit.check, fit.influence, fit.profile_ci, fit.r2, fit.cooks_distance):
        with pytest.raises(DataError, match="the rows were removed"):
            ask()


def test_refusals(fitted):
    fit = fitted("sleepstudy_slope_reml")
    with pytest.raises(DataError, match="'deviance' is unknown; use one of response"):
        fit.residuals("deviance")
    with pytest.raises(DataError, match="no grouping factor of the model: give one of Subject"):
        fit.influence("Days")
    with pytest.raises(DataError, match="give one of Subject"):
        fit.icc("g")


def test_examples_of_the_page_run():
    page = Path(__file__).parents[1] / "docs" / "diagnostics.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)  # of bootstrap samples, and of fits without a level
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)
    assert names["robust"].n_clusters == 18 and names["out"].refitted
