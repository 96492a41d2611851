"""One Markdown table from a run's JSON, and a plot of the scaling sweeps."""

from pathlib import Path
from statistics import median
from typing import Any

from . import report_ready
from .engines import ENGINES, own_name
from .evaluate import VOID_ABOVE
from .problem import spaced
from .tables import digits, seconds, table

REFERENCES = ("lme_jax_formula", "lme_jax_many", "lme_jax_core")
# Below it the compiler's own memory is most of what is measured.
LARGE_MB = 100
LEGEND = """\
`first`: median over fresh processes of the first call, compilation included; `warm`: median of the later fits, the
engines taking turns; marked `*` where the first took so long that it is the only one. `×`: warm time as a multiple of
the reference, marked `1`: lme_jax by its formula where the others take formulas, in one call where there are many
responses (`warm` is then per response). `behind`: the deviance at the engine's estimates, evaluated by lme_jax, above
the best engine's; more than 1e-4 behind, a time is void; of many responses the worst of up to ten that are checked,
and how many are more than 1e-4 behind. `extra MB`: peak of resident memory above that with the data loaded; a
compiler's own is in it."""


def markdown(run: dict[str, Any]) -> str:
    """The whole report."""
    parts = [f"# Benchmarks: {run['configuration']} set", _machine(run), LEGEND, _fits(run), _floors(run)]
    parts += [_against(run), report_ready.section(run), _derivatives(run), _sweeps(run), _skipped(run), _settings(run)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _machine(run: dict[str, Any]) -> str:
    m = run["machine"]
    return (
        f"{run['date']}; {m['cpu']}, {m['threads']} threads, {m['memory_gb']:.0f} GB; a copy moves "
        f"{m['bytes_per_s'] / 1e9:.1f} GB/s, a matrix product {m['flops_per_s'] / 1e9:.0f} Gflop/s; load at the start "
        f"{m['load']:.1f}. The run took {run['wall_s'] / 60:.0f} min."
    )


def _ran(problem: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in problem["rows"] if row["skipped"] is None]


def reference(problem: dict[str, Any]) -> dict[str, Any] | None:
    """The row that the problem's ratios are to."""
    rows = {row["engine"]: row for row in _ran(problem) if not row["void"]}
    return next((rows[name] for name in REFERENCES if name in rows), None)


def _fits(run: dict[str, Any]) -> str:
    rows = []
    for problem in run["problems"]:
        if problem["sweep"] is None:
            unit = reference(problem)
            rows += [_fit_row(problem, row, unit, n == 0) for n, row in enumerate(_ran(problem))]
    return table(("problem", "engine", "first", "warm", "×", "behind", "extra MB"), rows)


def _fit_row(problem: dict[str, Any], row: dict[str, Any], unit: dict[str, Any] | None, named: bool) -> list[str]:
    ratio = ""
    if row["warm"] is not None and unit is not None:
        ratio = "1" if row is unit else digits(row["warm"] / unit["warm"])
    first = "" if row["void"] else seconds(median(row["first"]))
    warm = "void" if row["void"] else seconds(row["warm"]) + "*" * (not row["times"])
    title = problem["title"] if named else ""
    return [title, ENGINES[row["engine"]].label, first, warm, ratio, _behind(row["behind"]), digits(row["extra_mb"])]


def _behind(behind: list[float]) -> str:
    if not behind:
        return ""
    worst, late = max(behind), sum(not b <= VOID_ABOVE for b in behind)
    of_many = f" ({late} of {len(behind)})" if late and len(behind) > 1 else ""
    return f"{max(worst, 0.0):.0e}{of_many}"


def _floors(run: dict[str, Any]) -> str:
    rows = []
    for problem in run["problems"]:
        own = {row["engine"]: row["warm"] for row in _ran(problem)}
        warm = own.get("lme_jax_core") or own.get("lme_jax_many")
        if problem["sweep"] is None and warm is not None:
            f = problem["floor"]
            cells = (digits(f["mb"]), digits(f["mflop"]), seconds(f["ms"] / 1e3), seconds(warm))
            rows.append([problem["title"], *cells, digits(1e3 * warm / f["ms"])])
    head = "## Floor\n\nBytes read once and multiplications of six evaluations, at the rates above; from arrays.\n\n"
    return head + table(("problem", "MB", "Mflop", "floor", "lme_jax", "×"), rows) if rows else ""


def _against(run: dict[str, Any]) -> str:
    """This checkout beside another one; nothing where there is none."""
    rows = []
    for problem in run["problems"]:
        ran = {row["engine"]: row for row in _ran(problem)}
        for name, other in ran.items():
            own = ran.get(own_name(name))
            if own is not None and own is not other and _timed(own) and _timed(other):
                label = ENGINES[own["engine"]].label
                rows.append([problem["title"], label, *_ratios(own, other, "first"), *_ratios(own, other, "times")])
    what = "Medians, and this one's as a multiple of the other's; `least`: of the quickest."
    columns = ("problem", "engine", "first", "other", "×", "least", "later", "other", "×", "least")
    return f"## Against another checkout\n\n{what}\n\n{table(columns, rows)}" if rows else ""


def _ratios(own: dict[str, Any], other: dict[str, Any], what: str) -> list[str]:
    mine, theirs = (row[what] or row["first"] for row in (own, other))
    ratios = (median(mine) / median(theirs), min(mine) / min(theirs))
    return [seconds(median(mine)), seconds(median(theirs)), *(f"{ratio:.2f}" for ratio in ratios)]


def _derivatives(run: dict[str, Any]) -> str:
    rows = [
        [d["problem"], d["what"], seconds(d["value"]), seconds(d["value_and_gradient"]), f"{d['ratio']:.2f}"]
        for d in run["derivatives"]
    ]
    head = "## Derivatives\n\nA compiled value beside the value with its gradient, taking turns.\n\n"
    return head + table(("problem", "function", "value", "value and gradient", "ratio"), rows) if rows else ""


def _sweeps(run: dict[str, Any]) -> str:
    rows = []
    for problem in run["problems"]:
        if problem["sweep"] is not None:
            own = {row["engine"]: row for row in _ran(problem)}
            core: Any = own.get("lme_jax_core")
            other: Any = own.get("glmm")
            cells = [problem["sweep"], spaced(problem["size"])]
            cells += [seconds(row["warm"]) if row else "" for row in (core, other)]
            cells.append(digits(other["warm"] / core["warm"]) if _timed(core) and _timed(other) else "")
            large = core and core["input_mb"] > LARGE_MB
            cells.append(f"{core['extra_mb'] / core['input_mb']:.2f}" if large else "")
            rows.append(cells)
    head = "## Scaling\n\nFrom arrays (lme_jax) and from a data frame (glmm); memory beyond the inputs, in inputs.\n\n"
    return head + table(("sweep", "size", "lme_jax", "glmm", "ratio", "memory"), rows) if rows else ""


def _timed(row: Any) -> bool:
    return bool(row and row["warm"])


def _skipped(run: dict[str, Any]) -> str:
    lines = [
        f"* {problem['name']}: {ENGINES[row['engine']].label}, {row['skipped']}"
        for problem in run["problems"]
        for row in problem["rows"]
        if row["skipped"] is not None
    ]
    return "## Skipped\n\n" + "\n".join(lines or ["Nothing."])


def _settings(run: dict[str, Any]) -> str:
    used = dict.fromkeys(row["engine"] for problem in run["problems"] for row in _ran(problem))
    versions: dict[str, str] = {}
    for problem in run["problems"]:
        for row in _ran(problem):
            versions |= row["versions"]
    lines = [f"* {ENGINES[name].label}: {ENGINES[name].settings}" for name in used]
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return "## Engines\n\n" + "\n".join(lines) + f"\n\nVersions: {named}. Commit {run['commit']}."


def plot(run: dict[str, Any], path: Path) -> None:
    """Warm seconds over the size of each sweep, a panel per sweep."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sweeps = list(dict.fromkeys(p["sweep"] for p in run["problems"] if p["sweep"] is not None))
    figure, panels = plt.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.6), squeeze=False, layout="constrained")
    for panel, sweep in zip(panels[0], sweeps, strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for problem in run["problems"]:
            for row in _ran(problem):
                if problem["sweep"] == sweep and row["warm"] is not None:
                    curves.setdefault(row["engine"], []).append((problem["size"], row["warm"]))
        for engine, points in curves.items():
            panel.loglog(*zip(*sorted(points), strict=True), marker="o", label=ENGINES[engine].label)
        panel.set(xlabel=sweep, ylabel="warm fit, s")
        panel.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
