"""statsmodels' packed order of the covariance parameters: correlated effects first, then components by name.

All that compat/ asks of the likelihood at given parameters is asked here, in that order.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core import likelihood
from ..core.covariance import Block, Template, linear_basis
from ..core.em import em
from ..core.parameterizations import profile_from_sqrt, sqrt_from_profile
from ..data import ModelData


@dataclass(frozen=True)
class PackedLayout:
    """Where the packed parameters (the design's order of terms) stand in the fit's θ and covariance (by factor)."""

    data: ModelData

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """For each term of the design, its place among the data's terms."""
        places = {id(term): i for i, term in enumerate(self.data.terms)}
        return tuple(places[id(term)] for term in self.data.design.terms)

    @cached_property
    def template(self) -> Template:
        return tuple(Block(t.structure, len(t.columns)) for t in self.data.design.terms)

    @cached_property
    def theta_order(self) -> np.ndarray:
        """θ[theta_order] is packed θ."""
        sizes = [Block(t.structure, len(t.columns)).n_theta for t in self.data.terms]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in self.positions]).astype(int)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the packed (co)variances."""
        return tuple(np.array(self.data.covariance_names, dtype=object)[self.theta_order])

    def omega(self, covariance: np.ndarray) -> np.ndarray:
        """Packed ω of a covariance (q, q) of all effects in the data's order."""
        parts = []
        for block, i in zip(self.template, self.positions, strict=True):
            where = self.data.term_slices[i]
            at = [np.argwhere(E)[0] for E in linear_basis((block,))]
            parts.append(covariance[where, where][tuple(np.transpose(at))])
        return np.concatenate(parts) if parts else np.zeros(0)

    def unpack_theta(self, packed: np.ndarray) -> np.ndarray:
        """θ or ω in the data's order from packed θ or ω."""
        theta = np.empty(len(packed))
        theta[self.theta_order] = packed
        return theta

    @cached_property
    def effect_places(self) -> np.ndarray:
        """Where the effects by term (packed order), level and effect stand among all, by factor, level and effect."""
        widths = [len(f.levels) * len(f.columns) for f in self.data.factors]
        first = dict(zip((f.name for f in self.data.factors), np.cumsum([0, *widths[:-1]]), strict=True))
        q = {f.name: len(f.columns) for f in self.data.factors}
        taken = dict.fromkeys(q, 0)
        out = []
        for term in self.data.terms:
            lo, size = taken[term.factor], len(term.columns)
            taken[term.factor] += size
            places = np.arange(len(term.levels))[:, None] * q[term.factor] + lo + np.arange(size)
            out.append(first[term.factor] + places.ravel())
        return np.concatenate([out[i] for i in self.positions])

    # ------------------------------------------------------------ ω and its roots

    def roots_to_omega(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ω of packed θ, and its Jacobian (k, k)."""
        return profile_from_sqrt(theta, self.template)[:2]

    def omega_to_roots(self, omega: np.ndarray) -> np.ndarray:
        """Packed θ of ω, zero columns where it is singular."""
        return sqrt_from_profile(omega, self.template)

    # ------------------------------------------------------------ the likelihood at given β (p,) and ω (k,)

    def gls(self, omega: np.ndarray) -> np.ndarray:
        """β̂(ω)."""
        return likelihood.gls(self.unpack_theta(omega), self.data.compressed)

    def sigma2(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> float:
        """σ̂²(β, ω)."""
        return likelihood.scale_at(beta, self.unpack_theta(omega), "profile", self.data.compressed, reml)

    def loglike(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> float:
        """ℓ with σ² profiled out."""
        return likelihood.loglike(self._packed(beta, omega), self.data.compressed, scale="profile", reml=reml)

    def score_and_hessian(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of ``loglike`` in (β, ω)."""
        params = self._packed(beta, omega)
        found = likelihood.score_and_hessian(params, self.data.compressed, scale="profile", reml=reml)
        order = np.concatenate([np.arange(len(beta)), len(beta) + self.theta_order])
        return found.score[order], found.hessian[np.ix_(order, order)]

    def _packed(self, beta: np.ndarray, omega: np.ndarray) -> np.ndarray:
        return np.concatenate([beta, self.unpack_theta(omega)])

    def em(self, omega: np.ndarray, steps: int, reml: bool) -> tuple[np.ndarray, list[float]]:
        """ω after EM steps, and ℓ after each."""
        found, path = em(self.data.compressed, self.unpack_theta(omega), steps, reml)
        return found[self.theta_order], path
