"""How a fit with structured residuals ended, in words: warnings, errors, and the names of what is in doubt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.residual.fit import ResidualFit
from ..core.residual.terms import Parameter
from ..core.types import Status
from ..errors import ConvergenceError, ConvergenceWarning, DataError, SingularFitWarning, warn_caller
from ..fitting import ADVICE
from ..formula.residual import ResidualTerm
from .data import StructuredData
from .parameters import group_text, label

# Share of the largest movement along a flat direction from which a parameter is named.
NAMED = 0.3


def tell(result: Any, data: StructuredData, found: ResidualFit) -> None:
    """The warning or the error that a status calls for."""
    if Status(int(found.status)) is Status.NOT_FINITE:
        raise ConvergenceError(
            f"the deviance of {data.endog_name!r} ({data.n_rows} rows, {len(found.beta)} fixed effects) has no "
            "minimum: the model leaves no residual variation, or none to a stratum. Check for a fixed effect that copies the "
            "response, and for a response that is constant within subjects or strata."
        )
    if result.status is Status.SINGULAR:
        warn_caller(
            f"{result.status_text}. It is a valid optimum; a simpler structure would describe these data as well.",
            SingularFitWarning,
        )
    elif not result.status.is_optimum:
        warn_caller(
            f"{result.status_text}: {int(found.n_iter)} evaluations, ½gᵀH⁻¹g = {float(found.decrease):.1e} deviance "
            f"units. {ADVICE}",
            ConvergenceWarning,
        )


def status_text(found: ResidualFit, parameters: Sequence[Parameter], term: ResidualTerm) -> str:
    """How the search ended, what stands on a boundary and what the data hardly tell."""
    parts = [f"the optimiser {Status(int(found.status)).text}"]
    edge = [named(p, term) for p in parameters if p.boundary]
    if edge:
        parts.append(f"on the boundary: {', '.join(edge)}")
    flat = flat_names(found.flat, parameters, term)
    if flat:
        parts.append(f"hardly told by the data: {', '.join(flat)}")
    return "; ".join(parts)


def named(parameter: Parameter, term: ResidualTerm) -> str:
    """A parameter with its arm or stratum."""
    group = group_text(parameter, term)
    return f"{label(parameter, term)} ({group})" if group else label(parameter, term)


def flat_names(flat: np.ndarray, parameters: Sequence[Parameter], term: ResidualTerm) -> list[str]:
    """The parameters that move along a direction (k,) in which the deviance is nearly flat."""
    if not flat.any():
        return []
    moves = [abs(float(p.gradient[: len(flat)] @ flat)) / max(abs(p.estimate), 1e-3) for p in parameters]
    most = max(moves, default=0.0)
    return [named(p, term) for p, move in zip(parameters, moves, strict=True) if most > 0 and move >= NAMED * most]


def read_start(start: Any, size: int) -> np.ndarray | None:
    """All k covariance parameters in the units of the search, as another result's ``fit.theta`` has them."""
    if start is None:
        return None
    try:
        values = np.asarray(start, float)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise DataError(f"start={start!r}: give the {size} finite numbers that such a fit has in .fit.theta")
    return values
