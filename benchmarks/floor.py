"""The least that a fit must do: bytes read once, and multiplications; as milliseconds of this machine.

The machine's rates are measured in the same run, by a large copy and a large matrix product on the same threads.
What a fit needs beside (page faults, Python, scatter by group) is the gap to look into.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .problem import Problem, arrays

# Evaluations of deviance, gradient and Hessian that a search takes.
EVALUATIONS = 6


@dataclass(frozen=True)
class Rates:
    bytes_per_s: float
    flops_per_s: float


def machine_rates() -> Rates:
    source, target = np.ones(1 << 25), np.empty(1 << 25)
    square = np.ones((1_500, 1_500))

    def best(action: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            action()
            times.append(time.perf_counter() - begin)
        return min(times)

    return Rates(
        2 * source.nbytes / best(lambda: np.copyto(target, source)),
        2 * 1_500**3 / best(lambda: square @ square),
    )


def rates_of_a_fresh_process() -> Rates:
    """Of one that has this process's CPUs and numbers of threads from its start."""
    code = "from benchmarks.floor import machine_rates as m; r = m(); print(r.bytes_per_s, r.flops_per_s)"
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    return Rates(*map(float, asked.stdout.split()))


def floor(problem: Problem, rates: Rates) -> dict[str, float]:
    """MB, Mflop and milliseconds of one fit from arrays; of one response where the problem has many."""
    compress_bytes, compress_flops = _compress(problem)
    flops = EVALUATIONS * (_one_factor(problem) if len(problem.factors) == 1 else _several_factors(problem))
    if problem.responses is not None:
        # The design is shared: of compression only ZᵀY and XᵀY remain.
        a = arrays(problem)
        compress_bytes, compress_flops = a.y.nbytes, 2 * len(a.y) * (a.X.shape[1] + a.Z[0].shape[1])
    flops += compress_flops
    seconds = compress_bytes / rates.bytes_per_s + flops / rates.flops_per_s
    return {"mb": compress_bytes / 1e6, "mflop": flops / 1e6, "ms": 1e3 * seconds}


def _compress(problem: Problem) -> tuple[float, float]:
    """Rows are read once; [Z X y]ᵀ[Z X y] by level."""
    a = arrays(problem)
    q, p1 = sum(Z.shape[1] for Z in a.Z), a.X.shape[1] + 1
    return a.n_bytes, len(a.y) * (q * (q + 1) + 2 * q * p1 + p1 * (p1 + 1))


def _one_factor(problem: Problem) -> float:
    """Per level a q × q factorisation, T = W C, and the sums of U, U⊗U, T⊗T, U⊗TTᵀ that derivatives need.

    Levels of equal ZᵀZ count once: their responses rotate into a few.
    """
    a = arrays(problem)
    (Z,), (codes,), p1 = a.Z, a.codes, a.X.shape[1] + 1
    q = Z.shape[1]
    k = q * (q + 1) // 2
    gram = [np.bincount(codes, Z[:, i] * Z[:, j]).round(9) for i in range(q) for j in range(i + 1)]
    levels = np.unique(gram, axis=1).shape[1]
    return float(levels * (q**3 + 2 * q**2 * p1 + p1 * (p1 + 1) * q + k * (k + 1) * 2 + 2 * k * p1**2))


def _several_factors(problem: Problem) -> float:
    """Largest factor eliminated: cross products of the others' levels met in each of its levels, then a dense factor.

    Nested factors leave a diagonal block each, so that only the pairs count.
    """
    a = arrays(problem)
    order = sorted(range(len(a.codes)), key=lambda f: -a.levels[f])
    eliminated, kept = order[0], order[1:]
    met = np.zeros(a.levels[eliminated])
    for f in kept:
        pairs = np.unique(a.codes[eliminated].astype(np.int64) * a.levels[f] + a.codes[f])
        met += np.bincount(pairs // a.levels[f], minlength=len(met))
    dense = 0 if problem.nested else sum(a.levels[f] * a.Z[f].shape[1] for f in kept)
    return float((met**2).sum() + dense**3 / 3)
