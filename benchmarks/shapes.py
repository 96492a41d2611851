"""Models of many shapes in one process: ``python -m benchmarks.shapes 600``.

The last line of the output is JSON: seconds in all, median and slowest; memory maps and resident MB after the first
half and at the end; whether JAX came in; versions.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

from .written import shape_frame, shapes


def n_maps() -> int:
    """Memory maps of this process, of which the kernel allows 65 530."""
    return len(Path("/proc/self/maps").read_text().splitlines())


def resident_mb() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024


def fit_shapes(n: int) -> dict[str, Any]:
    import lme_jax

    warnings.simplefilter("ignore")  # singular fits
    data, written = shape_frame(), shapes(n)
    times: list[float] = []
    memory: list[tuple[int, float]] = []
    for number, (formula, reml) in enumerate(written, 1):
        begin = time.perf_counter()
        str(lme_jax.lmer(formula, data, reml=reml).summary())
        times.append(time.perf_counter() - begin)
        if number in (n // 2, n):
            memory.append((n_maps(), resident_mb()))
    slowest = max(range(n), key=times.__getitem__)
    return {
        "fits": n,
        "total": sum(times),
        "median": median(times),
        "slowest": times[slowest],
        "slowest_formula": written[slowest][0],
        "maps": [maps for maps, _ in memory],
        "mb": [mb for _, mb in memory],
        "jax": "jax" in sys.modules,
    }


if __name__ == "__main__":
    print("\n" + json.dumps(fit_shapes(int(sys.argv[1]))))
