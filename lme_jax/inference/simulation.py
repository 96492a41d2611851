"""New responses from a fitted model."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from ..core.records import Fit
from ..data import ModelData
from ..errors import DataError
from ..formula.values import aligned


def simulate_responses(
    data: ModelData, fitted: Fit, b: Collection[np.ndarray] | None, n: int, seed: int | np.random.Generator
) -> np.ndarray:
    """Responses (n_rows, n) at the estimates.

    Parameters
    ----------
    b : per factor (levels, q) the effects to keep; None draws new ones from N(0, Ψ) in every response.
    seed : of NumPy's default generator, or a generator.
    """
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise DataError(f"n={n!r}: simulate a whole number of responses, 1 or more")
    rng = np.random.default_rng(seed)
    sigma = float(fitted.sigma)
    mean = data.X @ np.asarray(fitted.beta) + data.offset
    out = np.repeat(mean[:, None], n, axis=1)
    L = np.asarray(fitted.relative_factor)
    if b is None:
        for factor, span in zip(data.factors, data.factor_slices, strict=True):
            u = rng.standard_normal((n, factor.n_independent, len(factor.columns)))
            effects = sigma * (u @ L[span, span].T)
            out += factor.effects @ effects.reshape(n, -1).T
    else:
        for factor, effects in zip(data.factors, b, strict=True):
            out += np.einsum("nq,nq->n", factor.Z, factor.rows @ effects)[:, None]
    noise = sigma * rng.standard_normal(out.shape)
    weights = data.design.weights
    return out + (noise if weights is None else noise / np.sqrt(weights)[:, None])


def response_for(data: ModelData, new_y: Any) -> np.ndarray:
    """Another response for the fitted rows (n_rows,), checked; labels align a Series that has others."""
    if isinstance(new_y, pd.DataFrame) and new_y.shape[1] == 1:
        new_y = new_y.iloc[:, 0]
    if isinstance(new_y, pd.Series):
        new_y = aligned(new_y, data.index, "the new response")
    if np.iscomplexobj(new_y):
        raise DataError("the new response is complex: give real numbers")
    try:
        y = np.array(new_y, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"the new response must be numbers: {error}") from error
    if y.shape != (data.n_rows,):
        raise DataError(f"the new response has shape {y.shape}; the fit has {data.n_rows} rows")
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise DataError(f"the new response is missing or infinite in {len(bad)} rows (from 0: {bad[:5].tolist()})")
    if np.ptp(y) == 0:
        raise DataError(f"the new response is constant ({y[0]:g}); there is no variation to model")
    return y
