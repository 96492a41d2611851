"""``Likelihood``: ℓ of a ``MixedLM`` and its derivatives at given parameters, in statsmodels' packing."""

from typing import Any

import numpy as np

from ..errors import DataError
from .labelled import LabelledModel
from .params import MixedLMParams


class Likelihood(LabelledModel):
    """ℓ, score, Hessian, GLS β and σ² at packed parameters or ``MixedLMParams``."""

    def _unpack(self, params: Any) -> MixedLMParams:
        if isinstance(params, MixedLMParams):
            return params
        packed = np.asarray(params, float)
        k = self.k_re2 + self.k_vc
        if packed.ndim != 1 or len(packed) not in (k, self.k_fe + k):
            raise DataError(f"params of shape {packed.shape}: give {k} covariance parameters, with or without β")
        return MixedLMParams.from_packed(packed, self.k_fe, self.k_re, self.use_sqrt, has_fe=len(packed) > k)

    def _point(self, params: Any, profile_fe: bool) -> tuple[np.ndarray, np.ndarray]:
        """(β, packed ω), β by GLS where it is profiled out."""
        given = self._unpack(params)
        omega = given.get_packed(use_sqrt=False)
        return (self._layout.gls(omega) if profile_fe else np.asarray(given.fe_params, float)), omega

    def loglike(self, params: Any, profile_fe: bool = True) -> float:
        """ℓ, ML or restricted as ``self.reml``, with σ² profiled out, and β too unless told otherwise.

        Parameters
        ----------
        params : MixedLMParams with Cov(b)/σ² and components/σ², or packed as ``use_sqrt`` says.

        Notes
        -----
        Penalties of the latest fit are subtracted, that on β only where β is given.
        """
        beta, omega = self._point(params, profile_fe)
        value = self._layout.loglike(beta, omega, self.reml)
        if self.fe_pen is not None and not profile_fe:
            value -= float(self.fe_pen.func(beta))
        if self.cov_pen is not None and self.k_re:
            relative = self._unpack(params).cov_re
            value -= float(self.cov_pen.func(relative, np.linalg.inv(relative)))
        return value

    def score(self, params: Any, profile_fe: bool = True) -> np.ndarray:
        """Gradient of ``loglike`` in the packed parameters, in their ``use_sqrt`` form."""
        calc = self.score_sqrt if self.use_sqrt else self.score_full
        return np.concatenate(calc(self._profiled(params, profile_fe), calc_fe=not profile_fe))

    def _profiled(self, params: Any, profile_fe: bool) -> MixedLMParams:
        given = self._unpack(params).copy()
        given.fe_params = self._point(params, profile_fe)[0]
        return given

    def score_full(self, params: Any, calc_fe: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """∂ℓ in β (empty without ``calc_fe``), Cov(b)/σ² and components/σ², at the given β; less the penalties'."""
        beta, omega = self._point(params, False)
        score = self._layout.score_and_hessian(beta, omega, self.reml)[0]
        p, k = self.k_fe, self.k_re2
        fe, re, vc = score[:p] if calc_fe else np.zeros(0), score[p : p + k], score[p + k :]
        if self.fe_pen is not None and calc_fe:
            fe = fe - self.fe_pen.deriv(beta)
        if self.cov_pen is not None and self.k_re:
            relative = self._unpack(params).cov_re
            re = re - self.cov_pen.deriv(relative, np.linalg.inv(relative))
        return fe, re, vc

    def score_sqrt(self, params: Any, calc_fe: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """∂ℓ in β, the rows of L with LLᵀ = Cov(b)/σ², and the roots of components/σ²."""
        fe, re, vc = self.score_full(params, calc_fe)
        theta = self._unpack(params).get_packed(use_sqrt=True)
        jacobian = self._layout.roots_to_omega(theta)[1]
        score = jacobian.T @ np.concatenate([re, vc])
        return fe, score[: self.k_re2], score[self.k_re2 :]

    def hessian(self, params: Any) -> tuple[np.ndarray, bool]:
        """Exact joint Hessian of ℓ in (β, Cov(b)/σ², components/σ²), and whether it is singular.

        Away from the GLS β it includes terms in XᵀV⁻¹r that statsmodels leaves out.
        """
        beta, omega = self._point(params, False)
        hessian = self._layout.score_and_hessian(beta, omega, self.reml)[1]
        unit = np.sqrt(np.maximum(np.abs(np.diag(hessian)), np.finfo(float).tiny))
        smallest = np.linalg.svd(hessian / np.outer(unit, unit), compute_uv=False)[-1]
        return hessian, bool(smallest < 1e-12)

    def get_fe_params(self, cov_re: Any, vcomp: Any, tol: float = 1e-10) -> tuple[np.ndarray, bool]:
        """GLS β at Cov(b)/σ² and components/σ², right at zero variances too; and whether those are singular."""
        given = MixedLMParams.from_components(None, cov_re, None, vcomp)
        eigenvalues = np.linalg.eigvalsh(given.cov_re) if given.k_re else np.ones(1)
        singular = bool(min(eigenvalues.min(), np.min(given.vcomp, initial=np.inf)) < tol)
        return self._layout.gls(given.get_packed(use_sqrt=False)), singular

    def get_scale(self, fe_params: Any, cov_re: Any, vcomp: Any) -> float:
        """σ̂² at β, Cov(b)/σ², components/σ²."""
        omega = MixedLMParams.from_components(fe_params, cov_re, None, vcomp).get_packed(use_sqrt=False)
        return self._layout.sigma2(np.asarray(fe_params, float), omega, self.reml)

    def predict(self, params: Any, exog: Any = None) -> np.ndarray:
        """Xβ for MixedLMParams, a packed vector or β alone."""
        beta = params.fe_params if isinstance(params, MixedLMParams) else np.asarray(params, float)[: self.k_fe]
        return (self.exog if exog is None else np.asarray(exog, float)) @ np.asarray(beta)
