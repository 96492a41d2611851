"""Degrees of freedom, tests, analyses of variance and comparisons, against R's exact figures and dense ones."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reference_data import load_frame
from test_likelihood import DESIGNS, rows

import lme_jax as lme
from lme_jax.core.fixed_effects import jets
from lme_jax.errors import DataError, SingularFitWarning, UnsupportedError
from lme_jax.inference import degrees
from lme_jax.inference.chi_bar import correlated_pair, orthant_weights
from lme_jax.inference.term_hypotheses import hypotheses
from lme_jax.results import MixedLMResults

ENTRIES = json.loads((Path(__file__).parent / "reference" / "ddf.json").read_text())
pytestmark = pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")
METHODS = ("satterthwaite", "kenward-roger")
# F, NumDF and DenDF of Oats without the two cells of the test below, polished to xtol_abs 1e-13.
MISSING = {
    1: [(5.681952551920, 2, 45), (22.598140183946, 3, 45), (0.223414502771, 4, 45)],
    2: [(1.851771633559, 2, 45), (22.598140183946, 3, 45), (0.223414502771, 4, 45)],
    3: [(1.851771633559, 2, 45), (22.598140183946, 3, 45), (0.223414502771, 4, 45)],
}


@pytest.fixture(scope="module")
def fitted():
    """(id, reml) → results, each fitted once."""
    cache = {}

    def get(name, reml=True):
        if (name, reml) not in cache:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SingularFitWarning)
                entry = ENTRIES[name]
                frame = load_frame(entry["dataset"])
                if entry["dropped_rows"]:
                    frame = frame.drop(index=[i - 1 for i in entry["dropped_rows"]]).reset_index(drop=True)
                cache[name, reml] = lme.lmer(entry["formula"], frame, reml=reml, weights=entry["weights"])
        return cache[name, reml]

    return get


def at_reference(result, entry):
    """The result at R's own θ, whose last digits are those of its search."""
    theta = entry["theta"]
    named = isinstance(theta, dict) and set(theta) == set(result.theta.index)
    values = [theta[k] for k in result.theta.index] if named else list(getattr(theta, "values", lambda: theta)())
    data = result._data
    return MixedLMResults(data, lme.fit_at(np.array(values, float), data.compressed, reml=True), reml=True)


def of(entry, method):
    return entry["coef"].get(method.replace("-", "_"))


@pytest.mark.parametrize("name", list(ENTRIES))
def test_coefficients_and_joint_tests(fitted, name):
    entry = ENTRIES[name]
    result = fitted(name)
    exact = at_reference(result, entry)
    for method in METHODS:
        expected = of(entry, method)
        if expected is None:  # Satterthwaite at singular fits: R has no exact figure
            assert entry["singular"] and method == "satterthwaite"
            continue
        # R's θ is good to 1e-9: the score there tells Satterthwaite's in θ from his in variances; see test_balance.
        rtol = 3e-8 if method == "satterthwaite" else 1e-8
        table = exact.coefficients(method)
        for column in ("se", "df", "lower"):
            np.testing.assert_allclose(table[column], expected[column], rtol=rtol)
        np.testing.assert_allclose(np.log(table["p"]), np.log(expected["p"]), rtol=rtol, atol=rtol)
        np.testing.assert_allclose(result.coefficients(method).df, expected["df"], rtol=3e-8)
        test, value = exact.test(np.array(entry["L"], float), ddf=method), entry["joint"][method.replace("-", "_")]
        np.testing.assert_allclose(
            [test.statistic, test.df_num, test.df_denom, np.log(test.pvalue), test.scale],
            [value["F"], value["ndf"], value["ddf"], np.log(value["p"]), value.get("F_scaling", 1.0)],
            rtol=rtol,
        )


@pytest.mark.parametrize(
    ("name", "df"),
    [("pastes_reml", 9), ("sleepstudy_slope_reml", 17), ("dyestuff_reml", 5), ("orthodont_slope_reml", 25)],
)
@pytest.mark.parametrize("method", METHODS)
def test_balance(fitted, name, df, method):
    """In balanced designs both are the whole number of the analysis of variance, to our own digits."""
    np.testing.assert_allclose(fitted(name).coefficients(method).df, df, rtol=2e-10)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["anova"]])
def test_anova(fitted, name):
    """lmerTest rounds its hypotheses of type III, and differences its degrees of freedom at singular fits: 2e-7."""
    entry = ENTRIES[name]
    exact = at_reference(fitted(name), entry)
    for key, terms in entry["anova"].items():
        method, kind = key.rsplit("_", 1)
        table = exact.anova(kind, method)
        assert list(table.index) == list(terms)
        values = np.array(list(terms.values()), float)
        rtol = 2e-7 if kind == "III" or entry["singular"] else 3e-8
        np.testing.assert_allclose(table[["F", "den_df"]], values[:, :2], rtol=rtol)
        np.testing.assert_allclose(np.log(table["p"]), np.log(values[:, 2]), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if "chisq_sum" in e])
def test_type_three_is_that_of_sum_contrasts_whatever_the_contrasts(fitted, name):
    """The hypotheses of a refit with sum or Helmert contrasts test the same as those of the first fit."""
    entry, result = ENTRIES[name], fitted(name)
    expected = result.anova(3, test="chisq")
    sums = [entry["chisq_sum"][term] for term in expected.index]
    np.testing.assert_allclose(expected["chisq"], sums, rtol=5e-8)  # R's θ
    factors = list(result._data.design.state.codings)
    for contrasts in ("sum", "helmert"):
        other = result.update(contrasts=dict.fromkeys(factors, contrasts))
        for method in METHODS:
            np.testing.assert_allclose(other.anova(3, method), result.anova(3, method), rtol=1e-7, atol=1e-300)
        np.testing.assert_allclose(other.anova(2, "kr"), result.anova(2, "kr"), rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["containment"]])
def test_containment(fitted, name):
    np.testing.assert_array_equal(fitted(name).coefficients("containment").df, ENTRIES[name]["containment"])


# ---------------------------------------------------------------- without R


def cov_of(result, psi):
    """Dense Cov β̂ at natural parameters psi (k + 1,)."""
    data, V = result._data, psi[-1] * np.diag(1.0 / result._data.design.weights)
    at = 0
    for factor in data.factors:
        for block in factor.template:
            q = block.size
            lower = np.zeros((q, q))
            k = q * (q + 1) // 2
            lower[np.tril_indices(q)] = psi[at : at + k]
            at += k
            Psi = lower + lower.T - np.diag(np.diag(lower))
            offset = 0 if q == factor.Z.shape[1] else [b.size for b in factor.template].index(q)
            Z = factor.Z[:, offset : offset + q]
            V = V + (Z @ Psi @ Z.T) * (factor.codes[:, None] == factor.codes)
    return np.linalg.inv(data.X.T @ np.linalg.solve(V, data.X)), V


@pytest.mark.parametrize("name", ["crossed slopes", "nested", "one factor"])
def test_kenward_roger_from_dense_matrices(name):
    """Kenward & Roger's formulas with n × n matrices and differences of V, whatever the design."""
    result = lme.lmer(DESIGNS[name], rows(), weights="w")
    fit = lme.fit_at(np.random.default_rng(4).uniform(0.4, 1.2, len(result.fit.theta)), result._data.compressed)
    at = MixedLMResults(result._data, fit, reml=True)
    X, psi = result._data.X, np.append(at._covariance[result._data.covariance_positions], at.scale)
    Phi, V = cov_of(at, psi)
    inverse = np.linalg.inv(V)
    G = [cov_of(at, psi + e)[1] - V for e in np.eye(len(psi))]  # V is linear: a difference is its derivative
    P = [-X.T @ inverse @ g @ inverse @ X for g in G]
    Q = [[X.T @ inverse @ a @ inverse @ b @ inverse @ X for b in G] for a in G]
    M = inverse - inverse @ X @ Phi @ X.T @ inverse
    W = 2.0 * np.linalg.inv([[np.trace(M @ a @ M @ b) for b in G] for a in G])
    r = range(len(G))
    Lambda = sum(W[i, j] * (Q[i][j] - P[i] @ Phi @ P[j]) for i in r for j in r)
    reference = at._reference_of("kenward-roger")
    np.testing.assert_allclose(reference.cov, Phi + 2 * Phi @ Lambda @ Phi, rtol=1e-9)
    L = np.eye(2)
    Theta = L.T @ np.linalg.solve(L @ Phi @ L.T, L)
    u = [Theta @ Phi @ p @ Phi for p in P]
    A1 = sum(W[i, j] * np.trace(u[i]) * np.trace(u[j]) for i in r for j in r)
    A2 = sum(W[i, j] * np.trace(u[i] @ u[j]) for i in r for j in r)
    B, g = (A1 + 6 * A2) / 4, (3 * A1 - 6 * A2) / (4 * A2)
    c1, c2, c3 = (c / (6 + 2 * (1 - g)) for c in (g, 2 - g, 4 - g))
    E, variance = 1 / (1 - A2 / 2), (1 + c1 * B) / ((1 - c2 * B) ** 2 * (1 - c3 * B))
    m = 4 + 4 / (2 * variance / (2 * E**2) - 1)
    np.testing.assert_allclose(reference.several(L), [m, m / (E * (m - 2))], rtol=1e-8)
    one = [2 / (W.ravel() @ [a * b for a in singles(P, Phi) for b in singles(P, Phi)])]
    np.testing.assert_allclose(reference.single(L[:1]), one, rtol=1e-9)


def singles(P, Phi):
    """LΦPΦLᵀ/LΦLᵀ of the first coefficient."""
    return [(Phi @ p @ Phi)[0, 0] / Phi[0, 0] for p in P]


def test_kenward_roger_in_theta_differs_by_the_curvature_of_v(fitted):
    """In parameters in which V bends R enters with a quarter; in the natural ones there is none."""
    result = fitted("sleepstudy_slope_reml")
    data = result._data.compressed
    linear, bent = (jets(result.fit, data, second=True, natural=natural) for natural in (True, False))
    assert linear.bend is None
    np.testing.assert_allclose(bent.cov, linear.cov, rtol=1e-12)
    # Φ_A − Φ less ¼ΣW·bend is −ΣW∂²Φ/1 + ½ − ¼: the parts must add up to the published Λ.
    W, inverse = np.linalg.inv(bent.expected), np.linalg.inv(bent.cov)
    PhiP = np.einsum("aij,jk,bkl->abil", bent.slope, inverse, bent.slope)
    QQ = PhiP + np.swapaxes(PhiP, 0, 1) + bent.bend - bent.curve  # Φ(Q + Qᵀ)Φ
    expected = bent.cov + 2 * np.einsum("ab,abij->ij", W, 0.5 * QQ - PhiP - 0.25 * bent.bend)
    np.testing.assert_allclose(degrees.kenward_roger(bent).cov, expected, rtol=1e-10)


def test_two_degrees_of_freedom_are_no_singularity(fitted):
    """Beets: the general formula is 0/0 there."""
    table = fitted("beets_splitplot_reml").anova(1, "kr")
    np.testing.assert_allclose(table["den_df"], [2.0, 20.0, 2.0], rtol=1e-12)
    assert degrees.of_average(np.array([2.0, 2.0 + 1e-12])) == pytest.approx(2.0)
    assert degrees.of_average(np.array([1.5, 9.0])) == 2.0
    assert degrees.of_average(np.array([6.0, 12.0])) == pytest.approx(2 * 2.7 / 0.7)


def test_other_degrees_of_freedom_and_their_words(fitted):
    result = fitted("oats_splitplot_reml")
    assert set(result.coefficients("residual").df) == {result.df_resid}
    normal = result.coefficients("normal")
    assert np.isinf(normal.df).all()
    np.testing.assert_allclose(normal["p"], result.pvalues, rtol=1e-12)
    # 6 blocks; every column varies in a block: 72 − 6 − 11, and 6 − 1 for the intercept.
    np.testing.assert_array_equal(result.coefficients("between-within").df, [5.0] + [55.0] * 11)
    growth = fitted("orthodont_slope_reml").coefficients("bw")
    assert growth.df.loc["age"] == 108 - 27 - 2 and growth.df.iloc[0] == 27 - 2
    with pytest.raises(UnsupportedError, match="nested"):
        fitted("penicillin_reml").coefficients("containment")
    with pytest.raises(DataError, match="REML"):
        fitted("dyestuff_reml", False).coefficients("kr")
    with pytest.raises(DataError, match="unknown"):
        result.coefficients("satterwaite")
    with pytest.raises(DataError, match="type="):
        result.anova(4)


def test_hypotheses_in_words_and_their_contradictions(fitted):
    result = fitted("sleepstudy_slope_reml")
    one = result.test("Days = 10")
    assert one.statistic == pytest.approx(one.table.statistic.iloc[0] ** 2)
    assert result.test([0, 1], rhs=10).pvalue == pytest.approx(one.pvalue)
    twice = result.test([[0, 1], [0, 2]], rhs=[10, 20])
    assert (twice.df_num, twice.df_denom) == (1, pytest.approx(17.0))
    assert twice.pvalue == pytest.approx(one.pvalue)
    with pytest.raises(DataError, match="contradict"):
        result.test([[0, 1], [0, 2]], rhs=[10, 21])
    normal = result.test(np.eye(2), ddf="normal")
    assert 2 * normal.statistic == pytest.approx(result.wald_test(np.eye(2)).statistic)
    assert "F(1, 17)" in repr(one) and "chi2(2)" in repr(normal)


def test_summary_has_the_tests_of_the_method(fitted):
    result = fitted("sleepstudy_slope_reml")
    assert "Satterthwaite" in str(result.summary()) and "17.0" in str(result.summary())
    assert "z tests" in str(result.summary(ddf="normal"))
    assert "z tests" in str(fitted("dyestuff_reml", False).summary())
    frame = load_frame("sleepstudy")
    other = lme.mixedlm("Reaction ~ Days", frame, groups=frame["Subject"], re_formula="~Days").fit()
    assert "z tests" in str(other.summary())
    np.testing.assert_allclose(other.coefficients("kr").df, 17.0, rtol=1e-6)


def test_missing_cells_have_the_type_three_of_sas():
    """Two levels of nitrogen never occur with one variety; figures of lmerTest's anova(m, ddf = "Kenward-Roger")."""
    frame = load_frame("Oats")
    frame = frame[~((frame.Variety == "Victory") & frame.nitro_f.isin(["0.2", "0.6"]))].reset_index(drop=True)
    with pytest.warns(lme.errors.RankWarning):
        first = lme.lmer("yield ~ Variety * nitro_f + (1 | Block)", frame)
    with pytest.warns(lme.errors.RankWarning):
        other = first.update(contrasts={"Variety": "sum", "nitro_f": "helmert"})
    for kind, expected in MISSING.items():
        for result in (first, other):
            np.testing.assert_allclose(result.anova(kind, "kr")[["F", "num_df", "den_df"]], expected, rtol=1e-8)
    np.testing.assert_allclose(other.anova(3)["den_df"], first.anova(3)["den_df"], rtol=1e-8)


# ---------------------------------------------------------------- models beside models


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["random"]["reml"] or e["random"]["ml"]])
def test_random_effects_left_out(fitted, name, reml):
    """The statistics of R's pairs of polished fits, and their mixtures, of what ranova leaves out."""
    expected = ENTRIES[name]["random"]["reml" if reml else "ml"]
    table = fitted(name, reml).ranova()
    found = {round(v["chisq"], 4): v for v in table.iloc[1:].to_dict("records")}
    for what, value in expected.items():
        whole = what.startswith("drop") and not what.startswith(("drop 1 |", "drop 0 +"))
        if whole or "correlation" in what:
            continue
        near = min(found.values(), key=lambda v: abs(v["chisq"] - value["chisq"]))
        assert near["chisq"] == pytest.approx(value["chisq"], abs=1e-6)
        assert near["df"] == value["df"]
        if value["p_mixture"] is not None:
            assert near["p"] == pytest.approx(value["p_mixture"], rel=1e-5)


@pytest.mark.parametrize("name", ["oats_unbalanced_reml", "sleepstudy_slope_reml", "machines_nested_reml"])
def test_information_and_ratios_of_fixed_effects(fitted, name):
    entry, result = ENTRIES[name], fitted(name)
    response = entry["formula"].split("~")[0]
    names = list(entry["fixed"])
    small = [lme.lmer(entry["fixed"][n]["reduced"], result._again.args[0]["data"]) for n in names]
    found = result.compare(*small, names=["full", *names])
    assert "Refitted by maximum likelihood" in " ".join(found.notes) and response
    full = found.table.loc["full"]
    for key in ("AIC", "AICc", "BIC"):
        assert full[key.lower()] == pytest.approx(entry["information"]["ml"][key], abs=1e-6)
    for n in names:
        assert found.table.loc[n, "deviance"] == pytest.approx(entry["fixed"][n]["m2ll_reduced"], abs=1e-6)
    assert full["chisq"] == pytest.approx(entry["fixed"][names[0]]["chisq"], abs=1e-6)
    assert full["p"] == pytest.approx(entry["fixed"][names[0]]["p_chisq"], rel=1e-5)
    assert found.table["weight"].sum() == pytest.approx(1.0)


def test_comparison_says_what_it_does(fitted):
    slope, uncorrelated = fitted("sleepstudy_slope_reml"), fitted("sleepstudy_uncorr_reml")
    found = slope.compare(uncorrelated, slope.without_random_effects(), names=["slope", "both", "none"])
    assert list(found.table.index) == ["none", "both", "slope"]
    assert found.table["law"].iloc[2] == "chi2(1)"
    assert "REML" in found.notes[0]
    weights = [float(part.split()[0]) for part in found.table["law"].iloc[1].split(" + ")]
    assert sum(weights) == pytest.approx(1.0, abs=2e-3) and weights[1] == pytest.approx(0.5)
    machines = fitted("machines_full_reml")
    assert "at most" in machines.compare(machines.without_random_effects()).table["law"].iloc[1]
    other = lme.lmer("Reaction ~ Days + (1 | Days_f)", load_frame("sleepstudy"))
    assert "not nested" in " ".join(slope.compare(other).notes)
    with pytest.raises(DataError, match="same rows"):
        slope.compare(fitted("dyestuff_reml"))


def test_weights_of_orthants_are_shares_of_projections():
    """Of draws from N(0, V), projected by trying all faces."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(3, 3))
    V = A @ A.T
    draws, inverse = rng.multivariate_normal(np.zeros(3), V, 200_000), np.linalg.inv(V)
    best, count = np.full(len(draws), np.inf), np.zeros(len(draws), int)
    for mask in range(8):
        S = [i for i in range(3) if mask >> i & 1]
        x = np.zeros_like(draws)
        x[:, S] = np.linalg.solve(inverse[np.ix_(S, S)], inverse[S] @ draws.T).T if S else 0.0
        distance = np.einsum("ni,ij,nj->n", draws - x, inverse, draws - x)
        better = (x >= 0).all(1) & (distance < best)
        best[better], count[better] = distance[better], len(S)
    shares = np.bincount(count, minlength=4) / len(draws)
    np.testing.assert_allclose(orthant_weights(V), shares, atol=4.5 * np.sqrt(0.25 / len(draws)))
    for r in (1, 2, 3, 4):
        assert sum(orthant_weights(np.eye(r) + 0.3)) == pytest.approx(1.0, abs=1e-4)


def test_rows_of_hypotheses_span_what_they_should():
    """Unbalanced two-way: type III is the equality of unweighted cell means, found from the cells themselves."""
    frame = load_frame("Oats")
    result = lme.lmer("yield ~ Variety * nitro_f + (1 | Block)", frame.iloc[:61])
    L = hypotheses(result._data.design, 3)["Variety"]
    cells = result._data.design.X[
        frame.iloc[:61].drop_duplicates(["Variety", "nitro_f"]).sort_values(["Variety", "nitro_f"]).index
    ]
    means = cells.reshape(3, 4, -1).mean(1)
    both = np.vstack([L, means[1:] - means[0]])
    assert np.linalg.matrix_rank(both, tol=1e-10) == 2


def test_two_correlated_effects_have_the_weights_of_the_semidefinite_cone():
    """Ratios of draws of N(0, V): the best point of the cone over many directions, where the draw is not inside."""
    A = np.random.default_rng(2).normal(size=(3, 3))
    V = A @ A.T + 0.3 * np.eye(3)
    z, W = np.random.default_rng(3).multivariate_normal(np.zeros(3), V, 40_000), np.linalg.inv(V)
    angle = np.linspace(0.0, np.pi, 500, endpoint=False)
    ray = np.stack([np.cos(angle) ** 2, np.cos(angle) * np.sin(angle), np.sin(angle) ** 2])
    best = (np.maximum(z @ W @ ray, 0.0) ** 2 / np.einsum("ip,ij,jp->p", ray, W, ray)).max(1)
    inside = (z[:, 0] > 0) & (z[:, 0] * z[:, 2] > z[:, 1] ** 2)
    ratio = np.where(inside, np.einsum("ni,ij,nj->n", z, W, z), best)
    law = correlated_pair(V, 0)
    assert sum(law.weights) == pytest.approx(1.0)
    for t in (0.5, 2.0, 5.0, 9.0):
        p = law.pvalue(t)
        assert (ratio > t).mean() == pytest.approx(p, abs=4.5 * np.sqrt(p * (1 - p) / len(z)))
    units = np.array([1e6, 1.0, 1e-6])  # of the effects: the cone stays, so do the weights
    np.testing.assert_allclose(correlated_pair(V * np.outer(units, units), 0).weights, law.weights, rtol=1e-8)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", list(ENTRIES))
def test_conditional_aic(fitted, name, reml):
    """Of theta as good as R's: beets by ML is nearly singular, and its curvature multiplies R's last digits."""
    expected = ENTRIES[name]["caic"]["reml" if reml else "ml"]
    found = fitted(name, reml).conditional_aic()
    if expected is None:
        assert ENTRIES[name]["singular"]
        return
    tolerance = 1e-4 if (name, reml) == ("beets_splitplot_reml", False) else 1e-6
    values = [expected[k] for k in ("cond_loglik", "trace_hat", "df", "caic")]
    np.testing.assert_allclose([found[k] for k in ("loglik", "trace", "df", "caic")], values, atol=tolerance)


def test_conditional_degrees_of_freedom_are_the_derivative_of_refits():
    """tr ∂ŷ/∂y by central differences of whole fits, with weights and crossed factors."""
    result = lme.lmer(DESIGNS["crossed"], rows(n=40), weights="w")
    y, h = result._data.y, 5e-3
    trace = 0.0
    for i in range(len(y)):
        step = h * np.eye(len(y))[i]
        trace += (result.refit(y + step).fittedvalues.iloc[i] - result.refit(y - step).fittedvalues.iloc[i]) / (2 * h)
    assert result.conditional_aic()["df"] == pytest.approx(trace + 1.0, abs=5e-5)


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["rlrt"] or e["lrt_exact"]])
def test_simulated_ratios(fitted, name):
    """RLRsim's p-values, quantiles and mass at zero, within both Monte-Carlo errors."""
    for reml, what in ((True, "rlrt"), (False, "lrt_exact")):
        expected = ENTRIES[name][what] or {}
        values = list(expected.values()) if reml else [v for k, v in expected.items() if k == "same_fixed"]
        if not values:
            continue
        table = fitted(name, reml).ranova(simulate=20_000, seed=1).iloc[1:]
        for value in values:
            row = table.iloc[(table["chisq"] - value["statistic"]).abs().argmin()]
            error = np.hypot(max(row["mc_error"], 1e-4), value["p_mc_se"])
            assert row["p_simulated"] == pytest.approx(value["p"], abs=4.5 * error)


def test_bootstrap_of_ratios(fitted):
    """Simulated under the smaller model the ratio of a good χ² has its p-value; the same seed gives the same figure."""
    large = fitted("oats_unbalanced_reml", False)
    small = large.update(". ~ . - Variety:nitro_f")
    found = large.compare(small, bootstrap=400, seed=3, conditional=True)
    row = found.table.iloc[1]
    assert row["p_bootstrap"] == pytest.approx(row["p"], abs=5 * row["mc_error"])
    assert row["caic"] == pytest.approx(large.conditional_aic()["caic"])
    again = large.compare(small, bootstrap=400, seed=3).table.iloc[1]
    assert again["p_bootstrap"] == row["p_bootstrap"]
    with pytest.raises(DataError, match="seed"):
        large.compare(small, bootstrap=400)
    restricted = fitted("oats_unbalanced_reml")
    smaller = restricted.update(". ~ . - Variety:nitro_f")
    with pytest.raises(DataError, match="reml=False"):
        restricted.compare(smaller, bootstrap=4, seed=1)


def test_linear_models_are_compared_too(fitted):
    sm = pytest.importorskip("statsmodels.api")
    slope, frame = fitted("sleepstudy_slope_reml"), load_frame("sleepstudy")
    ols = sm.OLS(frame["Reaction"], sm.add_constant(frame["Days"])).fit()
    table = slope.compare(ols, conditional=True).table
    assert table["deviance"].iloc[0] == pytest.approx(-2 * ols.llf, abs=1e-8)
    assert table["caic"].iloc[0] == pytest.approx(table["aic"].iloc[0])  # no random effects: the same thing
    bare = slope.compare(slope.without_random_effects(), bootstrap=50, seed=1).table
    assert bare["p_bootstrap"].iloc[1] == pytest.approx(1 / 51)


def test_levels_of_tests_in_small_samples():
    """6 groups of unlike size: 5 % tests with degrees of freedom reject no more often than they say, z tests do."""
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(6), [2, 3, 4, 5, 6, 8])
    effects = rng.normal(size=(300, 6))[:, group] + rng.normal(size=(300, 28))
    frame = pd.DataFrame({"g": group, "x": (group % 2).astype(float), "y": effects[0]})
    data = lme.lmer("y ~ x + (1 | g)", frame)._data
    p = {"satterthwaite": [], "kenward-roger": [], "normal": []}
    for y in effects:
        other = data.with_response(y)
        one = MixedLMResults(other, lme.fit(other.compressed), reml=True)
        for method, values in p.items():
            values.append(one.coefficients(method)["p"].loc["x"])
    rejected = {method: np.mean(np.array(values) < 0.05) for method, values in p.items()}
    margin = 3.5 * np.sqrt(0.05 * 0.95 / len(effects))
    assert rejected["kenward-roger"] < 0.05 + margin and rejected["satterthwaite"] < 0.05 + margin
    assert rejected["normal"] > 0.05 + margin
    print(rejected)
