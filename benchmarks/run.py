"""Run engines on problems, interleaved, and print one table: ``python benchmarks/run.py [--full] [name …]``.

Every engine runs in a process of its own with the threads it is given; rounds of all engines alternate, so that
a change of the machine's load meets all of them. A time whose deviance is 1e-4 above the best one is void.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from problems import FULL, SMALL, Problem

HERE = Path(__file__).parent
PYTHON_ENGINES = ("lme_jax_core", "lme_jax_formula", "glmm", "statsmodels")
VOID_ABOVE = 1e-4


def write(problem: Problem, folder: Path) -> None:
    spec = {
        "names": list(problem.columns),
        "formula": problem.formula,
        "response": problem.response,
        "fixed": problem.fixed,
        "random": problem.random,
        "reml": problem.reml,
    }
    (folder / "problem.json").write_text(json.dumps(spec))
    for name, column in problem.columns.items():
        column.tofile(folder / f"{name}.f64")


def command(engine: str, problem: Problem, folder: Path, repeats: int) -> list[str] | None:
    if engine != "lme4":
        return [sys.executable, str(HERE / "worker.py"), engine, str(folder), str(repeats)]
    if shutil.which("Rscript") is None:
        return None
    names = ",".join(problem.columns)
    flag = "1" if problem.reml else "0"
    worker = [str(HERE / "worker.R"), str(folder), str(repeats), problem.formula, flag, names]
    return ["Rscript", "--vanilla", *worker, ",".join(problem.factors)]


def measure(engine: str, problem: Problem, folder: Path, repeats: int, threads: int, limit: float) -> dict:
    call = command(engine, problem, folder, repeats)
    if call is None or engine in problem.slow:
        return {"skipped": "not installed" if call is None else "would take minutes"}
    pinned = {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=limit, env=os.environ | pinned)
    except subprocess.TimeoutExpired:
        return {"skipped": f"over {limit:.0f} s"}
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or ["failed"])[-1][:80]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def versions() -> dict[str, str]:
    out = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in ("lme-jax", "jax", "numpy", "scipy", "statsmodels", "glmm"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    if shutil.which("Rscript"):
        ask = "cat(as.character(packageVersion('lme4')), extSoftVersion()[['BLAS']])"
        done = subprocess.run(["Rscript", "--vanilla", "-e", ask], capture_output=True, text=True)
        out["lme4, BLAS"] = done.stdout.split("/")[0] + " " + Path(done.stdout.split(" ")[-1]).name
    return out


def summarise(rounds: list[dict]) -> dict:
    good = [r for r in rounds if "skipped" not in r]
    if not good:
        return rounds[0]
    return {
        "first": statistics.median(r["first"] for r in good),
        "warm": statistics.median(t for r in good for t in r["warm"]),
        "deviance": good[0]["deviance"],
        "peak_mb": max(r["peak_mb"] for r in good),
    }


def table(results: dict[str, dict[str, dict]]) -> str:
    lines = ["| problem | engine | first, s | warm, s | ratio to ours | peak MB | −2 log L above best |"]
    lines.append("|---|---|---|---|---|---|---|")
    for problem, engines in results.items():
        best = min(r["deviance"] for r in engines.values() if "deviance" in r)
        base = engines["lme_jax_core"].get("warm")
        for engine, r in engines.items():
            if "skipped" in r:
                lines.append(f"| {problem} | {engine} | | {r['skipped']} | | | |")
                continue
            above = r["deviance"] - best
            void = " (void)" if not above <= VOID_ABOVE else ""
            ratio = f"{r['warm'] / base:.2f}" if base else ""
            lines.append(
                f"| {problem} | {engine} | {r['first']:.3f} | {r['warm']:.4f}{void} | {ratio} "
                f"| {r['peak_mb']:.0f} | {above:.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="problems; all of the small set if none")
    parser.add_argument("--full", action="store_true", help="the large problems too")
    parser.add_argument("--engines", default=",".join((*PYTHON_ENGINES, "lme4")))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="warm fits per round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds per process")
    parser.add_argument("--out", type=Path, default=None, help="where to write the JSON")
    options = parser.parse_args()
    available = FULL if options.full or options.names else SMALL
    results: dict[str, dict[str, dict]] = {}
    for name in options.names or available:
        problem = available[name]()
        with tempfile.TemporaryDirectory() as folder:
            write(problem, Path(folder))
            rounds: dict[str, list[dict]] = {engine: [] for engine in options.engines.split(",")}
            for _ in range(options.rounds):
                for engine, found in rounds.items():
                    if found and "skipped" in found[0]:
                        continue
                    limits = (options.repeats, options.threads, options.limit)
                    found.append(measure(engine, problem, Path(folder), *limits))
        results[name] = {engine: summarise(found) for engine, found in rounds.items()}
        print(table({name: results[name]}), flush=True)
    print(f"\n{options.threads} threads; {versions()}\n\n{table(results)}")
    if options.out:
        options.out.write_text(json.dumps({"versions": versions(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
