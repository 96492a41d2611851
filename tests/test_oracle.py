"""The judge judged: the multistart oracle against dense algebra, its own derivatives, and what others found."""

import numpy as np
import pytest

import lme_jax as lme
from tests.oracles import crossings, dense, designs, multistart, several, templates

# What was recorded as best is itself a local optimum: the oracle goes below it (lme4 too for q2few3_50).
IMPROVED = {"q2_64": 151.76823, "q2few3_50": 92.15484}
# Recorded to fewer digits than a deviance has here, or at a θ that was not quite the optimum.
RECORDED_TO = {"q1_10": 1e-6, "q2_91": 1e-5, "q2single_88": 1e-6, "centred_1_2": 1e-4, "centred_3_0": 1e-4}
CASES = designs.hard_cases()


def random_theta(problem, lanes, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([templates.random_theta(problem.template, rng, -1, 1) for _ in range(lanes)])


@pytest.mark.parametrize("shape", designs.SHAPES)
def test_deviance_is_that_of_the_dense_covariance(shape):
    design = designs.draw(shape, 1).design
    problem = multistart.prepare(design)
    for scaled in random_theta(problem, 2):
        theta = templates.to_lme_jax(scaled / problem.scale, problem.template)
        dense = multistart.dense_deviance(design, theta)
        assert multistart.deviance(theta, problem) == pytest.approx(dense, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("shape", ["us1", "us3", "diag3", "ident2", "cs3", "ar3", "two3", "curve"])
@pytest.mark.parametrize("reml", [True, False])
def test_derivatives_are_those_of_differences(shape, reml):
    problem = multistart.prepare(designs.draw(shape, 3).design._replace(reml=reml))
    theta = random_theta(problem, 1)
    point = multistart.evaluate(theta, problem)
    steps = 1e-5 * np.eye(theta.shape[1])
    up, down = (multistart.evaluate(theta + sign * steps, problem) for sign in (1, -1))
    slope, curve = (up.value - down.value) / 2e-5, (up.gradient - down.gradient) / 2e-5
    np.testing.assert_allclose(point.gradient[0], slope, atol=1e-5 * max(1, np.abs(slope).max()))
    np.testing.assert_allclose(point.hessian[0], curve, atol=1e-5 * max(1, np.abs(curve).max()))


@pytest.mark.parametrize("name", CASES)
def test_hard_cases_reach_the_best_known_optimum(name):
    best = IMPROVED.get(name, CASES[name]["best_m2ll"])
    found = multistart.solve(designs.hard_design(name))
    assert found.deviance == pytest.approx(best, abs=RECORDED_TO.get(name, 1e-6 * (1 + abs(best))))
    assert multistart.dense_deviance(designs.hard_design(name), found.theta) == pytest.approx(found.deviance, rel=1e-9)
    assert found.curvature > -1e-6
    assert len(found.local) > 1


@pytest.mark.parametrize("name", IMPROVED)
def test_improved_cases_lie_below_what_was_recorded(name):
    assert multistart.solve(designs.hard_design(name)).deviance < CASES[name]["best_m2ll"] - 0.1


def test_centred_growth_curve_has_the_optimum_that_lme4_finds():
    """lme4: 240.59 at θ = (9.77, 3.70); lme_jax 0.1: 334.99 at (0, 0.16)."""
    found = multistart.solve(designs.centred(2, slope=3.0))
    assert found.deviance == pytest.approx(240.59, abs=0.01)
    np.testing.assert_allclose(found.theta, [9.77, 3.70], atol=0.01)
    assert found.local[1] == pytest.approx(334.99, abs=0.01)


@pytest.mark.parametrize("shape", ["us2", "diag3", "cs2", "two2", "us2single"])
def test_other_starts_find_nothing_better(shape):
    for seed in range(4):
        design = designs.draw(shape, seed).design
        first, again = (multistart.solve(design, seed=s).deviance for s in (0, 1))
        assert first == pytest.approx(again, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("theta", [[10.0, 3.0, 2.0], [1e3, -1e3, 1e2]])
def test_digits_survive_weights_over_12_decades_and_an_offset(theta):
    design = designs.draw("us2single", 0).design
    weights = 10.0 ** np.random.default_rng(0).uniform(-6, 6, len(design.y))
    design = design._replace(weights=weights, y=design.y + 1e8, X=np.ones((len(weights), 1)))
    dense = multistart.dense_deviance(design, np.array(theta))
    assert multistart.deviance(np.array(theta), multistart.prepare(design)) == pytest.approx(dense, rel=1e-11)


@pytest.mark.parametrize("structure", templates.STRUCTURES)
def test_theta_is_packed_as_lme_jax_packs_it(structure):
    drawn = next(d for d in (designs.draw("us3", seed) for seed in range(50)) if d.benign)
    design = drawn.design._replace(structure=structure)
    y, X, Z, codes, weights, offset, _, reml = design
    theta = np.random.default_rng(0).normal(size=templates.n_theta(((structure, 3),)))
    data = lme.compress(y, X, Z, codes, weights=weights, offset=offset, structure=structure)
    dense = multistart.dense_deviance(design, theta)
    assert float(lme.deviance(theta, data, reml=reml)) == pytest.approx(dense, rel=1e-9)


# ---------------------------------------------------------------- any design


def tame(shape):
    """The first design of a shape whose weights and columns leave plain double precision its digits."""
    drawn = next(d for d in (crossings.draw(shape, seed) for seed in range(99)) if d.benign and d.traits["y"] == "one")
    return drawn.design


def some_theta(model, seed=0):
    problem = several.prepare(model)
    return templates.random_theta(problem.template, np.random.default_rng(seed), -1, 1) / problem.scale


def differences(f, x, h):
    """(k, …) derivatives of order h⁴."""

    def central(step):
        return (f(x + step) - f(x - step)) / (2 * np.abs(step).max())

    return np.array([(4 * central(step) - central(2 * step)) / 3 for step in np.diag(h)])


@pytest.mark.parametrize("shape", ["crossed3", "nested_terms", "members_slopes", "related_slopes"])
@pytest.mark.parametrize("reml", [True, False])
def test_dense_oracle_equals_henderson(shape, reml):
    """The same numbers from the mixed-model equations, in plain double precision, which never form V."""
    model = tame(shape)._replace(reml=reml)
    theta = some_theta(model)
    found, D = dense.at(theta, model), dense.prior(dense.covariances(theta, model), model).astype(float)
    (n, p), w = model.X.shape, np.ones(len(model.y)) if model.weights is None else model.weights
    y = model.y if model.offset is None else model.y - model.offset
    W = np.column_stack([model.X, dense.all_columns(model)])
    C = W.T @ (w[:, None] * W)
    C[p:, p:] += np.linalg.inv(D)
    estimates = np.linalg.solve(C, W.T @ (w * y))
    rss, dof = y @ (w * (y - W @ estimates)), n - p * reml
    log_det = np.linalg.slogdet(C[p:, p:])[1] + np.linalg.slogdet(D)[1] - np.log(w).sum()
    log_x = np.linalg.slogdet(C)[1] - np.linalg.slogdet(C[p:, p:])[1]
    expected = log_det + reml * log_x + dof * (1 + np.log(2 * np.pi * rss / dof))
    assert found.deviance == pytest.approx(expected, rel=1e-10)
    assert found.sigma**2 == pytest.approx(rss / dof, rel=1e-8)
    np.testing.assert_allclose(np.concatenate([found.beta, *map(np.ravel, found.b)]), estimates, rtol=1e-6, atol=1e-8)
    joint = found.sigma**2 * np.linalg.inv(C)
    np.testing.assert_allclose(found.joint_cov, joint, rtol=1e-6, atol=1e-8 * np.abs(joint).max())
    fixed = found.sigma**2 * np.linalg.inv(C[p:, p:])
    for block, span, factor in zip(found.conditional_cov, dense.spans(model), model.factors, strict=True):
        q = factor.Z.shape[1]
        blocks = [fixed[span, span][i : i + q, i : i + q] for i in range(0, factor.m * q, q)]
        np.testing.assert_allclose(block, blocks, rtol=1e-6, atol=1e-8 * np.abs(fixed).max())


@pytest.mark.parametrize("shape", crossings.SHAPES)
def test_dense_derivatives_are_those_of_differences(shape):
    model = tame(shape)
    theta = some_theta(model)
    found, h = dense.at(theta, model), 1e-3 * np.maximum(np.abs(theta), 0.1 / several.prepare(model).scale)
    size = max(1.0, np.abs(found.hessian * np.outer(h, h)).max() * 1e6)
    slope = differences(lambda t: dense.deviance(t, model), theta, h)
    curve = differences(lambda t: dense.gradient_and_hessian(t, model)[0], theta, h)
    np.testing.assert_allclose(found.gradient * h * 1e3, slope * h * 1e3, rtol=1e-8, atol=1e-8 * size)
    np.testing.assert_allclose(found.hessian * np.outer(h, h) * 1e6, curve * np.outer(h, h) * 1e6, atol=1e-8 * size)
    log_scale = differences(lambda t: 2 * np.log(dense.at(t, model).sigma), theta, h)
    np.testing.assert_allclose(found.log_scale_slope * h, log_scale * h, atol=1e-11)


@pytest.mark.parametrize("shape", crossings.SHAPES)
@pytest.mark.parametrize("seed", [1, 2])
def test_searched_deviance_is_that_of_the_dense_covariance(shape, seed):
    model = crossings.draw(shape, seed).design
    problem = several.prepare(model)
    theta = some_theta(model, seed)
    found, expected = problem.evaluate(theta[None] * problem.scale), dense.at(theta, model)
    assert found.value[0] == pytest.approx(expected.deviance, rel=1e-10, abs=1e-10)
    unit = np.outer(problem.scale, problem.scale)
    size = max(1.0, np.abs(expected.hessian / unit).max())
    np.testing.assert_allclose(found.gradient[0], expected.gradient / problem.scale, atol=1e-8 * size)
    np.testing.assert_allclose(found.hessian[0], expected.hessian / unit, atol=1e-8 * size)


@pytest.mark.parametrize("shape", ["us2", "diag3", "two3"])
def test_one_factor_and_any_design_have_one_optimum(shape):
    design = next(d.design for d in (designs.draw(shape, seed) for seed in range(99)) if d.benign)
    both = [multistart.solve(design), multistart.solve(several.prepare(multistart.model_of(design)))]
    assert both[0].deviance == pytest.approx(both[1].deviance, rel=1e-9, abs=1e-9)


def test_optimum_of_penicillin_is_lme4s():
    """tests/reference/lmer.json."""
    data = lme.datasets.load("Penicillin")
    one = np.ones((len(data), 1))
    codes = [np.unique(data[name], return_inverse=True)[1] for name in ("plate", "sample")]
    factors = tuple(dense.Factor(one, c, c.max() + 1) for c in codes)
    model = dense.Model(data["diameter"].to_numpy(float), one, factors)
    found = multistart.solve(several.prepare(model))
    assert found.deviance == pytest.approx(330.860588991087, rel=1e-12)
    sigma = dense.at(found.theta, model).sigma
    sds = [0.846704323915325, 1.93155840691217, 0.549923139132277]
    np.testing.assert_allclose([*(found.theta * sigma), sigma], sds, rtol=1e-6)
