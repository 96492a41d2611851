"""The EM algorithm of Laird & Ware for Cov(b) = Ψ and σ², from the blocks' moments; monotone, slow, optional.

Missing data are b (and β under REML, which then has a flat prior). Under ML β is set to its generalised
least squares value before each step (ECME), so ℓ never decreases either way.

References: Laird & Ware (1982), Biometrics 38, 963–974; Lindstrom & Bates (1988), section 3; Liu & Rubin (1994).
"""

import numpy as np

from .components import Components
from .covariance import linear_basis


def em_step(model: Components, omega: np.ndarray, sigma2: float, reml: bool) -> tuple[np.ndarray, float]:
    """One EM update of (ω, σ²): packed Cov(b)/σ² (k,) and the residual variance."""
    p = model.n_fixed
    H = model.sums(omega).H
    beta = np.linalg.solve(H[:p, :p], H[:p, p]) if p else np.zeros(0)
    M_inverse = np.linalg.inv(H[:p, :p]) if p and reml else np.zeros((p, p))
    contrast = np.append(-beta, 1.0)
    rss = contrast @ model.S @ contrast
    spread = np.einsum("pr,pr->", model.S[:p, :p], M_inverse)
    moments = [np.zeros((block.size, block.size)) for block in model.template]
    counts = np.zeros(len(model.template))
    for _, R, G, part in model._chunks(omega):
        inner = np.eye(len(R)) + G @ R
        both = np.linalg.solve(inner, np.concatenate([G, part.C], axis=2))
        U, D = both[:, :, : len(R)], both[:, :, len(R) :]
        b, RDX = D @ contrast @ R, R @ D[:, :, :p]
        variance = R - R @ U @ R + RDX @ M_inverse @ np.swapaxes(RDX, 1, 2)
        Cr = part.C @ contrast
        rss += np.einsum("gi,gi->", b, np.einsum("gij,gj->gi", G, b) - 2.0 * Cr)
        spread += np.einsum("gij,gji->", G, variance) - 2.0 * np.einsum(
            "gip,pr,gir->", part.C[:, :, :p], M_inverse, RDX, optimize=True
        )
        second = sigma2 * variance.sum(axis=0) + np.einsum("gi,gj->ij", b, b)
        at = 0
        for t, (block, levels) in enumerate(zip(model.template, part.levels, strict=True)):
            counts[t] += levels * len(G)
            for _ in range(levels):
                moments[t] += second[at : at + block.size, at : at + block.size]
                at += block.size
    new_sigma2 = float(rss + sigma2 * spread) / model.n_rows
    parts = []
    for block, moment, count in zip(model.template, moments, counts, strict=True):
        E = linear_basis((block,))
        parts.append(np.einsum("aij,ij->a", E, moment) / np.einsum("aij,aij->a", E, E) / count)
    return np.concatenate(parts) / new_sigma2, new_sigma2


def em(model: Components, omega: np.ndarray, steps: int, reml: bool) -> tuple[np.ndarray, list[float]]:
    """``steps`` EM updates from ω (k,); returns ω and ℓ after each step, the start first."""
    sigma2 = model.scale(model.gls(omega), omega, reml)
    path = [model.loglike(None, omega, reml)]
    for _ in range(steps):
        omega, sigma2 = em_step(model, omega, sigma2, reml)
        path.append(model.loglike(None, omega, reml))
    return omega, path
