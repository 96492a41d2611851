"""Results of models made of plain arrays, which people read by position: ``result.params[0]``."""

from typing import Any

import numpy as np
import pandas as pd

from .results import StatsmodelsFit


class PositionalSeries(pd.Series):
    """A Series that also takes integer positions, as the plain arrays of statsmodels' array models do."""

    @property
    def _constructor(self) -> Any:
        return PositionalSeries

    @property
    def _constructor_expanddim(self) -> Any:
        return PositionalFrame

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except (KeyError, IndexError, ValueError):
            return self.iloc[key]


class PositionalFrame(pd.DataFrame):
    """A DataFrame that also takes a pair of integer positions or slices."""

    @property
    def _constructor(self) -> Any:
        return PositionalFrame

    @property
    def _constructor_sliced(self) -> Any:
        return PositionalSeries

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and all(isinstance(k, (int, np.integer, slice)) for k in key):
            picked: Any = self.iloc[key]
            return picked.to_numpy() if isinstance(picked, pd.DataFrame) else picked
        return super().__getitem__(key)


def positional(value: Any) -> Any:
    """A Series or DataFrame that takes positions too; anything else as it is."""
    if isinstance(value, pd.DataFrame):
        return PositionalFrame(value)
    return PositionalSeries(value) if isinstance(value, pd.Series) else value


class ArrayFit(StatsmodelsFit):
    """A fit of a ``MixedLM`` of plain arrays: statsmodels' four vectors are plain, the rest takes positions too."""

    def cov_params(self, r_matrix: Any = None, column: Any = None, scale: Any = None) -> Any:
        """Covariance of ``params``; see ``PackedEstimates.cov_params``."""
        return positional(super().cov_params(r_matrix, column, scale))


PLAIN = ("params", "bse", "tvalues", "pvalues")
POSITIONAL = (
    "fe_params cov_fe bse_fe bse_fe_joint normalized_cov_params theta cov_re cov_re_unscaled bse_re varcorr "
    "covariance_parameters fittedvalues resid"
).split()


def _read_as(name: str, form: Any) -> property:
    inherited = getattr(StatsmodelsFit, name)
    return property(lambda self: form(inherited.__get__(self, type(self))), doc=inherited.__doc__)


for _name in PLAIN:
    setattr(ArrayFit, _name, _read_as(_name, np.array))
for _name in POSITIONAL:
    setattr(ArrayFit, _name, _read_as(_name, positional))
