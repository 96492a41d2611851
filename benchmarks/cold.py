"""Cold start: seconds of a process that imports, reads sleepstudy, fits it by a formula and prints the summary."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from .engines import ENGINES, missing
from .measure import last_words

_FORMULA = "Reaction ~ Days + (Days | Subject)"
_READ = "import pandas as pd; d = pd.read_csv('sleepstudy.csv')"
_LME_JAX = f"import lme_jax; {_READ}; print(lme_jax.lmer('{_FORMULA}', d).summary())"
PROGRAMS: dict[str, tuple[str, str]] = {
    "lme_jax, import only": ("lme_jax_core", "import lme_jax"),
    "lme_jax": ("lme_jax_core", _LME_JAX),
    "lme_jax, cached": (
        "lme_jax_core",
        _LME_JAX.replace("import lme_jax;", "import lme_jax; lme_jax.enable_compilation_cache('cache');"),
    ),
    "statsmodels": (
        "statsmodels",
        f"import statsmodels.formula.api as smf; {_READ}; "
        "print(smf.mixedlm('Reaction ~ Days', d, groups='Subject', re_formula='~Days').fit().summary())",
    ),
    "glmm": ("glmm", f"import glmm; {_READ}; print(glmm.fit(d, '{_FORMULA}').summary())"),
    "mixedlm": ("mixedlm", f"import mixedlm; {_READ}; print(mixedlm.lmer('{_FORMULA}', d).summary())"),
    "lme4": (
        "lme4",
        f"suppressMessages(library(lme4)); d <- read.csv('sleepstudy.csv'); print(summary(lmer({_FORMULA}, d)))",
    ),
}


def measure_cold_starts(rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row per program: median and all of its times; or why it was skipped."""
    import lme_jax

    rows: list[dict[str, Any]] = []
    for name, (engine, _) in PROGRAMS.items():
        rows.append({"program": name, "skipped": missing(ENGINES[engine]), "times": []})
    with tempfile.TemporaryDirectory() as folder:
        lme_jax.datasets.load("sleepstudy").to_csv(Path(folder) / "sleepstudy.csv", index=False)
        # One round that is not counted fills the compilation cache and the file system's.
        for number in range(rounds + 1):
            for row in rows:
                if row["skipped"] is None:
                    say(f"cold start, round {number}, {row['program']}")
                    try:
                        seconds = _run(row["program"], folder)
                    except subprocess.CalledProcessError as error:
                        row["skipped"] = f"failed: {last_words(error.stderr, error.returncode)}"
                        continue
                    row["times"] += [seconds] * (number > 0)
    for row in rows:
        row["median"] = median(row["times"]) if row["times"] else None
    return rows


def _run(name: str, folder: str) -> float:
    engine, text = PROGRAMS[name]
    r = ENGINES[engine].language == "r"
    command = ["Rscript", "--vanilla", "-e", text] if r else [sys.executable, "-W", "ignore", "-c", text]
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths}
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return time.perf_counter() - begin
