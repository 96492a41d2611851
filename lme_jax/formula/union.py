"""Designs of several chunks of rows: whether their columns mean the same, and the state of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError
from lme_jax.formula.crossing import Crossing, union
from lme_jax.formula.design import Design
from lme_jax.formula.lme4 import Lme4State
from lme_jax.formula.matrix import check_same_codings

LIKE = "give moments() of every later chunk like= (the moments of the first), so that all use one"


def state_of(design: Design) -> Lme4State:
    """The state of a design that a formula gave."""
    assert isinstance(design.state, Lme4State)
    return design.state


def check_same_columns(first: Design, other: Design) -> None:
    """Raise DataError where the columns of two chunks do not mean the same."""
    a, b = state_of(first), state_of(other)
    if a.parsed != b.parsed:
        raise DataError(f"The moments are of two formulas, {first.formula!r} and {other.formula!r}: they do not add.")
    if a.offset_text != b.offset_text:
        raise DataError(f"The moments have two offsets, {a.offset_text!r} and {b.offset_text!r}: they do not add.")
    check_same_codings(a.codings, b.codings)
    for label in dict.fromkeys((*a.memory, *b.memory)):
        if not _equal(a.memory.get(label), b.memory.get(label)):
            raise DataError(f"{label} learnt other values from one chunk than from another: {LIKE}.")
    for name in a.context.keys() & b.context.keys():
        if not _equal_where_plain(a.context[name], b.context[name]):
            raise DataError(
                f"{name} was {a.context[name]!r} for one chunk and {b.context[name]!r} for another: {LIKE}."
            )
    if first.exog_names != other.exog_names:
        raise DataError(
            f"The chunks have different columns, {list(first.exog_names)} and {list(other.exog_names)}: {LIKE}."
        )


def union_of_levels(designs: Sequence[Design]) -> tuple[Lme4State, dict[str, list[np.ndarray]]]:
    """The state with the grouping levels of all chunks, and per factor where each chunk's levels stand among them."""
    first = state_of(designs[0])
    crossings: dict[str, Crossing] = {}
    positions: dict[str, list[np.ndarray]] = {}
    for at, bar in enumerate(first.parsed.bars):
        if bar.label not in crossings:
            found: list[Any] = [state_of(design).crossings[at] for design in designs]
            crossings[bar.label], positions[bar.label] = union(found, bar.label)
    return replace(first, crossings=tuple(crossings[bar.label] for bar in first.parsed.bars)), positions


def _equal(a: Any, b: Any) -> bool:
    """Whether two memories of a transform are the same to the last digit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))
    return type(a) is type(b) and bool(a == b)


def _equal_where_plain(a: Any, b: Any) -> bool:
    """As ``_equal`` of numbers and text; functions are taken at their names, arrays go by the rows of their chunk."""
    if callable(a) or isinstance(a, list | np.ndarray | pd.Series):
        return True
    return bool(a == b)
