"""A search as a function of its data, differentiable by the implicit function theorem (MATH §6)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import linalg
from .optimize import NewtonState
from .rules import CustomJvp, custom_jvp
from .types import Array

# (data, x0, tol, max_iter, reml) → where the search ended, and how many optima were seen.
Search = Callable[[Any, Array, Any, Any, bool], tuple[NewtonState, Array]]
# (x, data, reml) → value, gradient, Hessian, and what is kept.
Objective = Callable[[Array, Any, bool], tuple[Array, Array, Array, Any]]


def implicit(objective: Objective) -> Callable[[Search], CustomJvp]:
    """Decorate a search for a minimum of ``objective``; JAX goes through the optimum, not through the loop.

    Both modes and any order, as far as the objective's own derivatives go.
    """

    def decorate(search: Search) -> CustomJvp:
        found = custom_jvp(nondiff_argnums=(4,))(search)

        def rule(reml: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            return _moved(objective, found, reml, primals, tangents)

        found.defjvp()(rule)
        return found

    return decorate


def _moved(
    objective: Objective, search: CustomJvp, reml: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """dθ̂ = −H⁻¹ ∂²D/∂θ∂d · ḋ; what was evaluated at θ̂ moves with θ̂ and the data.

    At a singular optimum the deviance is even in the vanished direction, so the mixed derivative is zero
    there and θ̂ moves within its face; a flat direction (H singular) is held by a tiny ridge.
    """
    import jax
    import jax.numpy as jnp

    data, data_dot = primals[0], tangents[0]
    found, optima = search(*primals, reml)
    x, H = found.x, found.hessian
    mixed = jax.jvp(lambda d: objective(x, d, reml)[1], (data,), (data_dot,))[1]
    ridge = 1e3 * jnp.finfo(H.dtype).eps * jnp.abs(jnp.diagonal(H)).max()
    K = linalg.cholesky(H + ridge * jnp.eye(len(x), dtype=H.dtype))
    x_dot = -linalg.solve_upper(K, linalg.solve_lower(K, mixed[:, None]))[:, 0]
    there = jax.jvp(lambda x, d: objective(x, d, reml), (x, data), (x_dot, data_dot))[1]
    value_dot, gradient_dot, hessian_dot, aux_dot = there
    still = jax.tree.map(_zero_tangent, found)
    moved = still._replace(x=x_dot, value=value_dot, gradient=gradient_dot, hessian=hessian_dot, aux=aux_dot)
    return (found, optima), (moved, _zero_tangent(optima))


def _zero_tangent(a: Array) -> Array:
    import jax

    if jax.numpy.issubdtype(a.dtype, np.floating):
        return jax.numpy.zeros_like(a)
    return np.zeros(a.shape, jax.dtypes.float0)
