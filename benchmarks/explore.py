"""One Python engine on formulas it has not seen: ``python -m benchmarks.explore folder engine passes begin``.

A fresh process imports, reads the data, fits each formula and prints its summary, then does the same again. ``begin``
is the ``time.time()`` at which the process was asked for. The last line of the output is JSON: seconds until Python
ran (``boot``), of the ``import``, of reading; until the first pass ended (``total``); per model those of each fit and
summary, Ψ/σ² of each term, or why the engine ``failed``.
"""

import contextlib
import importlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = {"lme_jax_formula": "lme_jax", "statsmodels": "statsmodels.formula.api"}


def explore(folder: Path, engine: str, passes: int, begin: float) -> dict[str, Any]:
    marks = [time.time()]
    importlib.import_module(PACKAGES.get(engine, engine))
    marks.append(time.time())
    from .written import read_exploration

    problems = read_exploration(folder).problems()
    marks.append(time.time())
    out: list[dict[str, Any]] = [{"fit": [], "summary": []} for _ in problems]
    kept: list[Any] = [None] * len(problems)
    for number in range(passes):
        for place, problem in enumerate(problems):
            if "failed" not in out[place]:
                kept[place] = _one(engine, problem, out[place])
        if number == 0:
            total = time.time() - begin
    for (own, fitted), found in zip(filter(None, kept), (o for o in out if "failed" not in o), strict=True):
        found["relative"] = [m.tolist() for m in own.relative(fitted)]
    boot, imported, read = marks[0] - begin, marks[1] - marks[0], marks[2] - marks[1]
    return {"boot": boot, "import": imported, "read": read, "total": total, "models": out}


def _one(engine: str, problem: Any, found: dict[str, Any]) -> Any:
    """Fit, print into the void, note the times; the adapter and its fit, or None where the engine cannot."""
    from .adapters import adapter

    try:
        own = adapter(engine, problem)
        begin = time.perf_counter()
        fitted = own.fit()
        middle = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            print(own.summary(fitted))
        found["summary"].append(time.perf_counter() - middle)
        found["fit"].append(middle - begin)
    except Exception as error:  # whatever another engine raises at a formula is its answer
        found["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return None
    return own, fitted


if __name__ == "__main__":
    where, name, n_passes, begun = sys.argv[1:]
    print("\n" + json.dumps(explore(Path(where), name, int(n_passes), float(begun))))
