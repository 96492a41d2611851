"""ManyFits: labels on the arrays of many fits. R models cost R rows of arrays, never R Python objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .core.records import Fit
from .core.types import Status
from .data import ModelData
from .errors import DataError
from .inference.wald import covariance_standard_errors, wald_table


class ManyFits:
    """Fits of one model to many responses or data sets.

    Parameters
    ----------
    fit : Fit
        Arrays with a leading axis over the R fits.
    data : ModelData
        The design, for labels.
    names : R labels of the fits.
    reml : the criterion.
    n_obs : (R,) rows that counted.
    view : from a fit's number and Fit to its ``MixedLMResults``.
    """

    def __init__(
        self,
        fit: Fit,
        data: ModelData,
        names: pd.Index,
        *,
        reml: bool,
        n_obs: np.ndarray,
        view: Callable[[int, Fit], Any],
    ) -> None:
        self.fit = fit
        self.names = names
        self.reml = reml
        self.n_obs = n_obs
        self._data = data
        self._view = view

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        counts = self.status.value_counts()
        ended = ", ".join(f"{n} {status}" for status, n in counts.items())
        return f"ManyFits of {len(self)} {self._data.endog_name} fits ({'REML' if self.reml else 'ML'}): {ended}"

    def one(self, name: Any) -> Any:
        """The ``MixedLMResults`` of one fit, by its label: everything a single fit offers, without fitting again."""
        where = np.flatnonzero(self.names == name)
        if len(where) != 1:
            raise DataError(f"{len(where)} of the {len(self)} fits are called {name!r}: give one of .names")
        number = int(where[0])
        return self._view(number, self._lane(number))

    def _lane(self, number: int) -> Fit:
        return Fit(**{name: getattr(self.fit, name)[number] for name in vars(self.fit)})

    # ------------------------------------------------------------ per fit

    @property
    def status(self) -> pd.Series:
        """How each search ended: converged, singular, max_iter, stalled, not_finite, interrupted."""
        text = np.array([s.name.lower() for s in Status])
        return pd.Series(text[self.fit.status], index=self.names, name="status")

    @property
    def converged(self) -> np.ndarray:
        """(R,) whether each search reached an optimum (a singular fit is one)."""
        return np.isin(self.fit.status, [s for s in Status if s.is_optimum])

    @property
    def llf(self) -> pd.Series:
        """Log-likelihoods (restricted under REML)."""
        return pd.Series(-0.5 * self.fit.deviance, index=self.names, name="llf")

    @property
    def n_params(self) -> int:
        """Fixed effects, covariance parameters and σ of each model."""
        return self.fit.beta.shape[1] + self.fit.theta.shape[1] + 1

    @property
    def fits(self) -> pd.DataFrame:
        """One row per fit: n_obs, deviance, llf, aic, bic, sigma, status, iterations."""
        deviance = self.fit.deviance
        return pd.DataFrame(
            {
                "n_obs": self.n_obs,
                "deviance": deviance,
                "llf": -0.5 * deviance,
                "aic": deviance + 2.0 * self.n_params,
                "bic": deviance + np.log(np.maximum(self.n_obs, 1)) * self.n_params,
                "sigma": self.fit.sigma,
                "status": self.status.to_numpy(),
                "iterations": self.fit.iterations,
            },
            index=self.names,
        )

    # ------------------------------------------------------------ per fit and term

    @property
    def fe_params(self) -> pd.DataFrame:
        """Fixed effects (R, p)."""
        return pd.DataFrame(self.fit.beta, index=self.names, columns=list(self._data.exog_names))

    @property
    def bse_fe(self) -> pd.DataFrame:
        """Standard errors of the fixed effects (R, p), by generalised least squares."""
        variance = np.diagonal(self.fit.unscaled_cov, axis1=1, axis2=2)
        se = self.fit.sigma[:, None] * np.sqrt(variance)
        return pd.DataFrame(se, index=self.names, columns=list(self._data.exog_names))

    @cached_property
    def _covariance(self) -> np.ndarray:
        L = self.fit.relative_factor
        return self.fit.sigma[:, None, None] ** 2 * (L @ np.swapaxes(L, 1, 2))

    @property
    def vcov(self) -> pd.DataFrame:
        """Free (co)variances of the random effects, then the residual variance: (R, · + 1), response units²."""
        rows, columns = self._data.covariance_positions
        out = pd.DataFrame(
            self._covariance[:, rows, columns], index=self.names, columns=list(self._data.covariance_names)
        )
        out["Residual Var"] = self.fit.sigma**2
        return out

    @property
    def bse_vcov(self) -> pd.DataFrame:
        """Standard errors of ``vcov`` by the delta method; NaN at singular fits."""
        dof = self.n_obs - (self.fit.beta.shape[1] if self.reml else 0)
        errors = covariance_standard_errors(self.fit, self._data.template, dof)
        rows, columns = self._data.covariance_positions
        out = pd.DataFrame(errors[:, rows, columns], index=self.names, columns=list(self._data.covariance_names))
        out["Residual Var"] = self.fit.sigma**2 * np.sqrt(2.0 / dof)
        return out

    @property
    def params(self) -> pd.DataFrame:
        """Fixed effects, (co)variances and residual variance: one row per fit."""
        return pd.concat([self.fe_params, self.vcov], axis=1)

    def frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """Tidy: one row per fit × term.

        Returns
        -------
        DataFrame
            ``response``, ``effect`` ("fixed" or "random"), ``term``, ``estimate``, ``std_error``; for fixed
            effects Wald's ``statistic`` and ``p_value``, and the limits ``lower``, ``upper`` at 1 − alpha.
        """
        fixed = self._long(self.fe_params, self.bse_fe, "fixed")
        table = wald_table(fixed["estimate"].to_numpy(), fixed["std_error"].to_numpy(), alpha)
        fixed = fixed.assign(statistic=table.z, p_value=table.p_value, lower=table.lower, upper=table.upper)
        random = self._long(self.vcov, self.bse_vcov, "random").reindex(columns=fixed.columns)
        both = pd.concat([fixed, random.astype(fixed.dtypes)], ignore_index=True)
        both["order"] = np.concatenate([self._order(fixed), self._order(random)])
        return both.sort_values("order", kind="stable", ignore_index=True).drop(columns="order")

    def _order(self, long: pd.DataFrame) -> np.ndarray:
        return np.repeat(np.arange(len(self)), len(long) // max(len(self), 1))

    def _long(self, estimate: pd.DataFrame, std_error: pd.DataFrame, effect: str) -> pd.DataFrame:
        n_terms = estimate.shape[1]
        return pd.DataFrame(
            {
                "response": np.repeat(self.names.to_numpy(), n_terms),
                "effect": effect,
                "term": np.tile(estimate.columns.to_numpy(), len(self)),
                "estimate": estimate.to_numpy().ravel(),
                "std_error": std_error.to_numpy().ravel(),
            }
        )


def compare(models: dict[str, ManyFits] | Sequence[ManyFits]) -> pd.DataFrame:
    """AIC and BIC of several models of the same responses: one row per response × model, the best marked.

    Models are comparable under ML, or under REML with equal fixed effects.
    """
    named = models if isinstance(models, dict) else {f"model{i + 1}": m for i, m in enumerate(models)}
    rows = [
        many.fits[["n_obs", "llf", "aic", "bic", "status"]].assign(model=name).rename_axis("response").reset_index()
        for name, many in named.items()
    ]
    table = pd.concat(rows, ignore_index=True)
    for criterion in ("aic", "bic"):
        table[f"best_{criterion}"] = table[criterion] == table.groupby("response")[criterion].transform("min")
    columns = ["response", "model", "n_obs", "llf", "aic", "best_aic", "bic", "best_bic", "status"]
    return table.sort_values(["response", "model"], kind="stable", ignore_index=True)[columns]
