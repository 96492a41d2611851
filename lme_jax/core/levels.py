"""The algebra of one level, written out entry by entry over vectors of levels or of lanes.

With Ψ = LLᵀ, G = ZᵀZ and C = ZᵀW of a level (MATH §3):
    M = I + LᵀGL = KKᵀ,   W = L M⁻¹ Lᵀ,   F = (I + ΨG)⁻¹ = I − WG,   U = ZᵀV⁻¹Z = GF,   D = ZᵀV⁻¹W = FᵀC.
Matrices are lists of rows of arrays, and a symmetric one the tuple of its lower triangle, row by row. XLA on
a CPU fuses such entries into vector loops; the same arithmetic on a stacked (q, q, P) array costs several
times as much, because every entry of the stack recomputes what leads to it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import linalg
from .rules import custom_jvp
from .types import Array, namespace

Rows = list[list[Any]]
Packed = tuple[Array, ...]
# Which entries of L can be other than zero: static, hashable.
Filled = tuple[tuple[bool, ...], ...]


def dense(q: int) -> Filled:
    return ((True,) * q,) * q


def pairs(q: int) -> list[tuple[int, int]]:
    """(i, j) with i ≥ j, in the order of packed symmetric matrices."""
    return [(i, j) for i in range(q) for j in range(i + 1)]


def rows(matrix: Array, filled: Filled | None = None) -> Rows:
    """Entries of (q, c, …); None where ``filled`` says that there is a structural zero."""
    q, c = matrix.shape[:2]
    return [[matrix[i, j] if filled is None or filled[i][j] else None for j in range(c)] for i in range(q)]


def unpack(packed: Sequence[Any]) -> Rows:
    q = int(np.sqrt(2 * len(packed)))
    return [[packed[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(q)] for i in range(q)]


def columns(matrix: Rows) -> Rows:
    return [list(column) for column in zip(*matrix, strict=True)]


def dot(us: Sequence[Any], vs: Sequence[Any]) -> Any:
    """Σ uᵢvᵢ, skipping what is structurally zero (None)."""
    terms = [u * v for u, v in zip(us, vs, strict=True) if u is not None and v is not None]
    return sum(terms[1:], terms[0]) if terms else None


def _stack(matrix: Rows) -> Array:
    xp = namespace(*(entry for row in matrix for entry in row))
    shape = np.broadcast_shapes(*(np.shape(entry) for row in matrix for entry in row))
    return xp.stack([xp.stack([xp.broadcast_to(entry, shape) for entry in row]) for row in matrix])


def product(A: Rows, B: Rows) -> Rows:
    if len(A) > linalg.UNROLL_UP_TO:
        left, right = _stack(A), _stack(B)
        # What is shared by all levels has no last axis of its own.
        ndim = max(left.ndim, right.ndim)
        left, right = (a.reshape(*a.shape, *[1] * (ndim - a.ndim)) for a in (left, right))
        return rows(linalg.matmul(left, right))
    by_column = columns(B)
    return [[dot(row, column) for column in by_column] for row in A]


@custom_jvp(nondiff_argnums=(2,))
def weigh(L: Array, G: Array, filled: Filled) -> tuple[Array, Packed]:
    """log|M| and packed W for L (q, q) or (q, q, R) and G (q, q, P), whose last axes broadcast.

    W is formed as a square of K⁻¹Lᵀ: as FΨ it would lose the digits that Ψ is larger than G⁻¹.
    """
    q, xp = len(filled), namespace(L, G)
    if q > linalg.UNROLL_UP_TO:
        return _weigh_by_columns(L, G)
    Lt = columns(rows(L, filled))
    GL = product(rows(G), columns(Lt))
    M = {(i, j): dot(Lt[i], [GL[m][j] for m in range(q)]) for i, j in pairs(q)}
    K: dict[tuple[int, int], Array] = {}
    inverse: list[Array] = []
    for j in range(q):
        K[j, j] = xp.sqrt(1.0 + M[j, j] - sum(K[j, m] ** 2 for m in range(j)))
        inverse.append(1.0 / K[j, j])
        for i in range(j + 1, q):
            K[i, j] = (M[i, j] - sum(K[i, m] * K[j, m] for m in range(j))) * inverse[j]
    left: Rows = []
    for i in range(q):
        row = []
        for c in range(q):
            known = dot([K[i, m] for m in range(i)], [left[m][c] for m in range(i)])
            rest = Lt[i][c] if known is None else -known if Lt[i][c] is None else Lt[i][c] - known
            row.append(None if rest is None else rest * inverse[i])
        left.append(row)
    determinant = K[0, 0]
    for j in range(1, q):
        determinant = determinant * K[j, j]
    by_column = columns(left)
    return 2.0 * xp.log(determinant), tuple(dot(by_column[i], by_column[j]) for i, j in pairs(q))


def _weigh_by_columns(L: Array, G: Array) -> tuple[Array, Packed]:
    q, xp = len(L), namespace(L, G)
    L = L.reshape(*L.shape[:2], *[1] * (G.ndim - L.ndim), *L.shape[2:])
    Lt = linalg.transpose(L)
    K = linalg.cholesky(linalg.matmul(Lt, linalg.matmul(G, L)) + linalg.identity(q, G))
    left = linalg.solve_lower(K, xp.broadcast_to(Lt, K.shape))
    W = linalg.matmul(linalg.transpose(left), left)
    return 2.0 * sum(xp.log(K[j, j]) for j in range(q)), tuple(W[i, j] for i, j in pairs(q))


@weigh.defjvp(symbolic_zeros=True)
def _weigh_jvp(filled: Filled, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> Any:
    """d log|M| = tr(U dΨ) + tr(W dG),  dW = F dΨ Fᵀ − W dG W: as cheap as the values, in reverse too."""
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero

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


def stacked(packed: Sequence[Array]) -> Array:
    """The symmetric (q, q, …) of a packed one."""
    return _stack(unpack(packed))


def complement(W: Packed, G: Array) -> Rows:
    """F = I − WG."""
    WG = product(unpack(W), rows(G))
    return [[(1.0 if i == j else 0.0) - entry for j, entry in enumerate(row)] for i, row in enumerate(WG)]


def precision(G: Array, F: Rows) -> Packed:
    """U = GF, packed."""
    GF = product(rows(G), F)
    return tuple(GF[i][j] for i, j in pairs(len(F)))


def spread(F: Rows, C: Sequence[Array]) -> list[Array]:
    """D = FᵀC: q arrays (w, …) from the q arrays ``C`` (w, …)."""
    return [dot([entry[None] for entry in column], C) for column in columns(F)]


def eliminated(L: Array, G: Array) -> tuple[Array, Array, Array]:
    """log|I + LᵀGL| (P,), M = Ψ(I + GΨ)⁻¹ and F = (I + ΨG)⁻¹ = I − MG, (q, q, P), for G (q, q, P)."""
    log_det, packed = weigh(L, G, dense(len(L)))
    M = stacked(packed)
    return log_det, M, linalg.identity(len(M), M) - linalg.matmul(M, G)
