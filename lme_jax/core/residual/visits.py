"""Correlation structures by visit."""

from functools import lru_cache

import numpy as np

from .. import correlations
from ..jets import Jet, elementwise
from . import arma
from .families import (
    NEAR_EDGE,
    Entries,
    Family,
    Moments,
    Natural,
    Options,
    bend_of_lags,
    blunter_angles,
    correlation,
    covariance,
    entries,
    heterogeneous,
    lag_sums,
    lags,
    of_lags,
    one,
    variance,
)

# Correlations that a start is given at most.
STEEPEST = 0.95
# The least eigenvalue of an unstructured start in correlation form.
FLOOR = 1e-3


def _one(T: int, options: Options) -> int:
    return 1


def lag_correlations(m: Moments) -> np.ndarray:
    """(T,) correlations of the lags, over all pairs that are seen; 0 where there is none."""
    seen = lag_sums(m.pairs)
    r = lag_sums(m.R * m.pairs) / np.maximum(seen, 1e-300)
    return np.clip(np.where(seen > 0, r, 0.0), -STEEPEST, STEEPEST)


def _at(rho: np.ndarray, T: int, options: Options, word: str) -> Entries:
    return entries(BY_VISIT[word], rho, T, options)


def _with_variance(rho: np.ndarray, found: list[Natural]) -> list[Natural]:
    return [variance(one(len(rho)), 0), *found]


# ---------------------------------------------------------------- none

IDENTITY = Family(
    size=lambda T, options: 0,
    first=lambda rho, T, options: (np.eye(T), np.zeros((0, T, T))),
    bend=lambda rho, T, options, S: np.zeros((0, 0)),
    starts=lambda m, T, options: [np.zeros(0)],
    edges=lambda rho, T, options: np.zeros(0),
    natural=lambda rho, T, options: [],
    linear=lambda rho, T, options: _with_variance(rho, []),
    pairs=False,
)

# ---------------------------------------------------------------- AR(1)


def _ar1_first(rho: np.ndarray, T: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    if T == 1:
        return np.ones((1, 1)), np.zeros((1, 1, 1))
    R, R1, _ = correlations.AR1.derivatives(rho, T, ())
    return R, np.moveaxis(R1, 2, 0)


def _ar1_bend(rho: np.ndarray, T: int, options: Options, S: np.ndarray) -> np.ndarray:
    if T == 1:
        return np.zeros((1, 1))
    R2 = correlations.AR1.derivatives(rho, T, ())[2]
    return np.array([[(S * R2[:, :, 0, 0]).sum()]])


def _ar1_starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
    """ρ from the shortest lag that is seen."""
    seen = np.flatnonzero(lag_sums(m.pairs)[1:] > 0) + 1
    if not len(seen):
        return [np.zeros(1)]
    r = lag_correlations(m)[seen[0]]
    size = min(abs(r) ** (1.0 / seen[0]), STEEPEST)
    return [np.arcsin(np.array([np.sign(r) * size if seen[0] % 2 else size]))]


def _ar1_natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    return [correlation("rho", _at(rho, T, options, "ar1").covariance(1, 0))] if T > 1 else []


AR1 = Family(
    size=_one,
    first=_ar1_first,
    bend=_ar1_bend,
    starts=_ar1_starts,
    edges=lambda rho, T, options: np.abs(np.cos(rho)),
    natural=_ar1_natural,
    linear=lambda rho, T, options: _with_variance(rho, _ar1_natural(rho, T, options)),
    blunter=blunter_angles,
)

# ---------------------------------------------------------------- compound symmetry


def _cs_first(rho: np.ndarray, T: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    R, R1, _ = correlations.COMPOUND_SYMMETRY.derivatives(rho, T, ())
    return R, np.moveaxis(R1, 2, 0)


def _cs_bend(rho: np.ndarray, T: int, options: Options, S: np.ndarray) -> np.ndarray:
    R2 = correlations.COMPOUND_SYMMETRY.derivatives(rho, T, ())[2]
    return np.array([[(S * R2[:, :, 0, 0]).sum()]])


def _cs_starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
    off = np.tril(m.pairs, -1)
    r = np.clip((off * m.R).sum() / max(off.sum(), 1.0), -0.9 / (T - 1), STEEPEST)
    return [np.arcsin(np.sqrt(np.array([(r * (T - 1.0) + 1.0) / T])))]


def _cs_natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    return [Natural("rho", (), _at(rho, T, options, "cs").covariance(1, 0), "logit", -1.0 / (T - 1), 1.0)]


def _cs_linear(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    return _with_variance(rho, [covariance(_at(rho, T, options, "cs").covariance(1, 0), 1, 0)])


CS = Family(
    size=_one,
    first=_cs_first,
    bend=_cs_bend,
    starts=_cs_starts,
    edges=lambda rho, T, options: np.abs(np.concatenate([np.sin(rho), np.cos(rho)])),
    natural=_cs_natural,
    linear=_cs_linear,
)

# ---------------------------------------------------------------- Toeplitz


def _partial(rho: np.ndarray) -> Jet:
    return elementwise(np.sin(rho), np.cos(rho), -np.sin(rho))


def _toep_starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
    return [correlations.TOEPLITZ.angles(lag_correlations(m)[lags(T)], T, ())]


def _toep_natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    at = _at(rho, T, options, "toep")
    return [correlation("correlation", at.covariance(k, 0), k) for k in range(1, T)]


def _toep_linear(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    at = _at(rho, T, options, "toep")
    return _with_variance(rho, [covariance(at.covariance(k, 0), k, 0) for k in range(1, T)])


TOEPLITZ = Family(
    size=lambda T, options: T - 1,
    first=lambda rho, T, options: of_lags(correlations.autocorrelations(_partial(rho)), T),
    bend=lambda rho, T, options, S: bend_of_lags(correlations.autocorrelations(_partial(rho)), S),
    starts=_toep_starts,
    edges=lambda rho, T, options: np.abs(np.cos(rho)),
    natural=_toep_natural,
    linear=_toep_linear,
    blunter=blunter_angles,
)

# ---------------------------------------------------------------- ante-dependence


def _ad_matrix(rho: np.ndarray, T: int) -> np.ndarray:
    """C_ij = Π_{t = j}^{i − 1} sin φ_t, without a division."""
    C, r = np.eye(T), np.sin(rho)
    for i in range(1, T):
        C[i, :i] = r[i - 1] * C[i - 1, :i]
    return C


def _ad_first(rho: np.ndarray, T: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    C, first = _ad_matrix(rho, T), np.zeros((T - 1, T, T))
    for a in range(T - 1):
        first[a, a + 1 :, : a + 1] = np.cos(rho[a]) * np.outer(C[a + 1 :, a + 1], C[a, : a + 1])
    return C + np.tril(C, -1).T, first + first.swapaxes(1, 2)


def _ad_bend(rho: np.ndarray, T: int, options: Options, S: np.ndarray) -> np.ndarray:
    C, r, slope = _ad_matrix(rho, T), np.sin(rho), np.cos(rho)
    S, out = np.tril(S + S.T, -1), np.zeros((T - 1, T - 1))
    for a in range(T - 1):
        # What lies to the left of a, then what lies to the right of every b ≥ a.
        left = S[:, : a + 1] @ C[a, : a + 1]
        out[a, a] = -r[a] * (left[a + 1 :] @ C[a + 1 :, a + 1])
        for b in range(a + 1, T - 1):
            out[a, b] = out[b, a] = slope[a] * slope[b] * C[b, a + 1] * (left[b + 1 :] @ C[b + 1 :, b + 1])
    return out


def _ad_starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
    return [np.arcsin(np.clip(np.diagonal(m.R, -1), -STEEPEST, STEEPEST))]


def _ad_natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    at = _at(rho, T, options, "ad")
    return [correlation("rho", at.covariance(t + 1, t), t + 1) for t in range(T - 1)]


ANTE = Family(
    size=lambda T, options: T - 1,
    first=_ad_first,
    bend=_ad_bend,
    starts=_ad_starts,
    edges=lambda rho, T, options: np.abs(np.cos(rho)),
    natural=_ad_natural,
    linear=lambda rho, T, options: _with_variance(rho, _ad_natural(rho, T, options)),
    adjacent=True,
    blunter=blunter_angles,
)

# ---------------------------------------------------------------- unstructured


@lru_cache(maxsize=64)
def _places(T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle less its first entry, and which entries share a column (k, k)."""
    rows, columns = (a[1:] for a in np.tril_indices(T))
    return rows, columns, columns[:, None] == columns


def root(rho: np.ndarray, T: int) -> np.ndarray:
    """L with L₁₁ = 1."""
    L = np.zeros((T, T))
    L[0, 0] = 1.0
    L[_places(T)[:2]] = rho
    return L


def _us_first(rho: np.ndarray, T: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    L, (rows, columns, _) = root(rho, T), _places(T)
    half = np.zeros((len(rho), T, T))
    half[np.arange(len(rho)), rows] = L[:, columns].T
    return L @ L.T, half + half.swapaxes(1, 2)


def _us_bend(rho: np.ndarray, T: int, options: Options, S: np.ndarray) -> np.ndarray:
    rows, _, same = _places(T)
    return np.where(same, (S + S.T)[np.ix_(rows, rows)], 0.0)


def shrunk(R: np.ndarray) -> np.ndarray:
    """Correlations shrunk towards none only as far as a least eigenvalue needs."""
    least = float(np.linalg.eigvalsh(R)[0])
    share = 1.0 if least >= FLOOR else (1.0 - FLOOR) / (1.0 - least)
    return np.eye(len(R)) + share * (R - np.diag(np.diagonal(R)))


def _us_starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
    L = np.linalg.cholesky(shrunk(m.R) * np.outer(m.sd, m.sd) / m.sd[0] ** 2)
    return [L[_places(T)[:2]]]


def _us_edges(rho: np.ndarray, T: int, options: Options) -> np.ndarray:
    """What a visit's standard deviation keeps beside the earlier visits, relative to it."""
    L = root(rho, T)
    return np.abs(np.diagonal(L)) / np.maximum(np.sqrt((L**2).sum(1)), np.finfo(float).tiny)


def _us_blunter(rho: np.ndarray, T: int) -> np.ndarray:
    rows, columns, _ = _places(T)
    small = (_us_edges(rho, T, {})[rows] < NEAR_EDGE) & (rows == columns)
    return np.where(small, 10.0 * rho, rho)


def _us_natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    at = _at(rho, T, options, "us")
    sds = [Natural("sd", (t,), at.sd(t), "log", 0.0, power=1) for t in range(T)]
    return [*sds, *(correlation("correlation", at.correlation(i, j), i, j) for i in range(T) for j in range(i))]


def _us_linear(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    at = _at(rho, T, options, "us")
    pairs = [(i, j) for i in range(T) for j in range(i + 1)]
    return [covariance(at.covariance(i, j), i, j) if i != j else variance(at.covariance(i, i), i) for i, j in pairs]


UNSTRUCTURED = Family(
    size=lambda T, options: T * (T + 1) // 2 - 1,
    first=_us_first,
    bend=_us_bend,
    starts=_us_starts,
    edges=_us_edges,
    blunter=_us_blunter,
    natural=_us_natural,
    linear=_us_linear,
    heterogeneous=True,
    each=True,
)

# ---------------------------------------------------------------- the words

BY_VISIT = {
    "ident": IDENTITY,
    "us": UNSTRUCTURED,
    "toep": TOEPLITZ,
    "toeph": heterogeneous(TOEPLITZ),
    "ar1": AR1,
    "ar1h": heterogeneous(AR1),
    "cs": CS,
    "csh": heterogeneous(CS),
    "ad": ANTE,
    "adh": heterogeneous(ANTE),
    "arma": arma.ARMA,
}
