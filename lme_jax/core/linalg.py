"""Small dense kernels with the batch on the *last* axes: (rows, columns, *batch).

Written out in array operations (no batched LAPACK, which can hang in jaxlib 0.10 on CPU): unrolled
for small matrices, a ``fori_loop`` over columns for larger ones. All are differentiable.
"""

import jax
import jax.numpy as jnp

from .types import Array

UNROLL_UP_TO = 5


def cholesky(M: Array) -> Array:
    """Lower Cholesky factor of M (q, q, *batch); NaN where M is not positive definite."""
    if M.shape[0] <= UNROLL_UP_TO:
        return _cholesky_unrolled(M)
    return _cholesky_loop(M)


def _cholesky_unrolled(M: Array) -> Array:
    q = M.shape[0]
    zero = jnp.zeros(M.shape[2:], M.dtype)
    K = [[zero] * q for _ in range(q)]
    for j in range(q):
        K[j][j] = jnp.sqrt(M[j, j] - sum((K[j][c] ** 2 for c in range(j)), zero))
        for i in range(j + 1, q):
            K[i][j] = (M[i, j] - sum((K[i][c] * K[j][c] for c in range(j)), zero)) / K[j][j]
    return jnp.stack([jnp.stack(row) for row in K])


def _cholesky_loop(M: Array) -> Array:
    q = M.shape[0]
    rows = jnp.arange(q).reshape((q,) + (1,) * (M.ndim - 2))

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, K = carry
        column = jnp.where(rows >= j, rest[:, j], 0.0) / jnp.sqrt(rest[j, j])
        return rest - column[:, None] * column[None, :], K.at[:, j].set(column)

    return jax.lax.fori_loop(0, q, eliminate, (M, jnp.zeros_like(M)))[1]


def solve_lower(K: Array, B: Array) -> Array:
    """K⁻¹B for lower-triangular K (q, q, *batch) and B (q, m, *batch)."""
    q = K.shape[0]
    if q == 0:
        return jnp.zeros_like(B)
    if q <= UNROLL_UP_TO:
        rows: list[Array] = []
        for i in range(q):
            known = sum((K[i, c][None] * rows[c] for c in range(i)), jnp.zeros_like(B[0]))
            rows.append((B[i] - known) / K[i, i][None])
        return jnp.stack(rows)

    def substitute(i: Array, X: Array) -> Array:
        # Rows of X at and below i still hold the right-hand side's zeros, so the full sum is the partial one.
        known = (K[i][:, None] * X).sum(0)
        return X.at[i].set((B[i] - known) / K[i, i][None])

    return jax.lax.fori_loop(0, q, substitute, jnp.zeros_like(B))


def solve_upper(K: Array, B: Array) -> Array:
    """K⁻ᵀB for lower-triangular K (q, q, *batch) and B (q, m, *batch)."""
    flipped = jnp.flip(jnp.swapaxes(K, 0, 1), (0, 1))
    return jnp.flip(solve_lower(flipped, jnp.flip(B, 0)), 0)


def matmul(A: Array, B: Array) -> Array:
    """AB for A (r, m, *batch) and B (m, c, *batch), as m fused outer products.

    XLA's CPU reduction over a middle axis is an order of magnitude slower than this sum.
    """
    total = A[:, 0, None] * B[None, 0]
    for j in range(1, A.shape[1]):
        total = total + A[:, j, None] * B[None, j]
    return total


def transpose(A: Array) -> Array:
    """Aᵀ for A (r, c, *batch)."""
    return jnp.swapaxes(A, 0, 1)


def log_det(K: Array) -> Array:
    """log|KKᵀ| for a Cholesky factor K (q, q, *batch)."""
    return 2.0 * jnp.log(jnp.diagonal(K)).sum(-1)


def ldl(A: Array, floor: Array) -> tuple[Array, Array, Array]:
    """A = C diag(d) Cᵀ of a symmetric A (k, k, *batch), without pivoting.

    Returns
    -------
    C : (k, k, *batch) unit lower triangular.
    d : (k, *batch) pivots; their signs are the inertia of A.
    safe : (k, *batch) |d| raised to ``floor`` (*batch): the pivots of a positive-definite matrix close to A.
    """
    k = A.shape[0]
    if k <= UNROLL_UP_TO:
        return _ldl_unrolled(A, floor)
    rows = jnp.arange(k).reshape((k,) + (1,) * (A.ndim - 2))

    def eliminate(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rest, C, d = carry
        pivot = rest[j, j]
        divisor = jnp.where(jnp.abs(pivot) < floor, floor, pivot)
        column = jnp.where(rows > j, rest[:, j], 0.0) / divisor
        rest = rest - divisor * column[:, None] * column[None, :]
        return rest, C.at[:, j].set(column.at[j].set(1.0)), d.at[j].set(pivot)

    start = (A, jnp.zeros_like(A), jnp.zeros(A.shape[1:], A.dtype))
    _, C, d = jax.lax.fori_loop(0, k, eliminate, start)
    return C, d, jnp.maximum(jnp.abs(d), floor)


def _ldl_unrolled(A: Array, floor: Array) -> tuple[Array, Array, Array]:
    k = A.shape[0]
    one, zero = jnp.ones(A.shape[2:], A.dtype), jnp.zeros(A.shape[2:], A.dtype)
    C = [[one if i == j else zero for j in range(k)] for i in range(k)]
    pivots: list[Array] = []
    divisors: list[Array] = []
    for j in range(k):
        pivots.append(A[j, j] - sum(C[j][c] ** 2 * divisors[c] for c in range(j)))
        divisors.append(jnp.where(jnp.abs(pivots[j]) < floor, floor, pivots[j]))
        for i in range(j + 1, k):
            known = sum(C[i][c] * C[j][c] * divisors[c] for c in range(j))
            C[i][j] = (A[i, j] - known) / divisors[j]
    d = jnp.stack(pivots)
    return jnp.stack([jnp.stack(row) for row in C]), d, jnp.maximum(jnp.abs(d), floor)
