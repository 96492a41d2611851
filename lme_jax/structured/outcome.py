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
NAMED = 0.1
# Curvature along a flat direction below which it is exactly flat, and what counts as zero of an estimate.
UNTOLD, SMALL = 1e-6, 1e-3
FEWER = (
    "Too few subjects have been seen at all visits for so many parameters: take a structure with fewer, such as csh, "
    "toeph or ar1h."
)


def tell(result: Any, data: StructuredData, found: ResidualFit) -> None:
    """The warning or the error that a status calls for."""
    if Status(int(found.status)) is Status.NOT_FINITE:
        raise ConvergenceError(
            f"the deviance of {data.endog_name!r} ({data.n_rows} rows, {len(found.beta)} fixed effects) has no "
            "minimum: the model leaves no residual variation, or none to a stratum. Check for a fixed effect that "
            "copies the response, and for a response that is constant within subjects or strata."
        )
    if result.status is Status.SINGULAR:
        warn_caller(
            f"{result.status_text}. It is a valid optimum; a simpler structure would describe these data as well.",
            SingularFitWarning,
        )
    elif not result.status.is_optimum:
        warn_caller(
            f"{result.status_text}: {int(found.n_iter)} evaluations, ½gᵀH⁻¹g = {float(found.decrease):.1e} deviance "
            f"units. {FEWER if result.status is Status.UNBOUNDED else ADVICE}",
            ConvergenceWarning,
        )
    elif found.flat.any() and curvature(found, data) < UNTOLD:
        names = ", ".join(flat_names(found, result._parameters, data))
        warn_caller(
            f"the data do not tell these parameters apart: {names}. The deviance is the same all along a line through "
            "their estimates, which are one choice of many; leave one of them out.",
            ConvergenceWarning,
        )


def status_text(found: ResidualFit, parameters: Sequence[Parameter], data: StructuredData) -> str:
    """How the search ended, what stands on a boundary and what the data hardly tell."""
    status = Status(int(found.status))
    parts = [f"the {'fit' if status is Status.UNBOUNDED else 'optimiser'} {status.text}"]
    edge = [named(p, data.term) for p in parameters if p.boundary]
    if edge:
        parts.append(f"on the boundary: {', '.join(edge)}")
    flat = flat_names(found, parameters, data)
    if flat:
        parts.append(f"hardly told by the data: {', '.join(flat)}")
    return "; ".join(parts)


def curvature(found: ResidualFit, data: StructuredData) -> float:
    """Of the deviance along the flat direction, in the search's units: log, Fisher's z and the like."""
    step = found.flat / data.blocks.unit
    return float(step @ found.hessian @ step)


def named(parameter: Parameter, term: ResidualTerm) -> str:
    """A parameter with its arm or stratum."""
    group = group_text(parameter, term)
    return f"{label(parameter, term)} ({group})" if group else label(parameter, term)


def flat_names(found: ResidualFit, parameters: Sequence[Parameter], data: StructuredData) -> list[str]:
    """The parameters that move along the direction in which the deviance is nearly flat."""
    if not found.flat.any():
        return []
    step = found.flat / data.blocks.unit
    k = len(step)
    moves = {named(p, data.term): p.gradient[:k] @ step * _stretch(p) for p in parameters}
    moves |= {
        f"θ {name}": own / max(abs(at), SMALL)
        for name, own, at in zip(data.theta_names, step, found.params, strict=False)
    }
    most = max(map(abs, moves.values()), default=0.0)
    return [name for name, move in moves.items() if most > 0 and abs(move) >= NAMED * most]


def _stretch(p: Parameter) -> float:
    """The derivative of the scale on which a parameter's intervals are symmetric."""
    if p.transform == "identity":
        return 1.0
    if p.transform == "log":
        return 1.0 / max(p.estimate, SMALL)
    return (p.upper_bound - p.lower_bound) / max((p.estimate - p.lower_bound) * (p.upper_bound - p.estimate), SMALL)


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
