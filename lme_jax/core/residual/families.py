"""What a correlation structure is asked; what several of them share.

A family gives the matrix M (T, T) of one arm as a smooth function of unconstrained ρ (k,), with M₁₁ = 1; ``bend`` is
its second derivative along a symmetric S, Σ_ij S_ij ∂²M_ij, so that no array of T²k² entries is ever made. Families by
visit know the T visits; families by distance make M elementwise from distances (…,).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..jets import Jet

Options = dict[str, Any]


class Moments(NamedTuple):
    """What the residuals of least squares tell before the fit.

    Attributes
    ----------
    sd : (T,) by visit, positive; R : (T, T) correlations of the pairs of visits, 0 where a pair is never seen.
    pairs : (T, T) how often two visits meet in a subject.
    distances : (m,) quantiles of the distances of two rows of a subject, increasing, of structures by distance.
    """

    sd: np.ndarray
    R: np.ndarray
    pairs: np.ndarray
    distances: np.ndarray


class Natural(NamedTuple):
    """A parameter that people read: its value and derivative in ρ (k,), and where it can lie; see ``Parameter``.

    ``scaled`` : it is this times σ of the arm.
    """

    kind: str
    index: tuple[int, ...]
    value: float
    slope: np.ndarray
    transform: str = "identity"
    low: float = -np.inf
    high: float = np.inf
    scaled: bool = False


class Family(NamedTuple):
    """An entry of the registry.

    Attributes
    ----------
    size : (T, options) → k.
    first : by visit (ρ, T, options) → M (T, T), ∂M (k, T, T); by distance (ρ, d (*s), options) → M (*s), ∂M (k, *s).
    bend : by visit (ρ, T, options, S (T, T)) → (k, k); by distance (ρ, d (*s), options, S (*s)) → (k, k).
    starts : (Moments, T, options) → starts ρ, the likeliest first.
    edges : (ρ, T, options) → (m,) what vanishes where M is singular or a parameter stands on its edge.
    natural : (ρ, T, options) → what people read.
    options : names of options and their defaults.
    distance : by distance; heterogeneous : has a variance for every visit; pairs : needs pairs of visits seen together;
        each : every pair has a parameter of its own; adjacent : only pairs of neighbours have.
    """

    size: Callable[[int, Options], int]
    first: Callable[[np.ndarray, Any, Options], tuple[np.ndarray, np.ndarray]]
    bend: Callable[[np.ndarray, Any, Options, np.ndarray], np.ndarray]
    starts: Callable[[Moments, int, Options], list[np.ndarray]]
    edges: Callable[[np.ndarray, int, Options], np.ndarray]
    natural: Callable[[np.ndarray, int, Options], list[Natural]]
    options: dict[str, Any] = {}
    distance: bool = False
    heterogeneous: bool = False
    pairs: bool = True
    each: bool = False
    adjacent: bool = False


def lags(T: int) -> np.ndarray:
    """|i − j| (T, T)."""
    at = np.arange(T)
    return np.abs(at[:, None] - at)


def lag_sums(S: np.ndarray) -> np.ndarray:
    """(T,) Σ of S (T, T) over the entries of every lag."""
    return np.bincount(lags(len(S)).ravel(), S.ravel(), len(S))


def of_lags(r: Jet, T: int) -> tuple[np.ndarray, np.ndarray]:
    """M and ∂M of autocorrelations r of the lags 0 … T − 1."""
    lag = lags(T)
    return r.value[lag], r.first[:, lag]


def bend_of_lags(r: Jet, S: np.ndarray) -> np.ndarray:
    """(k, k) of autocorrelations."""
    return r.second @ lag_sums(S)


# ---------------------------------------------------------------- a variance for every visit


def heterogeneous(base: Family) -> Family:
    """D M D with D = diag(1, e^{η_2}, …): parameters η (T − 1,), then those of ``base``."""

    def split(rho: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(np.concatenate([[0.0], rho[: T - 1]])), rho[T - 1 :]

    def first(rho: np.ndarray, T: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
        s, inner = split(rho, T)
        C, C1 = base.first(inner, T, options)
        across = np.outer(s, s)
        M = across * C
        own = np.zeros((T - 1, T, T))
        for t in range(1, T):
            own[t - 1, t, :] += M[t]
            own[t - 1, :, t] += M[t]
        return M, np.concatenate([own, across * C1])

    def bend(rho: np.ndarray, T: int, options: Options, S: np.ndarray) -> np.ndarray:
        s, inner = split(rho, T)
        C, C1 = base.first(inner, T, options)
        weighed = S * np.outer(s, s)
        P, k = weighed * C, len(rho)
        out = np.empty((k, k))
        out[: T - 1, : T - 1] = (2.0 * P + 2.0 * np.diag(P.sum(1)))[1:, 1:]
        across = 2.0 * (weighed * C1).sum(2)[:, 1:]
        out[T - 1 :, : T - 1], out[: T - 1, T - 1 :] = across, across.T
        out[T - 1 :, T - 1 :] = base.bend(inner, T, options, weighed)
        return out

    def starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
        eta = np.log(m.sd[1:] / m.sd[0])
        return [np.concatenate([eta, inner]) for inner in base.starts(m, T, options)]

    def natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
        s, inner = split(rho, T)
        unit = np.eye(len(rho))
        sds = [Natural("sd", (t,), float(s[t]), s[t] * unit[t - 1] * (t > 0), "log", 0.0, scaled=True) for t in range(T)]
        rest = base.natural(inner, T, options)
        return [*sds, *(n._replace(slope=np.concatenate([np.zeros(T - 1), n.slope])) for n in rest if n.kind != "sd")]

    return base._replace(
        size=lambda T, options: T - 1 + base.size(T, options),
        first=first,
        bend=bend,
        starts=starts,
        natural=natural,
        edges=lambda rho, T, options: np.concatenate([split(rho, T)[0], base.edges(split(rho, T)[1], T, options)]),
        heterogeneous=True,
    )
