"""Ready at once: imports, formulas not fitted before, many shapes of model, each in fresh processes that take turns."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import CHECKOUT
from .engines import ENGINES, missing
from .evaluate import deviance_at
from .measure import HERE, KILL_AFTER, last_words
from .problem import Problem
from .problems import penicillin, sleepstudy
from .written import Exploration

Say = Callable[[str], None]
PASSES = 2


@dataclass(frozen=True)
class Plan:
    """Rounds of processes, which explorations, how many shapes of model, repeats of a fit whose stages are timed."""

    rounds: int
    explorations: tuple[Callable[[], Exploration], ...]
    shapes: int
    repeats: int = 100


EXPLORERS = ("lme_jax_formula", "lme4", "statsmodels", "glmm", "mixedlm")
# A line, and an engine that must be there for it.
IMPORTS = {
    "an empty program": ("lme_jax_formula", "pass"),
    "import numpy, pandas": ("lme_jax_formula", "import numpy, pandas"),
    "import lme_jax": ("lme_jax_formula", "import lme_jax"),
    "import statsmodels.formula.api": ("statsmodels", "import statsmodels.formula.api"),
    "import glmm": ("glmm", "import glmm"),
    "import mixedlm": ("mixedlm", "import mixedlm"),
    "an empty program, R": ("lme4", "invisible()"),
    "library(lme4)": ("lme4", "suppressMessages(library(lme4))"),
}


def measure_ready(plan: Plan, say: Say) -> dict[str, Any]:
    """Everything the report's section needs, as JSON."""
    return {
        "imports": imports(plan.rounds, say),
        "packages": packages("import lme_jax"),
        "stages": [stages(make(), plan.repeats, say) for make in (sleepstudy, penicillin)],
        "explorations": [explore(make(), plan.rounds, say) for make in plan.explorations],
        "shapes": _python("benchmarks.shapes", str(plan.shapes), say=say),
    }


# ---------------------------------------------------------------- imports


def imports(rounds: int, say: Say) -> list[dict[str, Any]]:
    """Seconds of whole processes that import and do nothing else; a first round, not counted, fills the caches."""
    rows: list[dict[str, Any]] = [
        {"program": name, "engine": engine, "skipped": missing(ENGINES[engine]), "times": []}
        for name, (engine, _) in IMPORTS.items()
    ]
    for number in range(2 * rounds + 1):
        for row in rows:
            if row["skipped"] is None:
                say(f"round {number}, {row['program']}")
                row["times"] += [_whole(row["program"])] * (number > 0)
    for row in rows:
        row["median"] = median(row["times"]) if row["times"] else None
    return rows


def _whole(program: str) -> float:
    engine, line = IMPORTS[program]
    r = ENGINES[engine].language == "r"
    begin = time.perf_counter()
    subprocess.run(
        ["Rscript", "--vanilla", "-e", line] if r else [sys.executable, "-c", line], check=True, cwd=_lme_jax()
    )
    return time.perf_counter() - begin


def packages(line: str) -> dict[str, Any]:
    """Seconds that each package's own modules take in one ``-X importtime`` run, and how many modules there are.

    What Python imports before the line runs is left out.
    """
    bare, full = (_import_times(code) for code in ("pass", line))
    seconds: dict[str, float] = {}
    modules = {name: own for name, own in full.items() if name not in bare}
    for name, own in modules.items():
        package = name.partition(".")[0]
        package = "the standard library" if package in sys.stdlib_module_names else package
        seconds[package] = seconds.get(package, 0.0) + own
    return {"seconds": seconds, "modules": len(modules)}


def _import_times(line: str) -> dict[str, float]:
    command = [sys.executable, "-X", "importtime", "-c", line]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=_lme_jax()).stderr
    rows = [row.split("|") for row in text.splitlines() if row.startswith("import time:")]
    return {row[2].strip(): int(row[0].split(":")[1]) / 1e6 for row in rows[1:]}


# ---------------------------------------------------------------- a warm fit's stages


def stages(problem: Problem, repeats: int, say: Say) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        problem.write(Path(folder))
        found = _python("benchmarks.stages", folder, str(repeats), say=say)
    return {"title": problem.title} | found


# ---------------------------------------------------------------- formulas not fitted before


def explore(exploration: Exploration, rounds: int, say: Say) -> dict[str, Any]:
    """A row per engine: what its processes measured, and how far each model is behind the best engine."""
    rows: list[dict[str, Any]] = [{"engine": name, "skipped": missing(ENGINES[name]), "runs": []} for name in EXPLORERS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        exploration.write(folder)
        for number in range(rounds):
            for row in rows:
                if row["skipped"] is None:
                    say(f"{exploration.name}, round {number + 1}, {row['engine']}")
                    found = _explorer(row["engine"], folder)
                    row["skipped"] = found.get("failed")
                    row["runs"] += [found] * ("failed" not in found)
    ran = [row for row in rows if row["runs"]]
    _compare(exploration.problems(), [row["runs"][-1]["models"] for row in ran])
    out = [{"engine": row["engine"], "skipped": row["skipped"]} | _summary(row["runs"]) for row in rows]
    return {"title": exploration.title, "models": len(exploration.models), "rows": out}


def _explorer(engine: str, folder: Path) -> dict[str, Any]:
    begin = repr(time.time())
    if ENGINES[engine].language == "r":
        command = ["Rscript", "--vanilla", str(HERE / "explore.R"), str(folder), str(PASSES), begin]
    else:
        command = [sys.executable, "-m", "benchmarks.explore", str(folder), engine, str(PASSES), begin]
    return _last_line(command)


def _compare(problems: Sequence[Any], engines: list[list[dict[str, Any]]]) -> None:
    """``behind`` of each model that an engine fitted: its deviance above the best engine's."""
    for number, problem in enumerate(problems):
        fitted = [models[number] for models in engines if "relative" in models[number]]
        data = compressed(problem)
        deviances = [deviance_at(model["relative"], data, reml=problem.reml) for model in fitted]
        best = min((d for d in deviances if d == d), default=np.nan)
        for model, deviance in zip(fitted, deviances, strict=True):
            model["behind"] = float(np.nan_to_num(deviance - best, nan=np.inf))


def compressed(problem: Problem) -> Any:
    """lme_jax's statistics of a model by its formula, for the referee."""
    from lme_jax.data import ModelData
    from lme_jax.formula import design_from_formula

    design = design_from_formula(problem.formula, problem.frame())
    return ModelData.from_design(design, factor_in_names=True).compressed


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs; what the engine cannot fit, and why."""
    if not runs:
        return {}
    able = [number for number, model in enumerate(runs[-1]["models"]) if "failed" not in model]
    out: dict[str, Any] = {name: median(run[name] for run in runs) for name in ("boot", "import", "read", "total")}
    out["totals"] = [run["total"] for run in runs]
    for number, name in enumerate(("first", "next")):
        for part in ("fit", "summary"):
            out[f"{name}_{part}"] = [median(r["models"][m][part][number] for r in runs) for m in able]
    models = runs[-1]["models"]
    out["behind"] = [models[m]["behind"] for m in able]
    out["failed"] = {str(m): model["failed"] for m, model in enumerate(models) if "failed" in model}
    return out


# ---------------------------------------------------------------- processes


def _python(module: str, *arguments: str, say: Say) -> dict[str, Any]:
    say(module)
    return _last_line([sys.executable, "-m", module, *arguments])


def _last_line(command: list[str]) -> dict[str, Any]:
    """The JSON that a process ends with, or ``{"failed": why}``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, timeout=KILL_AFTER)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {KILL_AFTER:.0f} s"}
    with contextlib.suppress(IndexError, TypeError, ValueError):
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    return {"failed": last_words(done.stderr, done.returncode)}


def _lme_jax() -> str:
    """The folder from which a process imports the lme_jax that is measured."""
    return os.environ.get(CHECKOUT) or str(HERE.parent)
