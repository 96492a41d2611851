"""Crossed factors: the combinations of levels that occur, and how new rows find theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError
from lme_jax.formula.values import Factor, level_labels


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
