"""A model-free Newton trust region for a handful of parameters, made to run inside jit and vmap.

The objective appears once in the compiled program: in the loop body, where the first pass evaluates
the start. Curvature comes from an LDLᵀ of the Hessian: its signs tell a minimum from a saddle, |d|
gives a descent metric where the Hessian is indefinite, and a negative pivot gives the direction that
leaves a saddle (a zero column of L is a stationary point whether or not it is the optimum).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import linalg
from .types import Array, Status

Objective = Callable[[Array], tuple[Array, Array, Array, Any]]


class NewtonOptions(NamedTuple):
    """Static settings: a changed value compiles anew.

    Attributes
    ----------
    max_iter : evaluations allowed.
    tol : predicted decrease ½gᵀH⁻¹g, in deviance units, at which the *next* point is final; None
        means 1e-10 in float64 and 1e-5 in float32.
    """

    max_iter: int = 100
    tol: float | None = None


class NewtonState(NamedTuple):
    """One lane of the search: the best point so far with its derivatives, and the step to try.

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
    """The state before the first evaluation of ``objective`` at ``x`` (k,)."""
    k, dtype = x.shape[0], x.dtype
    aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(objective, x)[3])
    return NewtonState(
        x=x,
        value=jnp.asarray(jnp.inf, dtype),
        gradient=jnp.zeros(k, dtype),
        hessian=jnp.eye(k, dtype=dtype),
        aux=aux,
        step=jnp.zeros(k, dtype),
        predicted=jnp.asarray(0.0, dtype),
        decrease=jnp.asarray(jnp.inf, dtype),
        radius=jnp.asarray(1.0, dtype),
        iterations=jnp.asarray(0, jnp.int32),
        status=jnp.asarray(RUNNING, jnp.int32),
    )


def _newton_step(gradient: Array, hessian: Array) -> tuple[Array, Array, Array, Array]:
    """Step, predicted decrease, smallest pivot, and a direction of negative curvature where it is < 0."""
    k = gradient.shape[0]
    size = jnp.abs(jnp.diagonal(hessian)).max()
    floor = 1e3 * jnp.finfo(hessian.dtype).eps * size + jnp.finfo(hessian.dtype).tiny
    C, d, safe = linalg.ldl(hessian, floor)
    half = linalg.solve_lower(C, -gradient[:, None])[:, 0]
    step = linalg.solve_upper(C, (half / safe)[:, None])[:, 0]
    worst = jnp.argmin(d)
    escape = linalg.solve_upper(C, jax.nn.one_hot(worst, k, dtype=d.dtype)[:, None])[:, 0]
    return step, 0.5 * (half * half / safe).sum(), d[worst] / size, escape


def _propose(state: NewtonState, tol: float) -> NewtonState:
    step, decrease, curvature, escape = _newton_step(state.gradient, state.hessian)
    length = jnp.sqrt((step * step).sum())
    clip = jnp.minimum(1.0, state.radius / jnp.maximum(length, jnp.finfo(length.dtype).tiny))
    # A clipped step along the Newton direction promises (2c − c²) of the full decrease.
    predicted = decrease * clip * (2.0 - clip)
    small = decrease < tol
    exact = decrease < 1e-3 * tol
    saddle = small & (curvature < -jnp.sqrt(jnp.finfo(step.dtype).eps))
    size = jnp.sqrt((escape * escape).sum())
    leave = escape / size * jnp.minimum(state.radius, 0.1)
    gain = -0.5 * leave @ state.hessian @ leave
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
    finite = jnp.isfinite(value) & jnp.isfinite(gradient).all() & jnp.isfinite(hessian).all()
    noise = 16.0 * jnp.finfo(value.dtype).eps * (1.0 + jnp.abs(value))
    actual = state.value - value
    # Near the optimum a difference of deviances is rounding; the gradient still tells better from worse.
    weight = 1.0 / jnp.maximum(jnp.abs(jnp.diagonal(state.hessian)), jnp.finfo(value.dtype).tiny)
    flatter = (weight * gradient**2).sum() < (weight * state.gradient**2).sum()
    close = flatter & (state.predicted < 0.1 * tol**0.5)
    accept = finite & (first | close | (actual > -noise))
    ratio = jnp.where(first | close, 1.0, (actual + noise) / (state.predicted + noise))
    length = jnp.sqrt((state.step**2).sum())
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
    tiny = moved.radius < 1e3 * jnp.finfo(value.dtype).eps * (1.0 + jnp.abs(moved.x).max())
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
    """Minimise from ``state`` until it converges, fails, or ``rounds`` more evaluations are spent.

    ``objective(x)`` returns value (), gradient (k,), Hessian (k, k) and a pytree to keep. Calling again
    with the returned state goes on where this call stopped.
    """
    tol = options.tol
    if tol is None:
        tol = 1e-10 if state.x.dtype == jnp.float64 else 1e-5
    limit = state.iterations + (options.max_iter if rounds is None else rounds)

    def unfinished(s: NewtonState) -> Array:
        return (s.status < 0) & (s.iterations < limit)

    return jax.lax.while_loop(unfinished, lambda s: advance(s, objective, tol, options.max_iter), state)
