"""Fits of nested and crossed designs as functions of their rows: JAX against differences of whole fits in NumPy."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import lme_jax as lme
from lme_jax.core import crossed
from lme_jax.core.crossed_data import CrossedData, NestedData
from lme_jax.core.pytrees import leaves, tree_map
from lme_jax.core.types import Status
from lme_jax.errors import DataError

N = 72


class Rows(NamedTuple):
    y: np.ndarray
    X: np.ndarray
    Zs: list
    weights: np.ndarray


class Design(NamedTuple):
    """Rows, the codes that stay, and the kind of statistics that they make."""

    rows: Rows
    codes: list
    structure: list
    kind: type


def design(name):
    rng = np.random.default_rng(11)
    inner, other = np.arange(N) // 6, rng.permutation(np.arange(N) % 5)
    codes, sizes, structure, kind = {
        "nested": ([inner, inner // 4], [1, 1], ["unstructured"] * 2, NestedData),
        "nested_slopes": ([inner // 4, inner], [1, 2], ["unstructured", "diagonal"], NestedData),
        "crossed": ([inner, other], [1, 1], ["unstructured"] * 2, CrossedData),
        "crossed_slopes": ([other, inner], [2, 1], ["unstructured"] * 2, CrossedData),
        "crossed_three": (
            [inner, other, rng.integers(0, 4, N)],
            [2, 1, 1],
            ["diagonal", *["identity"] * 2],
            CrossedData,
        ),
    }[name]
    x = rng.normal(size=N)
    X = np.column_stack([np.ones(N), x])
    Zs = [X[:, :q].copy() for q in sizes]
    y = X @ [2.0, 1.0] + rng.normal(size=N)
    for code, Z in zip(codes, Zs, strict=True):
        y = y + 1.5 * (Z * rng.normal(size=(code.max() + 1, Z.shape[1]))[code]).sum(1)
    return Design(Rows(y, X, Zs, rng.uniform(0.5, 2.0, N)), codes, structure, kind)


DESIGNS = ["nested", "nested_slopes", "crossed", "crossed_slopes", "crossed_three"]


def compressed(rows, model):
    return lme.compress(rows.y, rows.X, rows.Zs, model.codes, weights=rows.weights, structure=model.structure)


def quiet(model):
    """The model with a response that leaves the last factor's variance zero."""
    rows, code = model.rows, model.codes[-1]
    noise = np.random.default_rng(5).normal(size=N)
    for _ in range(50):
        noise -= (np.bincount(code, rows.weights * noise) / np.bincount(code, rows.weights))[code]
    levels = np.random.default_rng(6).normal(size=(N, 2))
    effects = [(Z * levels[c, : Z.shape[1]]).sum(1) for Z, c in zip(rows.Zs[:-1], model.codes, strict=False)]
    return model._replace(rows=rows._replace(y=rows.X.sum(1) + 2.0 * sum(effects) + noise))


def estimates(rows, model, reml=True):
    data = compressed(rows, model)
    fit = lme.fit(data, reml=reml)
    xp = jnp if isinstance(fit.theta, jax.Array) else np
    blups = xp.concatenate([e.b[:2].reshape(-1) for e in lme.random_effects(fit, data)])
    return xp.concatenate([fit.beta, fit.theta, fit.sigma[None], fit.deviance[None], blups])


def traced(model):
    return jax.tree.map(jnp.asarray, model.rows)


def compiled(function):
    """Without XLA's optimisations, which take more time than these programs."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def scalar(values):
    return np.random.default_rng(3).normal(size=len(values)).astype(values.dtype) @ values


def both_orders(model, reml):
    """(rows, direction) → estimates and what they move by; of ``scalar``, the gradient and the Hessian's product."""

    def value(rows):
        found = estimates(rows, model, reml)
        return scalar(found), found

    def program(rows, direction):
        (gradient, found), (curved, moved) = jax.jvp(jax.grad(value, has_aux=True), (rows,), (direction,))
        return found, moved, gradient, curved

    return compiled(program)


def directions(rows):
    """One that moves every number, and one for a single number of each array."""
    rng = np.random.default_rng(1)
    out = [jax.tree.map(lambda a: 0.1 * rng.normal(size=a.shape), rows)]
    flat, structure = jax.tree.flatten(jax.tree.map(np.zeros_like, rows))
    for j, array in enumerate(flat):
        one = array.copy()
        one[40, ...].flat[-1] = 1.0
        out.append(jax.tree.unflatten(structure, [*flat[:j], one, *flat[j + 1 :]]))
    return out


def along(function, h):
    """First and second derivative at 0 from nine points: truncation h⁸ beside the rounding of a fit over h or h²."""
    at = {t: function(t * h) for t in range(-4, 5)}
    first = sum(c * (at[t] - at[-t]) for t, c in enumerate((4 / 5, -1 / 5, 4 / 105, -1 / 280), 1)) / h
    second = sum(c * (at[t] + at[-t]) for t, c in enumerate((8 / 5, -1 / 5, 8 / 315, -1 / 560), 1))
    return first, (second - 205 / 72 * at[0]) / h**2


def product(a, b):
    return sum(np.vdot(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("name", DESIGNS)
def test_rows_compress_alike(name):
    """Statistics of traced rows give the deviance and its derivatives of NumPy's, which pools levels."""
    model = design(name)
    host = compressed(model.rows, model)
    with jax.enable_x64(True):
        data = compiled(lambda rows: compressed(rows, model))(traced(model))
    assert type(data) is type(host) is model.kind
    data = tree_map(np.asarray, data)
    theta = np.random.default_rng(0).normal(size=len(crossed.moment_start(host)))
    mine, theirs = lme.fit_at(theta, host), lme.fit_at(theta, data)
    for field in ("deviance", "beta", "sigma", "gradient", "hessian", "log_scale_slope"):
        value = getattr(mine, field)
        np.testing.assert_allclose(getattr(theirs, field), value, rtol=1e-9, atol=1e-9 * np.abs(value).max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reml"), [("nested", False), ("crossed_slopes", True)])
def test_first_and_second_order_in_every_array(name, reml):
    """In y, X, every Z and the weights, forward, reverse and forward over reverse: differences of whole NumPy fits.

    θ̂, β̂, σ̂, the deviance and BLUPs; of an ordinary optimum and of one at a singular Ψ.
    """
    ordinary = design(name)
    program = both_orders(ordinary, reml)
    for model, status in ((ordinary, Status.CONVERGED), (quiet(ordinary), Status.SINGULAR)):
        assert lme.fit(compressed(model.rows, model), reml=reml).status == status
        for direction in directions(model.rows):
            with jax.enable_x64(True):
                found, moved, gradient, curved = jax.tree.map(np.asarray, program(model.rows, direction))

            def at(t, model=model, direction=direction):
                return estimates(jax.tree.map(lambda a, d: a + t * d, model.rows, direction), model, reml)

            first, second = along(at, 0.01)
            np.testing.assert_allclose(found, at(0.0), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(moved, first, rtol=1e-6, atol=1e-7)
            assert product(gradient, direction) == pytest.approx(scalar(moved), rel=1e-9, abs=1e-11)
            assert product(curved, direction) == pytest.approx(scalar(second), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_vmapped_gradients_are_those_of_single_fits():
    """One lane is singular; no lane makes another's numbers, and each is the difference of whole fits."""
    model = design("crossed")
    with jax.enable_x64(True):
        rows = traced(model)

        def found(y):
            fit = lme.fit(compressed(rows._replace(y=y), model))
            return scalar(jnp.concatenate([fit.beta, fit.theta, fit.sigma[None]])), fit.status

        slope = jax.grad(found, has_aux=True)
        lanes = compiled(jax.vmap(slope))
        Y = jnp.stack([rows.y, jnp.asarray(quiet(model).rows.y), rows.y[::-1]])
        many, status = lanes(Y)
        assert Status.SINGULAR in status.tolist()
        for lane, y, code in zip(many, Y, status, strict=True):
            alone, same = lanes(jnp.stack([y, y, y]))
            assert (code == same).all()
            np.testing.assert_allclose(lane, alone[0], rtol=1e-9, atol=1e-11)

            def at(t, y=y):
                fit = lme.fit(compressed(model.rows._replace(y=np.asarray(y) + t * np.eye(N)[40]), model))
                return scalar(np.concatenate([fit.beta, fit.theta, fit.sigma[None]]))

            assert lane[40] == pytest.approx(along(at, 0.02)[0], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["nested_slopes", "crossed_slopes"])
def test_no_batched_lapack_in_vmapped_derivatives(name):
    """Batched factorisations can hang in jaxlib 0.10 on a CPU; one matrix at a time stands in a loop."""
    model = design(name)
    with jax.enable_x64(True):
        rows = traced(model)

        def found(y):
            return lme.fit(compressed(rows._replace(y=y), model)).theta[0]

        text = str(jax.make_jaxpr(jax.vmap(jax.grad(found)))(jnp.stack([rows.y, rows.y + 1.0])))
    calls = re.findall(r"f64\[([\d,]+)\][^=\n]*= (?:cholesky|triangular_solve|lu|qr|eigh|svd)\b", text)
    assert bool(calls) == name.startswith("crossed")
    assert all(shape.count(",") == 1 for shape in calls), calls


@pytest.mark.slow
def test_float32_stays_float32():
    """A deviance of 222 is rounded by some 1e-5 in float32; θ, where it is flat, is told to the root of that.

    With a curvature of tens that is 1e-3.
    """
    model = design("crossed")
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model.rows)

    def value(y):
        found = estimates(single._replace(y=y), model)
        return found[0], found

    slope, found = compiled(jax.grad(value, has_aux=True))(single.y)
    assert found.dtype == slope.dtype == jnp.float32 and np.isfinite(slope).all()
    np.testing.assert_allclose(found, estimates(model.rows, model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DESIGNS)
def test_predictions_of_rows_are_fitted_values(name):
    """Xβ̂ + Σ Zb̂, from NumPy and from JAX; a new level has no effect, a code that is none is refused, traced NaN."""
    model = design(name)
    rows, data = model.rows, compressed(model.rows, model)
    fit = lme.fit(data)
    effects = [e.b for e in lme.random_effects(fit, data)]
    want = rows.X @ fit.beta + sum((Z * b[c]).sum(1) for Z, b, c in zip(rows.Zs, effects, model.codes, strict=True))
    np.testing.assert_allclose(lme.predict(fit, data, rows.X, rows.Zs, model.codes), want, rtol=1e-12)
    new = [np.full(N, -1), *model.codes[1:]]
    without = want - (rows.Zs[0] * effects[0][model.codes[0]]).sum(1)
    np.testing.assert_allclose(lme.predict(fit, data, rows.X, rows.Zs, new), without, rtol=1e-12)
    with pytest.raises(DataError, match="groups\\[0\\] is 99"):
        lme.predict(fit, data, rows.X, rows.Zs, [np.full(N, 99), *model.codes[1:]])
    with pytest.raises(DataError, match="one array per factor"):
        lme.predict(fit, data, rows.X, rows.Zs[0], model.codes[0])
    if name != "crossed_three":
        return
    with jax.enable_x64(True):
        held = jax.tree.map(jnp.asarray, (fit, data))
        codes = [jnp.asarray(c).at[0].set(99 if j == 0 else c[0]) for j, c in enumerate(model.codes)]
        found = lme.predict(*held, jnp.asarray(rows.X), [jnp.asarray(Z) for Z in rows.Zs], codes)
        assert np.isnan(found[0])
        np.testing.assert_allclose(found[1:], want[1:], rtol=1e-10)


def test_rows_that_make_no_model_are_refused():
    model = design("crossed")
    rows = model.rows
    with pytest.raises(DataError, match="list of 2, groups of 1"):
        lme.compress(rows.y, rows.X, rows.Zs, model.codes[:1])
    with pytest.raises(DataError, match="columns \\[2\\] of X"):
        lme.compress(rows.y, np.column_stack([rows.X, rows.X[:, 1]]), rows.Zs, model.codes)
    with pytest.raises(DataError, match="structure is a list of 1"):
        lme.compress(rows.y, rows.X, rows.Zs, model.codes, structure=["identity"])
    Zs = [rows.Zs[0], scipy.sparse.csr_matrix(np.eye(N)[:, :5])]
    with pytest.raises(DataError, match="need NumPy arrays"):
        lme.compress(jnp.asarray(rows.y), rows.X, Zs, [model.codes[0], None], n_groups=[None, 5])
    with pytest.raises(DataError, match="71 rows, y has 72"):
        lme.compress(jnp.asarray(rows.y), jnp.asarray(rows.X[1:]), rows.Zs, model.codes)
    with pytest.raises(DataError, match="from outside of the traced function"):
        jax.jit(lambda y, a, b: lme.compress(y, rows.X, rows.Zs, [a, b]).WtW)(rows.y, *model.codes)


def test_labels_and_structures_of_several_factors():
    """Text labels are coded in sorted order; one name of a structure serves all factors."""
    model = design("nested_slopes")
    rows = model.rows
    labels = [np.array([f"level {c:02d}" for c in code]) for code in model.codes]
    data = lme.compress(rows.y, rows.X, rows.Zs, labels, structure="diagonal")
    coded = lme.compress(rows.y, rows.X, rows.Zs, model.codes, structure=["diagonal", "diagonal"])
    for a, b in zip(leaves(data), leaves(coded), strict=True):
        np.testing.assert_array_equal(a, b)
