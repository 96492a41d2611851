"""``lmer``: the front door for formulas with bars, and what every door does with a fit."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from .core.fit import fit
from .core.optimize import NewtonOptions
from .core.records import Fit
from .core.types import Status
from .data import ModelData
from .errors import ConvergenceError, ConvergenceWarning, SingularFitWarning
from .formula import design_from_formula
from .results import MixedLMResults


def lmer(
    formula: str,
    data: Any,
    *,
    reml: bool = True,
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    missing: str = "drop",
    subset: Any = None,
    structures: Mapping[str, str] | None = None,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
) -> MixedLMResults:
    """Fit a linear mixed model written the way R's lme4 writes it.

    Parameters
    ----------
    formula : str
        Such as ``"Reaction ~ Days + (Days | Subject)"``. Bars: ``(1|g)``, ``(x|g)``, ``(0+x|g)``, ``(x||g)``,
        several on one factor; R's contrasts, ``I()``, ``poly()``, ``:``, ``*`` mean what they mean in R.
    data : DataFrame or mapping of columns
        Never changed.
    reml : bool
        Restricted (default) or ordinary maximum likelihood.
    weights : column name or (n,), optional
        Prior weights w > 0: Var(ε_i) = σ²/w_i.
    offset : column name or (n,), optional
        Known part of the mean, response units.
    contrasts : mapping, optional
        Column → "treatment", "sum", "poly", "helmert" or a matrix.
    missing : {"drop", "raise"}
        Leave rows with missing or infinite values out (counted, with a warning), or stop and name them.
    subset : mask or query string, optional
    structures : mapping, optional
        Bar or factor → "unstructured", "diagonal", "identity", "compound_symmetry" or "ar1".
    start : (k,), optional
        θ to start from.
    options : NewtonOptions

    Returns
    -------
    MixedLMResults

    Raises
    ------
    FormulaError, DataError
        When formula or data cannot give a model; the message says what, where and what to do.
    ConvergenceError
        When the deviance is not finite.

    References
    ----------
    Bates, Mächler, Bolker & Walker (2015), J. Stat. Softw. 67(1).
    """
    design = design_from_formula(
        formula,
        data,
        weights=weights,
        offset=offset,
        contrasts=contrasts,
        missing=missing,
        subset=subset,
        structures=structures,
        context=callers_names(2),
    )
    return fit_model(ModelData.from_design(design, factor_in_names=True), reml, start, options)


def callers_names(depth: int) -> dict[str, Any]:
    """The variables that the person's own line sees: formulas may call their functions."""
    frame = sys._getframe(depth)
    return {**frame.f_globals, **frame.f_locals}


def fit_model(data: ModelData, reml: bool, start: Any, options: NewtonOptions) -> MixedLMResults:
    """Fit compressed data and tell the person how it ended."""
    result = fit(data.compressed, reml=reml, start=start, options=options)
    report(result, data)
    return MixedLMResults(data, result, reml=reml)


def report(result: Fit, data: ModelData) -> None:
    """Turn a status into the warning or the error that a person should see."""
    status = Status(int(result.status))
    spread = np.std(data.y - data.offset)
    if status is Status.NOT_FINITE or float(result.sigma) <= 1e-10 * spread:
        raise ConvergenceError(
            f"the deviance of {data.endog_name!r} ({data.n_rows} rows, {len(result.beta)} fixed effects) has no "
            "minimum: the model leaves no residual variation. Check for a fixed effect that copies the response."
        )
    if status is Status.SINGULAR:
        warnings.warn(
            "the fit is singular: a variance is zero or a correlation is ±1 (see .varcorr). It is a valid "
            "optimum; a simpler random part would describe these data as well.",
            SingularFitWarning,
            stacklevel=4,
        )
    elif not status.is_optimum:
        warnings.warn(
            f"the optimiser {status.text}: {int(result.iterations)} evaluations, ½gᵀH⁻¹g = "
            f"{float(result.decrease):.1e} deviance units. Try another start=, or options=NewtonOptions(max_iter=…).",
            ConvergenceWarning,
            stacklevel=4,
        )
