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
import scipy.sparse.linalg

CHUNK_VALUES = 1 << 22


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
    One sparse LU factor of the symmetric (K, K) matrix P, K = Σ r_j q_j, and per prediction one solve:
    O(K) each for one or nested factors, up to O(K²) where the factors are crossed.
    """

    def __init__(self, X: np.ndarray, Zs: list[Any], Ls: list[np.ndarray], weights: Any, unscaled_cov: Any) -> None:
        self.X, self.Ls = np.asarray(X, float), [np.asarray(L, float) for L in Ls]
        self.unscaled_cov = np.asarray(unscaled_cov, float)
        self.widths = [Z.shape[1] for Z in Zs]
        self.G = self.spherical(Zs)
        self.WG = self.G if weights is None else scipy.sparse.diags(np.asarray(weights, float)) @ self.G
        self.XtWG = (self.WG.T @ self.X).T

    @cached_property
    def factored(self) -> Any:
        """LU factors of P; the pivots stay on the diagonal because P is positive definite."""
        P = (scipy.sparse.identity(self.G.shape[1]) + self.G.T @ self.WG).tocsc()
        return scipy.sparse.linalg.splu(
            P, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
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
        return np.array([block[0, 0] for block in self.joint(A, Z, 1)[1]])

    def joint(self, A: np.ndarray, Z: Any, q: int) -> tuple[np.ndarray, np.ndarray]:
        """Covariances / σ² (r/q, q, q) of q successive predictions: with β̂ fixed, and of the errors."""
        Z = scipy.sparse.csr_matrix(Z)
        n = Z.shape[0]
        fixed, full = np.zeros((n // q, q, q)), np.zeros((n // q, q, q))
        step = q * max(1, CHUNK_VALUES // (q * max(1, Z.shape[1])))
        for lo in range(0, n, step):
            rows, blocks = slice(lo, lo + step), slice(lo // q, lo // q + step // q)
            u = Z[rows].toarray()
            s = self.factored.solve(np.ascontiguousarray(u.T)).T
            d = (A[rows] - s @ self.XtWG.T).reshape(-1, q, A.shape[1])
            inner = u.reshape(-1, q, u.shape[1]) @ np.swapaxes(s.reshape(-1, q, u.shape[1]), 1, 2)
            fixed[blocks] = 0.5 * (inner + np.swapaxes(inner, 1, 2))
            full[blocks] = fixed[blocks] + d @ self.unscaled_cov @ np.swapaxes(d, 1, 2)
        return fixed, full

    def within(self, sets: list[np.ndarray]) -> list[np.ndarray]:
        """Var(b | y)/σ² with β fixed of sets of effects (their positions among all K) that no row joins.

        One solve for each member of the largest set: independent sets share it.
        """
        K = sum(self.widths)
        unit, ends = scipy.sparse.identity(K, format="csc"), np.cumsum([0, *self.widths])
        Lambda = self.spherical([unit[:, lo:hi] for lo, hi in itertools.pairwise(ends)])
        units = np.zeros((K, max(len(members) for members in sets)))
        for members in sets:
            units[members, np.arange(len(members))] = 1.0
        V = Lambda @ self.factored.solve(np.ascontiguousarray(Lambda.T @ units))
        return [V[members, : len(members)] for members in sets]
