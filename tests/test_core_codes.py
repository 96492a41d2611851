"""Codes of levels outside [0, n_levels) are refused by every way from rows to statistics, by value and row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lme_jax as lme
from lme_jax.core import compression
from lme_jax.core.covariance import make_template
from lme_jax.core.crossed_data import compress_crossed
from lme_jax.core.lane_data import SharedDesign
from lme_jax.errors import DataError

N, G = 40, 8


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(G), N // G)
    X = np.column_stack([np.ones(N), rng.normal(size=N)])
    return rng.normal(size=G)[codes] + rng.normal(size=N), X, codes


def ways(y, X, codes):
    Z, template = X[:, :1], make_template("unstructured", 1)
    other = np.arange(N) % 5
    return {
        "compress": lambda: lme.compress(y, X, Z, codes, n_groups=G),
        "group_moments": lambda: compression.group_moments(y, X, Z, codes, G, template=template),
        "shared design": lambda: SharedDesign(X, Z, codes, n_groups=G),
        "crossed": lambda: compress_crossed(y, X, [Z, Z], [codes, other], [G, 5], (template, template)),
        "nested": lambda: compress_crossed(y, X, [Z, Z], [codes, codes // 2], [G, G // 2], (template, template)),
    }


@pytest.mark.parametrize("way", ["compress", "group_moments", "shared design", "crossed", "nested"])
@pytest.mark.parametrize("code", [-1, G, 3 * G])
def test_codes_out_of_range_are_named(rows, way, code):
    y, X, codes = rows
    wrong = np.where(np.arange(N) == 17, code, codes)
    with pytest.raises(DataError, match=rf"code {code} in row 17 .*\[0, {G}\)"):
        ways(y, X, wrong)[way]()
    ways(y, X, codes)[way]()


def test_codes_are_integers(rows):
    y, X, codes = rows
    with pytest.raises(DataError, match=r"1\.5 in row 4"):
        lme.compress(y, X, X, np.where(np.arange(N) == 4, 1.5, codes), n_groups=G)
    same = lme.compress(y, X, X, codes.astype(float), n_groups=G)
    np.testing.assert_array_equal(same.G, lme.compress(y, X, X, codes, n_groups=G).G)


def test_traced_codes_out_of_range_are_no_fit(rows):
    """Nothing raises in traced code: the rows that no level takes must not vanish from the sums in silence."""
    y, X, codes = rows
    with jax.enable_x64(True):
        good, bad = (
            jax.jit(lambda c, m=m: lme.compress(jnp.asarray(y), jnp.asarray(X), jnp.asarray(X[:, :1]), c, n_groups=m))(
                jnp.asarray(codes)
            )
            for m in (G, G // 2)
        )
    assert float(good.moments.n_rows) == N
    assert np.isnan(float(bad.moments.n_rows))


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (np.where(np.arange(N) == 3, np.nan, np.arange(N) % G), "row 3"),
        (np.array([None if i == 5 else "a" for i in range(N)], object), "row 5"),
        (np.arange(N)[:, None], "one label per row"),
        (None, "one label per row"),
        ([1, "a"] * (N // 2 - 1) + [2.5, object()], "sorted"),
    ],
)
def test_labels_that_are_none(rows, groups, says):
    y, X, _ = rows
    with pytest.raises(DataError, match=says):
        lme.compress(y, X, X, groups if groups is None or isinstance(groups, np.ndarray) else np.array(groups, object))


@pytest.mark.parametrize("where", ["y", "X", "Z", "weights", "offset"])
def test_complex_numbers_are_refused(rows, where):
    y, X, codes = rows
    arrays = {"y": y, "X": X, "Z": X, "weights": np.ones(N), "offset": np.zeros(N)}
    arrays[where] = arrays[where] + 1j
    prior = {name: arrays.pop(name) for name in ("weights", "offset")}
    with pytest.raises(DataError, match=f"{where} is complex"):
        lme.compress(*arrays.values(), codes, **prior)


def test_shapes_of_arrays_are_named(rows):
    y, X, codes = rows
    for arguments, says in (
        ((y, X[:, 0], X), r"X has shape \(40,\)"),
        ((y, X, None), "Z is None"),
        ((X, X, X), "y has shape"),
        ((y, X, X[:, 0]), "Z has shape"),
    ):
        with pytest.raises(DataError, match=says):
            lme.compress(*arguments, codes)


def test_dependent_columns_are_named(rows):
    y, X, codes = rows
    with pytest.raises(DataError, match=r"columns \[2\] of X"):
        lme.compress(y, np.column_stack([X, X[:, 0] - 3 * X[:, 1]]), X[:, :1], codes)


def test_predict_refuses_codes_it_has_no_effects_for(rows):
    """JAX would clamp the code and return the last level's effects."""
    y, X, codes = rows
    data = lme.compress(y, X, X[:, :1], codes)
    with pytest.raises(DataError, match=f"{3 * G}"):
        lme.predict(lme.fit(data), data, X[:1], X[:1, :1], np.array([3 * G]))
