"""Which problems, by which engines, how often: the small set and the full one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import problems, ready
from .engines import BOOTSTRAP_ENGINES, FIT_ENGINES, REFIT_ENGINES
from .measure import Plan
from .problem import Problem, spaced

TWICE, BRIEFLY, ONCE = Plan(2, 3, 10.0), Plan(2, 1, 10.0), Plan(1, 1, 60.0)


@dataclass(frozen=True)
class Case:
    """A problem, made when its turn comes; ``sweep`` names the scaling curve of which it is a point at ``size``."""

    make: Callable[[], Problem]
    engines: tuple[str, ...]
    plan: Plan = TWICE
    sweep: str | None = None
    size: float = 0.0


@dataclass(frozen=True)
class Configuration:
    cases: tuple[Case, ...]
    ready: ready.Plan
    derivatives: tuple[Callable[[], Problem], ...]
    derivative_rounds: int = 30


EXPLORATIONS = (problems.one_formula, problems.chickweight)
MANY_KINDS = ("intercept", "slope_common", "slope_irregular")
# glmmTMB takes ten seconds and more on what the others fit in one.
QUICK_ENGINES = tuple(name for name in FIT_ENGINES if name != "glmmTMB")
SWEEP_ENGINES = ("lme_jax_core", "glmm")


def _bootstrap(n: int, plan: Plan, engines: tuple[str, ...] = BOOTSTRAP_ENGINES) -> Case:
    return Case(partial(problems.bootstrap, n), engines, plan)


def _several(n: int, plan: Plan) -> tuple[Case, ...]:
    """Bootstrap samples of designs with several factors."""
    engines = ("lme_jax_bootstrap", "glmm", "lme4")
    bases = (problems.penicillin, problems.pastes, partial(problems.crossed, 20_000, 1_000, 150))
    return tuple(Case(partial(problems.bootstrap, n, base), engines, plan) for base in bases)


def _many(kind: str, n: int, plan: Plan, engines: tuple[str, ...] = REFIT_ENGINES) -> Case:
    return Case(partial(problems.many, kind, n), engines, plan)


def _few(plan: Plan) -> tuple[Case, ...]:
    """Batches that do not repay a compiled program at once."""
    return (
        _bootstrap(200, plan, ("lme_jax_bootstrap", "glmm", "lme4_bootmer")),
        _many("intercept", 1_000, plan, ("lme_jax_many", "glmm", "lme4")),
    )


def _rows(sizes: tuple[int, ...]) -> list[Case]:
    """Groups of 20 rows, so that both grow."""
    return [
        Case(partial(problems.slopes, n, n // 20), SWEEP_ENGINES, Plan(2, 4, 10.0), "rows, groups of 20", n)
        for n in sizes
    ]


def _groups(n: int, sizes: tuple[int, ...]) -> list[Case]:
    title = f"groups of {spaced(n)} rows"
    return [Case(partial(problems.slopes, n, m), SWEEP_ENGINES, Plan(2, 4, 10.0), title, m) for m in sizes]


def _effects(n: int, sizes: tuple[int, ...]) -> list[Case]:
    title = f"effects per group, {spaced(n)} rows"
    return [Case(partial(problems.slopes, n, n // 20, q), SWEEP_ENGINES, Plan(2, 3, 10.0), title, q) for q in sizes]


def _second_factor(n: int, m1: int, sizes: tuple[int, ...]) -> list[Case]:
    title = f"levels of the second factor; {spaced(n)} rows, {spaced(m1)} levels of the first"
    return [Case(partial(problems.crossed, n, m1, m2), SWEEP_ENGINES, Plan(2, 2, 10.0), title, m2) for m2 in sizes]


SMALL = Configuration(
    cases=(
        Case(problems.sleepstudy, FIT_ENGINES, Plan(2, 20, 1.0)),
        Case(problems.penicillin, FIT_ENGINES, Plan(2, 20, 1.0)),
        Case(partial(problems.insteval, 2), QUICK_ENGINES, Plan(1, 3, 3.0)),
        Case(
            partial(problems.slopes, 1_000_000, 50_000),
            ("lme_jax_core", "lme_jax_compress", "lme_jax_fit", "lme_jax_formula", "glmm"),
        ),
        Case(partial(problems.nested, 200_000, 20_000, 1_000), QUICK_ENGINES, Plan(2, 2, 3.0)),
        Case(partial(problems.regions, 20_000, 300), QUICK_ENGINES, Plan(2, 2, 3.0)),
        *_few(Plan(1, 4, 1.0)),
        _bootstrap(10_000, Plan(1, 4, 1.0)),
        *_several(200, Plan(1, 2, 2.0)),
        *(_many(kind, 5_000, Plan(1, 4, 1.0)) for kind in MANY_KINDS),
        *_rows((10_000, 100_000, 1_000_000)),
        *_groups(200_000, (100, 10_000)),
        *_effects(100_000, (1, 3, 5)),
        *_second_factor(100_000, 5_000, (10, 100, 500)),
    ),
    ready=ready.Plan(2, EXPLORATIONS, 600),
    derivatives=(partial(problems.slopes, 100_000, 5_000, 3),),
)

FULL = Configuration(
    cases=(
        Case(problems.sleepstudy, FIT_ENGINES, Plan(3, 20, 3.0)),
        Case(problems.penicillin, FIT_ENGINES, Plan(3, 20, 3.0)),
        *(Case(partial(problems.insteval, k), FIT_ENGINES, BRIEFLY) for k in (2, 3, 4)),
        Case(partial(problems.slopes, 10_000, 500), FIT_ENGINES, Plan(2, 5, 10.0)),
        Case(partial(problems.slopes, 1_000_000, 50_000), FIT_ENGINES, BRIEFLY),
        Case(partial(problems.crossed, 883_000, 20_000, 4_000), QUICK_ENGINES, ONCE),
        Case(partial(problems.nested, 200_000, 20_000, 1_000), FIT_ENGINES, TWICE),
        *(Case(partial(problems.regions, 66 * m, m), QUICK_ENGINES, BRIEFLY) for m in (300, 3_000)),
        *_few(Plan(2, 4, 10.0)),
        _bootstrap(10_000, Plan(2, 4, 10.0)),
        *_several(1_000, Plan(2, 2, 10.0)),
        *(_many(kind, 100_000, Plan(1, 2, 10.0)) for kind in MANY_KINDS),
        *_rows((10_000, 100_000, 1_000_000, 10_000_000)),
        *_groups(1_000_000, (100, 1_000, 10_000, 100_000)),
        *_effects(200_000, (1, 2, 3, 4, 6, 8)),
        *_second_factor(200_000, 10_000, (10, 100, 500, 1_000, 2_000)),
    ),
    ready=ready.Plan(5, EXPLORATIONS, 600),
    derivatives=(partial(problems.slopes, 100_000, 5_000, 3), partial(problems.slopes, 1_000_000, 50_000)),
)

CONFIGURATIONS = {"small": SMALL, "full": FULL}
