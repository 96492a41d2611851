"""The derivative rules that JAX follows through what the core writes once; imported only where JAX is.

Each is linear in sums that cost about what the values cost, in reverse too, and no rule passes through a
factorisation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from . import fit, grouped, levels, linalg
from .levels import Filled, Packed, columns, complement, dot, pairs, precision, product, rows, unpack
from .compression import GroupData
from .optimize import NewtonState
from .types import Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def weigh(L: Array, G: Array, filled: Filled) -> tuple[Array, Packed]:
    """``levels.weigh``."""
    return levels.weigh_entries(L, G, filled)


@functools.partial(weigh.defjvp, symbolic_zeros=True)
def _weigh_jvp(filled: Filled, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> Any:
    """d log|M| = tr(U dΨ) + tr(W dG),  dW = F dΨ Fᵀ − W dG W: as cheap as the values, in reverse too."""
    (L, G), (dL, dG) = primals, tangents
    log_det, W = weigh(L, G, filled)
    q = len(filled)
    log_det_dot, W_dot = jnp.zeros_like(log_det), [jnp.zeros_like(w) for w in W]
    if not isinstance(dL, SymbolicZero):
        half = jnp.einsum("ik...,jk...->ij...", dL, L)
        step = rows(half + jnp.swapaxes(half, 0, 1))
        F = complement(W, G)
        U = unpack(precision(G, F))
        log_det_dot += sum(dot(u, d) for u, d in zip(U, step, strict=True))
        moved = product(product(F, step), columns(F))
        W_dot = [w + moved[i][j] for w, (i, j) in zip(W_dot, pairs(q), strict=True)]
    if not isinstance(dG, SymbolicZero):
        full, step = unpack(W), rows(dG)
        log_det_dot += sum(dot(w, d) for w, d in zip(full, step, strict=True))
        moved = product(product(full, step), full)
        W_dot = [w - moved[i][j] for w, (i, j) in zip(W_dot, pairs(q), strict=True)]
    return (log_det, W), (log_det_dot, tuple(W_dot))



@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def log_det_and_explained(L: Array, G: Array, count: Array, C: Array, filled: Filled) -> tuple[Array, Array]:
    """``grouped.log_det_and_explained``."""
    return grouped.log_det_and_explained_sums(L, G, count, C, filled)


@functools.partial(log_det_and_explained.defjvp, symbolic_zeros=True)
def _log_det_and_explained_jvp(filled: Filled, primals: Any, tangents: Any) -> Any:
    """The tangents are linear in sums that cost about what the values cost, in reverse too.

    d log|V| = tr(dΨ ΣU) + Σ tr(W dG),   d ΣCᵀWC = Σ DᵀdΨD − Σ (WC)ᵀdG(WC) + Σ (dCᵀWC + (WC)ᵀdC).
    """
    L, G, count, C = primals
    dL, dG, d_count, dC = tangents
    log_det, W = weigh(L, G, filled)
    log_v, explained = (count * log_det).sum(), grouped.quadratic(W, C)
    log_v_dot, explained_dot = jnp.zeros_like(log_v), jnp.zeros_like(explained)
    WC = grouped.weighted(W, C)
    if not isinstance(dL, SymbolicZero):
        half = dL @ L.T
        F = levels.complement(W, G)
        D = levels.spread(F, C)
        for (i, j), U in zip(levels.pairs(len(D)), levels.precision(G, F), strict=True):
            moved = half[i, j] + half[j, i]
            log_v_dot += moved * (count * U).sum() * (1.0 if i == j else 2.0)
            DD = D[i] @ D[j].T
            explained_dot += moved * (DD if i == j else DD + DD.T)
    if not isinstance(dG, SymbolicZero):
        for i, row in enumerate(levels.unpack(W)):
            for j, weight in enumerate(row):
                log_v_dot += (count * weight * dG[i, j]).sum()
                explained_dot -= (WC[i] * dG[i, j]) @ WC[j].T
    if not isinstance(dC, SymbolicZero):
        for moved_C, weighted in zip(dC, WC, strict=True):
            product = moved_C @ weighted.T
            explained_dot += product + product.T
    if not isinstance(d_count, SymbolicZero):
        log_v_dot += (d_count * log_det).sum()
    return (log_v, explained), (log_v_dot, explained_dot)




@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def search(data: GroupData, x0: Array, tol: Array, max_iter: Array, reml: bool) -> tuple[NewtonState, Array]:
    """``fit.search``."""
    return fit.search(data, jax.lax.stop_gradient(x0), tol, max_iter, reml)


@search.defjvp
def _search_jvp(reml: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """dθ̂ = −H⁻¹ ∂²D/∂θ∂d · ḋ; what was evaluated at θ̂ moves with θ̂ and the data.

    At a singular optimum the deviance is even in the vanished direction, so the mixed derivative is zero
    there and θ̂ moves within its face; a flat direction (H singular) is held by a tiny ridge.
    """
    data, data_dot = primals[0], tangents[0]
    found, optima = search(*primals, reml)
    x, H = found.x, grouped.objective(found.x, data, reml)[2]
    slope_dot = jax.jvp(lambda d: grouped.objective(x, d, reml)[1], (data,), (data_dot,))[1]
    ridge = 1e3 * jnp.finfo(H.dtype).eps * jnp.abs(jnp.diagonal(H)).max()
    K = linalg.cholesky(H + ridge * jnp.eye(len(x), dtype=H.dtype))
    x_dot = -linalg.solve_upper(K, linalg.solve_lower(K, slope_dot[:, None]))[:, 0]
    moved = jax.jvp(lambda x, d: grouped.objective(x, d, reml), (x, data), (x_dot, data_dot))[1]
    value_dot, gradient_dot, hessian_dot, aux_dot = moved
    still = jax.tree.map(_zero_tangent, found)
    moved = still._replace(x=x_dot, value=value_dot, gradient=gradient_dot, hessian=hessian_dot, aux=aux_dot)
    return (found, optima), (moved, _zero_tangent(optima))


def _zero_tangent(a: Array) -> Array:
    if jnp.issubdtype(a.dtype, jnp.floating):
        return jnp.zeros_like(a)
    return np.zeros(a.shape, jax.dtypes.float0)
