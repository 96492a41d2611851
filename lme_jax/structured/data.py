"""StructuredData: a design whose residuals are correlated or of unequal variance, ready to fit and to label."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from ..core.residual.data import compress
from ..core.residual.terms import Correlation, RandomTerm, Variance
from ..data import ModelData
from ..errors import UnsupportedError
from ..formula.residual import ResidualRows, ResidualTerm

WITHOUT = "the engine of independent residuals does not serve a model with a residual structure"


@dataclass(frozen=True)
class StructuredData(ModelData):
    """A ``ModelData`` whose design has a ``residual``; what assumes independent residuals is refused."""

    @property
    def term(self) -> ResidualTerm:
        """The residual structure and its labels."""
        return self.design.residual

    @cached_property
    def blocks(self) -> Any:
        """The core's sufficient statistics."""
        design = self.design
        return compress(
            design.y,
            design.X,
            core_terms(self),
            core_correlation(self.term, self.term.rows),
            core_variances(self.term.rows),
            weights=design.weights,
            offset=design.offset,
        )

    @property
    def compressed(self) -> NoReturn:  # type: ignore[override]
        raise UnsupportedError(WITHOUT)

    @property
    def shared_design(self) -> NoReturn:  # type: ignore[override]
        raise UnsupportedError(WITHOUT)

    @property
    def several_design(self) -> NoReturn:  # type: ignore[override]
        raise UnsupportedError(WITHOUT)

    def equations(self, fitted: Any) -> NoReturn:
        raise UnsupportedError(WITHOUT)

    @property
    def subject_sizes(self) -> np.ndarray:
        """(m,) rows per subject."""
        return np.bincount(self.term.rows.subject, minlength=len(self.term.subjects))


def core_terms(data: ModelData) -> list[RandomTerm]:
    """The bars, in the order of θ."""
    for term in data.terms:
        if term.membership is not None or term.root is not None:
            raise UnsupportedError(
                f"the factor {term.factor!r} has memberships or relatedness: beside a residual structure levels must be "
                "independent, one for each row"
            )
    return [RandomTerm(term.Z, np.asarray(term.codes), term.block) for term in data.terms]


def core_correlation(term: ResidualTerm, rows: ResidualRows) -> Correlation | None:
    """The correlation structure on some rows, in the core's words."""
    spelled = term.spelling.correlation
    if spelled is None:
        return None
    return Correlation(spelled.word, rows.subject, rows.clock, len(term.visits), rows.arm, spelled.options)


def core_variances(rows: ResidualRows) -> tuple[Variance, ...]:
    """The variance functions on some rows, in the core's words."""
    return tuple(
        Variance(v.word, v.codes, v.covariate, (("fitted", True),) if v.fitted else ()) for v in rows.variances
    )
