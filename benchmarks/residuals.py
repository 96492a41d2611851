"""Structured residual errors beside nlme and glmmTMB.

    python -m benchmarks.residuals          # a few sizes; --full: all, with the peers as far as they get in ten minutes

Every fit is a process of its own, engines in turns, one thread. ``first`` and ``warm`` leave out the import and the
reading of the data. −2 log L (REML) stands beside the time: an engine that stops early is seen. Writes
``results/residuals.md`` and ``.json``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
MINUTES = 600


# ---------------------------------------------------------------- data


def trial(patients: int, visits: int) -> pd.DataFrame:
    """A trial of two arms: y by visit, visit × arm, baseline; 10 % of the visits missing, and dropout."""
    rng = np.random.default_rng(7)
    T = np.arange(visits)
    cov = 0.6 ** np.abs(T[:, None] - T) * np.sqrt(np.outer(1.0 + 0.2 * T, 1.0 + 0.2 * T))
    arm, base = rng.integers(0, 2, patients), rng.normal(size=patients)
    y = base[:, None] + 0.2 * arm[:, None] * T + rng.normal(size=(patients, visits)) @ np.linalg.cholesky(cov).T
    seen = (rng.uniform(size=y.shape) > 0.1) & (rng.geometric(0.03, size=(patients, 1)) + 1 > T)
    seen[:, 0] |= ~seen.any(1)
    who, when = np.nonzero(seen)
    return pd.DataFrame({"id": who, "visit": when, "arm": arm[who], "base": base[who], "y": y[seen]})


def series(subjects: int, visits: int = 20) -> pd.DataFrame:
    """AR(1) residuals beside a random intercept; 10 % of the rows missing."""
    rng = np.random.default_rng(8)
    e = rng.normal(size=(subjects, visits))
    for t in range(1, visits):
        e[:, t] = 0.6 * e[:, t - 1] + 0.8 * e[:, t]
    x = rng.normal(size=e.shape)
    y = 1.0 + 0.5 * x + 0.7 * rng.normal(size=(subjects, 1)) + e
    who, when = np.nonzero(rng.uniform(size=e.shape) > 0.1)
    return pd.DataFrame({"id": who, "visit": when, "x": x[who, when], "y": y[who, when]})


# ---------------------------------------------------------------- engines

PYTHON = """
import sys, time, json
import numpy as np, pandas as pd
import lme_jax as lme
d = pd.read_csv(sys.argv[1])
{prepare}
fit = lambda: {fit}
times = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter(); m = fit(); times.append(time.perf_counter() - start)
print(json.dumps(dict(times=times, deviance=float(m.deviance))))
"""
R = """
suppressMessages({{library(nlme); if ({needs_tmb}) library(glmmTMB)}})
a <- commandArgs(TRUE); d <- read.csv(a[1])
{prepare}
times <- c()
for (i in seq_len(as.integer(a[2]))) {{
  start <- proc.time()[[3]]; m <- {fit}; times <- c(times, proc.time()[[3]] - start)
}}
cat(sprintf('{{"times": [%s], "deviance": %.9f}}', paste(times, collapse = ","), -2 * as.numeric(logLik(m))))
"""
_FACTORS = "d$visit <- factor(d$visit); d$arm <- factor(d$arm); d$id <- factor(d$id); d$t <- as.integer(d$visit)"


class Engine(NamedTuple):
    language: str
    fit: str
    prepare: str


MMRM = {
    "lme_jax": Engine(
        "python",
        'lme.mmrm("y ~ arm * visit + base + us(visit | id)", d)',
        'd = d.astype({"visit": "category", "arm": "category"})',
    ),
    "nlme::gls": Engine(
        "r",
        "gls(y ~ arm * visit + base, d, correlation = corSymm(form = ~ t | id),"
        " weights = varIdent(form = ~ 1 | visit))",
        _FACTORS,
    ),
    "glmmTMB": Engine(
        "r", "glmmTMB(y ~ arm * visit + base + us(0 + visit | id), d, dispformula = ~ 0, REML = TRUE)", _FACTORS
    ),
}
AR1 = {
    "lme_jax": Engine("python", 'lme.lmer("y ~ x + (1 | id)", d, residual="ar1(visit | id)")', ""),
    "nlme::lme": Engine(
        "r", "lme(y ~ x, d, random = ~ 1 | id, correlation = corAR1(form = ~ visit | id))", "d$id <- factor(d$id)"
    ),
    "glmmTMB": Engine(
        "r",
        "glmmTMB(y ~ x + (1 | id) + ar1(0 + v | id), d, dispformula = ~ 0, REML = TRUE)",
        "d$id <- factor(d$id); d$v <- factor(d$visit)",
    ),
}


class Case(NamedTuple):
    title: str
    data: Callable[[], pd.DataFrame]
    engines: dict[str, Engine]
    skip: tuple[str, ...] = ()


def _mmrm(patients: int, visits: int, skip: tuple[str, ...] = ()) -> Case:
    return Case(f"MMRM us, {patients:,} patients × {visits} visits", lambda: trial(patients, visits), MMRM, skip)


def _ar1(subjects: int, skip: tuple[str, ...] = ()) -> Case:
    return Case(f"AR(1) + random intercept, {subjects * 18:,} rows", lambda: series(subjects), AR1, skip)


PEERS = ("nlme::gls", "nlme::lme", "glmmTMB")
SMALL = (_mmrm(200, 4), _mmrm(2_000, 4), _mmrm(100_000, 8, PEERS), _ar1(500), _ar1(50_000, PEERS))
FULL = (
    *(_mmrm(n, T) for n in (200, 2_000) for T in (4, 8, 10)),
    *(_mmrm(100_000, T, PEERS) for T in (4, 8, 10)),
    *(_ar1(n, skip) for n, skip in ((500, ()), (5_000, ("glmmTMB",)), (50_000, PEERS))),
)


# ---------------------------------------------------------------- running


def run_one(engine: Engine, data: Path, times: int) -> dict[str, Any]:
    """Times of fits in a fresh process, and −2 log L; what went wrong in their place."""
    template = PYTHON if engine.language == "python" else R
    script = template.format(fit=engine.fit, prepare=engine.prepare, needs_tmb=str("glmmTMB" in engine.fit).upper())
    command = [sys.executable, "-c", script] if engine.language == "python" else ["Rscript", "--vanilla", "-e", script]
    try:
        done = subprocess.run(
            [*command, str(data), str(times)],
            capture_output=True,
            text=True,
            timeout=MINUTES,
            env=os.environ | ONE_THREAD,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {MINUTES // 60} minutes"}
    except FileNotFoundError:
        return {"failed": "not installed"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:120] if done.stderr.strip() else "crashed"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_case(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Every engine in ``rounds`` processes, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        case.data().to_csv(path, index=False)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in case.engines if name not in case.skip}
        for _ in range(rounds):
            for name, runs in found.items():
                slow = bool(runs) and "times" in runs[-1] and runs[-1]["times"][0] > 20.0
                if not (slow or (runs and "failed" in runs[-1])):
                    runs.append(run_one(case.engines[name], path, 5 if name == "lme_jax" else 1))
    return [_row(case.title, name, runs) for name, runs in found.items()]


def _row(title: str, name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    good = [run for run in runs if "times" in run]
    if not good:
        return {"problem": title, "engine": name, "failed": runs[-1]["failed"]}
    warm = [t for run in good for t in run["times"][1:]]
    return {
        "problem": title,
        "engine": name,
        "first": float(np.median([run["times"][0] for run in good])),
        "warm": float(np.median(warm)) if warm else None,
        "deviance": good[-1]["deviance"],
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The report."""
    lines = [
        "# Structured residual errors",
        "",
        f"{time.strftime('%Y-%m-%d')}; one thread, load {os.getloadavg()[0]:.1f}. `above`: −2 log L above",
        "the lowest of the case's engines. Peers that are absent were not run at that size.",
        "",
        "| problem | engine | first fit | warm | × lme_jax's first | above |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for title in dict.fromkeys(row["problem"] for row in rows):
        own = [row for row in rows if row["problem"] == title]
        best = min((row["deviance"] for row in own if "deviance" in row), default=np.nan)
        base = next((row["first"] for row in own if row["engine"] == "lme_jax" and "first" in row), np.nan)
        for row in own:
            if "failed" in row:
                lines.append(f"| {title} | {row['engine']} | {row['failed']} | | | |")
                continue
            warm = "" if row["warm"] is None else _seconds(row["warm"])
            lines.append(
                f"| {title} | {row['engine']} | {_seconds(row['first'])} | {warm} | {row['first'] / base:.3g} | "
                f"{row['deviance'] - best:.0e} |"
            )
    return "\n".join(lines) + "\n"


def _seconds(t: float) -> str:
    return f"{t:.3g} s" if t >= 1 else f"{1e3 * t:.3g} ms"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the large sizes too")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="beginning of titles")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in FULL if chosen.full else SMALL:
        if chosen.only is None or case.title.startswith(chosen.only):
            rows += run_case(case, chosen.rounds)
            print(as_markdown(rows[-len(case.engines) :]).splitlines()[-1], file=sys.stderr)
    name = "residuals" if chosen.only is None else "residuals.partial"
    (chosen.folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
    (chosen.folder / f"{name}.md").write_text(as_markdown(rows))


if __name__ == "__main__":
    main()
