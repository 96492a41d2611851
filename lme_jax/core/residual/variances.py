"""Variance functions: the log standard deviation η of a row relative to σ, with two derivatives."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..jets import Jet
from .families import Natural, compose, jet

Jet2 = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class VarianceFamily(NamedTuple):
    """An entry of the registry; v (*s) the covariate, s (*s) codes of S strata.

    Attributes
    ----------
    size : S → k.
    eta : (δ, v, strata, S) → η (*s), ∂η (k, *s) and ∂²η (k, k, *s), None where η is linear in δ.
    starts : S → starts δ.
    unit : v (n,) → what a step of 1 in the search is divided by, δ = x / unit; by parameter of a stratum.
    natural : (δ, S) → what people read, one tuple (stratum, Natural) each.
    linear : (δ, S) → what SAS estimates in their place, None where that is the same.
    covariate : whether it needs one; positive : whether that must not be 0.
    """

    size: Callable[[int], int]
    eta: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Jet2]
    starts: Callable[[int], list[np.ndarray]]
    unit: Callable[[np.ndarray, int], np.ndarray]
    natural: Callable[[np.ndarray, int], list[tuple[int, Natural]]]
    linear: Callable[[np.ndarray, int], list[Natural]] | None = None
    covariate: bool = True
    positive: bool = False


def _by_stratum(values: np.ndarray, strata: np.ndarray, S: int) -> np.ndarray:
    """(S, *s): the values in the rows of each stratum, 0 elsewhere."""
    if S == 1:
        return values[None]
    return values * (strata == np.arange(S).reshape(-1, *[1] * strata.ndim))


def _spread(values: np.ndarray) -> float:
    size = float(values.std()) if len(values) else 0.0
    return size if size > 0 else 1.0


# ---------------------------------------------------------------- ident


def _ident(delta: np.ndarray, v: np.ndarray, strata: np.ndarray, S: int) -> Jet2:
    eta = np.concatenate([[0.0], delta])[strata]
    return eta, _by_stratum(np.ones(strata.shape), strata, S)[1:], None


def _own(delta: np.ndarray, i: int) -> Jet:
    return jet(delta[i], np.eye(len(delta))[i], np.zeros((len(delta), len(delta))))


def _exponential(delta: np.ndarray, i: int, power: float = 1.0) -> Jet:
    size = float(np.exp(power * delta[i]))
    return compose(_own(delta, i), size, power * size, power**2 * size)


def _ident_natural(delta: np.ndarray, S: int) -> list[tuple[int, Natural]]:
    return [(s, Natural("ratio", (), _exponential(delta, s - 1), "log", 0.0)) for s in range(1, S)]


def _ident_linear(delta: np.ndarray, S: int) -> list[Natural]:
    return [Natural("variance", (s,), _exponential(delta, s - 1, 2.0), "log", 0.0, power=2) for s in range(1, S)]


# ---------------------------------------------------------------- one exponent a stratum


def _linear(of: Callable[[np.ndarray], np.ndarray], name: str) -> VarianceFamily:
    def eta(delta: np.ndarray, v: np.ndarray, strata: np.ndarray, S: int) -> Jet2:
        x = of(v)
        return delta[strata] * x if S > 1 else delta[0] * x, _by_stratum(x, strata, S), None

    return VarianceFamily(
        size=lambda S: S,
        eta=eta,
        starts=lambda S: [np.zeros(S)],
        unit=lambda v, S: np.full(S, _spread(of(v))),
        natural=lambda delta, S: [(s if S > 1 else -1, Natural(name, (), _own(delta, s))) for s in range(S)],
        positive=name == "power",
    )


def _log_size(v: np.ndarray) -> np.ndarray:
    return np.log(np.where(v == 0, 1.0, np.abs(v)))


# ---------------------------------------------------------------- constant plus power


def _constpower(delta: np.ndarray, v: np.ndarray, strata: np.ndarray, S: int) -> Jet2:
    """log(e^c + |v|^δ); (c, δ) of every stratum."""
    c, d, size = delta[0::2], delta[1::2], _log_size(v)
    constant, power = (c[strata], d[strata] * size) if S > 1 else (c[0] + 0.0 * size, d[0] * size)
    eta = np.logaddexp(constant, power)
    A, B = np.exp(constant - eta), np.exp(power - eta)
    k = 2 * S
    first, second = np.zeros((k, *v.shape)), np.zeros((k, k, *v.shape))
    first[0::2], first[1::2] = _by_stratum(A, strata, S), _by_stratum(B * size, strata, S)
    parts = [_by_stratum(A * B * power, strata, S) for power in (1.0, -size, size * size)]
    for s in range(S):
        a, b = 2 * s, 2 * s + 1
        second[a, a], second[a, b], second[b, b] = (part[s] for part in parts)
        second[b, a] = second[a, b]
    return eta, first, second


def _constpower_natural(delta: np.ndarray, S: int) -> list[tuple[int, Natural]]:
    out = []
    for s in range(S):
        stratum = s if S > 1 else -1
        out.append((stratum, Natural("const", (), _exponential(delta, 2 * s), "log", 0.0)))
        out.append((stratum, Natural("power", (), _own(delta, 2 * s + 1))))
    return out


def _fixed(delta: np.ndarray, v: np.ndarray, strata: np.ndarray, S: int) -> Jet2:
    return 0.5 * np.log(v), np.zeros((0, *v.shape)), None


VARIANCES = {
    "ident": VarianceFamily(
        size=lambda S: S - 1,
        eta=_ident,
        starts=lambda S: [np.zeros(S - 1)],
        unit=lambda v, S: np.ones(S - 1),
        natural=_ident_natural,
        linear=_ident_linear,
        covariate=False,
    ),
    "power": _linear(_log_size, "power"),
    "exp": _linear(lambda v: v, "expon"),
    "constpower": VarianceFamily(
        size=lambda S: 2 * S,
        eta=_constpower,
        starts=lambda S: [np.tile([0.0, d], S) for d in (0.5, 1.0, -0.5)],
        unit=lambda v, S: np.tile([1.0, _spread(_log_size(v))], S),
        natural=_constpower_natural,
        positive=True,
    ),
    "fixed": VarianceFamily(
        size=lambda S: 0,
        eta=_fixed,
        starts=lambda S: [np.zeros(0)],
        unit=lambda v, S: np.zeros(0),
        natural=lambda delta, S: [],
        positive=True,
    ),
}
