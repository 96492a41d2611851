"""The referee: lme_jax's exact deviance at any engine's variance estimates.

Engines print criteria with different constants. What they estimate is comparable: each hands in its relative
covariances Ψ/σ², a matrix per random term, and the profiled deviance is evaluated at them here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

import lme_jax
from lme_jax.core.parameterizations import sqrt_from_profile

VOID_ABOVE = 1e-4


def deviance_at(relative: Sequence[Any], data: Any, *, reml: bool) -> float:
    """−2 log L, or the REML criterion, where Ψ/σ² of each term is ``relative``; NaN where an estimate is."""
    matrices = [np.atleast_2d(np.asarray(m, float)) for m in relative]
    if not all(np.isfinite(m).all() for m in matrices):
        return float("nan")
    omega = np.concatenate([m[np.tril_indices(len(m))] for m in matrices])
    return float(lme_jax.deviance(sqrt_from_profile(omega, data.template), data, reml=reml))
