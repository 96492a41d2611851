"""Where the time of a warm fit by formula goes: ``python -m benchmarks.stages folder repeats``.

The last line of the output is JSON: seconds of the quickest of the repeats, for the whole and for formula → design,
compress, fit; the rest makes the results.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .problem import Problem, read_problem


def stages(problem: Problem, repeats: int) -> dict[str, float]:
    import lme_jax
    from lme_jax.data import ModelData
    from lme_jax.formula import design_from_formula

    frame, formula, reml = problem.frame(), problem.formula, problem.reml

    def compress(design: Any) -> Any:
        return ModelData.from_design(design, factor_in_names=True).compressed

    steps: dict[str, Callable[[Any], Any]] = {
        "design": lambda _: design_from_formula(formula, frame),
        "compress": compress,
        "fit": lambda data: lme_jax.fit(data, reml=reml),
        "whole": lambda _: lme_jax.lmer(formula, frame, reml=reml),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        made = None
        for name, step in steps.items():
            begin = time.perf_counter()
            made = step(made)
            times[name].append(time.perf_counter() - begin)
    least = {name: min(own[1:]) for name, own in times.items()}
    return least | {"results": least["whole"] - sum(least[name] for name in ("design", "compress", "fit"))}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, n = sys.argv[1:]
    print("\n" + json.dumps(stages(read_problem(Path(folder)), int(n))))
