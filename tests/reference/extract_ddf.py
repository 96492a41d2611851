"""Write ddf.json from a folder of full reference fits: degrees of freedom, analyses of variance, model comparisons.

    python tests/reference/extract_ddf.py FOLDER

FOLDER holds inference.json: per model R's figures at a polished REML optimum. The R lines behind them, `m` the polished
lmer fit and `mt` its lmerTest view:

    exact_coef(o, names(fixef(m)))    # coef: Satterthwaite and Kenward-Roger from analytic derivatives, dense, by block
    anova(mt, type = 3, ddf = "Kenward-Roger"); satt_test(o, L); kr_test(o, L)    # anova: at lmerTest's hypotheses L
    car::Anova(update(m, contrasts = "contr.sum"), type = 3)                      # chisq_sum
    nlme::lme(…)$fixDF$X                                                          # containment
    lmerTest::contestMD(mt, L, ddf = …)                                           # joint, by the exact functions
    logLik(m); -2 * l + 2 * k + 2 * k * (k + 1) / (n - k - 1)                     # information
    anova(m0, m1)                                                                 # random, fixed: both polished
    RLRsim::exactRLRT(m, nsim = 1e6)                                              # rlrt; lrt_exact: exactLRT
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = ("F_exact", "DenDF_exact", "p_exact")
INEXACT = ("F value", "DenDF", "Pr(>F)")


def main(folder: Path) -> None:
    models = json.loads((folder / "inference.json").read_text())["models"]
    lines = [f"{json.dumps(k)}: {json.dumps(entry(e), separators=(',', ':'))}" for k, e in models.items()]
    (HERE / "ddf.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def entry(e: dict[str, Any]) -> dict[str, Any]:
    tests, cars, fit = e["coef_tests"], e.get("car_anova") or {}, e["fit"]
    out = {
        **{key: e[key] for key in ("dataset", "formula", "weights", "dropped_rows")},
        "theta": fit["theta"],
        "singular": fit["is_singular"],
        "coef": {
            ddf: {c: columns(value(tests[f"exact_{ddf}"]), c) for c in ("se", "df", "p", "lower")}
            for ddf in ("satterthwaite", "kenward_roger")
            if value(tests[f"exact_{ddf}"])
        },
        "anova": {key: table(value(v)) for key, v in e["anova"].items() if key[:5] in ("satte", "kenwa") and value(v)},
        "containment": columns(value(e["containment"])["coef"], "df") if value(e.get("containment") or {}) else None,
        "joint": {k[6:]: v["value"] for k, v in e["joint_test"].items() if k.startswith("exact_") and value(v)},
        "L": e["joint_test"].get("L"),
        "information": {k: value(e["information"][k]) for k in ("reml", "ml")},
        "caic": {k: value(e["information"].get(f"greven_kneib_{k}", {})) for k in ("reml", "ml")},
        "random": {k[11:]: value(e[k]) for k in ("lrt_random_reml", "lrt_random_ml")},
        "fixed": value(e["lrt_fixed"]),
        "rlrt": value(e["rlrt"]),
        "lrt_exact": value(e["lrt_exact"]),
    }
    if value(cars.get("chisq_III_contr_sum", {})):
        whole = value(cars["chisq_III_contr_sum"])
        out["chisq_sum"] = dict(zip(whole["rows"], columns(whole, "Chisq"), strict=True))
    return out


def value(figure: dict[str, Any]) -> Any:
    return figure.get("value")


def columns(whole: dict[str, Any], name: str) -> list[float]:
    return [row[whole["cols"].index(name)] for row in whole["values"]]


def table(whole: dict[str, Any]) -> dict[str, list[float]]:
    """Term → F, DenDF, p: exact ones, or lmerTest's at singular fits."""
    names = COLUMNS if COLUMNS[0] in whole["cols"] else INEXACT
    return {r: list(v) for r, *v in zip(whole["rows"], *(columns(whole, c) for c in names), strict=True)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
