"""Pieces of NumPy work side by side on the cores of this process."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

A = TypeVar("A")
B = TypeVar("B")

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def n_cores() -> int:
    """Cores that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores))


def each(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """``function`` of every item, in order; several at a time where there are several cores.

    NumPy lets other threads run while it works on long arrays, so this pays for pieces of some 10⁴ numbers.
    """
    if len(items) < 2 or n_cores() == 1:
        return [function(item) for item in items]

    def quietly(item: A) -> B:
        # NumPy's error state belongs to a thread.
        with np.errstate(all="ignore"):
            return function(item)

    return list(_workers().map(quietly, items))


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(n_cores(), thread_name_prefix="lme_jax")
        return _pool


def _after_fork() -> None:
    """Threads do not survive a fork: the child makes its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
