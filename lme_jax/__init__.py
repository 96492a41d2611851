"""Linear mixed-effects models in JAX: as easy as lme4 and statsmodels, batched and differentiable."""

from . import datasets, errors
from .cache import enable_compilation_cache
from .core.compression import compress, merge
from .core.fit import deviance, fit, fit_at, predict, random_effects
from .core.optimize import NewtonOptions
from .core.records import Fit
from .core.types import Status
from .many import fit_many, lmer_many
from .many_results import ManyFits, compare
from .mixed_lm import MixedLM, mixedlm
from .model import lmer
from .results import MixedLMResults
from .statsmodels_params import MixedLMParams, VCSpec

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
