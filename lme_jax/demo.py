"""Two fits on packaged data and what they cost: ``python -m lme_jax.demo``."""

import subprocess
import sys
import time
from collections.abc import Callable

import lme_jax as lme
from lme_jax import datasets

# Importing this module has imported the package, so the import is timed in a fresh interpreter.
_TIME_THE_IMPORT = """
from time import perf_counter
start = perf_counter()
import lme_jax
print(perf_counter() - start)
"""


def _timed(fit: Callable[[], lme.MixedLMResults]) -> tuple[lme.MixedLMResults, float]:
    start = time.perf_counter()
    result = fit()
    return result, time.perf_counter() - start


def _import_seconds() -> float:
    run = subprocess.run(
        [sys.executable, "-c", _TIME_THE_IMPORT], capture_output=True, text=True, check=True, timeout=300
    )
    return float(run.stdout.split()[-1])


def main() -> None:
    """Fit sleepstudy as in lme4 and dietox as in statsmodels; print both summaries and a table of times."""
    sleepstudy = datasets.load("sleepstudy")
    dietox = datasets.load("dietox")
    fits: dict[str, Callable[[], lme.MixedLMResults]] = {
        'lmer("Reaction ~ Days + (Days | Subject)", sleepstudy)': lambda: lme.lmer(
            "Reaction ~ Days + (Days | Subject)", sleepstudy
        ),
        'mixedlm("Weight ~ Time", dietox, groups="Pig").fit()': lambda: lme.mixedlm(
            "Weight ~ Time", dietox, groups="Pig"
        ).fit(),
    }
    times = [("import lme_jax", _import_seconds())]
    for title, fit in fits.items():
        result, first = _timed(fit)
        _, second = _timed(fit)
        door = title.partition("(")[0]
        times += [(f"{door}: first fit", first), (f"{door}: second fit (warm)", second)]
        print(f"\n>>> {title}\n{result.summary()}")
    width = max(len(what) for what, _ in times)
    print("\nWhat took how long on this machine")
    for what, seconds in times:
        print(f"{what:<{width}}  {1e3 * seconds:9.1f} ms")


if __name__ == "__main__":
    main()
