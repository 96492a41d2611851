"""A model-free Newton trust region for a handful of parameters, made to run inside jit and vmap.

The objective appears once in the compiled program: in the loop body, where the first pass evaluates
the start. Curvature comes from an LDLᵀ of the Hessian: its signs tell a minimum from a saddle, |d|
gives a descent metric where the Hessian is indefinite, and a negative pivot gives the direction that
leaves a saddle (a zero column of L is a stationary point whether or not it is the optimum).

One search or many: every array may carry *lanes* on its last axes. Lanes share nothing but the loop;
one that has ended is frozen while the others go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import linalg
from .programs import Backend
from .pytrees import tree_map
from .types import Array, Status, namespace, select

Objective = Callable[[Array], tuple[Array, Array, Array, Any]]


class NewtonOptions(NamedTuple):
    """Settings of a search.

    Attributes
    ----------
    max_iter : evaluations allowed.
    tol : predicted decrease ½gᵀH⁻¹g, in deviance units, at which the *next* point is final; None
        means 1e-10 in float64 and 1e-5 in float32. Newton's last step then leaves errors of order tol.
    backend : "numpy" (at once) or "jax" (a compiled program) for NumPy data; None lets the work decide.
    """

    max_iter: int = 100
    tol: float | None = None
    backend: Backend | None = None

    def limits(self, dtype: Any) -> tuple[Any, Any]:
        """(tol, max_iter) as numbers for a compiled program: changed values compile nothing anew."""
        default = 1e-10 if dtype == np.float64 else 1e-5
        return np.dtype(dtype).type(default if self.tol is None else self.tol), np.int32(self.max_iter)


class NewtonState(NamedTuple):
    """The best point so far with its derivatives, and the step to try: x (k, *lanes), Hessian (k, k, *lanes).

    ``decrease`` is ½gᵀ|H|⁻¹g, the scale-free size of the gradient; ``curvature`` the smallest pivot of H relative to
    its size, negative at a saddle; ``aux`` is what the objective returned beside its derivatives.
    """

    x: Array
    value: Array
    gradient: Array
    hessian: Array
    aux: Any
    step: Array
    predicted: Array
    decrease: Array
    curvature: Array
    radius: Array
    iterations: Array
    status: Array


RUNNING = -1
LAST = -2


def initial_state(x: Array, aux: Any) -> NewtonState:
    """The state before the first evaluation at ``x`` (k, *lanes); ``aux`` is shaped as the objective's."""
    lanes, dtype, xp = x.shape[1:], x.dtype, namespace(x)
    return NewtonState(
        x=x,
        value=_full(xp, lanes, np.inf, dtype),
        gradient=xp.zeros_like(x),
        hessian=xp.zeros((len(x), *x.shape), dtype) + linalg.identity(len(x), x[:, None]),
        aux=aux,
        step=xp.zeros_like(x),
        predicted=_full(xp, lanes, 0.0, dtype),
        decrease=_full(xp, lanes, np.inf, dtype),
        curvature=_full(xp, lanes, 1.0, dtype),
        radius=xp.maximum(1.0, 0.5 * _length(x)),
        iterations=_full(xp, lanes, 0, np.int32),
        status=_full(xp, lanes, RUNNING, np.int32),
    )


def _full(xp: Any, shape: tuple[int, ...], value: Any, dtype: Any) -> Any:
    """A filled array; of one NumPy search a scalar."""
    return np.dtype(dtype).type(value) if xp is np and not shape else xp.full(shape, value, dtype)


def _length(x: Array) -> Array:
    return namespace(x).sqrt((x * x).sum(0))


def _diagonal_size(hessian: Array) -> Array:
    """|diag H| (k, *lanes)."""
    k = np.arange(hessian.shape[0])
    return abs(hessian[k, k])


def _newton_step(gradient: Array, hessian: Array) -> tuple[Array, Array, Array, Array]:
    """Step, predicted decrease, smallest pivot, and a direction of negative curvature where it is < 0."""
    info = np.finfo(hessian.dtype)
    size = _diagonal_size(hessian).max(0)
    floor = 1e3 * info.eps * size + info.tiny
    if linalg.is_one(hessian):
        K = linalg.cholesky(hessian)
        smallest = K.diagonal().min() ** 2
        if smallest > floor:
            half = linalg.solve_lower(K, -gradient[:, None])
            step = linalg.solve_upper(K, half)[:, 0]
            return step, 0.5 * (half[:, 0] @ half[:, 0]), smallest / size, step
    C, d, safe = linalg.ldl(hessian, floor)
    half = linalg.solve_lower(C, -gradient[:, None])[:, 0]
    step = linalg.solve_upper(C, (half / safe)[:, None])[:, 0]
    worst = (d == d.min(0)[None]).astype(d.dtype)
    escape = linalg.solve_upper(C, worst[:, None])[:, 0]
    return step, 0.5 * (half * half / safe).sum(0), d.min(0) / size, escape


def _propose(state: NewtonState, tol: Any) -> NewtonState:
    xp, info = namespace(state.gradient), np.finfo(state.gradient.dtype)
    step, decrease, curvature, escape = _newton_step(state.gradient, state.hessian)
    length = _length(step)
    clip = xp.minimum(1.0, state.radius / xp.maximum(length, info.tiny))
    # Where the deviance is concave (far out it grows as log θ) the step aims at θ = 0, a stationary point of its own.
    room = ((0.5 * abs(state.x) + 0.1) / xp.maximum(abs(step), info.tiny)).min(0)
    clip = select(curvature < 0.0, xp.minimum(clip, room), clip)
    # A clipped step along the Newton direction promises (2c − c²) of the full decrease.
    predicted = decrease * clip * (2.0 - clip)
    small = decrease < tol
    exact = decrease < 1e-8 * tol
    saddle = small & (curvature < -(info.eps**0.5))  # what rounding makes of a flat direction is no saddle
    leave = escape / xp.maximum(_length(escape), info.tiny) * xp.minimum(state.radius, 0.1)
    gain = -0.5 * (leave[:, None] * state.hessian * leave[None]).sum((0, 1))
    done = select(exact, _status(xp, Status.CONVERGED), _status(xp, LAST))
    return state._replace(
        step=select(saddle, leave, clip * step),
        predicted=select(saddle, gain, predicted),
        decrease=decrease,
        curvature=curvature,
        status=select(small & ~saddle, done, state.status),
    )


def _status(xp: Any, code: int) -> Any:
    return np.int32(code) if xp is np else xp.asarray(code, np.int32)


def advance(state: NewtonState, objective: Objective, tol: Any, max_iter: Any) -> NewtonState:
    """Evaluate the proposed point, move there or shrink the radius, and propose the next one."""
    trial = state.x + state.step
    value, gradient, hessian, aux = objective(trial)
    xp, info = namespace(value, gradient), np.finfo(gradient.dtype)
    first = state.iterations == 0
    finite = xp.isfinite(value) & xp.isfinite(gradient).all(0) & xp.isfinite(hessian).all((0, 1))
    noise = 16.0 * info.eps * (1.0 + abs(value))
    actual = state.value - value
    # Near the optimum a difference of deviances is rounding; the gradient still tells better from worse.
    weight = 1.0 / xp.maximum(_diagonal_size(state.hessian), info.tiny)
    flatter = (weight * gradient**2).sum(0) < (weight * state.gradient**2).sum(0)
    close = flatter & (state.predicted < 0.1 * tol**0.5)
    accept = finite & (first | close | (actual > -noise))
    ratio = select(first | close, 1.0, (actual + noise) / (state.predicted + noise))
    length = _length(state.step)
    radius = select(ratio < 0.25, 0.25 * length, state.radius)
    at_edge = length > 0.99 * state.radius
    radius = select((ratio > 0.75) & at_edge, 4.0 * state.radius, radius)
    was_last = state.status == LAST
    moved = NewtonState(
        x=select(accept, trial, state.x),
        value=select(accept, value, state.value),
        gradient=select(accept, gradient, state.gradient),
        hessian=select(accept, hessian, state.hessian),
        aux=tree_map(lambda a, b: select(accept, a, b), aux, state.aux),
        step=state.step,
        predicted=state.predicted,
        decrease=state.decrease,
        curvature=state.curvature,
        radius=select(finite, radius, 0.25 * length),
        iterations=state.iterations + np.int32(1),
        status=select(was_last, _status(xp, Status.CONVERGED), _status(xp, RUNNING)),
    )
    tiny = moved.radius < 1e3 * info.eps * (1.0 + abs(moved.x).max(0))
    failed = first & ~finite
    # What no step lowers any more has converged to rounding, unless it is a saddle.
    there = (state.decrease < 100.0 * tol) & (state.curvature > -(info.eps**0.5))
    stalled = select(there, _status(xp, Status.CONVERGED), _status(xp, Status.STALLED))
    spent = select(there, _status(xp, Status.CONVERGED), _status(xp, Status.MAX_ITER))
    status = select(~was_last & tiny, stalled, moved.status)
    status = select(~was_last & (moved.iterations >= max_iter), spent, status)
    status = select(failed, _status(xp, Status.NOT_FINITE), status)
    moved = moved._replace(status=status)
    proposed = _propose(moved, tol)
    return proposed._replace(status=select(status == RUNNING, proposed.status, moved.status))
