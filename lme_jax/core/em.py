"""The EM algorithm of Laird & Ware for Cov(b) = Ψ and σ², for any design; monotone, slow, optional.

Missing data are b (and β under REML, which then has a flat prior). Under ML β is set to its generalised
least squares value before each step (ECME), so ℓ never decreases either way. With e = ZᵀV⁻¹(y − Xβ̂) and U = ZᵀV⁻¹Z,
b̂ = Ψe and Var(b | y)/σ² = Ψ − ΨUΨ, and of the residuals V⁻¹r the sum of squares is Q − eᵀΨe.

References: Laird & Ware (1982), Biometrics 38, 963–974; Lindstrom & Bates (1988), section 3; Liu & Rubin (1994).
"""

import numpy as np

from . import criterion, likelihood
from .covariance import linear_basis
from .likelihood import Statistics


def em_step(data: Statistics, omega: np.ndarray, sigma2: float, reml: bool) -> tuple[np.ndarray, float]:
    """One EM update of (ω, σ²): Cov(b)/σ² (k,) on the profile scale, and the residual variance."""
    held, Ls = likelihood.engine(data), likelihood.roots(omega, "profile", data)
    m = likelihood.sums(held, Ls, likelihood.gls(omega, data), data)
    p, layout, z_scale = len(m.M), likelihood.layout_of(data), likelihood.totals_of(data).basis.z_scale
    M_inverse = np.linalg.inv(m.M) if p and reml else np.zeros((p, p))
    rss, spread, parts = m.Q, float(p if reml else 0), []
    for j, part in enumerate(criterion.parts(data.template, layout.sizes)):
        Psi, U, DD = Ls[j] @ Ls[j].T, m.U[j], m.DD[j]
        ee = DD[:, p, :, p]
        TT = np.einsum("pr,ipjr->ij", M_inverse, DD[:, :p, :, :p])
        second = Psi @ ee @ Psi + sigma2 * (layout.levels[j] * Psi - Psi @ (U - TT) @ Psi)
        rss -= np.vdot(Psi, ee)
        spread += np.vdot(Psi, U) - np.vdot(Psi, TT)
        s, E = z_scale[layout.columns(j)], linear_basis(part.template)
        moment = second / np.outer(s, s) / layout.levels[j]
        parts.append(np.einsum("aij,ij->a", E, moment) / np.einsum("aij,aij->a", E, E))
    new_sigma2 = (rss + sigma2 * spread) / float(likelihood.totals_of(data).n_rows)
    return np.concatenate(parts) / new_sigma2, float(new_sigma2)


def em(data: Statistics, omega: np.ndarray, steps: int, reml: bool) -> tuple[np.ndarray, list[float]]:
    """``steps`` EM updates from ω (k,); returns ω and ℓ after each step, the start first."""

    def value() -> float:
        packed = np.concatenate([likelihood.gls(omega, data), omega])
        return likelihood.loglike(packed, data, scale="profile", reml=reml)

    sigma2 = likelihood.scale_at(likelihood.gls(omega, data), omega, "profile", data, reml)
    path = [value()]
    for _ in range(steps):
        omega, sigma2 = em_step(data, omega, sigma2, reml)
        path.append(value())
    return omega, path
