"""The fixed effects of many fits with degrees of freedom: together where lanes share a design, else one by one."""

from typing import Any

import numpy as np
import pandas as pd

from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..inference.adjustment import ordered
from ..inference.degrees import read_method
from ..inference.lane_degrees import MOST_EFFECTS, lane_degrees, level_sums
from ..inference.linear_tests import t_pvalue, t_quantile

# Lanes whose arrays are held at once.
LANES = 4096


def shared_degrees(fit: Fit, data: ModelData, reml: bool, which: np.ndarray) -> np.ndarray:
    """Satterthwaite's degrees of freedom (len(which), p) of every fixed effect, of lanes of one design."""
    p = data.X.shape[1]
    sums, dof = level_sums(data), float(data.n_rows - (p if reml else 0))
    out = np.empty((len(which), p))
    for first in range(0, len(which), LANES):
        some = which[first : first + LANES]
        part = Fit(**{name: np.asarray(getattr(fit, name))[some] for name in vars(fit)})
        L = np.broadcast_to(np.eye(p), (len(some), p, p))
        out[first : first + LANES] = lane_degrees(part, sums, data.template, L, dof)
    return out


def shares_design(data: ModelData) -> bool:
    """Whether the lanes' degrees of freedom can be had together."""
    return data.has_one_factor or sum(f.n_independent * len(f.columns) for f in data.factors) <= MOST_EFFECTS


def table(many: Any, ddf: str | None, level: float, p_adjust: str) -> pd.DataFrame:
    """What ``ManyFits.coefficients`` returns."""
    ordered(np.zeros(0), p_adjust)
    method = read_method(ddf) if ddf is not None else "satterthwaite" if many.reml else "normal"
    estimate, se = many.fe_params.to_numpy().copy(), many.bse_fe.to_numpy().copy()
    df = np.full(estimate.shape, np.nan)
    good = np.isin(many.fit.status, [s for s in Status if s.is_optimum])
    whole = good & np.isfinite(estimate).all(1) & many.complete
    if method == "normal":
        df[good] = np.inf
    elif method == "satterthwaite" and whole.any() and shares_design(many._data):
        df[whole] = shared_degrees(many.fit, many._data, many.reml, np.flatnonzero(whole))
        good &= ~whole
    for number in np.flatnonzero(good).tolist() if method != "normal" else []:
        own = many.one(many.names[number]).coefficients(method)
        places = [list(many.fe_params.columns).index(name) for name in own.index]
        se[number, places], df[number, places] = own["se"], own["df"]
    return _frame(many, estimate, se, df, level, p_adjust)


def _frame(
    many: Any, estimate: np.ndarray, se: np.ndarray, df: np.ndarray, level: float, p_adjust: str
) -> pd.DataFrame:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = estimate / se
    p = _adjusted(t_pvalue(t, df), p_adjust)
    half = t_quantile(0.5 + 0.5 * level, df) * se
    terms = many.fe_params.columns.to_numpy()
    columns = dict(estimate=estimate, se=se, df=df, statistic=t, p=p, lower=estimate - half, upper=estimate + half)
    labels: dict[str, Any] = {
        "response": np.repeat(many.names.to_numpy(), len(terms)),
        "term": np.tile(terms, len(many)),
    }
    return pd.DataFrame(labels | {name: values.ravel() for name, values in columns.items()})


def _adjusted(p: np.ndarray, adjust: str) -> np.ndarray:
    """p-values (R, p) adjusted over the fits, term by term; NaN do not count."""
    out = p.copy()
    for column in out.T:
        known = np.isfinite(column)
        column[known] = ordered(column[known], adjust)
    return out
