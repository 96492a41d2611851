"""Fits of nested and crossed designs as functions of their rows: JAX against differences of whole fits in NumPy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lme_jax as lme
from lme_jax.core import crossed
from lme_jax.core.crossed_data import CrossedData, NestedData
from lme_jax.core.pytrees import leaves
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


def estimates(rows, model, reml=True):
    data = compressed(rows, model)
    fit = lme.fit(data, reml=reml)
    xp = jnp if isinstance(fit.theta, jax.Array) else np
    blups = xp.concatenate([e.b[:2].reshape(-1) for e in lme.random_effects(fit, data)])
    return xp.concatenate([fit.beta, fit.theta, fit.sigma[None], fit.deviance[None], blups])


def traced(model):
    return jax.tree.map(jnp.asarray, model.rows)


def moved(rows, which, place, step):
    """The rows (NumPy) with one number of leaf ``which`` changed."""
    flat, structure = jax.tree.flatten(rows)
    flat = [np.array(a) for a in flat]
    flat[which][place] += step
    return jax.tree.unflatten(structure, flat)


def difference(f, h):
    """Five points: truncation h⁴ beside the rounding of a fit, 1e-11/h."""
    return (8.0 * (f(h) - f(-h)) - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h)


@pytest.mark.parametrize("name", DESIGNS)
def test_rows_compress_alike(name):
    """Statistics of traced rows give the deviance, the derivatives and the fit of NumPy's, which pools levels."""
    model = design(name)
    host = compressed(model.rows, model)
    theta = np.random.default_rng(0).normal(size=len(crossed.moment_start(host)))
    with jax.enable_x64(True):
        data = jax.jit(lambda rows: compressed(rows, model))(traced(model))
        assert type(data) is type(host) is model.kind
        assert float(lme.deviance(jnp.asarray(theta), data)) == pytest.approx(lme.deviance(theta, host), abs=1e-9)
        theirs = lme.fit_at(jnp.asarray(theta), data)
    mine = lme.fit_at(theta, host)
    for field in ("beta", "sigma", "gradient", "hessian", "log_scale_slope"):
        value = getattr(mine, field)
        np.testing.assert_allclose(getattr(theirs, field), value, rtol=1e-9, atol=1e-9 * np.abs(value).max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reml"), [(name, i % 2 == 0) for i, name in enumerate(DESIGNS)])
def test_first_order_in_every_row(name, reml):
    """Reverse and forward mode in y, X, every Z and the weights, under jit, against differences of whole NumPy fits."""
    model = design(name)
    with jax.enable_x64(True):
        rows = traced(model)
        value = jax.jit(lambda r: estimates(r, model, reml))(rows)
        jacobian = jax.jit(jax.jacrev(lambda r: estimates(r, model, reml)))(rows)
        direction = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(1).normal(size=a.shape)), rows)
        forward = jax.jit(lambda r, d: jax.jvp(lambda r: estimates(r, model, reml), (r,), (d,))[1])(rows, direction)
    np.testing.assert_allclose(value, estimates(model.rows, model, reml), rtol=1e-7, atol=1e-7)
    flat = leaves(jacobian)
    along = sum(np.tensordot(J, d, d.ndim) for J, d in zip(flat, leaves(direction), strict=True))
    np.testing.assert_allclose(forward, along, rtol=1e-9, atol=1e-9 * np.abs(along).max())
    for which, J in enumerate(flat):
        for row in (0, 40):
            place = (row,) if J.ndim == 2 else (row, J.shape[2] - 1)
            numeric = difference(lambda h, w=which, p=place: estimates(moved(model.rows, w, p, h), model, reml), 1e-3)
            np.testing.assert_allclose(J[(slice(None), *place)], numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested_slopes", "crossed_slopes"])
def test_second_order(name):
    model = design(name)
    with jax.enable_x64(True):
        rows = traced(model)

        def slope(y):
            return estimates(rows._replace(y=y), model)[1]

        gradient, second = jax.jit(jax.grad(slope)), jax.jit(jax.jacfwd(jax.grad(slope)))(rows.y)
        np.testing.assert_allclose(second, second.T, rtol=1e-8, atol=1e-10)
        for i in (0, 40):
            numeric = difference(lambda h, i=i: np.asarray(gradient(rows.y.at[i].add(h))), 1e-3)
            np.testing.assert_allclose(second[i], numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "crossed"])
def test_vmapped_gradients_are_those_of_single_fits(name):
    """One lane is singular; no lane makes another's numbers."""
    model = design(name)
    rng = np.random.default_rng(5)
    quiet = rng.normal(size=N)
    for code in model.codes:
        quiet -= (np.bincount(code, quiet) / np.bincount(code))[code]
    with jax.enable_x64(True):
        rows = traced(model)

        def found(y):
            fit = lme.fit(compressed(rows._replace(y=y), model))
            return jnp.concatenate([fit.beta, fit.theta, fit.sigma[None]]), fit.status

        Y = jnp.stack([rows.y, jnp.asarray(quiet), rows.y[::-1]])
        many, status = jax.jit(jax.vmap(jax.jacrev(found, has_aux=True)))(Y)
        single = jax.jit(jax.jacrev(found, has_aux=True))
        assert Status.SINGULAR in status.tolist()
        for lane, y, code in zip(many, Y, status, strict=True):
            alone, same = single(y)
            assert code == same
            assert np.isfinite(lane).all()
            np.testing.assert_allclose(lane, alone, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_no_batched_lapack_in_vmapped_crossed_fits():
    """Batched factorisations can hang in jaxlib 0.10 on a CPU; one matrix at a time stands in a loop."""
    model = design("crossed_slopes")
    with jax.enable_x64(True):
        rows = traced(model)

        def found(y):
            return lme.fit(compressed(rows._replace(y=y), model)).theta[0]

        text = str(jax.make_jaxpr(jax.vmap(jax.grad(found)))(jnp.stack([rows.y, rows.y + 1.0])))
    calls = [line for line in text.splitlines() if "= cholesky" in line or "= triangular_solve" in line]
    assert calls
    assert not [line for line in calls if line.split("=")[0].count(",") > 1], calls


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "crossed"])
def test_float32_stays_float32(name):
    """Relative to float64 estimates are good to 1e-3 of their size: the search ends at 1e-5 in deviance units."""
    model = design(name)
    exact = estimates(model.rows, model)
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model.rows)
    found = jax.jit(lambda rows: estimates(rows, model))(single)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
    slope = jax.jit(jax.grad(lambda y: estimates(single._replace(y=y), model)[0]))(single.y)
    assert slope.dtype == jnp.float32 and np.isfinite(slope).all()


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
