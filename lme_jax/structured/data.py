"""StructuredData: a design whose residuals are correlated or of unequal variance, ready to fit and to label."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from ..core.residual.data import compress
from ..core.residual.stacks import Rows
from ..core.residual.terms import Correlation, RandomTerm, Variance
from ..data import ModelData
from ..errors import DataError, UnsupportedError
from ..formula import design_new_data
from ..formula.residual import ResidualRows, ResidualTerm
from ..keeping import NoRows

WITHOUT = "this is there for independent residuals of one variance only, and the model has a residual structure"


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
        design, term = self.design, self.term
        structure = core_terms(self), core_correlation(term, term.rows), core_variances(term.rows)
        try:
            return compress(design.y, design.X, *structure, weights=design.weights, offset=design.offset)
        except DataError as refusal:
            raise type(refusal)(in_words(str(refusal), term)) from refusal

    @property
    def compressed(self) -> NoReturn:
        raise UnsupportedError(WITHOUT)

    @property
    def shared_design(self) -> NoReturn:
        raise UnsupportedError(WITHOUT)

    @property
    def several_design(self) -> NoReturn:
        raise UnsupportedError(WITHOUT)

    def equations(self, fitted: Any) -> NoReturn:
        raise UnsupportedError(WITHOUT)


def core_terms(data: ModelData) -> list[RandomTerm]:
    """The bars, in the order of θ."""
    for term in data.terms:
        if term.membership is not None or term.root is not None:
            raise UnsupportedError(
                f"the factor {term.factor!r} has memberships or relatedness: beside a residual structure levels must "
                "be independent, one for each row"
            )
    return [RandomTerm(term.Z, np.asarray(term.codes), term.block) for term in data.terms]


def core_correlation(term: ResidualTerm, rows: ResidualRows) -> Correlation | None:
    """The correlation structure on some rows, in the core's words."""
    spelled = term.spelling.correlation
    if spelled is None:
        return None
    return Correlation(spelled.word, rows.subject, rows.clock, len(term.visits), rows.arm, spelled.options)


def in_words(text: str, term: ResidualTerm) -> str:
    """The core's numbers of visits and groups as the labels that people know."""

    def visits(found: re.Match[str]) -> str:
        return re.sub(r"\d+", lambda number: repr(term.visits[int(number[0])]), found[1])

    text = re.sub(r"(visits? \d+(?: and \d+)?) \(from 0\)", visits, text) if term.visits else text
    return re.sub(r"group (\d+)", lambda g: f"{term.arm_name} {term.arms[int(g[1])]!r}" if term.arms else g[0], text)


def core_variances(rows: ResidualRows) -> tuple[Variance, ...]:
    """The variance functions on some rows, in the core's words."""
    return tuple(
        Variance(v.word, v.codes, v.covariate, (("fitted", True),) if v.fitted else ()) for v in rows.variances
    )


def without_residual_rows(data: StructuredData) -> StructuredData:
    """The data whose residual structure knows its labels and no rows."""
    gone: Any = NoRows(data.n_rows)
    term = data.term
    variances = tuple(replace(v, codes=None, covariate=None) for v in term.rows.variances)
    thin = replace(term, rows=ResidualRows(gone, gone, None, variances))
    state: Any = data.design.state
    return replace(data, design=replace(data.design, residual=thin, state=replace(state, residual=thin)))


def new_rows(data: StructuredData, frame: pd.DataFrame, residual: ResidualRows) -> tuple[Rows, np.ndarray]:
    """New rows in the core's codes, and which of them (n,) lack a value that their covariance needs."""
    order = [next(i for i, t in enumerate(data.design.terms) if t is term) for term in data.terms]
    built = design_new_data(data.design, frame).terms
    terms = [built[i] for i in order]
    n = len(frame)
    clock = residual.clock.astype(float)
    if data.blocks.model.family.distance:
        clock = clock.reshape(n, -1)
    covariates = [np.zeros(n) if v.covariate is None else v.covariate for v in residual.variances]
    strata = [np.zeros(n, int) if v.codes is None else v.codes for v in residual.variances]
    arm = np.zeros(n, int) if residual.arm is None else residual.arm
    missing = np.isnan(clock).reshape(n, -1).any(1) | (arm < 0)
    for values in [*covariates, *(Z for Z, _ in terms)]:
        missing |= np.isnan(values).reshape(n, -1).any(1)
    for s in strata:
        missing |= s < 0
    clock = np.nan_to_num(clock)
    rows = Rows(
        np.asarray(residual.subject, int),
        clock if data.blocks.model.family.distance else clock.astype(int),
        np.maximum(arm, 0),
        tuple(np.maximum(s, 0) for s in strata),
        tuple(np.nan_to_num(v, nan=1.0) for v in covariates),
        tuple(np.nan_to_num(Z) for Z, _ in terms),
        tuple(np.asarray(codes, int) for _, codes in terms),
    )
    return rows, missing
