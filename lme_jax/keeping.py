"""What is kept of a result: its pickled state, and data whose rows were forgotten."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas as pd

from .data import ModelData
from .errors import DataError

# Of the pickled state of a result: raised when attributes change their meaning.
STATE_VERSION = 1


def packed_state(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The state to pickle: a sparse factorisation cannot be, and is made again when asked for."""
    kept = {name: value for name, value in attributes.items() if name != "_equations"}
    return {**kept, "_state_version": STATE_VERSION}


def unpacked_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes in a pickled state; refuses that of another version, which may mean something else."""
    version = state.get("_state_version")
    if version != STATE_VERSION:
        raise DataError(
            f"this result was pickled by another version of lme_jax (its state has version {version}, not "
            f"{STATE_VERSION}): fit the model again, or read it with the version that wrote it"
        )
    return {name: value for name, value in state.items() if name != "_state_version"}


class NoRows:
    """Stands for rows that were removed: knows how many there were, and says so if they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def _gone(self, *args: Any, **kwargs: Any) -> Any:
        raise DataError("the rows were removed by remove_data(): this result needs them")

    __array__ = __matmul__ = __getitem__ = __sub__ = __add__ = __iter__ = _gone

    @property
    def shape(self) -> Any:
        return self._gone()


def has_rows(data: ModelData) -> bool:
    """Whether the rows are still there."""
    return not isinstance(data.design.y, NoRows)


def without_rows(data: ModelData) -> ModelData:
    """The labels and sizes of the data, without their rows."""
    gone: Any = NoRows(data.n_rows)
    thin = {id(t): dataclasses.replace(t, codes=gone, Z=gone) for t in data.design.terms}
    design = dataclasses.replace(
        data.design,
        y=gone,
        X=gone,
        weights=None if data.design.weights is None else gone,
        offset=None if data.design.offset is None else gone,
        index=pd.RangeIndex(0),
        terms=tuple(thin[id(t)] for t in data.design.terms),
    )
    factors = []
    for factor in data.factors:
        new = dataclasses.replace(factor, codes=gone, Z=gone)
        new.__dict__["sizes"] = factor.sizes
        factors.append(new)
    terms = tuple(thin[id(t)] for t in data.terms)
    kept = dataclasses.replace(data, design=design, terms=terms, factors=tuple(factors))
    kept.__dict__["compressed"] = gone
    return kept
