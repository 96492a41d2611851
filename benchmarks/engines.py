"""The engines: what each needs, what each can fit, and the settings it gets."""

import functools
import importlib.util
import shutil
import subprocess
from dataclasses import dataclass, replace

from .problem import Problem


@dataclass(frozen=True)
class Engine:
    """One way to fit.

    Attributes
    ----------
    language : "python", "r" or "julia": which worker runs it. package : what must be installed there.
    settings : what differs from the engine's defaults, for the report.
    reml, crossed, correlated, slope_only : whether it fits by REML, crossed factors, an intercept with its slope, and a
        term without an intercept.
    checkout : the folder whose lme_jax it runs, where that is not this one.
    cached : it starts with a persistent compilation cache that an earlier process has filled.
    """

    name: str
    label: str
    language: str
    package: str
    settings: str
    reml: bool = True
    crossed: bool = True
    correlated: bool = True
    slope_only: bool = True
    cached: bool = False
    checkout: str = ""


_ALL = (
    Engine("lme_jax_core", "lme_jax, arrays", "python", "lme_jax", "NumPy arrays → compress → fit; defaults"),
    Engine("lme_jax_compress", "lme_jax, compress only", "python", "lme_jax", "no fit"),
    Engine("lme_jax_fit", "lme_jax, fit only", "python", "lme_jax", "fit of statistics compressed before; defaults"),
    Engine("lme_jax_formula", "lme_jax, formula", "python", "lme_jax", "data frame and formula → results; defaults"),
    Engine("lme_jax_many", "lme_jax, fit_many", "python", "lme_jax", "all responses in one call, from arrays"),
    Engine("lme_jax_bootstrap", "lme_jax, bootstrap", "python", "lme_jax", "`.bootstrap()`, simulation included"),
    Engine(
        "lme_jax_bootstrap_cached",
        "lme_jax, bootstrap, cached",
        "python",
        "lme_jax",
        "`first` finds the programs of an earlier process in `enable_compilation_cache`",
        cached=True,
    ),
    Engine("glmm", "glmm", "python", "glmm", "satterthwaite=False (generous)", slope_only=False),
    Engine("mixedlm", "mixedlm", "python", "mixedlm", "defaults"),
    Engine("statsmodels", "statsmodels", "python", "statsmodels", "defaults; several factors by vc_formula"),
    Engine(
        "gpboost", "GPBoost", "python", "gpboost", "defaults (iterative when crossed)", reml=False, correlated=False
    ),
    Engine(
        "gpboost_cholesky",
        "GPBoost, Cholesky",
        "python",
        "gpboost",
        'matrix_inversion_method="cholesky"',
        reml=False,
        correlated=False,
    ),
    Engine("lme4", "lme4", "r", "lme4", "calc.derivs = FALSE (generous); responses by `refit`"),
    Engine("lme4_bootmer", "lme4, bootMer", "r", "lme4", "of as many samples as the time allows, simulation included"),
    Engine("nlme", "nlme", "r", "nlme", "defaults", crossed=False),
    Engine("glmmTMB", "glmmTMB", "r", "glmmTMB", "defaults"),
    Engine("MixedModels", "MixedModels.jl", "julia", "MixedModels", "defaults; responses by `refit!`"),
)
ENGINES = {engine.name: engine for engine in _ALL}
REFIT_ENGINES = ("lme_jax_many", "glmm", "mixedlm", "statsmodels", "lme4", "MixedModels")
BOOTSTRAP_ENGINES = ("lme_jax_bootstrap", "lme_jax_bootstrap_cached", *REFIT_ENGINES, "lme4_bootmer")
_OF_PARTS = ("lme_jax_compress", *BOOTSTRAP_ENGINES[:3], "lme4_bootmer")
FIT_ENGINES = tuple(name for name in ENGINES if name not in _OF_PARTS)
_OTHER = "@other"


def from_checkout(name: str, folder: str) -> str | None:
    """The same engine of the lme_jax in another folder, as a further engine; None where it is not ours."""
    engine = ENGINES[name]
    if engine.package != "lme_jax":
        return None
    other = replace(engine, name=name + _OTHER, label=f"{engine.label} (other)", checkout=folder)
    ENGINES[other.name] = other
    return other.name


def own_name(name: str) -> str:
    """The engine of this checkout that an engine of another one is compared with."""
    return name.removesuffix(_OTHER)


@functools.cache
def missing(engine: Engine) -> str | None:
    """Why the engine cannot run here; None if it can."""
    if engine.language == "python":
        return None if importlib.util.find_spec(engine.package) else "not installed"
    program = {"r": "Rscript", "julia": "julia"}[engine.language]
    if shutil.which(program) is None:
        return f"no {program}"
    ask = {
        "r": [
            "Rscript",
            "--vanilla",
            "-e",
            f"cat(all(nzchar(sapply(c('{engine.package}', 'jsonlite'), function(p) system.file(package = p)))))",
        ],
        "julia": [
            "julia",
            "--startup-file=no",
            "-e",
            f'print(all(p -> Base.find_package(p) !== nothing, ("{engine.package}", "JSON")))',
        ],
    }
    answer = subprocess.run(ask[engine.language], capture_output=True, text=True).stdout
    return None if answer.strip().lower() == "true" else "not installed"


def reason_to_skip(engine: Engine, problem: Problem) -> str | None:
    """Why the engine is not asked to fit the problem; None if it is."""
    absent = missing(engine)
    if absent:
        return absent
    if problem.reml and not engine.reml:
        return "ML only"
    if len(problem.factors) > 1 and not (engine.crossed or problem.nested):
        return "nested factors only"
    if any(len(columns) > 1 for columns, _ in problem.random) and not engine.correlated:
        return "no correlated effects"
    if any(columns[0] != "1" for columns, _ in problem.random) and not engine.slope_only:
        return "no term without an intercept"
    return "would take minutes" if engine.name in problem.slow else None
