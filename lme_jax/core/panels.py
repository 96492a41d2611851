"""Cholesky factor and inverse of a large dense matrix by panels: OpenBLAS's threaded dpotrf crashes beyond 16 000."""

import numpy as np
from scipy.linalg import blas, lapack

# Columns up to which LAPACK is called for the whole matrix, and of a panel above.
WHOLE = 8192
PANEL = 2048


def factor(S: np.ndarray) -> bool:
    """The lower Cholesky factor in the place of a symmetric C-ordered S (K, K); False where it is not definite.

    Only the lower triangle is read and written.
    """
    K = len(S)
    if K <= WHOLE:
        return bool(lapack.dpotrf(S.T, lower=0, overwrite_a=1, clean=0)[1] == 0)
    for lo in range(0, K, PANEL):
        hi = min(lo + PANEL, K)
        corner, info = lapack.dpotrf(S[lo:hi, lo:hi].T, lower=0, clean=1)
        if info != 0:
            return False
        S[lo:hi, lo:hi] = corner.T
        for at in range(hi, K, PANEL):
            some = slice(at, min(at + PANEL, K))
            S[some, lo:hi] = blas.dtrsm(1.0, corner, S[some, lo:hi].T, lower=0, trans_a=1).T
            for to in range(hi, at + 1, PANEL):
                others = slice(to, min(to + PANEL, K))
                S[some, others] -= S[some, lo:hi] @ S[others, lo:hi].T
    return True


def inverse(L: np.ndarray) -> np.ndarray:
    """S⁻¹ in the place of its factor L (K, K) from ``factor``; the lower triangle is valid.

    From the last panel up: with B = L₂₁L₁₁⁻¹ and Z₂₂ known, Z₂₁ = −Z₂₂B and Z₁₁ = L₁₁⁻ᵀL₁₁⁻¹ − BᵀZ₂₁.
    """
    K = len(L)
    if K <= WHOLE:
        return lapack.dpotri(L.T, lower=0, overwrite_c=1)[0].T
    for lo in reversed(range(0, K, PANEL)):
        hi = min(lo + PANEL, K)
        own = lapack.dtrtri(np.tril(L[lo:hi, lo:hi]), lower=1)[0]
        corner = own.T @ own
        if hi < K:
            B = L[hi:, lo:hi] @ own
            L[hi:, lo:hi] = -_times(L, hi, B)
            corner -= B.T @ L[hi:, lo:hi]
        L[lo:hi, lo:hi] = corner
    return L


def _times(lower: np.ndarray, begin: int, B: np.ndarray) -> np.ndarray:
    """ZB for the symmetric Z whose lower triangle is ``lower`` from row and column ``begin`` on."""
    K, out = len(lower), np.zeros(B.shape)
    for lo in range(begin, K, PANEL):
        hi = min(lo + PANEL, K)
        rows = slice(lo - begin, hi - begin)
        corner = np.tril(lower[lo:hi, lo:hi])
        out[rows] += (corner + np.tril(corner, -1).T) @ B[rows]
        if lo > begin:
            below = lower[lo:hi, begin:lo]
            out[rows] += below @ B[: lo - begin]
            out[: lo - begin] += below.T @ B[rows]
    return out
