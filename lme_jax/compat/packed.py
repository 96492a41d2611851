"""``PackedEstimates``: statsmodels' packed profile-scale vector and its covariance.

β, then Cov(b)/σ² of the correlated effects (row-major lower triangle), then the variance components over σ².
Standard errors come from the joint Hessian in (β, Cov/σ²). ``fe_params``, ``bse_fe``, ``cov_fe``, ``cov_re``, ``vcomp``
and ``bse_re`` of every result are on the natural scale, with generalised-least-squares standard errors of β.
"""

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..core.records import Fit
from ..data import ModelData
from ..errors import DataError
from ..inference.degrees import Method
from ..inference.hypotheses import WaldTest, hypotheses, wald_test
from ..inference.wald import check_alpha, chosen_covariance
from ..lazy import handed_out
from ..results import MixedLMResults
from .layout import PackedLayout
from .likelihood import Likelihood
from .params import MixedLMParams


class PackedEstimates(MixedLMResults):
    """A result of a ``MixedLM``, with ``params`` and what belongs to them.

    Parameters
    ----------
    data, fit, **how : of ``MixedLMResults``.
    model : MixedLM
        Whose packing it is; ``data`` may hold fewer parameters (independent effects).
    freepat : MixedLMParams, optional
        The mask of the fit.
    hist : list, optional
        What its searches did.
    fe_pen, cov_pen : penalties, optional
    """

    def __init__(
        self,
        data: ModelData,
        fit: Fit,
        *,
        model: Likelihood,
        freepat: MixedLMParams | None = None,
        hist: list[dict[str, Any]] | None = None,
        fe_pen: Any = None,
        cov_pen: Any = None,
        **how: Any,
    ) -> None:
        super().__init__(data, fit, **how)
        self._model = model
        self.freepat, self.hist, self.fe_pen, self.cov_pen = freepat, hist, fe_pen, cov_pen

    @property
    def default_ddf(self) -> Method:
        """None: z tests, as statsmodels."""
        return "normal"

    @property
    def model(self) -> Likelihood:
        """The model that was fitted; a later fit of it leaves this result alone."""
        return self._model

    # ------------------------------------------------------------ packing

    @property
    def _layout(self) -> PackedLayout:
        return self._model._layout

    @cached_property
    def _omega(self) -> np.ndarray:
        """Packed Cov(b)/σ²."""
        L = np.asarray(self.fit.relative_factor)
        return self._layout.omega(L @ L.T)

    @cached_property
    def _free(self) -> np.ndarray:
        """(K,) which packed parameters were estimated."""
        if self.freepat is None:
            return np.ones(self.k_fe + len(self.fit.theta), dtype=bool)
        return np.concatenate([np.ones(self.k_fe, bool), self.freepat.get_packed(use_sqrt=False) != 0])

    @property
    def k_re(self) -> int:
        """Number of correlated random effects of a group."""
        return self._model.k_re

    @property
    def k_re2(self) -> int:
        """Number of their (co)variances."""
        return self._model.k_re2

    @property
    def k_vc(self) -> int:
        """Number of independent variance components."""
        return self._model.k_vc

    @property
    def df_modelwc(self) -> int:
        """Number of ``params``."""
        return len(self._packed)

    @property
    def param_names(self) -> list[str]:
        return [*self._exog_names, *self._layout.names]

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
        hessian = self._layout.score_and_hessian(np.asarray(self.fit.beta), self._omega, self.reml)[1]
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
        return pd.Series(np.asarray(self.bse)[: self.k_fe], index=list(self._exog_names), name="bse_fe_joint")

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

    def wald_test(self, r_matrix: Any, use_f: bool | None = None) -> WaldTest:
        """Joint χ² (or F) test of Rb = c.

        Text and arrays with k_fe columns concern the fixed effects and use their GLS covariance; arrays with
        K columns, and text that names a covariance parameter, concern ``params`` and use ``cov_params()``.
        """
        r, c = hypotheses(r_matrix, self.param_names)
        text = isinstance(r_matrix, str) or (isinstance(r_matrix, (list, tuple)) and isinstance(r_matrix[0], str))
        if text and not r[:, self.k_fe :].any():
            r = r[:, : self.k_fe]
        K = len(self._packed)
        if r.shape[1] not in (self.k_fe, K):
            raise DataError(
                f"r_matrix has {r.shape[1]} columns; give {self.k_fe} for the fixed effects or {K} for all parameters"
            )
        if r.shape[1] == K:
            return wald_test(r, c, self._packed, self._packed_cov, self._df(use_f))
        return super().wald_test((r, c), use_f)

    def _keep_before_removal(self) -> None:
        for name in ("bse", "pvalues", "_packed_cov", "_omega"):
            getattr(self, name)
        super()._keep_before_removal()
