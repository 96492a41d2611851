"""Searches from several starts, lane by lane, keeping the best: a doubtful optimum must be earned twice.

A deviance may have several minima, and a zero variance is a stationary point whatever the data. Where a search
ends in doubt the lane goes on from its next start; the others wait for nothing. One objective serves all
searches, so that a compiled program holds it once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .optimize import NewtonState, Objective, advance, initial_state
from .pytrees import tree_map
from .types import Array, Status, namespace, select

# Deviances that differ by less belong to one optimum.
SAME = 1e-7
# So many times more may separate two searches that were stopped on their way to one optimum.
NEAR = 1e3


class Multistart(NamedTuple):
    """The search under way, and what the earlier ones of its lane have found.

    Attributes
    ----------
    now : the search under way; its ``status`` is ≥ 0 when the lane is done.
    best : the best end so far; what ``now`` is until the first search ends.
    attempt : (*lanes) int32, the number of the search; optima : distinct ends that are optima; hits : searches that
        ended in the best one, or near it.
    evaluations : (*lanes) int32, of all searches.
    """

    now: NewtonState
    best: NewtonState
    attempt: Array
    optima: Array
    hits: Array
    evaluations: Array

    @property
    def found(self) -> NewtonState:
        """The best end, with the evaluations of all searches."""
        return self.best._replace(iterations=self.evaluations)


class Plan(NamedTuple):
    """Whether (*lanes) a lane that has ended searches again, and from where (k, *lanes)."""

    again: Callable[[Multistart], Array]
    start: Callable[[Multistart], Array]


def begin(x: Array, aux: Any) -> Multistart:
    """Before the first evaluation at ``x`` (k, *lanes); ``aux`` is shaped as the objective's."""
    state = initial_state(x, aux)
    none = state.iterations
    return Multistart(state, state, none, none, none, none)


def minimise(
    objective: Objective,
    search: Multistart,
    plan: Plan | None,
    tol: Any,
    max_iter: Any,
    rounds: int | None = None,
) -> Multistart:
    """Go on until every lane is done or has spent ``rounds`` more evaluations.

    Parameters
    ----------
    objective : see ``optimize.advance``.
    plan : whether and from where a lane searches again; None where one search is enough.
    tol, max_iter : of each search; see ``NewtonOptions.limits``.
    """
    xp = namespace(search.now.x)
    limit = None if rounds is None else search.evaluations + np.int32(rounds)

    def unfinished(s: Multistart) -> Array:
        going = s.now.status < 0
        return going if limit is None else going & (s.evaluations < limit)

    def go_on(s: Multistart) -> Multistart:
        now = advance(s.now, objective, tol, max_iter)
        moved = s._replace(now=now, evaluations=s.evaluations + np.int32(1))
        if plan is None or (xp is np and not (now.status >= 0).any()):
            return moved
        return _next(moved, plan)

    def frozen(s: Multistart) -> Multistart:
        going, moved = unfinished(s), go_on(s)
        if plan is None:
            now = tree_map(lambda new, old: select(going, new, old), moved.now, s.now)
            return s._replace(now=now, evaluations=select(going, moved.evaluations, s.evaluations))
        return tree_map(lambda new, old: select(going, new, old), moved, s)

    body = go_on if search.now.x.ndim == 1 else frozen
    if xp is np:
        while unfinished(search).any():
            search = body(search)
    else:
        import jax

        search = jax.lax.while_loop(lambda s: unfinished(s).any(), body, search)
    if plan is None:
        return search._replace(best=search.now, optima=_is_optimum(search.now).astype(np.int32))
    return search


def _next(s: Multistart, plan: Plan) -> Multistart:
    """Where a search has ended: keep the better end, and begin again if the plan says so."""
    now, first = s.now, s.attempt == 0
    ended = now.status >= 0
    is_optimum = _is_optimum(now)
    gain = s.best.value - now.value
    size = SAME * (1.0 + abs(now.value))
    better = (gain > size) | (is_optimum & ~_is_optimum(s.best) & (gain > -size))
    other = first | (abs(gain) > size)
    best = tree_map(lambda new, old: select(ended & (first | better), new, old), now, s.best)
    optima = s.optima + (ended & is_optimum & other).astype(np.int32)
    ahead = ended & (first | better)
    near = ahead | (abs(gain) <= NEAR * size)
    hits = select(ahead, np.int32(0), s.hits) + (ended & near).astype(np.int32)
    kept = Multistart(now, best, s.attempt, optima, hits, s.evaluations)
    again = ended & plan.again(kept)
    if type(again) is np.bool_ and not again:
        return kept
    fresh = initial_state(plan.start(kept), now.aux)
    current = tree_map(lambda new, old: select(again, new, old), fresh, now)
    return kept._replace(now=current, attempt=s.attempt + again.astype(np.int32))


def _is_optimum(state: NewtonState) -> Array:
    return (state.status == Status.CONVERGED) | (state.status == Status.SINGULAR)
