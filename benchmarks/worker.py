"""One Python engine on one problem in a process of its own: a cold fit, warm fits, the deviance, the memory."""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np


def load(folder: Path) -> dict:
    spec = json.loads((folder / "problem.json").read_text())
    spec["columns"] = {name: np.fromfile(folder / f"{name}.f64") for name in spec["names"]}
    return spec


def lme_jax_core(spec):
    """From arrays: compression and fit."""
    from lme_jax.core import compression, covariance, crossed_data, fit

    columns, n = spec["columns"], len(spec["columns"][spec["response"]])
    one = np.ones(n)
    X = np.column_stack([one, *(columns[c] for c in spec["fixed"])])
    Zs = [np.column_stack([one if c == "1" else columns[c] for c in cols]) for cols, _ in spec["random"]]
    codes = [columns[factor].astype(np.int32) for _, factor in spec["random"]]
    y = columns[spec["response"]]

    def run():
        levels = [int(c.max()) + 1 for c in codes]
        if len(Zs) == 1:
            data = compression.compress(y, X, Zs[0], codes[0], n_groups=levels[0])
        else:
            templates = tuple(covariance.make_template("unstructured", Z.shape[1]) for Z in Zs)
            data = crossed_data.compress_crossed(y, X, Zs, codes, levels, templates)
        return float(fit.fit(data, reml=spec["reml"]).deviance)

    return run


def _frame(spec):
    import pandas as pd

    frame = pd.DataFrame(spec["columns"])
    for factor in {factor for _, factor in spec["random"]}:
        frame[factor] = frame[factor].astype(int).astype("category")
    return frame


def lme_jax_formula(spec):
    """From a data frame and a formula, results object included."""
    import lme_jax

    frame = _frame(spec)
    return lambda: lme_jax.lmer(spec["formula"], frame, reml=spec["reml"]).deviance


def glmm(spec):
    """The Rust engine ``glmm``, from a data frame and a formula, without its degrees of freedom."""
    import glmm

    frame = _frame(spec)

    def run():
        fitted = glmm.fit(frame, spec["formula"], reml=spec["reml"], satterthwaite=False)
        return -2.0 * fitted.loglik

    return run


def statsmodels(spec):
    """``smf.mixedlm``; one grouping factor."""
    import statsmodels.formula.api as smf

    if len(spec["random"]) > 1:
        raise NotImplementedError("several grouping factors")
    columns, factor = spec["random"][0]
    frame = _frame(spec)
    fixed = f"{spec['response']} ~ {' + '.join(['1', *spec['fixed']])}"
    re_formula = "~" + "+".join(columns)

    def run():
        model = smf.mixedlm(fixed, frame, groups=factor, re_formula=re_formula)
        return -2.0 * model.fit(reml=spec["reml"]).llf

    return run


ENGINES = {f.__name__: f for f in (lme_jax_core, lme_jax_formula, glmm, statsmodels)}


def main() -> None:
    engine, folder, repeats = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    spec = load(folder)
    run = ENGINES[engine](spec)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        deviance = run()
        times.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"first": times[0], "warm": times[1:], "deviance": deviance, "peak_mb": peak}))


if __name__ == "__main__":
    main()
