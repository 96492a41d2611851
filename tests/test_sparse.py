"""Crossed designs of many effects: fronts on a sparse pattern, panels of a large dense system."""

import numpy as np
import pytest
import scipy.sparse

from lme_jax.core import covariance, criterion, crossed, crossed_data, fronts, panels, pattern
from lme_jax.core.dense import Dense
from lme_jax.core.effects import random_effects
from lme_jax.core.pytrees import leaves
from lme_jax.core.small import Small
from lme_jax.core.sparse import Sparse
from lme_jax.errors import DataError
from tests.test_crossed import CASES, Case, close


@pytest.mark.parametrize("K", [7, 24, 31])
def test_panels_are_lapack(K, monkeypatch):
    monkeypatch.setattr(panels, "WHOLE", 4)
    monkeypatch.setattr(panels, "PANEL", 6)
    rng = np.random.default_rng(K)
    half = rng.normal(size=(K, K))
    S = half @ half.T + np.eye(K)
    # What stands above the diagonal must not be read.
    L = np.tril(S) + np.triu(rng.normal(size=(K, K)), 1)
    assert panels.factor(L)
    np.testing.assert_allclose(np.tril(L), np.linalg.cholesky(S), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.tril(panels.inverse(L)), np.tril(np.linalg.inv(S)), rtol=1e-9, atol=1e-12)
    assert not panels.factor(S - 2.0 * np.linalg.eigvalsh(S)[0] * np.eye(K))


@pytest.fixture(params=[(0, 0), (30, 4096)], ids=["narrow", "merged"])
def always_sparse(request, monkeypatch):
    """Every crossed design by fronts; narrow: fronts stay apart, so that the tree is deep and stacks are padded."""
    monkeypatch.setattr(fronts, "ENTRY", request.param[0])
    monkeypatch.setattr(fronts, "FRONT", request.param[1])
    monkeypatch.setattr(pattern, "FEW", 0)
    monkeypatch.setattr(pattern, "FULL", 4.0)
    monkeypatch.setattr(pattern, "HANDICAP", 1e-9)


def sparse_of(data):
    # What is kept of these data was found under other thresholds.
    pattern._last = (lambda: None, None)
    return Sparse(data, pattern.pattern_of(data))


def regions(n, m, sizes, *, seed=0, **kwargs):
    """Two factors that are crossed within regions, and the regions, which meet all of them."""
    rng = np.random.default_rng(seed)
    where = rng.integers(0, m, n)
    codes = [where * 6 + rng.integers(0, 6, n), where * 3 + rng.integers(0, 3, n), where][: len(sizes)]
    return Case(codes, [6 * m, 3 * m, m][: len(sizes)], sizes, seed=seed, **kwargs)


SPARSE = {
    **{name: make for name, make in CASES.items() if not name.startswith("nested") or name == "nested_and_crossed"},
    "regions": lambda: regions(150, 7, [1, 1]),
    "regions_weighted": lambda: regions(150, 6, [2, 1], weighted=True, seed=1),
    "regions_slopes": lambda: regions(200, 6, [1, 2, 1], seed=2),
    "regions_wide": lambda: regions(200, 5, [2, 3, 2], seed=3, weighted=True, p=1),
}


@pytest.mark.parametrize("singular", [None, 0, 1])
@pytest.mark.parametrize("name", SPARSE)
def test_verbs_are_those_of_the_small_engine(name, singular, always_sparse):
    """Every verb, also where a factor is gone; the value against the dense oracle."""
    case = SPARSE[name]()
    data = case.data()
    scale = covariance.theta_scale(data.template, data.basis.z_scale)
    theta = case.theta * scale
    if singular is not None:
        theta[criterion.parts(data.template, data.layout.sizes)[singular].theta] = 0.0
    ours, theirs = sparse_of(data), Small(data)
    a, b = (criterion.evaluate(engine, theta, data, True) for engine in (ours, theirs))
    assert a.value == pytest.approx(
        case.oracle(theta / scale, True)["value"],
        rel=1e-11,
        abs=1e-9,
    )
    close(a.gradient, b.gradient, 1e-9)
    close(criterion.average_information(a), criterion.average_information(b), 1e-9)
    for mine, other in zip(ours.traces(a.solved), theirs.traces(b.solved), strict=True):
        close(mine, other, 1e-9)
    for mine, other in zip(a.D, b.D, strict=True):
        close(mine, other, 1e-9)
    for mine, other in zip(ours.variances(a.solved), theirs.variances(b.solved), strict=True):
        close(mine, other, 1e-9)
    products = ours.trace_products(a.solved, a.owner, a.moves)
    close(products, theirs.trace_products(b.solved, b.owner, b.moves), 1e-8)
    # Moves that the root of a singular Ψ does not make.
    q = data.layout.sizes
    owner = tuple(j for j in range(len(q)))
    moves = [np.eye(k) for k in q]
    close(ours.trace_products(a.solved, owner, moves), theirs.trace_products(b.solved, owner, moves), 1e-8)


@pytest.mark.parametrize("seed", range(40))
def test_fronts_are_dense_algebra(seed, always_sparse):
    """Random patterns, disconnected and filled ones among them."""
    rng = np.random.default_rng(seed)
    K = int(rng.integers(1, 120))
    half = scipy.sparse.random(K, K, rng.uniform(0, 0.1), random_state=seed).toarray()
    S = half @ half.T * (seed % 2) + half + half.T
    S += np.eye(K) * (np.abs(S).sum(1).max() + 1.0)
    row, column = np.nonzero(np.tril(S))
    plan = fronts.plan(row, column, K, np.inf)
    found = fronts.factor(plan, S[row, column])
    R, inverse = rng.normal(size=(K, 3)), np.linalg.inv(S)
    assert found.log_det == pytest.approx(np.linalg.slogdet(S)[1], rel=1e-12)
    close(fronts.solve(plan, found, R), inverse @ R, 1e-12)
    close(fronts.selected_inverse(plan, found), inverse[row, column], 1e-12)
    S[0, 0] = -1.0
    assert fronts.factor(plan, S[row, column]) is None


@pytest.mark.parametrize("sizes", [[1, 1], [1, 1, 1], [2, 2]])
def test_fits_are_those_of_the_dense_engine(sizes, monkeypatch):
    data = regions(2500, 80, sizes, seed=5).data()
    assert isinstance(crossed.engine_of(data), Sparse)
    found = crossed.fit_crossed(data)
    effects = random_effects(found, data)
    monkeypatch.setattr(crossed, "engine_of", Dense)
    other = crossed.fit_crossed(data)
    assert float(found.deviance) == pytest.approx(float(other.deviance), rel=1e-11)
    close(found.theta, other.theta, 1e-5)
    theta = np.asarray(other.theta) * covariance.theta_scale(data.template, data.basis.z_scale)
    ours, dense = (criterion.objective(e, data, True, True)(theta) for e in (sparse_of(data), Dense(data)))
    for a, b in zip(ours[:3], dense[:3], strict=True):
        close(a, b, 1e-8)
    for mine, theirs in zip(effects, random_effects(found, data), strict=True):
        for a, b in zip(leaves(mine), leaves(theirs), strict=True):
            close(a, b, 1e-9)


@pytest.mark.parametrize("q", [1, 2])
def test_pairs_are_listed_alike(q, monkeypatch):
    """By keys of their own, by all keys there are, some at a time, and pooled."""
    case = regions(400, 20, [q, q], seed=6)
    whole = case.data()
    monkeypatch.setattr(crossed_data, "PAIR_CHUNK", 64)
    some = case.data()
    monkeypatch.setattr(crossed_data, "_dense_is_better", lambda *_: True)
    pooled = case.data()
    for name in ("pair_row", "pair_column", "base", "product_ends", "product_pattern", "product_value"):
        np.testing.assert_allclose(getattr(some, name), getattr(whole, name), rtol=1e-13)
        if q == 1:
            np.testing.assert_allclose(getattr(pooled, name), getattr(whole, name), rtol=1e-12)


def test_memory_is_that_of_the_factor():
    """K = 30 000 would be 13 GiB dense; its factor takes some MiB, which a small limit still refuses, in words."""
    case = regions(30_000, 10_000, [1, 1], seed=7)
    data = case.data()
    assert data.layout.n_dense == 30_000
    assert isinstance(crossed.engine_of(data), Sparse)
    with pytest.raises(DataError, match=r"sparse factor of 30000 effects.* would take .* merge rare levels"):
        case.data(memory_limit=1 << 20)
    full = Case([np.repeat(np.arange(300), 200), np.tile(np.arange(200), 300)], [300, 200], [1, 1])
    with pytest.raises(DataError, match="dense 200 × 200 system"):
        full.data(memory_limit=1 << 18)
