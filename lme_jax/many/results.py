"""ManyFits: labels on the arrays of many fits. R models cost R rows of arrays, never R Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..errors import ConvergenceError, ConvergenceWarning, DataError, RankWarning, UnsupportedError, warn_caller
from ..fitting import WITHOUT_ESTIMATES, read_only, reason
from ..inference.wald import covariance_standard_errors, variance_parameter_covariance, wald_table
from .coefficients import table


class SingleResults(Protocol):
    """Single results by number; see ``views``."""

    def data(self, number: int) -> ModelData:
        """The rows and the response of one fit."""

    def result(self, number: int, lane: Fit) -> Any:
        """The result of one fit, whose arrays are ``lane``."""


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
    views : for single results.
    """

    def __init__(
        self,
        fit: Fit,
        data: ModelData,
        names: pd.Index,
        *,
        reml: bool,
        n_obs: np.ndarray,
        views: SingleResults,
    ) -> None:
        self._fit = read_only(fit, copy=False)
        self.names = names
        self.reml = reml
        self.n_obs = n_obs
        self.n_obs.setflags(write=False)
        self._data = data
        self._views = views

    @property
    def fit(self) -> Fit:
        """The arrays, read-only."""
        return self._fit

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fit = read_only(self._fit, copy=False)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        counts = self.status.value_counts()
        ended = ", ".join(f"{n} {status}" for status, n in counts.items())
        return f"ManyFits of {len(self)} {self._data.endog_name} fits ({'REML' if self.reml else 'ML'}): {ended}"

    def one(self, name: Any) -> Any:
        """The ``MixedLMResults`` of one fit, by its label: everything a single fit offers, without fitting again.

        Raises
        ------
        ConvergenceError
            For a fit without estimates, with the reason.
        """
        try:
            where = np.flatnonzero(self.names.isin([name]))
        except TypeError:
            where = np.zeros(0, int)
        if len(where) != 1:
            raise DataError(f"{len(where)} of the {len(self)} fits are called {name!r}: give one of .names")
        number = int(where[0])
        status = Status(int(self.fit.status[number]))
        if status in WITHOUT_ESTIMATES:
            raise ConvergenceError(f"the fit {name!r} has no estimates ({status.text}). {self._reason(number)}")
        return self._views.result(number, self._lane(number))

    def _reason(self, number: int) -> str:
        try:
            return reason(self._views.data(number), Status(int(self.fit.status[number])))
        except UnsupportedError:
            return ""

    def _lane(self, number: int) -> Fit:
        return Fit(**{name: getattr(self.fit, name)[number] for name in vars(self.fit)})

    # ------------------------------------------------------------ per fit

    @property
    def status(self) -> pd.Series:
        """How each search ended: converged, singular, max_iter, stalled, not_finite, interrupted, not_identified.

        The last are fits that ``lmer`` refuses (one level, columns that their rows do not tell apart, …); ``reasons``
        says which.
        """
        text = np.array([s.name.lower() for s in Status])
        return pd.Series(text[self.fit.status], index=self.names, name="status")

    @cached_property
    def reasons(self) -> pd.Series:
        """Why fits have no estimates, in words: of those that are not identified or leave no residual variation."""
        which = np.flatnonzero(np.isin(self.fit.status, WITHOUT_ESTIMATES))
        return pd.Series([self._reason(number) for number in which.tolist()], self.names[which], str, name="reasons")

    def warn_of_failures(self) -> None:
        """One warning for all the fits that did not reach an optimum, and one for those that left columns out."""
        dropped = self.dropped_columns
        if len(dropped):
            warn_caller(
                f"{len(dropped)} of {len(self)} fits leave out fixed effects that their rows do not tell apart (see "
                f".dropped_columns); the first is {dropped.index[0]!r}, without {', '.join(dropped.iloc[0])}",
                RankWarning,
            )
        failed = ~self.converged & (self.fit.status != Status.INTERRUPTED)
        if not failed.any():
            return
        counts = self.status[failed].value_counts()
        which = ", ".join(f"{n} {status}" for status, n in counts.items())
        first = ", ".join(repr(name) for name in self.names[failed][:5].tolist())
        lost = np.flatnonzero(failed & np.isin(self.fit.status, WITHOUT_ESTIMATES))[:1].tolist()
        example = f" Of {self.names[lost[0]]!r}: {self._reason(lost[0])}" if lost else ""
        warn_caller(
            f"{int(failed.sum())} of {len(self)} fits did not reach an optimum ({which}; the first are {first}): "
            f"see .status and .reasons; their numbers are not estimates.{example}",
            ConvergenceWarning,
        )

    @property
    def converged(self) -> np.ndarray:
        """(R,) whether each search reached an optimum (a singular fit is one)."""
        return np.isin(self.fit.status, [s for s in Status if s.is_optimum])

    @property
    def backend(self) -> str:
        """What computed the fits: "numpy", or "jax" for compiled programs."""
        return "jax" if np.any(self.fit.compiled) else "numpy"

    @property
    def llf(self) -> pd.Series:
        """Log-likelihoods (restricted under REML)."""
        return pd.Series(-0.5 * self.fit.deviance, index=self.names, name="llf")

    @property
    def _n_fixed(self) -> np.ndarray:
        """(R,) fixed effects of each fit."""
        lost = np.isin(self.fit.status, WITHOUT_ESTIMATES)
        return np.where(lost, self.fit.beta.shape[1], np.isfinite(self.fit.beta).sum(1))

    @property
    def n_params(self) -> np.ndarray:
        """(R,) fixed effects, covariance parameters and σ of each fit."""
        return self._n_fixed + self.fit.theta.shape[1] + 1

    @cached_property
    def dropped_columns(self) -> pd.Series:
        """Fixed effects that the rows of a fit do not tell apart and that it leaves out, of the fits that have such."""
        names = np.array(self._data.exog_names, dtype=object)
        which = np.flatnonzero(self._n_fixed < len(names))
        lost = [tuple(names[~np.isfinite(self.fit.beta[number])]) for number in which.tolist()]
        return pd.Series(lost, self.names[which], object, name="dropped_columns")

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
        dof = self.n_obs - (self._n_fixed if self.reml else 0)
        errors = covariance_standard_errors(self.fit, self._data.template, dof)
        rows, columns = self._data.covariance_positions
        out = pd.DataFrame(errors[:, rows, columns], index=self.names, columns=list(self._data.covariance_names))
        out["Residual Var"] = self.fit.sigma**2 * np.sqrt(variance_parameter_covariance(self.fit, dof)[:, -1, -1])
        return out

    @property
    def params(self) -> pd.DataFrame:
        """Fixed effects, (co)variances and residual variance: one row per fit."""
        return pd.concat([self.fe_params, self.vcov], axis=1)

    @property
    def complete(self) -> np.ndarray:
        """(R,) whether a fit has all the rows of the design, as complete responses of one design have."""
        return self.n_obs == self._data.n_rows

    def coefficients(self, ddf: str | None = None, level: float = 0.95, p_adjust: str = "none") -> pd.DataFrame:
        """The fixed effects of every fit with t tests: one row per fit × term.

        Parameters
        ----------
        ddf : as of ``MixedLMResults.coefficients``: Satterthwaite's under REML by default. Those of complete responses
            of one design are computed together; others, and other methods, one fit after the other.
        level : of the limits.
        p_adjust : {"none", "fdr", "holm", "bonferroni", "sidak"}
            Of the p-values of a term over all fits; "fdr" is Benjamini and Hochberg's.

        Returns
        -------
        DataFrame
            ``response``, ``term``, ``estimate``, ``se``, ``df``, ``statistic``, ``p``, ``lower``, ``upper``; tests of
            fits without an optimum are NaN.
        """
        return table(self, ddf, level, p_adjust)

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
    if not named or not all(isinstance(many, ManyFits) for many in named.values()):
        raise DataError("compare takes several ManyFits, as a list or a dict of names: see lmer_many")
    rows = [
        many.fits[["n_obs", "llf", "aic", "bic", "status"]].assign(model=name).rename_axis("response").reset_index()
        for name, many in named.items()
    ]
    table = pd.concat(rows, ignore_index=True)
    for criterion in ("aic", "bic"):
        table[f"best_{criterion}"] = table[criterion] == table.groupby("response")[criterion].transform("min")
    columns = ["response", "model", "n_obs", "llf", "aic", "best_aic", "bic", "best_bic", "status"]
    return table.sort_values(["response", "model"], kind="stable", ignore_index=True)[columns]
