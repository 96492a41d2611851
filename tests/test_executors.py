"""One text, two executors: they agree; JAX comes only when it is needed; compiled programs are bounded."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from dense import random_design

import lme_jax as lme
from lme_jax.core import compression, fit, programs
from lme_jax.core.effects import _estimates, _random_effects, random_effects
from lme_jax.errors import DataError


def run(code: str, timeout: float = 120.0) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


DESIGNS = {
    "intercept": ("unstructured", dict(q=1, p=2, weighted=True), 0.0, True),
    "slope": ("unstructured", dict(q=2, p=3), 0.0, False),
    "three": ("unstructured", dict(q=3, p=2, weighted=True), 0.0, True),
    "diagonal": ("diagonal", dict(q=3, p=2, weighted=True), 0.0, False),
    "identity": ("identity", dict(q=3, p=2), 0.0, True),
    "compound": ("compound_symmetry", dict(q=3, p=2, weighted=True), 0.0, False),
    "ar1": ("ar1", dict(q=3, p=2), 0.0, True),
    "balanced": ("unstructured", dict(q=2, p=3, balanced=True, n=120, m=12), 0.0, False),
    "large": ("unstructured", dict(q=6, p=7, n=300, m=25), 0.0, True),
    "singular": ("unstructured", dict(q=2, p=2), 0.97, True),
    "singular-diagonal": ("diagonal", dict(q=2, p=2), 0.97, False),
}


def compressed(structure, shape, shrink):
    y, X, Z, codes, m, w = random_design(3, **shape)
    # Taking most of the groups' means away leaves no variance between groups: a singular fit.
    means = np.bincount(codes, y, m) / np.maximum(np.bincount(codes, minlength=m), 1)
    return compression.compress(y - shrink * means[codes], X, Z, codes, weights=w, structure=structure, n_groups=m)


@pytest.mark.parametrize("name", DESIGNS)
def test_both_executors_agree(name):
    structure, shape, shrink, reml = DESIGNS[name]
    data = compressed(structure, shape, shrink)
    theta = np.random.default_rng(1).normal(size=len(np.asarray(fit.fit(data).theta)))
    for at in (theta, np.zeros_like(theta)):
        here = fit.fit_at(at, data, reml=reml)
        there = programs.on_jax(fit._fit_at, at, data, reml=reml)
        assert here.deviance == pytest.approx(float(there.deviance), rel=1e-11, abs=1e-11)
        size = np.abs(there.hessian).max()
        np.testing.assert_allclose(here.gradient, there.gradient, rtol=1e-9, atol=1e-10 * size)
        np.testing.assert_allclose(here.hessian, there.hessian, rtol=1e-9, atol=1e-10 * size)
        np.testing.assert_allclose(here.beta, there.beta, rtol=1e-9, atol=1e-11)
    numpy, jax = fit.fit(data, reml=reml), fit.fit(data, reml=reml, backend="jax")
    assert (bool(numpy.compiled), bool(jax.compiled)) == (False, True)
    assert numpy.status == jax.status
    assert numpy.deviance == pytest.approx(float(jax.deviance), rel=1e-11, abs=1e-10)
    np.testing.assert_allclose(numpy.beta, jax.beta, rtol=1e-7, atol=1e-9)
    effects = [random_effects(numpy, data)[0], programs.on_jax(_random_effects, *_estimates(numpy), data)[0]]
    np.testing.assert_allclose(effects[0].b, effects[1].b, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(effects[0].prediction_cov, effects[1].prediction_cov, rtol=1e-8, atol=1e-11)


def test_levels_in_pieces_change_nothing(monkeypatch):
    from lme_jax.core import grouped

    data = compressed("unstructured", dict(q=2, p=3, n=600, m=90), 0.0)
    whole = fit.fit(data)
    monkeypatch.setattr(grouped, "LEVELS_AT_ONCE", 16)
    pieces = fit.fit(data)
    assert pieces.deviance == pytest.approx(float(whole.deviance), rel=1e-13)
    np.testing.assert_allclose(pieces.theta, whole.theta, rtol=1e-8)


def test_an_unknown_backend_is_refused():
    data = compressed("identity", dict(q=1, p=2), 0.0)
    with pytest.raises(DataError, match="'numpy', 'jax'"):
        fit.fit(data, backend="torch")


# ---------------------------------------------------------------- what is imported


def test_a_formula_on_pandas_data_leaves_jax_unimported():
    out = run(
        """
        import sys
        import lme_jax as lme
        heavy = ["jax", "jaxlib", "scipy.stats", "formulaic", "matplotlib", "optax"]
        assert not [name for name in heavy if name in sys.modules], "import"
        sleepstudy = lme.datasets.load("sleepstudy")
        fit = lme.lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)
        str(fit.summary()), fit.ranef, fit.ranef_cov, fit.fittedvalues
        fit.predict(sleepstudy.head()), fit.simulate(2, seed=1)
        lme.lmer("diameter ~ 1 + (1 | plate) + (1 | sample)", lme.datasets.load("Penicillin")).ranef
        lme.lmer("strength ~ 1 + (1 | batch/cask)", lme.datasets.load("Pastes")).summary()
        fit.bootstrap(50, seed=1, progress=False)
        assert "jax" not in sys.modules, "fit"
        print(round(fit.deviance, 6))
        """
    )
    assert out == "1743.628272"


@pytest.mark.parametrize("first", ["import lme_jax as lme, jax", "import jax, lme_jax as lme"])
def test_statistics_are_pytrees_in_either_order_of_imports(first):
    code = f"""
    {first}
    import numpy as np
    data = lme.compress(np.arange(6.0) ** 2, np.ones((6, 1)), np.ones((6, 1)), np.repeat([0, 1, 2], 2))
    assert len(jax.tree.leaves(data)) > 5
    assert jax.tree.map(lambda a: a, data).template == data.template
    fit = jax.jit(lambda d: lme.fit(d).beta)(data)
    assert fit.shape == (1,) and isinstance(fit, jax.Array)
    print("ok")
    """
    assert run(code) == "ok"


def test_names_are_found_and_typos_are_not():
    for name in lme.__all__:
        assert getattr(lme, name) is not None
    assert set(dir(lme)) >= set(lme.__all__)
    with pytest.raises(AttributeError, match="lmerr"):
        lme.lmerr  # noqa: B018


# ---------------------------------------------------------------- programs


def test_same_shape_compiles_once_and_settings_are_no_part_of_a_program():
    from lme_jax.core.optimize import NewtonOptions

    programs.clear()
    for seed, rows in ((41, 71), (42, 71), (43, 83)):
        y, X, Z, codes, m, _ = random_design(seed, n=rows, m=7, p=5)
        data = compression.compress(y, X, Z, codes, n_groups=m)
        fit.fit(data, backend="jax")
        fit.fit(data, backend="jax", options=NewtonOptions(max_iter=50, tol=1e-8))
    assert programs.n_programs() == 1


def test_programs_are_bounded_and_give_their_memory_maps_back(monkeypatch):
    maps = "/proc/self/maps"

    def n_maps():
        with open(maps) as lines:
            return sum(1 for _ in lines)

    monkeypatch.setattr(programs, "MAX_PROGRAMS", 2)
    seen = []
    for p in range(1, 5):
        y, X, Z, codes, m, _ = random_design(1, n=80, m=8, p=p, q=1)
        fit.fit(compression.compress(y, X, Z, codes, n_groups=m), backend="jax")
        assert programs.n_programs() <= 2
        seen.append(n_maps() if sys.platform == "linux" else 0)
    # Two programs are kept; four would hold some 300 maps each.
    assert seen[-1] < seen[1] + 300


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_a_forked_child_fits_after_its_parent_did():
    out = run(
        """
        import multiprocessing, sys, warnings
        import jax, numpy as np
        import lme_jax as lme
        warnings.simplefilter("ignore")
        sleepstudy = lme.datasets.load("sleepstudy")
        formula = "Reaction ~ Days + (Days | Subject)"
        data = lme.compress(np.arange(60.0) ** 0.5, np.ones((60, 1)), np.ones((60, 1)), np.repeat(np.arange(6), 10))
        lme.lmer(formula, sleepstudy), lme.fit(data, backend="jax")

        def child(queue):
            queue.put(lme.lmer(formula, sleepstudy).deviance)
            try:
                lme.fit(data, backend="jax")
            except lme.errors.UnsupportedError as error:
                queue.put("spawn" in str(error))

        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(round(queue.get(timeout=60), 6), queue.get(timeout=60))
        process.join(60)
        """
    )
    assert out == "1743.628272 True"
