"""What only JAX needs for several grouping factors; imported only where a JAX array is at hand.

Derivatives never pass through the Cholesky factor of the dense system S: they are given by S⁻¹, formed once and
shared by all parameters. LAPACK is called for one matrix at a time also under ``vmap``: batched calls can hang in
jaxlib 0.10 on CPU.

References: Bates et al. (2015), eqs 30–42; Bates & DebRoy (2004) for the gradient.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import levels, linalg
from .crossed_data import CrossedData, Layout
from .types import Array


def sum_by_segment(values: Array, segment: Array, n: int) -> Array:
    """(r, c, m) → (r, c, n) for a non-decreasing segment (m,)."""
    add = functools.partial(jax.ops.segment_sum, segment_ids=segment, num_segments=n, indices_are_sorted=True)
    rows = values.reshape(-1, values.shape[-1])
    sums = jnp.stack([add(row) for row in rows]) if len(rows) <= 12 else jax.vmap(add)(rows)
    return sums.reshape(*values.shape[:-1], n)


@jax.custom_batching.sequential_vmap
def _inverse(S: Array) -> Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(S), True), jnp.eye(S.shape[0], dtype=S.dtype))


@jax.custom_batching.sequential_vmap
def _bordered(S: Array, R: Array) -> tuple[Array, Array]:
    K = jnp.linalg.cholesky(S)
    half = jax.scipy.linalg.solve_triangular(K, R, lower=True)
    return linalg.log_det(K), half.T @ half


@jax.custom_jvp
def spd_inverse(S: Array) -> Array:
    """S⁻¹ of a symmetric positive-definite S (K, K)."""
    return _inverse(S)


@spd_inverse.defjvp
def _spd_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = spd_inverse(*primals)
    return inverse, -inverse @ tangents[0] @ inverse


@jax.custom_jvp
def bordered(S: Array, R: Array) -> tuple[Array, Array]:
    """log|S| () and RᵀS⁻¹R (c, c) for symmetric positive-definite S (K, K) and R (K, c)."""
    return _bordered(S, R)


@bordered.defjvp
def _bordered_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Any, Any]:
    (S, R), (dS, dR) = primals, tangents
    inverse = spd_inverse(S)
    solved = inverse @ R
    moved = dR.T @ solved
    return bordered(S, R), ((inverse * dS).sum(), moved + moved.T - solved.T @ dS @ solved)


def _apply_root(Ls: list[Array], layout: Layout, X: Array) -> Array:
    """Λ₂ᵀX for X (K, c)."""
    parts = []
    for j, rows in layout.dense_slices:
        q = layout.sizes[j]
        if q == 1:
            parts.append(Ls[j][0, 0] * X[rows])
        else:
            parts.append(jnp.einsum("ab,mac->mbc", Ls[j], X[rows].reshape(-1, q, X.shape[1])).reshape(-1, X.shape[1]))
    return jnp.concatenate(parts)


def crossed_log_det_and_cross(Ls: list[Array], data: CrossedData) -> tuple[Array, Array]:
    """``crossed.log_det_and_cross`` of a crossed design, as ``dense`` computes it."""
    layout, K = data.layout, data.layout.n_dense
    L1 = Ls[layout.order[0]]
    q1 = L1.shape[0]
    log_det, M, _ = levels.eliminated(L1, data.G)
    n_pairs, n_products = data.base.shape[0], data.product_pattern.shape[0]
    pair = jnp.repeat(jnp.arange(n_pairs), jnp.diff(data.product_ends), total_repeat_length=n_products)
    products = (M[np.tril_indices(q1)][:, data.product_pattern] * data.product_value).sum(0)
    N_pairs = data.base - jax.ops.segment_sum(products, pair, n_pairs, indices_are_sorted=True)
    lower = jnp.zeros((K, K), N_pairs.dtype).at[data.pair_row, data.pair_column].set(N_pairs, unique_indices=True)
    N = lower + jnp.tril(lower, -1).T
    S = _apply_root(Ls, layout, _apply_root(Ls, layout, N).T) + jnp.eye(K, dtype=N.dtype)
    MC = linalg.matmul(M[:, :, data.pattern], data.Z1W)
    H = data.WtW - sum(data.Z1W[a] @ MC[a].T for a in range(q1))
    pulled = sum(data.entry_value[a] * MC[a][:, data.entry_level] for a in range(q1))
    add = functools.partial(jax.ops.segment_sum, segment_ids=data.entry_column, num_segments=K, indices_are_sorted=True)
    R = _apply_root(Ls, layout, data.Z2W - jax.vmap(add)(pulled).T)
    log_s, cross = bordered(S, R)
    return (data.count * log_det).sum() + log_s, H - cross
