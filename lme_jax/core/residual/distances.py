"""Correlation structures by distance: f(d / range), a nugget where it is asked for."""

from collections.abc import Callable

import numpy as np

from ...errors import DataError
from ..jets import Jet
from .families import Family, Moments, Natural, Options, compose, jet, one, variance

Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
# Nuggets that a search begins at.
NUGGETS = (0.1, 0.5)


def _exponential(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """e^{−u} of z = log u = log(d / range) with two derivatives in z."""
    u = np.exp(np.minimum(z, 50.0))
    f = np.exp(-u)
    return f, -u * f, (u * u - u) * f


def _gaussian(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u = np.exp(np.minimum(2.0 * z, 50.0))
    f = np.exp(-u)
    return f, -2.0 * u * f, 4.0 * (u * u - u) * f


def _rational(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1/(1 + u²): both shares f and 1 − f without cancellation."""
    f, g = 1.0 / (1.0 + np.exp(np.minimum(2.0 * z, 700.0))), 1.0 / (1.0 + np.exp(np.minimum(-2.0 * z, 700.0)))
    return f, -2.0 * f * g, 4.0 * f * g * (g - f)


def _curve(curve: Curve, rho: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f with derivatives in log range; d = 0 is the row itself, f = 1."""
    off = d > 0
    f, f1, f2 = curve(np.log(np.where(off, d, 1.0)) - rho[0])
    return np.where(off, f, 1.0), np.where(off, -f1, 0.0), np.where(off, f2, 0.0)


def _parameter(rho: np.ndarray, i: int) -> Jet:
    return jet(rho[i], np.eye(len(rho))[i], np.zeros((len(rho), len(rho))))


def _family(curve: Curve, unit_phi: bool = False) -> Family:
    def first(rho: np.ndarray, d: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
        f, f1, _ = _curve(curve, rho, d)
        if not options["nugget"]:
            return f, f1[None]
        share, slope = np.cos(rho[1]) ** 2, np.sin(2.0 * rho[1])
        off = d > 0
        return np.where(off, share * f, 1.0), np.stack([share * f1, np.where(off, -slope * f, 0.0)])

    def bend(rho: np.ndarray, d: np.ndarray, options: Options, S: np.ndarray) -> np.ndarray:
        f, f1, f2 = _curve(curve, rho, d)
        if not options["nugget"]:
            return np.array([[(S * f2).sum()]])
        share, slope = np.cos(rho[1]) ** 2, np.sin(2.0 * rho[1])
        across = -slope * (S * f1).sum()
        return np.array(
            [[share * (S * f2).sum(), across], [across, -2.0 * np.cos(2.0 * rho[1]) * (S * f)[d > 0].sum()]]
        )

    def starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
        ranges = np.log(m.distances)
        if not options["nugget"]:
            return [np.array([r]) for r in ranges]
        return [np.array([r, np.arcsin(np.sqrt(c))]) for r in ranges for c in NUGGETS]

    def natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
        x = [_parameter(rho, i) for i in range(len(rho))]
        size = float(np.exp(rho[0]))
        if unit_phi:
            phi = float(np.exp(-1.0 / size))
            value = compose(x[0], phi, phi / size, phi / size * (1.0 / size - 1.0))
            out = [Natural("rho", (), value, "logit", 0.0, 1.0)]
        else:
            out = [Natural("range", (), compose(x[0], size, size, size), "log", 0.0)]
        if options["nugget"]:
            value = compose(x[1], np.sin(rho[1]) ** 2, np.sin(2.0 * rho[1]), 2.0 * np.cos(2.0 * rho[1]))
            out.append(Natural("nugget", (), value, "logit", 0.0, 1.0))
        return out

    return Family(
        size=lambda T, options: 2 if options["nugget"] else 1,
        first=first,
        bend=bend,
        starts=starts,
        edges=lambda rho, T, options: np.abs(np.concatenate([np.sin(rho[1:]), np.cos(rho[1:])])),
        natural=natural,
        linear=lambda rho, T, options: [variance(one(len(rho)), 0), *natural(rho, T, options)],
        options={"nugget": False} if unit_phi else {"nugget": False, "metric": "euclidean"},
        distance=True,
    )


BY_DISTANCE = {
    "car1": _family(_exponential, unit_phi=True),
    "sp_exp": _family(_exponential),
    "sp_gau": _family(_gaussian),
    "sp_rat": _family(_rational),
}


def between(coordinates: np.ndarray, metric: str) -> np.ndarray:
    """(…, n, n) distances of coordinates (…, n, d)."""
    steps = np.abs(coordinates[..., :, None, :] - coordinates[..., None, :, :])
    if metric == "euclidean":
        return steps[..., 0] if steps.shape[-1] == 1 else np.sqrt((steps**2).sum(-1))
    if metric == "manhattan":
        return steps.sum(-1)
    if metric == "maximum":
        return steps.max(-1)
    raise DataError(f"metric={metric!r}: choose from 'euclidean', 'manhattan', 'maximum'")
