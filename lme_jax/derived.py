"""Derived: what results offer beyond their estimates: marginal means, slopes, tidy frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .core.records import Fit
from .data import ModelData
from .errors import DataError
from .inference.degrees import Reference, by_column
from .inference.marginal_means import Basis, MarginalMeans
from .inference.reference_grid import Weights, means, read_specs
from .inference.tidy import fixed_rows, level_rows, parameter_rows, row_frame, stacked

Ddf = str | float | Callable[[np.ndarray], np.ndarray]


class Derived:
    """The part of every result that is computed from its fixed effects and the formula."""

    if TYPE_CHECKING:
        _data: ModelData
        cov_fe: pd.DataFrame

        @property
        def fit(self) -> Fit: ...
        @property
        def singular(self) -> bool: ...
        def _reference_of(self, ddf: str | None) -> Reference: ...

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
            ``.table``, ``.contrast()``, ``.test()``, ``.conf_int()``, ``.letters()``; ``lme_jax.plots.means`` draws it.

        References
        ----------
        Searle, Speed & Milliken (1980), Am. Stat. 34, 216–221.
        """
        inner, outer = read_specs(specs, by)
        keys, functions = means(self._data.design, inner, outer, at, weights)
        remarks = (*_averaging(self._data, inner + outer, at, weights), *self._cautions())
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
        remarks += self._cautions()
        return MarginalMeans(keys, functions, self._basis(ddf), tuple(outer), "slope", level, remarks=remarks)

    # ------------------------------------------------------------ tidy frames

    def tidy(
        self,
        effects: str | Sequence[str] = ("fixed", "ran_pars"),
        *,
        conf_level: float = 0.95,
        ddf: Ddf | None = None,
        p_adjust: str = "none",
    ) -> pd.DataFrame:
        """Estimates as broom.mixed's ``tidy`` names them: one row each.

        Parameters
        ----------
        effects : one or more of "fixed", "ran_pars" (standard deviations and correlations), "ran_vals" (conditional
            means of the random effects, with their conditional standard deviations).
        conf_level : of the fixed effects' intervals.
        ddf : degrees of freedom, as in ``emmeans``.
        p_adjust : {"none", "sidak", "bonferroni", "holm", "fdr"}
            Of the fixed effects' p-values taken together.

        Returns
        -------
        DataFrame
            ``effect, group, level, term, estimate, std.error, statistic, df, p.value, conf.low, conf.high``, those that
            the effects asked for have.
        """
        wanted = [effects] if isinstance(effects, str) else list(effects)
        result: Any = self
        parts = []
        for kind in wanted:
            if kind == "fixed":
                parts.append(fixed_rows(list(self._data.exog_names), self._basis(ddf), conf_level, p_adjust))
            elif kind == "ran_pars":
                parts.append(parameter_rows(result.varcorr))
            elif kind == "ran_vals":
                parts.append(level_rows(result.ranef, result.ranef_cov))
            else:
                raise DataError(f"tidy: effects={kind!r} is unknown; use 'fixed', 'ran_pars', 'ran_vals'")
        return stacked(parts)

    def glance(self) -> pd.DataFrame:
        """The fit in one row, as broom.mixed's ``glance``: nobs, sigma, logLik, AIC, BIC, REMLcrit or deviance, …"""
        result: Any = self
        row = {"nobs": result.nobs, "sigma": result.sigma, "logLik": result.llf, "AIC": result.aic, "BIC": result.bic}
        row["REMLcrit" if result.reml else "deviance"] = result.deviance
        return pd.DataFrame([row | {"df.residual": result.nobs - result.n_params}])

    def augment(self, data: Any = None) -> pd.DataFrame:
        """The rows that were fitted, with what the model says of each, as broom.mixed's ``augment`` names it.

        Parameters
        ----------
        data : the data frame that was fitted, optional
            Its columns come first, of the rows in use; the response and the grouping factors if None.

        Returns
        -------
        DataFrame
            ``.fitted`` (with the random effects), ``.resid``, ``.fixed`` (without), ``.offset``, ``.weights`` and
            ``.wtres`` = √w · ``.resid``.
        """
        result: Any = self
        rows = row_frame(self._data, data)
        weights = self._data.design.weights
        fixed = self._data.X @ np.asarray(result.fit.beta) + self._data.offset
        root = 1.0 if weights is None else np.sqrt(weights)
        more = {
            ".fitted": result.fittedvalues.to_numpy(),
            ".resid": result.resid.to_numpy(),
            ".fixed": fixed,
            ".offset": self._data.offset,
            ".weights": np.ones(len(fixed)) if weights is None else weights,
            ".wtres": root * result.resid.to_numpy(),
        }
        return rows.assign(**more)

    def _cautions(self) -> tuple[str, ...]:
        """What a reader of means should know of the fit: a transformed response, a variance at zero."""
        name = self._data.endog_name
        plain = name.startswith("`") or not any(mark in name for mark in "()+-*/^")
        out = () if plain else (f"On the scale of the response, {name}.",)
        singular = "The fit is singular: Satterthwaite's degrees of freedom count what is at its bound as known."
        return (*out, singular) if self.singular else out

    def _basis(self, ddf: Ddf | None) -> Basis:
        beta, cov = np.asarray(self.fit.beta), self.cov_fe.to_numpy()
        if callable(ddf):
            return Basis(beta, Reference("as given", cov, ddf, lambda L: (float(np.min(ddf(L))), 1.0)))
        if isinstance(ddf, (int, float, np.number)):
            return Basis(beta, by_column(f"{ddf:g}, as given", cov, np.full(len(cov), float(ddf))))
        return Basis(beta, self._reference_of(ddf))


def _averaging(data: ModelData, shown: list[str], at: Mapping[str, Any] | None, weights: str) -> tuple[str, ...]:
    """What was averaged over, and what was held."""
    found: Any = data.design.state
    variables = found.columns.variables
    others = [n for n, v in variables.items() if v.levels is not None and n not in shown and n not in (at or {})]
    held = [n for n, v in variables.items() if v.levels is None and n not in shown and n not in (at or {})]
    kind = "" if weights == "equal" else f" with {weights} weights"
    out = [f"Averaged over the levels of {', '.join(others)}{kind}."] if others else []
    return (*out, *([f"At the mean of {', '.join(held)}."] if held else []))
