"""Run a set of benchmarks and write what it found: ``python -m benchmarks.run small``.

Writes ``results/<set>.json`` after every problem, and at the end ``<set>.md`` and ``<set>.png`` beside it.
An interrupted run is reported as far as it came.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import cold, derivatives, report
from .config import CONFIGURATIONS, Configuration
from .floor import Rates, floor, machine_rates
from .measure import measure, pin

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("set", choices=CONFIGURATIONS, help="which set of problems")
    parser.add_argument("--threads", type=int, default=2, help="CPUs and threads of every engine (2)")
    parser.add_argument("--only", nargs="+", metavar="PROBLEM", help="names or beginnings of names of problems")
    parser.add_argument("--engines", nargs="+", metavar="ENGINE", help="of the engines a problem lists")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (benchmarks/results)")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    pin(chosen.threads)
    rates = machine_rates()
    found = {
        "configuration": chosen.set,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": _machine(chosen.threads, rates),
        "problems": [],
        "cold": [],
        "derivatives": [],
    }
    begin = time.perf_counter()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    target = chosen.folder / chosen.set
    try:
        _run(CONFIGURATIONS[chosen.set], chosen, rates, found, target)
    except KeyboardInterrupt:
        print("interrupted; what is done is reported")
    found["wall_s"] = time.perf_counter() - begin
    _save(found, target)
    target.with_suffix(".md").write_text(report.markdown(found))
    if any(problem["sweep"] is not None for problem in found["problems"]):
        report.plot(found, target.with_suffix(".png"))
    print(target.with_suffix(".md"))


def _run(
    configuration: Configuration, chosen: argparse.Namespace, rates: Rates, found: dict[str, Any], target: Path
) -> None:
    with tqdm(configuration.cases) as cases:
        for case in cases:
            problem = case.make()
            if chosen.only and not problem.name.startswith(tuple(chosen.only)):
                continue
            engines = [name for name in case.engines if not chosen.engines or name in chosen.engines]
            begin = time.perf_counter()
            rows = [row.as_dict() for row in measure(problem, engines, case.plan, cases.set_postfix_str)]
            entry = {"name": problem.name, "title": problem.title, "sweep": case.sweep, "size": case.size}
            entry["wall_s"] = time.perf_counter() - begin
            found["problems"].append(entry | {"floor": floor(problem, rates), "rows": rows})
            _save(found, target)
        if not chosen.only:
            found["cold"] = cold.measure_cold_starts(configuration.cold_rounds, cases.set_postfix_str)
            for make in configuration.derivatives:
                cases.set_postfix_str("derivatives")
                found["derivatives"] += derivatives.measure_derivatives(make(), configuration.derivative_rounds)


def _save(found: dict[str, Any], target: Path) -> None:
    target.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
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
