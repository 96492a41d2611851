"""What a structure spelled in a formula needs, from the data: coordinates, ranks, known matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.core.structures import REGISTRY, Block, make_block
from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.evaluate import Evaluator
from lme_jax.formula.expansion import Linear
from lme_jax.formula.guard import refuse_internals
from lme_jax.formula.matrix import FactorCoding
from lme_jax.formula.notes import shown
from lme_jax.formula.syntax import Name, Node, Number
from lme_jax.formula.wrappers import Spelled


def resolve(
    spelled: Spelled,
    text: str,
    lhs: Linear,
    columns: Sequence[str],
    codings: Mapping[str, FactorCoding],
    evaluator: Evaluator,
) -> Block:
    """The block of a term's effects, everything checked; ``text`` names the term in messages."""
    known = REGISTRY[spelled.structure]
    where = f"the random-effects term ({text})"
    if known.ordered:
        _check_order(spelled, where, columns)
    given: Any = _evaluated(spelled.argument, where, evaluator)
    if known.needs == "coordinates" and given is None:
        given = _coordinates(where, lhs, codings)
    if known.needs == "matrix":
        given = _aligned(given, where, columns, lhs, codings)
    try:
        return make_block(spelled.structure, len(columns), given)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _check_order(spelled: Spelled, where: str, columns: Sequence[str]) -> None:
    if len(columns) > 1 and "(Intercept)" in columns:
        raise FormulaError(
            f"{where}: {spelled.structure} takes effects in an order, and the intercept is none of them; "
            "write (0 + … | …)."
        )
    if len(columns) == 1 and spelled.in_formula:
        raise FormulaError(
            f"{where} has a single effect, {columns[0]}, where {spelled.structure} takes several in an order; "
            "write 0 + factor(…) for an effect per value."
        )


def _evaluated(argument: Any, where: str, evaluator: Evaluator) -> Any:
    """A number or a matrix that a formula names; what is no node was given as it is."""
    if isinstance(argument, Number):
        return argument.value
    if isinstance(argument, Name):
        refuse_internals(argument.name)
        value = evaluator.context.get(argument.name)
        if value is None:
            raise FormulaError(f"{where}: there is no {argument.name} where the model is called.")
        return value
    if isinstance(argument, Node):
        raise FormulaError(f"{where}: give a number or the name of a matrix, not {argument}.")
    return argument


def _only_factor(lhs: Linear, codings: Mapping[str, FactorCoding]) -> FactorCoding | None:
    """The factor of a term that has an effect for each of its levels and no others."""
    if lhs.intercept or len(lhs.terms) != 1 or len(lhs.variables) != 1:
        return None
    return codings.get(lhs.variables[0][0])


def _coordinates(where: str, lhs: Linear, codings: Mapping[str, FactorCoding]) -> np.ndarray:
    coding = _only_factor(lhs, codings)
    if coding is None:
        raise FormulaError(f"{where}: coordinates are the values of one variable, ou(t | g), or given beside the name.")
    try:
        return np.array([float(label) for label in coding.levels])
    except (TypeError, ValueError) as error:
        name = lhs.variables[0][0]
        raise DataError(f"{where}: coordinates must be numbers, but {name} has {shown(coding.levels, 4)}.") from error


def _aligned(
    given: Any, where: str, columns: Sequence[str], lhs: Linear, codings: Mapping[str, FactorCoding]
) -> np.ndarray:
    """A known matrix in the order of the effects: a DataFrame by its labels, the effects' names or the levels."""
    if not isinstance(given, pd.DataFrame):
        return np.asarray(given.toarray() if hasattr(given, "toarray") else given)
    rows = pd.Index(given.index.astype(str))
    if not rows.is_unique or not rows.equals(pd.Index(given.columns.astype(str))):
        raise DataError(f"{where}: the matrix must have the same unique labels, in one order, on rows and columns.")
    coding = _only_factor(lhs, codings)
    wanted = list(columns)
    if coding is not None and not rows.isin(wanted).any():
        wanted = [str(level) for level in coding.levels]
    positions = rows.get_indexer(pd.Index(wanted))
    if (positions < 0).any():
        missing = [name for name, at in zip(wanted, positions, strict=True) if at < 0]
        raise DataError(f"{where}: the matrix lacks the labels {shown(missing)}; it has {shown(list(rows), 6)}.")
    return given.to_numpy(dtype=float)[np.ix_(positions, positions)]
