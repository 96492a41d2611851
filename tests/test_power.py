"""Power by simulation: against closed forms of balanced designs, and lane by lane against single fits."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import lme_jax
from lme_jax import datasets
from lme_jax.errors import DataError, UnsupportedError
from lme_jax.inference import lane_degrees
from lme_jax.many.power import _hypothesis, _tested, clopper_pearson


def growth(m: int = 10, t: int = 5) -> pd.DataFrame:
    rows = [(s, "ab"[s % 2], float(time)) for s in range(m) for time in range(t)]
    return pd.DataFrame(rows, columns=["subject", "arm", "time"])


def oats() -> Any:
    frame = datasets.load("Oats")
    return frame.assign(level=frame.nitro.map(str))


DESIGNS: dict[str, Any] = {
    "slopes": lambda: lme_jax.lmer("Reaction ~ Days + (Days | Subject)", datasets.load("sleepstudy")),
    "diagonal": lambda: lme_jax.lmer("Reaction ~ Days + (Days || Subject)", datasets.load("sleepstudy")),
    "unlike levels": lambda: lme_jax.lmer("distance ~ age * Sex + (age | Subject)", datasets.load("Orthodont")[3:]),
    "nested": lambda: lme_jax.lmer("yield ~ level * Variety + (1 | Block/Variety)", oats()[2:]),
    "crossed": lambda: lme_jax.lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", datasets.load("Penicillin")),
    "weights": lambda: lme_jax.lmer(
        "Reaction ~ Days + (1 | Subject)", datasets.load("sleepstudy").assign(w=lambda d: 1 + d.Days % 3), weights="w"
    ),
    "compound symmetry": lambda: lme_jax.lmer("score ~ Machine + cs(0 + Machine | Worker)", datasets.load("Machines")),
}


@pytest.mark.filterwarnings("ignore::lme_jax.errors.LmeJaxWarning")
@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("reml", [True, False])
def test_degrees_of_freedom_of_lanes(name: str, reml: bool) -> None:
    """Those of a single fit of each response, singular ones among them; and the p-values of one and of several rows."""
    fit = DESIGNS[name]()
    fit = fit if reml else fit.update(reml=False)
    Y = fit.simulate(12, seed=5)
    many = fit.refit_many(Y, progress=False)
    p, dof = fit.k_fe, float(fit.nobs - (fit.k_fe if reml else 0))
    rows = [np.eye(p)[[j]] for j in range(p)] + ([np.eye(p)[1:]] if p > 2 else [])
    found = [lane_degrees.lane_tests(many.fit, fit._data, L, np.zeros(len(L)), dof) for L in rows]
    for number in range(5):
        one = many.one(Y.columns[number])
        for L, pvalues in zip(rows, found, strict=True):
            assert pvalues[number] == pytest.approx(one.test(L, ddf="satterthwaite").pvalue, rel=1e-7)


def test_tests_in_the_lanes_are_those_of_single_fits() -> None:
    fit = DESIGNS["nested"]()
    Y = fit.simulate(3, seed=2)
    asked = _hypothesis("Variety", fit._data)
    assert asked.L.shape == (2, 12)
    lrt = _tested(fit._data, Y.to_numpy(), asked, "lrt", True)
    wald = _tested(fit._data, Y.to_numpy(), asked, "z", True)
    for number in range(3):
        own = fit.refit(Y[number])
        assert wald[number] == pytest.approx(own.wald_test(asked.L).pvalue, rel=1e-7)
        frame = oats()[2:].assign(y=Y[number])
        large = lme_jax.lmer("y ~ level * Variety + (1 | Block/Variety)", frame, reml=False)
        small = lme_jax.lmer("y ~ level + level:Variety + (1 | Block/Variety)", frame, reml=False)
        # The columns of Variety itself are left out: with level:Variety beside them the model is another than "small".
        assert small.k_fe == large.k_fe
        data = fit._data.columns(np.setdiff1d(np.arange(12), asked.columns)).with_response(Y[number].to_numpy())
        gap = lme_jax.fit(data.compressed, reml=False).deviance - large.deviance
        assert lrt[number] == pytest.approx(scipy.stats.chi2.sf(gap, 2), rel=1e-5)


def test_power_and_type_1_error_of_a_balanced_design() -> None:
    """Slopes within subjects: t with m − 1 degrees of freedom, noncentral under the alternative, exactly."""
    cov = np.array([[4.0, 0.3], [0.3, 0.8]])
    model = lme_jax.design("~ time + (time | subject)", growth(), beta=[5.0, 0.9], cov=cov, sigma=0.5)
    curve = lme_jax.power(model, "time", 4000, sizes=[5, 10, 20], type1=True, level=0.999, seed=11, progress=False)
    for line in curve.table.itertuples():
        variance = (cov[1, 1] + 0.25 / 10.0) / line.size
        np.testing.assert_allclose(variance, 10 * model.cov_fe.loc["time", "time"] / line.size, rtol=1e-9)
        critical = scipy.stats.t.isf(0.025, line.size - 1)
        shifted = scipy.stats.nct(line.size - 1, 0.9 / np.sqrt(variance))
        exact = float(shifted.sf(critical) + shifted.cdf(-critical))
        assert line.lower < exact < line.upper
        assert line.type1_lower < 0.05 < line.type1_upper
        assert line.n_rows == 5 * line.size and line.failed <= 4
    again = lme_jax.power(model, "time", 4000, sizes=[10], seed=11, progress=False)
    assert again.table["power"][0] == curve.table["power"][1]
    assert "Satterthwaite" in repr(curve)


def test_type_1_error_where_factors_cross_and_where_groups_are_compared() -> None:
    """A treatment between 8 subjects, who all meet 6 items: rejections at 5 % are 5 %; of z they are more."""
    rows = [(s, i, "ab"[s % 2]) for s in range(8) for i in range(6)]
    frame = pd.DataFrame(rows, columns=["subject", "item", "arm"])
    cov = {"subject": 4.0, "item": 2.0}
    model = lme_jax.design("~ arm + (1 | subject) + (1 | item)", frame, beta=[0.0, 0.0], cov=cov, sigma=1.0)
    curve = lme_jax.power(model, "arm", 1500, along="subject", level=0.999, seed=3, progress=False)
    assert curve.table["lower"][0] < 0.05 < curve.table["upper"][0]
    naive = lme_jax.power(model, "arm", 1500, along="subject", method="z", level=0.999, seed=3, progress=False)
    assert naive.table["lower"][0] > 0.05
    larger = lme_jax.power(model, "armb", 40, along="subject", effect=6.0, sizes=[16], seed=3, progress=False)
    assert larger.table["n_rows"][0] == 96 and larger.table["power"][0] > 0.9


def test_limits_of_a_proportion() -> None:
    """Against scipy, which finds them as roots to 1e-11."""
    for x, n in ((0, 20), (3, 20), (20, 20)):
        own = scipy.stats.binomtest(x, n).proportion_ci(0.9, method="exact")
        np.testing.assert_allclose(clopper_pearson(x, n, 0.9), [own.low, own.high], rtol=1e-10)


def test_a_design_before_there_are_data() -> None:
    cov = [[4.0, 0.3], [0.3, 0.8]]
    frame = growth(400)
    named = {"(Intercept)": 5.0, "armb:time": 0.7}
    model = lme_jax.design("y ~ arm * time + (time | subject)", frame, beta=named, cov={"subject": cov}, sigma=0.5)
    assert model.fe_params.tolist() == [5.0, 0.0, 0.0, 0.7] and "y" not in frame
    Y = model.simulate(1, seed=4)
    fit = lme_jax.lmer("y ~ arm * time + (time | subject)", frame.assign(y=Y[0]))
    assert (np.abs(fit.fe_params - model.fe_params) < 4 * fit.bse_fe).all()
    assert (np.abs(fit.varcorr.vcov[[0, 2, 1]].to_numpy() - [4.0, 0.3, 0.8]) < 4 * fit.bse_re.to_numpy()).all()
    # Of 400 subjects a variance has a relative standard error of √(2/400) = 7 %: four times that.
    np.testing.assert_allclose(fit.cov_fe, model.cov_fe, rtol=0.3, atol=1e-4)


def test_mistakes_are_explained() -> None:
    frame, cov = growth(), np.eye(2)
    good: dict[str, Any] = dict(beta=[0.0, 1.0], cov=cov, sigma=1.0)
    model = lme_jax.design("~ time + (time | subject)", frame, **good)

    def curve(*args: Any, **options: Any) -> Any:
        return lme_jax.power(model, *args, seed=1, progress=False, **options)

    def build(**changes: Any) -> Any:
        return lme_jax.design("~ time + (time | subject)", frame, **(good | changes))

    mistakes = [
        (lambda: lme_jax.power(frame, "time", seed=1), "not DataFrame"),
        (lambda: curve("times"), "cannot read the hypothesis"),
        (lambda: curve("time", 0), "whole number"),
        (lambda: curve("time", method="kr"), "unknown"),
        (lambda: curve("time", alpha=5), "between 0 and 1"),
        (lambda: curve("time", along="arm"), "no grouping factor"),
        (lambda: curve("time", sizes=[1]), "2 or more"),
        (lambda: curve("time", effect={"x": 1}), "effect names"),
        (lambda: curve("time - 1", method="lrt"), "coefficients are zero"),
        (lambda: build(beta=[1.0]), "2 finite numbers"),
        (lambda: build(beta={"x": 1.0}), "beta names"),
        (lambda: build(cov={"item": cov}), "of each of subject"),
        (lambda: build(cov=[[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue"),
        (lambda: build(cov=[[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (lambda: build(sigma=0.0), "> 0"),
    ]
    for call, message in mistakes:
        with pytest.raises(DataError, match=message):
            call()
    wide = pd.DataFrame({"a": np.arange(4000) % 400, "b": np.arange(4000) % 301, "x": np.arange(4000) % 7.0})
    large = lme_jax.design("~ x + (1 | a) + (1 | b)", wide, beta=[0, 0], cov={"a": 1.0, "b": 1.0}, sigma=1.0)
    with pytest.raises(UnsupportedError, match="method='z'"):
        lane_degrees.level_sums(large._data)


def test_coefficients_of_many_fits() -> None:
    """Those of single fits: complete responses together, incomplete ones and data sets one by one; adjusted by term."""
    fit = DESIGNS["slopes"]()
    Y = fit.simulate(6, seed=8)
    Y.iloc[3, 1] = np.nan
    many = fit.refit_many(Y, progress=False)
    for ddf in (None, "kenward-roger", "residual", "normal"):
        found = many.coefficients(ddf)
        single = pd.concat([many.one(name).coefficients(ddf) for name in Y], ignore_index=True)
        pd.testing.assert_frame_equal(found[list(single)], single, rtol=1e-7)
    assert found["response"].tolist() == np.repeat(np.arange(6), 2).tolist() and set(found["term"]) == set(
        fit.fe_params.index
    )
    p, adjusted = many.coefficients()["p"].to_numpy(), many.coefficients(p_adjust="fdr")["p"].to_numpy()
    np.testing.assert_allclose(adjusted[1::2], scipy.stats.false_discovery_control(p[1::2]), rtol=1e-12)
    sets = lme_jax.lmer_many("Weight ~ Time + (1 | Pig)", datasets.load("dietox"), by="Cu", progress=False)
    single = pd.concat([sets.one(name).coefficients() for name in sets.names], ignore_index=True)
    pd.testing.assert_frame_equal(sets.coefficients()[list(single)], single, rtol=1e-7)
    with pytest.raises(DataError, match="of p-values alone"):
        many.coefficients(p_adjust="mvt")
