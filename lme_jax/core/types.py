"""The pytree decorator, the status codes and the host/JAX boundary shared by the core."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")

# A JAX array in traced code, a NumPy one on the host: no static type has the methods of both.
Array: TypeAlias = Any


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Register a class as a frozen dataclass pytree; fields marked ``static()`` are metadata."""
    frozen = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(frozen)  # type: ignore[arg-type]
    static_names = [f.name for f in fields if f.metadata.get("static")]
    data_names = [f.name for f in fields if not f.metadata.get("static")]
    return jax.tree_util.register_dataclass(frozen, data_fields=data_names, meta_fields=static_names)


def static() -> Any:
    """A field that is part of the pytree's structure: hashable, and compared when tracing."""
    return dataclasses.field(metadata={"static": True})


class Status(enum.IntEnum):
    """How an optimisation ended; one int32 per lane, never an exception inside traced code."""

    CONVERGED = 0
    SINGULAR = 1
    MAX_ITER = 2
    STALLED = 3
    NOT_FINITE = 4
    INTERRUPTED = 5
    NOT_IDENTIFIED = 6

    @property
    def is_optimum(self) -> bool:
        """A singular fit is an optimum too: it lies on the boundary of the parameter space."""
        return self in (Status.CONVERGED, Status.SINGULAR)

    @property
    def text(self) -> str:
        return {
            Status.CONVERGED: "converged",
            Status.SINGULAR: "converged to a singular fit (a variance is zero or a correlation is ±1)",
            Status.MAX_ITER: "stopped at the iteration limit before the gradient was small",
            Status.STALLED: "stopped because no step lowered the deviance although the gradient is not small",
            Status.NOT_FINITE: "failed: the deviance is not finite",
            Status.INTERRUPTED: "not fitted: the batch was interrupted",
            Status.NOT_IDENTIFIED: "not fitted: the rows do not identify the model",
        }[self]


def is_host(tree: Any) -> bool:
    """Whether no array of a pytree is JAX's."""
    return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def float64_on_host(function: Callable[..., T]) -> Callable[..., T]:
    """NumPy in, float64 NumPy out; JAX arrays in, JAX arrays of their own dtype out.

    A float64 array that leaves an x64 scope as a JAX array is cut to float32 by later arithmetic,
    so host callers get NumPy back. Nothing global is switched.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> T:
        if not is_host((args, kwargs)):
            return function(*args, **kwargs)
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, function(*args, **kwargs))

    return wrapper
