"""Lanes that are fits of their own: designs with many effects, missing rows, and data sets, of several factors."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..core.batch import Alone, Family
from ..core.fit import ModelStatistics
from ..data import Factor, ModelData
from ..fitting import estimable_columns

# Lanes that a worker takes at a time: an interrupt keeps all but these.
AT_ONCE = 2


class OneByOne:
    """Models that are compressed and fitted one after the other, over the cores, in bounded memory.

    Parameters
    ----------
    design : whose template and fixed effects all of them have.
    data_of : a model's rows and response.

    Attributes
    ----------
    n_obs, identified, spread : (n,) of those that were compressed; see ``responses.FittedLanes``.
    """

    def __init__(self, design: ModelData, data_of: Callable[[int], ModelData], n: int) -> None:
        self._design, self._data_of = design, data_of
        self.n_obs = np.full(n, design.n_rows)
        self.identified, self.spread = np.ones(n, bool), np.full(n, np.nan)

    def family(self, which: np.ndarray, start: np.ndarray | None) -> Family:
        """The models ``which``, each from θ = ``start`` (k,) or None."""
        return Family.cut(which, AT_ONCE, self.compress, start)

    def compress(self, which: np.ndarray) -> Alone:
        """Models as lanes; their rows are looked at here, and compressed when their turn comes."""
        lanes = [self._statistics(number) for number in which.tolist()]
        return Alone(lanes, self._design.template, self._design.X.shape[1])

    def _statistics(self, number: int) -> Callable[[], ModelStatistics] | None:
        own = self._data_of(number)
        self.n_obs[number] = own.n_rows
        self.identified[number] = own.factors is self._design.factors or is_identified(own)
        if not self.identified[number]:
            return None
        self.spread[number] = max(own.spread, np.finfo(float).tiny)
        return lambda: own.compressed


def is_identified(data: ModelData) -> bool:
    """Whether ``lmer`` accepts the rows with all their columns, whatever the response."""
    if data.n_rows < 2:
        return False
    keep = estimable_columns(data.with_response(np.linspace(-1.0, 1.0, data.n_rows)))
    return keep is not None and len(keep) == data.X.shape[1]


def occurring(data: ModelData) -> ModelData:
    """The model with the levels that its rows have, where levels are independent."""
    return replace(data, factors=tuple(_occurring(factor) for factor in data.factors))


def _occurring(factor: Factor) -> Factor:
    if not factor.by_code:
        return factor
    used, codes = np.unique(factor.codes, return_inverse=True)
    return replace(factor, levels=np.asarray(factor.levels)[used], codes=codes.reshape(-1).astype(np.int32))
