"""The report's section "Ready at once": first and next beside each other."""

from statistics import median
from typing import Any

from .engines import ENGINES
from .evaluate import VOID_ABOVE
from .tables import digits, seconds, table

# Packages below it are counted together.
NAMED_S = 0.003


def section(run: dict[str, Any]) -> str:
    """Batches are of every run; the rest of those that measured it."""
    parts = [_batches(run)]
    if run["ready"] is not None:
        ready = run["ready"]
        parts = [_imports(ready), *map(_exploration, ready["explorations"]), _first_fits(run), *parts, _shapes(ready)]
    return "\n\n".join(["## Ready at once", *filter(None, parts)]) if any(parts) else ""


# ---------------------------------------------------------------- imports


def _imports(ready: dict[str, Any]) -> str:
    rows = [[row["program"], row["skipped"] or seconds(row["median"])] for row in ready["imports"]]
    found = ready["packages"]
    own = sorted(found["seconds"].items(), key=lambda item: -item[1])
    named = [f"{name} {seconds(s)}" for name, s in own if s >= NAMED_S]
    rest = sum(s for _, s in own if s < NAMED_S)
    text = (
        f"`import lme_jax` by `python -X importtime`: {seconds(sum(found['seconds'].values()))} for "
        f"{found['modules']} modules: {', '.join([*named, f'others {seconds(rest)}'])}."
    )
    return f"### Import\n\nWhole processes.\n\n{table(('program', 'seconds'), rows)}\n\n{text}"


# ---------------------------------------------------------------- exploration


def _exploration(found: dict[str, Any]) -> str:
    rows = []
    unit = next((row["total"] for row in found["rows"] if "total" in row), None)
    for row in found["rows"]:
        label = ENGINES[row["engine"]].label
        rows.append([label, *(_explored(row, found["models"], unit) if "total" in row else [row["skipped"]])])
    columns = "engine total × import fits summaries median slowest again behind fitted".split()
    text = (
        "A fresh process: start, import, read the data, fit each formula and print its summary (`total`); `median` and "
        "`slowest` formula, fit and summary; `again`: fits and summaries a second time, in the same process."
    )
    return f"### {found['title']}\n\n{text}\n\n{table(columns, rows)}" + _cannot(found)


def _explored(row: dict[str, Any], models: int, unit: Any) -> list[str]:
    each = [sum(parts) for parts in zip(row["first_fit"], row["first_summary"], strict=True)]
    again = sum(row["next_fit"]) + sum(row["next_summary"])
    times = (row["import"], sum(row["first_fit"]), sum(row["first_summary"]), median(each), max(each), again)
    late = sum(not b <= VOID_ABOVE for b in row["behind"])
    behind = f"{max(row['behind']):.0e}" + f" ({late} formulas)" * bool(late)
    complete = len(each) == models
    ratio = digits(row["total"] / unit) if complete else ""
    return [seconds(row["total"]), ratio, *map(seconds, times), behind, f"{len(each)} of {models}"]


def _cannot(found: dict[str, Any]) -> str:
    lines = []
    for row in found["rows"]:
        reasons: dict[str, int] = {}
        for reason in row.get("failed", {}).values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"* {ENGINES[row['engine']].label}, {n} formulas: {reason}" for reason, n in reasons.items()]
    return "\n\nWhat an engine could not fit:\n\n" + "\n".join(lines) if lines else ""


# ---------------------------------------------------------------- first fits and batches


def _first_fits(run: dict[str, Any]) -> str:
    rows = []
    for found in run["ready"]["stages"]:
        problem = next((p for p in run["problems"] if p["title"] == found["title"]), None)
        for row in problem["rows"] if problem else []:
            if row["skipped"] is None and row["following"] and not row["void"]:
                times = (median(row["first"]), median(row["following"]), row["warm"])
                rows.append([found["title"], ENGINES[row["engine"]].label, *map(seconds, times)])
    lines = [
        f"* {s['title']}: {seconds(s['whole'])} = design {seconds(s['design'])}, compress {seconds(s['compress'])}, "
        f"fit {seconds(s['fit'])}, results {seconds(s['results'])}"
        for s in run["ready"]["stages"]
        if "failed" not in s
    ]
    head = "### The first fit\n\nAfter the import; what is imported when it is needed is in `first`.\n\n"
    split = "\n\nA warm fit of lme_jax by its formula, the quickest of many:\n\n" + "\n".join(lines)
    return head + table(("problem", "engine", "first", "next", "warm"), rows) + split


def _batches(run: dict[str, Any]) -> str:
    rows = []
    for problem in run["problems"]:
        for row in problem["rows"]:
            if row["skipped"] is None and row["warm"] is not None and problem["responses"]:
                rows.append([problem["title"], ENGINES[row["engine"]].label, *_batch(row, problem["responses"])])
    text = (
        "All the responses: the first call of a process, the next one, and one once programs are compiled. Engines "
        "that fit one response after another are in `warm`; `≈`: of as many as the time allowed, extrapolated."
    )
    columns = ("problem", "engine", "first", "next", "warm")
    return f"### The first batch\n\n{text}\n\n{table(columns, rows)}" if rows else ""


def _batch(row: dict[str, Any], n: int) -> list[str]:
    at_once = bool(row["following"])
    first, following = (median(row[name]) if at_once else None for name in ("first", "following"))
    return [seconds(first), seconds(following), "≈ " * (row["fits"] < n) + seconds(n * row["warm"])]


# ---------------------------------------------------------------- many shapes


def _shapes(ready: dict[str, Any]) -> str:
    s = ready["shapes"]
    if "failed" in s:
        return f"### Many shapes of model\n\nFailed: {s['failed']}"
    cells = [s["fits"], seconds(s["total"]), seconds(s["median"]), seconds(s["slowest"])]
    cells += [" → ".join(str(n) for n in s["maps"]), " → ".join(f"{mb:.0f}" for mb in s["mb"])]
    jax = "JAX was imported." if s["jax"] else "JAX was not imported."
    text = (
        "25 fixed parts × 12 random parts × ML and REML on 300 rows, fit and summary, in one process; memory maps and "
        f"resident MB after the first half and at the end. {jax} The slowest: `{s['slowest_formula']}`."
    )
    columns = ("fits", "total", "median", "slowest", "maps", "MB")
    return f"### Many shapes of model\n\n{text}\n\n{table(columns, [cells])}"
