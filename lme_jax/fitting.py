"""Around every fit: the arguments checked before it, and what a person is told after it."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .core.fit import fit
from .core.optimize import NewtonOptions
from .core.programs import check_backend
from .core.records import Fit
from .core.types import Status
from .data import ModelData
from .errors import ConvergenceError, ConvergenceWarning, DataError, RankWarning, SingularFitWarning, warn_caller
from .formula import RandomTerm, drop_dependent_columns
from .formula.design import check_design

# A residual standard deviation below this, relative to the response's own, is rounding.
NO_VARIATION = 1e-10
# Below these it may be that of a response which the effects determine; the second for lanes whose search ended badly.
SUSPECT, SUSPECT_FAILURE = 1e-5, 1e-3

ADVICE = "Try another start=, or options=NewtonOptions(max_iter=…)."
WITHOUT_ESTIMATES = (Status.NOT_FINITE, Status.NOT_IDENTIFIED, Status.INTERRUPTED)


# ---------------------------------------------------------------- arguments


def read_reml(reml: Any) -> bool:
    """The criterion as True or False; text such as "ML" would be true, and fit the other one."""
    if not isinstance(reml, (bool, np.bool_)):
        raise DataError(f"reml={reml!r} must be True (REML) or False (ML)")
    return bool(reml)


def read_options(options: Any) -> NewtonOptions:
    """Search options, checked."""
    if not isinstance(options, NewtonOptions):
        like = ", ".join(f"{k}={v!r}" for k, v in options.items()) if isinstance(options, dict) else "max_iter=100"
        raise DataError(f"options={options!r} must be NewtonOptions: write options=lme_jax.NewtonOptions({like})")
    whole = isinstance(options.max_iter, (int, np.integer)) and not isinstance(options.max_iter, bool)
    if not whole or options.max_iter < 1:
        raise DataError(f"NewtonOptions(max_iter={options.max_iter!r}): give a whole number of evaluations, 1 or more")
    number = isinstance(options.tol, (int, float, np.number)) and not isinstance(options.tol, bool)
    if options.tol is not None and not (number and 0.0 < options.tol < np.inf):
        raise DataError(f"NewtonOptions(tol={options.tol!r}): give deviance units > 0, or None for the default")
    return options


def read_start(start: Any, names: Sequence[str]) -> np.ndarray | None:
    """θ (k,) to start from, or None.

    Parameters
    ----------
    start : array, list, or Series such as ``fit.theta``
        A Series that bears the names of θ, in any order, is put in theirs.
    names : k labels of θ.

    Raises
    ------
    DataError
        For another length or type, saying which parameters are expected.
    """
    if start is None:
        return None
    expected = f"give {len(names)} finite numbers, for {', '.join(names)}"
    if isinstance(start, pd.Series) and start.index.is_unique and set(start.index) == set(names):
        start = start.loc[list(names)]
    kind = None
    try:
        given = np.asarray(start)
        kind = given.dtype.kind
        theta = np.array(given, float) if kind in "iufO" and not isinstance(start, (str, dict)) else None
    except (TypeError, ValueError):
        theta = None
    if theta is None:
        raise DataError(f"start={start!r} is no vector of real numbers: {expected}")
    if theta.shape != (len(names),):
        raise DataError(f"start has shape {theta.shape}: {expected}")
    if not np.isfinite(theta).all():
        raise DataError(f"start={theta.tolist()} is not finite: {expected}")
    return theta


def with_backend(options: Any, backend: Any) -> Any:
    """The options with what computes pinned, where it is said."""
    return options if backend is None else read_options(options)._replace(backend=check_backend(backend))


# ---------------------------------------------------------------- one fit


def fit_data(data: ModelData, reml: Any, start: Any, options: Any) -> Fit:
    """Fit compressed data and tell the person how it ended."""
    reml, options = read_reml(reml), read_options(options)
    found = fit(data.compressed, reml=reml, start=read_start(start, data.theta_names), options=options)
    report(found, data)
    return found


def report(found: Fit, data: ModelData, *, advice: str = ADVICE) -> None:
    """Turn a status into the warning or the error that a person should see; ``advice`` is for no convergence."""
    status = Status(int(found.status))
    if status is Status.NOT_FINITE or leaves_no_residual(found, data):
        raise ConvergenceError(no_residual_message(data, len(found.beta)))
    if status is Status.SINGULAR:
        warn_caller(
            "the random effects are singular: a variance is zero or a correlation is ±1 (see .varcorr). It is a valid "
            "optimum; a simpler random part would describe these data as well.",
            SingularFitWarning,
        )
    elif not status.is_optimum:
        warn_caller(
            f"the optimiser {status.text}: {int(found.iterations)} evaluations, ½gᵀH⁻¹g = "
            f"{float(found.decrease):.1e} deviance units. {advice}",
            ConvergenceWarning,
        )


def no_residual_message(data: ModelData, n_fixed: int) -> str:
    factors = " and ".join(repr(factor.name) for factor in data.factors)
    return (
        f"the deviance of {data.endog_name!r} ({data.n_rows} rows, {n_fixed} fixed effects) has no minimum: the model "
        "leaves no residual variation. Check for a fixed effect that copies the response, and for a response that is "
        f"constant within the levels of {factors}."
    )


def leaves_no_residual(found: Fit, data: ModelData) -> bool:
    """Whether fixed and random effects determine the response, so that the deviance falls without bound."""
    relative = float(found.sigma) / max(data.spread, np.finfo(float).tiny)
    suspect = relative <= SUSPECT or not Status(int(found.status)).is_optimum
    return relative <= NO_VARIATION or (suspect and data.has_rows and determined(data))


def determined(data: ModelData) -> bool:
    """Whether the response lies in the span of X and Z, which must be fewer columns than rows.

    Then −2 log L → −∞ as σ → 0: log|V| loses a term per row beyond the rank of Z.
    """
    import scipy.sparse.linalg

    effects = [factor.effects for factor in data.factors]
    columns = scipy.sparse.hstack([scipy.sparse.csr_matrix(data.X), *effects], format="csc")
    if columns.shape[1] >= columns.shape[0]:
        return False
    size = np.sqrt(np.asarray(columns.multiply(columns).sum(axis=0)).ravel())
    columns = columns @ scipy.sparse.diags(1.0 / np.where(size > 0, size, 1.0))
    y = data.y - data.offset
    y = y - y.mean()
    solution = scipy.sparse.linalg.lsmr(columns, y, atol=1e-14, btol=1e-14, conlim=0, maxiter=2000)[0]
    return bool(np.linalg.norm(y - columns @ solution) <= NO_VARIATION * np.linalg.norm(y))


def read_only(found: Fit, *, copy: bool = True) -> Fit:
    """The fit in arrays that cannot be written to, its own ones if ``copy``; what is computed when read still is."""

    def locked(values: Any) -> Any:
        if callable(values):
            return lambda: locked(values())
        own = np.array(values) if copy else np.asarray(values)
        own.setflags(write=False)
        return own

    return dataclasses.replace(found, **{name: locked(values) for name, values in vars(found).items()})


# ---------------------------------------------------------------- many fits


def settle(
    found: Fit,
    identified: np.ndarray,
    spread: np.ndarray | None = None,
    data_of: Callable[[int], ModelData] | None = None,
) -> Fit:
    """The lanes as single fits would have them: refused ones NOT_IDENTIFIED, and NaN wherever there is no estimate.

    Parameters
    ----------
    found : lanes on the leading axis.
    identified : (R,) whether a single fit would accept the rows.
    spread : (R,), optional
        Of each response, in the units of σ; with ``data_of``, a lane's data, finds responses without residual.
    """
    status = np.array(found.status)
    fitted = status != Status.INTERRUPTED
    status[~identified & fitted] = Status.NOT_IDENTIFIED
    if spread is not None and data_of is not None:
        optimum = np.isin(status, [s for s in Status if s.is_optimum])
        with np.errstate(invalid="ignore"):
            relative = np.asarray(found.sigma) / spread
            suspect = relative <= np.where(optimum, SUSPECT, SUSPECT_FAILURE)
        for lane in np.flatnonzero(suspect & identified & fitted).tolist():
            if relative[lane] <= NO_VARIATION or determined(data_of(lane)):
                status[lane] = Status.NOT_FINITE
    lost = np.isin(status, WITHOUT_ESTIMATES)
    arrays = {name: np.array(getattr(found, name)) for name in vars(found)}
    for values in arrays.values():
        if values.dtype.kind == "f":
            values[lost] = np.nan
    return dataclasses.replace(found, **{**arrays, "status": status.astype(np.int32)})


def fit_without_lost_columns(
    found: Fit,
    identified: np.ndarray,
    spread: np.ndarray,
    data_of: Callable[[int], ModelData],
    fit_some: Callable[[np.ndarray, np.ndarray], tuple[Fit, np.ndarray, np.ndarray]],
) -> dict[int, np.ndarray]:
    """Fit lanes whose rows do not tell all fixed effects apart without those, as ``lmer`` does.

    Parameters
    ----------
    found, identified, spread : of all lanes; the lanes' entries are written, NaN for the effects left out.
    data_of : a lane's data.
    fit_some : from lanes and the positions of their columns to fit, identified and spread of those lanes.

    Returns
    -------
    dict
        Lane → the positions of its columns.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for lane in np.flatnonzero(~identified & (np.asarray(found.status) != Status.INTERRUPTED)).tolist():
        keep = estimable_columns(data_of(lane))
        if keep is not None and len(keep) < found.beta.shape[1]:
            groups.setdefault(tuple(keep.tolist()), []).append(lane)
    kept: dict[int, np.ndarray] = {}
    for columns, members in groups.items():
        keep, lanes = np.array(columns, int), np.array(members)
        part, identified[lanes], spread[lanes] = fit_some(lanes, keep)
        for name in vars(found):
            whole, own = getattr(found, name), getattr(part, name)
            if name == "beta":
                whole[lanes] = np.nan
                whole[lanes[:, None], keep] = own
            elif name == "unscaled_cov":
                whole[lanes] = np.nan
                whole[lanes[:, None, None], keep[:, None], keep] = own
            else:
                whole[lanes] = own
        kept |= {lane: keep for lane in members}
    return kept


def estimable_columns(data: ModelData) -> np.ndarray | None:
    """Positions of the fixed effects that the rows tell apart; None where ``lmer`` refuses the rows all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        keep = drop_dependent_columns(data.X, data.exog_names)
    return keep if _refusal(data.columns(keep)) is None else None


def _refusal(data: ModelData) -> str | None:
    """What ``lmer`` says of rows that it refuses."""
    if data.n_rows == 0:
        return f"The response {data.endog_name!r} has no rows: every value is missing."
    terms = [_occurring(term) for term in data.terms]
    try:
        check_design(data.y, data.endog_name, data.design.weights, data.X, terms)
    except DataError as refusal:
        return str(refusal)
    return None


def reason(data: ModelData, status: Status) -> str:
    """Why a lane with these rows has no estimates, in ``lmer``'s words."""
    if status is Status.NOT_IDENTIFIED:
        return _refusal(data) or "the rows do not tell the fixed effects apart"
    if status is Status.NOT_FINITE:
        return no_residual_message(data, data.X.shape[1])
    return status.text


def _occurring(term: RandomTerm) -> RandomTerm:
    """The term with the levels that its rows have."""
    used, codes = np.unique(term.codes, return_inverse=True)
    return dataclasses.replace(term, levels=np.asarray(term.levels)[used], codes=codes.reshape(-1))
