"""Derived: what results offer beyond their estimates: marginal means, slopes, tidy frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import ModelData
from .inference.marginal_means import Basis, MarginalMeans, constant_degrees, wald_basis
from .inference.reference_grid import Weights, means, read_specs

if TYPE_CHECKING:
    import pandas as pd

Ddf = str | float | Callable[[np.ndarray], np.ndarray]


class Derived:
    """The part of every result that is computed from its fixed effects and the formula."""

    if TYPE_CHECKING:
        _data: ModelData
        fe_params: pd.Series
        cov_fe: pd.DataFrame

        @property
        def df_resid(self) -> int: ...

    def emmeans(
        self,
        specs: Any,
        by: Any = None,
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        ddf: Ddf | None = None,
        level: float = 0.95,
    ) -> MarginalMeans:
        """Estimated marginal means: the fixed effects' predictions averaged over a grid of the other variables.

        Parameters
        ----------
        specs : str or list
            Variables for whose values means are wanted: ``"a"``, ``["a", "b"]``, ``"a * b"``, ``"a | b"`` (within b);
            ``[]`` for the mean over all.
        by : str or list, optional
            Variables within whose values means are compared.
        at : mapping, optional
            Values of variables. Otherwise factors have all their levels, numbers with two values both, and other
            numbers their mean in the rows that were fitted; ``log(x)``, ``poly(x, 2)`` … are those of the mean of x.
        weights : {"equal", "proportional", "outer", "cells"}
            Of the combinations of levels that are averaged over: equal; by their frequency in the data; by the product
            of the levels' frequencies; by their frequency within each mean, which is how raw means weigh.
        ddf : str, number or function, optional
            Degrees of freedom: a method, the degrees of freedom themselves, or L (m, p) -> (m,).
        level : of the intervals.

        Returns
        -------
        MarginalMeans
            ``.table``, ``.contrast()``, ``.test()``, ``.conf_int()``, ``.letters()``, ``.plot()``.

        References
        ----------
        Searle, Speed & Milliken (1980), Am. Stat. 34, 216–221.
        """
        inner, outer = read_specs(specs, by)
        keys, functions = means(self._data.design, inner, outer, at, weights)
        remarks = (*_averaging(self._data, inner + outer, at, weights), *_response(self._data.endog_name))
        return MarginalMeans(keys, functions, self._basis(ddf), tuple(outer), "mean", level, remarks=remarks)

    def emtrends(
        self,
        var: str,
        specs: Any = (),
        by: Any = None,
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        ddf: Ddf | None = None,
        level: float = 0.95,
    ) -> MarginalMeans:
        """Slopes of a number, averaged as ``emmeans`` averages: the derivative of the prediction by ``var``.

        Parameters
        ----------
        var : the variable; through ``log(var)``, ``poly(var, 2)`` … the slope is that at its mean, or at ``at``.
        specs, by, at, weights, ddf, level : as in ``emmeans``.
        """
        inner, outer = read_specs(specs, by)
        keys, functions = means(self._data.design, inner, outer, at, weights, var)
        remarks = (f"Slopes of {var}.", *_averaging(self._data, inner + outer, at, weights))
        remarks += _response(self._data.endog_name)
        return MarginalMeans(keys, functions, self._basis(ddf), tuple(outer), "slope", level, remarks=remarks)

    def _basis(self, ddf: Ddf | None) -> Basis:
        beta, cov = self.fe_params.to_numpy(), self.cov_fe.to_numpy()
        if callable(ddf):
            return wald_basis(beta, cov, ddf, "as given")
        if isinstance(ddf, (int, float)):
            return wald_basis(beta, cov, constant_degrees(float(ddf)), f"{ddf:g}, as given")
        if ddf == "residual":
            return wald_basis(beta, cov, constant_degrees(float(self.df_resid)), "rows less fixed effects")
        return wald_basis(beta, cov, constant_degrees(np.inf), "infinite (normal)")


def _averaging(data: ModelData, shown: list[str], at: Mapping[str, Any] | None, weights: str) -> tuple[str, ...]:
    """What was averaged over, and what was held."""
    found: Any = data.design.state
    variables = found.columns.variables
    others = [n for n, v in variables.items() if v.levels is not None and n not in shown and n not in (at or {})]
    held = [n for n, v in variables.items() if v.levels is None and n not in shown and n not in (at or {})]
    kind = "" if weights == "equal" else f" with {weights} weights"
    out = [f"Averaged over the levels of {', '.join(others)}{kind}."] if others else []
    return (*out, *([f"At the mean of {', '.join(held)}."] if held else []))


def _response(name: str) -> tuple[str, ...]:
    """A note where the response is not a plain column."""
    plain = not any(mark in name for mark in "()+-*/^")
    return () if plain else (f"On the scale of the response, {name}.",)
