"""One Python engine on one problem: ``python -m benchmarks.worker folder engine repeats seconds``.

The last line of the output is JSON: seconds of the ``first`` call, of the ``next`` one of a batch and of the later
fits (``times``), these per response where the problem has many; how many ``fits`` those times are of; Ψ/σ² of each term
(``relative``), of the first responses where there are many; memory at the start of the fits and at its peak; versions.
"""

import contextlib
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .adapters import Adapter, adapter
from .problem import Problem, read_problem

CHECKED = 10
# Seconds above which a first fit is not repeated.
SLOW = 30.0


def memory(field: str) -> float:
    """Resident MB of this process: VmRSS now, VmHWM at its peak (``getrusage`` would count the parent's)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def versions(engine: Adapter) -> dict[str, str]:
    out = {"Python": platform.python_version()}
    for package in (*engine.packages, *engine.parts):
        own = getattr(sys.modules.get(package), "__version__", None)
        out[package] = own or importlib.metadata.version(package)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return out | {"BLAS (NumPy)": f"{blas['name']} {blas['version']}"}


def repeat(action: Callable[[], Any], repeats: int, seconds: float, slow: float = SLOW) -> tuple[list[float], Any]:
    """Times of a first call and of repeats until ``seconds`` have passed; and what the last one returned."""
    times: list[float] = []
    while not times or (len(times) <= repeats and sum(times[1:]) < seconds and times[0] < slow):
        begin = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - begin)
    return times, result


def time_fits(engine: Adapter, repeats: int, seconds: float) -> dict[str, Any]:
    times, fitted = repeat(engine.fit, repeats, seconds)
    relative = [m.tolist() for m in engine.relative(fitted)]
    return {"first": times[0], "times": times[1:], "relative": relative}


def time_batches(engine: Any, Y: np.ndarray, repeats: int, seconds: float) -> dict[str, Any]:
    """All the responses in one call: the first and the next as a person makes them, later ones compiled."""

    def action() -> Any:
        return engine.fit_all(Y)

    (first,), fits = repeat(action, 0, 0.0)
    compiled = engine.is_compiled()
    (following,), _ = repeat(action, 0, 0.0)
    if not compiled:
        engine.compile_from_now_on()
        action()
    later = [following] * compiled + repeat(action, max(repeats, 1) - 1, seconds, slow=math.inf)[0]
    checked = range(min(CHECKED, len(Y))) if hasattr(engine, "relative_of") else ()
    relative = [[m.tolist() for m in engine.relative_of(fits, i)] for i in checked]
    per_response = [seconds / len(Y) for seconds in later]
    return {"first": first, "next": [following], "times": per_response, "fits": len(Y), "relative": relative}


def time_refits(engine: Adapter, Y: np.ndarray, seconds: float) -> dict[str, Any]:
    """One response after another until ``seconds`` have passed."""
    begin = time.perf_counter()
    engine.refit(Y[0])
    first = time.perf_counter() - begin
    kept, done = [], 0
    begin = time.perf_counter()
    for y in Y:
        fitted = engine.refit(y)
        done += 1
        if done <= CHECKED:
            kept.append(fitted)
        if time.perf_counter() - begin > seconds:
            break
    elapsed = time.perf_counter() - begin
    return {
        "first": first,
        "times": [elapsed / done],
        "fits": done,
        "relative": [[m.tolist() for m in engine.relative(fitted)] for fitted in kept],
    }


def measure(problem: Problem, name: str, repeats: int, seconds: float) -> dict[str, Any]:
    engine = adapter(name, problem)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    base = memory("VmRSS")
    if problem.responses is None:
        out = time_fits(engine, repeats, seconds)
    elif hasattr(engine, "fit_all"):
        out = time_batches(engine, problem.responses, repeats, seconds)
    else:
        out = time_refits(engine, problem.responses, seconds)
    return out | {"base_mb": base, "peak_mb": memory("VmHWM"), "versions": versions(engine)}


if __name__ == "__main__":
    folder, engine_name, n_repeats, limit = sys.argv[1:]
    found = measure(read_problem(Path(folder)), engine_name, int(n_repeats), float(limit))
    print("\n" + json.dumps(found))
