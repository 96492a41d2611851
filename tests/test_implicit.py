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
