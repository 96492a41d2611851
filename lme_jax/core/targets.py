"""What a profile can be asked of: functions u of x = (θ, [γ,] log σ²) with two derivatives, and how u is read back.

u is on a scale without ends: log for standard deviations, atanh for correlations, logit for shares.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from . import covariance
from .contour import Curve
from .structures import Block, Quantity, entry

# Where a scale without ends counts as its end: relative to the estimate for sizes, absolute for correlations.
ZERO = 1e-4
ONE = 1.0 - 1e-8

Function = Callable[[Mapping[str, np.ndarray], float], float]


class Target(NamedTuple):
    """A parameter to profile.

    Attributes
    ----------
    curve : x → u with its derivatives, x in user's units.
    read : u → the parameter. low, high : where u counts as the end of its range; ends : the parameter there.
    direction : (p,) the combination of β that this is, else None.
    """

    name: str
    curve: Callable[[np.ndarray], Curve]
    read: Callable[[float], float]
    low: float = -np.inf
    high: float = np.inf
    ends: tuple[float, float] = (-np.inf, np.inf)
    direction: np.ndarray | None = None
    # u at the end of its range is this much below that of the estimate, where the range has no absolute end.
    below: float | None = None
    # Effects of a block, either of which makes this parameter meaningless where its variance is zero.
    needs: tuple[tuple[Block, slice, int], ...] = ()


def same(u: float) -> float:
    """The parameter is u itself."""
    return u


def coordinate(name: str, at: int, *, direction: np.ndarray | None = None, from_zero: bool = False) -> Target:
    """The entry ``at`` of x; one that only its square matters of ends at zero."""

    def curve(x: np.ndarray) -> Curve:
        return Curve(float(x[at]), np.eye(len(x))[at], np.zeros((len(x), len(x))))

    low = 0.0 if from_zero else -np.inf
    return Target(name, curve, same, low, ends=(low, np.inf), direction=direction)


def residual_deviation(name: str) -> Target:
    """σ, as ½ log σ²."""

    def curve(x: np.ndarray) -> Curve:
        return Curve(0.5 * float(x[-1]), 0.5 * np.eye(len(x))[-1], np.zeros((len(x), len(x))))

    return Target(name, curve, np.exp, ends=(0.0, np.inf))


class _Entries(NamedTuple):
    """Ψ/σ² of a block at x: values (q, q), slopes (q, q, k), bends (q, q, k, k)."""

    psi: np.ndarray
    slope: np.ndarray
    bend: np.ndarray


def _entries(x: np.ndarray, block: Block, mine: slice) -> _Entries:
    theta = x[mine]
    L, place = covariance.factor(theta, (block,)), covariance.packed_positions(block.size)
    J, J2 = covariance.squared_derivatives(theta, (block,))
    return _Entries(L @ L.T, J[place], J2[place])


def _log(at: _Entries, i: int, j: int) -> tuple[float, np.ndarray, np.ndarray]:
    """log Ψ_ij with derivatives in the block's θ."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value, a = at.psi[i, j], at.slope[i, j] / at.psi[i, j]
        return np.log(value), a, at.bend[i, j] / value - np.outer(a, a)


def _spread(value: float, a: np.ndarray, A: np.ndarray, mine: slice, m: int) -> Curve:
    slope, bend = np.zeros(m), np.zeros((m, m))
    slope[mine], bend[mine, mine] = a, A
    return Curve(float(value), slope, bend)


def deviation(name: str, block: Block, mine: slice, i: int) -> Target:
    """√Ψ_ii: ½ log."""

    def curve(x: np.ndarray) -> Curve:
        value, a, A = _log(_entries(x, block, mine), i, i)
        out = _spread(0.5 * (value + x[-1]), 0.5 * a, 0.5 * A, mine, len(x))
        out.slope[-1] = 0.5
        return out

    return Target(name, curve, np.exp, ends=(0.0, np.inf), below=-np.log(ZERO))


def correlation(name: str, block: Block, mine: slice, i: int, j: int, read: Any = None, ends: Any = None) -> Target:
    """Ψ_ij/√(Ψ_iiΨ_jj): atanh; ``read`` and ``ends`` of an increasing function of it."""

    def curve(x: np.ndarray) -> Curve:
        at = _entries(x, block, mine)
        (v, a, A), (w, b, B) = _log(at, i, i), _log(at, j, j)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            size = np.exp(-0.5 * (v + w))
            rho, inner = at.psi[i, j] * size, 0.5 * (a + b)
            cross = np.outer(at.slope[i, j], inner) * size
            slope = at.slope[i, j] * size - rho * inner
            bend = at.bend[i, j] * size - cross - cross.T + rho * (np.outer(inner, inner) - 0.5 * (A + B))
            lean = 1.0 / (1.0 - rho**2)
            bend = lean * bend + 2.0 * rho * lean**2 * np.outer(slope, slope)
            return _spread(np.arctanh(rho), lean * slope, bend, mine, len(x))

    high = float(np.arctanh(ONE))
    low = -high if ends is None else 1e-8
    return Target(
        name,
        curve,
        np.tanh if read is None else read,
        low,
        high,
        (-1.0, 1.0) if ends is None else ends,
        needs=((block, mine, i), (block, mine, j)),
    )


def covariance_entry(name: str, block: Block, mine: slice, i: int, j: int) -> Target:
    """Ψ_ij, i ≠ j."""

    def curve(x: np.ndarray) -> Curve:
        at, s2, m = _entries(x, block, mine), np.exp(x[-1]), len(x)
        out = _spread(s2 * at.psi[i, j], s2 * at.slope[i, j], s2 * at.bend[i, j], mine, m)
        out.slope[-1] = out.bend[-1, -1] = out.value
        out.bend[-1, mine] = out.bend[mine, -1] = out.slope[mine]
        return out

    return Target(name, curve, same)


def scaled_root(name: str, at: int) -> Target:
    """σθ_a."""

    def curve(x: np.ndarray) -> Curve:
        sigma, m = np.exp(0.5 * x[-1]), len(x)
        slope, bend = np.zeros(m), np.zeros((m, m))
        slope[at], slope[-1] = sigma, 0.5 * sigma * x[at]
        bend[at, -1] = bend[-1, at] = 0.5 * sigma
        bend[-1, -1] = 0.25 * sigma * x[at]
        return Curve(float(sigma * x[at]), slope, bend)

    return Target(name, curve, same)


def squared(target: Target, name: str) -> Target:
    """The variance of a standard deviation."""
    return target._replace(name=name, read=lambda u: np.exp(2.0 * u))


def quantity(name: str, what: Quantity, block: Block, mine: slice) -> Target:
    """What the registry says that people read of a block."""
    if what.kind == "sd":
        return deviation(name, block, mine, what.row)
    if what.kind == "root":
        return scaled_root(name, mine.start + what.row)
    if what.kind == "range":
        distance = what.distance
        ends = (0.0, np.inf)
        return correlation(name, block, mine, what.row, what.column, lambda u: -distance / np.log(np.tanh(u)), ends)
    return correlation(name, block, mine, what.row, what.column)


def function(
    name: str, of: Function, parts: Sequence[tuple[str, tuple[Block, ...], slice]], low: float, high: float, unit: Any
) -> Target:
    """Any function of Ψ by factor and σ², by differences; a finite ``low`` or ``high`` is an end it never reaches."""
    to, read, far = _open_scale(low, high)

    def value(x: np.ndarray) -> float:
        s2 = float(np.exp(x[-1]))
        psi = {}
        for factor, template, mine in parts:
            L = covariance.factor(x[mine], template)
            psi[factor] = s2 * (L @ L.T)
        with np.errstate(all="ignore"):
            try:
                return float(to(np.float64(of(psi, s2))))
            except ZeroDivisionError:  # of Python's numbers, far from the estimate
                return np.nan

    def curve(x: np.ndarray) -> Curve:
        m, here = len(x), value(x)
        steps = np.diag(1e-4 * np.maximum(unit[:m], 1e-8))
        plus, minus = (np.array([value(x + sign * e) for e in steps]) for sign in (1.0, -1.0))
        width = np.diagonal(steps)
        bend = np.diag((plus + minus - 2.0 * here) / width**2)
        for a in range(m):
            for b in range(a):
                both = value(x + steps[a] + steps[b]) + value(x - steps[a] - steps[b])
                mixed = both - plus[a] - minus[a] - plus[b] - minus[b] + 2.0 * here
                bend[a, b] = bend[b, a] = 0.5 * mixed / (width[a] * width[b])
        return Curve(here, (plus - minus) / (2.0 * width), bend)

    return Target(name, curve, read, far[0], far[1], (low, high))


def _open_scale(low: float, high: float) -> tuple[Any, Any, tuple[float, float]]:
    """An increasing map of (low, high) onto the line, its inverse, and where the line counts as ended."""
    if not low < high:
        raise DataError(f"the bounds of a function must ascend, not {low!r} and {high!r}")
    if np.isfinite(low) and np.isfinite(high):
        size, far = high - low, float(np.log(1e8))
        return (
            lambda v: np.log((v - low) / (high - v)),
            lambda u: low + size / (1.0 + np.exp(-u)),
            (-far, far),
        )
    if np.isfinite(low):
        return (lambda v: np.log(v - low)), (lambda u: low + np.exp(u)), (-np.inf, np.inf)
    if np.isfinite(high):
        return (lambda v: -np.log(high - v)), (lambda u: high - np.exp(-u)), (-np.inf, np.inf)
    return same, same, (-np.inf, np.inf)


def even(block: Block, a: int) -> bool:
    """Whether the sign of entry a of the block's θ is without meaning."""
    theta = np.ones(block.n_theta)
    theta[a] = -1.0
    return bool(entry(block).canonical(block, theta)[0][a] > 0)
