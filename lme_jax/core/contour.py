"""A point of a profile: −2ℓ at its least over all x where one function u(x) has a value, the value or the rise given.

Every point tried is feasible: u(x) is brought to its value before −2ℓ is evaluated there. One evaluation with gradient
g and Hessian H, and ∇u = a, ∇²u = A, gives the multiplier ν = dP/du, the step t along the surface u(x) = const and an
estimate of the profile itself, P(u) ≈ f − ½tᵀHt. So u and x move together, u by Newton's method on the signed root
ζ = ±√(P − P̂), which is nearly linear in it: Venzon & Moolgavkar's (1988, Appl. Stat. 37, 87–94) system of equations,
with brackets for u, a radius for t, and eigenvalues of the reduced Hessian that are made positive.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import surface
from .surface import Surface

# A reduced curvature below minus this is a saddle; it is left where −2ℓ is lower by LEAVE, about.
SADDLE = 1e-6
LEAVE = 0.1
# Evaluations a point may take; one with warm start takes four or five.
MAX_EVALUATIONS = 80
# Rises that differ by less, in deviance units, end in a last step that is not evaluated.
LAST = 1e-5
# The same for what a step along the surface still lowers −2ℓ by.
FLAT = 1e-7
# The longest step along the surface, in units of the curvature at the estimate.
RADIUS = 4.0

Evaluate = Callable[[np.ndarray], Surface | None]


class Curve(NamedTuple):
    """u(x) with its derivatives: value, a (m,), A (m, m)."""

    value: float
    slope: np.ndarray
    bend: np.ndarray


CurveAt = Callable[[np.ndarray], Curve]


class Goal(NamedTuple):
    """What is sought: the rise of the profile above ``least``, on the side ``sign`` of ``origin``, or a value of u.

    Attributes
    ----------
    low, high : u is not sought beyond; where the rise is not reached there, the end is the answer and says so.
    """

    least: float
    rise: float | None
    sign: float
    origin: float
    low: float
    high: float
    value: float | None = None


class Found(NamedTuple):
    """u, x, P(u); whether u is the end of its range (``bounded``); whether the search ended well."""

    u: float
    x: np.ndarray
    value: float
    bounded: bool
    ended: bool
    evaluations: int


class Local(NamedTuple):
    """At a feasible x: f, ν, the step t, what it lowers f by, how x follows u, and how far a unit of x moves u."""

    x: np.ndarray
    u: float
    f: float
    multiplier: float
    tangent: np.ndarray
    decrease: float
    along: np.ndarray
    saddle: bool
    reach: float

    @property
    def profile(self) -> float:
        return self.f - self.decrease


def find(x: np.ndarray, curve: CurveAt, evaluate: Evaluate, unit: np.ndarray, goal: Goal) -> Found:
    """The point of ``goal``, from x; ``unit`` (m,) makes x/unit of order one where −2ℓ rises by about one."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return _find(x, curve, evaluate, unit, goal)


def _find(x: np.ndarray, curve: CurveAt, evaluate: Evaluate, unit: np.ndarray, goal: Goal) -> Found:
    inside, outside = goal.origin, goal.high if goal.sign > 0 else goal.low
    wanted = goal.value
    now = None if (start := restored(x, curve, unit, wanted)) is None else local(start, curve, evaluate, unit)
    if now is None:
        return Found(np.nan, x, np.nan, False, False, 1)
    seen_end = bracketed = False
    for count in range(1, MAX_EVALUATIONS):
        flat = now.decrease < FLAT
        if goal.value is not None or goal.rise is None:
            target, gap, done = now.u, 0.0, flat
        else:
            gap = now.profile - goal.least - goal.rise
            if now.decrease < min(0.05 * goal.rise, 0.5 * abs(gap)) and not now.saddle:
                if gap < 0.0:
                    inside = now.u
                else:
                    outside, bracketed = now.u, True
            if bracketed and abs(outside - inside) < 1e-7 * now.reach and not done_by(gap, goal):
                # What was seen on another branch of the profile.
                inside, outside, bracketed = goal.origin, goal.high if goal.sign > 0 else goal.low, False
            if seen_end and abs(now.u - outside) < 1e-9 * max(now.reach, abs(outside)) and gap < 0.0 and flat:
                return Found(now.u, now.x + now.tangent * unit, now.profile, True, True, count)
            target = _next_u(now, goal, inside, outside, bracketed)
            seen_end = seen_end or (not bracketed and target == outside)
            done = flat and done_by(gap, goal)
        step = now.tangent + now.along * (target - now.u)
        if done:
            end = restored(now.x + unit * step, curve, unit, target)
            return Found(target, now.x if end is None else end, now.profile, False, True, count)
        loose = min(0.5, abs(gap) + now.decrease) if target != now.u else 0.0
        moved = _advance(now, step, target, curve, evaluate, unit, loose)
        if moved is None:
            return Found(now.u, now.x, now.profile, False, now.decrease < 1e-4 and goal.rise is None, count)
        now = moved
    return Found(now.u, now.x, now.profile, False, False, MAX_EVALUATIONS)


def done_by(gap: float, goal: Goal) -> bool:
    """Whether one more step of Newton's method is the last."""
    return abs(gap) < LAST * max(1.0, goal.rise or 0.0)


def _next_u(now: Local, goal: Goal, inside: float, outside: float, bracketed: bool) -> float:
    """Newton's step on ζ, kept between what is known to lie inside and outside; the end of the range if beyond it."""
    assert goal.rise is not None
    if now.decrease > 0.25 * goal.rise:
        return now.u
    rise = now.profile - goal.least
    slope = goal.sign * now.multiplier
    if rise <= 1e-3 * goal.rise or slope <= 0.0:
        # Too near to the estimate for a direction: double the distance.
        target = now.u + goal.sign * max(abs(now.u - goal.origin), 1e-3 * now.reach)
    else:
        root = np.sqrt(rise)
        target = now.u + goal.sign * min(
            (np.sqrt(goal.rise) - root) * 2.0 * root / slope, 10.0 * abs(now.u - goal.origin)
        )
    ahead = goal.sign * (target - inside) > 0.0
    if goal.sign * (outside - target) > 0.0 and ahead:
        return target
    if bracketed or not ahead:
        return 0.5 * (inside + outside) if np.isfinite(outside) else inside + goal.sign * abs(now.u - inside)
    return outside


def _advance(
    now: Local, step: np.ndarray, target: float, curve: CurveAt, evaluate: Evaluate, unit: np.ndarray, loose: float
) -> Local | None:
    """The next point; the step is cut until −2ℓ does about what its quadratic says."""
    share = 1.0
    for _ in range(30):
        u = now.u + share * (target - now.u)
        x = restored(now.x + unit * step * share, curve, unit, u)
        new = None if x is None else local(x, curve, evaluate, unit)
        if new is not None:
            lower = share * (share if now.saddle else 2.0 - share) * now.decrease
            expected = now.f + share * now.multiplier * (target - now.u) - lower
            slack = 0.5 * share * abs(now.multiplier * (target - now.u)) + 0.9 * lower + loose
            if new.f <= expected + slack + 1e-11 * (1.0 + abs(now.f)):
                return new
        share *= 0.5
    return None


def restored(x: np.ndarray, curve: CurveAt, unit: np.ndarray, u: float | None) -> np.ndarray | None:
    """x moved by the least, in ``unit``, to where u(x) = u; x itself if u is None."""
    if u is None:
        return x
    gap = np.inf
    for _ in range(25):
        at = curve(x)
        old, gap = gap, abs(u - at.value)
        if not np.isfinite(gap):
            return None
        a = at.slope * unit
        size = max(abs(u), float(np.linalg.norm(a)))
        if gap <= 1e-13 * size or (gap >= old and gap < 1e-9 * size):
            return x
        x = x + unit * a * (u - at.value) / (a @ a)
    return None


def local(x: np.ndarray, curve: CurveAt, evaluate: Evaluate, unit: np.ndarray) -> Local | None:
    there, u = evaluate(x), curve(x)
    if there is None or not np.isfinite(u.slope).all():
        return None
    g, a = there.gradient * unit, u.slope * unit
    size = float(a @ a)
    multiplier = float(a @ g) / size
    H = (there.hessian - multiplier * u.bend) * np.outer(unit, unit)
    Z = surface.last_along(a / np.sqrt(size))[:, :-1]
    along = a / size
    if Z.shape[1] == 0:
        return Local(x, u.value, there.value, multiplier, np.zeros(1), 0.0, along, False, np.sqrt(size))
    values, vectors = np.linalg.eigh(Z.T @ H @ Z)
    V = Z @ vectors
    safe = np.maximum(np.abs(values), 1e-8)
    slopes = V.T @ g
    t = -slopes / safe
    if values[0] < -SADDLE and 0.5 * float(slopes @ -t) < FLAT:
        # A zero column of L is stationary whether or not it is the optimum.
        t[0] += np.sqrt(2.0 * LEAVE / safe[0])
    length = float(np.linalg.norm(t))
    t = t * min(1.0, RADIUS / max(length, 1e-300))
    decrease = float(-(slopes @ t) - 0.5 * (t * values) @ t)
    tangent = V @ t
    # x follows u along the valley: ∂t/∂u = −Hᵣ⁻¹ZᵀHa/aᵀa.
    along = along - V @ ((V.T @ H @ along) / safe)
    slope = multiplier + float(a @ H @ tangent) / size
    return Local(x, u.value, there.value, slope, tangent, decrease, along, bool(values[0] < -SADDLE), np.sqrt(size))
