"""What makes the rows of a design one chunk of several, whose columns must mean the same in all."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.evaluate import Evaluator
from lme_jax.formula.known import check_mapping
from lme_jax.formula.matrix import FactorCoding, Value, all_levels, check_same_codings, recoded
from lme_jax.formula.notes import shown
from lme_jax.formula.syntax import Name, Node, walk
from lme_jax.formula.terms import MixedFormula
from lme_jax.formula.values import Factor, column


class Learnt(Protocol):
    """What a design has learnt from its rows; the state of a formula's design."""

    @property
    def parsed(self) -> MixedFormula: ...
    @property
    def codings(self) -> dict[str, FactorCoding]: ...
    @property
    def memory(self) -> dict[str, dict]: ...
    @property
    def context(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Chunk:
    """How the columns of a chunk are made.

    Attributes
    ----------
    like : what another chunk has learnt, whose levels, contrasts and transforms these rows take; None: their own.
    levels : column → the levels it may have in any chunk.
    """

    like: Learnt | None
    levels: Mapping[str, Sequence[Any]]

    def declared(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the columns named in ``levels`` as Categoricals."""
        check_mapping(self.levels, "levels")
        return frame.assign(**{name: _categorical(frame, name, given) for name, given in self.levels.items()})

    def evaluator(
        self, parsed: MixedFormula, frame: pd.DataFrame, names: Mapping[str, Any], rows: np.ndarray | None
    ) -> Evaluator:
        """One that has learnt what the other chunk's transforms did."""
        if self.like is None:
            return Evaluator(frame, names, {}, {}, rows)
        if parsed != self.like.parsed:
            raise FormulaError(f"like= is of the formula {self.like.parsed.text!r}, not {parsed.text!r}.")
        memory = {label: dict(learnt) for label, learnt in self.like.memory.items()}
        # An array of the caller's has a value per row of its own chunk; all else is as it was.
        per_row = (list, np.ndarray, pd.Series)
        constant = {name: value for name, value in self.like.context.items() if not isinstance(value, per_row)}
        return Evaluator(frame, ChainMap(constant, names), memory, dict(constant), rows)  # type: ignore[arg-type]

    def with_levels(self, values: dict[str, Value], nodes: Mapping[str, Node], frame: pd.DataFrame) -> dict[str, Value]:
        """The variables by the levels of the other chunk, or by those that are declared, or else by those found."""
        if self.like is not None:
            codings = self.like.codings
            return {label: _like(value, codings.get(label), label) for label, value in values.items()}
        found = dict(values)
        for label, value in values.items():
            if isinstance(value, Factor) and not _is_declared(nodes[label], frame):
                found[label] = value.without_unused_levels()
        return found

    def check_contrasts(self, codings: dict[str, FactorCoding]) -> None:
        """Whether the caller's contrasts are those of the other chunk."""
        if self.like is not None:
            check_same_codings(self.like.codings, codings)


def _categorical(frame: pd.DataFrame, name: str, levels: Sequence[Any]) -> pd.Series:
    values = column(frame, name)
    if isinstance(levels, str) or not pd.Index(levels).is_unique or pd.isna(pd.Index(levels)).any():
        raise DataError(f"levels={{{name!r}: {levels!r}}}: give a list of different levels, none of them missing.")
    ordered = isinstance(values.dtype, pd.CategoricalDtype) and bool(values.dtype.ordered)
    codes = pd.Index(levels).get_indexer(pd.Index(values.astype(object)))
    lacking = (codes < 0) & values.notna().to_numpy()
    if lacking.any():
        raise DataError(
            f"Column {name!r} has the levels {shown(pd.unique(values[lacking]))}, which levels={{{name!r}: …}} lacks; "
            f"it names {shown(list(levels), 20)} (numbers and text are never the same level)."
        )
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(levels), ordered), index=values.index)


def _is_declared(node: Node, frame: pd.DataFrame) -> bool:
    """Whether a Categorical says which levels a variable may have."""
    names = {part.name for part in walk(node) if isinstance(part, Name)} & set(frame.columns)
    return any(isinstance(frame[name].dtype, pd.CategoricalDtype) for name in names)


def _like(value: Value, coding: FactorCoding | None, label: str) -> Value:
    try:
        return recoded(value, coding, label)
    except DataError as error:
        raise DataError(f"This chunk is unlike the one given as like=: {error} {all_levels(label)}.") from error
