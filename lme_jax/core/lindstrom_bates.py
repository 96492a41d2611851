"""Analytic score and Hessian of the profile-scale log-likelihood: the cross-check of autodiff.

Parameters are (β, ω) with LLᵀ = Σ ω_a E_a and σ² profiled out. The exact forms are kept, including the
terms in XᵀV⁻¹r that vanish at the GLS estimate (statsmodels drops them; MATH §4). Nothing here shares code
with the fit beyond the moments: V⁻¹ enters through plain solves with I + GΨ.

References: Lindstrom & Bates (1988), J. Am. Stat. Assoc. 83, 1014–1022, sections 4–5.
"""

from typing import Any, NamedTuple

import numpy as np

from .covariance import linear_basis
from .moments import GroupData


class Sums(NamedTuple):
    """The sums over levels that the derivatives need, with V_a = ∂V/∂ω_a and r = y − Xβ.

    Attributes
    ----------
    Q : rᵀV⁻¹r; Xr : (p,) XᵀV⁻¹r; M : (p, p) XᵀV⁻¹X.
    trace : (k,) tr V⁻¹V_a; B : (k,) rᵀV⁻¹V_aV⁻¹r; XB : (k, p) XᵀV⁻¹V_aV⁻¹r.
    trace2 : (k, k) tr V⁻¹V_aV⁻¹V_b; B2 : (k, k) rᵀV⁻¹V_aV⁻¹V_bV⁻¹r.
    X_a : (k, p, p) XᵀV⁻¹V_aV⁻¹X; F : (k, k, p, p) XᵀV⁻¹V_aV⁻¹V_bV⁻¹X; read under REML only.
    """

    Q: float
    Xr: np.ndarray
    M: np.ndarray
    trace: np.ndarray
    B: np.ndarray
    XB: np.ndarray
    trace2: np.ndarray
    B2: np.ndarray
    X_a: np.ndarray
    F: np.ndarray


def assemble(sums: Sums, N: float, reml: bool) -> tuple[np.ndarray, np.ndarray]:
    """Score (p + k,) and Hessian (p + k, p + k) from the sums; N = n (ML) or n − p (REML)."""
    Q, Xr, M, B = sums.Q, sums.Xr, sums.M, sums.B
    score_beta = N * Xr / Q
    score_omega = -0.5 * sums.trace + 0.5 * N * B / Q
    h_bb = -N * M / Q + 2.0 * N * np.outer(Xr, Xr) / Q**2
    h_ob = -N * sums.XB / Q + N * np.outer(B, Xr) / Q**2
    h_oo = 0.5 * sums.trace2 - 0.5 * N * (2.0 * sums.B2 / Q - np.outer(B, B) / Q**2)
    if reml and len(M):
        Q_a = np.linalg.solve(M[None], sums.X_a)
        score_omega += 0.5 * np.einsum("app->a", Q_a)
        h_oo += 0.5 * np.einsum("apr,brp->ab", Q_a, Q_a)
        h_oo -= np.einsum("pr,abrp->ab", np.linalg.inv(M), 0.5 * (sums.F + np.swapaxes(sums.F, 2, 3)))
    return np.concatenate([score_beta, score_omega]), np.block([[h_bb, h_ob.T], [h_ob, h_oo]])


def score_and_hessian(beta: Any, omega: Any, data: GroupData, *, reml: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Score (p + k,) and Hessian (p + k, p + k) at (β, ω) in float64 NumPy.

    Parameters
    ----------
    beta : (p,) fixed effects; omega : (k,) profile-scale covariance parameters.
    """
    beta, omega = np.asarray(beta, float), np.asarray(omega, float)
    basis, p = data.moments.basis, data.n_fixed
    s = np.asarray(basis.z_scale)
    E = linear_basis(data.template) * s[:, None] * s[None, :]
    G = np.moveaxis(np.asarray(data.moments.ZtZ), 2, 0)
    back = np.linalg.inv(basis.map)
    C = np.einsum("qcg,cd->gqd", data.moments.ZtW, back)
    S = back.T @ data.moments.WtW @ back
    Psi = np.einsum("a,aij->ij", omega, E)
    shrink = np.linalg.inv(np.eye(len(s)) + G @ Psi)
    U, D = shrink @ G, shrink @ C
    contrast = np.append(-beta, 1.0)
    VX = S[:p] - np.einsum("gip,ij,gjc->pc", D[:, :, :p], Psi, C)
    M, Xr = VX[:, :p], VX @ contrast
    Cr, Dr = C @ contrast, D @ contrast
    Q = contrast @ S @ contrast - np.einsum("gi,ij,gj->", Dr, Psi, Cr)
    N = float(data.moments.n_rows) - (p if reml else 0)
    DX = D[:, :, :p]

    trace = np.einsum("aij,gji->a", E, U)
    B = np.einsum("gi,aij,gj->a", Dr, E, Dr)
    EU = np.einsum("aij,gjk->gaik", E, U)
    trace2 = np.einsum("gaik,gbki->ab", EU, EU)
    B2 = np.einsum("gi,aij,gjk,bkl,gl->ab", Dr, E, U, E, Dr, optimize=True)
    XB = np.einsum("gip,aij,gj->ap", DX, E, Dr)
    X_a = np.einsum("gip,aij,gjr->apr", DX, E, DX)
    F = np.einsum("gip,aij,gjk,bkl,glr->abpr", DX, E, U, E, DX, optimize=True)
    return assemble(Sums(Q, Xr, M, trace, B, XB, trace2, B2, X_a, F), N, reml)
