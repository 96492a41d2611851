"""The judge judged: the multistart oracle against dense algebra, its own derivatives, and what others found."""

import numpy as np
import pytest
from dense import dense_fit

import lme_jax as lme
from tests.oracles import designs, multistart, templates

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


@pytest.mark.parametrize("reml", [True, False])
def test_long_double_and_plain_dense_algebra_agree(reml):
    design = designs.centred(3)._replace(reml=reml)
    theta = np.array([2.0, 0.7])
    dense = dense_fit(design.y, design.X, design.Z, design.codes, 9, np.diag(theta), reml=reml)
    assert multistart.dense_deviance(design, theta) == pytest.approx(dense.deviance, rel=1e-11)


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
