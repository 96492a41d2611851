"""Single results of a batch, made when they are asked for; classes of a module, so that batches pickle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .core.optimize import NewtonOptions
from .core.records import Fit
from .data import ModelData
from .responses import Responses


@dataclass(frozen=True)
class Views:
    """What all views share.

    Attributes
    ----------
    make : from data, fit, ``reml=`` and ``options=`` to a result: ``MixedLMResults``.
    """

    make: Callable[..., Any]
    reml: bool
    options: NewtonOptions

    def data(self, number: int) -> ModelData:
        """The rows and the response of one fit."""
        raise NotImplementedError

    def result(self, number: int, lane: Fit) -> Any:
        """The result of one fit, whose arrays are ``lane``."""
        return self.make(self.data(number), lane, reml=self.reml, options=self.options)


@dataclass(frozen=True)
class ResponseViews(Views):
    """Of a batch of responses of one design."""

    design: ModelData
    responses: Responses

    def data(self, number: int) -> ModelData:
        """The rows and the response of one fit."""
        which = np.array([number])
        y, seen = self.responses.columns(which)[:, 0], self.responses.seen(which)[:, 0]
        own = self.design if seen.all() else self.design.rows(seen)
        return own.with_response(y[seen])


@dataclass(frozen=True)
class SubsetViews(Views):
    """Of a batch of data sets: row i belongs to number ``subset[i]``."""

    whole: ModelData
    subset: np.ndarray

    def data(self, number: int) -> ModelData:
        """The rows of one fit."""
        return self.whole.rows(self.subset == number)
