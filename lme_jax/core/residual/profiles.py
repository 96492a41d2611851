"""Profile-likelihood limits of what people read of a residual structure: SDs, correlations, ranges, exponents.

−2ℓ over (x, τ = log σ²), β at its best, is that of the profiled σ̂² = Q/N plus N(τ − log σ̂²) + Qe^{−τ} − N; ``contour``
walks on it along the surfaces on which a natural parameter is constant.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import contour, likelihood
from ..contour import Curve, Goal
from ..surface import Surface
from . import inference, objective, record
from .data import BlockData
from .fit import ResidualFit


class Limits(NamedTuple):
    """Where −2ℓ has risen by the cut: lower and upper, and whether each is the end of what the parameter can be."""

    lower: float
    upper: float
    lower_bounded: bool
    upper_bounded: bool


def surface(x: np.ndarray, data: BlockData, reml: bool) -> Surface | None:
    """−2ℓ at x (k + 1,) in the search's units, log σ² last, response units."""
    k, p = data.model.size, data.n_fixed
    at = objective.point(x[:k], data, reml)
    if at is None:
        return None
    s2, Q = float(np.exp(x[k])) * data.basis.map[p, p] ** 2, float(at.R[-1, -1] ** 2)
    if not s2 > 0.0 or not np.isfinite(Q / s2):
        return None
    m = objective.moved(at._replace(N=Q / s2), data, record.Wanted(reml))
    there = likelihood.assembled(m.record, 0.0, s2, at.N, reml)
    unit = np.append(np.ones(k), s2)
    gradient = -2.0 * there.score[p:] * unit
    hessian = -2.0 * likelihood.without_beta(there.hessian, p) * np.outer(unit, unit)
    hessian[k, k] += gradient[k]
    value = float(at.value) + at.N * np.log(s2 * at.N / Q) + Q / s2 - at.N
    return Surface(float(value), gradient, hessian)


def curve(which: int, x: np.ndarray, fitted: ResidualFit, data: BlockData) -> Curve:
    """A natural parameter at x, in the order of ``inference.parameters``, with its derivatives in x."""
    k, s2 = data.model.size, float(np.exp(x[-1]))
    here = fitted._replace(params=x[:k] / data.unit, sigma=float(np.sqrt(s2)))
    jet = inference.readings(here, data)[which].value
    unit = np.append(1.0 / data.unit, s2)
    slope, bend = jet.first[:, 0] * unit, jet.second[:, :, 0] * np.outer(unit, unit)
    bend[k, k] += slope[k]
    return Curve(float(jet.value[0]), slope, bend)


def limits(fitted: ResidualFit, data: BlockData, *, reml: bool, rise: float) -> list[Limits]:
    """Of every parameter of ``inference.parameters``; NaN where a limit is not found. ``rise`` of −2ℓ is the cut."""
    best = np.append(fitted.params * data.unit, 2.0 * np.log(fitted.sigma))
    evaluate = partial(surface, data=data, reml=reml)
    top, out = evaluate(best), []
    for i, read in enumerate(inference.readings(fitted, data)):
        if top is None or not np.isfinite(top.hessian).all() or np.linalg.eigvalsh(top.hessian)[0] <= 0:
            out.append(Limits(np.nan, np.nan, False, False))
            continue
        ends = read.natural.low, read.natural.high
        lower, upper = (
            _limit(partial(curve, i, fitted=fitted, data=data), evaluate, best, top, rise, sign, ends)
            for sign in (-1.0, 1.0)
        )
        out.append(Limits(lower[0], upper[0], lower[1], upper[1]))
    return out


def _limit(
    at: Callable[[np.ndarray], Curve],
    evaluate: Callable[[np.ndarray], Surface | None],
    best: np.ndarray,
    top: Surface,
    rise: float,
    sign: float,
    ends: tuple[float, float],
) -> tuple[float, bool]:
    """One limit, and whether it is the end of the range; the search begins where the quadratic puts it."""
    here = at(best)
    ahead = np.linalg.solve(0.5 * top.hessian, here.slope)
    start = best + 0.5 * sign * np.sqrt(rise / (here.slope @ ahead)) * ahead
    unit = 1.0 / np.sqrt(0.5 * np.diag(top.hessian))
    found = contour.find(start, at, evaluate, unit, Goal(top.value, rise, sign, here.value, *ends))
    return (found.u, found.bounded) if found.ended else (np.nan, False)
