"""statsmodels' packed order of the covariance parameters: correlated effects first, then components by name.

All that compat/ asks of the likelihood at given parameters is asked here, in that order.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core.components import Components, Term, root_map, root_of
from ..core.covariance import Block, Template, linear_basis
from ..core.em import em
from ..data import ModelData
from ..errors import UnsupportedError


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

    @cached_property
    def components(self) -> Components:
        """The evaluation engine."""
        data = self.data
        if any(t.membership is not None or t.root is not None for t in data.design.terms):
            raise UnsupportedError("likelihood derivatives need independent levels, and one level per row")
        terms = [Term(t.Z, t.codes, len(t.levels), t.structure) for t in data.design.terms]
        return Components.build(data.y - data.offset, data.X, terms, data.design.weights)

    def omega(self, covariance: np.ndarray) -> np.ndarray:
        """Packed ω of a covariance (q, q) of all effects in the data's order."""
        parts = []
        for block, i in zip(self.template, self.positions, strict=True):
            where = self.data.term_slices[i]
            at = [np.argwhere(E)[0] for E in linear_basis((block,))]
            parts.append(covariance[where, where][tuple(np.transpose(at))])
        return np.concatenate(parts) if parts else np.zeros(0)

    def unpack_theta(self, packed: np.ndarray) -> np.ndarray:
        """θ in the data's order from packed θ."""
        theta = np.empty(len(packed))
        theta[self.theta_order] = packed
        return theta

    # ------------------------------------------------------------ ω and its roots

    def roots_to_omega(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ω of packed θ, and its Jacobian (k, k)."""
        return root_map(theta, self.template)

    def omega_to_roots(self, omega: np.ndarray) -> np.ndarray:
        """Packed θ of ω, zero columns where it is singular."""
        return root_of(omega, self.template)

    # ------------------------------------------------------------ the likelihood at given β (p,) and ω (k,)

    def gls(self, omega: np.ndarray) -> np.ndarray:
        """β̂(ω)."""
        return self.components.gls(omega)

    def sigma2(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> float:
        """σ̂²(β, ω)."""
        return self.components.scale(beta, omega, reml)

    def loglike(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> float:
        """ℓ with σ² profiled out."""
        return self.components.loglike(beta, omega, reml)

    def score_and_hessian(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of ``loglike`` in (β, ω)."""
        return self.components.score_and_hessian(beta, omega, reml)

    def em(self, omega: np.ndarray, steps: int, reml: bool) -> tuple[np.ndarray, list[float]]:
        """ω after EM steps, and ℓ after each."""
        return em(self.components, omega, steps, reml)

    def effects_covariance(self, omega: np.ndarray) -> Any:
        """Sparse Var(b | y)/σ² of all effects, by term, level, effect."""
        return self.components.effects_covariance(omega)[0]
