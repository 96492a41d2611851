"""Crossed factors: the combinations of levels that occur, and how new rows find theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError
from lme_jax.formula.notes import shown
from lme_jax.formula.values import Factor, factorize, level_labels


def meet_new_rows(crossing: Crossing, parts: Callable[[], list[Factor]], needed: bool, n: int) -> tuple[Any, Any]:
    """Codes of new rows and their own levels; all -1 and None where columns that nobody needs are absent."""
    try:
        found = parts()
    except DataError:
        if needed:
            raise
        return np.full(n, -1, np.int32), None
    return crossing.lookup(found), interact(found)[0]


@dataclass(frozen=True)
class Crossing:
    """The levels of an interaction: its parts' levels and the mixed-radix numbers of its cells."""

    part_levels: tuple[np.ndarray, ...]
    numbers: np.ndarray

    def lookup(self, parts: list[Factor]) -> np.ndarray:
        """Codes of new rows; -1 for a level or a cell that did not occur, or a missing part."""
        codes = []
        for part, levels in zip(parts, self.part_levels, strict=True):
            positions = np.append(pd.Index(levels).get_indexer(pd.Index(part.levels)), -1)
            codes.append(positions[part.codes])
        numbers, missing = _radix_numbers(codes, [len(levels) for levels in self.part_levels])
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(~missing & (self.numbers[at] == numbers), at, -1).astype(np.int32)

    @property
    def labels(self) -> np.ndarray:
        """The labels of the levels."""
        if len(self.part_levels) == 1:
            return self.part_levels[0][self.numbers]
        nobody = np.zeros(0, np.int64)
        return _labels([Factor(nobody, levels) for levels in self.part_levels], self.numbers, ":")

    @property
    def _codes(self) -> list[np.ndarray]:
        """Of every level the levels of its parts."""
        codes, numbers = [], self.numbers
        for levels in reversed(self.part_levels):
            codes.append(numbers % len(levels))
            numbers = numbers // len(levels)
        return codes[::-1]


def union(crossings: Sequence[Crossing], name: str) -> tuple[Crossing, list[np.ndarray]]:
    """The levels of one factor in all of several chunks, and where each chunk's levels stand among them.

    Levels are told apart by their labels. They stand in the order that all chunks give them, or else sorted.
    """
    of_parts = [union_levels(found, name) for found in zip(*(c.part_levels for c in crossings), strict=True)]
    sizes = [len(levels) for levels in of_parts]
    numbers = []
    for crossing in crossings:
        parts = zip(crossing._codes, crossing.part_levels, of_parts, strict=True)
        moved = [pd.Index(every).get_indexer(pd.Index(own))[codes] for codes, own, every in parts]
        numbers.append(_radix_numbers(moved, sizes)[0])
    occurring = np.unique(np.concatenate(numbers))
    return Crossing(tuple(of_parts), occurring), [np.searchsorted(occurring, own) for own in numbers]


def union_levels(found: Sequence[np.ndarray], name: str) -> np.ndarray:
    """The labels of all chunks, in the order that all give them, or else sorted."""
    kinds = {_kind(levels, name): levels for levels in found}
    if len(kinds) > 1:
        (a, first), (b, second), *_ = kinds.items()
        raise DataError(
            f"The levels of {name} are {a} in one chunk ({shown(first, 3)}) and {b} in another ({shown(second, 3)}), "
            "so none would meet: make the column one type in all chunks."
        )
    if all(levels.dtype == found[0].dtype and np.array_equal(levels, found[0]) for levels in found[1:]):
        return found[0]
    joined = np.concatenate(found)
    if joined.dtype.kind == "f" and any(levels.dtype.kind in "iu" for levels in found):
        # A chunk with missing values has its whole numbers as floats.
        joined = joined.astype(np.int64) if (joined == np.floor(joined)).all() else joined
    return factorize(pd.Series(joined, dtype=joined.dtype), name).levels


def _kind(levels: np.ndarray, name: str) -> str:
    """What labels are, in words: those of different kinds are never the same level."""
    kind = levels.dtype.kind
    if kind == "O":
        found = {_kind_of(label) for label in levels.tolist()}
        if "" in found:
            odd = next(label for label in levels.tolist() if not _kind_of(label))
            raise DataError(f"{name} has the level {odd!r}: levels of chunks are numbers, text, dates or truth values.")
        if len(found) == 1:
            return found.pop()
    words = {"b": "truth values", "M": "dates", "m": "durations", "U": "text", "O": "of several types"}
    return words.get(kind, "numbers")


def _kind_of(label: Any) -> str:
    known: dict[Any, str] = {bool: "truth values", str: "text", (int, float, np.number): "numbers", date: "dates"}
    return next((words for types, words in known.items() if isinstance(label, types)), "")


def interact(parts: list[Factor]) -> tuple[Factor, Crossing]:
    """Cross factors, keeping the combinations that occur.

    Returns
    -------
    factor : Factor
        Levels "a1:b1" for an interaction, first part slowest; a single part keeps its labels.
    crossing : Crossing
        Finds the codes of new rows.
    """
    if len(parts) == 1:
        (only,) = parts
        used = np.zeros(len(only.levels) + 1, dtype=bool)
        used[only.codes] = True
        if used[:-1].all():
            return only, Crossing((only.levels,), np.arange(len(only.levels)))
        occurring = np.flatnonzero(used[:-1])
        return only.without_unused_levels(), Crossing((only.levels,), occurring)
    occurring, codes = _cells(parts)
    return Factor(codes, _labels(parts, occurring, ":")), Crossing(tuple(f.levels for f in parts), occurring)


def interaction(parts: list[Factor], sep: str = ".", first_slowest: bool = False) -> Factor:
    """R's ``interaction()`` of the combinations that occur: the first factor runs fastest."""
    if first_slowest:
        occurring, codes = _cells(parts)
        return Factor(codes, _labels(parts, occurring, sep))
    occurring, codes = _cells(parts[::-1])
    return Factor(codes, _labels(parts[::-1], occurring, sep, reverse=True))


def _cells(parts: list[Factor]) -> tuple[np.ndarray, np.ndarray]:
    """Mixed-radix numbers of the cells that occur, and each row's position among them."""
    sizes = [len(f.levels) for f in parts]
    numbers, missing = _radix_numbers([f.codes for f in parts], sizes)
    return _compact(np.where(missing, -1, numbers), int(np.prod(sizes, dtype=object)))


def _labels(parts: list[Factor], cells: np.ndarray, sep: str, reverse: bool = False) -> np.ndarray:
    names = []
    for factor in reversed(parts):
        names.append(np.array(level_labels(factor.levels), dtype=object)[cells % len(factor.levels)])
        cells = cells // len(factor.levels)
    ordered = names if reverse else reversed(names)
    return np.array([sep.join(cell) for cell in zip(*ordered, strict=True)], dtype=object)


def _compact(numbers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct non-negative numbers, and each entry's position among them (-1 stays -1)."""
    if size <= 4 * len(numbers) + 1000:
        used = np.zeros(size + 1, dtype=bool)
        used[numbers] = True
        used[-1] = False
        renumber = np.append(np.cumsum(used[:-1]) - 1, -1)
        return np.flatnonzero(used), renumber[numbers]
    codes, distinct = pd.factorize(numbers, sort=True, use_na_sentinel=False)
    gap = int(len(distinct) > 0 and distinct[0] == -1)
    return distinct[gap:], codes - gap


def _radix_numbers(codes: list[np.ndarray], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mixed-radix numbers of rows of codes, and which rows have a missing part."""
    if float(np.prod([float(s) for s in sizes])) > 2.0**62:
        raise DataError("The interaction of the factors has more than 2^62 cells; build one column instead.")
    total, missing = np.zeros(len(codes[0]), dtype=np.int64), np.zeros(len(codes[0]), dtype=bool)
    for code, size in zip(codes, sizes, strict=True):
        total = total * size + code
        missing |= code < 0
    return total, missing
