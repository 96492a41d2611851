"""The engine of crossed designs: factor 1 is eliminated level by level, the others are one dense system (MATH §5).

With M = Ψ₁(I + GΨ₁)⁻¹ per level of factor 1 the K effects of all the others have
    S = I + Λ₂ᵀNΛ₂,   N = Z₂ᵀV₁⁻¹Z₂ = Z₂ᵀZ₂ − Σ_u (Z₁ᵀZ₂)_uᵀ M_u (Z₁ᵀZ₂)_u,
with N a sum over the listed pairs of columns. The sums of ZᵀV⁻¹Z over levels follow from S⁻¹: for the dense
factors L⁻ᵀ(I − S⁻¹)L⁻¹, for the first one sum over the listed pairs. Called in place, LAPACK takes a third
of the compiled gradient's time and a tenth of its Hessian's at K ≈ 1000.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from scipy.linalg import blas, lapack

from . import levels, linalg, panels
from .crossed_data import CrossedData
from .small import FURTHER_STARTS

NEARLY_SINGULAR = 1e-3
GATHER_ENTRIES = 1 << 23
PAIRS_AT_ONCE = 1 << 18
ROWS_AT_ONCE = 256
COLUMNS_AT_ONCE = 64
# Effects in the dense system up to which a doubtful optimum is searched for again, some 8 evaluations of K³ each.
SEVERAL_STARTS = 512


class Solved:
    """log|V|, H, and the factors at one Ψ.

    Attributes
    ----------
    M, F, U : (q₁, q₁, P) M, (I + GΨ)⁻¹ and FG of every pattern of factor 1; N : its values at the listed pairs.
    matrix : (K, K) the Cholesky factor of S as LAPACK's upper triangle; S⁻¹ once ``invert`` was called.
    reduced : (K, p+1) Z₂ᵀV₁⁻¹W; right : (K, p+1) S⁻¹Λ₂ᵀ of it.
    """

    def __init__(self, Ls: list[np.ndarray], data: CrossedData) -> None:
        self.Ls = Ls
        self.log_det_first, self.M, self.F = levels.eliminated(Ls[data.layout.order[0]], data.G)
        self.U = linalg.matmul(data.G, self.F)
        self.inverted = False
        self.adjoint: np.ndarray | None = None
        self.N: Any = None
        self.matrix: Any = None
        self.reduced: Any = None
        self.right: Any = None
        self.log_det_rest: Any = None
        self.log_det: Any = None
        self.H: Any = None

    def solve(self, R: np.ndarray) -> np.ndarray:
        """S⁻¹R for R (K, c)."""
        if self.inverted:
            return blas.dsymm(1.0, self.matrix, np.asfortranarray(R), lower=0)
        return lapack.dpotrs(self.matrix, np.asfortranarray(R), lower=0)[0]

    def invert(self) -> np.ndarray:
        """S⁻¹ in the place of its factor; the lower triangle, row by row, is valid."""
        if not self.inverted:
            self.matrix = panels.inverse(self.matrix.T).T
            self.inverted = True
        return self.matrix.T


class Dense:
    """The verbs of ``criterion.Engine`` for a crossed design."""

    exact = False

    def __init__(self, data: CrossedData) -> None:
        self.data, self.layout = data, data.layout
        self.first = data.layout.order[0]
        self.K = data.layout.n_dense
        self.tighter = 1e-3 if self.K <= SEVERAL_STARTS else 1.0
        self.n_starts = FURTHER_STARTS if self.K <= SEVERAL_STARTS else 0
        self.q1 = data.layout.sizes[self.first]
        shape = (len(data.base), data.G.shape[-1])
        self.products = [
            scipy.sparse.csr_matrix((v, data.product_pattern, data.product_ends), shape=shape)
            for v in data.product_value
        ]
        starts = np.searchsorted(data.entry_column, np.arange(self.K + 1, dtype=np.int32))
        self.cross = [
            scipy.sparse.csr_matrix((v, data.entry_level, starts), shape=(self.K, data.Z1W.shape[-1]))
            for v in data.entry_value
        ]
        self.row_ends = np.searchsorted(data.pair_row, np.arange(self.K + 1, dtype=np.int32))
        # What runs over all pairs is done some pairs at a time, so that no temporary is as long as the lists.
        self.blocks = [slice(lo, lo + PAIRS_AT_ONCE) for lo in range(0, shape[0], PAIRS_AT_ONCE)]
        self.scalar = all(data.layout.sizes[j] == 1 for j, _ in data.layout.dense_slices)
        rows, columns = linalg.tril(self.q1)
        self.packed = (rows, columns, np.where(rows == columns, 1.0, 0.5))

    # ---- linear maps

    def _scale_vector(self, Ls: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.full(r.stop - r.start, Ls[j][0, 0]) for j, r in self.layout.dense_slices])

    def _root(self, Ls: list[np.ndarray], X: np.ndarray, transpose: bool) -> np.ndarray:
        """Λ₂X or Λ₂ᵀX for X (K, c)."""
        out = np.empty_like(X)
        for j, rows in self.layout.dense_slices:
            L = Ls[j].T if transpose else Ls[j]
            block = X[rows].reshape(-1, len(L), X.shape[1])
            out[rows] = L[0, 0] * X[rows] if len(L) == 1 else (L @ block).reshape(-1, X.shape[1])
        return out

    def _conjugate(self, Ls: list[np.ndarray], values: np.ndarray) -> np.ndarray:
        """Λ₂ᵀNΛ₂ (K, K) from N's values at the pairs; the lower triangle is valid."""
        data, out = self.data, np.zeros((self.K, self.K))
        flat = out.reshape(-1)
        scale = self._scale_vector(Ls) if self.scalar else np.ones(self.K)
        for block in self.blocks:
            row, column = data.pair_row[block], data.pair_column[block]
            flat[row.astype(np.int64) * self.K + column] = values[block] * scale[row] * scale[column]
        if not self.scalar:
            _mirror(out)
            self._root_both(Ls, out, True)
        return out

    def _root_both(self, Ls: list[np.ndarray], X: np.ndarray, transpose: bool) -> None:
        """Λ₂ᵀXΛ₂ or Λ₂XΛ₂ᵀ in the place of a symmetric X (K, K)."""
        for j, rows in self.layout.dense_slices:
            L, q = (Ls[j].T if transpose else Ls[j]), len(Ls[j])
            step = q * max(1, ROWS_AT_ONCE // q)
            for lo in range(rows.start, rows.stop, step):
                some = slice(lo, min(lo + step, rows.stop))
                X[some] = (L @ X[some].reshape(-1, q, self.K)).reshape(-1, self.K)
        for lo in range(0, self.K, ROWS_AT_ONCE):
            for j, columns in self.layout.dense_slices:
                L, q = (Ls[j].T if transpose else Ls[j]), len(Ls[j])
                part = X[lo : lo + ROWS_AT_ONCE, columns]
                part[:] = (part.reshape(len(part), -1, q) @ L.T).reshape(part.shape)

    def _times(self, values: np.ndarray, X: np.ndarray) -> np.ndarray:
        """NX for the symmetric N given at the pairs."""
        lower = scipy.sparse.csr_matrix((values, self.data.pair_column, self.row_ends), shape=(self.K, self.K))
        return lower @ X + lower.T @ X - lower.diagonal()[:, None] * X

    def _down(self, X1: np.ndarray) -> np.ndarray:
        """Z₂ᵀZ₁X for X (q₁, c, m₁): (K, c)."""
        return sum(A @ np.ascontiguousarray(x.T) for A, x in zip(self.cross, X1, strict=True))

    def _up(self, X2: np.ndarray) -> np.ndarray:
        """Z₁ᵀZ₂X for X (K, c): (q₁, c, m₁)."""
        return np.stack([(A.T @ X2).T for A in self.cross])

    def _per_level(self, T: np.ndarray, X1: np.ndarray, transpose: bool = False) -> np.ndarray:
        """Per level of factor 1, T (q₁, q₁, P) of its pattern times X (q₁, c, m₁)."""
        T = np.swapaxes(T, 0, 1) if transpose else T
        return linalg.matmul(T[:, :, self.data.pattern], X1)

    def _pair_values(self, T: np.ndarray) -> np.ndarray:
        """Z₂ᵀZ₁TZ₁ᵀZ₂ at the pairs for symmetric T (q₁, q₁, P)."""
        i, j, _ = self.packed
        return sum(Q @ t for Q, t in zip(self.products, T[i, j], strict=True))

    def _split(self, X1: np.ndarray, X2: np.ndarray) -> list[np.ndarray]:
        """(q₁, c, m₁) and (K, c) as (q, c, m) per factor."""
        out: list[Any] = [None] * len(self.layout.sizes)
        out[self.first] = X1
        for j, rows in self.layout.dense_slices:
            out[j] = X2[rows].reshape(-1, self.layout.sizes[j], X2.shape[1]).transpose(1, 2, 0)
        return out

    def _join(self, Y: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of ``_split``."""
        rest = [Y[j].transpose(2, 0, 1).reshape(-1, Y[j].shape[1]) for j, _ in self.layout.dense_slices]
        return Y[self.first], np.concatenate(rest)

    # ---- verbs

    def solve(self, Ls: list[np.ndarray]) -> Solved | None:
        """log|V| and H: O(K³/3 + T) for T pair products."""
        data, s = self.data, self.begun(Ls)
        s.N = self._pair_values(s.M)
        np.subtract(data.base, s.N, out=s.N)
        if not self._factor(s):
            return None
        MC = self._per_level(s.M, data.Z1W)
        s.reduced = data.Z2W - self._down(MC)
        R = self._root(s.Ls, s.reduced, True)
        s.right = s.solve(R)
        s.H = data.WtW - sum(a @ b.T for a, b in zip(data.Z1W, MC, strict=True)) - R.T @ s.right
        s.log_det = data.count @ s.log_det_first + s.log_det_rest
        return s

    def begun(self, Ls: list[np.ndarray]) -> Solved:
        """What ``solve`` fills."""
        return Solved(Ls, self.data)

    def _factor(self, s: Solved) -> bool:
        """The factor of S, and log|S|."""
        S = self._conjugate(s.Ls, s.N)
        S.reshape(-1)[:: self.K + 1] += 1.0
        if not panels.factor(S):
            return False
        s.matrix = S.T
        s.log_det_rest = 2.0 * np.log(np.diagonal(S)).sum()
        return True

    def project(self, s: Solved, A: np.ndarray) -> list[np.ndarray]:
        """ZᵀV⁻¹[X y]A per factor."""
        X = self._root(s.Ls, s.right @ A, False)
        rest = A.T @ self.data.Z1W - self._up(X)
        return self._split(self._per_level(s.F, rest, transpose=True), s.reduced @ A - self._times(s.N, X))

    def apply(self, s: Solved, Y: list[np.ndarray]) -> list[np.ndarray]:
        """ZᵀV⁻¹ZY per factor."""
        Y1, Y2 = self._join(Y)
        e1 = self._per_level(s.U, Y1) + self._per_level(s.F, self._up(Y2), transpose=True)
        e2 = self._down(self._per_level(s.F, Y1)) + self._times(s.N, Y2)
        X = self._root(s.Ls, np.ascontiguousarray(s.solve(self._root(s.Ls, e2, True))), False)
        return self._split(e1 - self._per_level(s.F, self._up(X), transpose=True), e2 - self._times(s.N, X))

    def traces(self, s: Solved) -> list[np.ndarray]:
        """Σ over the levels of ZᵀV⁻¹Z (q, q), per factor: one inverse, (2/3)K³, and O(T)."""
        out: list[Any] = [None] * len(self.layout.sizes)
        R = s.adjoint = self._pair_adjoint(s)
        out[self.first] = s.U @ self.data.count - _conjugated(s.F, R).sum(-1)
        for j, rows in self.layout.dense_slices:
            out[j] = self._dense_trace(s, j, rows)
        return out

    def variances(self, s: Solved) -> list[np.ndarray]:
        """Var(b | y)/σ² with β fixed, (q, q, m) per factor; ``s`` is used up."""
        inverse = s.invert()
        out: list[Any] = [None] * len(self.layout.sizes)
        for j, rows in self.layout.dense_slices:
            L = s.Ls[j]
            out[j] = np.moveaxis(L @ _diagonal_blocks(inverse[rows, rows], len(L)) @ L.T, 0, 2)
        out[self.first] = np.moveaxis(self._first_variances(s), 0, 2)
        return out

    # ---- traces

    def _pair_adjoint(self, s: Solved) -> np.ndarray:
        """R (q₁, q₁, P): Σ over a pattern's levels of (Z₁ᵀZ₂)W(Z₂ᵀZ₁) with W = Λ₂S⁻¹Λ₂ᵀ."""
        at_pairs = self._inverse_at_pairs(s)
        i, j, half = self.packed
        sums = np.stack([(Q.T @ at_pairs) * h for Q, h in zip(self.products, half, strict=True)])
        out = np.empty((self.q1, self.q1, sums.shape[1]))
        out[i, j], out[j, i] = sums, sums
        return out

    def _inverse_at_pairs(self, s: Solved) -> np.ndarray:
        """Λ₂S⁻¹Λ₂ᵀ (N,) at the pairs, twice off the diagonal."""
        data, W = self.data, s.invert()
        scale = self._scale_vector(s.Ls) if self.scalar else np.ones(self.K)
        if not self.scalar:
            W = _mirror(W.copy())
            self._root_both(s.Ls, W, False)
        flat, at_pairs = W.reshape(-1), np.empty(len(data.base))
        for block in self.blocks:
            row, column = data.pair_row[block], data.pair_column[block]
            twice = scale[row] * scale[column] * (2.0 - (row == column))
            at_pairs[block] = flat[row.astype(np.int64) * self.K + column] * twice
        return at_pairs

    def _dense_trace(self, s: Solved, j: int, rows: slice) -> np.ndarray:
        """Σ_l U_ll (q, q) of a dense factor."""
        L, q, inverse = s.Ls[j], self.layout.sizes[j], s.invert()
        if not _is_singular(L):
            left = np.linalg.inv(L).T
            blocks = _diagonal_blocks(inverse[rows, rows], q).sum(0)
            return left @ (self.layout.levels[j] * np.eye(q) - blocks) @ left.T
        N, half, right = self._reached(s, rows)
        a, b = half.reshape(self.K, -1, q), right.reshape(self.K, -1, q)
        return _diagonal_blocks(N[rows], q).sum(0) - np.einsum("kla,klb->ab", a, b)

    def _reached(self, s: Solved, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """N, Λ₂ᵀN and S⁻¹Λ₂ᵀN in the columns of a dense factor."""
        columns = np.arange(rows.start, rows.stop)
        unit = np.zeros((self.K, len(columns)))
        unit[columns, np.arange(len(columns))] = 1.0
        N = self._times(s.N, unit)
        half = self._root(s.Ls, N, True)
        return N, half, s.solve(half)

    def _first_variances(self, s: Solved) -> np.ndarray:
        """Var(b_u | y)/σ² (m₁, q₁, q₁) of the eliminated factor: M + M(Z₁ᵀZ₂)_u W (Z₂ᵀZ₁)_u M.

        Only the d_u × d_u block of W = Λ₂S⁻¹Λ₂ᵀ over the effects that level u meets is read.
        """
        block_of = self._blocks_of_inverse(s)
        cross = [A.T.tocsr() for A in self.cross]
        indptr, indices = cross[0].indptr, cross[0].indices
        met = np.diff(indptr)
        M = np.moveaxis(s.M[:, :, self.data.pattern], 2, 0)
        out = M.copy()
        for d in np.unique(met[met > 0]):
            members = np.flatnonzero(met == d)
            step = max(1, GATHER_ENTRIES // int(d * d))
            for lo in range(0, len(members), step):
                some = members[lo : lo + step]
                entry = indptr[some][:, None] + np.arange(d)
                columns = indices[entry]
                value = np.stack([A.data[entry] for A in cross], axis=1)
                reach = M[some] @ value
                out[some] += reach @ block_of(columns) @ np.swapaxes(reach, 1, 2)
        return out

    def _blocks_of_inverse(self, s: Solved) -> Callable[[np.ndarray], np.ndarray]:
        """columns (b, d) → the blocks (b, d, d) of Λ₂S⁻¹Λ₂ᵀ; ``s`` is used up."""
        W = _mirror(s.invert())
        self._root_both(s.Ls, W, False)
        s.matrix = None
        return lambda columns: W[columns[:, :, None], columns[:, None, :]]

    # ---- exact second derivatives

    def trace_products(self, s: Solved, owner: tuple[int, ...], moves: list[np.ndarray]) -> np.ndarray:
        """tr(V⁻¹V_aV⁻¹V_b) (k, k): 2K³ per parameter of factor 1, and column by column where an L is singular."""
        k = len(moves)
        out = np.zeros((k, k))
        singular = {j for j, _ in self.layout.dense_slices if _is_singular(s.Ls[j])}
        for j in singular:
            self._column_products(s, j, owner, moves, out)
        inverse = _mirror(s.invert())
        firsts = [a for a in range(k) if owner[a] == self.first]
        through = self._first_products(s, inverse, firsts, moves, out)
        scaled = {}
        for b in range(k):
            if owner[b] != self.first and owner[b] not in singular:
                left = np.linalg.inv(s.Ls[owner[b]])
                scaled[b] = left @ moves[b] @ left.T
        for j, rows in self.layout.dense_slices:
            mine = [b for b in scaled if owner[b] == j]
            q = self.layout.sizes[j]
            for a in firsts:
                right = through[a][:, rows].reshape(self.K, -1, q)
                block = np.einsum("kla,klb->ab", inverse[:, rows].reshape(self.K, -1, q), right)
                for b in mine:
                    out[a, b] = out[b, a] = np.sum(scaled[b] * block)
            for i, others in self.layout.dense_slices:
                r = self.layout.sizes[i]
                pairs = _pair_gram(inverse, rows, others, q, r)
                for b in mine:
                    for c in [c for c in scaled if owner[c] == i]:
                        out[b, c] = np.einsum("ac,bd,abcd->", scaled[b], scaled[c], pairs)
        return out

    def _column_products(
        self, s: Solved, j: int, owner: tuple[int, ...], moves: list[np.ndarray], out: np.ndarray
    ) -> None:
        """The products with the parameters of a dense factor, from its columns of ZᵀV⁻¹Z, some levels at a time."""
        q, m = self.layout.sizes[j], self.layout.levels[j]
        mine = [b for b in range(len(moves)) if owner[b] == j]
        step = max(1, COLUMNS_AT_ONCE // q)
        for lo in range(0, m, step):
            some = np.arange(lo, min(lo + step, m))
            Y = [
                np.zeros((r, len(some) * q, levels))
                for r, levels in zip(self.layout.sizes, self.layout.levels, strict=True)
            ]
            for effect in range(q):
                Y[j][effect, np.arange(len(some)) * q + effect, some] = 1.0
            U = [u.reshape(len(u), len(some), q, -1) for u in self.apply(s, Y)]
            for a, move in enumerate(moves):
                u = U[owner[a]]
                block = np.einsum("ilcm,ij,jldm->cd", u, move, u, optimize=True)
                for b in mine:
                    value = np.sum(moves[b] * block)
                    out[a, b] += value
                    out[b, a] += value if a not in mine else 0.0

    def _first_products(
        self, s: Solved, inverse: np.ndarray, firsts: list[int], moves: list[np.ndarray], out: np.ndarray
    ) -> dict[int, np.ndarray]:
        """The products among parameters of factor 1, into ``out``; per such parameter (Λ₂ᵀ∂N_aΛ₂)S⁻¹ (K, K)."""
        F, U, count = s.F, s.U, self.data.count
        through: dict[int, np.ndarray] = {}
        inside: dict[int, np.ndarray] = {}
        for a in firsts:
            delta = moves[a]
            dM = np.einsum("aip,ij,bjp->abp", F, delta, F)
            through[a] = _symm(self._conjugate(s.Ls, self._pair_values(dM)), inverse)
            inside[a] = np.einsum("ai,ijp->ajp", delta, U)
        FRF = _conjugated(F, self._pair_adjoint(s) if s.adjoint is None else s.adjoint)
        for a in firsts:
            for b in firsts:
                own = np.einsum("ijp,jip,p->", inside[a], inside[b], count)
                bend = np.einsum("ijp,jip->", inside[a], np.einsum("jb,bip->jip", moves[b], FRF))
                out[a, b] = own - 2.0 * bend + _trace_of_product(through[a], through[b])
        return through


def _is_singular(L: np.ndarray) -> bool:
    return bool(np.linalg.svd(L, compute_uv=False).min() <= NEARLY_SINGULAR)


def _conjugated(F: np.ndarray, R: np.ndarray) -> np.ndarray:
    """FᵀRF of every pattern (q, q, P)."""
    if len(F) == 1:
        return F * R * F
    return np.einsum("iap,ijp,jbp->abp", F, R, F)


def _mirror(lower: np.ndarray) -> np.ndarray:
    """The symmetric matrix whose lower triangle this is, in its place."""
    n = len(lower)
    for lo in range(0, n, ROWS_AT_ONCE):
        hi = min(lo + ROWS_AT_ONCE, n)
        lower[:lo, lo:hi] = lower[lo:hi, :lo].T
        corner = np.tril(lower[lo:hi, lo:hi], -1)
        lower[lo:hi, lo:hi] = np.tril(lower[lo:hi, lo:hi]) + corner.T
    return lower


def _trace_of_product(A: np.ndarray, B: np.ndarray) -> float:
    """tr(AB)."""
    rows = [slice(lo, lo + ROWS_AT_ONCE) for lo in range(0, len(A), ROWS_AT_ONCE)]
    return float(sum(np.sum(A[some] * B[:, some].T) for some in rows))


def _pair_gram(inverse: np.ndarray, rows: slice, others: slice, q: int, r: int) -> np.ndarray:
    """Σ over pairs of levels of E_lm ⊗ E_lm (q, r, q, r) for E = I − S⁻¹ of two dense factors."""
    total: Any = 0.0
    step = q * max(1, ROWS_AT_ONCE // q)
    for lo in range(rows.start, rows.stop, step):
        hi = min(lo + step, rows.stop)
        E = -inverse[lo:hi, others]
        if rows == others:
            E[np.arange(hi - lo), np.arange(lo, hi) - others.start] += 1.0
        flat = E.reshape((hi - lo) // q, q, -1, r).transpose(1, 3, 0, 2).reshape(q * r, -1)
        total = total + flat @ flat.copy().T
    return total.reshape(q, r, q, r)


def _symm(lower: np.ndarray, X: np.ndarray) -> np.ndarray:
    """AX for the symmetric A whose lower triangle, row by row, this is."""
    return blas.dsymm(1.0, lower.T, X, lower=0)


def _diagonal_blocks(lower: np.ndarray, q: int) -> np.ndarray:
    """(m, q, q) diagonal blocks of a symmetric (mq, mq) matrix given in its lower triangle."""
    first = np.arange(0, len(lower), q)[:, None, None]
    blocks = np.tril(lower[first + np.arange(q)[:, None], first + np.arange(q)])
    return blocks + np.swapaxes(np.tril(blocks, -1), 1, 2)
