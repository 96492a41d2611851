"""``Moments`` of rows taken as a chain: neighbours tell the correlation, pairs here and there the distances."""

import numpy as np

from .chains import Chain
from .families import Moments
from .model import Model

# Quantiles of the distances of two rows of a subject, at which ranges begin, and the pairs that are looked at.
QUANTILES = (0.1, 0.5, 0.9)
PAIRS = 20_000


def of_arm(model: Model, chain: Chain, a: int) -> tuple[Moments, float]:
    """The moments of arm a and its overall standard deviation."""
    r = chain.W[-1]
    inside = slice(None) if model.n_groups == 1 else chain.at.group == a
    size = float(np.sqrt(max(float(np.mean(r[inside] ** 2)), np.finfo(float).tiny)))
    if model.family.distance:
        return Moments(np.ones(1), np.eye(1), np.ones((1, 1)), _distances(chain)), size
    links = chain.joined if model.n_groups == 1 else chain.joined & (chain.at.group == a)
    if model.word == "ident" or not links.any():
        return Moments(np.full(1, size), np.eye(1), np.ones((1, 1)), np.zeros(0)), size
    g = int(chain.gap[links].min())
    at = np.flatnonzero(links & (chain.gap == g))
    rho = float(r[at] @ r[at - 1]) / max(float(np.sqrt((r[at] @ r[at]) * (r[at - 1] @ r[at - 1]))), 1e-300)
    T = max(model.n_visits, g + 1) if model.family.heterogeneous else g + 1
    near = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) == g
    return Moments(_sds(model, chain, inside, T, size), np.eye(T) + rho * near, np.eye(T) + near, np.zeros(0)), size


def _sds(model: Model, chain: Chain, inside: np.ndarray | slice, T: int, size: float) -> np.ndarray:
    if not model.family.heterogeneous:
        return np.full(T, size)
    visit, r = chain.at.clock[inside], chain.W[-1][inside]
    n = np.bincount(visit, minlength=T)
    variance = np.where(n > 0, np.bincount(visit, r * r, T) / np.maximum(n, 1), size**2)
    return np.sqrt(np.maximum(variance, (1e-3 * size) ** 2))


def _distances(chain: Chain) -> np.ndarray:
    """Quantiles over pairs of rows 1, 2, 4 … apart."""
    found, n = [], len(chain.level)
    lag = 1
    while lag < n:
        at = np.arange(lag, n, max(1, n // PAIRS))
        at = at[chain.at.subject[at] == chain.at.subject[at - lag]]
        if not len(at):
            break
        found.append(chain.at.clock[at] - chain.at.clock[at - lag])
        lag *= 2
    return np.quantile(np.concatenate(found), QUANTILES)
