"""MixedLMResults: labels on a Fit. Nothing is computed before it is asked for, nothing changes after."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from .core.fit import random_effects
from .core.records import Fit, RandomEffects
from .core.types import Status
from .data import Factor, ModelData
from .inference.wald import covariance_standard_errors, wald_table
from .summary import Summary


class MixedLMResults:
    """A fitted linear mixed model.

    Results are immutable: refitting the model, or changing the data frame it came from, leaves them as
    they were. Variances are in response units², standard deviations in response units.

    Parameters
    ----------
    data : ModelData
        What was fitted.
    fit : Fit
        The arrays of the optimum.
    reml : bool
        The criterion.
    """

    def __init__(self, data: ModelData, fit: Fit, *, reml: bool) -> None:
        self._data = data
        self.fit = fit
        self.reml = reml

    # ------------------------------------------------------------ criterion

    @property
    def method(self) -> str:
        return "REML" if self.reml else "ML"

    @property
    def deviance(self) -> float:
        """−2 log L, or the REML criterion."""
        return float(self.fit.deviance)

    @property
    def llf(self) -> float:
        """Log-likelihood (restricted under REML) at the estimates."""
        return -0.5 * self.deviance

    @property
    def nobs(self) -> int:
        return self._data.n_rows

    @property
    def n_params(self) -> int:
        """Fixed effects, covariance parameters and σ."""
        return len(self.fit.beta) + len(self.fit.theta) + 1

    @property
    def aic(self) -> float:
        """−2 ℓ + 2·(p + k + 1), with the restricted ℓ under REML (lme4's convention; statsmodels gives NaN)."""
        return self.deviance + 2.0 * self.n_params

    @property
    def bic(self) -> float:
        """−2 ℓ + log(n)·(p + k + 1), n the number of rows, with the restricted ℓ under REML (as lme4)."""
        return self.deviance + np.log(self.nobs) * self.n_params

    @property
    def status(self) -> Status:
        return Status(int(self.fit.status))

    @property
    def converged(self) -> bool:
        return self.status.is_optimum

    @property
    def singular(self) -> bool:
        """Whether a variance is estimated as zero or a correlation as ±1."""
        return self.status is Status.SINGULAR

    # ------------------------------------------------------------ fixed effects

    @cached_property
    def fe_params(self) -> pd.Series:
        """Fixed effects β̂ (p,)."""
        return pd.Series(self.fit.beta, index=self._exog_names, name="fe_params")

    @cached_property
    def cov_fe(self) -> pd.DataFrame:
        """Cov β̂ = σ̂²(XᵀV⁻¹X)⁻¹ (p, p): generalised least squares, as lme4, nlme and SAS report it."""
        cov = self.scale * np.asarray(self.fit.unscaled_cov)
        return pd.DataFrame(cov, index=self._exog_names, columns=self._exog_names)

    @cached_property
    def bse_fe(self) -> pd.Series:
        """Standard errors of the fixed effects (p,), √diag ``cov_fe``."""
        return pd.Series(np.sqrt(np.diag(self.cov_fe)), index=self._exog_names, name="bse_fe")

    # ------------------------------------------------------------ variance components

    @property
    def scale(self) -> float:
        """Residual variance σ̂²."""
        return float(self.fit.sigma) ** 2

    @property
    def sigma(self) -> float:
        """Residual standard deviation σ̂."""
        return float(self.fit.sigma)

    @cached_property
    def theta(self) -> pd.Series:
        """Relative covariance parameters (k,), dimensionless: the packed factor L per term."""
        return pd.Series(self.fit.theta, index=self._data.theta_names, name="theta")

    @cached_property
    def _term_covariances(self) -> list[np.ndarray]:
        """Ψ (q, q) of each random term, in formula order."""
        L = np.asarray(self.fit.relative_factor)
        Psi = self.scale * (L @ L.T)
        return [Psi[columns, columns] for columns in self._data.term_slices]

    @cached_property
    def factor_cov(self) -> Mapping[str, pd.DataFrame]:
        """Ψ of all the effects of each grouping factor, response units²."""
        L = np.asarray(self.fit.relative_factor)
        Psi, at, out = self.scale * (L @ L.T), 0, {}
        for factor in self._data.factors:
            part = slice(at, at + len(factor.columns))
            at = part.stop
            out[factor.name] = pd.DataFrame(Psi[part, part], index=factor.columns, columns=factor.columns)
        return out

    @cached_property
    def cov_re(self) -> pd.DataFrame:
        """Ψ, the covariance of the random effects (block diagonal over the terms), response units²."""
        names = [c for term in self._data.terms for c in term.columns]
        L = np.asarray(self.fit.relative_factor)
        return pd.DataFrame(self.scale * (L @ L.T), index=names, columns=names)

    @property
    def cov_re_unscaled(self) -> pd.DataFrame:
        """Ψ/σ̂² = LLᵀ."""
        return self.cov_re / self.scale

    @property
    def vcomp(self) -> np.ndarray:
        """Variances of the independent components (identity blocks), response units²."""
        terms = zip(self._data.terms, self._term_covariances, strict=True)
        return np.array([Psi[0, 0] for term, Psi in terms if term.structure == "identity"])

    @cached_property
    def varcorr(self) -> pd.DataFrame:
        """lme4's ``as.data.frame(VarCorr(fit))``: columns grp, var1, var2, vcov, sdcor.

        A row per variance (sdcor is the standard deviation) and per covariance that the structure allows
        (sdcor is the correlation, NaN where a variance is zero), then the residual.
        """
        rows: list[tuple[str, str | None, str | None, float, float]] = []
        for label, term, Psi in zip(self._data.term_labels, self._data.terms, self._term_covariances, strict=True):
            sd = np.sqrt(np.diag(Psi))
            rows += [(label, c, None, Psi[i, i], sd[i]) for i, c in enumerate(term.columns)]
            if term.structure in ("diagonal", "identity"):
                continue
            for j, first in enumerate(term.columns):
                for i in range(j + 1, len(term.columns)):
                    product = sd[i] * sd[j]
                    correlation = Psi[i, j] / product if product > 0 else np.nan
                    rows.append((label, first, term.columns[i], Psi[i, j], correlation))
        rows.append(("Residual", None, None, self.scale, self.sigma))
        return pd.DataFrame(rows, columns=["grp", "var1", "var2", "vcov", "sdcor"])

    @cached_property
    def bse_re(self) -> pd.Series:
        """Standard errors of the (co)variances of the random effects (k,), response units².

        By the delta method from the deviance's Hessian, so they scale as variances do (statsmodels
        multiplies profile-scale ones by √σ²). NaN at a singular fit, where no normal approximation holds.
        """
        dof = self.nobs - (len(self.fit.beta) if self.reml else 0)
        errors = covariance_standard_errors(self.fit, self._data.template, dof)
        rows, columns = self._data.covariance_positions
        return pd.Series(errors[rows, columns], index=self._data.covariance_names, name="bse_re")

    # ------------------------------------------------------------ random effects

    @cached_property
    def _random_effects(self) -> tuple[RandomEffects, ...]:
        return random_effects(self.fit, self._data.compressed)

    @cached_property
    def ranef(self) -> Mapping[str, pd.DataFrame]:
        """BLUPs per grouping factor: a DataFrame (levels × effects)."""
        return {
            factor.name: pd.DataFrame(
                effects.b[: len(factor.levels)],
                index=pd.Index(factor.levels, name=factor.name),
                columns=factor.columns,
            )
            for factor, effects in zip(self._data.factors, self._random_effects, strict=True)
        }

    @cached_property
    def ranef_cov(self) -> Mapping[str, np.ndarray]:
        """Var(b | y) with β, θ fixed (lme4's condVar) per factor, (levels, q, q) in the order of ``ranef``."""
        return {
            factor.name: effects.conditional_cov[: len(factor.levels)]
            for factor, effects in zip(self._data.factors, self._random_effects, strict=True)
        }

    @cached_property
    def random_effects(self) -> dict[Any, pd.Series]:
        """BLUPs of the first grouping factor as statsmodels gives them: group → Series of its effects."""
        frame = self.ranef[self._factor.name]
        rows = zip(frame.index, frame.to_numpy(), strict=True)
        return {group: pd.Series(row, index=frame.columns) for group, row in rows}

    @cached_property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Var(b | y) of the first grouping factor with β, θ fixed: group → DataFrame (q, q)."""
        columns = list(self._factor.columns)
        covs = zip(self._factor.levels, self.ranef_cov[self._factor.name], strict=True)
        return {group: pd.DataFrame(cov, index=columns, columns=columns) for group, cov in covs}

    @cached_property
    def fittedvalues(self) -> pd.Series:
        """Xβ̂ + Zb̂ + offset, for the rows that were fitted."""
        values = self._data.X @ self.fit.beta + self._data.offset
        for factor, effects in zip(self._data.factors, self._random_effects, strict=True):
            values += np.einsum("nq,nq->n", factor.Z, effects.b[factor.codes])
        return pd.Series(values, index=self._data.index, name="fittedvalues")

    @cached_property
    def resid(self) -> pd.Series:
        """y − fittedvalues, response units."""
        return (self._data.y - self.fittedvalues).rename("resid")

    # ------------------------------------------------------------ report

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Normal-theory confidence limits of the fixed effects, (p, 2)."""
        table = wald_table(self.fe_params.to_numpy(), self.bse_fe.to_numpy(), alpha)
        return pd.DataFrame({0: table.lower, 1: table.upper}, index=self._exog_names)

    def summary(self, title: str | None = None, alpha: float = 0.05) -> Summary:
        """Criterion, estimates with standard errors, variance components, and how the fit ended."""
        tables = [self._facts(), self._estimates(alpha), self._components()]
        notes = [f"The optimiser {self.status.text} after {int(self.fit.iterations)} evaluations;"]
        notes.append(f"½gᵀH⁻¹g = {float(self.fit.decrease):.1e} deviance units remain.")
        if self._data.n_dropped:
            notes.append(f"{self._data.n_dropped} rows with missing values were left out.")
        if self._data.dropped_columns:
            notes.append(f"Dropped because other columns determine them: {', '.join(self._data.dropped_columns)}.")
        captions = ("", "Estimates (z tests; fixed effects by GLS)", "Random effects")
        return Summary(title or "Linear mixed model fit", tables, captions, tuple(notes))

    def _facts(self) -> pd.DataFrame:
        names = {True: "REML criterion", False: "−2 log L"}
        left = [
            ("Dependent variable:", self._data.endog_name),
            ("Method:", self.method),
            (f"{names[self.reml]}:", self.deviance),
            ("Log-likelihood:", self.llf),
            ("AIC:", self.aic),
            ("BIC:", self.bic),
        ]
        groups = ", ".join(f"{f.name} {len(f.levels)}" for f in self._data.factors)
        sizes = self._factor.sizes
        right = [
            ("Observations:", self.nobs),
            ("Groups:", groups),
            (f"Rows per {self._factor.name}:", f"{sizes.min()} to {sizes.max()}, mean {sizes.mean():.1f}"),
            ("Residual variance:", self.scale),
            ("Residual SD:", self.sigma),
            ("Converged:", "yes, singular" if self.singular else "yes" if self.converged else "NO"),
        ]
        return pd.DataFrame([a + b for a, b in zip(left, right, strict=True)])

    def _estimates(self, alpha: float) -> pd.DataFrame:
        table = wald_table(self.fe_params.to_numpy(), self.bse_fe.to_numpy(), alpha)
        limits = [f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"]
        columns = ["Coef.", "Std.Err.", "z", "P>|z|", *limits]
        fixed = pd.DataFrame(dict(zip(columns, table, strict=True)), index=list(self._exog_names))
        rows, cols = self._data.covariance_positions
        components = pd.DataFrame(
            {"Coef.": self.cov_re.to_numpy()[rows, cols], "Std.Err.": self.bse_re.to_numpy()},
            index=self._data.covariance_names,
        )
        return pd.concat([fixed, components]).reindex(columns=columns)

    def _components(self) -> pd.DataFrame:
        frame = self.varcorr
        variances = frame[frame.var2.isna()]
        out = pd.DataFrame(
            {
                "Effect": variances.var1.fillna(""),
                "Variance": variances.vcov,
                "SD": variances.sdcor,
            }
        )
        out.index = pd.Index(list(variances.grp))
        correlations = frame[frame.var2.notna()]
        for var1 in correlations.var1.unique():
            column = []
            for grp, effect in zip(variances.grp, variances.var1, strict=True):
                hit = correlations[
                    (correlations.grp == grp) & (correlations.var1 == var1) & (correlations.var2 == effect)
                ]
                column.append(float(hit.sdcor.iloc[0]) if len(hit) else np.nan)
            out[f"Corr {var1}"] = column
        return out

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().as_html()

    # ------------------------------------------------------------ shorthands

    @property
    def _exog_names(self) -> tuple[str, ...]:
        return self._data.exog_names

    @property
    def _factor(self) -> Factor:
        return self._data.factors[0]
