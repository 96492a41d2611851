"""What a fit would be without a row or a cluster, θ kept: nothing is fitted again.

With P = V⁻¹ − V⁻¹XMXᵀV⁻¹, M = (XᵀV⁻¹X)⁻¹, and D the rows left out,
    β̂ − β_D = MXᵀV⁻¹E_DP_DD⁻¹(Py)_D,   Q − Q_D = (Py)_DᵀP_DD⁻¹(Py)_D,   M_D = M + MXᵀV⁻¹E_DP_DD⁻¹E_DᵀV⁻¹XM.
Of a cluster that no other shares effects with these need its XᵀV⁻¹X, XᵀV⁻¹e and eᵀV⁻¹e alone.

References: Christensen, Pearson & Johnson (1992), Technometrics 34, 38–45; Demidenko & Stukel (2005), Stat. Med. 24.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from .henderson import MixedModelEquations

# Effects up to which the inverse of the equations is held as a dense matrix.
DENSE = 8000
VALUES_AT_ONCE = 1 << 22
# 1 − leverage below which what is left out determines a coefficient by itself.
ZERO = 1e-9


class RowTerms(NamedTuple):
    """Per row, in units of σ²: leverage of the conditional fit (n,), (V⁻¹)_ii (n,) and the rows of V⁻¹X (n, p)."""

    leverage: np.ndarray
    precision: np.ndarray
    VX: np.ndarray


class Deletion(NamedTuple):
    """Fits that leave something out, m of them.

    Attributes
    ----------
    beta : (m, p); sigma : (m,); variance : (m, p) diagonal of M_D; log_det : (m,) log det M_D − log det M.
    """

    beta: np.ndarray
    sigma: np.ndarray
    variance: np.ndarray
    log_det: np.ndarray


def row_terms(equations: MixedModelEquations, weights: Any) -> RowTerms:
    """Leverage and V⁻¹ of every row, from Henderson's equations."""
    G, w = equations.G, np.ones(len(equations.X)) if weights is None else np.asarray(weights)
    solve = equations.factored.solve if equations.inverse is None else equations.inverse.__matmul__
    gap = equations.X - G @ solve(np.ascontiguousarray(equations.XtWG.T))
    inner = _quadratic(equations)
    leverage = w * (inner + np.einsum("np,pq,nq->n", gap, equations.unscaled_cov, gap, optimize=True))
    return RowTerms(leverage, w - w * w * inner, gap * w[:, None])


def _quadratic(equations: MixedModelEquations) -> np.ndarray:
    """g_iᵀP⁻¹g_i (n,) of the rows of G."""
    G = equations.G
    if equations.inverse is not None:
        return np.asarray(G.multiply(G @ equations.inverse).sum(1)).ravel()
    n, K = G.shape
    out = np.empty(n)
    inverse = np.linalg.inv(equations.P.toarray()) if K <= DENSE else None
    step = max(1, VALUES_AT_ONCE // K)
    for lo in range(0, n, step):
        rows = G[lo : lo + step]
        if inverse is None:
            half = equations.factored.solve(rows.toarray().T).T
        else:
            half = rows @ inverse
        out[lo : lo + step] = np.asarray(rows.multiply(scipy.sparse.csr_matrix(half)).sum(1)).ravel()
    return out


def without_rows(
    terms: RowTerms, residual: np.ndarray, beta: np.ndarray, M: np.ndarray, Q: float, dof: float
) -> Deletion:
    """Each row left out once.

    Parameters
    ----------
    residual : (n,) V⁻¹(y − Xβ̂), the conditional residuals times their weights.
    Q : (y − Xβ̂)ᵀV⁻¹(y − Xβ̂); dof : N of the whole data, rows or under REML rows less p.
    """
    VXM = terms.VX @ M
    P = terms.precision - np.einsum("np,np->n", VXM, terms.VX)
    P = np.where(ZERO * terms.precision < P, P, np.nan)
    beta_d = beta - VXM * (residual / P)[:, None]
    sigma = np.sqrt((Q - residual**2 / P) / (dof - 1.0))
    variance = np.diagonal(M) + VXM**2 / P[:, None]
    return Deletion(beta_d, sigma, variance, np.log(terms.precision / P))


def without_clusters(
    W: np.ndarray, sizes: np.ndarray, beta: np.ndarray, M: np.ndarray, Q: float, dof: float
) -> Deletion:
    """Each cluster left out once.

    Parameters
    ----------
    W : (G, p+1, p+1) [X e]ᵀV⁻¹[X e] of every cluster; sizes : (G,) rows.
    """
    p = len(beta)
    T, s, q = W[:, :p, :p], W[:, :p, p], W[:, p, p]
    root = np.linalg.cholesky(M)
    values, vectors = np.linalg.eigh(np.eye(p) - root.T @ T @ root)
    values = np.where(values > ZERO, values, np.nan)
    half = root @ vectors / np.sqrt(values)[:, None, :]
    step = np.einsum("gij,gj->gi", half, np.einsum("gij,gi->gj", half, s))
    sigma = np.sqrt((Q - q - np.einsum("gi,gi->g", s, step)) / (dof - sizes))
    return Deletion(beta - step, sigma, (half**2).sum(2), -np.log(values).sum(1))
