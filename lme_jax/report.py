"""The tables of a summary that every fitted model has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .data import ModelData


def facts_table(result: Any, data: ModelData) -> pd.DataFrame:
    """Criterion, sizes and how the fit ended, two facts a row; of a ``MixedLMResults`` and its data."""
    first = data.factors[0]
    groups = ", ".join(f"{f.name} {len(f.levels)}" for f in data.factors)
    right = [
        ("Observations:", result.nobs),
        ("Groups:", groups),
        (f"Rows per {first.name}:", f"{first.sizes.min()} to {first.sizes.max()}, mean {first.sizes.mean():.1f}"),
        ("Residual variance:", result.scale),
        ("Residual SD:", result.sigma),
    ]
    return beside_criterion(result, data, [], right)


def beside_criterion(
    result: Any, data: ModelData, more: Sequence[tuple[str, Any]], right: Sequence[tuple[str, Any]]
) -> pd.DataFrame:
    """The criterion and what is made of it, and ``more``, beside the facts ``right`` and how the fit ended."""
    criterion = "REML criterion" if result.reml else "−2 log L"
    left = [
        ("Dependent variable:", data.endog_name),
        ("Method:", result.method),
        (f"{criterion}:", result.deviance),
        ("Log-likelihood:", result.llf),
        ("AIC:", result.aic),
        ("BIC:", result.bic),
        *more,
    ]
    ended = ("Converged:", "yes, singular" if result.singular else "yes" if result.converged else "NO")
    return pd.DataFrame([a + b for a, b in zip(left, [*right, ended], strict=True)])


def components_table(varcorr: pd.DataFrame) -> pd.DataFrame:
    """Variances, standard deviations and correlations, from the rows of ``varcorr``."""
    variances = varcorr[varcorr.var2.isna()]
    out = pd.DataFrame(
        {"Effect": variances.var1.fillna(""), "Variance": variances.vcov, "SD": variances.sdcor},
    )
    out.index = pd.Index(list(variances.grp))
    correlations = varcorr[varcorr.var2.notna()]
    for var1 in correlations.var1.unique():
        column = []
        for grp, effect in zip(variances.grp, variances.var1, strict=True):
            hit = correlations[(correlations.grp == grp) & (correlations.var1 == var1) & (correlations.var2 == effect)]
            column.append(float(hit.sdcor.iloc[0]) if len(hit) else np.nan)
        out[f"Corr {var1}"] = column
    return out


def structures_table(parameters: pd.DataFrame) -> pd.DataFrame:
    """The parameters of the covariance structures with standard errors, from ``covariance_parameters``."""
    out = parameters[["parameter", "estimate", "se"]].set_axis(["Parameter", "Estimate", "Std.Err."], axis=1)
    out.index = pd.Index(list(parameters.grp))
    return out
