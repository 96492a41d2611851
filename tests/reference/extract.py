"""Write the fixtures of this folder from a folder of full reference fits.

    python tests/reference/extract.py FOLDER

FOLDER holds reference.json (one entry per data set and model), datasets.json (column types and factor
levels) and data/*.csv, all written by R; README.md says how they were made. Only what the tests use is
kept, so the fixtures stay small enough to read in a diff: one entry per line.
"""

import csv
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

LMER_KEYS = (
    "id dataset formula method weights offset note n_obs n_groups npar m2ll AIC BIC sigma theta fixef se "
    "vcov varcorr is_singular ranef fitted_head resid_head"
).split()
INFERENCE_KEYS = (
    "wald_ci satterthwaite kenward_roger anova profile_ci_exact profile_ci_lme4 r2_nakagawa cluster_robust "
    "diagnostics ranova caic influence_group predict_new"
).split()
STRUCTURED = (
    "bodyweight_lme_reml machines_lme_pdcompsymm_reml machines_lme_pdident_ml machines_tmb_diag_reml "
    "oats_lme_reml orthodont_lme_pddiag_reml orthodont_lme_reml ovary_lme_reml sleepstudy_lme_reml"
).split()
STRUCTURED_KEYS = (
    "id dataset engine call method note n_obs n_groups npar m2ll AIC BIC sigma fixef se vcov random ranef "
    "fitted_head fitted_population_head"
).split()
RESIDUAL = (
    "bodyweight_lme_car1_reml bodyweight_lme_corgaus_nugget_reml bodyweight_lme_varexp_time_reml "
    "bodyweight_lme_varpower_time_reml chickweight_lme_car1_ml orthodont_gls_ar1_reml orthodont_gls_ar1h_reml "
    "orthodont_gls_cs_reml orthodont_gls_csh_reml orthodont_gls_toep_reml orthodont_gls_un_ml orthodont_gls_un_reml "
    "orthodont_lme_varident_reml orthodont_tmb_diag_ml orthodont_tmb_dispsex_ml orthodont_tmb_toep_ml "
    "ovary_gls_ar1_ml ovary_gls_arma11_ml ovary_lme_ar1_reml ovary_lme_arma11_reml ovary_tmb_ar1_ml "
    "sleepstudy_lme_ar1_reml sleepstudy_lme_int_ar1_ml sleepstudy_tmb_disp_ml"
).split()
RESIDUAL_KEYS = (
    "id dataset engine call method note m2ll sigma fixef se vcov cor_struct var_struct intervals "
    "normalized_resid_head pearson_resid_head fitted_head ranef"
).split()
# What a test must not demand of an entry.
WEAK = {
    "star_reml": "gradient of the deviance at theta is 2.8e-3: the deviance is good to 1e-5, theta to 1e-3",
    "early_reml": "correlation -1: Satterthwaite and Kenward-Roger are artefacts of the implementation",
    "dyestuff2_reml": "theta = 0: Satterthwaite and Kenward-Roger are artefacts of the implementation",
    "dyestuff2_ml": "theta = 0: Satterthwaite and Kenward-Roger are artefacts of the implementation",
}
# Larger data sets keep only the columns that a model names.
TRIM_ABOVE_ROWS = 1000


def main(folder: Path) -> None:
    """Write lmer.json, lmer_inference.json, structured.json, residual.json, lrt.json, datasets.json, data/*.csv.gz."""
    reference: dict[str, Any] = json.loads((folder / "reference.json").read_text())
    schema: dict[str, Any] = json.loads((folder / "datasets.json").read_text())
    lmer = {k: e for k, e in reference.items() if e["engine"] == "lme4::lmer"}
    structured = {k: reference[k] for k in STRUCTURED}
    tests = {k: e for k, e in reference.items() if k.startswith(("lrt_", "modcomp_"))}
    write_lines("lmer.json", {k: lmer_entry(e) for k, e in lmer.items()})
    inference = {k: {part: e[part] for part in INFERENCE_KEYS if part in e} for k, e in lmer.items()}
    write_lines("lmer_inference.json", inference)
    write_lines("structured.json", {k: named(e, STRUCTURED_KEYS) for k, e in structured.items()})
    residual = {k: named(reference[k], RESIDUAL_KEYS) for k in RESIDUAL}
    write_lines("residual.json", residual)
    write_lines("lrt.json", {k: without(e, ("r", "r_seconds")) for k, e in tests.items()})

    used = [*lmer.values(), *structured.values(), *tests.values()]
    kept: dict[str, Any] = {}
    for name in sorted({e["dataset"] for e in used}):
        entries = [e for e in used if e["dataset"] == name]
        kept[name] = copy_data(folder, name, schema[name], entries)
    write_lines("datasets.json", kept)


def lmer_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """One fit: what lme4 estimated, the R call, and what is weak about it."""
    arguments = [entry["formula"], entry["dataset"], f"REML = {str(entry['method'] == 'REML').upper()}"]
    arguments += [f"{key} = {entry[key]}" for key in ("weights", "offset") if entry[key]]
    return {
        **named(entry, LMER_KEYS),
        "call": f"lmer({', '.join(arguments)})",
        "weak": WEAK.get(entry["id"]),
    }


def named(entry: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The chosen parts; ``se`` keyed by name and ``vcov`` as rows in the order of ``fixef``."""
    chosen = {key: entry[key] for key in keys if key in entry}
    names = list(entry["fixef"])
    if not isinstance(chosen["se"], dict):  # R drops the name of a single one
        chosen["se"] = dict(zip(names, chosen["se"], strict=True))
    if list(chosen["se"]) != names or chosen["vcov"]["rows"] != names:
        raise ValueError(f"{entry['id']}: the fixed effects are not in one order")
    chosen["vcov"] = chosen["vcov"]["values"]
    return chosen


def without(entry: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in keys}


def copy_data(folder: Path, name: str, schema: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Compress one CSV, cut to the columns that its models name if it is long; return its schema."""
    with (folder / "data" / f"{name}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = header
    kinds = schema["columns"]
    if len(rows) > TRIM_ABOVE_ROWS:
        text = " ".join(str(e.get(k)) for e in entries for k in ("formula", "call", "weights", "offset"))
        words = set(re.findall(r"[\w.]+", text))
        columns = [c for c in header if c in words]
    where = [header.index(c) for c in columns]
    # mtime=0 and no file name: the same data give the same bytes.
    (HERE / "data").mkdir(exist_ok=True)
    with (
        (HERE / "data" / f"{name}.csv.gz").open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
    ):
        lines = [columns, *([row[i] for i in where] for row in rows)]
        packed.write("".join(",".join(map(quoted, line)) + "\n" for line in lines).encode())
    return {
        "source": schema["source"],
        "note": schema["note"],
        "rows": len(rows),
        "columns": {c: column_schema(kinds[c], {r[i] for r in rows}) for c, i in zip(columns, where, strict=True)},
    }


def quoted(field: str) -> str:
    if "," in field or '"' in field:
        raise ValueError(f"{field!r} would need quoting")
    return field


def column_schema(column: dict[str, Any], values: set[str]) -> dict[str, Any]:
    """Type and, for a factor, its levels in R's order; None stands for the values sorted as text."""
    if column["type"] != "factor":
        return {"type": column["type"]}
    levels = column["levels"]
    if levels is not None and (extra := values - {""} - set(levels)):
        raise ValueError(f"values that are no level: {sorted(extra)[:5]}")
    return {"type": "factor", "ordered": column["ordered"], "levels": levels}


def write_lines(name: str, entries: dict[str, Any]) -> None:
    """JSON with one entry per line, so that a diff shows which fit changed."""
    lines = [f"{json.dumps(key)}: {json.dumps(entry, separators=(',', ':'))}" for key, entry in entries.items()]
    (HERE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
