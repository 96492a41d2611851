"""Workers in processes of their own, round after round, so that the machine's load falls on all engines alike."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import CHECKOUT
from .engines import ENGINES, Engine, own_name, reason_to_skip
from .evaluate import VOID_ABOVE, deviance_at
from .problem import Problem, arrays
from .worker import SLOW

HERE = Path(__file__).parent
POOLS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "RAYON", "JULIA")
KILL_AFTER = 600.0


@dataclass(frozen=True)
class Plan:
    """What an engine is given: ``rounds`` processes, in each a first fit and ``repeats`` more within ``seconds``.

    One whose first fit is slow (``worker.SLOW``) has that alone.
    """

    rounds: int = 3
    repeats: int = 5
    seconds: float = 5.0


@dataclass
class Row:
    """One engine on one problem.

    Attributes
    ----------
    first, following, times : seconds of each process's first call, of its next one and of all later fits, these of one
        response where the problem has many.
    behind : deviance reached, above the best engine's, by the referee; of each response that was checked.
    void : it is behind by more than ``VOID_ABOVE``, in most of its responses, so that its times mean nothing.
    extra_mb : peak of resident memory above that at the start of the fits, which holds the data.
    """

    problem: str
    engine: str
    skipped: str | None = None
    first: list[float] = field(default_factory=list)
    following: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    fits: int = 1
    deviances: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    extra_mb: float | None = None
    input_mb: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        return bool(self.behind) and not median(self.behind) <= VOID_ABOVE

    @property
    def warm(self) -> float | None:
        """Median of the later fits, or of the first where there are no later ones."""
        return median(self.times or self.first) if self.first and not self.void else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"warm": self.warm, "void": self.void}


def pin(threads: int) -> None:
    """This process and its children: that many CPUs, pools of that many threads, JAX on the CPU as it is by default."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("the benchmarks pin processes to CPUs and read /proc: they run on Linux only")
    cpus = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cpus):
        raise SystemExit(f"--threads {threads}: this process may use 1 to {len(cpus)} CPUs")
    os.sched_setaffinity(0, cpus[:threads])
    for name in [name for name in os.environ if name.startswith(("JAX_", "XLA_"))]:
        del os.environ[name]
    os.environ.update({f"{pool}_NUM_THREADS": str(threads) for pool in POOLS} | {"JAX_PLATFORMS": "cpu"})


def run_worker(engine: Engine, folder: Path, plan: Plan, cache: Path) -> dict[str, Any]:
    """What the worker measured, or ``{"failed": why}``."""
    program = {
        "python": [sys.executable, "-m", "benchmarks.worker"],
        "r": ["Rscript", "--vanilla", str(HERE / "worker.R")],
        "julia": ["julia", "--startup-file=no", str(HERE / "worker.jl")],
    }[engine.language]
    command = [*program, str(folder), own_name(engine.name), str(plan.repeats), str(plan.seconds)]
    environment = os.environ | {
        "BENCHMARK_CACHE": str(cache),
        CHECKOUT: engine.checkout or os.environ.get(CHECKOUT, ""),
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=HERE.parent, timeout=KILL_AFTER
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {KILL_AFTER:.0f} s"}
    try:
        found: dict[str, Any] = dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        return {"failed": last_words(done.stderr, done.returncode)}
    return found


def last_words(stderr: str, code: int) -> str:
    """Why a process failed: R and Julia say so first, Python last."""
    lines = stderr.strip().splitlines() or [f"exit code {code}"]
    return next((line for line in lines if line.startswith(("Error", "ERROR"))), lines[-1])[:200]


def measure(
    problem: Problem, names: Sequence[str], plan: Plan, say: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """All the engines on one problem."""
    rows = {name: Row(problem.name, name, reason_to_skip(ENGINES[name], problem)) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary) / "problem", Path(temporary) / "cache"
        folder.mkdir()
        problem.write(folder)
        for name in names:
            if ENGINES[name].cached and rows[name].skipped is None:
                run_worker(ENGINES[name], folder, Plan(repeats=0), cache)
        for round_number in range(plan.rounds):
            for row in rows.values():
                if row.skipped is None and not (row.first and row.first[0] > SLOW):
                    say(f"{problem.name}, round {round_number + 1}, {row.engine}")
                    _add(row, run_worker(ENGINES[row.engine], folder, plan, cache), problem)
    _compare(list(rows.values()))
    return list(rows.values())


def _add(row: Row, found: dict[str, Any], problem: Problem) -> None:
    if "failed" not in found and not row.deviances:
        try:
            row.deviances = _referee(problem, found["relative"])
        except (TypeError, ValueError) as error:
            found = {"failed": f"estimates that cannot be read: {error}"}
    if "failed" in found:
        row.skipped = f"failed: {found['failed']}"
        return
    row.fits = found.get("fits", 1)
    row.first.append(found["first"])
    row.following += found["times"][:1] if problem.responses is None else found.get("next", [])
    row.times += found["times"]
    row.extra_mb = max(row.extra_mb or 0.0, found["peak_mb"] - found["base_mb"])
    row.input_mb, row.versions = arrays(problem).n_bytes / 2**20, found["versions"]


def _referee(problem: Problem, relative: list[Any]) -> list[float]:
    if problem.responses is None:
        return [deviance_at(relative, arrays(problem).compress(), reml=problem.reml)]
    return [
        deviance_at(own, arrays(problem).with_response(y).compress(), reml=problem.reml)
        for own, y in zip(relative, problem.responses, strict=False)
    ]


def _compare(rows: list[Row]) -> None:
    """``behind`` of each row that ran; what is not finite is infinitely behind."""
    ran = [row for row in rows if row.deviances and row.skipped is None]
    best: dict[int, float] = {}
    for row in ran:
        for number, deviance in enumerate(row.deviances):
            if deviance == deviance:
                best[number] = min(best.get(number, deviance), deviance)
    for row in ran:
        behind = [deviance - best.get(number, np.inf) for number, deviance in enumerate(row.deviances)]
        row.behind = np.nan_to_num(behind, nan=np.inf).tolist()
