"""Autocorrelation and semivariogram of residuals within subjects.

References: Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, §5.3.
"""

import numpy as np
import pandas as pd
import scipy.special

from ..errors import DataError
from ..inference.wald import check_alpha

# Pairs of rows that a semivariogram looks at in one call.
MOST_PAIRS = 20_000_000


def autocorrelation(
    r: np.ndarray, subject: np.ndarray, clock: np.ndarray, max_lag: int | None, alpha: float
) -> pd.DataFrame:
    """Empirical autocorrelations of residuals r (n,): columns lag, acf, pairs, limit.

    Parameters
    ----------
    subject : (n,) codes; clock : (n,) whole numbers: the lag of two rows of a subject is their difference.
    max_lag : the longest lag; None takes nlme's choice, min(longest series − 1, 10 log₁₀ of it).
    alpha : of ``limit``, beyond which an autocorrelation of independent residuals lies by chance.
    """
    order = np.lexsort((clock, subject))
    r, subject, clock = r[order], subject[order], clock[order]
    longest = int(np.bincount(subject).max())
    if max_lag is None:
        max_lag = max(min(longest - 1, int(10 * np.log10(longest))), 1)
    if not isinstance(max_lag, (int, np.integer)) or max_lag < 1:
        raise DataError(f"max_lag={max_lag!r}: give a whole number of lags, 1 or more")
    products, pairs = np.zeros(max_lag + 1), np.zeros(max_lag + 1, int)
    for step in range(min(longest, max_lag + 1)):
        first, second = slice(0, len(r) - step), slice(step, len(r))
        lag = clock[second] - clock[first]
        near = (subject[first] == subject[second]) & (lag <= max_lag)
        products += np.bincount(lag[near], (r[first] * r[second])[near], max_lag + 1)
        pairs += np.bincount(lag[near], minlength=max_lag + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = products / pairs
        limit = -scipy.special.ndtri(check_alpha(alpha) / 2.0) / np.sqrt(pairs)
    frame = pd.DataFrame({"lag": np.arange(max_lag + 1), "acf": mean / mean[0], "pairs": pairs, "limit": limit})
    frame.loc[0, "limit"] = np.nan
    return frame[frame.pairs > 0].reset_index(drop=True)


def semivariogram(r: np.ndarray, subject: np.ndarray, place: np.ndarray, n_bins: int, metric: str) -> pd.DataFrame:
    """½(r_i − r_j)² of pairs of rows of one subject against their distance: columns distance, semivariance, pairs.

    Parameters
    ----------
    place : (n,) or (n, d) times or coordinates.
    n_bins : as many classes of equally many pairs, by their median distance; each distance alone where fewer occur.
    """
    if not isinstance(n_bins, (int, np.integer)) or n_bins < 1:
        raise DataError(f"bins={n_bins!r}: give a whole number of classes, 1 or more")
    distance, half = _pairs(r, subject, place.reshape(len(r), -1), metric)
    if not len(distance):
        raise DataError("no subject has two rows, so there are no pairs for a semivariogram")
    if len(np.unique(distance)) > n_bins:
        edges = np.unique(np.quantile(distance, np.linspace(0.0, 1.0, n_bins + 1)))
        key = np.searchsorted(edges[1:-1], distance, side="left")
    else:
        key = np.unique(distance, return_inverse=True)[1].reshape(-1)
    groups = pd.DataFrame({"distance": distance, "semivariance": half}).groupby(key)
    out = groups.agg(distance=("distance", "median"), semivariance=("semivariance", "mean"), pairs=("distance", "size"))
    return out.reset_index(drop=True)


def _pairs(r: np.ndarray, subject: np.ndarray, place: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Distances and half squared differences of all pairs of rows of a subject."""
    sizes = np.bincount(subject)
    n_pairs = int((sizes * (sizes - 1) // 2).sum())
    if n_pairs > MOST_PAIRS:
        raise DataError(f"the subjects have {n_pairs} pairs of rows, more than the {MOST_PAIRS} of a semivariogram")
    order = np.argsort(subject, kind="stable")
    r, subject, place = r[order], subject[order], place[order]
    distances, halves = [np.empty(0)], [np.empty(0)]
    for step in range(1, int(sizes.max(initial=0))):
        same = np.flatnonzero(subject[step:] == subject[:-step])
        distances.append(_distance(place[same + step] - place[same], metric))
        halves.append(0.5 * (r[same + step] - r[same]) ** 2)
    return np.concatenate(distances), np.concatenate(halves)


def _distance(gap: np.ndarray, metric: str) -> np.ndarray:
    if metric == "manhattan":
        return np.abs(gap).sum(1)
    return np.abs(gap).max(1) if metric == "maximum" else np.sqrt((gap**2).sum(1))
