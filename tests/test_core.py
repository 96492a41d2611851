"""Compression, deviance, fit and random effects of one grouping factor against dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_design

from lme_jax.core import compression, covariance, fit, grouped
from lme_jax.core.covariance import Block
from lme_jax.core.effects import random_effects
from lme_jax.core.optimize import NewtonOptions
from lme_jax.core.types import Status
from tests.oracles import dense

SHAPES = [dict(q=1, p=1), dict(q=1, p=3), dict(q=2, p=2), dict(q=2, p=4, weighted=True), dict(q=3, p=3), dict(q=6, p=7)]
STRUCTURES = ["unstructured", "diagonal", "identity", "compound_symmetry", "ar1"]


def model_of(design, structure="unstructured", reml=True):
    """As the dense oracle takes it."""
    y, X, Z, codes, m, w = design
    return dense.Model(y, X, (dense.Factor(Z, codes, m, structure),), w, reml=reml)


def compressed(design, structure="unstructured"):
    y, X, Z, codes, m, w = design
    return compression.compress(y, X, Z, codes, weights=w, structure=structure, n_groups=m)


def factor_at(theta, template):
    return covariance.factor(np.asarray(theta, float), template)


def random_theta(template, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=covariance.n_theta(template))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reml", [True, False])
def test_deviance_equals_dense(shape, reml):
    for seed in range(3):
        design = random_design(seed, **shape)
        data = compressed(design)
        theta = random_theta(data.template, seed)
        expected = dense.deviance(theta, model_of(design, reml=reml))
        assert grouped.deviance(theta, data, reml=reml) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("reml", [True, False])
def test_fit_is_the_dense_optimum(structure, reml):
    design = random_design(11, n=120, m=12, q=3, p=3, weighted=True)
    data, model = compressed(design, structure), model_of(design, structure, reml)
    result = fit.fit(data, reml=reml)
    assert result.status in (Status.CONVERGED, Status.SINGULAR)
    expected = dense.at(result.theta, model)
    assert result.deviance == pytest.approx(expected.deviance, abs=1e-9)
    np.testing.assert_allclose(result.beta, expected.beta, rtol=1e-9)
    np.testing.assert_allclose(result.sigma, expected.sigma, rtol=1e-10)
    np.testing.assert_allclose(result.unscaled_cov, expected.unscaled_cov, rtol=1e-9)
    effects = random_effects(result, data)[0]
    for field in ("b", "conditional_cov", "prediction_cov"):
        np.testing.assert_allclose(getattr(effects, field)[:12], getattr(expected, field)[0], rtol=1e-8, atol=1e-10)
    for step in 1e-3 * np.eye(len(result.theta)):
        for moved in (result.theta + step, result.theta - step):
            assert dense.deviance(moved, model) >= expected.deviance - 1e-9


@pytest.mark.parametrize("balanced", [True, False])
def test_merge_of_any_split_is_one_pass(balanced):
    y, X, Z, codes, m, w = random_design(3, weighted=True, balanced=balanced)
    template = (Block("unstructured", 2),)
    whole = compression.pool(compression.group_moments(y, X, Z, codes, m, template=template, weights=w))
    rng = np.random.default_rng(0)
    for _ in range(3):
        part = rng.integers(0, 3, len(y))
        pieces = [
            compression.group_moments(y[s], X[s], Z[s], codes[s], m, template=template, weights=w[s])
            for s in (part == 0, part == 1, part == 2)
        ]
        merged = compression.pool(compression.merge(compression.merge(pieces[0], pieces[1]), pieces[2]))
        theta = rng.normal(size=3)
        expected = grouped.deviance(theta, whole)
        assert grouped.deviance(theta, merged) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "first", ["one row", "fewer rows than columns", "constant column", "exactly fitted", "no rows"]
)
def test_a_chunk_need_not_be_typical(first):
    """Tiny, rank deficient or exactly fitted, first or last: the basis is changed where chunks meet."""
    y, X, Z, codes, m, w = random_design(3, n=150, m=10, p=3, q=2, weighted=True)
    X[:, 1] += 1e3
    order = np.arange(len(y))
    size = {"one row": 1, "fewer rows than columns": 2, "no rows": 0}.get(first, 40)
    part = order < size
    if first == "constant column":
        X[part, 2] = 0.0
    if first == "exactly fitted":
        y[part] = X[part] @ np.array([1.0, 2.0, -1.0])
    template = (Block("unstructured", 2),)

    def moments(rows):
        return compression.group_moments(y[rows], X[rows], Z[rows], codes[rows], m, template=template, weights=w[rows])

    whole = compression.pool(moments(order >= 0))
    other = (order >= size) & (order < 80)
    pieces = [moments(rows) for rows in (part, other, order >= max(size, 80))]
    for sequence in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        merged = pieces[sequence[0]]
        for number in sequence[1:]:
            merged = compression.merge(merged, pieces[number])
        data = compression.pool(merged)
        theta = np.array([0.7, -0.3, 1.2])
        assert grouped.deviance(theta, data) == pytest.approx(float(grouped.deviance(theta, whole)), abs=1e-8)
        found, expected = fit.fit(data), fit.fit(whole)
        np.testing.assert_allclose(found.beta, expected.beta, rtol=1e-7)
        np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-9)


def test_patterns_change_nothing():
    design = random_design(5, n=120, m=20, balanced=True)
    data = compressed(design)
    moments = data.moments
    assert data.G.shape[-1] <= data.C.shape[0] * data.C.shape[1] < 20
    assert np.unique(data.G.reshape(-1, data.G.shape[-1]), axis=1).shape[1] <= 2  # the pattern, and padding
    assert data.count.sum() == 20.0 == data.count.max()
    count, within = np.ones(moments.ZtZ.shape[-1]), compression.within_levels(moments)
    single = compression.GroupData(moments.ZtZ, count, moments.ZtW, *within, moments)
    for seed in range(3):
        theta = random_theta(data.template, seed)
        assert grouped.deviance(theta, data) == pytest.approx(grouped.deviance(theta, single), abs=1e-9)


def test_padding_changes_nothing():
    y, X, Z, codes, m, _ = random_design(2, n=100, m=9)
    data = compression.compress(y, X, Z, codes, n_groups=m)
    wide = compression.compress(y, X, Z, codes, n_groups=37)
    assert fit.fit(data).deviance == pytest.approx(float(fit.fit(wide).deviance), abs=1e-10)
    assert [compression.bucket(k) for k in (1, 5, 8, 9, 16, 17, 100)] == [1, 5, 8, 10, 16, 20, 112]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_theta_packing(structure):
    template = covariance.make_template(structure, 3)
    theta = random_theta(template, 1)
    with jax.enable_x64(True):
        canonical = np.asarray(covariance.canonical(jnp.asarray(theta), template)[0])
    L, C = factor_at(theta, template), factor_at(canonical, template)
    np.testing.assert_allclose(C @ C.T, L @ L.T, atol=1e-13)
    assert len(theta) == covariance.n_theta(template)
    if structure in ("unstructured", "diagonal", "identity", "ar1"):
        assert (np.diag(C) >= 0).all()


def test_structures_mean_what_they_say():
    cs = factor_at([1.3, 0.4], covariance.make_template("compound_symmetry", 4))
    Psi = cs @ cs.T
    off = Psi[~np.eye(4, dtype=bool)]
    assert np.ptp(np.diag(Psi)) < 1e-14 and np.ptp(off) < 1e-14
    ar = factor_at([1.5, 0.75], covariance.make_template("ar1", 4))
    Psi = ar @ ar.T
    rho = np.sin(0.75)
    np.testing.assert_allclose(Psi, 1.5**2 * rho ** np.abs(np.subtract.outer(range(4), range(4))), rtol=1e-13)
    two = factor_at([1.0, 2.0, 3.0, 5.0], (Block("unstructured", 2), Block("identity", 1)))
    np.testing.assert_array_equal(two, [[1, 0, 0], [2, 3, 0], [0, 0, 5]])


class TestInvariance:
    """One model, told in other words, is the same fit."""

    design = random_design(21, n=150, m=15, p=3, q=2)

    def fitted(self, y, X, Z, codes):
        return fit.fit(compression.compress(y, X, Z, codes))

    def test_group_order_and_labels(self):
        y, X, Z, codes, m, _ = self.design
        base = self.fitted(y, X, Z, codes)
        labels = np.array([f"g{(7 * c) % m}" for c in codes])
        order = np.random.default_rng(0).permutation(len(y))
        other = self.fitted(y[order], X[order], Z[order], labels[order])
        assert other.deviance == pytest.approx(float(base.deviance), abs=1e-9)
        np.testing.assert_allclose(other.theta, base.theta, rtol=1e-7)

    @pytest.mark.parametrize(("shift", "scale"), [(1e8, 1.0), (0.0, 1e8), (0.0, 1e-8), (-3.0, 7.0)])
    def test_y_shift_and_scale(self, shift, scale):
        y, X, Z, codes, *_ = self.design
        base = self.fitted(y, X, Z, codes)
        other = self.fitted(shift + scale * y, X, Z, codes)
        # At 1e8 the data themselves hold 8 digits after the offset.
        tol = 1e-7 if shift == 1e8 else 1e-9
        np.testing.assert_allclose(other.theta, base.theta, rtol=100 * tol)
        np.testing.assert_allclose(other.sigma, scale * base.sigma, rtol=tol)
        np.testing.assert_allclose(other.beta[1:], scale * base.beta[1:], rtol=100 * tol)
        np.testing.assert_allclose(other.beta[0] - shift, scale * base.beta[0], rtol=100 * tol)
        N = len(y) - X.shape[1]
        assert other.deviance == pytest.approx(float(base.deviance) + 2 * N * np.log(scale), abs=1e-6)

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_scaled_columns(self, scale):
        y, X, Z, codes, *_ = self.design
        base = self.fitted(y, X, Z, codes)
        S = np.array([1.0, scale, 1.0])
        other = self.fitted(y, X * S, Z * S[:2], codes)
        np.testing.assert_allclose(other.beta * S, base.beta, rtol=1e-7)
        np.testing.assert_allclose(other.relative_factor * S[:2, None], base.relative_factor, rtol=1e-6, atol=1e-8)
        assert other.deviance == pytest.approx(float(base.deviance) + 2 * np.log(scale), abs=1e-7)

    def test_covariate_with_a_large_offset(self):
        y, X, Z, codes, *_ = self.design
        moved = X.copy()
        moved[:, 1] += 1e6
        base = fit.fit(compression.compress(y, X, Z[:, :1], codes))
        other = fit.fit(compression.compress(y, moved, Z[:, :1], codes))
        np.testing.assert_allclose(other.beta[1:], base.beta[1:], rtol=1e-6)
        assert other.deviance == pytest.approx(float(base.deviance), abs=1e-6)

    def test_reparametrised_x(self):
        y, X, Z, codes, *_ = self.design
        T = np.array([[1.0, 2.0, 0.0], [0.0, 3.0, -1.0], [0.5, 0.0, 1.0]])
        base, other = self.fitted(y, X, Z, codes), self.fitted(y, X @ T, Z, codes)
        np.testing.assert_allclose(T @ other.beta, base.beta, rtol=1e-8)
        shift = 2 * np.log(abs(np.linalg.det(T)))
        assert other.deviance == pytest.approx(float(base.deviance) + shift, abs=1e-8)


def test_singular_fit_is_the_boundary_optimum():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(10), 6)
    y = rng.normal(size=60)
    y -= np.array([y[codes == c].mean() for c in range(10)])[codes] * 0.9
    X = np.ones((60, 1))
    data = compression.compress(y, X, X, codes)
    result = fit.fit(data)
    assert result.status == Status.SINGULAR
    assert result.theta[0] < 1e-6
    ols = 60 - 1
    expected = ols * (1 + np.log(2 * np.pi * y.var() * 60 / ols)) + np.log(60)
    assert result.deviance == pytest.approx(expected, abs=1e-9)
    # θ = 0 is stationary for every data set; started there, a fit with real variance must leave it.
    z = y + 5 * rng.normal(size=10)[codes]
    moved = compression.compress(z, X, X, codes)
    away, usual = fit.fit(moved, start=np.zeros(1)), fit.fit(moved)
    assert away.status == Status.CONVERGED
    assert away.deviance == pytest.approx(float(usual.deviance), abs=1e-9)


def test_status_says_what_happened():
    y, X, Z, codes, *_ = random_design(1)
    data = compression.compress(y, X, Z, codes)
    assert fit.fit(data, options=NewtonOptions(max_iter=2)).status == Status.MAX_ITER
    exact = compression.compress(X @ np.array([1.0, 2.0, 3.0]), X, Z, codes)
    assert fit.fit(exact).status == Status.NOT_FINITE
    assert np.isnan(grouped.deviance(np.ones(3), exact))


class TestTransforms:
    """The core under jit, vmap and grad, in float32 and float64."""

    def arrays(self, dtype, seed=31):
        y, X, Z, codes, m, _ = random_design(seed, n=80, m=8)
        return *(jnp.asarray(a, dtype) for a in (y, X, Z)), jnp.asarray(codes), m

    def test_traced_compression_equals_host(self):
        y, X, Z, codes, m, w = random_design(31, n=80, m=8, weighted=True)
        host = fit.fit(compression.compress(y, X, Z, codes, weights=w))
        with jax.enable_x64(True):

            @jax.jit
            def program(y, X, Z, codes, w):
                data = compression.compress(y, X, Z, codes, weights=w, n_groups=m)
                result = fit.fit(data)
                return result, random_effects(result, data)[0].b

            traced, b = program(*map(jnp.asarray, (y, X, Z, codes, w)))
            np.testing.assert_allclose(traced.deviance, host.deviance, atol=1e-9)
            np.testing.assert_allclose(traced.theta, host.theta, rtol=1e-7)
            expected = random_effects(host, compression.compress(y, X, Z, codes, weights=w))[0].b[:m]
            np.testing.assert_allclose(b, expected, rtol=1e-6, atol=1e-9)

    def test_vmap_over_responses_equals_a_loop(self):
        with jax.enable_x64(True):
            y, X, Z, codes, m = self.arrays(jnp.float64)
            Y = y + 0.5 * jnp.asarray(np.random.default_rng(0).normal(size=(6, 80)))

            def one(y):
                return fit.fit(compression.compress(y, X, Z, codes, n_groups=m))

            many = jax.vmap(one)(Y)
            for i in range(6):
                np.testing.assert_allclose(many.deviance[i], one(Y[i]).deviance, atol=1e-8)
                np.testing.assert_allclose(many.beta[i], one(Y[i]).beta, rtol=1e-6)

    def test_float32_has_its_own_accuracy(self):
        y, X, Z, codes, m, _ = random_design(31, n=80, m=8)
        exact = fit.fit(compression.compress(y, X, Z, codes))
        y32, X32, Z32, codes32, m = self.arrays(jnp.float32)
        single = fit.fit(compression.compress(y32, X32, Z32, codes32, n_groups=m))
        assert single.beta.dtype == jnp.float32
        # float32 carries 7 digits; the deviance is a sum of 80 terms of order 1.
        assert float(single.deviance) == pytest.approx(float(exact.deviance), rel=2e-6)
        np.testing.assert_allclose(single.beta, exact.beta, rtol=1e-4)

    def test_import_switches_nothing_on(self):
        assert not jax.config.jax_enable_x64
