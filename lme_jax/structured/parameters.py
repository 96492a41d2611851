"""The parameters of a residual structure as people read them, with intervals on the scales where they are symmetric."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.special

from ..core.residual.inference import interval
from ..core.residual.terms import Parameter
from ..formula.residual import ResidualTerm
from ..inference.wald import check_alpha

COLUMNS = ["term", "group", "parameter", "estimate", "se", "lower", "upper", "note"]
_BOUNDARY = "on the boundary of what it can be: no normal approximation holds"
_UNTOLD = "the data do not tell it, or the deviance is not convex there"


def parameter_table(parameters: Sequence[Parameter], term: ResidualTerm, alpha: float) -> pd.DataFrame:
    """A row per parameter: term, group, parameter, estimate, se, lower, upper, note."""
    rows = []
    quantile = float(scipy.special.ndtri(1.0 - check_alpha(alpha) / 2.0))
    for parameter in parameters:
        with np.errstate(over="ignore", invalid="ignore"):
            lower, upper = interval(parameter, quantile)
        note = "" if np.isfinite(parameter.se) else _BOUNDARY if parameter.boundary else _UNTOLD
        where = (term_text(parameter, term), group_text(parameter, term), label(parameter, term))
        rows.append((*where, parameter.estimate, parameter.se, lower, upper, note))
    return pd.DataFrame(rows, columns=COLUMNS)


def term_text(parameter: Parameter, term: ResidualTerm) -> str:
    """The structure that it belongs to, as it was spelled."""
    if parameter.kind == "sigma":
        return "Residual"
    if parameter.term >= 0:
        return term.spelling.variances[parameter.term].text
    return "Residual" if term.spelling.correlation is None else term.spelling.correlation.text


def group_text(parameter: Parameter, term: ResidualTerm) -> str:
    """The arm or the stratum whose own it is, or nothing."""
    if parameter.group < 0:
        return ""
    levels = term.arms if parameter.term < 0 else term.rows.variances[parameter.term].levels
    return str(levels[parameter.group])


def label(parameter: Parameter, term: ResidualTerm) -> str:
    """What it is, with the labels of visits and strata."""
    kind, index = parameter.kind, parameter.index
    if parameter.term >= 0:
        return _of_variance(parameter, term)
    if kind in ("sigma", "sd") and not index:
        return "SD"
    if kind == "ratio":
        return f"SD ratio to {term.arms[0]}" if term.arms else "SD ratio"
    words = {"sd": "SD", "correlation": "Corr", "variance": "Var", "covariance": "Cov"}
    if kind == "correlation" and len(index) == 1:
        return f"Corr lag {index[0]}"
    if kind == "rho" and index:
        return f"Corr {term.visits[index[0] - 1]}, {term.visits[index[0]]}"
    if kind in words:
        return f"{words[kind]} {', '.join(str(term.visits[t]) for t in sorted(set(index)))}"
    return " ".join([kind, *map(str, index)])


def _of_variance(parameter: Parameter, term: ResidualTerm) -> str:
    rows = term.rows.variances[parameter.term]
    if parameter.kind == "sd":
        return "SD"
    if parameter.kind == "ratio":
        return f"SD ratio to {rows.levels[0]}"
    return {"expon": "exponent", "const": "constant"}.get(parameter.kind, parameter.kind)
