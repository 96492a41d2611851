"""Fixtures of all tests. Warnings are errors (pyproject.toml), and nothing here switches x64 on."""

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, fresh for each test."""
    return np.random.default_rng(20260101)


# Files that compile much: side by side they must not be the last that a worker begins.
SLOW = ("implicit", "implicit_several", "optima", "structured_fits", "designs", "core", "derivatives", "batch", "hunt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; skip the tests that need a GPU where JAX sees none."""
    rank = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import jax

    if jax.default_backend() != "gpu":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="JAX sees no GPU"))
