"""Fit a model with structured residuals, and tell the person how it ended."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..core.residual.fit import fit
from ..core.types import Status
from ..errors import ConvergenceError, ConvergenceWarning, DataError, SingularFitWarning, UnsupportedError, warn_caller
from ..fitting import ADVICE, no_residual_message, read_options, read_reml
from .data import StructuredData
from .results import StructuredResults


def fit_structured(
    data: StructuredData,
    reml: Any,
    start: Any,
    options: Any,
    again: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None,
) -> StructuredResults:
    """The fit with labels on it, after the warning or the error that its status calls for."""
    reml, options = read_reml(reml), read_options(options)
    if options.backend not in (None, "numpy"):
        raise UnsupportedError("models with residual structures are fitted in NumPy: leave out backend=")
    found = fit(data.blocks, reml=reml, start=_start(start), options=options)
    if Status(int(found.status)) is Status.NOT_FINITE:
        raise ConvergenceError(no_residual_message(data, len(found.beta)))
    result = StructuredResults(data, found, reml=reml, options=options, again=again)
    if result.status is Status.SINGULAR:
        warn_caller(
            f"the fit is singular: {result.status_text}. It is a valid optimum; a simpler structure would describe "
            "these data as well.",
            SingularFitWarning,
        )
    elif not result.status.is_optimum:
        warn_caller(
            f"the optimiser {result.status_text}: {int(found.n_iter)} evaluations, ½gᵀH⁻¹g = "
            f"{float(found.decrease):.1e} deviance units. {ADVICE}",
            ConvergenceWarning,
        )
    return result


def _start(start: Any) -> np.ndarray | None:
    """All covariance parameters in the units of the search, as another result's ``fit.theta`` has them."""
    if start is None:
        return None
    try:
        values = np.asarray(start, float)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise DataError(f"start={start!r}: give the finite numbers that another fit has in .fit.theta")
    return values
