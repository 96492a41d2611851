"""Linear mixed-effects models: as easy as lme4 and statsmodels, batched and differentiable.

What a formula and a data frame need is imported here; everything else, JAX first of all, when its name is used
for the first time (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import errors
from .model import lmer

if TYPE_CHECKING:
    from . import datasets, plots
    from .cache import enable_compilation_cache
    from .chunks import Moments, merge, moments
    from .compat.mixed_lm import MixedLM, mixedlm
    from .compat.params import MixedLMParams, VCSpec
    from .core.effects import predict, random_effects
    from .core.fit import deviance, fit, fit_at
    from .core.likelihood import Likelihood, loglike, score_and_hessian
    from .core.optimize import NewtonOptions
    from .core.parameterizations import convert as convert_params
    from .core.parameterizations import jacobian as params_jacobian
    from .core.records import Fit
    from .core.rows import compress
    from .core.types import Status
    from .many.doors import fit_many, lmer_many
    from .many.power import design, power
    from .many.results import ManyFits, compare
    from .repeated import gls, mmrm
    from .results import MixedLMResults
    from .structured.results import StructuredResults

__version__ = "0.1.0"

__all__ = [
    "Fit",
    "Likelihood",
    "ManyFits",
    "MixedLM",
    "MixedLMParams",
    "MixedLMResults",
    "Moments",
    "NewtonOptions",
    "Status",
    "StructuredResults",
    "VCSpec",
    "compare",
    "compress",
    "convert_params",
    "datasets",
    "design",
    "deviance",
    "enable_compilation_cache",
    "errors",
    "fit",
    "fit_at",
    "fit_many",
    "gls",
    "lmer",
    "lmer_many",
    "loglike",
    "merge",
    "mixedlm",
    "mmrm",
    "moments",
    "params_jacobian",
    "plots",
    "power",
    "predict",
    "random_effects",
    "score_and_hessian",
]

_HOMES = {
    "Fit": "core.records",
    "Likelihood": "core.likelihood",
    "ManyFits": "many.results",
    "MixedLM": "compat.mixed_lm",
    "MixedLMParams": "compat.params",
    "MixedLMResults": "results",
    "Moments": "chunks",
    "NewtonOptions": "core.optimize",
    "Status": "core.types",
    "StructuredResults": "structured.results",
    "VCSpec": "compat.params",
    "compare": "many.results",
    "compress": "core.rows",
    "convert_params": "core.parameterizations:convert",
    "design": "many.power",
    "deviance": "core.fit",
    "enable_compilation_cache": "cache",
    "fit": "core.fit",
    "fit_at": "core.fit",
    "fit_many": "many.doors",
    "gls": "repeated",
    "lmer_many": "many.doors",
    "loglike": "core.likelihood",
    "merge": "chunks",
    "mmrm": "repeated",
    "mixedlm": "compat.mixed_lm",
    "moments": "chunks",
    "params_jacobian": "core.parameterizations:jacobian",
    "power": "many.power",
    "predict": "core.effects",
    "random_effects": "core.effects",
    "score_and_hessian": "core.likelihood",
}


def __getattr__(name: str) -> Any:
    if name in ("datasets", "plots"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, known_as = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), known_as or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
