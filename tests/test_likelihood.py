"""ℓ, score and Hessian at any parameters, of every kind of design and scale, against plain dense formulas."""

import numpy as np
import pytest
from oracles import lindstrom_bates

import lme_jax as lme
from lme_jax.core import likelihood
from lme_jax.core.covariance import n_theta
from lme_jax.errors import DataError

DESIGNS = {
    "one factor": "y ~ x + (x | a)",
    "two terms": "y ~ x + (1 | a) + (0 + x | a)",
    "nested": "y ~ x + (x | a) + (1 | a:b)",
    "crossed": "y ~ x + (x | a) + (1 | c)",
    "crossed slopes": "y ~ x + (1 | a) + (x | c)",
    "chain and crossed": "y ~ x + (1 | a) + (1 | a:b) + (1 | c)",
}
SCALES = ["natural", "profile", "sqrt"]
# The designs are small and the points random: whether a fit is singular does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore::lme_jax.errors.SingularFitWarning")


def rows(seed=3, n=80):
    import pandas as pd

    rng = np.random.default_rng(seed)
    data = pd.DataFrame(
        {"a": rng.integers(0, 7, n), "b": rng.integers(0, 3, n), "c": rng.integers(0, 5, n), "x": rng.normal(3, 2, n)}
    )
    data["y"] = 10 + data.x + rng.normal(size=7)[data.a] + rng.normal(size=5)[data.c] + rng.normal(size=n)
    data["w"] = rng.uniform(0.5, 2.0, n)
    return data


def model(name, reml=True):
    return lme.lmer(DESIGNS[name], rows(), reml=reml, weights="w")._data


def point(data, scale, seed=1):
    """Parameters away from the optimum, on the named scale."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0.3, 1.2, n_theta(data.template))
    packed = np.concatenate([[9.0, 1.3], theta, [1.7]])
    return lme.convert_params(packed, "sqrt", scale, n_fixed=2, template=data.template)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", DESIGNS)
def test_equals_the_dense_oracle(name, scale, reml):
    data = model(name)
    params = point(data, scale)
    for given in [params] if scale == "natural" else [params, params[:-1]]:
        found = likelihood.score_and_hessian(given, data.compressed, scale=scale, reml=reml)
        value, score, hessian = lindstrom_bates.derivatives(given, data, scale, reml)
        assert found.value == pytest.approx(value, abs=1e-9)
        assert likelihood.loglike(given, data.compressed, scale=scale, reml=reml) == pytest.approx(value, abs=1e-9)
        size = np.abs(hessian).max()
        np.testing.assert_allclose(found.score, score, rtol=1e-9, atol=1e-10 * size)
        np.testing.assert_allclose(found.hessian, hessian, rtol=1e-9, atol=1e-10 * size)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["one factor", "crossed slopes"])
def test_derivatives_are_those_of_the_value(name, scale):
    data = model(name).compressed
    x = point(model(name), scale)
    found = likelihood.score_and_hessian(x, data, scale=scale)

    def slope(f):
        steps = 1e-4 * np.eye(len(x))
        return np.array([(8 * (f(x + s) - f(x - s)) - (f(x + 2 * s) - f(x - 2 * s))) / 12e-4 for s in steps])

    # Fourth-order differences with h = 1e-4: rounding 1e-13/1e-4 and h⁴.
    np.testing.assert_allclose(slope(lambda v: likelihood.loglike(v, data, scale=scale)), found.score, atol=1e-7)
    numeric = slope(lambda v: likelihood.score_and_hessian(v, data, scale=scale).score)
    np.testing.assert_allclose(numeric, found.hessian, atol=1e-6 * np.abs(found.hessian).max())


@pytest.mark.parametrize("name", ["one factor", "nested", "crossed"])
def test_a_singular_covariance_has_derivatives(name):
    data = model(name)
    params = point(data, "profile")
    # Nothing of the second factor, or of the slope's own variance.
    params[2:-1] = [0.8, 0.0, 0.0, *params[5:-1]]
    found = likelihood.score_and_hessian(params, data.compressed, scale="profile")
    value, score, hessian = lindstrom_bates.derivatives(params, data, "profile", True)
    assert found.value == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(found.score, score, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(found.hessian, hessian, rtol=1e-8, atol=1e-9 * np.abs(hessian).max())


@pytest.mark.parametrize("name", ["crossed", "crossed slopes"])
def test_the_engine_of_large_designs_tells_the_same(name, monkeypatch):
    data = model(name)
    params = point(data, "natural")
    small = likelihood.score_and_hessian(params, data.compressed)
    monkeypatch.setattr(likelihood, "EXACT", 0)
    monkeypatch.setattr("lme_jax.core.crossed.SMALL", 0)
    large = likelihood.score_and_hessian(params, data.compressed)
    assert type(likelihood.engine(data.compressed)).__name__ != "Small"
    np.testing.assert_allclose(large.hessian, small.hessian, rtol=1e-9, atol=1e-9 * np.abs(small.hessian).max())


def test_the_fit_is_where_the_score_is_zero():
    result = lme.lmer("y ~ x + (x | a) + (1 | c)", rows(), reml=False)
    params = np.concatenate([result.fe_params, result.theta, [result.scale]])
    found = lme.score_and_hessian(params, result._data.compressed, scale="sqrt", reml=False)
    assert found.value == pytest.approx(result.llf, abs=1e-9)
    step = np.linalg.lstsq(found.hessian, found.score, rcond=None)[0]
    assert abs(found.score @ step) < 1e-8


@pytest.mark.parametrize("source", SCALES)
@pytest.mark.parametrize("target", SCALES)
def test_scales_are_bijections(source, target):
    data = model("crossed")
    options = {"n_fixed": 2, "template": data.template}
    params = point(data, source)
    there = lme.convert_params(params, source, target, **options)
    np.testing.assert_allclose(lme.convert_params(there, target, source, **options), params, rtol=1e-10)
    J = lme.params_jacobian(params, source, target, **options)
    back = lme.params_jacobian(there, target, source, **options)
    np.testing.assert_allclose(J @ back, np.eye(len(params)), atol=1e-10)
    steps = 1e-5 * np.eye(len(params))
    numeric = [
        (
            lme.convert_params(params + s, source, target, **options)
            - lme.convert_params(params - s, source, target, **options)
        )
        / 2e-5
        for s in steps
    ]
    np.testing.assert_allclose(J, np.array(numeric).T, atol=1e-8)


class TestRefusals:
    def test_another_length(self):
        with pytest.raises(DataError, match="give 2 fixed effects, 3 covariance parameters"):
            lme.loglike(np.ones(3), model("one factor").compressed)

    def test_no_covariance(self):
        with pytest.raises(DataError, match="positive semidefinite"):
            lme.loglike([9.0, 1.0, 1.0, 2.0, 1.0, 1.0], model("one factor").compressed)

    def test_no_variance(self):
        with pytest.raises(DataError, match="must be positive"):
            lme.loglike([9.0, 1.0, 1.0, 0.0, 1.0, -1.0], model("one factor").compressed, scale="profile")

    def test_unknown_scale(self):
        with pytest.raises(DataError, match="'natural', 'profile', 'sqrt'"):
            lme.loglike([9.0, 1.0, 1.0, 0.0, 1.0, 1.0], model("one factor").compressed, scale="Ψ")

    def test_the_root_of_a_singular_covariance_has_no_slope(self):
        data, packed = model("one factor"), [9.0, 1.0, 1.0, 0.0, 0.0, 1.0]
        with pytest.raises(DataError, match="singular"):
            lme.params_jacobian(packed, "profile", "sqrt", n_fixed=2, template=data.template)
