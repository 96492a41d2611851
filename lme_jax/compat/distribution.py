"""``MixedLMDistribution``: responses drawn from a ``MixedLM`` at given parameters."""

from typing import Any

import numpy as np

from ..core.covariance import factor
from .likelihood import Likelihood
from .params import MixedLMParams


class MixedLMDistribution:
    """Draws responses marginally: new random effects and errors each time, in statsmodels' order of random numbers."""

    def __init__(self, model: Likelihood, params: Any, scale: float, exog: Any = None) -> None:
        self.model, self.scale = model, float(scale)
        self.exog = model.exog if exog is None else np.asarray(exog, float)
        self.params = MixedLMParams.from_packed(params, model.k_fe, model.k_re, use_sqrt=False, has_fe=True)

    def rvs(self, n: int = 1, rng: Any = None) -> np.ndarray:
        """One response (rows,) for n ≤ 1, as statsmodels; (n, rows) for more.

        Parameters
        ----------
        rng : numpy Generator or RandomState, or a seed
        """
        rng = np.random.default_rng(rng) if not hasattr(rng, "normal") else rng
        return self._draw(rng) if n <= 1 else np.array([self._draw(rng) for _ in range(n)])

    def _draw(self, rng: Any) -> np.ndarray:
        data = self.model._data
        theta = self.params.get_packed(use_sqrt=True)
        y = self.exog @ self.params.fe_params
        at = 0
        for term, block in zip(data.design.terms, self.model._layout.template, strict=True):
            u = rng.normal(size=(len(term.levels), block.size))
            root = theta[at : at + block.n_theta]
            at += block.n_theta
            u = u @ factor(root, (block,)).T
            y = y + np.sqrt(self.scale) * np.einsum("nq,nq->n", term.Z, u[term.codes])
        weights = 1.0 if data.design.weights is None else data.design.weights
        return y + np.sqrt(self.scale / weights) * rng.normal(size=len(y))
