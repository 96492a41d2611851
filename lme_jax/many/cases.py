"""Samples of whole levels of one factor of several: the cases bootstrap and the jackknife, as rows.

The levels of one factor are drawn with all their rows; a level that is drawn twice is two levels, and so are those of
the factors inside it, while factors that cross it keep their levels. Of a nested chain that is the outermost factor,
whose levels are independent. Of crossed factors no resampling is right for all of them at once (McCullagh 2000,
Bernoulli 6, 285–301; Owen 2007, Ann. Appl. Stat. 1, 386–411), so the factor that stands for the sampling is named by
the person: the intervals are those of new levels of it, beside the same levels of the others.
"""

from dataclasses import replace

import numpy as np

from ..data import Factor, ModelData
from ..errors import DataError, UnsupportedError
from .alone import OneByOne, occurring
from .resampling import level_times


class Cases:
    """The samples of a model with several factors.

    Parameters
    ----------
    factor : whose levels are drawn, by name; None is the outermost of a nested chain.

    Raises
    ------
    DataError
        For crossed factors of which none is named, or an unknown one.
    UnsupportedError
        For levels that are related, or shared by rows.
    """

    def __init__(self, data: ModelData, factor: str | None) -> None:
        self._data = data
        self._drawn = data.factors[_chosen(data, factor)]
        self._inside = [other.is_inside(self._drawn) for other in data.factors]
        sizes = np.bincount(self._drawn.codes, minlength=self.n_levels)
        self._rows = np.split(np.argsort(self._drawn.codes, kind="stable"), np.cumsum(sizes)[:-1])

    @property
    def n_levels(self) -> int:
        return len(self._drawn.levels)

    def sample(self, times: np.ndarray) -> ModelData:
        """The rows of the levels ``times`` (m,) over."""
        drawn = np.repeat(np.arange(self.n_levels), times)
        rows = np.concatenate([self._rows[level] for level in drawn])
        copy = np.repeat(np.arange(len(drawn)), [len(self._rows[level]) for level in drawn])
        cut = self._data.rows(rows)
        pairs = zip(cut.factors, self._inside, strict=True)
        return occurring(replace(cut, factors=tuple(_copied(f, copy) if own else f for f, own in pairs)))

    def bootstrap(self, n: int, seed: int) -> OneByOne:
        """n samples of as many levels as there are, with replacement."""

        def drawn(number: int) -> ModelData:
            return self.sample(level_times(self.n_levels, seed, np.array([number]))[:, 0])

        return OneByOne(self._data, drawn, n)

    def jackknife(self) -> OneByOne:
        """Each level left out once."""
        levels = np.arange(self.n_levels)
        return OneByOne(self._data, lambda number: self.sample((levels != number).astype(int)), self.n_levels)


def _chosen(data: ModelData, name: str | None) -> int:
    names = [factor.name for factor in data.factors]
    if name is not None and name not in names:
        raise DataError(
            f"factor={name!r} is no grouping factor of the model: give one of {', '.join(map(repr, names))}"
        )
    outermost = [j for j, one in enumerate(data.factors) if all(other.is_inside(one) for other in data.factors)]
    if name is None and not outermost and len(names) > 1:
        raise DataError(
            f"the grouping factors {', '.join(map(repr, names))} cross, and no resampling is right for all of them at "
            f"once: name the one whose levels are drawn with all their rows, such as factor={names[0]!r}"
        )
    chosen = names.index(name) if name is not None else outermost[0] if outermost else 0
    if not data.factors[chosen].by_code:
        kind = "rows that belong to several levels" if data.factors[chosen].membership is not None else "related levels"
        raise UnsupportedError(
            f"the grouping factor {names[chosen]!r} has {kind}, which cannot be drawn one by one: use "
            "kind='parametric', and 'percentile' or 'basic' intervals"
        )
    return chosen


def _copied(factor: Factor, copy: np.ndarray) -> Factor:
    """The factor whose levels are told apart by the ``copy`` (n,) that their rows belong to."""
    used, codes = np.unique(copy * len(factor.levels) + factor.codes, return_inverse=True)
    return replace(factor, levels=used, codes=codes.reshape(-1).astype(np.int32))
