"""The greatest of several correlated |t|: tail probabilities and quantiles for simultaneous tests and intervals.

T = Z/s with Z ~ N(0, R), νs² ~ χ²_ν. Three ways to P(max |T_j| > c), the first that applies:

* rank R ≤ 2: the distribution of the length of a two-dimensional t, integrated over the circle;
* R_ij = λ_iλ_j off the diagonal (comparisons with a control): Z_j = λ_j z + √(1 − λ_j²) e_j, integrated over z and s;
* else E_d P(|u|/s > c/h(d)) over directions d uniform on the sphere, h(d) = max |a_jᵀd| for R = AAᵀ, whose radial part
  is an F probability: quasi-Monte Carlo with scrambled Sobol points, seeded, with a standard error from replicates.
  Relative accuracy does not fade in the tail, and one sample serves every c and ν.

References: Dunnett (1955), J. Am. Stat. Assoc. 50, 1096–1121; Deák (1980), Numer. Math. 35, 367–380; Somerville (1998),
J. Stat. Softw. 3(4); Tukey's range as in Copenhaver & Holland (1988), J. Stat. Comput. Simul. 30, 1–15.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.special as special

from .linear_tests import t_pvalue, t_quantile

SEED = 20201
REPLICATES, POINTS, BINS = 16, 2**14, 1024
# Beyond this share of the common factor its integrand is too sharp for the nodes.
SHARPEST = 0.9
_DF_NORMAL = 1e7


class MaxT(NamedTuple):
    """Tail of the greatest |t|.

    Attributes
    ----------
    tail : (c (m,), df (m,)) -> P(max |T| > c) (m,)
    method : in words.
    relative_error : of a tail near 5 %, as a standard error relative to it; 0 for integrals.
    """

    tail: Callable[[np.ndarray, np.ndarray], np.ndarray]
    method: str
    relative_error: float


# ---------------------------------------------------------------- nodes


@lru_cache(maxsize=8)
def _gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return nodes, weights


def _on(low: Any, high: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (…, n) of Gauss–Legendre on intervals."""
    nodes, weights = _gauss(n)
    middle, half = np.asarray(low + high)[..., None] / 2.0, np.asarray(high - low)[..., None] / 2.0
    return middle + half * nodes, half * weights


def _scales(df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes s (m, n) and weights for s = √(χ²_ν/ν), on the scale of log s."""
    normal = ~(df < _DF_NORMAL)
    nu = np.where(normal, 100.0, df)
    low = np.maximum(0.5 * np.log(special.gammaincinv(nu / 2.0, 1e-17) * 2.0 / nu), -40.0)
    high = 0.5 * np.log(special.gammainccinv(nu / 2.0, 1e-17) * 2.0 / nu)
    # At few degrees of freedom the density is wide on this scale.
    x, weights = _on(low, high, 96 if nu.min(initial=np.inf) > 6.0 else 384)
    half = nu[:, None] / 2.0
    density = np.exp(half * np.log(half) - special.gammaln(half) + 2.0 * half * x - half * np.exp(2.0 * x)) * 2.0
    s, w = np.exp(x), weights * density
    s[normal], w[normal] = 1.0, 1.0 / s.shape[1]
    return s, w


# ---------------------------------------------------------------- the range


def range_tail(q: np.ndarray, k: int, df: np.ndarray) -> np.ndarray:
    """P(Q > q) of the studentized range of k means, for q (m,) with df (m,)."""
    z, wz = _on(np.array(-8.5), np.array(8.5), 128)
    weights = wz * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi) * k
    upper = special.ndtr(z)
    out = np.empty(len(q))
    for i, (s, ws) in enumerate(zip(*_scales(df), strict=True)):
        inside = (upper - special.ndtr(z - (q[i] * s)[:, None])) ** (k - 1) @ weights
        out[i] = 1.0 - min(float(ws @ inside) / float(ws.sum()), 1.0)
    return out


# ---------------------------------------------------------------- the greatest of correlated ones


def max_t(R: np.ndarray, seed: int = SEED) -> MaxT:
    """The greatest of |t| with correlations R (m, m)."""
    values, vectors = np.linalg.eigh(R)
    used = values > 1e-10 * len(R)
    root = vectors[:, used] * np.sqrt(values[used])
    if root.shape[1] <= 2:
        return MaxT(_circle(root), "an integral over the circle", 0.0)
    shares = _common_factor(R)
    if shares is not None:
        return MaxT(lambda c, df: _one_factor(c, df, shares), "an integral over the common factor", 0.0)
    return _sphere(root, seed)


def _circle(root: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Rank one or two: between the midpoints of neighbouring directions one of them is the nearest."""
    if root.shape[1] < 2:
        return t_pvalue
    angles = np.unique(np.round(np.mod(np.arctan2(root[:, 1], root[:, 0]), np.pi), 12))
    gaps = np.diff(np.append(angles, angles[0] + np.pi)) / 2.0
    x, w = _on(np.zeros(len(gaps)), gaps, 64)
    cosine, weights = np.cos(x).ravel(), 2.0 * w.ravel() / np.pi

    def tail(c: np.ndarray, df: np.ndarray) -> np.ndarray:
        square = (c[:, None] / np.maximum(cosine, 1e-300)) ** 2
        nu = np.where(np.isfinite(df), df, 1.0)[:, None]
        normal = np.exp(-0.5 * square)
        student = np.exp(-0.5 * nu * np.log1p(square / nu))
        return np.where(np.isposinf(df)[:, None], normal, student) @ weights

    return tail


def _common_factor(R: np.ndarray) -> np.ndarray | None:
    """λ (m,) with R = λλᵀ off the diagonal, or None."""
    m = len(R)
    off = R - np.diag(np.diag(R))
    alone = np.abs(off).max(1) < 1e-12
    shares = np.zeros(m)
    rest = np.flatnonzero(~alone)
    if len(rest) == 2:
        size = np.sqrt(abs(off[rest[0], rest[1]]))
        shares[rest] = size, np.sign(off[rest[0], rest[1]]) * size
    elif len(rest) > 2:
        if (np.abs(off[np.ix_(rest, rest)])[~np.eye(len(rest), dtype=bool)] < 1e-12).any():
            return None
        for place, i in enumerate(rest):
            j, k = rest[(place + 1) % len(rest)], rest[(place + 2) % len(rest)]
            shares[i] = np.sqrt(abs(off[i, j] * off[i, k] / off[j, k]))
        shares[rest[1:]] *= np.sign(off[rest[0], rest[1:]])
    fitted = np.outer(shares, shares)
    np.fill_diagonal(fitted, 0.0)
    good = np.abs(fitted - off).max() < 1e-9 and (shares**2).max() <= SHARPEST
    return shares if good else None


def _one_factor(c: np.ndarray, df: np.ndarray, shares: np.ndarray) -> np.ndarray:
    z, wz = _on(np.array(-8.5), np.array(8.5), 160)
    weights = wz * np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
    own = np.sqrt(1.0 - shares**2)
    out = np.empty(len(c))
    for i, (s, ws) in enumerate(zip(*_scales(df), strict=True)):
        inside = np.ones((len(s), len(z)))
        for share, rest in zip(shares, own, strict=True):
            limit, center = (c[i] * s / rest)[:, None], share * z / rest
            inside *= special.ndtr(limit - center) - special.ndtr(-limit - center)
        out[i] = 1.0 - float(ws @ (inside @ weights)) / float(ws.sum())
    return out


def _sphere(root: np.ndarray, seed: int) -> MaxT:
    """Directions once; then every tail is a sum of F probabilities over binned h."""
    rank = root.shape[1]
    parts = np.stack([_nearness(root, seed + replicate) for replicate in range(REPLICATES)])

    def tails(c: np.ndarray, df: np.ndarray, h: np.ndarray) -> np.ndarray:
        """(m, ·) probabilities that the length exceeds c/h."""
        square = (c[:, None] / h) ** 2
        infinite = np.isinf(df)[:, None]
        if infinite.all():
            return special.chdtrc(rank, square)
        student = special.fdtrc(rank, np.where(infinite, 1.0, df[:, None]), square / rank)
        return np.where(infinite, special.chdtrc(rank, square), student) if infinite.any() else student

    h = np.sort(parts.ravel()).reshape(BINS, -1).mean(1)
    typical = t_quantile(1.0 - 0.025 / len(root), np.array([np.inf]))
    each = tails(typical, np.array([np.inf]), parts.ravel()[None]).reshape(REPLICATES, -1).mean(1)
    error = float(each.std(ddof=1) / np.sqrt(REPLICATES) / each.mean())
    words = f"quasi-Monte Carlo, {REPLICATES} × {POINTS} directions, relative standard error {error:.0e}"
    return MaxT(lambda c, df: tails(c, df, h).mean(1), words, error)


def _nearness(root: np.ndarray, seed: int) -> np.ndarray:
    """Means of h (BINS,) over equal shares of the directions, in order of h."""
    from scipy.stats import qmc

    points = qmc.Sobol(root.shape[1], seed=seed).random(POINTS)
    u = special.ndtri(np.clip(points, 1e-12, 1.0 - 1e-12))
    h = np.abs(u @ root.T).max(1) / np.sqrt((u * u).sum(1))
    return np.sort(h).reshape(BINS, -1).mean(1)


def quantile(
    tail: Callable[[np.ndarray, np.ndarray], np.ndarray], level: float, df: np.ndarray, bounds: tuple[Any, Any]
) -> np.ndarray:
    """c (m,) with tail(c, df) = 1 − level, between bounds (m,) each, by the secant method kept within a bracket."""
    low, high = (np.array(b, float) * np.ones(len(df)) for b in bounds)

    def excess(c: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(tail(c, df), 1e-300)) - np.log(1.0 - level)

    f_low, f_high, side, c = excess(low), excess(high), np.zeros(len(df)), low
    for _ in range(60):
        with np.errstate(divide="ignore", invalid="ignore"):
            c = np.where(f_low > f_high, low + (high - low) * f_low / (f_low - f_high), low)
        c = np.clip(c, low, high)
        f = excess(c)
        if ((np.abs(f) < 1e-11) | (high - low <= 1e-13 * high)).all():
            break
        above = f > 0
        # Illinois: the end that stays a second time counts half, so that the other does not stall.
        f_high = np.where(above, np.where(side > 0, 0.5 * f_high, f_high), f)
        f_low = np.where(above, f, np.where(side < 0, 0.5 * f_low, f_low))
        low, high, side = np.where(above, c, low), np.where(above, high, c), np.where(above, 1.0, -1.0)
    return c
