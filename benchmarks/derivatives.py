"""What derivatives cost: a compiled gradient beside the compiled value, alternating in one process."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lme_jax

from .problem import Problem, arrays


def measure_derivatives(problem: Problem, rounds: int) -> list[dict[str, Any]]:
    """Of the deviance with respect to θ and, through ``compress``, to y; of the fit with respect to y."""
    a, reml = arrays(problem), problem.reml

    def compressed(y: Any, rest: Any) -> Any:
        X, Z, codes = rest
        return lme_jax.compress(y, X, Z, codes, n_groups=a.levels[0], structure=a.templates[0])

    def deviance_of_y(y: Any, rest: Any) -> Any:
        theta, *design = rest
        return lme_jax.deviance(theta, compressed(y, design), reml=reml)

    def estimate_of_y(y: Any, rest: Any) -> Any:
        return lme_jax.fit(compressed(y, rest), reml=reml).beta[-1]

    def deviance(theta: Any, data: Any) -> Any:
        return lme_jax.deviance(theta, data, reml=reml)

    with jax.enable_x64(True):
        y, *design = (jnp.asarray(part) for part in (a.y, a.X, a.Z[0], a.codes[0]))
        data = compressed(y, design)
        theta = jnp.asarray(np.asarray(lme_jax.fit(data, reml=reml).theta))
        cases: dict[str, tuple[Callable[..., Any], Any, Any]] = {
            "deviance by θ": (deviance, theta, data),
            "deviance by y, compress included": (deviance_of_y, y, (theta, *design)),
            "estimate by y, compress and fit included": (estimate_of_y, y, tuple(design)),
        }
        return [{"problem": problem.title, "what": name, **_ratio(*case, rounds)} for name, case in cases.items()]


def _ratio(function: Callable[..., Any], at: Any, rest: Any, rounds: int) -> dict[str, float]:
    value, both = jax.jit(function), jax.jit(jax.value_and_grad(function))
    times: dict[Any, list[float]] = {value: [], both: []}
    # The first round, with compilation, is not counted.
    for number in range(rounds + 1):
        for compiled, own in times.items():
            begin = time.perf_counter()
            jax.block_until_ready(compiled(at, rest))
            own += [time.perf_counter() - begin] * (number > 0)
    plain, with_gradient = (median(own) for own in times.values())
    return {"value": plain, "value_and_gradient": with_gradient, "ratio": with_gradient / plain}
