"""The deviance with β and σ profiled out, its gradient and exact Hessian in the search's units."""

from typing import Any, NamedTuple

import numpy as np

from .. import likelihood, linalg
from ..profiled import AtOptimum, deviance_of_root
from . import record, series
from .data import BlockData
from .record import Moved, Solved
from .series import SolvedSeries

# √(rᵀV⁻¹r) in conditioned units whose fourth power would underflow: a likelihood that has run off to infinity.
NOTHING = 1e-70


class Point(NamedTuple):
    """At one x: what was solved, the Cholesky factor of H, the deviance, N = n or n − p."""

    solved: Solved | SolvedSeries
    R: np.ndarray
    value: Any
    N: float


def point(x: np.ndarray, data: BlockData, reml: bool) -> Point | None:
    """``Point`` at x, or None where the deviance is not finite."""
    with np.errstate(all="ignore"):
        solved = _solve(x, data)
    R = None if solved is None else linalg.cholesky(solved.H)
    if solved is None or R is None or not R[-1, -1] > NOTHING:
        return None
    value = deviance_of_root(solved.log_det, R, data, reml)
    N = float(data.n_rows) - (len(R) - 1 if reml else 0)
    return Point(solved, R, value, N) if np.isfinite(value) else None


def _solve(x: np.ndarray, data: BlockData) -> Solved | SolvedSeries | None:
    if data.series is not None:
        return series.solve(data.model, x, data.series)
    return record.solve(data.model, x, data.stacks)


def moved(at: Point, data: BlockData, wanted: record.Wanted) -> Moved:
    """The sums for derivatives there."""
    if isinstance(at.solved, SolvedSeries):
        assert data.series is not None
        return series.moved(data.model, at.solved, data.series, at.R, wanted.second)
    return record.moved(data.model, at.solved, data.stacks, at.R, at.N, wanted)


def whole(at: Point, m: Moved, reml: bool) -> likelihood.Likelihood:
    """ℓ with score and Hessian in (whitened β, x, σ²), conditioned units, at the profiled β and σ²."""
    return likelihood.assembled(m.record, -0.5 * float(at.value), m.record.Q / at.N, at.N, reml)


def evaluate(x: np.ndarray, data: BlockData, reml: bool) -> tuple[Any, np.ndarray, np.ndarray, AtOptimum]:
    """Deviance (), gradient (k,), Hessian (k, k) and what the fit keeps, for ``optimize.advance``."""
    k, w = len(x), data.n_fixed + 1
    at = point(x, data, reml)
    if at is None:
        nothing = AtOptimum(np.full((w, w), np.nan), np.full(k, np.nan))
        return np.float64(np.nan), np.full(k, np.nan), np.full((k, k), np.nan), nothing
    m = moved(at, data, record.Wanted(reml))
    full, p = whole(at, m, reml), w - 1
    inner = np.r_[0:p, p + k]
    across = full.hessian[p : p + k][:, inner]
    hessian = full.hessian[p : p + k, p : p + k]
    hessian = hessian - across @ np.linalg.solve(full.hessian[np.ix_(inner, inner)], across.T)
    slope = AtOptimum(at.solved.H, -m.record.B / m.record.Q)
    return np.float64(at.value), -2.0 * full.score[p : p + k], -(hessian + hessian.T), slope
