"""The algebra of one level, written out entry by entry over vectors of levels or of lanes.

With Ψ = LLᵀ, G = ZᵀZ and C = ZᵀW of a level (MATH §3):
    M = I + LᵀGL = KKᵀ,   W = L M⁻¹ Lᵀ,   F = (I + ΨG)⁻¹ = I − WG,   U = ZᵀV⁻¹Z = GF,   D = ZᵀV⁻¹W = FᵀC.
Matrices are lists of rows of arrays, and a symmetric one the tuple of its lower triangle, row by row. XLA on
a CPU fuses such entries into vector loops; the same arithmetic on a stacked (q, q, P) array costs several
times as much, because every entry of the stack recomputes what leads to it.

Within a level, with G = RᵀR (R lower triangular) and c = R⁻ᵀC, the same quantities are sums of squares:
    M' = I + RΨRᵀ = KKᵀ,   T = K⁻¹c,   B = K⁻¹R,   log|M'| = log|M|,   U = BᵀB,   D = BᵀT,
    WᵀV⁻¹W = (WᵀW − cᵀc) + TᵀT,
what the level's own least squares leaves, and the rest. Nothing is subtracted, so no digit goes to a Ψ that is far
larger than G⁻¹.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def stacked(packed: Sequence[Any] | Array) -> Array:
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


def spread(F: Rows, C: Sequence[Any] | Array) -> list[Array]:
    """D = FᵀC: q arrays (w, …) from the q arrays ``C`` (w, …)."""
    return [dot([entry[None] for entry in column], C) for column in columns(F)]


def eliminated(L: Array, G: Array) -> tuple[Array, Array, Array]:
    """log|I + LᵀGL| (P,), M = Ψ(I + GΨ)⁻¹ and F = (I + ΨG)⁻¹ = I − MG, (q, q, P), for G (q, q, P)."""
    log_det, packed = weigh(L, G, dense(len(L)))
    M = stacked(packed)
    return log_det, M, linalg.identity(len(M), M) - linalg.matmul(M, G)


# ---------------------------------------------------------------- within levels

# A pivot of ZᵀZ that is less than this of its diagonal is rounding: the level cannot tell the effect from others.
NO_PIVOT = 16 * np.finfo(float).eps


class Within(NamedTuple):
    """A level at some Ψ: log|M| and M' = KKᵀ, K lower triangular with ``inverse`` pivots."""

    log_det: Array
    K: Rows
    inverse: list[Array]


def root(G: Array) -> list[Array]:
    """R with RᵀR = G (q, q, …), lower triangular and packed; rows are 0 where the level does not tell an effect."""
    q, xp = len(G), namespace(G)
    tiny = NO_PIVOT * q * float(xp.finfo(G.dtype).eps / np.finfo(float).eps)
    R: dict[tuple[int, int], Array] = {}
    for i in reversed(range(q)):
        pivot = G[i, i] - sum(R[m, i] ** 2 for m in range(i + 1, q))
        told = pivot > tiny * G[i, i]
        R[i, i] = xp.sqrt(xp.where(told, pivot, 0.0))
        inverse = xp.where(told, 1.0 / xp.where(told, R[i, i], 1.0), 0.0)
        for j in range(i):
            R[i, j] = (G[i, j] - sum(R[m, i] * R[m, j] for m in range(i + 1, q))) * inverse
    return [R[i, j] for i, j in pairs(q)]


def against_root(R: Sequence[Any] | Array, C: Sequence[Any] | Array) -> list[Array]:
    """c = R⁻ᵀC for q arrays C (w, …); zero where R has no pivot."""
    lower, c = unpack_lower(R), list(C)
    for i in reversed(range(len(c))):
        rest = C[i] - sum(lower[m][i][None] * c[m] for m in range(i + 1, len(c)))
        c[i] = _over(rest, lower[i][i])
    return c


def coefficients(R: Sequence[Any] | Array, c: Sequence[Any] | Array, least: float = 0.0) -> list[Array]:
    """b with Rb = c, zero where a pivot is no more than ``least`` of its column; q arrays (w, …)."""
    lower, b = unpack_lower(R), list(c)
    for i in range(len(b)):
        rest = c[i] - sum(lower[i][m][None] * b[m] for m in range(i))
        size = sum(lower[m][i] ** 2 for m in range(i, len(b)))
        xp = namespace(lower[i][i])
        b[i] = _over(rest, xp.where(lower[i][i] ** 2 > least * size, lower[i][i], 0.0))
    return b


def times_root(R: Sequence[Any] | Array, B: Sequence[Any] | Array) -> list[Array]:
    """RB of q arrays (w, …)."""
    lower = unpack_lower(R)
    return [dot([r[None] for r in lower[i][: i + 1]], B[: i + 1]) for i in range(len(B))]


def transposed_times(R: Sequence[Any] | Array, c: Sequence[Any] | Array) -> list[Array]:
    """C = Rᵀc of q arrays (w, …)."""
    return carried(unpack_lower(R), c)


def _over(a: Array, pivot: Array) -> Array:
    """a / pivot, 0 where the pivot is."""
    xp = namespace(a, pivot)
    return a * xp.where(pivot > 0, 1.0 / xp.where(pivot > 0, pivot, 1.0), 0.0)[None]


def unpack_lower(R: Sequence[Any] | Array) -> Rows:
    """The rows of a packed lower-triangular matrix, None above the diagonal."""
    q = int(np.sqrt(2 * len(R)))
    return [[R[i * (i + 1) // 2 + j] if j <= i else None for j in range(q)] for i in range(q)]


def within(L: Array, R: Sequence[Any] | Array, filled: Filled) -> Within:
    """M' of levels with packed roots R, at L (q, q, …), whose last axes broadcast.

    K comes from I and the columns of RL by rotations: where Ψ is huge in some directions only, the digits of the
    others survive, which the Cholesky factor of M' would lose.
    """
    q, xp = len(filled), namespace(L, R[0])
    by_column = columns(rows(L, filled))
    A = [[dot(row, column) for column in by_column] for row in unpack_lower(R)]
    if q > linalg.UNROLL_UP_TO:
        K = rows(_rotated(_stack([[0.0 * R[0] if entry is None else entry for entry in row] for row in A])))
    else:
        K = _rotated_unrolled(A, 1.0 + 0.0 * R[0])
    determinant = K[0][0]
    for j in range(1, q):
        determinant = determinant * K[j][j]
    return Within(2.0 * xp.log(determinant), K, [1.0 / K[j][j] for j in range(q)])


def _rotated_unrolled(A: Rows, one: Array) -> Rows:
    """Lower-triangular K with KKᵀ = I + AAᵀ."""
    q, xp = len(A), namespace(one)
    K: Rows = [[(one if i == j else None) for j in range(q)] for i in range(q)]
    for j in reversed(range(q)):
        x = [row[j] for row in A]
        for k in range(q):
            if x[k] is None:
                continue
            old = K[k][k]
            K[k][k] = xp.sqrt(old * old + x[k] * x[k])
            inverse = 1.0 / K[k][k]
            cosine, sine = old * inverse, x[k] * inverse
            for i in range(k + 1, q):
                K[i][k], x[i] = dot([cosine, sine], [K[i][k], x[i]]), dot([cosine, -sine], [x[i], K[i][k]])
    return K


def _rotated(A: Array) -> Array:
    """``_rotated_unrolled`` of an array (q, q, …), as a loop."""
    q, xp = len(A), namespace(A)
    steps = np.array([(j, k) for j in reversed(range(q)) for k in range(q)])
    K = A * 0.0 + linalg.identity(q, A)

    def rotate(step: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        K, A = carry
        at = xp.asarray(steps)[step]
        j, k = at[0], at[1]
        old, x = K[:, k] + 0.0, A[:, j] + 0.0
        size = xp.sqrt(old[k] ** 2 + x[k] ** 2)
        cosine, sine = old[k] / size, x[k] / size
        return linalg.put(K, (slice(None), k), cosine * old + sine * x), linalg.put(
            A, (slice(None), j), cosine * x - sine * old
        )

    return linalg.loop(len(steps), rotate, (K, A + 0.0), xp)[0]


def whitened(at: Within, right: Sequence[Any]) -> list[Array]:
    """K⁻¹ of q arrays (w, …)."""
    out: list[Array] = []
    for row, inverse, own in zip(at.K, at.inverse, right, strict=True):
        known = dot([None if k is None else k[None] for k in row[: len(out)]], out)
        out.append((own if known is None else own - known) * inverse[None])
    return out


def whitened_identity(at: Within) -> Rows:
    """K⁻¹, None above the diagonal."""
    one = 1.0 + 0.0 * at.log_det
    q = len(at.K)
    return half_precision(at, [one if i == j else 0.0 * one for i, j in pairs(q)])


def half_precision(at: Within, R: Sequence[Any] | Array) -> Rows:
    """B = K⁻¹R, lower triangular, None above the diagonal."""
    q, lower = len(at.K), unpack_lower(R)
    B: Rows = []
    for i in range(q):
        row = []
        for j in range(i + 1):
            known = dot(at.K[i][j:i], [B[m][j] for m in range(j, i)])
            row.append((lower[i][j] if known is None else lower[i][j] - known) * at.inverse[i])
        B.append([*row, *[None] * (q - 1 - i)])
    return B


def squared(B: Rows) -> Packed:
    """U = BᵀB, packed, of a lower-triangular B."""
    by_column = columns(B)
    return tuple(dot(by_column[i], by_column[j]) for i, j in pairs(len(B)))


def carried(B: Rows, T: Sequence[Any] | Array) -> list[Array]:
    """D = BᵀT: q arrays (w, …)."""
    return [dot([None if b is None else b[None] for b in column], T) for column in columns(B)]
