"""Fits of every covariance structure against scipy on a dense likelihood; standard errors, doors, spelling."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import lme_jax as lme
from lme_jax.core import correlations, structures
from lme_jax.core.structures import REGISTRY, make_block
from lme_jax.errors import DataError, FormulaError, SingularFitWarning
from tests.oracles.structures import naive

TIMES = np.array([0.0, 1.0, 2.5, 4.0])
VISITS = list("abcd")
KNOWN = np.array([[2.0, 0.8, 0.4, 0.2], [0.8, 1.5, 0.7, 0.3], [0.4, 0.7, 1.0, 0.5], [0.2, 0.3, 0.5, 1.2]])
# Structure → how a formula spells it.
SPELLED = {
    "unstructured": "us(0 + f | g)",
    "diagonal": "diag(0 + f | g)",
    "identity": "homdiag(0 + f | g)",
    "compound_symmetry": "homcs(0 + f | g)",
    "het_compound_symmetry": "cs(0 + f | g)",
    "ar1": "ar1(0 + f | g)",
    "het_ar1": "hetar1(0 + f | g)",
    "toeplitz": "homtoep(0 + f | g)",
    "het_toeplitz": "toep(0 + f | g)",
    "exponential": "ou(t | g)",
    "fixed": "fixed(0 + f | g, KNOWN)",
    "reduced_rank": "rr(0 + f | g, d = 2)",
}


def truth(name):
    """Ψ (4, 4) of simulated effects that has the structure."""
    sd = np.full(4, 1.2) if name in REGISTRY and REGISTRY[name].homogeneous else np.array([0.8, 1.6, 1.1, 2.0])
    lag = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    R = {
        "diagonal": np.eye(4),
        "identity": np.eye(4),
        "compound_symmetry": 0.5 + 0.5 * np.eye(4),
        "het_compound_symmetry": 0.5 + 0.5 * np.eye(4),
        "toeplitz": np.array([1.0, 0.6, 0.5, 0.1])[lag],
        "het_toeplitz": np.array([1.0, 0.6, 0.5, 0.1])[lag],
        "toy": np.array([1.0, 0.35, 0.0, 0.0])[lag],
        "exponential": np.exp(-np.abs(np.subtract.outer(TIMES, TIMES)) / 2.0),
    }.get(name, 0.7**lag)
    if name == "fixed":
        return 1.5 * KNOWN
    if name == "reduced_rank":
        L = np.array([[1.0, 0.0], [-0.8, 1.2], [0.5, 0.9], [1.5, -0.6]])
        return L @ L.T
    return np.diag(sd) @ R @ np.diag(sd)


def simulated(name, seed=0, m=45):
    """Two measurements at each of four visits, some missing."""
    rng = np.random.default_rng([seed, list(REGISTRY).index(name) if name in REGISTRY else 99])
    b = rng.multivariate_normal(np.zeros(4), truth(name), size=m, method="svd")
    frame = pd.DataFrame({"g": np.repeat(np.arange(m), 8), "visit": np.tile(np.arange(4), 2 * m)})
    frame["x"] = rng.normal(size=len(frame))
    frame["t"], frame["f"] = TIMES[frame.visit], np.array(VISITS)[frame.visit]
    frame["y"] = 1.0 + 0.5 * frame.x + b[frame.g, frame.visit] + 0.9 * rng.normal(size=len(frame))
    return frame[rng.uniform(size=len(frame)) > 0.15].reset_index(drop=True)


class Likelihood:
    """−2 log L of one factor's effects at the visits, level by level, β profiled out."""

    def __init__(self, frame, reml, q=4):
        self.reml, self.n = reml, len(frame)
        size = int(frame.groupby("g").size().max())
        levels = frame.g.unique()
        self.real = np.zeros((len(levels), size), bool)
        self.Z, self.W = np.zeros((len(levels), size, q)), np.zeros((len(levels), size, 3))
        for k, level in enumerate(levels):
            rows = frame[frame.g == level]
            self.real[k, : len(rows)] = True
            self.Z[k, np.arange(len(rows)), rows.visit] = 1.0
            self.W[k, : len(rows)] = np.column_stack([np.ones(len(rows)), rows.x, rows.y])

    def whitened(self, Psi, sigma2):
        V = self.Z @ Psi @ np.swapaxes(self.Z, 1, 2)
        at = np.arange(V.shape[1])
        V[:, at, at] += np.where(self.real, sigma2, 1.0)
        K = np.linalg.cholesky(V)
        half = np.linalg.solve(K, self.W).reshape(-1, 3)
        return 2.0 * np.log(K[:, at, at]).sum(), half.T @ half

    def full(self, Psi, sigma):
        """At the covariances given, response units²."""
        log_det, H = self.whitened(Psi, sigma**2)
        M = H[:2, :2]
        rss = H[2, 2] - H[2, :2] @ np.linalg.solve(M, H[:2, 2])
        value = log_det + rss + (self.n - (2 if self.reml else 0)) * np.log(2 * np.pi)
        return value + (np.linalg.slogdet(M)[1] if self.reml else 0.0)

    def profiled(self, psi):
        """σ² profiled out too, at Ψ/σ²."""
        log_det, H = self.whitened(psi, 1.0)
        M, N = H[:2, :2], self.n - (2 if self.reml else 0)
        rss = H[2, 2] - H[2, :2] @ np.linalg.solve(M, H[:2, 2])
        return log_det + N * (1 + np.log(2 * np.pi * rss / N)) + (np.linalg.slogdet(M)[1] if self.reml else 0.0)


def best(likelihood, block, starts=12):
    """The lowest of several searches by scipy over θ."""
    rng, found = np.random.default_rng(1), []

    def value(theta):
        return likelihood.profiled(naive(theta, block))

    for _ in range(starts):
        rough = scipy.optimize.minimize(
            value, rng.uniform(-1.3, 1.3, block.n_theta), method="BFGS", options={"gtol": 1e-4}
        )
        found.append((rough.fun, rough.x))
    x = min(found, key=lambda pair: pair[0])[1]
    for _ in range(2):
        x = scipy.optimize.minimize(value, x, method="BFGS", jac="3-point", options={"gtol": 1e-8}).x
    return value(x)


@pytest.fixture(scope="module")
def fits():
    """Structure → (frame, ML fit, REML fit)."""
    made = {}

    def get(name):
        if name not in made:
            frame = simulated(name)
            made[name] = frame, *(lme.lmer("y ~ x + " + SPELLED[name], frame, reml=reml) for reml in (False, True))
        return made[name]

    return get


@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("name", SPELLED)
def test_fits_are_the_best_of_scipy(fits, name, reml):
    frame, *both = fits(name)
    fitted = both[reml]
    (term,) = fitted._data.terms
    assert term.structure == name
    assert fitted.status.name == "CONVERGED"
    likelihood = Likelihood(frame, reml)
    psi = fitted.cov_re_unscaled.to_numpy()
    np.testing.assert_allclose(psi, naive(fitted.theta.to_numpy(), term.block), rtol=1e-10, atol=1e-12)
    assert fitted.deviance == pytest.approx(likelihood.profiled(psi), rel=1e-11)
    assert fitted.deviance == pytest.approx(likelihood.full(fitted.cov_re.to_numpy(), fitted.sigma), rel=1e-11)
    assert fitted.deviance == pytest.approx(best(likelihood, term.block, 4 if reml else 12), rel=1e-9)


@given(st.sampled_from(list(SPELLED)), st.integers(2, 4), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_search_from_the_truth_ends_lower(name, q, reml, seed):
    """Random covariances, some singular or nearly so, unbalanced visits; scipy begins where the data come from."""
    rng = np.random.default_rng(seed)
    detail = {"exponential": TIMES[:q], "fixed": KNOWN[:q, :q], "reduced_rank": 1}.get(name)
    structure = name if detail is None else (name, detail)
    block = make_block(structure, q)
    truth = rng.normal(size=block.n_theta) * rng.choice([0.3, 1.0, 2.0])
    m = int(rng.integers(12, 40))
    frame = pd.DataFrame({"g": np.repeat(np.arange(m), 2 * q), "visit": np.tile(np.arange(q), 2 * m)})
    frame["x"], frame["f"] = rng.normal(size=len(frame)), np.array(VISITS)[frame.visit]
    b = rng.multivariate_normal(np.zeros(q), naive(truth, block), size=m, method="svd")
    frame["y"] = b[frame.g, frame.visit] + rng.normal(size=len(frame))
    frame = frame[rng.uniform(size=len(frame)) > rng.choice([0.0, 0.3])].reset_index(drop=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        fitted = lme.lmer("y ~ x + (0 + f | g)", frame, structures={"g": structure}, reml=reml)
    assert fitted.converged
    likelihood = Likelihood(frame, reml, q)
    assert fitted.deviance == pytest.approx(likelihood.profiled(naive(fitted.theta.to_numpy(), block)), rel=1e-9)
    other = scipy.optimize.minimize(lambda theta: likelihood.profiled(naive(theta, block)), truth, method="BFGS")
    assert fitted.deviance < other.fun + 1e-6


# ---------------------------------------------------------------- what people read


def from_reading(name, values, block):
    """Ψ of what ``covariance_parameters`` lists, for the structures whose list is their parameters."""
    q = block.size
    if name == "reduced_rank":
        L = np.zeros((q, 2))
        L[np.tril_indices(q, 0, 2)] = values
        return L @ L.T
    if name == "fixed":
        return values[0] ** 2 * KNOWN
    n_sd = 1 if REGISTRY[name].homogeneous else q
    sd, rest = np.broadcast_to(values[:n_sd], q), values[n_sd:]
    R, lag = np.eye(q), np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
    if name == "unstructured":
        above = np.triu_indices(q, 1)
        R[above] = R[above[::-1]] = rest
    elif name.endswith("toeplitz"):
        R = np.array([1.0, *rest])[lag]
    elif name.endswith("ar1"):
        R = rest[0] ** lag
    elif name.endswith("compound_symmetry"):
        R = rest[0] + (1.0 - rest[0]) * np.eye(q)
    elif name == "exponential":
        R = np.exp(-np.abs(np.subtract.outer(TIMES, TIMES)) / rest[0])
    return np.diag(sd) @ R @ np.diag(sd)


@pytest.mark.parametrize("name", SPELLED)
def test_standard_errors_are_those_of_the_likelihood_in_what_is_read(fits, name):
    """2H⁻¹ of the dense deviance, by differences in the standard deviations, correlations … themselves."""
    frame, _, fitted = fits(name)
    table = fitted.covariance_parameters
    assert (table.note == "").all()
    if name == "reduced_rank":
        loadings = table.parameter.str.startswith("Loading")
        sds = table[table.parameter.str.startswith("SD") & (table.grp == "g")]
        np.testing.assert_allclose(sds.estimate, np.sqrt(np.diag(fitted.cov_re)), rtol=1e-12)
        table = table[loadings | (table.grp == "Residual")]
    likelihood, block = Likelihood(frame, True), fitted._data.terms[0].block
    at = table.estimate.to_numpy()
    np.testing.assert_allclose(from_reading(name, at[:-1], block), fitted.cov_re, rtol=1e-9, atol=1e-10)
    assert at[-1] == pytest.approx(fitted.sigma, rel=1e-14)

    def value(x):
        return likelihood.full(from_reading(name, x[:-1], block), x[-1])

    h, k = 2e-4, len(at)
    H, E = np.empty((k, k)), h * np.maximum(np.abs(at), 0.3)[:, None] * np.eye(k)
    for i in range(k):
        for j in range(k):
            corners = [s * t * value(at + s * E[i] + t * E[j]) for s in (1, -1) for t in (1, -1)]
            H[i, j] = sum(corners) / (4 * E[i, i] * E[j, j])
    np.testing.assert_allclose(table.se, np.sqrt(np.diag(2.0 * np.linalg.inv(H))), rtol=2e-4)


@pytest.mark.parametrize("name", SPELLED)
def test_standard_errors_of_covariances(fits, name):
    """``bse_re`` is the delta method of the same table: of a variance, 2·SD·se(SD)."""
    _, _, fitted = fits(name)
    table = fitted.covariance_parameters
    sd = table[table.parameter.str.startswith(("SD", "Scale")) & (table.grp == "g")].iloc[0]
    unit = KNOWN.diagonal().max() if name == "fixed" else 1.0
    assert fitted.bse_re.iloc[0] == pytest.approx(2.0 * sd.estimate * sd.se * unit, rel=1e-9)
    assert len(fitted.bse_re) == len(fitted.theta) == fitted._data.terms[0].block.n_theta


def test_a_singular_fit_says_why_it_has_no_standard_errors():
    frame = simulated("identity").drop(columns="y")
    frame["y"] = (
        1.0
        + 0.5 * frame.x
        + np.random.default_rng(2).normal(size=len(frame))
        - 0.4 * frame.groupby("g").x.transform("mean")
    )
    frame["y"] -= frame.groupby("g").y.transform("mean")
    with pytest.warns(SingularFitWarning):
        fitted = lme.lmer("y ~ x + homcs(0 + f | g)", frame)
    table = fitted.covariance_parameters
    assert table.se.isna().all()
    assert (table.note == "singular fit: on the boundary no normal approximation holds").all()


def test_summary_shows_structures(fits):
    text = str(fits("exponential")[2].summary())
    assert "Covariance structures" in text and "Range" in text
    loadings = str(fits("reduced_rank")[2].summary())
    assert "Loading fa, factor 1" in loadings and "Loading fa, factor 2" not in loadings
    assert "Covariance structures" not in str(fits("unstructured")[2].summary())


def test_theta_names():
    frame = simulated("het_toeplitz")
    names = lme.lmer("y ~ x + toep(0 + f | g)", frame).theta.index.tolist()
    assert names[:4] == ["g.√sd fa", "g.√sd fb", "g.√sd fc", "g.√sd fd"]
    assert names[4:] == ["g.arcsin partial 1", "g.arcsin partial 2", "g.arcsin partial 3"]
    assert lme.lmer("y ~ x + rr(0 + f | g, 1)", frame).theta.index.tolist() == ["g.fa", "g.fb.fa", "g.fc.fa", "g.fd.fa"]


# ---------------------------------------------------------------- invariances


@pytest.mark.parametrize("name", SPELLED)
def test_units_and_order_do_not_matter(fits, name):
    frame, _, fitted = fits(name)
    other = frame.sample(frac=1.0, random_state=3)
    other["y"] = 1e4 * other.y
    other["g"] = 1000 - other.g
    again = lme.lmer("y ~ x + " + SPELLED[name], other)
    N = len(frame) - 2
    assert again.deviance == pytest.approx(fitted.deviance + 2 * N * np.log(1e4), abs=1e-6)
    np.testing.assert_allclose(again.theta, fitted.theta, atol=2e-5)
    np.testing.assert_allclose(
        again.covariance_parameters.se,
        fitted.covariance_parameters.se
        * np.where(fitted.covariance_parameters.parameter.str.contains("ρ|Corr|Range"), 1.0, 1e4),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    "name", ["unstructured", "diagonal", "identity", "compound_symmetry", "het_compound_symmetry", "reduced_rank"]
)
def test_order_of_the_effects_does_not_matter(fits, name):
    frame, _, fitted = fits(name)
    other = frame.assign(f=pd.Categorical(frame.f, categories=list("dbac")))
    assert lme.lmer("y ~ x + " + SPELLED[name], other).deviance == pytest.approx(fitted.deviance, abs=1e-7)


def test_structures_turned_round_or_nested(fits):
    """Turning time leaves stationary structures as they are; full rank is unstructured; even gaps make an AR(1)."""
    for name in ("ar1", "het_ar1", "toeplitz", "het_toeplitz"):
        frame, _, fitted = fits(name)
        other = frame.assign(f=pd.Categorical(frame.f, categories=list("dcba")))
        assert lme.lmer("y ~ x + " + SPELLED[name], other).deviance == pytest.approx(fitted.deviance, abs=1e-7)
    frame, _, fitted = fits("unstructured")
    assert lme.lmer("y ~ x + rr(0 + f | g, d = 4)", frame).deviance == pytest.approx(fitted.deviance, abs=1e-7)
    frame, _, fitted = fits("ar1")
    even = lme.lmer("y ~ x + ou(visit | g)", frame)
    assert even.deviance == pytest.approx(fitted.deviance, abs=1e-7)
    rho = fitted.covariance_parameters.estimate[1]
    assert even.covariance_parameters.estimate[1] == pytest.approx(-1.0 / np.log(rho), rel=1e-5)


def test_low_rank_is_no_boundary_but_a_lost_factor_is():
    frame = simulated("reduced_rank")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not lme.lmer("y ~ x + rr(0 + f | g, d = 2)", frame).singular
    alone = simulated("identity", seed=4)
    rng = np.random.default_rng(0)
    alone["y"] = rng.normal(size=45)[alone.g] + rng.normal(size=len(alone))
    with pytest.warns(SingularFitWarning):
        one = lme.lmer("y ~ x + rr(0 + f | g, d = 3)", alone)
    assert one.singular


# ---------------------------------------------------------------- every door


@pytest.mark.slow
@pytest.mark.parametrize("name", SPELLED)
def test_batches_agree(fits, name):
    frame, _, fitted = fits(name)
    Z = pd.get_dummies(frame.f).to_numpy(float)
    detail = {"exponential": TIMES, "fixed": KNOWN, "reduced_rank": 2}.get(name)
    structure = name if detail is None else (name, detail)
    X = np.column_stack([np.ones(len(frame)), frame.x])
    Y = np.column_stack([frame.y, frame.y + 0.3 * frame.x**2])
    for backend in ("numpy", "jax"):
        many = lme.fit_many(Y, X, Z, frame.g, structure=structure, progress=False, backend=backend)
        assert -2 * many.llf.iloc[0] == pytest.approx(fitted.deviance, abs=1e-6)
        assert many.one(1).deviance == pytest.approx(-2 * many.llf.iloc[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["het_compound_symmetry", "toeplitz", "exponential", "reduced_rank"])
def test_compiled_fits_agree(fits, name):
    frame, _, fitted = fits(name)
    compiled = lme.lmer("y ~ x + " + SPELLED[name], frame, backend="jax")
    assert compiled.backend == "jax"
    assert compiled.deviance == pytest.approx(fitted.deviance, abs=1e-7)
    np.testing.assert_allclose(compiled.theta, fitted.theta, atol=2e-5)


def second_factor(frame, K):
    """A crossed factor of K levels; a nested one is ``g`` in ``block``."""
    rng = np.random.default_rng(K)
    frame = frame.assign(h=rng.integers(0, K, len(frame)), block=frame.g // 9)
    frame["y"] += rng.normal(size=K)[frame.h] + 0.7 * rng.normal(size=5)[frame.block]
    return frame


@pytest.mark.parametrize("shape", ["crossed", "large", "nested"])
@pytest.mark.parametrize("name", SPELLED)
def test_several_factors(name, shape):
    """The deviance, gradient and Hessian of small, dense and nested engines against the dense likelihood."""
    frame = second_factor(simulated(name), 90 if shape == "large" else 6)
    other = "block" if shape == "nested" else "h"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        fitted = lme.lmer(f"y ~ x + {SPELLED[name]} + (1 | {other})", frame)
    data = fitted._data
    assert fitted.converged
    theta = fitted.theta.to_numpy()
    blocks = [term.block for term in data.terms]
    Zs = [factor.effects.toarray() for factor in data.factors]

    def dense(theta):
        V, at = np.eye(len(frame)), 0
        for factor, block, Z in zip(data.factors, blocks, Zs, strict=True):
            psi = naive(theta[at : at + block.n_theta], block)
            at += block.n_theta
            V += Z @ np.kron(np.eye(len(factor.levels)), psi) @ Z.T
        K = np.linalg.cholesky(V)
        half = np.linalg.solve(K, np.column_stack([data.X, data.y]))
        H = half.T @ half
        M, N = H[:2, :2], len(frame) - 2
        rss = H[2, 2] - H[2, :2] @ np.linalg.solve(M, H[:2, 2])
        return 2 * np.log(np.diag(K)).sum() + N * (1 + np.log(2 * np.pi * rss / N)) + np.linalg.slogdet(M)[1]

    assert fitted.deviance == pytest.approx(dense(theta), rel=1e-10)
    h = 1e-4
    steps = h * np.eye(len(theta))
    ups, downs = (np.array([dense(theta + s * e) for e in steps]) for s in (1, -1))
    assert np.abs((ups - downs) / (2 * h)).max() < 1e-3
    curvature = (ups - 2 * dense(theta) + downs) / h**2
    np.testing.assert_allclose(np.diag(fitted.fit.hessian), curvature, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("name", ["het_toeplitz", "exponential", "reduced_rank", "fixed"])
def test_predictions_and_effects(fits, name):
    frame, _, fitted = fits(name)
    again = fitted.predict(frame)
    np.testing.assert_allclose(again, fitted.fittedvalues, rtol=1e-10)
    psi, sigma2 = fitted.cov_re.to_numpy(), fitted.scale
    level = frame.g.iloc[0]
    rows = frame[frame.g == level]
    Z = np.eye(4)[rows.visit]
    V = Z @ psi @ Z.T + sigma2 * np.eye(len(rows))
    r = rows.y - fitted.fe_params.to_numpy() @ np.array([np.ones(len(rows)), rows.x])
    np.testing.assert_allclose(fitted.ranef["g"].loc[level], psi @ Z.T @ np.linalg.solve(V, r), rtol=1e-8)


# ---------------------------------------------------------------- a structure of one's own


def _band(phi, q):
    """Correlation ½ sin φ between neighbours, none further apart (a moving average)."""
    xp = correlations.namespace(phi)
    one = np.eye(q).reshape(q, q, *[1] * (phi.ndim - 1))
    near = (np.eye(q, k=1) + np.eye(q, k=-1)).reshape(one.shape)
    return xp, one, near


def _band_root(phi, q, detail):
    from lme_jax.core import linalg

    xp, one, near = _band(phi, q)
    return linalg.cholesky(one + 0.5 * xp.sin(phi[0]) * near)


def _band_derivatives(phi, q, detail):
    xp, one, near = _band(phi, q)
    r, d = 0.5 * xp.sin(phi[0]), 0.5 * xp.cos(phi[0])
    return one + r * near, (d * near)[:, :, None], (-r * near)[:, :, None, None]


TOY = structures.scaled(
    correlations.AR1._replace(
        root=_band_root,
        derivatives=_band_derivatives,
        angles=lambda R, q, detail: 0.9 * correlations.AR1.angles(R, q, detail),
    ),
    homogeneous=True,
    spellings=("ma1",),
)


@pytest.mark.slow
def test_one_entry_makes_a_structure(monkeypatch):
    """Formulas, NumPy and JAX, lanes, several factors, tables and predictions of a structure added to the registry."""
    monkeypatch.setitem(REGISTRY, "moving_average", TOY)
    frame = second_factor(simulated("toy", seed=3), 6)
    fitted = lme.lmer("y ~ x + ma1(0 + f | g)", frame)
    psi = fitted.cov_re_unscaled.to_numpy()
    assert psi[0, 1] == pytest.approx(psi[2, 3]) and psi[0, 2] == pytest.approx(0.0, abs=1e-14)
    likelihood = Likelihood(frame, True)

    def value(x):
        near = np.eye(4, k=1) + np.eye(4, k=-1)
        return likelihood.profiled(x[0] ** 2 * (np.eye(4) + 0.5 * np.sin(x[1]) * near))

    searches = [scipy.optimize.minimize(value, start, tol=1e-9) for start in ([1.0, 0.1], [1.0, -1.0], [3.0, 1.2])]
    assert fitted.deviance == pytest.approx(min(s.fun for s in searches), rel=1e-9)
    assert lme.lmer("y ~ x + ma1(0 + f | g)", frame, backend="jax").deviance == pytest.approx(fitted.deviance, abs=1e-7)
    Z, X = pd.get_dummies(frame.f).to_numpy(float), np.column_stack([np.ones(len(frame)), frame.x])
    for backend in ("numpy", "jax"):
        many = lme.fit_many(
            frame.y.to_numpy()[:, None], X, Z, frame.g, structure="moving_average", progress=False, backend=backend
        )
        assert -2 * many.llf.iloc[0] == pytest.approx(fitted.deviance, abs=1e-6)
    for other in ("h", "block"):
        several = lme.lmer(f"y ~ x + ma1(0 + f | g) + (1 | {other})", frame)
        assert several.converged and several.deviance < fitted.deviance
    assert "ρ" in str(fitted.summary()) and (fitted.covariance_parameters.note == "").all()
    np.testing.assert_allclose(fitted.predict(frame), fitted.fittedvalues, rtol=1e-10)


# ---------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cs(0 + f | g)", "hetcs(0 + f | g)"),
        ("cs(0 + f | g, hom = TRUE)", "homcs(0 + f | g)"),
        ("homcs(0 + f | g, hom = FALSE)", "cs(0 + f | g)"),
        ("ar1(0 + f | g, hom = FALSE)", "hetar1(0 + f | g)"),
        ("ar1(0 + f | g, hom = TRUE)", "ar1(0 + f | g)"),
        ("diag(0 + f | g, hom = TRUE)", "homdiag(0 + f | g)"),
        ("diag(0 + f | g)", "(0 + f || g)"),
        ("us(x | g)", "(x | g)"),
        ("toep(0 + f | g, hom = T)", "homtoep(0 + f | g)"),
        ("rr(0 + f | g, 1)", "rr(0 + f | g, d = 1)"),
        ("rr(0 + f | g)", "rr(0 + f | g, d = 2)"),
        ("ou(t | g)", "ou(0 + t | g)"),
        ("ou(t | g)", "ou(t - 1 | g)"),
        ("ou(t | g)", "ou(0 + factor(t) | g)"),
        ("ou(t | g)", "exp(t | g)"),
        ("fixed(0 + f | g, KNOWN)", "propto(0 + f | g, M = KNOWN)"),
    ],
)
def test_two_spellings(one, other):
    frame = simulated("unstructured", m=20)
    a, b = (lme.lmer("y ~ x + " + bar, frame) for bar in (one, other))
    assert a._data.template == b._data.template
    assert a.deviance == b.deviance


def test_a_labelled_matrix_is_aligned():
    frame = simulated("fixed", m=20)
    by_level = pd.DataFrame(KNOWN, index=VISITS, columns=VISITS)
    turned = by_level.loc[list("dbac"), list("dbac")]
    by_name = turned.rename(index=lambda v: f"f{v}", columns=lambda v: f"f{v}")
    plain = lme.lmer("y ~ x + fixed(0 + f | g, KNOWN)", frame)
    for M in (by_level, turned, by_name):  # noqa: B007 (the formula uses it)
        assert lme.lmer("y ~ x + fixed(0 + f | g, M)", frame).deviance == plain.deviance
    given = lme.lmer("y ~ x + (0 + f | g)", frame, structures={"g": ("fixed", turned)})
    assert given.deviance == plain.deviance


def test_structures_argument_takes_what_a_structure_needs():
    frame = simulated("unstructured", m=20)
    for bar, structure, same in (
        ("(0 + f | g)", ("reduced_rank", 1), "rr(0 + f | g, 1)"),
        ("(0 + f | g)", "reduced_rank", "rr(0 + f | g)"),
        ("(0 + f | g)", ("exponential", TIMES), "ou(t | g)"),
        ("(0 + factor(t) | g)", "exponential", "ou(t | g)"),
        ("(0 + f | g)", "het_toeplitz", "toep(0 + f | g)"),
    ):
        by_name = lme.lmer("y ~ x + " + bar, frame, structures={"g": structure})
        assert by_name.deviance == lme.lmer("y ~ x + " + same, frame).deviance


def test_new_times_are_refused_in_predictions():
    frame = simulated("exponential", m=20)
    fitted = lme.lmer("y ~ x + ou(t | g)", frame)
    with pytest.raises(DataError, match="t"):
        fitted.predict(frame.assign(t=0.5))


@pytest.mark.parametrize(
    ("bar", "message"),
    [
        ("toop(0 + f | g)", r"unknown covariance structure toop\(\); did you mean toep\(\)"),
        ("zebra(0 + f | g)", r"unknown covariance structure zebra\(\); there are ar1, cs"),
        ("ar1(f | g)", "the intercept is none of them"),
        ("toep(x | g)", "the intercept is none of them"),
        ("rr(0 + f | g, d = 5)", "4 effects cannot have rank 5"),
        ("rr(0 + f | g, d = x)", "there is no x|whole number"),
        ("rr(0 + f | g, d = 1 + 1)", "give a number or the name"),
        ("rr(0 + f | g, k = 2)", "k = 2 has no meaning there"),
        ("us(0 + f | g, hom = TRUE)", "has no form with equal variances"),
        ("ou(t | g, hom = FALSE)", "has no form with unequal variances"),
        ("cs(0 + f | g, hom = maybe)", "hom must be TRUE or FALSE"),
        ("cs(0 + f | g, 3)", "3 has no meaning there"),
        ("cs(0 + f || g)", r"\|\| is for terms without a structure's name"),
        ("ou(f | g)", "coordinates must be numbers, but factor.f. has"),
        ("ou(t + x | g)", "takes one variable"),
        ("ou(1 | g)", "takes one variable"),
        ("fixed(0 + f | g)", "name the known matrix too"),
        ("fixed(0 + f | g, NOWHERE)", "there is no NOWHERE"),
        ("fixed(x | g, KNOWN)", r"shape \(4, 4\); the term has 2 effects"),
        ("fixed(0 + f | g, UNLABELLED)", "lacks the labels"),
        ("fixed(x | g, INDEFINITE)", "eigenvalues reach -1"),
        ("ar1(0 + t | g)", "a single effect"),
    ],
)
def test_spelling_refused(bar, message):
    UNLABELLED = pd.DataFrame(KNOWN, index=list("abcx"), columns=list("abcx"))  # noqa: F841
    INDEFINITE = [[1.0, 2.0], [2.0, 1.0]]  # noqa: F841
    with pytest.raises((FormulaError, DataError), match=message):
        lme.lmer("y ~ x + " + bar, simulated("unstructured", m=20))


def test_conditions_inside_calls_are_no_bars():
    frame = simulated("unstructured", m=20)
    fitted = lme.lmer("y ~ x + exp((t > 1) | (x > 0)) + (1 | g)", frame)
    assert len(fitted.fe_params) == 3
