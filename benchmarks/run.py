"""Run a set of benchmarks and write what it found: ``python -m benchmarks.run small``.

Writes ``results/<set>.json``, ``.md`` and ``.png`` at the end. What an interrupted run, or one of some of the problems
or engines, has found is in ``<set>.partial.*``; a complete table stays as it is.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import derivatives, report
from .config import CONFIGURATIONS, Configuration
from .engines import ENGINES, from_checkout
from .floor import Rates, floor, rates_of_a_fresh_process
from .measure import measure, pin
from .ready import measure_ready

ONLY = "names or beginnings of names of problems; ready, derivatives"
RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("set", choices=CONFIGURATIONS, help="which set of problems")
    parser.add_argument("--threads", type=int, default=2, help="CPUs and threads of every engine (2)")
    parser.add_argument("--only", nargs="+", metavar="PROBLEM", help=ONLY)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="ENGINE", help="of those a problem lists")
    parser.add_argument("--rounds", type=int, help="processes per engine and problem, instead of the problem's own")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="run lme_jax of that folder too, in turns")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (benchmarks/results)")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    pin(chosen.threads)
    rates = rates_of_a_fresh_process()
    found = {
        "configuration": chosen.set,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": _machine(chosen.threads, rates),
        "problems": [],
        "ready": None,
        "derivatives": [],
    }
    begin = time.perf_counter()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    partial = chosen.folder / f"{chosen.set}.partial"
    target = partial if chosen.only or chosen.engines or chosen.against else chosen.folder / chosen.set
    try:
        _run(CONFIGURATIONS[chosen.set], chosen, rates, found, partial)
    except KeyboardInterrupt:
        print("interrupted; what is done is reported")
        target = partial
    if not (found["problems"] or found["ready"] or found["derivatives"]):
        raise SystemExit(f"nothing was measured: {ONLY}")
    found["wall_s"] = time.perf_counter() - begin
    _save(found, target)
    _file(target, "md").write_text(report.markdown(found))
    if any(problem["sweep"] is not None for problem in found["problems"]):
        report.plot(found, _file(target, "png"))
    if target != partial:
        _file(partial, "json").unlink(missing_ok=True)
    print(_file(target, "md"))


def _run(
    configuration: Configuration, chosen: argparse.Namespace, rates: Rates, found: dict[str, Any], target: Path
) -> None:
    with tqdm(configuration.cases) as cases:
        for case in cases:
            problem = case.make()
            if not _wanted(problem.name, chosen):
                continue
            engines = [name for name in case.engines if not chosen.engines or name in chosen.engines]
            if chosen.against:
                engines = _with_twins(engines, str(chosen.against.resolve()))
            plan = replace(case.plan, rounds=chosen.rounds or case.plan.rounds)
            begin = time.perf_counter()
            rows = [row.as_dict() for row in measure(problem, engines, plan, cases.set_postfix_str)]
            entry = {"name": problem.name, "title": problem.title, "sweep": case.sweep, "size": case.size}
            entry["responses"] = 0 if problem.responses is None else len(problem.responses)
            entry["wall_s"] = time.perf_counter() - begin
            found["problems"].append(entry | {"floor": floor(problem, rates), "rows": rows})
            _save(found, target)
        if not chosen.engines and _wanted("ready", chosen):
            found["ready"] = measure_ready(configuration.ready, cases.set_postfix_str)
        if not chosen.engines and _wanted("derivatives", chosen):
            for make in configuration.derivatives:
                cases.set_postfix_str("derivatives")
                found["derivatives"] += derivatives.measure_derivatives(make(), configuration.derivative_rounds)


def _wanted(name: str, chosen: argparse.Namespace) -> bool:
    return not chosen.only or name.startswith(tuple(chosen.only))


def _with_twins(engines: list[str], folder: str) -> list[str]:
    """Each engine of lme_jax beside the same one of another checkout."""
    twins = {name: from_checkout(name, folder) for name in engines}
    return [name for pair in twins.items() for name in pair if name]


def _save(found: dict[str, Any], target: Path) -> None:
    _file(target, "json").write_text(json.dumps(found, indent=1) + "\n")


def _file(target: Path, kind: str) -> Path:
    return target.with_name(f"{target.name}.{kind}")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


def _machine(threads: int, rates: Rates) -> dict[str, Any]:
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "threads": threads,
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "load": os.getloadavg()[0],
        "bytes_per_s": rates.bytes_per_s,
        "flops_per_s": rates.flops_per_s,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
