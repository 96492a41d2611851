"""Profile limits beside those of R (root finding), dense algebra and derivatives by differences."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from reference_data import load_frame
from scipy.special import expit

import lme_jax as lme
from lme_jax import datasets
from lme_jax.core import surface
from lme_jax.errors import DataError, SingularFitWarning
from lme_jax.inference.profile import theta_units

REFERENCE = json.loads((Path(__file__).parent / "reference" / "robust.json").read_text(encoding="utf-8"))
CUT = scipy.stats.chi2.ppf(0.95, 1)


def fit_of(name, reml):
    entry = REFERENCE[name]
    frame = load_frame(entry["dataset"])
    frame = frame.drop(index=[i - 1 for i in entry["dropped_rows"] or []])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return lme.lmer(entry["formula"], frame, reml=reml, weights=entry["weights"])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", list(REFERENCE))
def test_limits_of_reference(name, reml):
    expected = REFERENCE[name]["profile_reml" if reml else "profile_ml"]
    table = fit_of(name, reml).profile_ci()
    assert set(table.index) == set(expected)
    for label, (_, lower, upper, lower_ends, upper_ends) in expected.items():
        row = table.loc[label]
        size = upper - lower
        assert row["lower"] == pytest.approx(lower, abs=1e-7 * size)
        assert row["upper"] == pytest.approx(upper, abs=1e-7 * size)
        # A bound is said where the profile ends there; of a parameter that both limits bound, once.
        assert bool(row["note"]) == (lower_ends or upper_ends)


# ---------------------------------------------------------------- dense algebra


@pytest.fixture(scope="module")
def crossed():
    rng = np.random.default_rng(8)
    n = 70
    frame = pd.DataFrame({"g": rng.integers(0, 9, n), "h": rng.integers(0, 6, n), "x": rng.normal(size=n)})
    effects = rng.normal(size=(9, 2)) @ [[1.0, 0.4], [0.0, 0.8]]
    frame["y"] = effects[frame.g, 0] + (1 + effects[frame.g, 1]) * frame.x + 0.8 * rng.normal(size=6)[frame.h]
    frame["y"] += 0.5 * rng.normal(size=n)
    return frame


def dense_deviance(frame, sd, rho, sd_h, sigma, reml, slope=None):
    """−2ℓ of y ~ x + (x | g) + (1 | h), the coefficient of x held at ``slope`` if given."""
    if abs(rho) >= 1.0:
        return 1e10
    X = np.column_stack([np.ones(len(frame)), frame.x])
    y = frame.y.to_numpy()
    Psi = np.outer(sd, sd) * [[1.0, rho], [rho, 1.0]]
    same_g = np.equal.outer(frame.g.to_numpy(), frame.g.to_numpy())
    same_h = np.equal.outer(frame.h.to_numpy(), frame.h.to_numpy())
    V = same_g * (X @ Psi @ X.T) + sd_h**2 * same_h + sigma**2 * np.eye(len(y))
    if slope is not None:
        y, X = y - slope * X[:, 1], X[:, :1]
    VX = np.linalg.solve(V, X)
    r = y - X @ np.linalg.solve(X.T @ VX, VX.T @ y)
    value = np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r) + len(y) * np.log(2 * np.pi)
    return value + (np.linalg.slogdet(X.T @ VX)[1] - X.shape[1] * np.log(2 * np.pi) if reml else 0.0)


def least(of, start):
    """The minimum of ``of`` from ``start``; a gradient of 1e-3 is 1e-7 above it."""
    found = scipy.optimize.minimize(of, start, method="BFGS", options={"gtol": 1e-3})
    return found.fun


HELD = {
    # label: what of the packed (log sd₁, log sd₂, atanh ρ, log sd_h, log σ) is held, and how
    "g SD x": lambda value, z: (np.exp([z[0], np.log(value)]), np.tanh(z[1]), np.exp(z[2]), np.exp(z[3])),
    "g Corr (Intercept), x": lambda value, z: (np.exp(z[:2]), value, np.exp(z[2]), np.exp(z[3])),
    "Residual SD": lambda value, z: (np.exp(z[:2]), np.tanh(z[2]), np.exp(z[3]), value),
    "g (Intercept) x x Cov": lambda value, z: (
        np.array([np.exp(z[0]), abs(value) / np.exp(z[0]) / expit(z[1])]),
        np.sign(value) * expit(z[1]),
        np.exp(z[2]),
        np.exp(z[3]),
    ),
    "share of h": lambda value, z: (
        np.exp(z[:2]),
        np.tanh(z[2]),
        np.sqrt(value / (1 - value) * (np.exp(2 * z[0]) + np.exp(2 * z[3]))),
        np.exp(z[3]),
    ),
}


def share_of_h(psi, sigma2):
    return psi["h"][0, 0] / (psi["h"][0, 0] + psi["g"][0, 0] + sigma2)


@pytest.mark.parametrize("reml", [True, False])
def test_limits_of_a_crossed_design(crossed, reml):
    fit = lme.lmer("y ~ x + (x | g) + (1 | h)", crossed, reml=reml)
    names = [name for name in HELD if name != "share of h"]
    table = pd.concat([fit.profile_ci(names), fit.profile_ci({"share of h": (share_of_h, 0, 1)})])
    sd, rho = np.log(np.sqrt(np.diag(fit.cov_re)))[:3], np.arctanh(fit.varcorr.sdcor[2])
    free = {
        "g SD x": [sd[0], rho, sd[2], np.log(fit.sigma)],
        "g Corr (Intercept), x": [sd[0], sd[1], sd[2], np.log(fit.sigma)],
        "Residual SD": [sd[0], sd[1], rho, sd[2]],
        "g (Intercept) x x Cov": [sd[0], 0.5, sd[2], np.log(fit.sigma)],
        "share of h": [sd[0], sd[1], rho, np.log(fit.sigma)],
    }
    for name, row in table.iterrows():
        for limit in (row["lower"], row["upper"]):
            rise = (
                least(lambda z, v=limit, f=HELD[name]: dense_deviance(crossed, *f(v, z), reml), free[name])
                - fit.deviance
            )
            assert rise == pytest.approx(CUT, abs=2e-6), name


def test_limits_of_fixed_effects(crossed):
    fit = lme.lmer("y ~ x + (x | g) + (1 | h)", crossed, reml=False)
    table = fit.profile_ci("x")
    start = [*np.log(np.sqrt(np.diag(fit.cov_re)))[:2], 0.3, np.log(fit.varcorr.sdcor[3]), np.log(fit.sigma)]
    for limit in table.loc["x", ["lower", "upper"]]:
        rise = least(
            lambda z, v=limit: dense_deviance(
                crossed, np.exp(z[:2]), np.tanh(z[2]), np.exp(z[3]), np.exp(z[4]), False, slope=v
            ),
            start,
        )
        assert rise - fit.deviance == pytest.approx(CUT, abs=2e-6)
    # A combination is what recoding makes a coefficient of.
    recoded = lme.lmer("y ~ z + (z | g) + (1 | h)", crossed.assign(z=crossed.x - 2.0), reml=False)
    at_two = fit.profile_ci({"at two": [1.0, 2.0]})
    columns = ["estimate", "lower", "upper"]
    np.testing.assert_allclose(at_two[columns], recoded.profile_ci("(Intercept)")[columns], rtol=1e-7)


# ---------------------------------------------------------------- the surface


MODELS = {
    "one factor": ("Reaction ~ Days + (Days | Subject)", "sleepstudy"),
    "nested": ("strength ~ 1 + (1 | batch/cask)", "pastes"),
    "small": ("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin"),
}


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("model", list(MODELS))
def test_derivatives(model, held, reml):
    formula, name = MODELS[model]
    fit = lme.lmer(formula, datasets.load(name), reml=reml)
    direction = np.array([1.0, 0.7])[: fit.k_fe] if held else None
    at = surface.problem(fit._data.compressed, reml, direction)
    theta = np.asarray(fit.fit.theta) * theta_units(fit._data)
    own = [direction @ fit.fe_params] if held else []
    best = np.concatenate([theta, own, [np.log(fit.scale)]])
    there = surface.evaluate(best, at)
    assert there.value == pytest.approx(fit.deviance, abs=1e-9)
    np.testing.assert_allclose(there.gradient, 0.0, atol=1e-6)
    x = np.concatenate([1.3 * theta + 0.1, np.add(own, 3.0), [np.log(1.2 * fit.scale)]])
    point, steps = surface.evaluate(x, at), 1e-5 * np.eye(len(x))
    plus, minus = ([surface.evaluate(x + sign * e, at) for e in steps] for sign in (1, -1))
    slope = [(a.value - b.value) / 2e-5 for a, b in zip(plus, minus, strict=True)]
    curve = [(a.gradient - b.gradient) / 2e-5 for a, b in zip(plus, minus, strict=True)]
    np.testing.assert_allclose(point.gradient, slope, atol=1e-7 * np.abs(slope).max())
    np.testing.assert_allclose(point.hessian, curve, atol=1e-8 * np.abs(curve).max())


# ---------------------------------------------------------------- what a person asks


@pytest.fixture(scope="module")
def sleep():
    return lme.lmer("Reaction ~ Days + (Days | Subject)", datasets.load("sleepstudy"), reml=False)


def test_signed_roots_pass_through_the_limits(sleep):
    root = np.sqrt(CUT)
    points = sleep.profile(["Days", "Subject SD Days"], zeta=[-root, -1.0, 1.0, root])
    table = sleep.profile_ci()
    for name in ("Days", "Subject SD Days"):
        mine = points[points.parameter == name]
        assert list(mine.zeta) == pytest.approx([-root, -1.0, 0.0, 1.0, root])
        assert (np.diff(mine.value) > 0).all()
        assert mine.value.iloc[[2, 0, 4]].to_list() == pytest.approx(table.loc[name, ["estimate", "lower", "upper"]])
    batch = lme.lmer("strength ~ 1 + (1 | batch/cask)", datasets.load("pastes"))
    ends = batch.profile("batch SD (Intercept)")
    without = lme.lmer("strength ~ 1 + (1 | batch:cask)", datasets.load("pastes"))
    assert ends.value.iloc[0] == 0.0
    assert ends.zeta.iloc[0] == pytest.approx(-np.sqrt(without.deviance - batch.deviance), abs=1e-5)


def test_one_method_for_all_intervals(sleep):
    table = sleep.profile_ci("all")
    pd.testing.assert_frame_equal(
        sleep.conf_int(method="profile", which="all"), table[["lower", "upper"]].set_axis([0, 1], axis=1)
    )
    squares = table.loc["Subject SD Days", ["estimate", "lower", "upper"]] ** 2
    assert list(table.loc["Subject Days Var", ["estimate", "lower", "upper"]]) == pytest.approx(list(squares))
    wald = sleep.conf_int(which=["fixed", "Residual SD"])
    np.testing.assert_allclose(wald.iloc[:2], sleep.conf_int(), rtol=1e-12)
    row = sleep.covariance_parameters.set_index(["grp", "parameter"]).loc[("Residual", "SD")]
    half = 1.959963984540054 * row["se"] / row["estimate"]
    assert list(wald.loc["Residual SD"]) == pytest.approx(row["estimate"] * np.exp([-half, half]))
    drawn = sleep.conf_int(method="bootstrap", n=60, seed=1, progress=False)
    assert list(drawn.columns) == [0, 1] and "Days" in drawn.index
    assert sleep.profile_ci("Days", level=0.5).loc["Days", "lower"] > table.loc["Days", "lower"]


def test_units_do_not_matter(sleep):
    data = datasets.load("sleepstudy")
    scaled = data.assign(Reaction=1e-9 * data.Reaction, Days=1e6 * data.Days)
    fit = lme.lmer("Reaction ~ Days + (Days | Subject)", scaled, reml=False)
    # The order of profile_ci: two fixed effects, two standard deviations, their correlation, σ.
    unit = np.array([1e-9, 1e-15, 1e-9, 1e-15, 1.0, 1e-9])[:, None]
    columns = ["estimate", "lower", "upper"]
    np.testing.assert_allclose(fit.profile_ci()[columns] / unit, sleep.profile_ci()[columns], rtol=1e-6)
    small = lme.lmer("Yield ~ 1 + (1 | Batch)", datasets.load("dyestuff").assign(Yield=lambda d: 1e-9 * d.Yield))
    assert list(small.profile_ci()["note"]) == ["", ""]


def test_refusals(sleep):
    reml = sleep.update(reml=True)
    assert "Days" not in reml.profile_ci().index
    with pytest.raises(DataError, match="no likelihood of the fixed effects"):
        reml.profile_ci("Days")
    with pytest.raises(DataError, match=r"nor a parameter: .*Residual SD"):
        sleep.profile_ci("sigma")
    with pytest.raises(DataError, match="2 weights"):
        sleep.profile_ci({"c": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match="must ascend"):
        sleep.profile_ci({"c": (share_of_h, 1, 0)})
    with pytest.raises(DataError, match="'wald', 'profile' or 'bootstrap'"):
        sleep.conf_int(method="exact")
    with pytest.raises(DataError, match="takes no n"):
        sleep.conf_int(method="profile", n=3)


def test_structures_have_limits():
    """Of AR(1) effects the range and ρ are one parameter; the rise at their limits is that of a fit with it held."""
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"g": np.repeat(np.arange(15), 8), "t": np.tile(np.repeat(np.arange(4), 2), 15)})
    root = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
    frame["y"] = (rng.normal(size=(15, 4)) @ root.T)[frame.g, frame.t] + 0.5 * rng.normal(size=120)
    frame["t"] = frame["t"].astype(str)
    fit = lme.lmer("y ~ 1 + ar1(0 + t | g)", frame)
    table = fit.profile_ci()
    assert list(table.index) == ["g SD", "g ρ", "Residual SD"]
    same = np.equal.outer(frame.g.to_numpy(), frame.g.to_numpy())
    apart = np.abs(np.subtract.outer(frame.t.astype(int).to_numpy(), frame.t.astype(int).to_numpy()))

    def dense(log_sd, rho, log_sigma):
        V = same * np.exp(2 * log_sd) * rho**apart + np.exp(2 * log_sigma) * np.eye(120)
        one = np.linalg.solve(V, np.ones(120))
        r = frame.y.to_numpy() - one @ frame.y / one.sum()
        return np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r) + np.log(one.sum()) + 119 * np.log(2 * np.pi)

    for limit in table.loc["g ρ", ["lower", "upper"]]:
        rise = least(lambda z, v=limit: dense(z[0], v, z[1]), np.log([0.9, 0.5])) - fit.deviance
        assert rise == pytest.approx(CUT, abs=2e-6)
