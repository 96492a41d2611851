"""Profile likelihood by root finding: limits, signed roots ζ and values of −2ℓ at its best over everything else.

By ML or REML; nothing is interpolated. A combination of β has a profile by ML only, since REML's criterion is no
likelihood of β. See ``core.surface`` for −2ℓ and ``core.contour`` for the search.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.special

from ..core import contour, covariance, surface, targets
from ..core.contour import Found, Goal
from ..core.fit import ModelStatistics, fit_at
from ..core.moments import GroupData
from ..core.records import Fit
from ..core.structures import Block, entry
from ..core.surface import Surface
from ..core.targets import Target
from ..core.types import Status
from ..data import ModelData
from ..errors import DataError

# How far a first step goes at most, on the scale without ends.
FIRST_STEP = 1.5
# Slopes that count as none: those of a correlation of ±1 are rounding.
NO_SLOPE = 1e-12
# A lower −2ℓ than this belongs to another branch of a profile.
BRANCH = 1e-6
# Starts from which a limit of a singular fit is searched for again.
AGAIN = 2
# A parameter whose square is worth less than this, in deviance units, counts as zero.
ZERO_WORTH = 1e-6


class Limits(NamedTuple):
    """An interval; ``note`` says where an end is that of the parameter's range, and what was not found."""

    name: str
    estimate: float
    lower: float
    upper: float
    note: str


class Profiler(NamedTuple):
    """−2ℓ in the free entries of x = (θ, [γ,] log σ²), user's units, around its optimum.

    Attributes
    ----------
    x : (m,) the optimum, all entries; free : (m,) bool, those that move. unit : (m,) their standard errors, roughly.
    least : −2ℓ there; H : (m, m) its Hessian; root : S over the free entries with SSᵀ = H⁻¹, where H > 0.
    doubtful : whether profiles may have branches: the fit is singular.
    """

    problem: surface.Problem
    scale: np.ndarray
    x: np.ndarray
    free: np.ndarray
    unit: np.ndarray
    least: float
    H: np.ndarray
    root: np.ndarray
    doubtful: bool

    def full(self, x: np.ndarray) -> np.ndarray:
        """All entries from the free ones."""
        out = self.x.copy()
        out[self.free] = x
        return out

    def evaluate(self, x: np.ndarray) -> Surface | None:
        """−2ℓ with derivatives in the free entries."""
        found = surface.evaluate(self.full(x) * self.scale, self.problem)
        if found is None:
            return None
        gradient, hessian = found.gradient * self.scale, found.hessian * self.scale * self.scale[:, None]
        if self.free.all():
            return Surface(found.value, gradient, hessian)
        return Surface(found.value, gradient[self.free], hessian[np.ix_(self.free, self.free)])

    def curve(self, target: Target) -> contour.CurveAt:
        """u of the free entries."""
        if self.free.all():
            return target.curve

        def at(x: np.ndarray) -> contour.Curve:
            u = target.curve(self.full(x))
            return contour.Curve(u.value, u.slope[self.free], u.bend[np.ix_(self.free, self.free)])

        return at


def profiler(
    data: ModelData, fitted: Fit, reml: bool, held: np.ndarray | None = None, direction: np.ndarray | None = None
) -> Profiler:
    """Around a fit; ``held`` (k,) are the θ that stay, ``direction`` (p,) the combination of β that is in x."""
    at = surface.problem(data.compressed, reml, direction)
    own = [] if direction is None else [float(direction @ np.asarray(fitted.beta))]
    x = np.concatenate([np.asarray(fitted.theta, float), own, [2.0 * float(np.log(fitted.sigma))]])
    scale = np.concatenate([theta_units(data), np.ones(len(own) + 1)])
    free = np.ones(len(x), bool)
    if held is not None:
        free[: len(held)] = ~held
    found = surface.evaluate(x * scale, at)
    if found is None:
        raise DataError("the likelihood is not finite at the estimates: there is nothing to profile")
    H = found.hessian * np.outer(scale, scale)
    size = np.diagonal(H)
    unit = np.where(size > 0, 1.0 / np.sqrt(np.where(size > 0, size, 1.0)), 1.0 / scale)
    values, vectors = np.linalg.eigh((H * np.outer(unit, unit))[np.ix_(free, free)])
    root = unit[free][:, None] * vectors / np.sqrt(np.maximum(np.abs(values), 1e-3))
    doubtful = int(fitted.status) != Status.CONVERGED
    return Profiler(at, scale, x, free, unit, found.value, H, root, doubtful)


class _Aim(NamedTuple):
    """A target at the optimum: u there over all entries, the estimate, and whether u has no slope to follow."""

    target: Target
    here: contour.Curve
    estimate: float
    flat: bool


def _aim(around: Profiler, target: Target) -> _Aim:
    here = target.curve(around.x)
    with np.errstate(all="ignore"):
        return _Aim(target, here, float(target.read(here.value)), _has_no_slope(here))


def limits(around: Profiler, target: Target, level: float) -> Limits:
    """Where the profile has risen by the χ²₁ quantile of ``level``."""
    cut, aim = float(scipy.special.chdtri(1, 1.0 - level)), _aim(around, target)
    if aim.here.slope.any() and not aim.here.slope[around.free].any():
        return Limits(target.name, aim.estimate, np.nan, np.nan, "held, not estimated")
    if any(_may_vanish(around, *effect, cut) for effect in target.needs):
        note = "both limits at the bounds: a standard deviation it is made of may be zero"
        return Limits(target.name, aim.estimate, *target.ends, note)
    (lower, below), (upper, above) = (_limit(around, aim, sign, cut) for sign in (-1.0, 1.0))
    return Limits(target.name, aim.estimate, lower, upper, "; ".join(filter(None, (below, above))))


def wald_limits(around: Profiler, target: Target, level: float) -> Limits:
    """Estimate ± z standard errors on the scale without ends, read back; NaN at an end, where it does not hold."""
    z, free, aim = float(scipy.special.ndtri(0.5 + 0.5 * level)), np.ix_(around.free, around.free), _aim(around, target)
    a, H = aim.here.slope[around.free], around.H[free]
    regular = np.isfinite(a).all() and np.linalg.eigvalsh(H * np.outer(around.unit, around.unit)[free])[0] > 1e-8
    if not regular or any(_is_at(around, aim, end) for end in target.ends):
        return Limits(target.name, aim.estimate, np.nan, np.nan, "on the boundary no normal approximation holds")
    half = z * float(np.sqrt(2.0 * a @ np.linalg.solve(H, a)))
    lower, upper = (float(target.read(aim.here.value + sign * half)) for sign in (-1.0, 1.0))
    return Limits(target.name, aim.estimate, lower, upper, "")


def signed_roots(around: Profiler, target: Target, zeta: Sequence[float]) -> list[tuple[float, float]]:
    """(parameter, ζ) at the wanted ζ = ±√rise, ascending, as far as the profile goes; with the estimate at 0."""
    aim = _aim(around, target)
    out = [(aim.estimate, 0.0)]
    for sign in (-1.0, 1.0):
        end, start = target.ends[0 if sign < 0 else 1], None
        for root in sorted(abs(z) for z in zeta if z * sign > 0):
            found = _search(around, aim, sign, root**2, start)
            if not found.ended:
                break
            if found.bounded:
                out.append((end, sign * float(np.sqrt(max(found.value - around.least, 0.0)))))
                break
            out.append((float(target.read(found.u)), sign * root))
            start = found.x
    return sorted(out)


def _may_vanish(around: Profiler, block: Block, mine: slice, i: int, cut: float) -> bool:
    """Whether the profile of a variance is below the cut at zero."""
    found = _without(around, block, mine, i, far=around.least + 4.0 * cut)
    return found.ended and found.value < around.least + cut


def _limit(around: Profiler, aim: _Aim, sign: float, cut: float) -> tuple[float, str]:
    side, end = ("lower", aim.target.ends[0]) if sign < 0 else ("upper", aim.target.ends[1])
    if _is_at(around, aim, end):
        return end, f"{side} limit at the bound {end:g}, where the estimate is"
    found = _search(around, aim, sign, cut, None)
    if around.doubtful:
        found = _confirmed(around, aim, sign, cut, found)
    if not found.ended:
        return np.nan, f"no {side} limit was found: the search did not end"
    if found.bounded:
        return end, f"{side} limit at the bound {end:g}: the profile stays below the cut up to there"
    return float(aim.target.read(found.u)), ""


def _confirmed(around: Profiler, aim: _Aim, sign: float, cut: float, found: Found) -> Found:
    """The limit after looking for a lower −2ℓ at the same value from elsewhere: its profile may have branches."""
    rng = np.random.default_rng(0)
    for _ in range(AGAIN):
        x = around.x[around.free] + 2.0 * around.unit[around.free] * rng.normal(size=int(around.free.sum()))
        if not found.ended:
            found = _search(around, aim, sign, cut, x)
        elif not found.bounded:
            other = _held_at(around, aim.target, x, found.u)
            if other.ended and other.value < found.value - BRANCH:
                farther = _search(around, aim, sign, cut, other.x)
                found = farther if farther.ended and sign * (farther.u - found.u) > 0.0 else found
    return found


def _is_at(around: Profiler, aim: _Aim, end: float) -> bool:
    """Whether the estimate is the end of its range, beside what a unit of x moves it by."""
    if not np.isfinite(end) or np.isnan(aim.estimate):
        return bool(np.isfinite(end))
    with np.errstate(all="ignore"):
        rate = (aim.target.read(aim.here.value + 1e-4) - aim.target.read(aim.here.value - 1e-4)) / 2e-4
        size = abs(float(rate)) * float(np.linalg.norm((aim.here.slope * around.unit)[around.free]))
    return abs(aim.estimate - end) < 1e-6 * (size if np.isfinite(size) and size > 0.0 else max(1.0, abs(end)))


def _search(around: Profiler, aim: _Aim, sign: float, rise: float, start: np.ndarray | None) -> Found:
    """The point where the profile has risen by ``rise``."""
    target, curve, unit = aim.target, around.curve(aim.target), around.unit[around.free]
    base = (_off_zero(around, target, rise) if aim.flat else around.x)[around.free]
    here = curve(base).value if aim.flat else aim.here.value
    low = target.low if target.below is None else here - target.below
    goal = Goal(around.least, rise, sign, here - sign if aim.flat else here, low, target.high)
    if start is None:
        start = base if aim.flat else _first(around, aim, base, goal)
    return contour.find(start, curve, around.evaluate, unit, goal)


def _off_zero(around: Profiler, target: Target, rise: float) -> np.ndarray:
    """The optimum with zero θ moved to where −2ℓ rises by a tenth of ``rise``; and others if u has no slope then."""
    x, k = around.x.copy(), around.problem.k
    zero = 0.5 * (x[:k] / around.unit[:k]) ** 2 < ZERO_WORTH
    step = np.minimum(np.sqrt(0.2 * rise) * around.unit[:k], 0.3 * np.maximum(1.0, np.abs(x[:k])))
    x[:k] = np.where(zero & around.free[:k], step, x[:k])
    for a in np.flatnonzero(around.free[:k]):
        if not _has_no_slope(target.curve(x)):
            break
        moved = x.copy()
        moved[a] -= step[a]
        x = x if _has_no_slope(target.curve(moved)) else moved
    return x


def _has_no_slope(u: contour.Curve) -> bool:
    return not (np.isfinite(u.value) and np.isfinite(u.slope).all() and np.abs(u.slope).max() > NO_SLOPE)


def _first(around: Profiler, aim: _Aim, base: np.ndarray, goal: Goal) -> np.ndarray:
    """Where the quadratic at the estimate has risen by the goal's rise, not too far away."""
    unit, curve, here = around.unit[around.free], around.curve(aim.target), aim.here
    a = around.root.T @ here.slope[around.free]
    length, stretch = float(np.linalg.norm(a)), np.sqrt(2.0 * float(goal.rise or 0.0))
    if not np.isfinite(length) or length == 0.0:
        return base
    step, reach = around.root @ a / length * stretch, length * stretch
    share = 1.0 if aim.target.read is targets.same else min(1.0, FIRST_STEP / reach)
    share = min(share, 0.5 * abs((goal.high if goal.sign > 0 else goal.low) - here.value) / reach)
    for _ in range(10):
        way = goal.sign * share
        there = contour.restored(base + way * step, curve, unit, here.value + way * reach)
        if there is not None:
            return there
        share *= 0.5
    return base


def at_variances(around: Profiler, block: Block, mine: slice, i: int, variances: np.ndarray) -> np.ndarray:
    """−2ℓ (m,) at its best with the variance of effect i of a block at each of ``variances`` (m,), which ascend."""
    target = targets.deviation("", block, mine, i)
    aim, out = _aim(around, target), np.empty(len(variances))
    middle = int(np.searchsorted(variances, aim.estimate**2))
    start = (_off_zero(around, target, 1.0) if aim.flat else around.x)[around.free]
    for places in (range(middle - 1, -1, -1), range(middle, len(variances))):
        x = start
        for j in places:
            if variances[j] == 0.0:
                found = _without(around, block, mine, i)
            else:
                found = _held_at(around, target, x, 0.5 * float(np.log(variances[j])))
                x = found.x
            out[j] = found.value if found.ended else np.nan
    return out


def _held_at(around: Profiler, target: Target, x: np.ndarray, u: float) -> Found:
    goal = Goal(around.least, None, 1.0, u, -np.inf, np.inf, u)
    return contour.find(x, around.curve(target), around.evaluate, around.unit[around.free], goal)


def _without(around: Profiler, block: Block, mine: slice, i: int, far: float = np.inf) -> Found:
    """At variance zero: the entries of θ that make up row i of L are zero, one held by name, the others not free.

    Not searched for where the first step leads no lower than ``far``.
    """
    rows = [bool(covariance.factor(e, (block,))[i].any()) for e in np.eye(block.n_theta)]
    own = mine.start + np.flatnonzero(rows)
    x, free = around.x.copy(), around.free.copy()
    x[own], free[own[1:]], free[own[0]] = 0.0, False, True
    there, target = around._replace(x=x, free=free), targets.coordinate("", int(own[0]))
    if np.isfinite(far):
        first = contour.local(x[free], there.curve(target), there.evaluate, there.unit[free])
        near = first is not None and np.linalg.norm(first.tangent) < 0.99 * contour.RADIUS
        if first is not None and near and first.profile > far:
            return Found(0.0, x[free], first.profile, False, True, 1)
    return _held_at(there, target, x[free], 0.0)


def theta_units(data: ModelData) -> np.ndarray:
    """(k,) factors that make θ dimensionless in conditioned units of Z."""
    compressed = data.compressed
    basis = compressed.moments.basis if isinstance(compressed, GroupData) else compressed.basis
    return covariance.theta_scale(data.template, np.asarray(basis.z_scale))


class Slopes(NamedTuple):
    """At any θ: the profiled deviance and log σ̂², and their gradients (k,) in θ as it was given."""

    deviance: float
    gradient: np.ndarray
    log_scale: float
    log_scale_gradient: np.ndarray


def slopes(theta: np.ndarray, data: ModelStatistics, reml: bool) -> Slopes:
    """Evaluate at θ (k,) of any sign; the deviance is +∞ where it is not finite."""
    there = fit_at(theta, data, reml=reml)
    if not np.isfinite(there.deviance):
        return Slopes(np.inf, np.zeros(len(theta)), 0.0, np.zeros(len(theta)))
    # A Fit has derivatives in the canonical θ.
    sign = covariance.canonical(np.asarray(theta, float), data.template)[1]
    gradients = sign * np.asarray(there.gradient), sign * np.asarray(there.log_scale_slope)
    return Slopes(float(there.deviance), gradients[0], 2.0 * float(np.log(there.sigma)), gradients[1])


def curvature(theta: np.ndarray, data: ModelStatistics, reml: bool) -> np.ndarray:
    """Hessian (k, k) of the profiled deviance in θ as it was given."""
    sign = covariance.canonical(np.asarray(theta, float), data.template)[1]
    return np.asarray(fit_at(theta, data, reml=reml).hessian) * np.outer(sign, sign)


def find_variance(data: ModelData, which: int | str, kind: Literal["re", "vc"]) -> int:
    """The place among all effects of a variance.

    Parameters
    ----------
    which : of kind "re" the number of an effect of the formula's first term, of kind "vc" the name of a variance,
        with or without " Var".
    """
    if kind == "re":
        place = [term is data.design.terms[0] for term in data.terms].index(True)
        first = data.term_slices[place]
        known = entry(data.terms[place].block)
        n = 0 if known.homogeneous and known.uncorrelated else first.stop - first.start
        if not isinstance(which, (int, np.integer)) or not 0 <= which < n:
            raise DataError(f"re_ix={which!r}: there are {n} correlated random effects, counted from 0")
        return first.start + int(which)
    if kind != "vc":
        raise DataError(f"vtype must be 're' or 'vc', not {kind!r}")
    rows, columns = data.covariance_positions
    names = {
        str(name).removesuffix(" Var"): int(i)
        for name, i, j in zip(data.covariance_names, rows, columns, strict=True)
        if i == j
    }
    if str(which).removesuffix(" Var") not in names:
        raise DataError(f"there is no variance component {which!r}; there are {list(names)}")
    return names[str(which).removesuffix(" Var")]
