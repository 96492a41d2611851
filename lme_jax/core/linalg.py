"""Small dense kernels with the batch on the *last* axes: (rows, columns, *batch).

NumPy matrices without a batch go to LAPACK. Everything else is written out in array operations (no batched
LAPACK, which can hang in jaxlib 0.10 on CPU): unrolled for small matrices, a loop over columns for larger
ones. All are differentiable.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from .types import Array, namespace, select

UNROLL_UP_TO = 5


@functools.lru_cache(maxsize=64)
def tril(q: int) -> tuple[np.ndarray, np.ndarray]:
    """``np.tril_indices``: rows and columns of a packed symmetric matrix; not to be written to."""
    # int32 whether or not x64 is on: JAX keeps what it made of an array that it meets again.
    rows, columns = np.tril_indices(q)
    return rows.astype(np.int32), columns.astype(np.int32)


def is_one(M: Array) -> bool:
    """Whether M is one NumPy matrix."""
    return type(M) is np.ndarray and M.ndim == 2


def stack_rows(rows: Any) -> Array:
    """(r, c, *batch) of a list of lists of entries (*batch)."""
    xp = namespace(*(entry for row in rows for entry in row))
    if xp is np:
        return np.array(rows)
    return xp.stack([xp.stack(row) for row in rows])


def identity(q: int, like: Array) -> Array:
    """I (q, q, 1, …) to broadcast against ``like`` (q, ·, *batch)."""
    xp = namespace(like)
    return xp.eye(q, dtype=like.dtype).reshape(q, q, *[1] * (like.ndim - 2))


def loop(n: int, body: Callable[[Any, Any], Any], carry: Any, xp: Any) -> Any:
    """``body(i, carry)`` for i = 0 … n − 1."""
    if xp is np:
        for i in range(n):
            carry = body(i, carry)
        return carry
    import jax

    return jax.lax.fori_loop(0, n, body, carry)


def put(array: Array, index: Any, value: Array) -> Array:
    """The array with array[index] = value; NumPy arrays are changed in place, so give one of your own."""
    if type(array) is np.ndarray:
        array[index] = value
        return array
    return array.at[index].set(value)


def cholesky(M: Array) -> Array:
    """Lower Cholesky factor of M (q, q, *batch); NaN where M is not positive definite."""
    if is_one(M):
        if not len(M):
            return M
        K, info = lapack.dpotrf(M, lower=1)
        return K if info == 0 else np.full_like(M, np.nan)
    if M.shape[0] <= UNROLL_UP_TO:
        return _cholesky_unrolled(M)
    return _cholesky_loop(M)


def _cholesky_unrolled(M: Array) -> Array:
    q, xp = M.shape[0], namespace(M)
    zero = xp.zeros(M.shape[2:], M.dtype)
    K = [[zero] * q for _ in range(q)]
    for j in range(q):
        K[j][j] = xp.sqrt(M[j, j] - sum((K[j][c] ** 2 for c in range(j)), zero))
        for i in range(j + 1, q):
            K[i][j] = (M[i, j] - sum((K[i][c] * K[j][c] for c in range(j)), zero)) / K[j][j]
    return stack_rows(K)


def _cholesky_loop(M: Array) -> Array:
    q, xp = M.shape[0], namespace(M)
    rows = np.arange(q).reshape((q,) + (1,) * (M.ndim - 2))

    def eliminate(j: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, K = carry
        column = xp.where(rows >= j, rest[:, j], 0.0) / xp.sqrt(rest[j, j])
        return rest - column[:, None] * column[None, :], put(K, (slice(None), j), column)

    return loop(q, eliminate, (M, xp.zeros_like(M)), xp)[1]


def solve_lower(K: Array, B: Array) -> Array:
    """K⁻¹B for lower-triangular K (q, q, *batch) and B (q, m, *batch)."""
    q = K.shape[0]
    xp = namespace(K, B)
    if q == 0 or B.shape[1] == 0:
        return xp.zeros_like(B)
    if is_one(K) and is_one(B):
        return _triangular(K, B, trans=0)
    if q <= UNROLL_UP_TO:
        rows: list[Array] = []
        for i in range(q):
            known = sum((K[i, c][None] * rows[c] for c in range(i)), xp.zeros_like(B[0]))
            rows.append((B[i] - known) / K[i, i][None])
        return xp.stack(rows)

    def substitute(i: Any, X: Array) -> Array:
        # Rows of X at and below i still hold the right-hand side's zeros, so the full sum is the partial one.
        known = (K[i][:, None] * X).sum(0)
        return put(X, i, (B[i] - known) / K[i, i][None])

    return loop(q, substitute, xp.zeros_like(B), xp)


def solve_upper(K: Array, B: Array) -> Array:
    """K⁻ᵀB for lower-triangular K (q, q, *batch) and B (q, m, *batch)."""
    if is_one(K) and is_one(B) and len(K) and B.shape[1]:
        return _triangular(K, B, trans=1)
    xp = namespace(K, B)
    flipped = xp.flip(xp.swapaxes(K, 0, 1), (0, 1))
    return xp.flip(solve_lower(flipped, xp.flip(B, 0)), 0)


def _triangular(K: np.ndarray, B: np.ndarray, trans: int) -> np.ndarray:
    # Not LAPACK's trtrs: OpenBLAS wakes its threads for it, which on a busy machine takes milliseconds.
    return blas.dtrsm(1.0, K, B, lower=1, trans_a=trans)


def inverse_lower(K: Array) -> Array:
    """K⁻¹ of a lower-triangular K (q, q, *batch)."""
    if is_one(K) and len(K):
        X, info = lapack.dtrtri(K, lower=1)
        return np.tril(X) if info == 0 else np.full_like(K, np.nan)
    return solve_lower(K, namespace(K).broadcast_to(identity(len(K), K), K.shape))


def matmul(A: Array, B: Array) -> Array:
    """AB for A (r, m, *batch) and B (m, c, *batch), as m fused outer products.

    XLA's CPU reduction over a middle axis is an order of magnitude slower than this sum.
    """
    if is_one(A) and is_one(B):
        return A @ B
    total = A[:, 0, None] * B[None, 0]
    for j in range(1, A.shape[1]):
        total = total + A[:, j, None] * B[None, j]
    return total


def transpose(A: Array) -> Array:
    """Aᵀ for A (r, c, *batch)."""
    return namespace(A).swapaxes(A, 0, 1)


def log_det(K: Array) -> Array:
    """log|KKᵀ| for a Cholesky factor K (q, q, *batch)."""
    xp = namespace(K)
    return 2.0 * xp.log(xp.diagonal(K)).sum(-1)


def ldl(A: Array, floor: Array) -> tuple[Array, Array, Array]:
    """A = C diag(d) Cᵀ of a symmetric A (k, k, *batch), without pivoting.

    Returns
    -------
    C : (k, k, *batch) unit lower triangular.
    d : (k, *batch) pivots; their signs are the inertia of A.
    safe : (k, *batch) |d| raised to ``floor`` (*batch): the pivots of a positive-definite matrix close to A.
    """
    k, xp = A.shape[0], namespace(A)
    if k <= UNROLL_UP_TO:
        return _ldl_unrolled(A, floor)
    rows = np.arange(k).reshape((k,) + (1,) * (A.ndim - 2))

    def eliminate(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rest, C, d = carry
        pivot = rest[j, j]
        divisor = xp.where(xp.abs(pivot) < floor, floor, pivot)
        column = xp.where(rows > j, rest[:, j], 0.0) / divisor
        rest = rest - divisor * column[:, None] * column[None, :]
        return rest, put(C, (slice(None), j), xp.where(rows == j, 1.0, column)), put(d, j, pivot)

    start = (A, xp.zeros_like(A), xp.zeros(A.shape[1:], A.dtype))
    _, C, d = loop(k, eliminate, start, xp)
    return C, d, xp.maximum(xp.abs(d), floor)


def _ldl_unrolled(A: Array, floor: Array) -> tuple[Array, Array, Array]:
    k, xp = A.shape[0], namespace(A)
    one, zero = xp.ones(A.shape[2:], A.dtype), xp.zeros(A.shape[2:], A.dtype)
    C = [[one if i == j else zero for j in range(k)] for i in range(k)]
    pivots: list[Array] = []
    divisors: list[Array] = []
    for j in range(k):
        pivots.append(A[j, j] - sum(C[j][c] ** 2 * divisors[c] for c in range(j)))
        divisors.append(select(abs(pivots[j]) < floor, floor, pivots[j]))
        for i in range(j + 1, k):
            known = sum(C[i][c] * C[j][c] * divisors[c] for c in range(j))
            C[i][j] = (A[i, j] - known) / divisors[j]
    d = xp.array(pivots) if xp is np else xp.stack(pivots)
    return stack_rows(C), d, xp.maximum(xp.abs(d), floor)
