"""The engine by fronts against the one dense system, on sparse crossings of many patterns."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from lme_jax.core import criterion, crossed, crossed_data, pattern
from lme_jax.core.dense import Dense
from lme_jax.core.sparse import Sparse
from lme_jax.errors import DataError


def regions(n=500):
    """Pupils × classes within 20 regions that share nothing."""
    rng = np.random.default_rng(1)
    region = rng.integers(0, 20, n)
    return [region * 8 + rng.integers(0, 8, n), region * 5 + rng.integers(0, 5, n)], [160, 100], [1, 1]


def star(n=500):
    """Regions as above, and a small factor that meets everything; some levels have no row."""
    codes, levels, _ = regions(n)
    rng = np.random.default_rng(2)
    return [*codes, rng.integers(0, 6, n)], [*levels, 7], [1, 1, 1]


def chain(n=500):
    """Pupils × classes in schools: a chain among the smaller factors, and a slope of every pupil."""
    (pupil, group), _, _ = regions(n)
    return [pupil, group, group // 4], [160, 104, 25], [2, 1, 1]


DESIGNS = {"regions": regions, "star": star, "chain": chain}


@pytest.fixture(params=DESIGNS)
def engines(request, monkeypatch):
    monkeypatch.setattr(pattern, "FEW", 2)
    monkeypatch.setattr(pattern, "FULL", 2.0)
    monkeypatch.setattr(pattern, "HANDICAP", 1e-3)
    codes, levels, sizes = DESIGNS[request.param]()
    data, rng = compressed(codes, levels, sizes), np.random.default_rng(4)
    sparse, dense = crossed.engine_of(data), Dense(data)
    assert isinstance(sparse, Sparse)
    theta = rng.uniform(0.4, 1.2, 3 * (sizes[0] == 2) + (sizes[0] == 1) + len(sizes) - 1)
    return data, sparse, dense, theta


def compressed(codes, levels, sizes, **options):
    rng = np.random.default_rng(3)
    n = len(codes[0])
    x = rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    y = X.sum(1) + sum(rng.normal(size=m)[c] for c, m in zip(codes, levels, strict=True)) + rng.normal(size=n)
    Zs = [np.column_stack([np.ones(n), x])[:, :q] for q in sizes]
    codes = [c.astype(np.int32) for c in codes]
    return crossed.compress_crossed(
        y, X, Zs, codes, levels, ("unstructured",) * len(sizes), weights=rng.uniform(0.5, 2.0, n), **options
    )


def close(ours, theirs, tol=1e-10):
    np.testing.assert_allclose(ours, theirs, rtol=tol, atol=tol * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("boundary", [False, True])
def test_verbs_are_those_of_the_dense_system(engines, boundary):
    data, sparse, dense, theta = engines
    if boundary:
        theta = np.append(theta[:-1], 0.0)
    Ls = criterion.factors(theta, data.template, data.layout.sizes)
    ours, theirs = sparse.solve(Ls), dense.solve(Ls)
    assert ours.log_det == pytest.approx(theirs.log_det, rel=1e-12)
    close(ours.H, theirs.H)
    A, rng = np.eye(3, 2), np.random.default_rng(5)
    Y = [rng.normal(size=(q, 2, m)) for q, m in zip(data.layout.sizes, data.layout.levels, strict=True)]
    for verb, argument in (("project", A), ("apply", Y)):
        for a, b in zip(getattr(sparse, verb)(ours, argument), getattr(dense, verb)(theirs, argument), strict=True):
            close(a, b)
    for verb in ("traces", "variances"):
        for a, b in zip(getattr(sparse, verb)(ours), getattr(dense, verb)(theirs), strict=True):
            close(a, b)


@pytest.mark.parametrize("reml", [True, False])
def test_exact_hessian_to_nine_digits(engines, reml):
    data, sparse, dense, theta = engines
    ours, theirs = (criterion.objective(e, data, reml, True)(theta) for e in (sparse, dense))
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        close(a, b, 1e-9)


def test_memory_is_asked_of_the_factor_not_of_the_square(monkeypatch):
    """What the fronts take is allowed where K² is not; a crossing of as many effects that fills them is refused."""
    rng = np.random.default_rng(6)
    region = rng.integers(0, 150, 3000)
    codes = [region * 8 + rng.integers(0, 8, 3000), region * 5 + rng.integers(0, 5, 3000)]
    square = 16 * 750**2
    found = compressed(codes, [1200, 750], [1, 1], memory_limit=square // 2)
    assert isinstance(crossed.engine_of(found), Sparse)
    with pytest.raises(DataError, match="sparse factor of 750 effects"):
        compressed(codes, [1200, 750], [1, 1], memory_limit=200_000)
    codes[1] = rng.integers(0, 750, 3000)
    with pytest.raises(DataError, match="sparse factor of 750 effects"):
        compressed(codes, [1200, 750], [1, 1], memory_limit=square // 2)


def test_listing_does_not_depend_on_the_chunks(monkeypatch):
    """Few pairs among many columns are listed by sorting; the lists are those of one pass over all keys."""
    codes, levels, sizes = star()
    whole = compressed(codes, levels, sizes)
    monkeypatch.setattr(crossed_data, "PAIR_CHUNK", 50)
    pieces = compressed(codes, levels, sizes)
    for name in ("pair_row", "pair_column", "base", "product_ends", "product_pattern", "product_value"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
    monkeypatch.setattr(crossed_data, "_distinct", lambda key: np.unique(key, return_inverse=True))
    again = compressed(codes, levels, sizes)
    np.testing.assert_array_equal(whole.pair_column, again.pair_column)
    np.testing.assert_array_equal(whole.product_value, again.product_value)


def test_threads_get_the_patterns_of_their_own_data(monkeypatch):
    data = [SimpleNamespace(pair_row=np.arange(3), name=i) for i in range(4)]
    monkeypatch.setattr(pattern, "_pattern", lambda each: each.name)

    def ask(each):
        return all(pattern.pattern_of(each) == each.name for _ in range(20_000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, data))
    finally:
        sys.setswitchinterval(interval)
