"""Confidence limits from bootstrap replicates.

References: Efron (1987), JASA 82, 171–185 (BCa); Davison & Hinkley (1997), ch. 5 (basic, percentile).
"""

import numpy as np
import scipy.special

# Replicates that limits need.
FEWEST = 40


def percentile(replicates: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the replicates (n, m) that leave (1 − level)/2 on each side: lower (m,), upper (m,)."""
    tail = 0.5 * (1.0 - level)
    lower, upper = np.quantile(replicates, [tail, 1.0 - tail], axis=0)
    return lower, upper


def basic(replicates: np.ndarray, estimate: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The percentile limits reflected in the estimate (m,)."""
    lower, upper = percentile(replicates, level)
    return 2.0 * estimate - upper, 2.0 * estimate - lower


def bca(
    replicates: np.ndarray, estimate: np.ndarray, jackknife: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bias-corrected and accelerated limits; the acceleration is that of ``jackknife`` (g, m).

    NaN where all replicates lie on one side of the estimate, which leaves the bias correction undefined.
    """
    below = (replicates < estimate).mean(axis=0) + 0.5 * (replicates == estimate).mean(axis=0)
    z0 = scipy.special.ndtri(below)
    influence = jackknife.mean(axis=0) - jackknife
    spread = (influence**2).sum(axis=0)
    acceleration = np.where(
        spread > 0, (influence**3).sum(axis=0) / (6.0 * np.where(spread > 0, spread, 1.0) ** 1.5), 0
    )
    limits = []
    for tail in (0.5 * (1.0 - level), 0.5 * (1.0 + level)):
        shifted = z0 + scipy.special.ndtri(tail)
        share = scipy.special.ndtr(z0 + shifted / (1.0 - acceleration * shifted))
        usable = np.isfinite(z0) & np.isfinite(share)
        quantiles = [
            np.quantile(column, q) for column, q in zip(replicates.T, np.where(usable, share, 0.5), strict=True)
        ]
        limits.append(np.where(usable, quantiles, np.nan))
    return limits[0], limits[1]
