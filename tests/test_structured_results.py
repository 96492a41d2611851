"""Doors and results of structured residuals: nlme's figures, dense algebra, and the words of refusals."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from reference_data import load_frame
from scipy.optimize import brentq, minimize, minimize_scalar

import lme_jax as lme
from lme_jax.core.residual import fit as core
from lme_jax.errors import ConvergenceWarning, DataError, FormulaError, SingularFitWarning, UnsupportedError

NLME = json.loads((Path(__file__).parent / "reference" / "residual_results.json").read_text())
BOX = "weight ~ Diet * Time"


@pytest.fixture(scope="module")
def orthodont() -> pd.DataFrame:
    frame = lme.datasets.load("Orthodont")
    return frame.assign(visit=(frame.age / 2 - 3).astype(int))


@pytest.fixture(scope="module")
def weights_of_rats() -> pd.DataFrame:
    return load_frame("BodyWeight")


@pytest.fixture(scope="module")
def ar1_ident(orthodont):
    return lme.gls("distance ~ age * Sex", orthodont, residual="ar1(visit | Subject)", variance="ident(Sex)")


@pytest.fixture(scope="module")
def us(orthodont):
    return lme.mmrm("distance ~ age * Sex + us(visit | Subject)", orthodont)


@pytest.fixture(scope="module")
def exp_power(weights_of_rats):
    how = {"residual": "sp_exp(Time | Rat)", "variance": "power(Time)"}
    return lme.lmer(f"{BOX} + (1 | Rat)", weights_of_rats, **how)


@pytest.fixture(scope="module")
def nlme_fits(ar1_ident, us, exp_power, weights_of_rats):
    ovary = load_frame("Ovary")
    ovary = ovary.assign(visit=ovary.groupby("Mare", observed=True).cumcount())
    waves = "follicles ~ sin(2 * pi * Time) + cos(2 * pi * Time)"
    return {
        "ar1_ident": ar1_ident,
        "us": us,
        "exp_power": exp_power,
        "car1": lme.gls(BOX, weights_of_rats, residual="car1(Time | Rat)"),
        "arma": lme.gls(waves, ovary, residual="arma(visit | Mare, p = 1, q = 1)", reml=False),
    }


@pytest.mark.parametrize("name", sorted(NLME))
def test_estimates_are_nlmes(nlme_fits, name):
    """nlme stops within 1e-7 of the optimum, which moves its parameters by a few 1e-5 of their size."""
    fit, says = nlme_fits[name], NLME[name]
    assert -1e-8 <= says["m2ll"] - fit.deviance < 1e-6
    np.testing.assert_allclose(fit.fe_params, says["beta"], rtol=0, atol=2e-4 * np.min(says["se"]))
    # Of gls by ML nlme reports standard errors with the divisor n − p beside a σ with n.
    inflated = 1.0 if fit.reml else np.sqrt(fit.nobs / fit.df_resid)
    np.testing.assert_allclose(inflated * fit.bse_fe, says["se"], rtol=2e-4)
    np.testing.assert_allclose(fit.sigma, says["sigma"], rtol=2e-4)
    np.testing.assert_allclose(
        fit.residual_cov(_label(fit, says["R_subject"])).to_numpy()[:4, :4], says["R"], rtol=5e-4
    )
    np.testing.assert_allclose(fit.residuals("pearson")[:12], says["pearson"], atol=5e-4)
    np.testing.assert_allclose(fit.residuals("normalized")[:12], says["normalized"], atol=5e-4)
    np.testing.assert_allclose(fit.acf(3, "pearson").acf, says["acf"], atol=2e-4)


def _label(fit, text):
    return next(label for label in fit.subjects.tolist() if str(label) == text)


def test_intervals_are_nlmes(nlme_fits):
    """On the same scales: logs of standard deviations, ratios and ranges, Fisher's z of AR(1), logit of φ."""

    def limits(name, parameter, row=0):
        table = nlme_fits[name].residual_params
        return table[table.parameter == parameter][["lower", "estimate", "upper"]].to_numpy()[row]

    tight = {"rtol": 3e-4}
    np.testing.assert_allclose(limits("ar1_ident", "rho"), NLME["ar1_ident"]["cor"][0], **tight)
    np.testing.assert_allclose(limits("ar1_ident", "SD ratio to Male"), NLME["ar1_ident"]["var"][0], **tight)
    np.testing.assert_allclose(limits("ar1_ident", "SD"), NLME["ar1_ident"]["sigma_ci"], **tight)
    np.testing.assert_allclose(limits("car1", "rho"), NLME["car1"]["cor"][0], **tight)
    # lme's Hessian is one of differences: its standard error of the exponent is 0.6 % off that of the exact one.
    np.testing.assert_allclose(limits("exp_power", "range"), NLME["exp_power"]["cor"][0], rtol=1e-3)
    np.testing.assert_allclose(limits("exp_power", "power"), NLME["exp_power"]["var"][0], atol=5e-4)
    correlations = nlme_fits["us"].residual_cov(correlation=True).to_numpy()[np.tril_indices(4, -1)]
    said = np.array(NLME["us"]["cor"])[:, 1]  # (1, 2), (1, 3), (1, 4), (2, 3), …
    np.testing.assert_allclose(np.sort(correlations), np.sort(said), rtol=1e-5)


def test_semivariogram_is_nlmes(nlme_fits):
    table, says = nlme_fits["car1"].variogram(), NLME["car1"]["variogram"]
    np.testing.assert_allclose(table.distance, says["distance"])
    np.testing.assert_allclose(table.semivariance, says["semivariance"], rtol=2e-4)
    np.testing.assert_array_equal(table.pairs, says["pairs"])
    coarse = nlme_fits["car1"].variogram(bins=4)
    assert len(coarse) == 4
    assert coarse.pairs.sum() == table.pairs.sum()


def test_interval_level_and_scale(ar1_ident):
    """The interval of ρ is symmetric in Fisher's z, whatever its level."""
    row = ar1_ident.residual_intervals(alpha=0.2).set_index("parameter").loc["rho"]
    z = np.arctanh(row[["lower", "estimate", "upper"]].astype(float))
    half = scipy.stats.norm.ppf(0.9) * row.se / (1 - row.estimate**2)
    np.testing.assert_allclose(np.diff(z), half, rtol=1e-10)


def dense_v(fit, data, weights):
    """V of the rats' model by its definition, entry by entry."""
    table = fit.residual_params.set_index("parameter").estimate
    reach, delta, psi = table["range"], table["power"], fit.varcorr.vcov[0]
    sd = fit.sigma * data.Time.to_numpy() ** delta / np.sqrt(weights)
    V = np.zeros((len(data), len(data)))
    rats, time = data.Rat.to_numpy(), data.Time.to_numpy()
    for i in range(len(data)):
        for j in range(len(data)):
            if rats[i] == rats[j]:
                V[i, j] = psi + sd[i] * sd[j] * np.exp(-abs(time[i] - time[j]) / reach)
    return V


def test_conditional_prediction_is_dense_algebra(weights_of_rats):
    """Four rows are held out; what is said of them, given the others, is that of the joint normal distribution."""
    data = weights_of_rats.reset_index(drop=True)
    out, w = np.array([0, 5, 60, 100]), np.where(data.index % 3 == 0, 2.0, 1.0)
    w[out] = 1.0
    kept = np.delete(np.arange(len(data)), out)
    how = {"residual": "sp_exp(Time | Rat)", "variance": "power(Time)"}
    fit = lme.lmer(f"{BOX} + (1 | Rat)", data.iloc[kept], weights=w[kept], **how)
    V = dense_v(fit, data, w)
    np.testing.assert_allclose(
        fit.marginal_cov("1"), V[np.ix_(*[[i for i in kept if data.Rat[i] == "1"]] * 2)], rtol=1e-10
    )
    X = np.asarray(lme.gls(BOX, data, variance="ident(Diet)")._data.X)
    gain = np.linalg.solve(V[np.ix_(kept, kept)], V[np.ix_(kept, out)]).T
    residual = data.weight.to_numpy()[kept] - X[kept] @ fit.fe_params.to_numpy()
    mean = X[out] @ fit.fe_params.to_numpy() + gain @ residual
    x = X[out] - gain @ X[kept]
    se2 = np.einsum("ni,ij,nj->n", x, fit.cov_fe.to_numpy(), x)
    left = np.diag(V)[out] - np.einsum("nk,kn->n", gain, V[np.ix_(kept, out)])
    table = fit.prediction(data.iloc[out], conditional=True)
    np.testing.assert_allclose(table["mean"], mean, rtol=1e-9)
    np.testing.assert_allclose(fit.predict(data.iloc[out], conditional=True), mean, rtol=1e-9)
    np.testing.assert_allclose(table.se, np.sqrt(se2), rtol=1e-8)
    z = scipy.stats.norm.ppf(0.975)
    np.testing.assert_allclose(table.pi_upper - mean, z * np.sqrt(se2 + left), rtol=1e-8)
    everyone = fit.prediction(data.iloc[out])
    np.testing.assert_allclose(everyone["mean"], X[out] @ fit.fe_params.to_numpy(), rtol=1e-10)
    total = np.einsum("ni,ij,nj->n", X[out], fit.cov_fe.to_numpy(), X[out]) + np.diag(V)[out]
    np.testing.assert_allclose(everyone.pi_upper - everyone["mean"], z * np.sqrt(total), rtol=1e-8)
    normalized = np.linalg.solve(np.linalg.cholesky(V[np.ix_(kept, kept)] - _psi(fit, data.iloc[kept])), fit.resid)
    np.testing.assert_allclose(fit.residuals("normalized"), normalized, rtol=1e-8, atol=1e-10)


def _psi(fit, data):
    same = data.Rat.to_numpy()[:, None] == data.Rat.to_numpy()
    return fit.varcorr.vcov[0] * same


def test_rows_of_new_subjects_visits_and_missing_values(us, orthodont):
    new = orthodont.iloc[:3].copy()
    new["Subject"] = ["M01", "M01", "nobody"]
    new["age"] = [8.0, np.nan, 12.0]
    found = us.predict(new, conditional=True)
    assert found.iloc[0] == pytest.approx(orthodont.distance[0])
    assert np.isnan(found.iloc[1])
    assert found.iloc[2] == pytest.approx(us.predict(new).iloc[2])
    with pytest.raises(DataError, match=r"visit 9\.0 is new"):
        us.predict(new.assign(visit=9), conditional=True)
    later = lme.gls("distance ~ age", orthodont, residual="ar1(visit | Subject)")
    ahead = orthodont[:4].assign(visit=[5, 6, 7, 8], age=[16.0, 18, 20, 22])
    rho = later.residual_params.set_index("parameter").estimate["rho"]
    last = later.resid.iloc[3]
    expected = later.predict(ahead) + last * rho ** np.arange(1, 5)
    np.testing.assert_allclose(later.predict(ahead, conditional=True), expected, rtol=1e-9)


def test_simulation_has_the_fitted_covariance(exp_power):
    """20 000 draws: entries within five standard errors of V's; given the effects, of R's."""
    for choice, of in (("new", exp_power.marginal_cov), ("conditional", exp_power.residual_cov)):
        draws = exp_power.simulate(20_000, seed=3, random_effects=choice).to_numpy()
        rows, V = exp_power._rows_of("1"), of("1").to_numpy()
        error = np.sqrt((V**2 + np.outer(np.diag(V), np.diag(V))) / draws.shape[1])
        assert (np.abs(np.cov(draws[rows]) - V) < 5 * error).all()
        assert np.abs(np.corrcoef(draws[rows[0]], draws[exp_power._rows_of("2")[0]])[0, 1]) < 0.04
    again = exp_power.refit(exp_power.simulate(1, seed=1)[0])
    assert again.converged
    assert again.nobs == exp_power.nobs


def test_mmrm_is_gls_with_its_term_in_the_formula(us, orthodont):
    same = lme.gls("distance ~ age * Sex", orthodont, residual="us(visit | Subject)")
    assert us.deviance == same.deviance
    assert us.structure == same.structure == "us(visit | Subject)"
    assert us.default_ddf == same.default_ddf == "satterthwaite"
    ml = lme.mmrm("distance ~ age * Sex + us(visit | Subject)", orthodont, reml=False)
    assert ml.default_ddf == "satterthwaite"
    assert same.update(reml=False).default_ddf == "normal"
    assert lme.lmer("distance ~ age * Sex", orthodont, residual="us(visit | Subject)").deviance == same.deviance


def test_degrees_of_freedom_of_a_complete_trial(us, orthodont):
    """All visits of 27 children: what the unstructured Σ tells is exact, t with 27 − 2 degrees of freedom.

    (Means of both sexes at every visit: the multivariate linear model, where Kenward and Roger change nothing.)
    """
    full = lme.mmrm("distance ~ factor(visit) * Sex + us(visit | Subject)", orthodont)
    for ddf in ("satterthwaite", "kenward-roger", "kenward-roger-linear"):
        table = full.coefficients(ddf=ddf)
        np.testing.assert_allclose(table.df, 25.0, rtol=1e-8)
        np.testing.assert_allclose(table.se, full.bse_fe, rtol=1e-8)
    wide = orthodont.pivot(index="Subject", columns="visit", values="distance")
    sex = orthodont.groupby("Subject", observed=True).Sex.first()
    inside = sum(
        (wide[sex == s] - wide[sex == s].mean()).T @ (wide[sex == s] - wide[sex == s].mean()) for s in set(sex)
    )
    np.testing.assert_allclose(full.residual_cov(), inside / 25, rtol=1e-8)
    within = lme.mmrm("distance ~ age * Sex + us(visit | Subject)", orthodont, ddf="between-within")
    np.testing.assert_array_equal(within.coefficients().df, [25, 79, 25, 79])
    linear, whole = (us.test("age:SexFemale", ddf=d) for d in ("kenward-roger-linear", "kenward-roger"))
    assert linear.df_denom == pytest.approx(whole.df_denom, rel=1e-9)
    with pytest.raises(DataError, match="REML"):
        us.update(reml=False).coefficients(ddf="kenward-roger")


def test_updates_change_structure_formula_and_door(ar1_ident, exp_power, orthodont):
    assert ar1_ident.update(variance=None).deviance > ar1_ident.deviance
    assert ar1_ident.update(". ~ . - age:Sex").k_fe == 3
    assert ar1_ident.update("distance ~ age + cs(visit | Subject)", variance=None).structure == "cs(visit | Subject)"
    with pytest.raises(FormulaError, match="independent residuals"):
        ar1_ident.update(residual=None, variance=None)
    plain = exp_power.update(residual=None, variance=None)
    assert type(plain) is lme.MixedLMResults
    assert plain.update(residual="sp_exp(Time | Rat)", variance="power(Time)").deviance == exp_power.deviance
    with pytest.raises(TypeError, match="bars"):
        ar1_ident.update(bars=True)


def test_structures_are_compared(us):
    found = us.compare_structures(["us", "cs", "toep", "ar1(1 | Subject)", "corSymm"])
    table = found.table
    assert list(table.index[:4]) == list(table.aic[:4].sort_values().index)
    assert table.k["us"] == 10
    assert table.deviance["us"] == pytest.approx(us.deviance, abs=1e-8)
    assert "the word here is us" in table.note["corSymm"]
    assert found.best is found.fits[table.index[0]]
    test = us.compare_lr_test(found.fits["cs"])
    assert (test.df, test.statistic) == (8, pytest.approx(table.deviance["cs"] - us.deviance))
    assert test.pvalue == pytest.approx(scipy.stats.chi2.sf(test.statistic, 8))
    with pytest.raises(DataError, match="list"):
        us.compare_structures("us")


def test_criteria_by_both_ways_of_counting(us):
    ours, sas = us.information_criteria(), us.information_criteria("sas")
    assert (ours["AIC"], ours["BIC"]) == (us.aic, us.bic)
    assert us.aic == pytest.approx(us.deviance + 2 * 14)
    assert sas["AIC"] == pytest.approx(us.deviance + 2 * 10)
    assert sas["BIC"] == pytest.approx(us.deviance + 10 * np.log(27))
    assert sas["AICC"] == pytest.approx(us.deviance + 2 * 10 * 104 / (104 - 11))
    ml = us.update(reml=False)
    assert ml.information_criteria("sas")["BIC"] == pytest.approx(ml.deviance + 14 * np.log(27))


def test_summary_says_what_was_fitted(us, exp_power, orthodont):
    text = str(us.summary())
    for part in ("us(visit | Subject)", "Satterthwaite", "SD 1", "Corr 1, 2", "27", "4 visits", "n = 108 rows"):
        assert part in text
    arms = lme.mmrm("distance ~ age * Sex + cs(visit | Sex / Subject)", orthodont).summary()
    assert "Sex Male" in str(arms)
    assert "<table" in arms.as_html()
    assert "tabular" in arms.as_latex()
    mixed = str(exp_power.summary(ddf="normal"))
    for part in ("Random effects", "range", "power(Time)", "Rat", "P>|z|"):
        assert part in mixed


def test_effects_and_variances_beside_a_structure(orthodont):
    """Of two terms of one factor; ranef from V by its definition, standard errors of Ψ from the whole Hessian."""
    fit = lme.lmer("distance ~ age + (1 + age || Subject)", orthodont, variance="ident(Sex)")
    effects = fit.ranef["Subject"]
    assert list(effects.columns) == ["(Intercept)", "age"]
    rows = np.flatnonzero(orthodont.Subject == "F10")
    Z = np.column_stack([np.ones(4), orthodont.age.to_numpy()[rows]])
    r = (orthodont.distance - fit.predict(random_effects=False)).to_numpy()[rows]
    V = _v_of(fit, orthodont, rows, Z)
    np.testing.assert_allclose(effects.loc["F10"], fit.cov_re.to_numpy() @ Z.T @ np.linalg.solve(V, r), rtol=1e-8)
    np.testing.assert_allclose(fit.fittedvalues.iloc[rows], fit.predict().iloc[rows])
    assert np.isfinite(fit.bse_re).all()
    assert list(fit.covariance_parameters.parameter) == ["SD (Intercept)", "SD age"]
    assert len(fit.random_effects) == 27


def _v_of(fit, data, rows, Z):
    table = fit.residual_params
    ratio = float(table[table.parameter == "SD ratio to Male"].estimate.iloc[0])
    sd = fit.sigma * np.where(data.Sex.to_numpy()[rows] == "Female", ratio, 1.0)
    return Z @ fit.cov_re.to_numpy() @ Z.T + np.diag(sd**2)


def test_doors_refuse_in_words(orthodont):
    f = "distance ~ age"
    with pytest.raises(FormulaError, match="names no residual structure"):
        lme.mmrm(f, orthodont)
    with pytest.raises(FormulaError, match="the word here is us"):
        lme.mmrm(f"{f} + un(visit | Subject)", orthodont)
    with pytest.raises(FormulaError, match="needs a residual= structure"):
        lme.gls(f, orthodont)
    with pytest.raises(FormulaError, match="no random effects"):
        lme.gls(f"{f} + (1 | Subject)", orthodont, residual="ar1(visit | Subject)")
    with pytest.raises(DataError, match="fitted"):
        lme.gls(f, orthodont, variance="power(fitted)")
    with pytest.raises(UnsupportedError, match="NumPy"):
        lme.lmer(f, orthodont, residual="ar1(visit | Subject)", backend="jax")
    with pytest.raises(DataError, match="ddf='t'"):
        lme.mmrm(f"{f} + us(visit | Subject)", orthodont, ddf="t")
    with pytest.raises(DataError, match="residual='us"):
        lme.lmer(f"{f} + (0 + factor(visit) | Subject)", orthodont)
    first = orthodont.visit.where(orthodont.visit <= 2) == np.where(orthodont.Sex == "Male", 1, 2)
    with pytest.raises(DataError, match="visits 1 and 2 are never seen in one subject"):
        lme.gls("distance ~ 1", orthodont[first | (orthodont.visit == 3)], residual="us(visit | Subject)")
    with pytest.raises(DataError, match="visit 2 of Sex 'Male' has no row"):
        lme.gls("distance ~ 1", orthodont[first | (orthodont.visit > 2)], residual="us(visit | Sex / Subject)")


def test_what_needs_independent_residuals_is_refused(exp_power):
    for call in (
        lambda: exp_power.profile_re(0, "re"),
        lambda: exp_power.prediction(load_frame("BodyWeight")[:2], random_effects=True),
        lambda: exp_power.r2(),
        lambda: exp_power.icc(),
        lambda: exp_power.influence("Rat", refit=False),
        lambda: exp_power.hatvalues,
        lambda: exp_power.check(),
        lambda: exp_power.report(),
        lambda: exp_power.profile_ci(),
        lambda: exp_power.conf_int(method="profile"),
        lambda: lme.power(exp_power, "Time", 5, seed=1),
    ):
        with pytest.raises(UnsupportedError):
            call()
    np.testing.assert_allclose(exp_power.residuals("marginal") - exp_power.resid, _blup_rows(exp_power))
    with pytest.raises(DataError, match="there is no Rat 'x'"):
        exp_power.residual_cov("x")
    with pytest.raises(DataError, match="type='studentized'"):
        exp_power.residuals("studentized")


def _blup_rows(fit):
    return fit.fittedvalues - fit.predict(random_effects=False)


def test_results_keep(exp_power, us, orthodont):
    again = pickle.loads(pickle.dumps(exp_power))
    assert str(again.summary()) == str(exp_power.summary())
    small = lme.mmrm("distance ~ age * Sex + us(visit | Subject)", orthodont)
    before = str(small.summary())
    small.remove_data()
    assert str(small.summary()) == before
    np.testing.assert_allclose(small.residual_cov(), us.residual_cov())
    np.testing.assert_allclose(small.predict(orthodont), us.predict(orthodont))
    for call in (lambda: small.predict(orthodont, conditional=True), lambda: small.residual_cov("M01")):
        with pytest.raises(DataError, match="remove_data"):
            call()


def test_singular_fits_name_what_stands_on_the_boundary(orthodont):
    """Noise that varies less between children than within them: the intercept's variance beside AR(1) is 0."""
    rng = np.random.default_rng(1)
    data = orthodont.assign(y=rng.normal(size=len(orthodont)))
    data["y"] -= data.groupby("Subject", observed=True).y.transform("mean")
    with pytest.warns(SingularFitWarning, match="singular"):
        fit = lme.lmer("y ~ 1 + (1 | Subject)", data, residual="ar1(visit | Subject)")
    assert fit.is_singular()
    assert fit.varcorr.vcov[0] < 1e-8
    assert np.isnan(fit.bse_re.iloc[0])


def test_pictures_of_serial_correlation(us, exp_power):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from lme_jax import plots

    ax = plots.acf(us, max_lag=3)
    dots = next(line.get_xydata() for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots, us.acf(3)[["lag", "acf"]].to_numpy()[1:])
    table = exp_power.variogram()
    offsets = plots.variogram(exp_power).collections[0].get_offsets()
    np.testing.assert_allclose(offsets, table[["distance", "semivariance"]])
    assert [len(a.get_label()) > 10 for a in us.plot().axes] == [True] * 4
    r = next(line.get_ydata() for line in plots.residuals(us).lines if line.get_marker() == "o")
    np.testing.assert_allclose(r, us.residuals("normalized"))
    matplotlib.pyplot.close("all")


# clubSandwich 0.5.8 of NLME's `us` fit m: sqrt(diag(vcovCR(m, cluster, type))), and df_Satt of coef_test.
CLUB = {
    "CR0": [1.11794745760163, 0.0928843817382682, 1.31560634862236, 0.112785619784607],
    "CR1": [1.13924360846039, 0.0946537670456647, 1.34066776906794, 0.114934110357487],
    "CR2": [1.15466002031793, 0.095954725881385, 1.36455110168193, 0.117025545949171],
    "CR3": [1.1924772881084, 0.0990766738541529, 1.41563712653108, 0.121527047893678],
}
CLUB_DF = [15.0000699571756, 15.0000716175341, 21.6537339162402, 21.6537404142354]


@pytest.mark.parametrize("kind", sorted(CLUB))
def test_cluster_robust_covariances(us, kind):
    """nlme's optimum is 1e-6 off, and so are clubSandwich's figures."""
    found = us.robust(type=kind)
    np.testing.assert_allclose(np.sqrt(np.diag(found.cov)), CLUB[kind], rtol=2e-6)
    assert found.n_clusters == 27
    chosen = us.update(vcov=kind)
    np.testing.assert_allclose(chosen.bse_fe, CLUB[kind], rtol=2e-6)
    np.testing.assert_allclose(chosen.coefficients()[["se", "df", "p"]], found.coefficients[["se", "df", "p"]])
    if kind == "CR2":
        np.testing.assert_allclose(found.coefficients.df, CLUB_DF, rtol=1e-5)
        joint, own = chosen.test("age, age:SexFemale"), found.test("age, age:SexFemale")
        assert (joint.statistic, joint.df_denom, joint.pvalue) == pytest.approx(
            (own.statistic, own.df_denom, own.pvalue)
        )
        assert "cluster-robust covariance CR2" in str(chosen.summary())
        with pytest.raises(DataError, match="model's own"):
            chosen.coefficients(ddf="kenward-roger")


def test_robust_covariances_of_one_model_in_two_spellings(orthodont):
    """A random intercept is compound symmetry: weights, subjects of several sizes, clusters of several subjects."""
    data = orthodont.iloc[3:].reset_index(drop=True)
    w = 1.0 + (data.index % 3)
    mixed = lme.lmer("distance ~ age * Sex + (1 | Subject)", data, weights=w)
    marginal = lme.lmer("distance ~ age * Sex + (1 | Subject)", data, weights=w, variance="fixed(age / age)")
    site = data.Subject.astype(str).str[2].rename("site")
    for kind in ("CR0", "CR2", "CR3"):
        for cluster in (None, site):
            ours, theirs = marginal.robust(cluster, kind), mixed.robust(cluster, kind)
            np.testing.assert_allclose(ours.cov, theirs.cov, rtol=1e-6, atol=1e-10)
            np.testing.assert_allclose(ours.coefficients.df, theirs.coefficients.df, rtol=1e-5)
    with pytest.raises(DataError, match="two clusters"):
        marginal.robust(data.age)
    with pytest.raises(DataError, match="none of"):
        marginal.robust("site")


def test_parameters_that_the_data_do_not_tell_are_named(orthodont):
    """Compound symmetry beside a random intercept: one covariance, two parameters."""
    with pytest.warns(ConvergenceWarning, match=r"do not tell these parameters apart: rho, θ Subject\.\(Intercept\)"):
        twice = lme.lmer("distance ~ age + (1 | Subject)", orthodont, residual="cs(1 | Subject)")
    once = lme.lmer("distance ~ age + (1 | Subject)", orthodont)
    assert twice.deviance == pytest.approx(once.deviance, abs=1e-8)
    assert twice.residual_params.se.isna().all() or (twice.residual_params.se > 1e2).any()
    with pytest.warns(ConvergenceWarning, match="grows without bound.*Too few subjects"):
        lme.gls("distance ~ age", orthodont[:16], residual="us(visit | Subject)")


def test_many_responses_are_single_fits_and_the_bootstrap_has_the_right_spread(ar1_ident, exp_power):
    Y = exp_power.simulate(3, seed=8).rename(columns="r{}".format)
    many = exp_power.refit_many(Y, progress=False)
    one = exp_power.refit(Y["r1"])
    np.testing.assert_allclose(many.estimates.loc["r1"].iloc[:6], one.fe_params)
    np.testing.assert_allclose(many.bse.loc["r1"], one.bse_fe)
    assert many.info.deviance["r1"] == pytest.approx(one.deviance, abs=1e-8)
    assert many.estimates.loc["r1", "Rat (Intercept) Var"] == pytest.approx(one.varcorr.vcov[0])
    with pytest.warns(ConvergenceWarning, match="1 of 2 fits"):
        lost = exp_power.refit_many(Y[["r0"]].assign(flat=1.0), progress=False)
    assert lost.estimates.loc["flat"].isna().all()
    assert "constant" in lost.info.reason["flat"]
    drawn = ar1_ident.bootstrap(200, seed=4, progress=False)
    spread = drawn.standard_errors()[list(ar1_ident.fe_params.index)]
    np.testing.assert_allclose(spread, ar1_ident.bse_fe, rtol=0.2)  # four standard errors of 200 draws
    limits, narrow = (drawn.intervals(level).loc["ar1(visit | Subject) rho"] for level in (0.95, 0.5))
    assert limits.lower < narrow.lower < limits.estimate < narrow.upper < limits.upper
    with pytest.raises(DataError, match="3 responses reached an optimum: too few"):
        many.intervals()
    with pytest.raises(DataError, match="give 108 rows"):
        ar1_ident.refit_many(np.zeros((3, 2)))


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_tests_of_many_trials_are_those_of_single_ones(orthodont, ddf):
    trial = lme.mmrm("distance ~ Sex * visit + us(visit | Subject)", orthodont)
    Y = trial.simulate(5, seed=2).rename(columns="r{}".format)
    many = trial.refit_many(Y, progress=False)
    table = many.coefficients(ddf)
    for name in ("r0", "r4"):
        single = trial.refit(Y[name]).coefficients(ddf=ddf)
        for column in ("estimate", "se", "df", "statistic", "p"):
            np.testing.assert_allclose(table.loc[name][column], single[column], rtol=2e-6)
    with pytest.raises(DataError, match="satterthwaite"):
        many.coefficients("residual")


def test_profile_limits_are_where_the_deviance_has_risen(ar1_ident, exp_power):
    """The other parameters minimised out by a search of scipy's; σ's limits from −2ℓ at a σ that is held."""
    found, blocks, cut = ar1_ident._found, ar1_ident._data.blocks, scipy.stats.chi2.ppf(0.95, 1)
    table = ar1_ident.residual_intervals(method="profile").set_index(["group", "parameter"])

    def risen(rho):
        other = minimize_scalar(lambda d: core.deviance(np.array([np.arcsin(rho), d]), blocks), (-1.0, 0.0), tol=1e-12)
        return other.fun - found.deviance - cut

    row = table.loc[("", "rho")]
    np.testing.assert_allclose(row.lower, brentq(risen, 0.3, row.estimate, xtol=1e-12), rtol=1e-8)
    np.testing.assert_allclose(row.upper, brentq(risen, row.estimate, 0.97, xtol=1e-12), rtol=1e-8)

    def at_sigma(sigma):
        def deviance(params):
            at = core.fit_at(params, blocks)
            ratio, n = (at.sigma / sigma) ** 2, ar1_ident.df_resid
            return at.deviance + n * (ratio - 1.0 - np.log(ratio))

        return minimize(deviance, found.params, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-11}).fun

    for limit in table.loc[("", "SD"), ["lower", "upper"]]:
        assert at_sigma(limit) - found.deviance == pytest.approx(cut, abs=1e-7)
    np.testing.assert_allclose(table.loc["Male", "lower"], table.loc[("", "SD"), "lower"])
    narrow = exp_power.residual_intervals(0.5, method="profile")
    wide = exp_power.residual_intervals(0.05, method="profile")
    assert ((wide.lower < narrow.lower) & (narrow.upper < wide.upper)).all()
    assert (wide.note == "").all()
    with pytest.raises(DataError, match="method='wald'"):
        exp_power.residual_intervals(method="wald")


def test_kenward_and_roger_of_a_series_too_long_for_its_covariance_is_refused():
    n, rng = 2_100, np.random.default_rng(1)
    data = pd.DataFrame({"id": 0, "t": np.arange(n), "y": rng.normal(size=n)})
    fit = lme.gls("y ~ 1", data, residual="ar1(t | id)")
    assert np.isfinite(fit.coefficients(ddf="satterthwaite").to_numpy()).all()
    for ddf in ("kenward-roger", "kenward-roger-linear"):
        with pytest.raises(UnsupportedError, match="series this long"):
            fit.coefficients(ddf=ddf)
