"""Crossed designs of many effects: panels of a large dense system."""

import numpy as np
import pytest

from lme_jax.core import covariance, criterion, panels, pattern
from lme_jax.core.small import Small
from lme_jax.core.sparse import Sparse
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


@pytest.fixture
def always_sparse(monkeypatch):
    monkeypatch.setattr(pattern, "FEW", 0)
    monkeypatch.setattr(pattern, "FULL", 4.0)
    monkeypatch.setattr(pattern, "HANDICAP", 1e-9)


def sparse_of(data):
    pattern._last.clear()
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
    """Value, gradient, average information, products of traces, projections and variances, also where a factor is gone."""
    case = SPARSE[name]()
    data = case.data()
    theta = case.theta * covariance.theta_scale(data.template, data.basis.z_scale)
    if singular is not None:
        theta[criterion.parts(data.template, data.layout.sizes)[singular].theta] = 0.0
    ours, theirs = sparse_of(data), Small(data)
    a, b = (criterion.evaluate(engine, theta, data, True) for engine in (ours, theirs))
    assert a.value == pytest.approx(
        case.oracle(theta / covariance.theta_scale(data.template, data.basis.z_scale), True)["value"],
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
