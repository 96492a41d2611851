"""Frames named as broom and broom.mixed name them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..data import ModelData
from ..formula.values import as_frame
from .marginal_means import Basis, MarginalMeans
from .reference_grid import unit_functions

ORDER = "effect group level term estimate std.error statistic df p.value conf.low conf.high".split()


def fixed_rows(names: list[str], basis: Basis, level: float, adjust: str) -> pd.DataFrame:
    """A row per fixed effect with t (or z) tests."""
    p = len(names)
    means = MarginalMeans(pd.DataFrame({"term": names}), unit_functions(p), basis, kind="contrast", level=level)
    table = means.table.drop(columns="p").assign(p=means.test(adjust=adjust)["p"])
    titles = {"se": "std.error", "p": "p.value", "lower": "conf.low", "upper": "conf.high"}
    return table.rename(columns=titles).assign(effect="fixed")


def stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other, with the columns that any of them has in broom's order."""
    columns = [name for name in ORDER if any(name in part for part in parts)]
    texts = {name: None for name in ("group", "level")}
    filled = [part.reindex(columns=columns).astype({n: object for n in texts if n in columns}) for part in parts]
    return pd.concat(filled, ignore_index=True)


def parameter_rows(varcorr: pd.DataFrame) -> pd.DataFrame:
    """A row per standard deviation and correlation: ``sd__x``, ``cor__x.z``, ``sd__Observation``."""
    terms = []
    for first, second in zip(varcorr.var1, varcorr.var2, strict=True):
        effect = "Observation" if pd.isna(first) else first
        terms.append(f"sd__{effect}" if pd.isna(second) else f"cor__{effect}.{second}")
    rows = {"effect": "ran_pars", "group": varcorr.grp.to_list(), "term": terms, "estimate": varcorr.sdcor.to_numpy()}
    return pd.DataFrame(rows)


def level_rows(ranef: Mapping[str, pd.DataFrame], cov: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row per level and effect: the conditional mean and standard deviation."""
    parts = []
    for factor, table in ranef.items():
        sd = np.sqrt(np.diagonal(cov[factor], axis1=1, axis2=2))
        m, q = table.shape
        part = {
            "effect": "ran_vals",
            "group": factor,
            "level": np.repeat(table.index.to_numpy(), q),
            "term": np.tile(table.columns.to_numpy(), m),
            "estimate": table.to_numpy().ravel(),
            "std.error": sd.ravel(),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def row_frame(data: ModelData, given: Any) -> pd.DataFrame:
    """The rows that were fitted: of the person's data frame, or the response and the groups."""
    if given is not None:
        return as_frame(given).loc[data.index].copy()
    columns: dict[str, Any] = {data.endog_name: data.y}
    columns |= {f.name: np.asarray(f.levels)[f.codes] for f in data.factors if f.membership is None}
    return pd.DataFrame(columns, index=data.index)
