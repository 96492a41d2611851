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

import jax
import jax.numpy as jnp
import numpy as np

from . import linalg
from .types import Array, Status

Objective = Callable[[Array], tuple[Array, Array, Array, Any]]


class NewtonOptions(NamedTuple):
    """Static settings: a changed value compiles anew.

    Attributes
    ----------
    max_iter : evaluations allowed.
    tol : predicted decrease ½gᵀH⁻¹g, in deviance units, at which the *next* point is final; None
        means 1e-10 in float64 and 1e-5 in float32. Newton's last step then leaves errors of order tol.
    """

    max_iter: int = 100
    tol: float | None = None


class NewtonState(NamedTuple):
    """The best point so far with its derivatives, and the step to try: x (k, *lanes), Hessian (k, k, *lanes).

    ``decrease`` is ½gᵀ|H|⁻¹g, the scale-free size of the gradient; ``aux`` is what the objective
    returned beside its derivatives.
    """

    x: Array
    value: Array
    gradient: Array
    hessian: Array
    aux: Any
    step: Array
    predicted: Array
    decrease: Array
    radius: Array
    iterations: Array
    status: Array


RUNNING = -1
LAST = -2


def initial_state(x: Array, objective: Objective) -> NewtonState:
    """The state before the first evaluation of ``objective`` at ``x`` (k, *lanes)."""
    lanes, dtype = x.shape[1:], x.dtype
    aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(objective, x)[3])
    return NewtonState(
        x=x,
        value=jnp.full(lanes, jnp.inf, dtype),
        gradient=jnp.zeros_like(x),
        hessian=jnp.zeros((len(x), *x.shape), dtype)
        + jnp.eye(len(x), dtype=dtype).reshape(len(x), -1, *[1] * len(lanes)),
        aux=aux,
        step=jnp.zeros_like(x),
        predicted=jnp.zeros(lanes, dtype),
        decrease=jnp.full(lanes, jnp.inf, dtype),
        radius=jnp.ones(lanes, dtype),
        iterations=jnp.zeros(lanes, jnp.int32),
        status=jnp.full(lanes, RUNNING, jnp.int32),
    )


def _length(x: Array) -> Array:
    return jnp.sqrt((x * x).sum(0))


def _diagonal_size(hessian: Array) -> Array:
    """|diag H| (k, *lanes)."""
    k = np.arange(hessian.shape[0])
    return jnp.abs(hessian[k, k])


def _newton_step(gradient: Array, hessian: Array) -> tuple[Array, Array, Array, Array]:
    """Step, predicted decrease, smallest pivot, and a direction of negative curvature where it is < 0."""
    size = _diagonal_size(hessian).max(0)
    floor = 1e3 * jnp.finfo(hessian.dtype).eps * size + jnp.finfo(hessian.dtype).tiny
    C, d, safe = linalg.ldl(hessian, floor)
    half = linalg.solve_lower(C, -gradient[:, None])[:, 0]
    step = linalg.solve_upper(C, (half / safe)[:, None])[:, 0]
    worst = jax.nn.one_hot(jnp.argmin(d, axis=0), len(d), dtype=d.dtype, axis=0)
    escape = linalg.solve_upper(C, worst[:, None])[:, 0]
    return step, 0.5 * (half * half / safe).sum(0), d.min(0) / size, escape


def _propose(state: NewtonState, tol: float) -> NewtonState:
    step, decrease, curvature, escape = _newton_step(state.gradient, state.hessian)
    length = _length(step)
    clip = jnp.minimum(1.0, state.radius / jnp.maximum(length, jnp.finfo(length.dtype).tiny))
    # A clipped step along the Newton direction promises (2c − c²) of the full decrease.
    predicted = decrease * clip * (2.0 - clip)
    small = decrease < tol
    exact = decrease < 1e-8 * tol
    saddle = small & (curvature < -jnp.sqrt(jnp.finfo(step.dtype).eps))
    leave = escape / _length(escape) * jnp.minimum(state.radius, 0.1)
    gain = -0.5 * (leave[:, None] * state.hessian * leave[None]).sum((0, 1))
    return state._replace(
        step=jnp.where(saddle, leave, clip * step),
        predicted=jnp.where(saddle, gain, predicted),
        decrease=decrease,
        status=jnp.where(small & ~saddle, jnp.where(exact, Status.CONVERGED, LAST), state.status).astype(jnp.int32),
    )


def advance(state: NewtonState, objective: Objective, tol: float, max_iter: int) -> NewtonState:
    """Evaluate the proposed point, move there or shrink the radius, and propose the next one."""
    trial = state.x + state.step
    value, gradient, hessian, aux = objective(trial)
    first = state.iterations == 0
    finite = jnp.isfinite(value) & jnp.isfinite(gradient).all(0) & jnp.isfinite(hessian).all((0, 1))
    noise = 16.0 * jnp.finfo(value.dtype).eps * (1.0 + jnp.abs(value))
    actual = state.value - value
    # Near the optimum a difference of deviances is rounding; the gradient still tells better from worse.
    weight = 1.0 / jnp.maximum(_diagonal_size(state.hessian), jnp.finfo(value.dtype).tiny)
    flatter = (weight * gradient**2).sum(0) < (weight * state.gradient**2).sum(0)
    close = flatter & (state.predicted < 0.1 * tol**0.5)
    accept = finite & (first | close | (actual > -noise))
    ratio = jnp.where(first | close, 1.0, (actual + noise) / (state.predicted + noise))
    length = _length(state.step)
    radius = jnp.where(ratio < 0.25, 0.25 * length, state.radius)
    at_edge = length > 0.99 * state.radius
    radius = jnp.where((ratio > 0.75) & at_edge, 4.0 * state.radius, radius)
    was_last = state.status == LAST
    moved = NewtonState(
        x=jnp.where(accept, trial, state.x),
        value=jnp.where(accept, value, state.value),
        gradient=jnp.where(accept, gradient, state.gradient),
        hessian=jnp.where(accept, hessian, state.hessian),
        aux=jax.tree.map(lambda a, b: jnp.where(accept, a, b), aux, state.aux),
        step=state.step,
        predicted=state.predicted,
        decrease=state.decrease,
        radius=jnp.where(finite, radius, 0.25 * length),
        iterations=state.iterations + 1,
        status=jnp.where(was_last, Status.CONVERGED, RUNNING).astype(jnp.int32),
    )
    tiny = moved.radius < 1e3 * jnp.finfo(value.dtype).eps * (1.0 + jnp.abs(moved.x).max(0))
    failed = first & ~finite
    stalled = jnp.where(state.decrease < 100.0 * tol, Status.CONVERGED, Status.STALLED)
    status = jnp.where(~was_last & tiny, stalled, moved.status)
    status = jnp.where(~was_last & (moved.iterations >= max_iter), Status.MAX_ITER, status)
    status = jnp.where(failed, Status.NOT_FINITE, status)
    moved = moved._replace(status=status.astype(jnp.int32))
    proposed = _propose(moved, tol)
    running = status == RUNNING
    return proposed._replace(status=jnp.where(running, proposed.status, moved.status))


def newton(objective: Objective, state: NewtonState, options: NewtonOptions, rounds: int | None = None) -> NewtonState:
    """Minimise from ``state`` until every lane converges, fails, or has spent ``rounds`` more evaluations.

    ``objective(x)`` returns value (*lanes), gradient (k, *lanes), Hessian (k, k, *lanes) and a pytree to keep,
    lanes last. Calling again with the returned state goes on where this call stopped.
    """
    tol = options.tol
    if tol is None:
        tol = 1e-10 if state.x.dtype == jnp.float64 else 1e-5
    limit = state.iterations + (options.max_iter if rounds is None else rounds)

    def unfinished(s: NewtonState) -> Array:
        return (s.status < 0) & (s.iterations < limit)

    def go_on(s: NewtonState) -> NewtonState:
        going = unfinished(s)
        return jax.tree.map(
            lambda new, old: jnp.where(going, new, old), advance(s, objective, tol, options.max_iter), s
        )

    return jax.lax.while_loop(lambda s: unfinished(s).any(), go_on, state)
