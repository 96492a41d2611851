"""What a correlation structure is asked; what several of them share.

A family gives the matrix M (T, T) of one arm as a smooth function of unconstrained ρ (k,), with M₁₁ = 1; ``bend`` is
its second derivative along a symmetric S, Σ_ij S_ij ∂²M_ij, so that no array of T²k² entries is ever made. Families by
visit know the T visits; families by distance make M elementwise from distances (…,).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
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
    """A parameter that people read; see ``Parameter``.

    Attributes
    ----------
    value : a ``Jet`` of one entry in ρ (k,); what is reported is it times σ^``power``.
    transform, low, high : where an interval is symmetric, and what the parameter lies between.
    """

    kind: str
    place: tuple[int, ...]
    value: Jet
    transform: str = "identity"
    low: float = -np.inf
    high: float = np.inf
    power: int = 0


class Family(NamedTuple):
    """An entry of the registry.

    Attributes
    ----------
    size : (T, options) → k.
    first : by visit (ρ, T, options) → M (T, T), ∂M (k, T, T); by distance (ρ, d (*s), options) → M (*s), ∂M (k, *s).
    bend : by visit (ρ, T, options, S (T, T)) → (k, k); by distance (ρ, d (*s), options, S (*s)) → (k, k).
    starts : (Moments, T, options) → starts ρ, the likeliest first.
    edges : (ρ, T, options) → (m,) what vanishes where M is singular or a parameter stands on its edge.
    blunter : (ρ, T) → the ρ whose edges that almost vanish are ten times as far, None where there is none.
    natural : (ρ, T, options) → what people read; k of them, and sds where the visits have some.
    linear : (ρ, T, options) → the k + 1 parameters that SAS estimates, a variance first; V is linear in them where it
        can be.
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
    linear: Callable[[np.ndarray, int, Options], list[Natural]]
    blunter: Callable[[np.ndarray, int], np.ndarray] | None = None
    options: Mapping[str, Any] = MappingProxyType({})
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


# What nearly vanishes.
NEAR_EDGE = 1e-3


def blunter_angles(rho: np.ndarray, T: int) -> np.ndarray:
    """Correlations sin φ near ±1 with cos φ tenfold."""
    size = np.abs(np.cos(rho))
    turned = np.sign(np.sin(rho)) * np.arccos(np.minimum(10.0 * size, 1.0))
    return np.where(size < NEAR_EDGE, turned, rho)


# ---------------------------------------------------------------- entries of M with two derivatives


def compose(x: Jet, f: float, slope: float, bend: float) -> Jet:
    """g(x) of a jet of one entry, g = ``f`` with derivatives ``slope`` and ``bend`` there."""
    across = x.first[:, None] * x.first[None]
    return Jet(np.array([f]), slope * x.first, slope * x.second + bend * across)


def jet(value: float, slope: np.ndarray, bend: np.ndarray) -> Jet:
    """A jet of one entry."""
    return Jet(np.array([float(value)]), slope[:, None], bend[:, :, None])


def padded(x: Jet, before: int, after: int = 0) -> Jet:
    """The same jet among further parameters."""
    return Jet(
        x.value,
        np.pad(x.first, [(before, after), (0, 0)]),
        np.pad(x.second, [(before, after), (before, after), (0, 0)]),
    )


def one(k: int) -> Jet:
    """The constant 1 of k parameters."""
    return jet(1.0, np.zeros(k), np.zeros((k, k)))


class Entries(NamedTuple):
    """M of a structure by visit at one ρ, entry by entry."""

    M: np.ndarray
    M1: np.ndarray
    bend: Callable[[np.ndarray], np.ndarray]

    def covariance(self, i: int, j: int) -> Jet:
        """M_ij."""
        S = np.zeros(self.M.shape)
        S[i, j] += 0.5
        S[j, i] += 0.5
        return jet(self.M[i, j], self.M1[:, i, j], self.bend(S))

    def sd(self, i: int) -> Jet:
        """√M_ii."""
        size = np.sqrt(self.M[i, i])
        return compose(self.covariance(i, i), size, 0.5 / size, -0.25 / size**3)

    def correlation(self, i: int, j: int) -> Jet:
        """M_ij / √(M_ii M_jj)."""
        out = self.covariance(i, j)
        for t in (i, j):
            size = np.sqrt(self.M[t, t])
            out = out * compose(self.covariance(t, t), 1.0 / size, -0.5 / size**3, 0.75 / size**5)
        return out


def entries(family: Family, rho: np.ndarray, T: int, options: Options) -> Entries:
    """``Entries`` at ρ."""
    M, M1 = family.first(rho, T, options)
    return Entries(M, M1, lambda S: family.bend(rho, T, options, S))


def variance(x: Jet, *place: int) -> Natural:
    """A variance, times σ²."""
    return Natural("variance", place, x, "log", 0.0, power=2)


def covariance(x: Jet, i: int, j: int) -> Natural:
    """A covariance, times σ²."""
    return Natural("covariance", (i, j), x, power=2)


def correlation(kind: str, x: Jet, *place: int) -> Natural:
    """A correlation between −1 and 1."""
    return Natural(kind, place, x, "atanh", -1.0, 1.0)


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

    def inner(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
        found = base.natural(rho[T - 1 :], T, options)
        return [n._replace(value=padded(n.value, T - 1)) for n in found]

    def natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
        at = entries(whole, rho, T, options)
        sds = [Natural("sd", (t,), at.sd(t), "log", 0.0, power=1) for t in range(T)]
        return [*sds, *inner(rho, T, options)]

    def linear(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
        at = entries(whole, rho, T, options)
        return [*(variance(at.covariance(t, t), t) for t in range(T)), *inner(rho, T, options)]

    def blunter(rho: np.ndarray, T: int) -> np.ndarray:
        eta, inner = rho[: T - 1], rho[T - 1 :]
        moved = inner if base.blunter is None else base.blunter(inner, T)
        return np.concatenate([np.where(np.exp(eta) < NEAR_EDGE, eta + np.log(10.0), eta), moved])

    whole = base._replace(
        size=lambda T, options: T - 1 + base.size(T, options),
        first=first,
        bend=bend,
        starts=starts,
        natural=natural,
        edges=lambda rho, T, options: np.concatenate([split(rho, T)[0], base.edges(split(rho, T)[1], T, options)]),
        linear=linear,
        blunter=blunter,
        heterogeneous=True,
    )
    return whole
