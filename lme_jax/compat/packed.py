"""``PackedEstimates``: statsmodels' packed profile-scale vector and its covariance.

β, then Cov(b)/σ² of the correlated effects (row-major lower triangle), then the variance components over σ².
Standard errors come from the joint Hessian in (β, Cov/σ²). ``fe_params``, ``bse_fe``, ``cov_fe``, ``cov_re``, ``vcomp``
and ``bse_re`` of every result are on the natural scale, with generalised-least-squares standard errors of β.
"""

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..inference.wald import check_alpha
from ..lazy import handed_out
from .inherited import StatsmodelsResults
from .params import MixedLMParams


class PackedEstimates(StatsmodelsResults):
    """``params`` and what belongs to them; a mixin before ``MixedLMResults``."""

    @property
    def param_names(self) -> list[str]:
        return [*self._data.exog_names, *self._layout.names]

    @property
    def params_object(self) -> MixedLMParams:
        """β, Cov(b)/σ², components/σ² in three parts."""
        return MixedLMParams.from_packed(self._packed, self.k_fe, self.k_re, use_sqrt=False, has_fe=True)

    @cached_property
    def _packed(self) -> np.ndarray:
        return np.concatenate([np.asarray(self.fit.beta), self._omega])

    @handed_out
    def params(self) -> pd.Series:
        """Packed profile-scale parameters (K,): β, Cov(b)/σ², components/σ²."""
        return self._series(self._packed, "params")

    @cached_property
    def _packed_cov(self) -> np.ndarray:
        """Inverse negative joint Hessian in (β, Cov/σ²), (K, K); zeros beside held parameters."""
        hessian = self._layout.components.score_and_hessian(np.asarray(self.fit.beta), self._omega, self.reml)[1]
        free = np.flatnonzero(self._free)
        cov = np.zeros_like(hessian)
        information = -hessian[np.ix_(free, free)]
        unit = np.sqrt(np.abs(np.diag(information)))
        scaled = np.linalg.pinv(information / np.outer(unit, unit), hermitian=True)
        cov[np.ix_(free, free)] = scaled / np.outer(unit, unit)
        return cov

    @handed_out
    def normalized_cov_params(self) -> pd.DataFrame:
        """``cov_params()`` over σ̂² (K, K), as statsmodels has it."""
        return self._frame(self._packed_cov / self.scale)

    @handed_out
    def bse(self) -> pd.Series:
        """Standard errors of ``params``, joint-Hessian form; NaN where the Hessian gives none."""
        with np.errstate(invalid="ignore"):
            return self._series(np.sqrt(np.diag(self._packed_cov)), "bse")

    @handed_out
    def bse_fe_joint(self) -> pd.Series:
        """Standard errors of β from the joint Hessian, what statsmodels calls ``bse_fe``."""
        return pd.Series(np.asarray(self.bse)[: self.k_fe], index=list(self._data.exog_names), name="bse_fe_joint")

    @handed_out
    def tvalues(self) -> pd.Series:
        """``params`` over ``bse``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._series(np.asarray(self.params) / np.asarray(self.bse), "tvalues")

    @handed_out
    def pvalues(self) -> pd.Series:
        """Two-sided, normal, or t with ``df_resid`` degrees of freedom where ``use_t``."""
        return self._series(2.0 * self._reference.sf(np.abs(np.asarray(self.tvalues))), "pvalues")

    def conf_int_params(self, alpha: float = 0.05) -> pd.DataFrame:
        """Wald limits (K, 2) of ``params``."""
        half = self._reference.ppf(1.0 - check_alpha(alpha) / 2.0) * np.asarray(self.bse)
        params = np.asarray(self.params)
        return pd.DataFrame({0: params - half, 1: params + half}, index=self.param_names)

    def cov_params(self, r_matrix: Any = None, column: Any = None, scale: Any = None) -> Any:
        """Covariance of ``params``, of some of them (``column``), or of linear combinations R.

        The fixed-effects part differs a little from ``cov_fe`` (generalised least squares): it accounts for the
        estimation of the covariance parameters as far as they correlate with β̂. ``scale`` stands in for σ̂².
        """
        cov = self._packed_cov if scale is None else self._packed_cov / self.scale * scale
        return chosen_covariance(self._frame(cov), r_matrix, column)

    def _series(self, values: np.ndarray, name: str) -> pd.Series:
        return pd.Series(values, index=self.param_names, name=name)

    def _frame(self, values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, index=self.param_names, columns=self.param_names)

    def _keep_before_removal(self) -> None:
        for name in ("bse", "pvalues", "_packed_cov"):
            getattr(self, name)
        super()._keep_before_removal()


def chosen_covariance(cov: pd.DataFrame, r_matrix: Any, column: Any) -> Any:
    """The covariance, the part of some positions (``column``), or R·cov·Rᵀ."""
    if column is not None:
        places = np.atleast_1d(column)
        picked = cov.to_numpy()[np.ix_(places, places)]
        return picked[0, 0] if np.ndim(column) == 0 else picked
    if r_matrix is None:
        return cov
    r = np.asarray(r_matrix, float)
    return r @ cov.to_numpy() @ r.T
