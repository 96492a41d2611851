"""Arrays or pandas objects to a `Design`: the door of statsmodels' ``MixedLM(endog, exog, groups, exog_re)``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.core.structures import StructureLike, make_block
from lme_jax.errors import DataError, UnsupportedError
from lme_jax.formula.design import (
    Design,
    MissingRows,
    NewDesign,
    RandomTerm,
    check_design,
    check_missing_argument,
    reduce_rank,
)
from lme_jax.formula.values import factorize

RE_NAMES: tuple[str, ...] = ("Group",)


@dataclass(frozen=True)
class ArrayState:
    """Arrays carry no recipe: new data must come as arrays too."""

    def rebuild(self, frame: pd.DataFrame, random: bool, needed: Sequence[bool] | None = None) -> NewDesign:
        raise UnsupportedError("this model was built from arrays, not from a formula: pass exog as an array")


def design_from_arrays(
    endog: Any,
    exog: Any,
    groups: Any,
    exog_re: Any = None,
    *,
    weights: Any = None,
    missing: str = "none",
    structure: StructureLike = "unstructured",
) -> Design:
    """Check and label the arrays of a model with one grouping factor.

    Parameters
    ----------
    endog : (n,); exog : (n, p); groups : (n,); exog_re : (n, q), a column of ones if None.
        pandas names are kept; unnamed columns are called "const", "x1", … as statsmodels does.
    weights : (n,), optional
    missing : {"none", "drop", "raise"}
        "none" and "raise" refuse missing or infinite values, "drop" leaves their rows out.
    structure : covariance of the q effects, a name in ``core.structures.REGISTRY`` or (name, what it needs).
    """
    check_missing_argument(missing, ("none", "drop", "raise"))
    if exog is None:
        raise DataError("exog is None: pass the (n, p) fixed-effects design, a column of ones at least")
    y = _vector(endog, "endog")
    X, exog_names = _matrix(exog, "exog", len(y))
    if exog_re is None:
        Z, re_names = np.ones((len(y), 1)), RE_NAMES
    else:
        Z, re_names = _matrix(exog_re, "exog_re", len(y))
        re_names = _random_names(Z, re_names)
    if len(groups) != len(y):
        raise DataError(f"groups has {len(groups)} rows, endog has {len(y)}: give one label per observation")
    grouping = factorize(groups, "groups")
    w = None if weights is None else _vector(weights, "weights")
    index = endog.index if isinstance(endog, pd.Series) else pd.RangeIndex(len(y))

    gaps = MissingRows(len(y), index)
    named = {"endog": y, "exog": X, "exog_re": Z, "weights": w, "groups": grouping}
    for label, value in named.items():
        gaps.check(label, value)
    rows = gaps.settle("drop" if missing == "drop" else "raise")
    if rows is not None:
        y, X, Z, index = y[rows], X[rows], Z[rows], index[rows]
        w = None if w is None else w[rows]
        grouping = grouping.take(rows)
    grouping = grouping.without_unused_levels()
    X, kept_names, dropped, _ = reduce_rank(X, exog_names)
    block = make_block(structure, len(re_names))
    codes = grouping.codes.astype(np.int32)
    term = RandomTerm("Group", re_names, grouping.levels, codes, Z, block.structure, detail=block.detail)
    endog_name = str(endog.name) if isinstance(endog, pd.Series) and endog.name is not None else "y"
    check_design(y, endog_name, w, X, [term])
    n_dropped = 0 if rows is None else int(gaps.n - len(rows))
    return Design(y, X, (term,), w, None, endog_name, kept_names, dropped, index, n_dropped, "", ArrayState())


def _vector(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be numbers: {error}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name} must be one column, got shape {array.shape}")
    if len(array) == 0:
        raise DataError(f"{name} is empty: there are no rows to fit")
    return array


def _matrix(values: Any, name: str, n: int) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be numbers; code factors as columns first: {error}") from error
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or len(array) != n:
        raise DataError(f"{name} has shape {array.shape}; it needs one row for each of the {n} observations")
    if isinstance(values, pd.DataFrame):
        return array, tuple(map(str, values.columns))
    if isinstance(values, pd.Series):
        return array, (str(values.name),)
    constant = array.shape[1] > 0 and len(array) > 0 and bool(np.all(array[:, 0] == array[0, 0]))
    names = [f"x{j + (0 if constant else 1)}" for j in range(array.shape[1])]
    if constant:
        names[0] = "const"
    return array, tuple(names)


def _random_names(Z: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """A constant unnamed column is the group's own intercept: statsmodels calls it "Group"."""
    return tuple("Group" if name == "const" and np.all(Z[:, j] == 1) else name for j, name in enumerate(names))
