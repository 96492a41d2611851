"""Predictions for the rows that were fitted and for new ones, with the joint uncertainty of β̂ and b̂.

Standard errors hold the covariance parameters at their estimates, as lme4's, nlme's and SAS's do by default.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.special

from ..core.henderson import MixedModelEquations
from ..core.records import Fit, RandomEffects
from ..data import Factor, ModelData
from ..errors import DataError
from ..formula import design_new_data
from ..formula.known import membership_rows
from ..formula.values import as_frame, column
from .wald import check_alpha

RandomChoice = bool | str | Iterable[str]


class FactorRows(NamedTuple):
    """One factor's part of the rows to predict.

    Attributes
    ----------
    Z : (n, q), zero where the effect is left out or not known; missing : (n,) a needed value is missing.
    levels : (n, m) CSR weights of the levels.
    left_out : (n, q) effect values whose variance belongs to the prediction intervals instead.
    relative : (n,) variance of the rows' combination of levels, relative to one independent level.
    """

    Z: np.ndarray
    missing: np.ndarray
    levels: Any
    left_out: np.ndarray
    relative: np.ndarray


class PredictionRows(NamedTuple):
    """Everything that a prediction needs of its rows; missing values were set to 0 and are marked."""

    X: np.ndarray
    offset: np.ndarray
    missing: np.ndarray
    weights: np.ndarray
    factors: tuple[FactorRows, ...]
    labels: pd.Index


def chosen_terms(data: ModelData, random_effects: RandomChoice) -> list[bool]:
    """Which of ``data.terms`` a prediction uses: all, none, or those named by factor or by term label."""
    if isinstance(random_effects, bool | np.bool_):
        return [bool(random_effects)] * len(data.terms)
    if not isinstance(random_effects, Iterable):
        raise DataError(f"random_effects={random_effects!r} must be True, False, or names of factors or terms.")
    wanted = {random_effects} if isinstance(random_effects, str) else set(random_effects)
    # A factor's first term bears the factor's own name, which means all of its terms.
    names = [{label, term.factor} for label, term in zip(data.term_labels, data.terms, strict=True)]
    unknown = wanted - set().union(*names)
    if unknown:
        raise DataError(f"random_effects names {sorted(unknown)}; the terms are {list(data.term_labels)}.")
    return [bool(name & wanted) for name in names]


def prediction_rows(
    data: ModelData,
    newdata: Any,
    random_effects: RandomChoice,
    *,
    allow_new_levels: bool = False,
    left_out: bool = False,
    offset: Any = None,
    weights: Any = None,
    memberships: Mapping[str, Any] | None = None,
) -> PredictionRows:
    """The design of the rows to predict; ``left_out`` also builds the terms that are not used.

    Raises
    ------
    DataError
        For levels that the training data did not have, unless allowed, and for an offset or memberships
        that only the person can give.
    """
    use = chosen_terms(data, random_effects)
    if newdata is None:
        return _fitted_rows(data, use)
    frame = as_frame(newdata)
    order = [next(i for i, t in enumerate(data.terms) if t is term) for term in data.design.terms]
    new = design_new_data(data.design, frame, random=left_out or any(use), needed=[use[i] for i in order])
    n = len(new.X)
    known = _offset(data, new.offset, offset, n)
    parts = []
    if new.terms:
        where = {i: position for position, i in enumerate(order)}
        at = 0
        for factor in data.factors:
            mine = range(at, at + len(factor.template))
            at = mine.stop
            terms = [new.terms[where[i]] for i in mine]
            group = new.groups[where[mine[0]]] if new.groups else None
            Z = np.concatenate([Z for Z, _ in terms], axis=1)
            columns = np.repeat([use[i] for i in mine], [len(data.terms[i].columns) for i in mine])
            shared = (memberships or {}).get(factor.name)
            parts.append(_new_factor_rows(factor, Z, terms[0][1], group, columns, shared, allow_new_levels))
    missing = np.isnan(new.X).any(axis=1) | np.isnan(known)
    X, known = np.nan_to_num(new.X), np.nan_to_num(known)
    return PredictionRows(X, known, missing, _weights(weights, frame), tuple(parts), new.index)


def _fitted_rows(data: ModelData, use: Sequence[bool]) -> PredictionRows:
    parts, at = [], 0
    n = data.n_rows
    for factor in data.factors:
        mine = range(at, at + len(factor.template))
        at = mine.stop
        columns = np.repeat([use[i] for i in mine], [len(data.terms[i].columns) for i in mine])
        rows = factor.rows
        relative = _relative(factor, rows)
        nothing = np.zeros(n, bool)
        parts.append(FactorRows(factor.Z * columns, nothing, rows, factor.Z * ~columns, relative))
    weights = np.ones(n) if data.design.weights is None else data.design.weights
    return PredictionRows(data.X, data.offset, np.zeros(n, bool), weights, tuple(parts), data.index)


def _offset(data: ModelData, built: np.ndarray | None, given: Any, n: int) -> np.ndarray:
    if given is not None:
        value = _per_row(given, n, "offset")
        return value if built is None else built + value
    if built is None and data.design.offset is not None:
        raise DataError(
            "the model was fitted with an offset given as an array, so that of the new rows is unknown: "
            "pass offset=, one number per new row (0 for none)."
        )
    return np.zeros(n) if built is None else built


def _weights(given: Any, frame: pd.DataFrame) -> np.ndarray:
    if given is None:
        return np.ones(len(frame))
    values = _per_row(column(frame, given) if isinstance(given, str) else given, len(frame), "weights")
    if not (values > 0).all():
        rows = np.flatnonzero(~(values > 0))[:5].tolist()
        raise DataError(f"weights must be > 0; those of the new rows {rows} (from 0) are not.")
    return values


def _per_row(given: Any, n: int, what: str) -> np.ndarray:
    """One real number per new row, or one for all."""
    try:
        if np.iscomplexobj(given):
            raise ValueError("they are complex")
        values = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be numbers, one per new row or one for all: {error}") from error
    if values.shape not in ((), (n,)):
        raise DataError(f"{what} has shape {values.shape}; give one number per new row ({n}), or one for all.")
    return np.broadcast_to(values, (n,))


def _new_factor_rows(
    factor: Factor,
    Z: np.ndarray,
    codes: np.ndarray,
    group: Any,
    columns: np.ndarray,
    shared: Any,
    allow_new_levels: bool,
) -> FactorRows:
    n = len(Z)
    if factor.membership is not None:
        rows, new = _shared_rows(factor, shared, n, bool(columns.any()))
        absent = np.zeros(n, bool)
    else:
        rows, absent = factor.rows_of(codes), np.zeros(n, bool)
        new = codes < 0
        if group is not None:
            absent, new = group.codes < 0, (codes < 0) & (group.codes >= 0)
    if columns.any() and new.any() and not allow_new_levels and group is not None:
        labels = [str(level) for level in np.asarray(group.levels)[np.unique(group.codes[new])]]
        shown = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
        raise DataError(
            f"the grouping factor {factor.name!r} has levels in the new data that the training data did not: "
            f"{shown}. Pass allow_new_levels=True to give them effects of 0, or leave the factor out of random_effects."
        )
    missing = (np.isnan(Z) & columns).any(axis=1) | (absent & columns.any())
    used = columns & ~new[:, None]
    return FactorRows(
        np.where(used, np.nan_to_num(Z), 0.0), missing, rows, np.where(used, 0.0, Z), _relative(factor, rows)
    )


def _shared_rows(factor: Factor, shared: Any, n: int, needed: bool) -> tuple[Any, np.ndarray]:
    if shared is None and needed:
        raise DataError(
            f"the rows of {factor.name!r} belong to several levels: pass memberships={{{factor.name!r}: weights}} "
            "for the new rows, or leave the factor out of random_effects."
        )
    if shared is None:
        return factor.rows_of(np.full(n, -1)), np.ones(n, bool)
    return membership_rows(shared, factor.name, n, factor.levels)[0], np.zeros(n, bool)


def _relative(factor: Factor, rows: Any) -> np.ndarray:
    """‖row · root‖² of the rows' levels; 1 where they are not known."""
    spread = rows if factor.root is None else rows @ factor.root
    squares = spread.multiply(spread).sum(1) if factor.root is None else (spread**2).sum(1)
    empty = np.diff(rows.indptr) == 0
    return np.where(empty, 1.0, np.asarray(squares).ravel())


def related_effects(data: ModelData, fitted: Fit, equations: MixedModelEquations) -> tuple[RandomEffects, ...]:
    """BLUPs and their covariances where levels are shared or related: Henderson's equations, one solve each."""
    residual = data.y - data.offset - data.X @ np.asarray(fitted.beta)
    sigma2 = float(fitted.sigma) ** 2
    out = []
    for j, (factor, u) in enumerate(zip(data.factors, equations.effects(residual), strict=True)):
        m, q = len(factor.levels), len(factor.columns)
        levels = factor.rows_of(np.repeat(np.arange(m), q))
        columns = [scipy.sparse.csr_matrix((m * q, width)) for width in equations.widths]
        columns[j] = factor.spread(np.tile(np.eye(q), (m, 1)), levels)
        fixed, full = equations.joint(np.zeros((m * q, data.X.shape[1])), equations.spherical(columns), q)
        b = u if factor.root is None else factor.root @ u
        out.append(RandomEffects(b, sigma2 * fixed, sigma2 * full))
    return tuple(out)


def predict_mean(data: ModelData, fitted: Fit, b: Collection[np.ndarray], rows: PredictionRows) -> np.ndarray:
    """Xβ̂ + Σ Zb̂ + offset (n,) with b (levels, q) per factor; NaN where a value is missing."""
    mean = rows.X @ np.asarray(fitted.beta) + rows.offset
    missing = rows.missing.copy()
    for part, effects in zip(rows.factors, b, strict=False):
        mean = mean + np.einsum("nq,nq->n", part.Z, part.levels @ effects)
        missing |= part.missing
    return np.where(missing, np.nan, mean)


def prediction_table(
    data: ModelData,
    fitted: Fit,
    b: Collection[np.ndarray],
    rows: PredictionRows,
    level: float,
    equations: MixedModelEquations,
) -> pd.DataFrame:
    """Mean, standard error and intervals of each row; see ``MixedLMResults.prediction``."""
    if not 0.0 < level < 1.0:
        raise DataError(f"level={level} is not a probability: pass a number between 0 and 1, such as 0.95.")
    sigma2 = float(fitted.sigma) ** 2
    mean = predict_mean(data, fitted, b, rows)
    effects = [factor.spread(part.Z, part.levels) for factor, part in zip(data.factors, rows.factors, strict=True)]
    se2 = sigma2 * equations.variances(rows.X, equations.spherical(effects))
    outside = sigma2 / rows.weights
    L = np.asarray(fitted.relative_factor)
    for span, part in zip(data.factor_slices, rows.factors, strict=True):
        root = part.left_out @ L[span, span]
        outside = outside + sigma2 * part.relative * (root**2).sum(1)
    return interval_table(mean, se2, outside, level).set_index(rows.labels)


def interval_table(mean: np.ndarray, se2: np.ndarray, outside: np.ndarray, level: float) -> pd.DataFrame:
    """Means (n,) with normal intervals: se2 the variance of their errors, ``outside`` that of responses about them."""
    se = np.where(np.isnan(mean), np.nan, np.sqrt(se2))
    half = scipy.special.ndtri(0.5 + level / 2.0)
    total = np.sqrt(se2 + outside)
    columns = {
        "mean": mean,
        "se": se,
        "ci_lower": mean - half * se,
        "ci_upper": mean + half * se,
        "pi_lower": mean - half * total,
        "pi_upper": mean + half * total,
    }
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Prediction:
    """Predicted means with uncertainty.

    Attributes
    ----------
    predicted_mean, se_mean, se_obs : (n,), response units.
    """

    predicted_mean: np.ndarray
    se_mean: np.ndarray
    se_obs: np.ndarray
    distribution: Any
    index: pd.Index | None

    def conf_int(self, obs: bool = False, alpha: float = 0.05) -> np.ndarray:
        """(n, 2) limits of the mean, or with ``obs`` of a new observation."""
        half = self.distribution.ppf(1.0 - check_alpha(alpha) / 2.0) * (self.se_obs if obs else self.se_mean)
        return np.column_stack([self.predicted_mean - half, self.predicted_mean + half])

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        mean, obs = self.conf_int(alpha=alpha), self.conf_int(obs=True, alpha=alpha)
        columns = {
            "mean": self.predicted_mean,
            "mean_se": self.se_mean,
            "mean_ci_lower": mean[:, 0],
            "mean_ci_upper": mean[:, 1],
            "obs_ci_lower": obs[:, 0],
            "obs_ci_upper": obs[:, 1],
        }
        return pd.DataFrame(columns, index=self.index)


def prediction_of_rows(X: Any, fitted: Fit, distribution: Any) -> Prediction:
    """Xβ̂ for design rows (n, p); arrays do not say which random effects an observation has, so its error is NaN."""
    rows = design_rows(X, len(fitted.beta))
    cov = float(fitted.sigma) ** 2 * np.asarray(fitted.unscaled_cov)
    se = np.sqrt(np.einsum("ni,ij,nj->n", rows, cov, rows))
    return Prediction(rows @ np.asarray(fitted.beta), se, np.full(len(rows), np.nan), distribution, None)


def prediction_of_table(table: pd.DataFrame, level: float, distribution: Any) -> Prediction:
    """From the columns of ``prediction_table``, whose intervals have this level."""
    se_obs = (table["pi_upper"] - table["mean"]).to_numpy() / scipy.special.ndtri(0.5 + level / 2.0)
    return Prediction(table["mean"].to_numpy(), table["se"].to_numpy(), se_obs, distribution, table.index)


def design_rows(X: Any, p: int) -> np.ndarray:
    """(n, p) rows of the fixed-effects design, checked."""
    rows = np.atleast_2d(np.asarray(X, float))
    if rows.shape[1] != p:
        raise DataError(f"exog has {rows.shape[1]} columns; the model has {p} fixed effects")
    return rows
