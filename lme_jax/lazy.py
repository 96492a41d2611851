"""Attributes computed at their first use and handed out as copies, so that a result stays as it is."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pandas as pd

T = TypeVar("T")


class HandedOut(Generic[T]):
    """A cached attribute of which every reader gets a copy; it cannot be set."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "HandedOut[T]": ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        kept = instance.__dict__
        if self._name not in kept:
            kept[self._name] = self._compute(instance)
        return _copy(kept[self._name])

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(f"results are immutable: {self._name} cannot be set")


def handed_out(compute: Callable[[Any], T]) -> HandedOut[T]:
    """Decorate a method: computed once, copied for every reader."""
    return HandedOut(compute)


def _copy(value: Any) -> Any:
    if isinstance(value, (pd.Series, pd.DataFrame, np.ndarray)):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return value
