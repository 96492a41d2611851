"""What is kept of a result: its pickled state, and data whose rows were forgotten."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .data import ModelData, NoRows
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


def has_rows(data: ModelData) -> bool:
    """Whether the rows are still there."""
    return data.has_rows


def without_rows(data: ModelData, why: str = NoRows.why) -> ModelData:
    """The labels and sizes of the data, without their rows; ``why`` is said where something needs them."""
    gone: Any = NoRows(data.n_rows, why)
    thin = {id(t): dataclasses.replace(t, codes=gone, Z=gone) for t in data.design.terms}
    design = dataclasses.replace(
        data.design,
        y=gone,
        X=gone,
        weights=None if data.design.weights is None else gone,
        offset=None if data.design.offset is None else gone,
        index=gone,
        terms=tuple(thin[id(t)] for t in data.design.terms),
    )
    factors = []
    for factor in data.factors:
        new = dataclasses.replace(factor, codes=gone, Z=gone)
        new.__dict__["sizes"] = factor.sizes
        factors.append(new)
    terms = tuple(thin[id(t)] for t in data.terms)
    kept = dataclasses.replace(data, design=design, terms=terms, factors=tuple(factors), sums=None)
    kept.__dict__["compressed"] = gone
    return kept
