"""Single results of a batch, made when they are asked for; classes of a module, so that batches pickle."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.optimize import NewtonOptions
from ..core.records import Fit
from ..data import ModelData
from .responses import Responses


@dataclass(frozen=True, kw_only=True)
class Views:
    """What all views share.

    Attributes
    ----------
    make : from data, fit, ``reml=`` and ``options=`` to a result: ``MixedLMResults``.
    kept : number → positions of its columns, of the fits that leave some out.
    """

    make: Callable[..., Any]
    reml: bool
    options: NewtonOptions
    kept: Mapping[int, np.ndarray] = field(default_factory=dict)

    def rows(self, number: int) -> ModelData:
        """The rows and the response of one fit, with all columns."""
        raise NotImplementedError

    def data(self, number: int) -> ModelData:
        """What one fit was fitted to."""
        rows, keep = self.rows(number), self.kept.get(number)
        return rows if keep is None else rows.columns(keep)

    def result(self, number: int, lane: Fit) -> Any:
        """The result of one fit, whose arrays are ``lane``."""
        keep = self.kept.get(number)
        if keep is not None:
            lane = dataclasses.replace(lane, beta=lane.beta[keep], unscaled_cov=lane.unscaled_cov[np.ix_(keep, keep)])
        return self.make(self.data(number), lane, reml=self.reml, options=self.options)


@dataclass(frozen=True, kw_only=True)
class ResponseViews(Views):
    """Of a batch of responses of one design."""

    design: ModelData
    responses: Responses

    def rows(self, number: int) -> ModelData:
        """The rows and the response of one fit."""
        which = np.array([number])
        y, seen = self.responses.columns(which)[:, 0], self.responses.seen(which)[:, 0]
        own = self.design if seen.all() else self.design.rows(seen)
        return own.with_response(y[seen])


@dataclass(frozen=True, kw_only=True)
class SubsetViews(Views):
    """Of a batch of data sets: row i belongs to number ``subset[i]``; ``memories`` is what its transforms learnt."""

    whole: ModelData
    subset: np.ndarray
    memories: Mapping[int, dict[str, Any]] = field(default_factory=dict)

    def rows(self, number: int) -> ModelData:
        """The rows of one fit."""
        data = self.whole.rows(self.subset == number)
        if number not in self.memories:
            return data
        state: Any = data.design.state
        state = dataclasses.replace(state, memory=self.memories[number])
        return dataclasses.replace(data, design=dataclasses.replace(data.design, state=state))
