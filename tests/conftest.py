"""Fixtures of all tests. Warnings are errors (pyproject.toml), and nothing here switches x64 on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

MAPS = Path("/proc/self/maps")
MANY_MAPS = 30_000


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, fresh for each test."""
    return np.random.default_rng(20260101)


@pytest.fixture(autouse=True)
def bounded_memory_maps() -> Iterator[None]:
    """Drop compiled programs before Linux's 65 530 memory maps run out.

    XLA's CPU programs hold some 600 maps each, and a compilation that gets none ends in a segmentation fault.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        import jax

        jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where JAX sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import jax

    if jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="JAX sees no GPU"))
