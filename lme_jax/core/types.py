"""Array types, which library computes on them, and the status codes shared by the core.

The core's algebra is written once against the arrays it is given. On NumPy arrays it runs at once, in NumPy
and LAPACK; on JAX arrays and tracers the same text goes through jit, vmap and grad. ``namespace`` tells which;
``programs`` decides when something is compiled. Nothing here or above imports JAX before a JAX array comes.
"""

import enum
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from .pytrees import leaves, pytree, static

__all__ = ["Array", "Status", "at_least_float", "is_host", "namespace", "pytree", "select", "static"]

# A JAX array in traced code, a NumPy one on the host: no static type has the methods of both.
Array: TypeAlias = Any

_HOST_TYPES = (np.ndarray, np.float64, float, int, np.bool_, bool)


def namespace(*arrays: Any) -> ModuleType:
    """``jax.numpy`` where any of the arrays is JAX's, else ``numpy``."""
    jax = sys.modules.get("jax")
    if jax is None:
        return np
    for array in arrays:
        if type(array) not in _HOST_TYPES and isinstance(array, jax.Array):
            return jax.numpy
    return np


def is_host(tree: Any) -> bool:
    """Whether no array of a pytree is JAX's."""
    return "jax" not in sys.modules or namespace(*leaves(tree)) is np


def select(condition: Any, a: Any, b: Any) -> Any:
    """``where``; of one condition on the host only a choice, which costs nothing."""
    if type(condition) in (np.bool_, bool):
        return a if condition else b
    return namespace(condition, a, b).where(condition, a, b)


def at_least_float(array: Any) -> Any:
    """A JAX array as it is, anything else as float64."""
    return array if namespace(array) is not np else np.asarray(array, float)


class Status(enum.IntEnum):
    """How an optimisation ended; one int32 per lane, never an exception inside traced code."""

    CONVERGED = 0
    SINGULAR = 1
    MAX_ITER = 2
    STALLED = 3
    NOT_FINITE = 4
    INTERRUPTED = 5
    NOT_IDENTIFIED = 6
    UNBOUNDED = 7

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
            Status.UNBOUNDED: "has no maximum: the likelihood grows without bound as the covariance becomes singular",
        }[self]
