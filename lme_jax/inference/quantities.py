"""Covariance parameters on the scale people read: standard deviations, correlations, ranges, loadings.

Standard errors are by the delta method: the covariance of (θ̂, log σ̂²) between the slopes of what is read.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..core.covariance import factor, packed_positions, squared_derivatives
from ..core.records import Fit
from ..core.structures import Block, Quantity, entry
from ..core.types import Status
from .wald import variance_parameter_covariance


class Reading(NamedTuple):
    """One line: the term's label, what it is, its estimate and standard error, and why that is NaN where it is."""

    term: str
    label: str
    estimate: float
    se: float
    note: str


class _Point(NamedTuple):
    """A block's Ψ/σ² (q, q), its slopes (q, q, k), θ (k,) and σ."""

    psi: np.ndarray
    slope: np.ndarray
    theta: np.ndarray
    sigma: float


def readings(fit: Fit, terms: Iterable[tuple[str, Block, Sequence[str]]], dof: float) -> list[Reading]:
    """What people read of every term (label, block, effects' names), in the order of θ, and of σ."""
    joint = variance_parameter_covariance(fit, dof)
    why = _reason(fit, joint)
    out, at, sigma = [], 0, float(fit.sigma)
    for label, block, columns in terms:
        mine = slice(at, at + block.n_theta)
        at = mine.stop
        point = _point(np.asarray(fit.theta)[mine], block, sigma)
        for quantity in entry(block).quantities(block, columns):
            value, slope, by_scale = _read(quantity, point)
            jacobian = np.zeros(len(joint))
            jacobian[mine], jacobian[-1] = slope, by_scale
            out.append(_reading(label, quantity.label, value, jacobian, joint, why))
    last = np.zeros(len(joint))
    last[-1] = 0.5 * sigma
    return [*out, _reading("Residual", "SD", sigma, last, joint, why)]


def _reason(fit: Fit, joint: np.ndarray) -> str:
    if np.isfinite(joint).all():
        return ""
    status = Status(int(fit.status))
    if status is Status.SINGULAR:
        return "singular fit: on the boundary no normal approximation holds"
    if status is not Status.CONVERGED:
        return f"the optimiser {status.text}"
    return "the deviance is flat or not convex at the estimates"


def _point(theta: np.ndarray, block: Block, sigma: float) -> _Point:
    L = factor(theta, (block,))
    slope = squared_derivatives(theta, (block,))[0][packed_positions(block.size)]
    return _Point(L @ L.T, slope, theta, sigma)


def _reading(term: str, label: str, value: float, jacobian: np.ndarray, joint: np.ndarray, why: str) -> Reading:
    if not np.isfinite(value) or not np.isfinite(jacobian).all():
        return Reading(term, label, value, np.nan, why or "not defined where a variance or a correlation is zero")
    if why:
        return Reading(term, label, value, np.nan, why)
    return Reading(term, label, value, float(np.sqrt(max(jacobian @ joint @ jacobian, 0.0))), "")


def _read(quantity: Quantity, point: _Point) -> tuple[float, np.ndarray, float]:
    """The value, and its slopes in the block's θ (k,) and in log σ²."""
    i, j, sigma = quantity.row, quantity.column, point.sigma
    with np.errstate(divide="ignore", invalid="ignore"):
        if quantity.kind == "sd":
            root = np.sqrt(point.psi[i, i])
            return sigma * root, sigma * point.slope[i, i] / (2.0 * root), 0.5 * sigma * root
        if quantity.kind == "root":
            return sigma * point.theta[i], sigma * np.eye(len(point.theta))[i], 0.5 * sigma * point.theta[i]
        value, slope = _correlation(i, j, point)
        if quantity.kind == "range":
            log = np.log(value)
            return -quantity.distance / log, quantity.distance / (value * log**2) * slope, 0.0
        return value, slope, 0.0


def _correlation(i: int, j: int, point: _Point) -> tuple[float, np.ndarray]:
    psi, slope = point.psi, point.slope
    product = np.sqrt(psi[i, i] * psi[j, j])
    value = psi[i, j] / product
    return value, slope[i, j] / product - 0.5 * value * (slope[i, i] / psi[i, i] + slope[j, j] / psi[j, j])
