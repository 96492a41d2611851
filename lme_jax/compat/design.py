"""What ``MixedLM`` does with arrays and labels before a fit: statsmodels' names, components given as matrices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data import ModelData
from ..errors import DataError, UnsupportedError, warn_caller
from ..formula import Design, RandomTerm, design_from_arrays
from ..formula.values import factorize
from .params import VCSpec


def is_plain(endog: Any, exog: Any) -> bool:
    """Whether the model came without labels, so that people index its results by position."""
    return not isinstance(endog, (pd.Series, pd.DataFrame)) and not isinstance(exog, (pd.Series, pd.DataFrame))


def own_array(array: Any) -> Any:
    """A copy of a plain array: the model keeps its own; ``ModelData`` copies what pandas lends."""
    return array.copy() if isinstance(array, np.ndarray) else array


def with_statsmodels_names(design: Design, exog_re: Any) -> Design:
    """Unnamed random-effects columns are x_re1, x_re2, … as in statsmodels."""
    if exog_re is None or isinstance(exog_re, (pd.Series, pd.DataFrame)):
        return design
    first = design.terms[0]
    columns = tuple(f"x_re{j + 1}" for j in range(len(first.columns)))
    return dataclasses.replace(design, terms=(dataclasses.replace(first, columns=columns), *design.terms[1:]))


def group_codes_of(design: Design, codes: np.ndarray, n: int) -> np.ndarray:
    """Codes of the groups of the rows that were kept."""
    if len(design.y) == n:
        return codes
    # The levels that occur are in sorted order in both codings.
    kept = design.terms[0].codes
    used = np.unique(codes[codes >= 0])
    return used[kept] if len(used) == len(design.terms[0].levels) else kept


def design_with_components(
    endog: Any, exog: Any, groups: Any, exog_re: Any, exog_vc: Any, weights: Any, missing: str
) -> tuple[Design, np.ndarray, np.ndarray, list[str | None]]:
    n = len(np.asarray(endog))
    grouping = factorize(groups, "groups")
    if len(grouping.codes) != n:
        raise DataError(f"groups has {len(grouping.codes)} rows, endog has {n}: give one label per observation")
    # Without correlated effects the groups only delimit the matrices: any valid grouping serves the checks.
    stand_in = groups if exog_re is not None else np.arange(n) // 2
    design = design_from_arrays(endog, exog, stand_in, exog_re, weights=weights, missing=missing)
    if len(design.y) != n:
        raise UnsupportedError("missing='drop' cannot drop rows of the matrices in exog_vc: leave them out first")
    used, codes = np.unique(grouping.codes, return_inverse=True)
    levels = np.asarray(grouping.levels)[used]
    rows = [np.flatnonzero(codes == g) for g in range(len(levels))] if len(levels) < 64 else _rows_of(codes)
    if not isinstance(exog_vc, VCSpec) and not hasattr(exog_vc, "mats"):
        warn_caller(
            "Using deprecated variance components format: pass a VCSpec(names, colnames, mats) as exog_vc.",
            FutureWarning,
        )
        exog_vc = VCSpec.from_dict(exog_vc, list(levels))
    elif not isinstance(exog_vc, VCSpec):
        exog_vc = VCSpec(exog_vc.names, exog_vc.colnames, exog_vc.mats)
    components = exog_vc.terms("Group", list(levels), rows)
    design = with_statsmodels_names(design, exog_re)
    terms = (*(design.terms if exog_re is not None else ()), *components)
    names: list[str | None] = [*([None] if exog_re is not None else []), *exog_vc.names]
    return dataclasses.replace(design, terms=terms), levels, codes.ravel(), names


def _rows_of(codes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def with_component_names(data: ModelData, terms: Sequence[tuple[str | None, RandomTerm]]) -> ModelData:
    """Covariance names with the components' own names."""
    component = {id(term): name for name, term in terms}
    names: list[str] = []
    at = 0
    for term in data.terms:
        size = term.block.n_theta
        own = component.get(id(term))
        names += [f"{own} Var"] if own is not None else list(data.covariance_names[at : at + size])
        at += size
    return dataclasses.replace(data, covariance_names=tuple(names))


def with_diagonal(data: ModelData, term: RandomTerm) -> ModelData:
    """The same data with independent effects in one term."""
    design = data.design
    new = dataclasses.replace(term, structure="diagonal")
    design = dataclasses.replace(design, terms=tuple(new if t is term else t for t in design.terms))
    out = ModelData.from_design(design, factor_in_names=False)
    variances = [n for n in data.covariance_names if not n.endswith(" Cov")]
    return dataclasses.replace(out, covariance_names=tuple(variances))


def without_columns(design: Design, names: Sequence[str] | None) -> Design:
    if not names:
        return design
    unknown = [name for name in names if name not in design.exog_names]
    if unknown:
        raise DataError(f"drop_cols names {unknown}, which are no columns; there are {list(design.exog_names)}")
    keep = np.array([name not in names for name in design.exog_names])
    state: Any = design.state
    return dataclasses.replace(
        design,
        X=np.ascontiguousarray(design.X[:, keep]),
        exog_names=tuple(np.array(design.exog_names, dtype=object)[keep]),
        state=dataclasses.replace(state, keep=state.keep[keep]),
    )


def group_matrix(term: RandomTerm, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Column names and design of one component in one group."""
    cells, local = np.unique(term.codes[rows], return_inverse=True)
    q = term.Z.shape[1]
    out = np.zeros((len(rows), len(cells) * q))
    for j in range(q):
        out[np.arange(len(rows)), local.ravel() * q + j] = term.Z[rows, j]
    labels = [str(term.levels[c]) for c in cells]
    names = [f"{label}[{c}]" for label in labels for c in term.columns] if q > 1 else labels
    return names, out
