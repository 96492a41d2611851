"""Fit: start → Newton on (θ, ρ, δ) → a record of arrays. Signatures first; see docs/architecture.md."""

from typing import Any, NamedTuple

import numpy as np


class ResidualFit(NamedTuple):
    """A fit: arrays only.

    Attributes
    ----------
    params : (k,) all that is searched: θ of the bars, then the correlation's, then the variance functions'.
    beta : (p,); unscaled_cov : (p, p) with Cov β̂ = σ²·unscaled_cov; sigma : ().
    deviance : () −2 log L or the REML criterion; gradient (k,), hessian (k, k) of it in params.
    log_scale_slope : (k,) ∂ log σ̂²/∂params.
    decrease : () ½gᵀH⁻¹g; status : ``core.types.Status``; n_iter : evaluations; optima : distinct optima seen.
    flat : (k,) a direction of params that the data do not tell, or zeros.
    """

    params: np.ndarray
    beta: np.ndarray
    unscaled_cov: np.ndarray
    sigma: float
    deviance: float
    gradient: np.ndarray
    hessian: np.ndarray
    log_scale_slope: np.ndarray
    decrease: float
    status: int
    n_iter: int
    optima: int
    flat: np.ndarray


def fit(data: Any, *, reml: bool = True, start: Any = None, options: Any = None) -> ResidualFit:
    """Maximum-likelihood or REML fit of what ``residual.data.compress`` returned."""
    raise NotImplementedError
