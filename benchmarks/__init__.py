"""Benchmarks of lme_jax beside other engines: ``python -m benchmarks.run small``; see README.md here.

Where ``LME_JAX_CHECKOUT`` names the folder of another checkout, its lme_jax is the one that is imported.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

CHECKOUT = "LME_JAX_CHECKOUT"


class _Elsewhere:
    """Finds lme_jax, and nothing else, in one folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [self.folder]) if name == "lme_jax" else None


if os.environ.get(CHECKOUT):
    sys.meta_path.insert(0, _Elsewhere(os.environ[CHECKOUT]))
