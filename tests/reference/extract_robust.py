"""Write robust.json from a folder of inference figures: limits, cluster-robust covariances, influence, R², ICC.

    python tests/reference/extract_robust.py FOLDER

FOLDER holds inference.json, made by R 4.2.2 with lme4 1.1-31, clubSandwich 0.5.8 and performance 0.10.2 at polished
optima. Of a model `m` (REML) or `mML` with data `d`, in R:

    profile   : with D(v) the deviance minimised over everything else, uniroot(function(v) D(v) - Dmin - qchisq(.95, 1))
    robust    : V <- clubSandwich::vcovCR(m, cluster, type); coef_test(m, V, "Satterthwaite"); Wald_test(m, L, V, "HTZ")
    group     : update(m, subset = g != level), with theta kept and refitted
    rows      : hatvalues(m); rstudent(m); cooks.distance(m); residuals(m, "pearson", scaled = TRUE)
    r2        : Nakagawa & Schielzeth with Johnson's mean random variance; performance::icc(m)
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    models = json.loads((folder / "inference.json").read_text())["models"]
    lines = [f"{json.dumps(k)}: {json.dumps(rounded(entry(e)), separators=(',', ':'))}" for k, e in models.items()]
    (HERE / "robust.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def entry(e: dict[str, Any]) -> dict[str, Any]:
    out = {key: e[key] for key in ("dataset", "formula", "weights", "dropped_rows")}
    for method in ("profile_ml", "profile_reml"):
        out[method] = {name(k, l): bounds(l) for k, l in e[method]["value"]["limits"].items() if l["kind"] != "theta"}
    out["robust"] = robust(e["cluster_robust"])
    out["rows"] = e["influence_obs"]["value"]
    out["r2"] = e["r2_icc"].get("formula", {}).get("value")
    if "value" in e["influence_group"].get("full_refit", {}):
        parts = e["influence_group"]
        out["group"] = {
            "factor": parts["group"],
            "kept": table(parts["theta_fixed"]),
            "full": table(parts["full_refit"]),
        }
    return out


def name(key: str, limit: dict[str, Any]) -> str:
    """The package's label of a parameter."""
    group, coef = limit["group"], limit["coef"]
    if limit["kind"] == "sigma":
        return "Residual SD"
    if limit["kind"] == "sd":
        return f"{group} SD {coef}"
    return f"{group} Corr {coef[1]}, {coef[0]}" if limit["kind"] == "cor" else key


def bounds(limit: dict[str, Any]) -> list[Any]:
    """Estimate, limits, and whether each is the bound of the range."""
    return [limit[key] for key in ("estimate", "lower", "upper", "lower_at_bound", "upper_at_bound")]


def robust(e: dict[str, Any]) -> dict[str, Any] | None:
    """Of every type the covariance, the Satterthwaite df, and the HTZ test of L."""
    if "value" not in e:
        return None
    out: dict[str, Any] = {"cluster": e["cluster"], "L": e["L"]}
    for kind, parts in e["value"].items():
        tests, vcov = parts["coef_test"], parts["vcov"]
        column = tests["cols"].index("df_Satt")
        out[kind] = {"vcov": vcov["values"] if isinstance(vcov, dict) else [[vcov]]}
        out[kind]["df"] = [row[column] for row in tests["values"]]
        test = next(row for row in parts["wald_test_L"]["values"] if row[0] == "HTZ")
        out[kind]["HTZ"] = dict(zip(parts["wald_test_L"]["cols"][1:], test[1:], strict=True))
    return out


def table(part: dict[str, Any]) -> dict[str, Any]:
    return {key: part["value"][key] for key in ("rows", "cols", "values")}


def rounded(value: Any) -> Any:
    """Twelve digits: what the tests can use."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
