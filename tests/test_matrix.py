"""Every engine × what computes × units of the data × everything that is read off a fit, against the dense oracle.

The grid is generated: an engine is one line in ENGINES, a quantity one function in QUANTITIES.
"""

import contextlib
import functools
import warnings
from typing import NamedTuple

import numpy as np
import pytest

import lme_jax as lme
from lme_jax.core import crossed
from lme_jax.core.compression import GroupData
from lme_jax.core.crossed_data import CrossedData, NestedData
from lme_jax.core.fit import fit_at
from tests import judge
from tests.oracles import crossings, dense, multistart, several, templates


class Engine(NamedTuple):
    """Factors of a design as ``crossings`` spells them, and the statistics that it must be compressed to."""

    factors: str
    templates: tuple
    data: type
    large: bool = False
    balanced: bool = False
    related: bool = False


ONE, SLOPES = crossings.ONE, crossings.SLOPES
TERMS = (("unstructured", 2), ("unstructured", 1))
ENGINES = {
    "one factor, pooled": Engine("A", (ONE,), GroupData, balanced=True),
    "one factor, irregular": Engine("A", (TERMS,), GroupData),
    "one factor, related": Engine("A", (ONE,), GroupData, related=True),
    "nested": Engine("Ab", (SLOPES, ONE), NestedData, large=True),
    "nested of three": Engine("Abc", (ONE, ONE, ONE), NestedData, large=True),
    "crossed, small": Engine("AB", (SLOPES, ONE), CrossedData),
    "crossed, dense": Engine("AB", (TERMS, ONE), CrossedData, large=True),
    "nested and crossed": Engine("AbC", (ONE, ONE, SLOPES), CrossedData, large=True),
}
# Designs whose batches may lack rows.
MISSING = ("one factor, pooled", "one factor, irregular")
# Units of y, of the columns of Z, and what is added to y.
UNITS = {"one": (1.0, 1.0, 0.0), "large": (1e6, 1e-6, 0.0), "small": (1e-6, 1e6, 0.0), "far": (1.0, 1.0, 1e6)}


def design(name, units="one", reml=True):
    """A regular, identified design of an engine; effects of the residuals' size, weights and an offset."""
    engine = ENGINES[name]
    rng = np.random.default_rng(list(name.encode()))
    codes = crossings.codes_of(engine.factors, "balanced" if engine.balanced else "random", rng)
    n, (unit, z_unit, shift) = len(codes[0]), UNITS[units]
    factors = []
    for j, (code, template) in enumerate(zip(codes, engine.templates, strict=True)):
        Z = np.column_stack([np.ones(n), rng.normal(size=(n, sum(q for _, q in template) - 1))])
        factors.append(dense.Factor(z_unit * Z, code, int(code.max()) + 1, template, name=f"f{j}"))
    if engine.related:
        factors = crossings.with_extra(factors, "related", rng)
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    weights = None if engine.balanced else rng.uniform(0.5, 2.0, n)
    y = X @ [1.0, 2.0] + rng.normal(size=n) + shift
    y += 1.5 * sum(f.columns @ rng.normal(size=f.columns.shape[1]) / z_unit for f in factors)
    # y less an offset is rounded at once where y is far away.
    offset = rng.normal(size=n) * (shift == 0)
    return dense.Model(unit * (y + offset), X, tuple(factors), weights, unit * offset, reml)


class Case(NamedTuple):
    """A fit by the package and everything the oracle says of its θ̂."""

    name: str
    model: dense.Model
    result: lme.MixedLMResults
    oracle: dense.Dense
    scale: np.ndarray


def engine_context(name):
    return judge.large_engines() if ENGINES[name].large else contextlib.nullcontext()


def lmer(model, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lme.errors.SingularFitWarning)
        return lme.lmer(judge.formula(model), judge.frame(model), **judge.arguments(model), **more)


@functools.cache
def case(name, backend, units, reml):
    model = design(name, units, reml)
    with engine_context(name):
        result = lmer(model, backend=backend)
    assert result.backend == backend
    return Case(name, model, result, dense.at(result.fit.theta, model), several.prepare(model).scale)


# ---------------------------------------------------------------- quantities


def close(found, expected, tolerance, size=None):
    expected = np.asarray(expected)
    size = np.abs(expected).max(initial=0.0) if size is None else size
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * size)


def value(c, derivatives):
    assert c.result.deviance == pytest.approx(c.oracle.deviance, rel=1e-10, abs=1e-8)
    theta, there = aside(c)
    assert float(derivatives(theta).deviance) == pytest.approx(there.deviance, rel=1e-10, abs=1e-8)


def gradient(c, derivatives):
    theta, there = aside(c)
    size = np.abs(there.hessian / np.outer(c.scale, c.scale)).max()
    close(derivatives(theta).gradient / c.scale, there.gradient / c.scale, 1e-8, size)
    close(c.result.fit.gradient / c.scale, c.oracle.gradient / c.scale, 1e-7, size)


def hessian(c, derivatives):
    unit = np.outer(c.scale, c.scale)
    theta, there = aside(c)
    close(derivatives(theta).hessian / unit, there.hessian / unit, 1e-7)
    close(c.result.fit.hessian / unit, c.oracle.hessian / unit, 1e-6)


def aside(c):
    """A θ away from the optimum, of canonical signs, and the oracle there."""
    moved = c.result.fit.theta * c.scale + np.random.default_rng(3).normal(size=len(c.scale))
    template = tuple(block for f in c.model.factors for block in f.blocks)
    theta = templates.to_lme_jax(moved, template) / c.scale
    return theta, dense.at(theta, c.model)


def optimum(c, _):
    """No start of the oracle's leads lower; the slope there is nothing, the status a regular optimum's."""
    best = multistart.solve(several.prepare(c.model))
    assert c.oracle.deviance == pytest.approx(best.deviance, abs=1e-7 * max(1.0, abs(best.deviance)))
    assert c.result.status.name == "CONVERGED"
    assert 0.5 * c.oracle.gradient @ np.linalg.solve(c.oracle.hessian, c.oracle.gradient) < 1e-7


def estimates(c, _):
    se = c.oracle.sigma * np.sqrt(np.diag(c.oracle.unscaled_cov))
    assert c.result.sigma == pytest.approx(c.oracle.sigma, rel=1e-8)
    close((c.result.fe_params - c.oracle.beta) / se, 0 * se, 1e-7, 1.0)
    close(c.result.bse_fe, se, 1e-7)
    close(c.result.fit.log_scale_slope / c.scale, c.oracle.log_scale_slope / c.scale, 1e-7)


def blup(c, _):
    for factor, b in zip(c.model.factors, c.oracle.b, strict=True):
        close(c.result.ranef[factor.name], b, 1e-7)


def conditional_cov(c, _):
    for effects, expected in zip(c.result._random_effects, c.oracle.conditional_cov, strict=True):
        close(effects.conditional_cov[: len(expected)], expected, 1e-7)


def prediction_cov(c, _):
    for effects, expected in zip(c.result._random_effects, c.oracle.prediction_cov, strict=True):
        close(effects.prediction_cov[: len(expected)], expected, 1e-7)


def prediction(c, _):
    """Rows of known levels, and one whose levels are all new: its effects are zero, and their variance is Ψ."""
    rows = judge.frame(c.model).drop(columns="y").iloc[::-3]
    at = np.arange(len(c.model.y))[::-3]
    mean, se = dense.predict(c.oracle, c.model.X[at], dense.all_columns(c.model)[at])
    found, mean = c.result.prediction(rows), mean + c.model.offset[at]
    close((found["mean"] - mean) / se, 0 * se, 1e-6, 1.0)
    close(found["se"], se, 1e-7)
    close(c.result.predict(rows), found["mean"], 1e-12)
    if all(f.related is None for f in c.model.factors):
        new = rows.iloc[:1].assign(**{f.name: "new" for f in c.model.factors})
        expected = c.model.X[at[:1]] @ c.oracle.beta + c.model.offset[at[:1]]
        close(c.result.predict(new, allow_new_levels=True), expected, 1e-9)


def simulated(c, _):
    """(n, R) with the right covariance: rᵀV⁻¹r/σ² has mean n and variance 2n."""
    n, draws = len(c.model.y), 400
    Y = c.result.simulate(draws, seed=1).to_numpy()
    assert Y.shape == (n, draws)
    D = dense.prior(dense.covariances(c.result.fit.theta, c.model), c.model).astype(float)
    Z, w = dense.all_columns(c.model), np.ones(n) if c.model.weights is None else c.model.weights
    r = (Y.T - c.model.X @ c.oracle.beta - c.model.offset) / c.oracle.sigma
    squares = (r * np.linalg.solve(Z @ D @ Z.T + np.diag(1 / w), r.T).T).sum(1)
    assert abs(squares.mean() - n) < 5 * np.sqrt(2 * n / draws)


def lanes(c, _):
    """Batches are fits of their own, one with a missing value where there may be."""
    Y = c.result.simulate(3, seed=2).to_numpy().copy()
    if c.name in MISSING:
        Y[4, 1] = np.nan
    many = c.result.refit_many(Y, progress=False)
    for lane in range(3):
        here = ~np.isnan(Y[:, lane])
        alone = lmer(rows_of(c.model._replace(y=Y[:, lane]), here))
        assert many.fit.deviance[lane] == pytest.approx(alone.deviance, rel=1e-8, abs=1e-7)
        close((many.fit.beta[lane] - alone.fe_params) / alone.bse_fe, 0 * alone.bse_fe, 1e-5, 1.0)


def rows_of(model, here):
    """A model of some of its rows; all levels must be left some."""
    factors = tuple(f._replace(Z=f.Z[here], codes=f.codes[here]) for f in model.factors)
    assert all(len(np.unique(f.codes)) == f.m for f in factors)
    cut = [None if a is None else a[here] for a in (model.weights, model.offset)]
    return dense.Model(model.y[here], model.X[here], factors, *cut, model.reml)


QUANTITIES = (value, gradient, hessian, optimum, estimates, blup, conditional_cov, prediction_cov)
QUANTITIES = {f.__name__: f for f in (*QUANTITIES, prediction, simulated, lanes)}
# One design of every program: each compiles for seconds. What is read off a compiled fit is NumPy's again.
COMPILED_ENGINES = ("one factor, pooled", "one factor, irregular", "nested", "crossed, dense", "nested and crossed")
COMPILED = ("value", "gradient", "hessian", "optimum", "estimates", "blup")


def grid():
    """All of the above; units and ML in NumPy, where nothing is compiled."""
    for name in ENGINES:
        for quantity in QUANTITIES:
            for units in UNITS:
                yield pytest.param(
                    name, "numpy", units, units != "large", quantity, id=f"{name}-numpy-{units}-{quantity}"
                )
        for quantity in COMPILED if name in COMPILED_ENGINES else ():
            yield pytest.param(
                name, "jax", "one", True, quantity, id=f"{name}-jax-one-{quantity}", marks=pytest.mark.slow
            )


def numpy_derivatives(c, theta):
    return fit_at(theta, c.result._data.compressed, reml=c.model.reml)


def jax_derivatives(c, theta):
    import jax

    with jax.enable_x64(True):
        data = jax.tree.map(jax.numpy.asarray, c.result._data.compressed)
        return jax.tree.map(np.asarray, fit_at(jax.numpy.asarray(theta), data, reml=c.model.reml))


@pytest.mark.parametrize(("name", "backend", "units", "reml", "quantity"), list(grid()))
def test_agrees_with_the_oracle(name, backend, units, reml, quantity):
    c = case(name, backend, units, reml)
    derivatives = {"numpy": numpy_derivatives, "jax": jax_derivatives}[backend]
    with engine_context(name):
        QUANTITIES[quantity](c, functools.partial(derivatives, c))


@pytest.mark.parametrize("name", ENGINES)
def test_the_engine_is_the_one_that_is_meant(name):
    engine, data = ENGINES[name], case(name, "numpy", "one", True).result._data.compressed
    assert type(data) is engine.data
    with engine_context(name):
        if engine.data is not GroupData:
            expected = {NestedData: "Nested", CrossedData: "Dense"}[engine.data] if engine.large else "Small"
            assert type(crossed.engine_of(data)).__name__ == expected
