"""Fits of many responses of one design: refits, simulations, bootstrap."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError
from .. import covariance, optimize, threads
from ..optimize import NewtonOptions, NewtonState
from ..profiled import estimates, nothing_kept
from ..pytrees import tree_map
from ..types import Status
from . import grid_lanes, starts
from .data import BlockData, responding
from .families import Moments
from .fit import ResidualFit, fit, smallest
from .grid_lanes import Grid, Lanes
from .identification import pairs_seen
from .model import gathered

# Multiplications of a lane's evaluation beyond which the roots of its own fit are quicker.
WORK = 3_000_000
# Numbers per lane and evaluation that are held at once.
HELD = 1 << 22
# Lanes that are begun together at most.
TOGETHER = 256

Progress = Callable[[int], Any]


class LaneFits(NamedTuple):
    """The fields of ``ResidualFit`` of L fits, L on the leading axis."""

    params: np.ndarray
    beta: np.ndarray
    unscaled_cov: np.ndarray
    sigma: np.ndarray
    deviance: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    log_scale_slope: np.ndarray
    decrease: np.ndarray
    status: np.ndarray
    n_iter: np.ndarray
    optima: np.ndarray
    flat: np.ndarray

    def some(self, which: np.ndarray) -> "LaneFits":
        """Some of the lanes."""
        return LaneFits(*(field[which] for field in self))

    def one(self, lane: int) -> ResidualFit:
        """A single fit."""
        return ResidualFit(
            params=self.params[lane],
            beta=self.beta[lane],
            unscaled_cov=self.unscaled_cov[lane],
            sigma=float(self.sigma[lane]),
            deviance=float(self.deviance[lane]),
            gradient=self.gradient[lane],
            hessian=self.hessian[lane],
            log_scale_slope=self.log_scale_slope[lane],
            decrease=float(self.decrease[lane]),
            status=int(self.status[lane]),
            n_iter=int(self.n_iter[lane]),
            optima=int(self.optima[lane]),
            flat=self.flat[lane],
        )


def fit_lanes(
    data: BlockData,
    Y: Any,
    *,
    reml: bool = True,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
    progress: Progress | None = None,
) -> LaneFits:
    """Fits of the responses Y (n, L) of the design of ``data``, each as ``fit`` has it.

    Parameters
    ----------
    Y : (n, L), less the offset; lanes with values that are not finite end as NOT_FINITE and leave the others alone.
    start : (k,), optional
        params to start all from; moments of each otherwise.
    progress : called with the number of lanes that have just ended.

    Notes
    -----
    One Σ by visit, or one an arm: all lanes at once from sums that share the design. Lanes whose end is in doubt, and
    all of many visits or of any other structure, are fitted one by one.
    """
    Y = np.asarray(Y, float)
    if Y.ndim != 2 or len(Y) != len(data.y):
        raise DataError(f"Y has shape {Y.shape}; give ({len(data.y)}, L), a column per response")
    finite = np.isfinite(Y).all(0)
    alone = _alone(data, reml, start, options)
    lanes = np.arange(Y.shape[1])
    grid = grid_lanes.shared(data) if grid_lanes.possible(data) else None
    if grid is None or grid_lanes.work(grid) > WORK:
        fits = [alone(Y[:, i], progress) if finite[i] else _nothing(data) for i in lanes]
        return _stacked(fits, data)
    x0 = None if start is None else np.asarray(start, float) * data.unit

    def together(which: np.ndarray) -> list[ResidualFit]:
        found = _search(grid_lanes.lanes(grid, np.where(finite[which], Y[:, which], 0.0)), data, x0, reml, options)
        out = []
        for i, one in zip(which, found, strict=True):
            sure = one.status == Status.CONVERGED and finite[i]
            out.append(one if sure else alone(Y[:, i], None) if finite[i] else _nothing(data))
        if progress is not None:
            progress(len(which))
        return out

    size = min(TOGETHER, max(1, HELD // _width(grid)))
    pieces = threads.each(together, [lanes[lo : lo + size] for lo in range(0, len(lanes), size)])
    return _stacked([one for piece in pieces for one in piece], data)


def _width(grid: Grid) -> int:
    """Numbers that a lane needs at an evaluation."""
    (P, T), p, k = grid.present.shape, grid.n_fixed, grid.model.size
    return P * T * T * (p + 4 * k + 8) + k * p * p * 3 + p * p


def _alone(
    data: BlockData, reml: bool, start: Any, options: NewtonOptions
) -> Callable[[np.ndarray, Progress | None], ResidualFit]:
    def one(y: np.ndarray, progress: Progress | None) -> ResidualFit:
        try:
            found = fit(responding(data, y), reml=reml, start=start, options=options)
        except (DataError, np.linalg.LinAlgError):
            found = _nothing(data)
        if progress is not None:
            progress(1)
        return found

    return one


def _nothing(data: BlockData) -> ResidualFit:
    """A lane that cannot be fitted."""
    k, p, nan = data.model.size, data.n_fixed, float("nan")
    vector, square = np.full(k, nan), np.full((k, k), nan)
    return ResidualFit(
        vector, np.full(p, nan), np.full((p, p), nan), nan, nan, vector, square, vector, nan,
        int(Status.NOT_FINITE), 0, 0, np.zeros(k),
    )  # fmt: skip


def _stacked(fits: list[ResidualFit], data: BlockData) -> LaneFits:
    if not fits:
        return LaneFits(*(np.zeros((0, *np.shape(field))) for field in _nothing(data)))
    return LaneFits(*(np.stack([np.asarray(v) for v in field]) for field in zip(*fits, strict=True)))


# ---------------------------------------------------------------- on the grid


def _search(
    lanes: Lanes, data: BlockData, x0: np.ndarray | None, reml: bool, options: NewtonOptions
) -> list[ResidualFit]:
    L = len(lanes.yy)
    x = _starts(lanes, data) if x0 is None else np.repeat(x0[:, None], L, 1)
    tol, max_iter = options.limits(np.float64)
    state = optimize.initial_state(x, nothing_kept(lanes.grid.n_fixed, x))
    with np.errstate(all="ignore"):
        while (active := np.flatnonzero(state.status < 0)).size:
            moved = _advanced(state, lanes, active, reml, tol, max_iter)
            state = tree_map(partial(_put, where=active), state, moved)
        return _assembled(state, lanes, data, reml)


def _advanced(state: NewtonState, lanes: Lanes, active: np.ndarray, reml: bool, tol: Any, max_iter: Any) -> NewtonState:
    """The state of the active lanes a step on."""
    own = lanes.some(active)
    now = tree_map(lambda a: a[..., active], state)
    return optimize.advance(now, lambda x: grid_lanes.evaluate(x, own, reml), tol, max_iter)


def _put(array: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    array[..., where] = values
    return array


def _starts(lanes: Lanes, data: BlockData) -> np.ndarray:
    """(k, L) from moments of each lane's residuals of least squares."""
    model, grid = data.model, lanes.grid
    (stack,) = data.stacks
    N = pairs_seen(model, [stack])
    out = []
    squares = grid_lanes.full(lanes.yy, grid.present.shape[1])
    rows = np.bincount(grid.arm, (grid.present * grid.copies[:, None]).sum(1), model.n_groups)
    for own in squares:
        S = gathered(model, stack, own)
        size = np.sqrt(np.maximum(np.trace(S, axis1=1, axis2=2) / rows, np.finfo(float).tiny))
        arms = [starts.ArmMoments(_moments(S[a], N[a], size[a]), float(size[a])) for a in range(model.n_groups)]
        out.append(starts.combined(data, arms, 1.0)[0])
    return np.stack(out, 1)


def _moments(S: np.ndarray, N: np.ndarray, size: float) -> Moments:
    return starts.of_arm(S, N, size, np.zeros(0))


def _assembled(found: NewtonState, lanes: Lanes, data: BlockData, reml: bool) -> list[ResidualFit]:
    gls = estimates(found.aux.H, lanes, reml)
    out = []
    for i in range(len(lanes.yy)):
        ok = np.isfinite(found.value[i]) and np.isfinite(gls.sigma[i]) and found.status[i] == Status.CONVERGED
        inner = ok and smallest(found.x[:, i], data) >= covariance.SINGULAR_BELOW
        out.append(
            ResidualFit(
                params=found.x[:, i] / data.unit,
                beta=gls.beta[:, i],
                unscaled_cov=gls.unscaled_cov[:, :, i],
                sigma=float(gls.sigma[i]),
                deviance=float(found.value[i]),
                gradient=found.gradient[:, i] * data.unit,
                hessian=found.hessian[:, :, i] * np.outer(data.unit, data.unit),
                log_scale_slope=found.aux.log_scale_slope[:, i] * data.unit,
                decrease=float(found.decrease[i]),
                status=int(Status.CONVERGED if inner else Status.STALLED),
                n_iter=int(found.iterations[i]),
                optima=1,
                flat=np.zeros(len(found.x)),
            )
        )
    return out
