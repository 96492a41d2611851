"""The fit as a function of the data: implicit derivatives against finite differences of the whole fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_design

import lme_jax as lme
from lme_jax.core.types import Status

pytestmark = pytest.mark.slow

N, M = 60, 8


def problem():
    y, X, Z, codes, *_ = random_design(3, n=N, m=M, p=2, q=2)
    weights = np.random.default_rng(1).uniform(0.5, 2.0, N)
    return jnp.asarray(y), jnp.asarray(X), jnp.asarray(Z), jnp.asarray(weights), jnp.asarray(codes)


def everything(y, X, Z, weights, codes):
    fitted = lme.fit(lme.compress(y, X, Z, codes, weights=weights, n_groups=M))
    return jnp.concatenate([fitted.beta, fitted.theta, fitted.sigma[None], fitted.deviance[None]])


def difference(f, x, h=1e-5):
    return (f(x + h) - f(x - h)) / (2 * h)


def test_first_order_in_every_argument():
    with jax.enable_x64(True):
        *arrays, codes = problem()
        f = jax.jit(lambda *a: everything(*a, codes))
        reverse = jax.jit(jax.jacrev(lambda *a: everything(*a, codes), argnums=(0, 1, 2, 3)))(*arrays)
        for position, jacobian in enumerate(reverse):
            base = arrays[position]
            for at in [(0,), (17,), (N - 1,)]:
                index = at if base.ndim == 1 else (*at, 1)

                def moved(x, position=position, base=base, index=index):
                    return f(*(base.at[index].set(x) if i == position else a for i, a in enumerate(arrays)))

                numeric = difference(moved, base[index])
                # Central differences with h = 1e-5 of a fit converged to rounding.
                np.testing.assert_allclose(jacobian[:, *index], numeric, rtol=1e-6, atol=1e-6)


def test_forward_equals_reverse_and_second_order():
    with jax.enable_x64(True):
        y, X, Z, weights, codes = problem()

        def slope(y):
            return everything(y, X, Z, weights, codes)[1]

        gradient = jax.jit(jax.grad(slope))
        np.testing.assert_allclose(jax.jit(jax.jacfwd(slope))(y), gradient(y), atol=1e-12)
        second = jax.jit(jax.jacfwd(jax.grad(slope)))(y)
        np.testing.assert_allclose(second, second.T, atol=1e-10)
        for i in (0, 31):
            numeric = difference(lambda x, i=i: gradient(y.at[i].set(x)), y[i])
            np.testing.assert_allclose(second[i], numeric, rtol=1e-5, atol=1e-8)


def test_singular_fits_move_within_their_face():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(10), 6)
    y = rng.normal(size=60)
    y -= 0.9 * np.array([y[codes == c].mean() for c in range(10)])[codes]
    with jax.enable_x64(True):
        one = jnp.ones((60, 1))

        def fitted(y):
            return lme.fit(lme.compress(y, one, one, jnp.asarray(codes), n_groups=10))

        y = jnp.asarray(y)
        assert fitted(y).status == Status.SINGULAR
        theta, sigma = jax.jit(jax.jacrev(lambda y: (fitted(y).theta, fitted(y).sigma)))(y)
        np.testing.assert_allclose(theta, 0.0, atol=1e-9)
        # With θ̂ = 0 the fit is ordinary least squares: ∂σ̂/∂y = (y − ȳ)/((n − 1)σ̂).
        np.testing.assert_allclose(sigma, (y - y.mean()) / (59 * fitted(y).sigma), rtol=1e-8)


def unrolled(y, X, Z, weights, codes, steps=12):
    """The same search as plain operations, for autodiff to walk through: damped by nothing, from near the optimum."""
    data = lme.compress(y, X, Z, codes, weights=weights, n_groups=M)

    def step(theta, _):
        slope = jax.grad(lambda t: lme.deviance(t, data))(theta)
        curvature = jax.hessian(lambda t: lme.deviance(t, data))(theta)
        return theta - jnp.linalg.solve(curvature, slope), None

    start = jax.lax.stop_gradient(lme.fit(data).theta) * 1.05
    return jax.lax.scan(step, start, None, length=steps)[0]


def test_implicit_equals_an_unrolled_optimiser():
    with jax.enable_x64(True):
        y, X, Z, weights, codes = problem()

        def implicit(y):
            return lme.fit(lme.compress(y, X, Z, codes, weights=weights, n_groups=M)).theta

        direction = jnp.asarray(np.random.default_rng(2).normal(size=(N, 3)))
        for v in direction.T:
            expected = jax.jit(lambda y, v: jax.jvp(lambda y: unrolled(y, X, Z, weights, codes), (y,), (v,)))(y, v)
            found = jax.jit(lambda y, v: jax.jvp(implicit, (y,), (v,)))(y, v)
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-8)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-7, atol=1e-9)


def test_every_public_piece_passes_check_grads():
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        y, X, Z, weights, codes = problem()
        theta = jnp.array([0.8, 0.1, 0.5])

        def compressed(y, weights):
            return lme.compress(y, X, Z, codes, weights=weights, n_groups=M)

        def deviance(theta, y, weights):
            return lme.deviance(theta, compressed(y, weights))

        def held(theta, y):
            fitted = lme.fit_at(theta, compressed(y, weights))
            return jnp.concatenate([fitted.beta, fitted.sigma[None]])

        def predicted(y):
            data = compressed(y, weights)
            return lme.predict(lme.fit(data), data, X[:5], Z[:5], jnp.array([0, 1, -1, 2, 3]))

        check_grads(jax.jit(deviance), (theta, y, weights), order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)
        check_grads(jax.jit(held), (theta, y), order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)
        check_grads(jax.jit(predicted), (y,), order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


def test_vmapped_gradients_are_those_of_single_fits_and_singular_lanes_are_finite():
    with jax.enable_x64(True):
        y, X, Z, weights, codes = problem()
        quiet = y - 0.97 * jnp.asarray([float(y[codes == c].mean()) for c in range(M)])[codes]
        Y = jnp.stack([y, quiet, y[::-1]])

        def sigma_and_theta(y):
            fitted = lme.fit(lme.compress(y, X, Z, codes, weights=weights, n_groups=M))
            return jnp.concatenate([fitted.theta, fitted.sigma[None]]), fitted.status

        jacobian = jax.jit(jax.jacrev(sigma_and_theta, has_aux=True))
        many, status = jax.jit(jax.vmap(jax.jacrev(sigma_and_theta, has_aux=True)))(Y)
        assert Status.SINGULAR in status.tolist()
        assert np.isfinite(many).all()
        for lane, row in zip(many, Y, strict=True):
            np.testing.assert_allclose(lane, jacobian(row)[0], rtol=1e-6, atol=1e-8)


def test_new_values_do_not_trace_again():
    with jax.enable_x64(True):
        y, X, Z, weights, codes = problem()
        traces = []

        @jax.jit
        def gradient(y):
            traces.append(1)
            return jax.grad(lambda y: everything(y, X, Z, weights, codes)[0])(y)

        gradient(y)
        gradient(y + 1.0)
        assert len(traces) == 1


def test_float32_callers_stay_in_float32():
    """Relative to float64 the estimates are good to 1e-4 and the deviance to 1e-5 of its size (README)."""
    with jax.enable_x64(True):
        double = problem()
        exact = everything(*double)
    single = [jnp.asarray(np.asarray(a), jnp.float32) for a in double[:4]]
    codes = jnp.asarray(np.asarray(double[4]), jnp.int32)
    found = everything(*single, codes)
    assert found.dtype == jnp.float32
    slope = jax.grad(lambda y: everything(y, *single[1:], codes)[0])(single[0])
    assert slope.dtype == jnp.float32 and np.isfinite(slope).all()
    np.testing.assert_allclose(found[:-1], exact[:-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[-1], exact[-1], rtol=1e-5)
