"""The graph that hangs jaxlib 0.10 on CPU when written with batched LAPACK, through our own kernels."""

import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from lme_jax.core import linalg
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
root = rng.normal(size=(2, 2, 20_000))
G = jnp.asarray(np.einsum("abg,cbg->acg", root, root))
B = jnp.asarray(rng.normal(size=(2, 3, 20_000)))

def objective(theta):
    L = jnp.array([[theta[0], 0.0], [theta[1], theta[2]]])[:, :, None]
    M = linalg.matmul(linalg.transpose(L), linalg.matmul(G, L)) + jnp.eye(2)[:, :, None]
    K = linalg.cholesky(M)
    return linalg.log_det(K).sum() + (linalg.solve_lower(K, B) ** 2).sum()

hessian = jax.jit(jax.hessian(objective))
theta = jnp.array([1.0, 0.1, 0.9])
first = hessian(theta)
for _ in range(1000):
    value = hessian(theta)
assert bool((value == first).all())
"""


@pytest.mark.slow
def test_thousand_hessians_end():
    # Ten times the minute that a loaded two-core machine needs; the hang is for ever.
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=600)
