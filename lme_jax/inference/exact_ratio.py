"""Finite-sample law of the likelihood ratio for the one variance of a model, by simulation in spectral form.

With μ the eigenvalues of ZᵀP₀Z, P₀ the projector off X, ξ those of ZᵀZ and independent w ~ χ²: for each draw the
maximum over λ = ψ/σ² ≥ 0 of
    RLRT   (n − p) log(1 + N/D) − Σ log(1 + λμ),
    LRT          n log(1 + N/D) − Σ log(1 + λξ),
    N = Σ λμw/(1 + λμ),   D = Σ w/(1 + λμ) + w₀.

Reference: Crainiceanu & Ruppert (2004), JRSS B 66, 165–185.
"""

from typing import NamedTuple

import numpy as np

from ..errors import DataError

# Eigenvalues of a dense matrix of as many levels; points on which λ is tried, between these multiples of 1/max μ.
LEVELS, GRID, LOW, HIGH = 4000, 240, 1e-4, 1e5


class Simulated(NamedTuple):
    """A p-value of n draws with its Monte-Carlo standard error."""

    p: float
    error: float


def share(draws: np.ndarray, statistic: float, zero: float) -> Simulated:
    """(1 + the draws at or above a statistic)/(1 + n); of a statistic below ``zero`` all are."""
    p = 1.0 if statistic <= zero else (1.0 + float((draws >= statistic).sum())) / (1.0 + len(draws))
    return Simulated(p, float(np.sqrt(p * (1.0 - p) / len(draws))))


def null_ratios(
    X: np.ndarray, z: np.ndarray, codes: np.ndarray, weights: np.ndarray | None, n: int, seed: int, reml: bool
) -> np.ndarray:
    """Draws (n,) of the ratio where the variance is zero.

    Parameters
    ----------
    X : (N, p); z : (N,) the one effect; codes : (N,) its levels.
    reml : restricted or ordinary likelihood.
    """
    mu, xi, rank = spectra(X, z, codes, weights)
    values, multiplicity = _distinct(mu)
    grid = np.concatenate([[0.0], np.geomspace(LOW, HIGH, GRID) / mu.max()])
    taken = grid[:, None] * (values if reml else xi)
    penalty = (multiplicity if reml else 1.0) * np.log1p(taken)
    shrunk = 1.0 / (1.0 + grid[:, None] * values)
    rows, rng = len(X), np.random.default_rng(seed)
    out, chunk = np.empty(n), max(1, 2**22 // (len(values) + GRID))
    for at in range(0, n, chunk):
        size = min(chunk, n - at)
        w = rng.chisquare(multiplicity, (size, len(values)))
        total = w.sum(1) + rng.chisquare(rows - rank - len(mu), size)
        inside = w @ (1.0 - shrunk).T
        ratio = (rows - rank if reml else rows) * -np.log1p(-inside / total[:, None]) - penalty.sum(1)
        out[at : at + size] = _peaks(ratio)
    return out


def spectra(
    X: np.ndarray, z: np.ndarray, codes: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Positive eigenvalues of ZᵀP₀Z, those of ZᵀZ, and the rank of X."""
    m = int(codes.max()) + 1
    if m > LEVELS:
        raise DataError(f"a simulated ratio takes the eigenvalues of {m} levels: at most {LEVELS}")
    root = np.ones(len(X)) if weights is None else np.sqrt(weights)
    basis, s, _ = np.linalg.svd(root[:, None] * X, full_matrices=False)
    basis = basis[:, s > 1e-12 * s.max(initial=0.0)]
    scaled = root * z
    sums = np.zeros((m, basis.shape[1]))
    np.add.at(sums, codes, scaled[:, None] * basis)
    squares = np.bincount(codes, scaled**2, m)
    mu = np.linalg.eigvalsh(np.diag(squares) - sums @ sums.T)
    return mu[mu > 1e-10 * squares.max()], squares, basis.shape[1]


def _distinct(mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues that differ, and how often each is there: balanced designs have few."""
    ordered = np.sort(mu)
    starts = np.concatenate([[True], np.diff(ordered) > 1e-10 * ordered[-1]])
    group = np.cumsum(starts) - 1
    multiplicity = np.bincount(group)
    return np.bincount(group, ordered) / multiplicity, multiplicity.astype(float)


def _peaks(ratio: np.ndarray) -> np.ndarray:
    """Maxima of rows over the grid, by a parabola through the highest point and its neighbours; the first is λ = 0."""
    best = ratio.argmax(1)
    rows = np.arange(len(ratio))
    middle = np.clip(best, 2, ratio.shape[1] - 2)
    a, b, c = (ratio[rows, middle + step] for step in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        top = b - (c - a) ** 2 / (8.0 * (a - 2.0 * b + c))
    return np.where((best >= 2) & (best == middle) & np.isfinite(top), top, ratio[rows, best])
