"""Henderson's mixed-model equations in sparse form, on the host, for any factors (MATH §3, §5).

With G = ZΛ, W the prior weights and P = I + GᵀWG, a prediction aᵀβ̂ + zᵀb̂ errs with variance
    σ²(uᵀs + dᵀ(XᵀV⁻¹X)⁻¹d),  u = Λᵀz,  s = P⁻¹u,  d = a − XᵀWGs,
which holds the uncertainty of β̂, that of b̂ − b and their covariance; θ and σ are held fixed.
"""

import itertools
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg

from .crossed_moments import CrossedMoments, as_crossed, in_users_columns, products_of_effects
from .moments import GroupMoments

CHUNK_VALUES = 1 << 22
# Entries per effect of the inverse of P, up to which it is formed: its blocks are the effects that rows join.
INVERSE_ENTRIES = 128


class MixedModelEquations:
    """The factored equations at one relative covariance.

    Parameters
    ----------
    X : (n, p).
    Zs : per factor (n, r_j q_j) sparse columns of the effects, level by level.
    Ls : per factor (q_j, q_j) relative factor, Cov(b_level) = σ²LLᵀ.
    weights : (n,) or None.
    unscaled_cov : (p, p) (XᵀV⁻¹X)⁻¹.

    Notes
    -----
    Where rows join few effects (one factor, small nests) P⁻¹ is formed, block by block, and a prediction costs
    no more than its own blocks. Else one sparse LU factor of the symmetric (K, K) matrix P, K = Σ r_j q_j, and a solve
    per prediction: O(K) each for nested factors, up to O(K²) where the factors are crossed.
    """

    def __init__(self, X: np.ndarray, Zs: list[Any], Ls: list[np.ndarray], weights: Any, unscaled_cov: Any) -> None:
        self.X, self.Ls = np.asarray(X, float), [np.asarray(L, float) for L in Ls]
        self.unscaled_cov = np.asarray(unscaled_cov, float)
        self.widths = [Z.shape[1] for Z in Zs]
        self.G = self.spherical(Zs)
        self.WG = self.G if weights is None else scipy.sparse.diags(np.asarray(weights, float)) @ self.G
        self.XtWG = (self.WG.T @ self.X).T
        self.GtWG = self.G.T @ self.WG

    @classmethod
    def of_moments(
        cls, moments: GroupMoments | CrossedMoments, Ls: list[np.ndarray], unscaled_cov: Any
    ) -> "MixedModelEquations":
        """The equations of rows that are not there, without ``effects``."""
        sums = in_users_columns(as_crossed(moments) if isinstance(moments, GroupMoments) else moments)
        widths = [q * m for q, m in zip(sums.sizes, sums.n_levels, strict=True)]
        nobody = np.zeros((0, sum(widths)))
        made = cls(nobody[:, : len(sums.WtW) - 1], np.split(nobody, np.cumsum(widths)[:-1], 1), Ls, None, unscaled_cov)
        lower = products_of_effects(sums, range(len(widths)))
        ZtZ = lower + scipy.sparse.tril(lower, -1).T
        made.GtWG = made.Lambda.T @ ZtZ @ made.Lambda
        ZtX = np.concatenate([np.moveaxis(C, 2, 0).reshape(-1, C.shape[1])[:, :-1] for C in sums.ZtW])
        made.XtWG = (made.Lambda.T @ ZtX).T
        return made

    @cached_property
    def Lambda(self) -> Any:
        """Λ (K, K)."""
        unit, ends = scipy.sparse.identity(sum(self.widths), format="csc"), np.cumsum([0, *self.widths])
        return self.spherical([unit[:, lo:hi] for lo, hi in itertools.pairwise(ends)])

    @cached_property
    def P(self) -> Any:
        """I + GᵀWG (K, K)."""
        return (scipy.sparse.identity(self.GtWG.shape[1]) + self.GtWG).tocsc()

    @cached_property
    def inverse(self) -> Any:
        """P⁻¹ as CSR where its blocks are small, else None."""
        n, label = scipy.sparse.csgraph.connected_components(self.P, directed=False)
        sizes = np.bincount(label, minlength=n)
        if (sizes.astype(float) ** 2).sum() > INVERSE_ENTRIES * len(label):
            return None
        order = np.argsort(label, kind="stable")
        members = np.split(order, np.cumsum(sizes)[:-1])
        place = np.empty(len(label), int)
        place[order] = np.arange(len(label)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        entries, rows, columns, values = self.P.tocoo(), [], [], []
        for size in np.unique(sizes):
            which = np.flatnonzero(sizes == size)
            number = np.full(n, -1)
            number[which] = np.arange(len(which))
            mine = number[label[entries.row]] >= 0
            i, j = entries.row[mine], entries.col[mine]
            blocks = np.zeros((len(which), size, size))
            blocks[number[label[i]], place[i], place[j]] = entries.data[mine]
            where = np.stack([members[c] for c in which])
            values.append(np.linalg.inv(blocks).ravel())
            rows.append(np.repeat(where, size, axis=1).ravel())
            columns.append(np.tile(where, (1, size)).ravel())
        joined = (np.concatenate(rows), np.concatenate(columns))
        return scipy.sparse.csr_matrix((np.concatenate(values), joined), shape=self.P.shape)

    @cached_property
    def factored(self) -> Any:
        """LU factors of P; the pivots stay on the diagonal because P is positive definite."""
        return scipy.sparse.linalg.splu(
            self.P, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )

    def spherical(self, Zs: list[Any]) -> Any:
        """ZΛ as CSR (rows, K)."""
        parts = []
        for Z, L in zip(Zs, self.Ls, strict=True):
            Lambda = scipy.sparse.kron(scipy.sparse.identity(Z.shape[1] // len(L)), L)
            parts.append(scipy.sparse.csr_matrix(Z) @ Lambda)
        return scipy.sparse.hstack(parts, format="csr")

    def effects(self, residual: np.ndarray) -> list[np.ndarray]:
        """BLUPs per factor (r_j, q_j) from y − offset − Xβ̂ (n,)."""
        u = self.factored.solve(self.WG.T @ residual)
        out, lo = [], 0
        for width, L in zip(self.widths, self.Ls, strict=True):
            out.append(u[lo : lo + width].reshape(-1, len(L)) @ L.T)
            lo += width
        return out

    def variances(self, A: np.ndarray, Z: Any) -> np.ndarray:
        """Prediction-error variances / σ² of the rows Aβ̂ + Zb̂: A (r, p), Z (r, K) from ``spherical``."""
        return self.joint(A, Z, 1)[1][:, 0, 0]

    def joint(self, A: np.ndarray, Z: Any, q: int) -> tuple[np.ndarray, np.ndarray]:
        """Covariances / σ² (r/q, q, q) of q successive predictions: with β̂ fixed, and of the errors."""
        u = scipy.sparse.csr_matrix(Z)
        n = u.shape[0]
        fixed, full = np.zeros((n // q, q, q)), np.zeros((n // q, q, q))
        step = q * max(1, CHUNK_VALUES // (q * max(1, u.shape[1])))
        if self.inverse is not None:
            step = max(n, 1)
        for lo in range(0, n, step):
            rows, blocks = slice(lo, lo + step), slice(lo // q, lo // q + step // q)
            inner, reached = self._inner(u[rows], q)
            d = (A[rows] - reached).reshape(-1, q, A.shape[1])
            fixed[blocks] = 0.5 * (inner + np.swapaxes(inner, 1, 2))
            full[blocks] = fixed[blocks] + d @ self.unscaled_cov @ np.swapaxes(d, 1, 2)
        return fixed, full

    def _inner(self, u: Any, q: int) -> tuple[np.ndarray, np.ndarray]:
        """uP⁻¹uᵀ (r/q, q, q) of q successive rows, and uP⁻¹GᵀWX (r, p)."""
        if self.inverse is None:
            dense = u.toarray()
            s = self.factored.solve(np.ascontiguousarray(dense.T)).T
            left = dense.reshape(-1, q, u.shape[1])
            return left @ np.swapaxes(s.reshape(-1, q, u.shape[1]), 1, 2), s @ self.XtWG.T
        s = (u @ self.inverse).tocsr()
        inner = np.empty((u.shape[0] // q, q, q))
        for i in range(q):
            for j in range(q):
                inner[:, i, j] = np.asarray(u[i::q].multiply(s[j::q]).sum(1)).ravel()
        return inner, s @ self.XtWG.T

    def within(self, sets: list[np.ndarray]) -> list[np.ndarray]:
        """Var(b | y)/σ² with β fixed of sets of effects (their positions among all K) that no row joins.

        One solve for each member of the largest set: independent sets share it.
        """
        Lambda = self.Lambda
        units = np.zeros((sum(self.widths), max(len(members) for members in sets)))
        for members in sets:
            units[members, np.arange(len(members))] = 1.0
        right = np.ascontiguousarray(Lambda.T @ units)
        V = Lambda @ (self.factored.solve(right) if self.inverse is None else self.inverse @ right)
        return [V[members, : len(members)] for members in sets]
