"""Designs of several chunks of rows: whether their columns mean the same, and the state of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError
from lme_jax.formula.columns import MAX_CELLS, Columns, Variable
from lme_jax.formula.crossing import Crossing, union, union_levels
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


def union_of_columns(designs: Sequence[Design], n_rows: Sequence[int]) -> Columns | None:
    """What marginal means ask of the columns behind the fixed effects, of all chunks together."""
    found = [state_of(design).columns for design in designs]
    parts = [columns for columns in found if columns is not None]
    if len(parts) < len(found):
        return None
    codings = state_of(designs[0]).codings
    variables = {}
    for name in parts[0].variables:
        order = codings[name].levels if name in codings else None
        variables[name] = _union_of_variables([c.variables[name] for c in parts], n_rows, name, order)
    counted = {name: variable.levels for name, variable in variables.items() if variable.levels is not None}
    if any(c.cells is None for c in parts) or np.prod([float(len(v)) for v in counted.values()]) > MAX_CELLS:
        return replace(parts[0], variables=variables, cells=None, counts=np.zeros(0, int))
    every = np.concatenate([_recounted(c, counted) for c in parts])
    cells, which = np.unique(every, axis=0, return_inverse=True)
    counts = np.bincount(which.reshape(-1), np.concatenate([c.counts for c in parts])).astype(int)
    return replace(parts[0], variables=variables, cells=cells, counts=counts)


def _union_of_variables(
    found: Sequence[Variable], n_rows: Sequence[int], name: str, order: np.ndarray | None
) -> Variable:
    """A column of all chunks; ``order`` is that of the levels of a factor, where it is known."""
    if all(v.is_factor for v in found):
        levels = union_levels([v.values for v in found], name)
        if order is not None:
            levels = order[np.isin(order, levels)]
        return replace(found[0], levels=levels)
    low, high = min(v.low for v in found), max(v.high for v in found)
    mean = float(np.average([v.mean for v in found], weights=n_rows)) if low < high else low
    # A number with two values in all has one of them, or both, in every chunk.
    few = [set(_known_values(v).tolist()) for v in found]
    two = low < high and found[0].kind == "number" and all(few) and set().union(*few) == {low, high}
    return replace(found[0], levels=np.array([low, high]) if two else None, low=low, high=high, mean=mean)


def _recounted(columns: Columns, counted: Mapping[str, np.ndarray]) -> np.ndarray:
    """The cells of a chunk by the levels of all chunks."""
    out, cells = [], np.asarray(columns.cells)
    for name, levels in counted.items():
        own = pd.Index(levels).get_indexer(pd.Index(_known_values(columns.variables[name])))
        at = columns.counted.index(name) if name in columns.counted else None
        out.append(np.full(len(cells), own[0]) if at is None else own[cells[:, at]])
    return np.column_stack(out) if out else np.zeros((len(cells), 0), int)


def _known_values(variable: Variable) -> np.ndarray:
    """All values of a factor, or of a number that has one or two."""
    if variable.levels is not None:
        return variable.levels
    return np.array([variable.low] if variable.low == variable.high else [])


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
