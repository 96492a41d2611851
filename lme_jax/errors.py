"""Exceptions and warnings; every message says what, where and what to do."""

import sys
import warnings


class LmeJaxError(Exception):
    """Base class of everything that lme_jax raises on purpose."""


class FormulaError(LmeJaxError, ValueError):
    """The formula does not say what a mixed model needs, or says it ambiguously."""


class DataError(LmeJaxError, ValueError):
    """The data cannot be fitted as they are (missing column, non-finite value, too few groups …)."""


class ConvergenceError(LmeJaxError, RuntimeError):
    """The optimiser produced no usable optimum."""


class UnsupportedError(LmeJaxError, NotImplementedError):
    """A sound request that this version cannot serve."""


class LmeJaxWarning(UserWarning):
    """Base class of the warnings."""


class ConvergenceWarning(LmeJaxWarning):
    """The fit stopped before its gradient was small."""


class SingularFitWarning(LmeJaxWarning):
    """A variance is estimated as zero or a correlation as ±1: a valid fit on the boundary."""


class RankWarning(LmeJaxWarning):
    """Columns of the fixed-effects design were dropped because others determine them."""


class DroppedRowsWarning(LmeJaxWarning):
    """Rows with missing values were left out."""


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the person's own line: the nearest one outside this package."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
