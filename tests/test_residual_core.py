"""Structured residual errors in the core: against V written out, against nlme, gls and glmmTMB, and in words."""

import numpy as np
import pytest
from scipy.stats import norm

from lme_jax.core.residual import data as residual_data
from lme_jax.core.residual import fit as residual_fit
from lme_jax.core.residual import inference, objective, record, roots, rows
from lme_jax.core.residual.data import compress
from lme_jax.core.residual.fit import fit
from lme_jax.core.residual.identification import IdentificationError
from lme_jax.core.residual.registry import FAMILIES, VARIANCES
from lme_jax.core.residual.terms import Correlation, RandomTerm, Variance
from lme_jax.core.structures import make_block
from lme_jax.core.types import Status
from lme_jax.errors import DataError
from tests.oracles import residuals as oracle
from tests.reference_data import _read, load_frame

STEP = 1e-5


class Case:
    """Random rows of a model and its description for the oracle; 12 subjects, up to 4 visits, about a fifth missing."""

    def __init__(self, word, options=(), bars=0, variances=(), groups=False, weights=False, d=0, seed=1):
        rng = np.random.default_rng(seed)
        m, T = 12, 4
        keep = rng.uniform(size=m * T) > 0.2
        keep[: 3 * T] = True
        s, v = np.repeat(np.arange(m), T)[keep], np.tile(np.arange(T), m)[keep]
        n = len(s)
        self.X = np.column_stack([np.ones(n), v, rng.normal(size=n)])
        self.y = self.X @ [10.0, 1.0, 2.0] + rng.normal(size=n) + rng.normal(size=m)[s]
        clock = v if not d else np.round(np.cumsum(rng.uniform(0.3, 2.0, size=(n, d)), axis=0), 3)
        group = (np.arange(m) % 2)[s] if groups else None
        self.weights = rng.uniform(0.5, 2.0, size=n) if weights else None
        described = []
        for name in variances:
            strata = rng.integers(0, 2, size=n) if name in ("ident", "power", "constpower") else None
            described.append((name, strata, None if name == "ident" else rng.uniform(0.5, 3.0, size=n)))
        slopes = np.column_stack([np.ones(n), v]).astype(float)
        bars = [(slopes, s), (np.ones((n, 1)), rng.integers(0, 3, size=n))][:bars]
        self.correlation = Correlation(word, s, clock, 0 if d else T, group, tuple(options))
        self.variances = [Variance(*one) for one in described]
        terms = [RandomTerm(Z, codes, make_block("unstructured", Z.shape[1])) for Z, codes in bars]
        self.data = compress(self.y, self.X, terms, self.correlation, self.variances, weights=self.weights)
        model = self.data.model
        self.spec = {
            "word": word,
            "subject": s,
            "clock": clock,
            "T": T,
            "group": group,
            "options": dict(options),
            "variances": described,
            "weights": self.weights,
            "bars": bars,
            "n_rho": model.correlation.stop - model.correlation.start,
            "n_delta": [here.stop - here.start for here in model.delta],
        }
        self.x = rng.normal(size=model.size) * 0.3

    def deviance(self, x, reml):
        return oracle.deviance(self.spec, x / self.data.unit, self.y, self.X, reml)


ARMA11, NUGGET = (("p", 1), ("q", 1)), (("nugget", True),)
CASES = [
    ("us", {}),
    ("us", {"groups": True, "weights": True}),
    ("us", {"bars": 1, "variances": ("ident",)}),
    ("toep", {"groups": True}),
    ("toeph", {}),
    ("toeph", {"bars": 2, "weights": True}),
    ("ar1", {"bars": 2, "groups": True, "variances": ("ident", "constpower")}),
    ("ar1", {"weights": True}),
    ("ar1h", {"groups": True}),
    ("cs", {"weights": True}),
    ("csh", {"bars": 1, "variances": ("power",)}),
    ("ad", {"bars": 1}),
    ("adh", {"groups": True, "weights": True}),
    ("arma", {"options": ARMA11}),
    ("arma", {"options": (("p", 2), ("q", 1)), "bars": 1, "groups": True, "variances": ("power",)}),
    ("arma", {"options": (("p", 0), ("q", 2)), "weights": True}),
    ("ident", {"variances": ("exp",)}),
    ("ident", {"bars": 2, "groups": True, "variances": ("ident", "fixed")}),
    ("car1", {"d": 1}),
    ("car1", {"d": 1, "options": NUGGET, "bars": 2, "variances": ("exp", "power")}),
    ("sp_exp", {"d": 2, "options": NUGGET, "groups": True, "weights": True, "variances": ("fixed",)}),
    ("sp_exp", {"d": 2, "options": (("metric", "manhattan"),)}),
    ("sp_gau", {"d": 2, "options": NUGGET, "bars": 1}),
    ("sp_rat", {"d": 1, "groups": True}),
]


def test_every_word_has_a_case():
    assert {word for word, _ in CASES} == set(FAMILIES)
    assert {name for _, how in CASES for name in how.get("variances", ())} == set(VARIANCES)


def differences(f, x):
    """Central differences of f along every entry of x, (k, …)."""
    units = STEP * np.eye(len(x))
    return np.array([(np.asarray(f(x + e)) - np.asarray(f(x - e))) / (2.0 * STEP) for e in units])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("word", "how"), CASES, ids=[f"{w}-{i}" for i, (w, _) in enumerate(CASES)])
def test_deviance_and_derivatives_are_those_of_v_written_out(word, how, reml):
    case = Case(word, **how)
    value, gradient, hessian, _ = objective.evaluate(case.x, case.data, reml)
    assert value == pytest.approx(case.deviance(case.x, reml), abs=1e-9)
    # Central differences of step 1e-5 leave 1e-11/1e-5 of rounding and 1e-10 of the third derivative.
    size = 1.0 + np.abs(gradient).max() + np.abs(hessian).max()
    assert gradient == pytest.approx(differences(lambda x: case.deviance(x, reml), case.x), abs=1e-7 * size)
    slopes = differences(lambda x: objective.evaluate(x, case.data, reml)[1], case.x)
    assert hessian == pytest.approx(slopes, abs=1e-7 * size)


@pytest.mark.parametrize("how", [{}, {"groups": True, "weights": True}])
def test_sums_on_the_grid_are_those_along_the_parameters(how):
    case = Case("adh", **how)
    at = objective.point(case.x, case.data, True)
    assert record.is_grid(case.data.model, case.data.stacks)
    arguments = (
        case.data.model,
        at.solved,
        case.data.stacks,
        record.whitening(at.R),
        1.3,
        record.Wanted(True, True, True),
    )
    for grid, along in zip(record._on_grid(*arguments), record._by_directions(*arguments), strict=True):
        assert grid == pytest.approx(along, abs=1e-11 * (1.0 + np.abs(along).max()))


# ---------------------------------------------------------------- reference fits


def design(frame, *columns):
    return np.column_stack([np.ones(len(frame)), *columns])


def orthodont(word=None, options=(), **variances):
    f = load_frame("Orthodont")
    sex, visit = (f.Sex == "Female").to_numpy(int), ((f.age - 8) / 2).to_numpy(int)
    X = design(f, f.age, sex, f.age * sex)
    strata = {"visit": visit, "sex": sex}
    bars = [RandomTerm(X[:, :1], codes(f.Subject), make_block("unstructured", 1))] if "sex" in variances else []
    term = None if word is None else Correlation(word, codes(f.Subject), visit, 4, None, options)
    return f.distance, X, bars, term, [Variance("ident", strata[name]) for name in variances]


def bodyweight(word=None, options=(), variance=None):
    f = load_frame("BodyWeight")
    t, d2, d3 = f.Time.to_numpy(float), (f.Diet == "2").to_numpy(float), (f.Diet == "3").to_numpy(float)
    X = design(f, t, d2, d3, t * d2, t * d3)
    return f.weight, X, *slopes(f.Rat, t, word, options, variance)


def slopes(subject, t, word, options=(), variance=None):
    bars = [RandomTerm(design(t, t), codes(subject), make_block("unstructured", 2))]
    term = None if word is None else Correlation(word, codes(subject), t, 0, None, options)
    return bars, term, [] if variance is None else [Variance(variance, None, t)]


def chickweight():
    f = load_frame("ChickWeight")
    t, diets = f.Time.to_numpy(float), [(f.Diet == k).to_numpy(float) for k in "234"]
    return f.weight, design(f, t, *diets, *(t * d for d in diets)), *slopes(f.Chick, t, "car1")


def ovary(word, options=(), bar=None):
    f = load_frame("Ovary")
    X, idx = design(f, f.s1, f.c1), f.idx.to_numpy(int) - 1
    distance = word == "car1"
    term = Correlation(
        word, codes(f.Mare), idx.astype(float) if distance else idx, 0 if distance else idx.max() + 1, None, options
    )
    bars = [] if bar is None else [RandomTerm(X[:, :bar], codes(f.Mare), make_block("diagonal", bar))]
    return f.follicles, X, bars, term, []


def sleepstudy(word=None, q=1, variance=None):
    f = load_frame("sleepstudy")
    t = f.Days.to_numpy(float)
    term = None if word is None else Correlation(word, codes(f.Subject), t.astype(int), 10)
    bars = [RandomTerm(design(f, t)[:, :q], codes(f.Subject), make_block("unstructured", q))]
    return f.Reaction, design(f, t), bars, term, [] if variance is None else [Variance(variance, None, t)]


def codes(factor):
    return factor.cat.codes.to_numpy(int) if hasattr(factor, "cat") else factor.to_numpy(int)


FITS = {
    "orthodont_gls_ar1_reml": lambda: orthodont("ar1"),
    "orthodont_gls_ar1h_reml": lambda: orthodont("ar1h"),
    "orthodont_gls_cs_reml": lambda: orthodont("cs"),
    "orthodont_gls_csh_reml": lambda: orthodont("csh"),
    "orthodont_gls_toep_reml": lambda: orthodont("arma", (("p", 3), ("q", 0))),
    "orthodont_gls_un_ml": lambda: orthodont("us"),
    "orthodont_gls_un_reml": lambda: orthodont("us"),
    "orthodont_tmb_toep_ml": lambda: orthodont("toeph"),
    "orthodont_tmb_diag_ml": lambda: orthodont(visit=True),
    "orthodont_lme_varident_reml": lambda: orthodont(sex=True),
    "orthodont_tmb_dispsex_ml": lambda: orthodont(sex=True),
    "bodyweight_lme_car1_reml": lambda: bodyweight("car1"),
    "bodyweight_lme_corgaus_nugget_reml": lambda: bodyweight("sp_gau", NUGGET),
    "bodyweight_lme_varexp_time_reml": lambda: bodyweight(variance="exp"),
    "bodyweight_lme_varpower_time_reml": lambda: bodyweight(variance="power"),
    "chickweight_lme_car1_ml": chickweight,
    "ovary_gls_ar1_ml": lambda: ovary("ar1"),
    "ovary_gls_arma11_ml": lambda: ovary("arma", ARMA11),
    "ovary_tmb_ar1_ml": lambda: ovary("car1", NUGGET),
    "ovary_lme_ar1_reml": lambda: ovary("ar1", bar=2),
    "ovary_lme_arma11_reml": lambda: ovary("arma", ARMA11, bar=1),
    "sleepstudy_lme_ar1_reml": lambda: sleepstudy("ar1", 2),
    "sleepstudy_lme_int_ar1_ml": lambda: sleepstudy("ar1", 1),
    "sleepstudy_tmb_disp_ml": lambda: sleepstudy(variance="exp"),
}
# Entries that are no optima and what a dense optimiser found (tests/reference/README.md).
BETTER = {
    "bodyweight_lme_corgaus_nugget_reml": 1131.25892756,
    "chickweight_lme_car1_ml": 4284.09900313,
    "sleepstudy_lme_ar1_reml": 1724.11645574,
}


def fitted(name):
    y, X, bars, correlation, variances = FITS[name]()
    data = compress(y.to_numpy(float), X, bars, correlation, variances)
    return fit(data, reml=name.endswith("reml")), data


@pytest.mark.parametrize("name", FITS)
def test_fits_of_nlme_gls_and_glmmtmb(name):
    expected = _read("residual.json")[name]
    found, data = fitted(name)
    assert Status(found.status).is_optimum
    assert found.deviance == pytest.approx(BETTER.get(name, expected["m2ll"]), abs=2e-8)
    assert np.linalg.norm(found.gradient) < 1e-3
    if name in BETTER:
        assert found.deviance < expected["m2ll"] - 1e-5
        return
    se = np.array(list(expected["se"].values()))
    # nlme's estimates are good to 1e-5 standard errors, glmmTMB's to 7e-5.
    tmb = "glmmTMB" in expected["engine"]
    assert (found.beta - np.array(list(expected["fixef"].values()))) / se == pytest.approx(0, abs=7e-5 if tmb else 2e-5)
    # gls multiplies by n/(n − p) under ML.
    gls_ml = expected["engine"] == "nlme::gls" and expected["method"] == "ML"
    factor = np.sqrt(len(data.y) / (len(data.y) - len(se))) if gls_ml else 1.0
    # lme's under ML are not of one convention either, and glmmTMB's count what the covariance's estimates tell of β.
    if not tmb and not (expected["engine"] == "nlme::lme" and expected["method"] == "ML"):
        own = found.sigma * np.sqrt(np.diag(found.unscaled_cov))
        assert own * factor == pytest.approx(se, rel=2e-5)
    if not tmb:
        assert found.sigma == pytest.approx(expected["sigma"], rel=1e-5)
        _compare_residuals(found, data, expected)


def _compare_residuals(found, data, expected):
    r = rows.residuals(found, data)
    for effects, Z, levels in zip(rows.random_effects(found, data), data.rows.Z, data.rows.codes, strict=True):
        r = r - (Z * effects.b[levels]).sum(1)
    pearson = np.array(expected["pearson_resid_head"])
    assert (r / rows.residual_sd(found, data))[: len(pearson)] == pytest.approx(pearson, abs=2e-5)
    # nlme's corCompSymm takes another root of R.
    if (expected["cor_struct"] or {}).get("class") != "corCompSymm":
        normalized = np.array(expected["normalized_resid_head"])
        assert rows.normalized(found, data, r)[: len(normalized)] == pytest.approx(normalized, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "kind", "table"),
    [
        ("orthodont_gls_ar1_reml", "rho", "corStruct"),
        ("orthodont_gls_cs_reml", "rho", "corStruct"),
        ("bodyweight_lme_car1_reml", "rho", "corStruct"),
        ("bodyweight_lme_varexp_time_reml", "expon", "varStruct"),
        ("orthodont_lme_varident_reml", "ratio", "varStruct"),
        ("orthodont_gls_ar1_reml", "sigma", "sigma"),
    ],
)
def test_intervals_are_nlmes(name, kind, table):
    found, data = fitted(name)
    (p,) = [p for p in inference.parameters(found, data) if p.kind == kind]
    given = _read("residual.json")[name]["intervals"][table]
    lower, estimate, upper = given if table == "sigma" else given["values"][0]
    assert p.estimate == pytest.approx(estimate, rel=1e-5)
    # nlme differentiates numerically.
    assert inference.interval(p, norm.ppf(0.975)) == pytest.approx((lower, upper), rel=3e-4)


# ---------------------------------------------------------------- what is read of a fit

READ = [
    ("us", {"groups": True}),
    ("toeph", {}),
    ("csh", {"weights": True}),
    ("adh", {}),
    ("arma", {"options": ARMA11}),
    ("ar1", {"bars": 2, "variances": ("ident", "exp")}),
    ("car1", {"d": 1, "options": NUGGET, "groups": True, "variances": ("constpower",)}),
    ("sp_rat", {"d": 2}),
]


def held(case, reml=True):
    """A fit with the covariance parameters at case.x."""
    return residual_fit.fit_at(case.x / case.data.unit, case.data, reml=reml)


@pytest.mark.parametrize(("word", "how"), READ, ids=[w for w, _ in READ])
def test_natural_parameters_have_their_derivatives(word, how):
    case = Case(word, **how)
    found = held(case)
    z = np.append(found.params, found.sigma**2)

    def at(z):
        return found._replace(params=z[:-1], sigma=np.sqrt(z[-1]))

    def slopes_at(z):
        return inference.natural_map(at(z), case.data)[0]

    J2 = inference.natural_map(found, case.data)[1]
    assert pytest.approx(np.moveaxis(differences(slopes_at, z), 0, 1), abs=1e-7 * (1.0 + np.abs(J2).max())) == J2
    read = inference.parameters(found, case.data)

    def values(z):
        return [p.estimate for p in inference.parameters(at(z), case.data)]

    gradients = np.array([p.gradient for p in read])
    assert gradients == pytest.approx(differences(values, z).T, abs=1e-7 * (1.0 + np.abs(gradients).max()))


def test_natural_parameters_are_what_they_are_called():
    case = Case("us")
    found = fit(case.data)
    sigma = found.sigma**2 * case.data.model.family.first(found.params, 4, {})[0]
    values = {(p.kind, p.index): p.estimate for p in inference.parameters(found, case.data)}
    sd = np.sqrt(np.diag(sigma))
    assert [values["sd", (t,)] for t in range(4)] == pytest.approx(sd)
    assert values["correlation", (3, 1)] == pytest.approx(sigma[3, 1] / sd[3] / sd[1])
    R, V = rows.residual_covariance(found, case.data, rows.rows_of_subject(case.data, 0))
    assert pytest.approx(sigma) == R
    assert pytest.approx(R) == V


@pytest.mark.parametrize(("word", "how"), READ, ids=[w for w, _ in READ])
def test_jets_are_derivatives_of_the_covariance_of_the_effects(word, how):
    case = Case(word, **how)
    found = held(case)
    jets = inference.jets(found, case.data, natural=False)
    # Under ML only the informations are others.
    ml = inference.jets(found, case.data, reml=False, natural=False)
    assert ml.slope == pytest.approx(jets.slope)
    assert ml.curve == pytest.approx(jets.curve)

    def cov(z):
        V = z[-1] * oracle.covariance(case.spec, z[:-1])
        return np.linalg.inv(case.X.T @ np.linalg.solve(V, case.X))

    def slope(z):
        at = residual_fit.fit_at(z[:-1], case.data)._replace(sigma=np.sqrt(z[-1]))
        return inference.jets(at, case.data, second=False, natural=False).slope

    z = np.append(found.params, found.sigma**2)
    assert jets.cov == pytest.approx(cov(z), rel=1e-9, abs=1e-12)
    size = 1.0 + np.abs(jets.slope).max() + np.abs(jets.curve).max()
    assert jets.slope == pytest.approx(differences(cov, z), abs=1e-7 * size)
    assert jets.curve == pytest.approx(np.moveaxis(differences(slope, z), 0, 1), abs=1e-7 * size)
    # ½tr(PV_aPV_b) from V written out.
    V = z[-1] * oracle.covariance(case.spec, z[:-1])
    P = np.linalg.inv(V) - np.linalg.solve(V, case.X) @ jets.cov @ np.linalg.solve(V, case.X).T
    moves = differences(lambda z: z[-1] * oracle.covariance(case.spec, z[:-1]), z)
    expected = 0.5 * np.einsum("ij,ajk,kl,bli->ab", P, moves, P, moves, optimize=True)
    assert jets.expected == pytest.approx(expected, abs=1e-6 * (1.0 + np.abs(expected).max()))


@pytest.mark.parametrize(("word", "how"), [("us", {"groups": True}), ("cs", {}), ("toep", {}), ("ident", {"bars": 2})])
def test_linear_structures_are_linear_in_natural_parameters(word, how):
    """Where V is linear in what SAS estimates nothing is left of its second derivatives."""
    case = Case(word, **how)
    found = held(case)
    jets = inference.jets(found, case.data)
    size = np.abs(inference.jets(found, case.data, natural=False).bend).max() + np.abs(jets.curve).max()
    assert jets.bend == pytest.approx(0.0, abs=1e-10 * size)


def test_standard_errors_come_from_the_information_of_everything():
    """The profiled Hessian, completed by σ², is the inverse of the jets' observed information."""
    case = Case("toeph", groups=True)
    found = fit(case.data)
    information = inference.jets(found, case.data, natural=False).information
    assert inference.joint_covariance(found, case.data) == pytest.approx(np.linalg.inv(information), rel=1e-5, abs=1e-8)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("word", "how"), [("us", {}), ("ar1", {"bars": 2, "weights": True, "variances": ("ident",)}), ("sp_exp", {"d": 2})]
)
def test_rows_of_a_fit_are_those_of_v_written_out(word, how):
    case = Case(word, **how)
    found, n = held(case), len(case.y)
    V = oracle.covariance(case.spec, found.params)
    r = case.y - case.X @ found.beta
    assert r @ np.linalg.solve(V, case.X) == pytest.approx(0.0, abs=1e-9)
    assert rows.solved(found, case.data, r[:, None])[:, 0] == pytest.approx(np.linalg.solve(V, r))
    E = rows.whitened(found, case.data, np.column_stack([case.X, r]))
    columns = np.column_stack([case.X, r])
    assert pytest.approx(columns.T @ np.linalg.solve(V, columns), abs=1e-9) == E.T @ E
    K = rows.correlated(found, case.data, np.eye(n)) / found.sigma
    assert pytest.approx(V) == K @ K.T
    own, total = rows.residual_covariance(found, case.data, np.arange(n))
    assert total == pytest.approx(found.sigma**2 * V)
    assert rows.residual_sd(found, case.data) == pytest.approx(np.sqrt(np.diag(own)))
    order = np.lexsort((np.atleast_2d(case.spec["clock"].T)[0], case.spec["subject"]))
    lower = np.linalg.cholesky(own[np.ix_(order, order)])
    normal = np.empty(n)
    normal[order] = np.linalg.solve(lower, r[order])
    assert rows.normalized(found, case.data, r) == pytest.approx(normal)
    score = sum(s.score for s in rows.subject_sums(found, case.data))
    assert score == pytest.approx(0.0, abs=1e-9)
    assert sum(s.information for s in rows.subject_sums(found, case.data)) == pytest.approx(
        np.linalg.inv(found.unscaled_cov)
    )


def test_effects_of_the_bars_are_blups():
    case = Case("ar1", bars=2, weights=True)
    found = held(case)
    V = oracle.covariance(case.spec, found.params)
    W, r = np.linalg.inv(V), case.y - case.X @ found.beta
    at = 0
    for (Z, levels), effects in zip(case.spec["bars"], rows.random_effects(found, case.data), strict=True):
        q = Z.shape[1]
        L = np.zeros((q, q))
        L[np.tril_indices(q)] = found.params[at : at + q * (q + 1) // 2]
        at += q * (q + 1) // 2
        Psi = L @ L.T
        for level in range(levels.max() + 1):
            D = (Z * (levels == level)[:, None]) @ Psi
            assert effects.b[level] == pytest.approx(D.T @ W @ r)
            conditional = Psi - D.T @ W @ D
            across = D.T @ W @ case.X
            assert effects.conditional_cov[level] == pytest.approx(found.sigma**2 * conditional)
            whole = found.sigma**2 * (conditional + across @ found.unscaled_cov @ across.T)
            assert effects.prediction_cov[level] == pytest.approx(whole)


@pytest.mark.parametrize("bars", [0, 2])
def test_predictions_use_the_rows_of_the_same_subject(bars):
    """Rows left out and predicted: the conditional normal distribution of V written out, β̂ estimated."""
    case = Case("ar1", bars=bars)
    held_out = np.array([2, 3, 20, 30])
    kept = np.setdiff1d(np.arange(len(case.y)), held_out)
    spec, full = case.spec, case.data.rows
    bars = [RandomTerm(Z[kept], levels[kept], make_block("unstructured", Z.shape[1])) for Z, levels in spec["bars"]]
    clock = Correlation("ar1", spec["subject"][kept], spec["clock"][kept], 4)
    data = compress(case.y[kept], case.X[kept], bars, clock)
    found = residual_fit.fit_at(case.x / data.unit, data)
    new = full.map(held_out)
    prediction = rows.predict(found, data, case.X[held_out], new)
    V = oracle.covariance(spec, found.params)
    old, across = V[np.ix_(kept, kept)], V[np.ix_(held_out, kept)]
    step = across @ np.linalg.inv(old)
    mean = case.X[held_out] @ found.beta + step @ (case.y[kept] - case.X[kept] @ found.beta)
    assert prediction.mean == pytest.approx(mean)
    D = case.X[held_out] - step @ case.X[kept]
    own = V[np.ix_(held_out, held_out)] - step @ across.T + D @ found.unscaled_cov @ D.T
    assert prediction.variance == pytest.approx(found.sigma**2 * np.diag(own))
    unseen = rows.predict(found, data, case.X[held_out], new._replace(subject=np.full(4, -1), codes=tuple(
        np.full(4, -1) for _ in new.codes
    )))  # fmt: skip
    assert unseen.mean == pytest.approx(case.X[held_out] @ found.beta)


# ---------------------------------------------------------------- patterns


def trial(n, T, seed=0):
    """Patients with dropout, X by visit, arm and covariates."""
    rng = np.random.default_rng(seed)
    keep = rng.uniform(size=(n, T)) > 0.1
    keep[:, 0] = True
    s, v = np.nonzero(keep)
    arm, base = rng.integers(0, 2, n), rng.normal(size=n)
    visits = np.eye(T)[v]
    X = np.column_stack([visits, visits[:, 1:] * arm[s][:, None], visits * base[s][:, None]])
    y = rng.normal(size=len(s)) + rng.normal(size=n)[s] + 5.0
    return y, X, s, v


def test_a_root_has_the_cross_products_of_all_blocks():
    y, X, s, _ = trial(300, 3)
    complete = np.flatnonzero(np.bincount(s) == 3)
    V = np.column_stack([X, y])[np.isin(s, complete)].reshape(len(complete), -1)
    V = np.column_stack([V, 3.0 * V[:, 5], np.zeros(len(V))])
    R = roots.reduced(V)
    assert len(R) < 15 < len(V)
    assert pytest.approx(V.T @ V, rel=1e-12, abs=1e-9) == R.T @ R


def test_pooling_changes_nothing_and_costs_nothing_per_patient(monkeypatch):
    y, X, s, v = trial(400, 4)
    term = Correlation("us", s, v, 4)
    pooled = compress(y, X, [], term)
    monkeypatch.setattr(roots, "FEW", 10**9)
    alone = compress(y, X, [], term)
    size = [sum(len(stack.owner) for stack in data.stacks) for data in (pooled, alone)]
    assert size[0] < 150
    assert size[1] == 400
    a, b = fit(pooled), fit(alone)
    assert a.deviance == pytest.approx(b.deviance, abs=1e-9)
    assert a.params == pytest.approx(b.params, rel=1e-6, abs=1e-7)


def test_order_of_rows_units_and_labels_do_not_matter():
    y, X, s, v = trial(60, 4)
    plain = fit(compress(y, X, [], Correlation("toeph", s, v, 4)))
    shuffle = np.random.default_rng(1).permutation(len(y))
    other = compress(
        1e3 * y[shuffle] + 1e7, X[shuffle], [], Correlation("toeph", 7 + 3 * s[shuffle], v[shuffle], 4)
    )  # fmt: skip
    moved = fit(other)
    shift = 2.0 * (len(y) - X.shape[1]) * np.log(1e3)
    # y + 1e7 with standard deviation 1e3 is rounded to 1e-9 of that.
    assert moved.deviance - shift == pytest.approx(plain.deviance, abs=1e-5)
    assert moved.params == pytest.approx(plain.params, abs=1e-6)


def test_structures_that_are_one_another_agree():
    y, X, s, v = trial(80, 4)

    def deviance(word, variances=(), options=(), clock=v, T=4, bars=()):
        return fit(compress(y, X, bars, Correlation(word, s, clock, T, None, options), variances)).deviance

    visit = [Variance("ident", v)]
    assert deviance("ar1h") == pytest.approx(deviance("ar1", visit), abs=1e-8)
    assert deviance("adh") == pytest.approx(deviance("ad", visit), abs=1e-8)
    assert deviance("arma", options=(("p", 1), ("q", 0))) == pytest.approx(deviance("ar1"), abs=1e-8)
    assert deviance("arma", options=(("p", 3), ("q", 0))) == pytest.approx(deviance("toep"), abs=1e-8)
    t = v.astype(float)
    assert deviance("car1", clock=3.0 * t, T=0) == pytest.approx(deviance("ar1"), abs=1e-8)
    assert deviance("sp_exp", clock=t, T=0) == pytest.approx(deviance("ar1"), abs=1e-8)
    intercept = [RandomTerm(np.ones((len(y), 1)), s, make_block("unstructured", 1))]
    assert deviance("ident", bars=intercept) == pytest.approx(deviance("cs"), abs=1e-8)


def test_separate_arms_are_separate_trials():
    """Everything by arm, X too: the criterion is the sum of two trials, given their own scale."""
    y, X, s, v = trial(120, 4)
    arm = (s % 2).astype(int)
    both = np.column_stack([X * (arm == 0)[:, None], X * (arm == 1)[:, None]])
    joint = fit(compress(y, both, [], Correlation("us", s, v, 4, arm)), reml=False)
    parts = [
        fit(compress(y[arm == a], X[arm == a], [], Correlation("us", s[arm == a], v[arm == a], 4)), reml=False)
        for a in (0, 1)
    ]
    assert joint.deviance == pytest.approx(sum(p.deviance for p in parts), abs=1e-8)
    assert joint.beta == pytest.approx(np.concatenate([p.beta for p in parts]), abs=1e-6)


def test_nothing_but_least_squares():
    y, X, *_ = trial(50, 3)
    found = fit(compress(y, X, [], None))
    beta, rss = np.linalg.lstsq(X, y, rcond=None)[:2]
    assert found.beta == pytest.approx(beta)
    assert found.sigma**2 == pytest.approx(rss[0] / (len(y) - X.shape[1]))


# ---------------------------------------------------------------- hazards


def test_a_likelihood_without_bound_is_said_to_have_none():
    rng = np.random.default_rng(3)
    s, v = np.nonzero(np.ones((8, 8)))
    data = compress(rng.normal(size=64), np.eye(8)[v], [], Correlation("us", s, v, 8))
    assert fit(data).status == Status.UNBOUNDED
    with pytest.raises(IdentificationError, match="no visit has more than 7 subjects"):
        compress(rng.normal(size=56), np.eye(8)[v[:56]], [], Correlation("us", s[:56], v[:56], 8))
    stratum = (np.arange(120) == 5).astype(int)
    s, v = np.nonzero(np.ones((30, 4)))
    one = compress(
        rng.normal(size=120), np.column_stack([np.ones(120), stratum]), [], None, [Variance("ident", stratum)]
    )  # fmt: skip
    assert fit(one, reml=False).status == Status.UNBOUNDED


@pytest.mark.parametrize("rho", [0.5, 0.99])
def test_unstructured_fits_of_autoregressive_data_take_few_steps(rho):
    rng = np.random.default_rng(5)
    e = rng.normal(size=(450, 12))
    for t in range(1, 12):
        e[:, t] = rho * e[:, t - 1] + np.sqrt(1 - rho**2) * e[:, t]
    keep = rng.uniform(size=e.shape) > 0.1
    s, v = np.nonzero(keep)
    y = (e * 2.0 ** np.arange(12))[keep]
    found = fit(compress(y, np.eye(12)[v], [], Correlation("us", s, v, 12)))
    assert found.status == Status.CONVERGED
    assert found.n_iter <= 10


def never_together():
    s, v = np.repeat(np.arange(20), 2), np.tile([0, 1, 1, 2], 10)
    return s, v, 3


WRONG = {
    "never seen in one subject": lambda: Correlation("us", *never_together()),
    "two visits 2 apart": lambda: Correlation("toep", *never_together()),
    "no subject has two rows": lambda: Correlation("ar1", np.arange(40), np.zeros(40, int), 3),
    "of one subject at one visit": lambda: Correlation("cs", np.arange(40) // 2, np.zeros(40, int), 3),
    "of one subject at one place": lambda: Correlation("car1", np.arange(40) // 2, np.zeros(40)),
    "visit 3 (from 0) has no row": lambda: Correlation("us", *never_together()[:2], 4),
    "in two groups": lambda: Correlation("ar1", *never_together(), np.arange(40) % 2),
    "did you mean 'us'": lambda: Correlation("uss", *never_together()),
    "has no option 'nugget'": lambda: Correlation("ar1", *never_together(), None, NUGGET),
    "orders p and q": lambda: Correlation("arma", *never_together()),
    "choose from 'euclidean'": lambda: Correlation(
        "sp_exp", never_together()[0], never_together()[1], 0, None, (("metric", "x"),)
    ),
    "use car1, which takes times": lambda: Correlation("ar1", never_together()[0], np.arange(40) * 1000, 0),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_told_is_said_in_words(words):
    with pytest.raises(DataError, match=words.replace("(", r"\(").replace(")", r"\)")):
        compress(np.arange(40.0), np.ones((40, 1)), [], WRONG[words]())


def test_variance_functions_refuse_what_they_cannot_take():
    y, X, v = np.arange(40.0) ** 1.5, np.ones((40, 1)), np.arange(40.0)
    for variance, words in [
        (Variance("power", None, v), "is 0 in row 0"),
        (Variance("exp"), "needs a covariate"),
        (Variance("power", options=(("fitted", True),)), "fitted values of an earlier fit"),
        (Variance("fixed", None, v - 0.5), "must be positive"),
        (Variance("idents", np.zeros(40, int)), "did you mean 'ident'"),
    ]:
        with pytest.raises(DataError, match=words):
            compress(y, X, [], None, [variance])


def test_a_block_too_large_for_dense_algebra_is_refused():
    n = residual_data.MOST_VISITS
    with pytest.raises(NotImplementedError, match="depend on each other"):
        compress(np.arange(n) ** 1.5, np.ones((n, 1)), [], Correlation("cs", np.zeros(n, int), np.arange(n), n))


def test_identification_is_a_data_error():
    assert issubclass(IdentificationError, DataError)
