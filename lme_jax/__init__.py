"""Linear mixed-effects models: as easy as lme4 and statsmodels, batched and differentiable.

What a formula and a data frame need is imported here; everything else, JAX first of all, when its name is used
for the first time (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from .model import lmer

if TYPE_CHECKING:
    from . import datasets
    from .cache import enable_compilation_cache
    from .compat.mixed_lm import MixedLM, mixedlm
    from .compat.params import MixedLMParams, VCSpec
    from .core.compression import compress, merge
    from .core.fit import deviance, fit, fit_at, predict, random_effects
    from .core.optimize import NewtonOptions
    from .core.records import Fit
    from .core.types import Status
    from .many.doors import fit_many, lmer_many
    from .many.results import ManyFits, compare
    from .results import MixedLMResults

__version__ = "0.1.0"

__all__ = [
    "Fit",
    "ManyFits",
    "MixedLM",
    "MixedLMParams",
    "MixedLMResults",
    "NewtonOptions",
    "Status",
    "VCSpec",
    "compare",
    "compress",
    "datasets",
    "deviance",
    "enable_compilation_cache",
    "errors",
    "fit",
    "fit_at",
    "fit_many",
    "lmer",
    "lmer_many",
    "merge",
    "mixedlm",
    "predict",
    "random_effects",
]

_HOMES = {
    "Fit": "core.records",
    "ManyFits": "many.results",
    "MixedLM": "compat.mixed_lm",
    "MixedLMParams": "compat.params",
    "MixedLMResults": "results",
    "NewtonOptions": "core.optimize",
    "Status": "core.types",
    "VCSpec": "compat.params",
    "compare": "many.results",
    "compress": "core.compression",
    "deviance": "core.fit",
    "enable_compilation_cache": "cache",
    "fit": "core.fit",
    "fit_at": "core.fit",
    "fit_many": "many.doors",
    "lmer_many": "many.doors",
    "merge": "core.moments",
    "mixedlm": "compat.mixed_lm",
    "predict": "core.fit",
    "random_effects": "core.fit",
}


def __getattr__(name: str) -> Any:
    if name == "datasets":
        return importlib.import_module(f"{__name__}.datasets")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
