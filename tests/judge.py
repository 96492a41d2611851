"""One fit of one random design, judged by the oracles, which share no code with lme_jax.

``optimum`` is a fit with nothing to say against it; otherwise the first of these words that holds:

    raised, refused   an exception that is not lme_jax's own, or one that is
    not_converged     the status says so
    missed, better    more than 1e-6·max(1, |deviance|) above, or below, the best optimum known to the oracle
    digits            lme_jax's deviance is not the oracle's at the same θ
    status            SINGULAR where Ψ is far from it, or CONVERGED where it is singular
    score, hessian    not the oracle's, at θ̂ and away from it
    estimates         β̂, its covariance, σ̂, BLUPs, or their two covariances are not the oracle's at the same θ
"""

import contextlib
import functools
import time
import warnings
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

import lme_jax as lme
from lme_jax.core import crossed
from lme_jax.core.fit import fit_at
from lme_jax.errors import LmeJaxError

from .oracles import crossings, dense, designs, multistart, several, templates

SHAPES = {**designs.SHAPES, **crossings.SHAPES}
TOLERANCE = 1e-6
DECOYS = 3
# From bad to worse. What is not_converged is counted and named, but the fit itself says so.
BAD = ("estimates", "hessian", "score", "status", "digits", "missed", "better", "raised")
ALWAYS_BAD = ("missed", "better", "raised")


class Tolerances(NamedTuple):
    """Relative to max(1, |deviance|); to the largest entry of the score and Hessian of scaled θ; to standard errors."""

    digits: float
    score: float
    hessian: float
    estimates: float


# Before any search.
UNKNOWN = multistart.Optimum(np.inf, None, np.empty(0), np.nan)
USUAL = Tolerances(1e-8, 1e-6, 1e-6, 1e-6)
EXTREME = Tolerances(1e-6, 1e-3, 1e-3, 1e-3)
# By ``kind_of``.
TOLERANCES = {"usual": USUAL, "extreme": EXTREME, "saturated": EXTREME}


class Found(NamedTuple):
    """What a fitter returns: status in lower case, deviance, θ, and the results object where there is one."""

    status: str
    deviance: float
    theta: np.ndarray
    result: object = None


class Trial(NamedTuple):
    """One fit and its verdict.

    Attributes
    ----------
    best : the oracle's optimum; gap : deviance at θ̂ above it; digits : lme_jax's above the oracle's at θ̂; both over
        max(1, |deviance|).
    errors : of every check, as a multiple of its tolerance.
    """

    verdict: str
    drawn: object
    deviance: float
    best: multistart.Optimum
    seconds: float
    message: str
    theta: np.ndarray | None = None
    gap: float = np.nan
    digits: float = np.nan
    errors: dict = MappingProxyType({})

    @property
    def name(self):
        return f"{self.drawn.shape}:{self.drawn.seed}"


# ---------------------------------------------------------------- designs of one and of several factors alike


def draw(shape, seed):
    """The design of a shape's name and a seed."""
    return (designs if shape in designs.SHAPES else crossings).draw(shape, seed)


def is_single(design):
    """Whether a design is of the kind that has one factor by codes."""
    return isinstance(design, multistart.Design)


def model_of(design):
    """As the dense oracle takes it."""
    return multistart.model_of(design) if is_single(design) else design


def problem_of(design):
    """As the multistart search takes it."""
    return multistart.prepare(design) if is_single(design) else several.prepare(design)


def frame(design):
    """As a DataFrame."""
    return (designs if is_single(design) else crossings).frame(design)


def formula(design):
    """The lmer formula."""
    return (designs if is_single(design) else crossings).formula(design)[0]


def arguments(design):
    """What lmer needs beside formula and data."""
    if not is_single(design):
        return crossings.arguments(design)
    given = {"weights": (design.weights, "w"), "offset": (design.offset, "o")}
    columns = {key: name for key, (value, name) in given.items() if value is not None}
    return {"reml": design.reml, "structures": designs.formula(design)[1], **columns}


# ---------------------------------------------------------------- fitters


def fit(design):
    """By ``lmer``; refusals raise."""
    result = lme.lmer(formula(design), frame(design), **arguments(design))
    return Found(result.status.name.lower(), result.deviance, np.asarray(result.fit.theta), result)


@contextlib.contextmanager
def large_engines():
    """Small designs of several factors go through the engines of large ones."""
    before, crossed.SMALL = crossed.SMALL, 0
    try:
        yield
    finally:
        crossed.SMALL = before


def fit_large(design):
    """By ``lmer`` through the engine that large designs have."""
    with large_engines():
        return fit(design)


def fit_lane(design):
    """As one lane among other responses."""
    rng = np.random.default_rng(0)
    decoys = [rng.permutation(design.y) for _ in range(DECOYS)]
    Y = np.column_stack([*decoys[:1], design.y, *decoys[1:]])
    many = lme.lmer_many(formula(design).removeprefix("y"), frame(design), Y, progress=False, **arguments(design))
    lane = many.one(many.names[1])
    return Found(lane.status.name.lower(), float(many.fit.deviance[1]), np.asarray(many.fit.theta[1]))


# ---------------------------------------------------------------- the verdict


@functools.lru_cache(maxsize=2)
def best_known(shape, seed):
    """The oracle's best optimum of a drawn design."""
    return multistart.solve(problem_of(draw(shape, seed).design))


def judge(drawn, fitter=fit, *, search=True):
    """The Trial of a drawn design; without ``search`` the oracle looks for better optima from lme_jax's θ only."""
    design = drawn.design
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = fitter(design)
        except (LmeJaxError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            status = "refused" if isinstance(error, LmeJaxError) else "raised"
            found, message = Found(status, np.nan, None), f"{type(error).__name__}: {error}"
        else:
            message = found.status
        seconds = time.perf_counter() - begun
        problem, best = problem_of(design), best_known(drawn.shape, drawn.seed) if search else UNKNOWN
        about = {"drawn": drawn, "deviance": found.deviance, "seconds": seconds, "message": message}
        if found.theta is None or not np.isfinite(found.theta).all():
            return Trial(found.status if found.theta is None else "not_converged", best=best, **about)
        best = lower(best, found.theta, problem)
        oracle = dense.at(found.theta, model_of(design))
        size = max(1.0, abs(best.deviance))
        gap, digits = (oracle.deviance - best.deviance) / size, (found.deviance - oracle.deviance) / size
        errors = complaints(drawn, found, oracle, problem, gap, digits)
    word = next((name for name, error in errors.items() if not error <= 1), "optimum")
    return Trial(word, best=best, theta=found.theta, gap=gap, digits=digits, errors=errors, **about)


def lower(best, theta, problem):
    """The better of an optimum and what a search from lme_jax's θ finds."""
    ends = multistart.search(np.atleast_2d(theta) * problem.scale, problem)
    if not ends.value[0] < best.deviance:
        return best
    return best._replace(deviance=float(ends.value[0]), theta=ends.theta[0] / problem.scale)


def kind_of(drawn):
    """How much double precision can be asked for: usual, extreme or saturated.

    Extreme are weights over twelve decades, of which sums over the rows hold 16 digits of the heaviest; columns that
    differ by as much under one variance (compound symmetry, identity, AR(1)), which must share a scale; one factor's
    columns of all sizes, whose effects are then up to 1e5 times the residuals; and columns that differ by 1e-3, whose
    effects cancel, which costs six digits of what is quadratic in both. In a saturated design X and Z
    explain any y, so that the deviance is flat towards σ = 0 and may be lowest there.
    """
    model, t = model_of(drawn.design), drawn.traits
    if np.linalg.matrix_rank(scaled(np.column_stack([model.X, dense.all_columns(model)]))) >= len(model.y):
        return "saturated"
    shared = any(templates.name_of(s) not in templates.APART and q > 1 for f in model.factors for s, q in f.blocks)
    wide = t["Z"] == "scaled" and (shared or is_single(drawn.design))
    return "extreme" if t["w"] == "extreme" or t["Z"] == "near" or wide else "usual"


def must_be_refused(design):
    """Whether a term has as many effects as there are rows."""
    model = model_of(design)
    return any(f.m * size >= len(model.y) for f in model.factors for _, size in f.blocks)


def scaled(A):
    """Columns of unit length."""
    size = np.sqrt((A * A).sum(0))
    return A / np.where(size > 0, size, 1.0)


def complaints(drawn, found, oracle, problem, gap, digits):
    """Every check by its word: the error as a multiple of what is allowed, in the order in which they count."""
    allowed = TOLERANCES[kind_of(drawn)]
    errors = {
        "not_converged": 0.0 if found.status in ("converged", "singular") else np.inf,
        "missed": gap / TOLERANCE,
        "better": -gap / TOLERANCE,
        "digits": abs(digits) / allowed.digits,
        "status": np.inf if wrong_status(found, problem) else 0.0,
    }
    if found.result is not None:
        errors |= wrong_derivatives(drawn, found, oracle, problem, allowed)
        errors["estimates"] = wrong_estimates(found.result, oracle) / allowed.estimates
    return errors


def wrong_status(found, problem):
    """Whether Ψ, in units of what a level tells, contradicts the status: scaled sds and eigenvalues of correlations.

    lme_jax calls a conditional standard deviation below 1e-4 zero, in units of its own; 100 times more, or less, is
    left to both.
    """
    L = templates.root(np.asarray(found.theta)[None] * problem.scale, problem.template)[0]
    Psi = L @ L.T
    sd = np.sqrt(np.diag(Psi))
    roots = [sd.min()]
    for structure, rows, at in templates.blocks(problem.template):
        unit = np.where(sd[rows] > 0, sd[rows], 1.0)
        values = np.linalg.eigvalsh(Psi[rows, rows] / np.outer(unit, unit))
        # Of reduced rank by its structure is not singular.
        regular = templates.root(np.linspace(0.4, 0.9, at.stop - at.start)[None], ((structure, len(unit)),))[0]
        roots.append(np.sqrt(max(values[-np.linalg.matrix_rank(regular)], 0.0)))
    return min(roots) > 1e-2 if found.status == "singular" else min(roots) < 1e-6 and found.status == "converged"


def wrong_derivatives(drawn, found, oracle, problem, allowed):
    """Score and Hessian at θ̂ and a random way off, in scaled θ, over the largest entry of the Hessian there.

    The Hessian at θ̂ itself is not asked for: large crossed designs take it 1e-5 inside the boundary.
    """
    rng = np.random.default_rng(drawn.seed)
    model, scale = model_of(drawn.design), problem.scale
    data = found.result._data.compressed
    # Of canonical signs: the derivatives of a fit are those in the θ that it returns.
    aside = templates.to_lme_jax(found.theta * scale + rng.normal(size=len(scale)), problem.template) / scale
    there = dense.at(aside, model)
    score, hessian = [], []
    for theta, truth in ((found.theta, oracle), (aside, there)):
        ours = fit_at(theta, data, reml=model.reml)
        unit = max(1.0, np.abs(truth.hessian / np.outer(scale, scale)).max())
        score.append(np.abs((ours.gradient - truth.gradient) / scale).max() / unit)
        hessian.append(np.abs((ours.hessian - truth.hessian) / np.outer(scale, scale)).max() / unit)
    return {"score": max(score) / allowed.score, "hessian": hessian[1] / allowed.hessian}


def wrong_estimates(result, oracle):
    """The largest error of β̂ and BLUPs in standard errors, of covariances and σ̂ relative to their sizes."""
    fit, root = result.fit, np.sqrt(np.diag(oracle.unscaled_cov))
    errors = [abs(fit.sigma / oracle.sigma - 1), np.abs((fit.beta - oracle.beta) / root / oracle.sigma).max(initial=0)]
    errors.append(np.abs((fit.unscaled_cov - oracle.unscaled_cov) / np.outer(root, root)).max(initial=0))
    pairs = zip(result._random_effects, oracle.b, oracle.conditional_cov, oracle.prediction_cov, strict=True)
    for ours, b, conditional, prediction in pairs:
        m = len(b)
        # Zeros are predicted where a variance is zero.
        spread = np.sqrt(np.diagonal(prediction, axis1=1, axis2=2).max(0)) + np.abs(b).max(0)
        unit = np.where(spread > 0, spread, 1.0)
        errors.append(np.abs((ours.b[:m] - b) / unit).max())
        for mine, theirs in ((ours.conditional_cov, conditional), (ours.prediction_cov, prediction)):
            errors.append(np.abs((mine[:m] - theirs) / np.outer(unit, unit)).max())
    return max(errors)


def is_bad(trial):
    """Whether a trial is a defect; where double precision is at its end only what is wrong by any measure."""
    words = {"usual": BAD, "extreme": ALWAYS_BAD, "saturated": ("raised",)}[kind_of(trial.drawn)]
    return trial.verdict in words or (trial.verdict == "refused" and not must_be_refused(trial.drawn.design))


def lines_of(trial):
    """A trial in full."""
    yield f"{trial.name}  {trial.verdict}: {trial.message}, {kind_of(trial.drawn)}, benign: {trial.drawn.benign}"
    yield f"  {formula(trial.drawn.design)}  {trial.drawn.traits}"
    yield f"  lme_jax {trial.deviance:.10g} at {trial.theta}"
    yield f"  oracle  {trial.best.deviance:.10g} at {trial.best.theta}; gap {trial.gap:.2e}, digits {trial.digits:.2e}"
    yield f"  over tolerance: { {k: float(f'{v:.2g}') for k, v in trial.errors.items() if not v <= 1} }"
