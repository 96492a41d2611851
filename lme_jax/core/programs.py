"""What runs where: at once in NumPy, or as a compiled program; and the bounded store of compiled programs.

Compiling a program takes XLA seconds, so a person's fit runs in NumPy, where a whole search takes
milliseconds. Compiled are: whatever is given as JAX arrays or tracers; what is pinned by ``backend="jax"``;
and batches whose work repays it (``batch`` decides by ``COMPILE_SECONDS``).

A compiled CPU program holds some hundreds of memory maps, of which a process has 65 530. Every program is a
``jit`` object of its own, so that dropping it gives its maps back; the least recently used are dropped.
"""

import importlib.util
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from ..errors import DataError, UnsupportedError
from .pytrees import tree_map
from .types import is_host

T = TypeVar("T")
Hashable: TypeAlias = Any

Backend = Literal["numpy", "jax"]

# Programs kept: at most some 800 memory maps each.
MAX_PROGRAMS = 24
ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin", "libtpu")
# What it takes to have the programs of a batch, the import of JAX included.
COMPILE_SECONDS = 3.0

_lock = threading.Lock()
_spent: dict[Hashable, float] = {}


def check_backend(backend: Any) -> Backend | None:
    """The name of an executor, or None to let the work decide."""
    if backend not in (None, "numpy", "jax"):
        raise DataError(f"backend={backend!r} is unknown; use 'numpy', 'jax', or None to let the work decide")
    return backend


def accelerated() -> bool:
    """Whether JAX computes on a GPU or TPU; without importing JAX where none of its plugins is installed."""
    if "jax" not in sys.modules and not any(importlib.util.find_spec(name) for name in ACCELERATORS):
        return False
    import jax

    return jax.default_backend() != "cpu"


def sooner(work: Hashable, seconds: float) -> Backend:
    """The executor for a piece of work that takes NumPy so many seconds.

    Work of one shape goes to NumPy until that has cost as much as compiling would have, then its program is
    compiled: never more than twice what the better choice would have taken (the ski-rental rule).
    """
    if _forked_after_jax:
        return "numpy"
    if accelerated():
        return "jax"
    with _lock:
        _spent[work] = _spent.get(work, 0.0) + seconds
        return "jax" if _spent[work] > COMPILE_SECONDS else "numpy"


def run(function: Callable[..., T], *arrays: Any, backend: Backend | None = None, **static: Any) -> T:
    """``function(*arrays, **static)`` on the executor that suits its arrays.

    JAX arrays, traced or not, give JAX arrays of their dtype, from a compiled program. NumPy arrays give float64
    NumPy arrays: at once, or, with ``backend="jax"``, from a compiled program in a float64 scope.
    """
    if not is_host(arrays):
        return call(function, *arrays, **static)
    if backend == "jax":
        return on_jax(function, *arrays, **static)
    with np.errstate(all="ignore"):
        return function(*arrays, **static)


def on_jax(function: Callable[..., T], *arrays: Any, **static: Any) -> T:
    """A compiled call in float64 on NumPy arrays; NumPy back.

    A float64 array that leaves an x64 scope as a JAX array is cut to float32 by later arithmetic. Nothing global
    is switched.
    """
    _refuse_after_fork()
    import jax

    with jax.enable_x64(True):
        return tree_map(np.asarray, call(function, *arrays, **static))


def call(function: Callable[..., T], *arrays: Any, **static: Any) -> T:
    """A compiled call, of the caller's dtype."""
    _refuse_after_fork()
    import jax

    flat, structure = jax.tree.flatten(arrays)
    shapes = tuple((np.shape(a), getattr(a, "dtype", type(a))) for a in flat)
    key = (function, tuple(sorted(static.items())), structure, shapes, jax.config.read("jax_enable_x64"))
    return _store.get(key, lambda: jax.jit(partial(function, **static)))(*arrays)


class _Store:
    """The most recently used programs by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._programs: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._programs:
                self._programs[key] = make()
            self._programs.move_to_end(key)
            if len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)[1].clear_cache()
            return self._programs[key]

    def clear(self) -> None:
        with self._lock:
            while self._programs:
                self._programs.popitem()[1].clear_cache()

    def __len__(self) -> int:
        return len(self._programs)


_store = _Store()


def n_programs() -> int:
    """How many compiled programs are kept."""
    return len(_store)


def clear() -> None:
    """Drop every compiled program and give its memory back."""
    _store.clear()


# ---------------------------------------------------------------- fork

_forked_after_jax = False


def _jax_has_threads() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    started = getattr(bridge, "backends_are_initialized", None)
    return bridge is not None and (started is None or bool(started()))


def _after_fork() -> None:
    global _forked_after_jax, _store
    _forked_after_jax = _forked_after_jax or _jax_has_threads()
    _store = _Store()


def _refuse_after_fork() -> None:
    if _forked_after_jax:
        raise UnsupportedError(
            "this process was forked from one that had started JAX, whose threads do not survive a fork: compiled work "
            "would hang. Use multiprocessing.get_context('spawn') ('forkserver', joblib's default loky, or threads); "
            "single fits of NumPy or pandas data run in NumPy and need none of this."
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
