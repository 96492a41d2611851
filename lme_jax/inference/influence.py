"""Influence: leverage, what a fit would be without a row or a level, and how far that is from what it is."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..core import clusters, deletion
from ..core.deletion import Deletion, RowTerms
from ..core.fit import fit_at
from ..core.henderson import MixedModelEquations
from ..core.records import Fit
from ..data import Factor, ModelData
from .robust import arranged


@dataclass(frozen=True)
class Influence:
    """Fits that leave out a row, or a level, beside the fit of all.

    Attributes
    ----------
    deletion : the fits; beta, unscaled_cov, sigma : of all rows; labels : of what was left out; names : p effects.
    refitted : whether θ was estimated again each time, or kept.
    """

    deletion: Deletion
    beta: np.ndarray
    unscaled_cov: np.ndarray
    sigma: float
    labels: pd.Index
    names: tuple[str, ...]
    refitted: bool

    def _frame(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, index=self.labels, columns=list(self.names))

    @property
    def estimates(self) -> pd.DataFrame:
        """Fixed effects of every fit (m, p)."""
        return self._frame(self.deletion.beta)

    @property
    def dfbeta(self) -> pd.DataFrame:
        """β̂ − β̂₍ᵢ₎ (m, p)."""
        return self._frame(self.beta - self.deletion.beta)

    @property
    def dfbetas(self) -> pd.DataFrame:
        """``dfbeta`` over the standard errors of the fit that leaves out (m, p)."""
        d = self.deletion
        return self._frame((self.beta - d.beta) / (d.sigma[:, None] * np.sqrt(d.variance)))

    @property
    def sigma_deleted(self) -> pd.Series:
        """σ̂ of every fit (m,)."""
        return pd.Series(self.deletion.sigma, index=self.labels, name="sigma")

    @property
    def cooks(self) -> pd.Series:
        """Cook's distance (β̂ − β̂₍ᵢ₎)ᵀ(Cov β̂)⁻¹(β̂ − β̂₍ᵢ₎)/p (m,), Cov β̂ of all rows."""
        gap, p = self.beta - self.deletion.beta, len(self.beta)
        white = np.linalg.solve(np.linalg.cholesky(self.unscaled_cov), gap.T) / self.sigma
        return pd.Series((white**2).sum(0) / p, index=self.labels, name="cooks")

    @property
    def covratio(self) -> pd.Series:
        """det Cov β̂₍ᵢ₎ / det Cov β̂ (m,): above 1 where what was left out made the estimates more precise."""
        p = len(self.beta)
        log = self.deletion.log_det + 2.0 * p * (np.log(self.deletion.sigma) - np.log(self.sigma))
        return pd.Series(np.exp(log), index=self.labels, name="covratio")

    @property
    def table(self) -> pd.DataFrame:
        """Cook's distance, covratio, σ̂ and the largest |DFBETAS| of every deletion, the most influential first."""
        largest = self.dfbetas.abs().max(axis=1).rename("max_dfbetas")
        out = pd.concat([self.cooks, self.covratio, self.sigma_deleted, largest], axis=1)
        return out.sort_values("cooks", ascending=False)

    def __repr__(self) -> str:
        how = "θ estimated again" if self.refitted else "θ kept"
        return (
            f"Influence on the fixed effects, {len(self.labels)} deletions ({how})\n{self.table.head(10).to_string()}"
        )


def cooks_of_leverage(scaled: np.ndarray, leverage: np.ndarray, p: int) -> np.ndarray:
    """lme4's Cook's distances (n,) from scaled conditional residuals and leverages."""
    return (scaled / (1.0 - leverage)) ** 2 * leverage / p


def of_rows(data: ModelData, fitted: Fit, terms: RowTerms, residual: np.ndarray, reml: bool) -> Influence:
    """θ kept; ``residual`` (n,) is y − fitted, response units."""
    beta, unscaled = np.asarray(fitted.beta), np.asarray(fitted.unscaled_cov)
    dof = _dof(data, reml)
    weighted = residual if data.design.weights is None else residual * data.design.weights
    found = deletion.without_rows(terms, weighted, beta, unscaled, float(fitted.sigma) ** 2 * dof, dof)
    return _labelled(found, data, fitted, data.index, False)


def of_levels(data: ModelData, fitted: Fit, factor: Factor, reml: bool) -> Influence:
    """Every level of a factor left out, θ kept; no other level may share its effects."""
    beta, unscaled = np.asarray(fitted.beta), np.asarray(fitted.unscaled_cov)
    dof, n = _dof(data, reml), len(factor.levels)
    products = clusters.products(arranged(data, fitted, factor.codes, n))
    sizes = np.bincount(factor.codes, minlength=n)
    found = deletion.without_clusters(products, sizes, beta, unscaled, float(fitted.sigma) ** 2 * dof, dof)
    return _labelled(found, data, fitted, pd.Index(factor.levels, name=factor.name), False)


def of_crossed_levels(data: ModelData, fitted: Fit, factor: Factor, reml: bool) -> Influence:
    """The same where levels share effects with others: one evaluation of the model without each, at θ."""
    there = []
    for level in range(len(factor.levels)):
        part = data.rows(np.flatnonzero(factor.codes != level))
        there.append(fit_at(fitted.theta, part.compressed, reml=reml))
    fields = ("beta", "sigma", "unscaled_cov", "deviance")
    stacked = {name: np.array([getattr(one, name) for one in there]) for name in fields}
    lanes = replace(fitted, **stacked)
    found = of_refits(data, fitted, factor, lanes, np.isfinite(stacked["deviance"]))
    return replace(found, refitted=False)


def of_refits(data: ModelData, fitted: Fit, factor: Factor, lanes: Fit, usable: np.ndarray) -> Influence:
    """Every level of a factor left out, from the fits without it (leading axis); NaN where one was not usable."""
    unscaled = np.where(usable[:, None, None], np.asarray(lanes.unscaled_cov), np.nan)
    logs = np.linalg.slogdet(np.where(usable[:, None, None], unscaled, np.eye(unscaled.shape[1])))[1]
    gain = np.where(usable, logs - np.linalg.slogdet(np.asarray(fitted.unscaled_cov))[1], np.nan)
    keep = np.where(usable, 1.0, np.nan)
    variance = np.diagonal(unscaled, axis1=1, axis2=2)
    found = Deletion(np.asarray(lanes.beta) * keep[:, None], np.asarray(lanes.sigma) * keep, variance, gain)
    return _labelled(found, data, fitted, pd.Index(factor.levels, name=factor.name), True)


def _dof(data: ModelData, reml: bool) -> float:
    return float(data.n_rows - (data.X.shape[1] if reml else 0))


def _labelled(found: Deletion, data: ModelData, fitted: Fit, labels: pd.Index, refitted: bool) -> Influence:
    beta, unscaled = np.asarray(fitted.beta), np.asarray(fitted.unscaled_cov)
    return Influence(found, beta, unscaled, float(fitted.sigma), labels, tuple(data.exog_names), refitted)


def row_terms(data: ModelData, equations: MixedModelEquations) -> RowTerms:
    """Leverage and V⁻¹ of every fitted row."""
    return deletion.row_terms(equations, data.design.weights)


def residuals(data: ModelData, fitted: Fit, conditional: np.ndarray, kind: str, leverage: Any) -> np.ndarray:
    """Residuals (n,) of a ``kind``, from y − fitted; ``leverage`` is called where they need it."""
    root = 1.0 if data.design.weights is None else np.sqrt(data.design.weights)
    sigma = float(fitted.sigma)
    if kind in ("response", "conditional"):
        return conditional
    if kind == "marginal":
        return data.y - data.offset - data.X @ np.asarray(fitted.beta)
    if kind == "pearson":
        return conditional * root
    scaled = conditional * root / sigma
    return scaled / np.sqrt(1.0 - leverage()) if kind == "studentized" else scaled
