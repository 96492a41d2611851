"""The registry of covariance structures against Ψ written out naively, and derivatives by differences."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lme_jax.core import covariance
from lme_jax.core.structures import REGISTRY, Block, entry, make_block
from lme_jax.errors import DataError, UnsupportedError
from tests.oracles.structures import correlation, naive

NAMES = tuple(REGISTRY)


def detail_of(name, q, rng):
    """What a structure needs beside its name."""
    if name == "exponential":
        return np.cumsum(rng.uniform(0.5, 2.0, q))
    if name == "fixed":
        A = rng.normal(size=(q, q))
        return A @ A.T
    return min(q, 1 + int(rng.integers(0, 2))) if name == "reduced_rank" else None


def block_of(name, q, rng):
    return make_block(name, q, detail_of(name, q, rng))


def psi(theta, *blocks):
    L = covariance.factor(theta, blocks)
    return L @ L.T


cases = given(st.sampled_from(NAMES), st.integers(1, 5), st.integers(0, 10**6))


def drawn(name, q, seed, *lanes):
    rng = np.random.default_rng(seed)
    block = block_of(name, q, rng)
    return block, rng.normal(size=(block.n_theta, *lanes)), rng


@cases
@settings(max_examples=200, deadline=None)
def test_psi_is_what_the_structure_says(name, q, seed):
    block, theta, _ = drawn(name, q, seed)
    expected = naive(theta, block)
    np.testing.assert_allclose(psi(theta, block), expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())


@cases
@settings(max_examples=200, deadline=None)
def test_derivatives_are_differences(name, q, seed):
    block, theta, _ = drawn(name, q, seed)
    lower, h = np.tril_indices(q), 1e-5
    J, J2 = covariance.squared_derivatives(theta, (block,))
    steps = h * np.eye(len(theta))
    first = np.stack([(naive(theta + e, block) - naive(theta - e, block))[lower] / (2 * h) for e in steps], axis=1)
    slopes = [[covariance.squared_derivatives(theta + s * e, (block,))[0] for s in (1, -1)] for e in steps]
    second = np.stack([(up - down) / (2 * h) for up, down in slopes], axis=2)
    size = 1.0 + np.abs(J2).max()
    np.testing.assert_allclose(J, first, atol=1e-8 * size)
    np.testing.assert_allclose(J2, second, atol=1e-7 * size)


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_templates_with_lanes_are_blocks_side_by_side(names, seed):
    rng = np.random.default_rng(seed)
    template = tuple(block_of(name, int(rng.integers(1, 4)), rng) for name in names)
    theta = rng.normal(size=(covariance.n_theta(template), 4))
    L, (J, J2) = covariance.factor(theta, template), covariance.squared_derivatives(theta, template)
    J2 = np.broadcast_to(J2, (*J2.shape[:3], 4))
    rows = np.cumsum([0, *(b.size for b in template)])
    for lane in range(4):
        one = theta[:, lane]
        parts = zip(covariance.split(one, template), template, rows, strict=False)
        for part, block, at in parts:
            here = slice(at, at + block.size)
            np.testing.assert_allclose((L[..., lane] @ L[..., lane].T)[here, here], naive(part, block), atol=1e-9)
        J_one, J2_one = covariance.squared_derivatives(one, template)
        np.testing.assert_allclose(J[..., lane], J_one, atol=1e-12)
        np.testing.assert_allclose(J2[..., lane], J2_one, atol=1e-12)


@cases
@settings(max_examples=200, deadline=None)
def test_canonical_theta_has_the_same_psi(name, q, seed):
    block, theta, _ = drawn(name, q, seed)
    theta = 3.0 * theta
    found, sign = covariance.canonical(theta, (block,))
    size = np.abs(naive(theta, block)).max()
    np.testing.assert_allclose(naive(found, block), naive(theta, block), atol=1e-11 * size)
    again, same = covariance.canonical(found, (block,))
    np.testing.assert_allclose(again, found, atol=1e-14)
    assert (same == 1.0).all()
    # dΨ/d(canonical θ) = dΨ/dθ · dθ/d(canonical θ), and the latter are the signs.
    there = covariance.squared_derivatives(theta, (block,))[0]
    np.testing.assert_allclose(
        covariance.squared_derivatives(found, (block,))[0], there * sign, atol=1e-10 * (1 + np.abs(there).max())
    )


@cases
@settings(max_examples=100, deadline=None)
def test_theta_scale_moves_psi_to_other_units_of_z(name, q, seed):
    block, theta, rng = drawn(name, q, seed)
    groups = covariance.column_groups((block,))
    z = 2.0 ** rng.integers(-4, 5, q)[groups]
    moved = theta * covariance.theta_scale((block,), z)
    expected = np.diag(z) @ naive(theta, block) @ np.diag(z)
    np.testing.assert_allclose(naive(moved, block), expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@cases
@settings(max_examples=200, deadline=None)
def test_near_inverts_psi(name, q, seed):
    block, theta, _ = drawn(name, q, seed)
    if REGISTRY[name].root is not None and q > 1:
        # Starts keep away from singular correlations, and from ones that an exponential cannot tell from zero.
        phi = theta[q if name.startswith("het") else 1 :]
        assume(np.abs(np.cos(phi)).min() > 0.01 and np.abs(np.sin(phi)).max() < 0.998)
        assume(name != "exponential" or correlation(name, phi, block).min() > 0.011)
    found = entry(block).near(block, covariance.factor(theta, (block,)))
    expected = naive(theta, block)
    np.testing.assert_allclose(naive(found, block), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@cases
@settings(max_examples=100, deadline=None)
def test_starts_are_regular(name, q, seed):
    """Every kind of start is finite and away from singular covariances, also of extreme effects."""
    block, theta, rng = drawn(name, q, seed)
    sd = 10.0 ** rng.uniform(-1.5, 2.5, q)
    start = covariance.start((block,), sd)
    opposite = entry(block).opposite(block, theta)
    root = rng.normal(size=(q, q))
    near = entry(block).near(block, root)
    for found in (start, opposite, near):
        assert found.shape == (block.n_theta,)
        assert np.isfinite(found).all()
    assert covariance.smallest_root(start, (block,)) > 1e-3
    if entry(block).apart and name != "reduced_rank":
        np.testing.assert_allclose(np.diag(naive(start, block)), sd**2, rtol=1e-9)


@cases
@settings(max_examples=100, deadline=None)
def test_smallest_root_is_zero_where_psi_loses_rank(name, q, seed):
    block, theta, rng = drawn(name, q, seed)
    assert covariance.smallest_root(theta, (block,)) > 0
    lost = theta.copy()
    lost[int(rng.integers(0, block.n_theta))] = 0.0
    usual, rank = scaled_rank(naive(theta, block)), scaled_rank(naive(lost, block))
    assert (covariance.smallest_root(lost, (block,)) < 1e-12) == (rank < usual)


def scaled_rank(Psi):
    """The rank of Ψ, its effects in units of their own: some are a million times smaller than others."""
    unit = np.sqrt(np.diag(Psi))
    unit[unit == 0] = 1.0
    return np.linalg.matrix_rank(Psi / np.outer(unit, unit), tol=1e-13)


@pytest.mark.parametrize("name", [n for n in NAMES if REGISTRY[n].root is not None])
@pytest.mark.parametrize("q", [2, 4])
def test_the_ends_of_correlations_are_stationary(name, q):
    """∂Ψ/∂φ = 0 at every singular correlation, and ∂Ψ/∂t = 0 where a standard deviation is zero."""
    block = block_of(name, q, np.random.default_rng(q))
    n_scales = 1 if REGISTRY[name].homogeneous else q
    theta = np.full(block.n_theta, 0.7)
    for at in range(n_scales, block.n_theta):
        for end in (np.pi / 2, -np.pi / 2):
            there = theta.copy()
            there[at] = end
            assert np.abs(covariance.squared_derivatives(there, (block,))[0][:, at]).max() < 1e-12
            L = covariance.factor(there, (block,))
            # Of two equal coordinates' innovation the root of rounding is left, and of Toeplitz equations likewise.
            np.testing.assert_allclose(L @ L.T, naive(there, block), atol=1e-7)
    for at in range(n_scales):
        there = theta.copy()
        there[at] = 0.0
        assert np.abs(covariance.squared_derivatives(there, (block,))[0][:, at]).max() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_jax_computes_the_same(name):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(5)
    template = (block_of(name, 3, rng), make_block("unstructured", 1))
    theta = rng.normal(size=covariance.n_theta(template))
    with jax.enable_x64(True):
        x = jnp.asarray(theta)
        L = covariance.factor(x, template)
        np.testing.assert_allclose(L, covariance.factor(theta, template), atol=1e-13)
        J, J2 = covariance.squared_derivatives(x, template)
        lower = np.tril_indices(4)

        def packed(x):
            L = covariance.factor(x, template)
            return (L @ L.T)[lower]

        np.testing.assert_allclose(J, jax.jacfwd(packed)(x), atol=1e-10)
        np.testing.assert_allclose(np.broadcast_to(J2, (10, len(theta), len(theta))), jax.hessian(packed)(x), atol=1e-9)
        for function in (covariance.canonical, covariance.smallest_root):
            for a, b in zip(
                jax.tree.leaves(function(x, template)), jax.tree.leaves(function(theta, template)), strict=True
            ):
                np.testing.assert_allclose(a, b, atol=1e-13)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("structure", "q", "message"),
    [
        ("toplitz", 2, "unknown covariance structure 'toplitz': did you mean 'toeplitz'"),
        ("cs", 2, "did you mean 'het_compound_symmetry'"),
        ("nonsense", 2, "choose from unstructured, diagonal"),
        (("reduced_rank", 3), 2, "2 effects cannot have rank 3"),
        ("reduced_rank", 1, r"rank 2 \(the default d = 2\)"),
        (("reduced_rank", 1.5), 2, "whole number"),
        (("reduced_rank", "one"), 2, "whole number"),
        (("exponential", [0.0, 1.0]), 3, "a coordinate for each of its 3 effects; got 2"),
        (("exponential", [0.0, 0.0]), 2, "increase"),
        (("exponential", ["a", "b"]), 2, "must be numbers"),
        ("fixed", 2, "needs its matrix"),
        (("fixed", np.eye(3)), 2, r"shape \(3, 3\)"),
        (("fixed", [[1.0, 2.0], [2.0, 1.0]]), 2, "eigenvalues reach -1"),
        (("fixed", [[1.0, 0.5], [0.2, 1.0]]), 2, "not symmetric"),
        (("fixed", [[np.nan, 0.5], [0.5, 1.0]]), 2, "missing or infinite"),
        (("ar1", 3), 2, "takes nothing beside its name"),
        (("ar1", 3, 4), 2, "is a name, or"),
    ],
)
def test_refused(structure, q, message):
    with pytest.raises(DataError, match=message):
        make_block(structure, q)


def test_templates_of_plain_tuples_are_checked():
    template = covariance.make_template((("reduced_rank", 3, (1,)), ("diagonal", 1)), 4)
    assert template == (Block("reduced_rank", 3, (1,)), Block("diagonal", 1))
    assert covariance.make_template(("reduced_rank", 1), 3) == (Block("reduced_rank", 3, (1,)),)
    with pytest.raises(DataError, match="the template has 2 effects, but Z has 3 columns"):
        covariance.make_template((("diagonal", 2),), 3)
    with pytest.raises(UnsupportedError, match="not linear"):
        covariance.linear_basis((Block("het_ar1", 3),))


def test_known_matrix_may_be_singular():
    M = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    block = make_block("fixed", 3, M)
    np.testing.assert_allclose(psi(np.array([0.5]), block), 0.25 * M, atol=1e-14)
    assert covariance.loses_rank((block,))
    assert covariance.smallest_root(np.array([0.5]), (block,)) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_single(name):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(2)
    block = block_of(name, 3, rng)
    with jax.enable_x64(True):
        theta = jnp.asarray(rng.normal(size=(block.n_theta, 2)), dtype="float32")
        sd = jnp.asarray(rng.uniform(0.5, 2.0, (3, 2)), dtype="float32")
        made = [
            covariance.factor(theta, (block,)),
            covariance.squared_derivatives(theta, (block,)),
            covariance.canonical(theta, (block,))[0],
            covariance.smallest_root(theta, (block,)),
            covariance.theta_scale((block,), sd),
            covariance.start((block,), sd),
            entry(block).near(block, covariance.factor(theta, (block,))),
            entry(block).opposite(block, theta),
        ]
        assert {str(a.dtype) for a in jax.tree.leaves(made)} == {"float32"}
