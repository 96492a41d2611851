"""statsmodels' packed order of the covariance parameters: correlated effects first, then components by name."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.components import Components, Term
from ..core.covariance import Block, Template, linear_basis
from ..data import ModelData
from ..errors import UnsupportedError


@dataclass(frozen=True)
class Layout:
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
