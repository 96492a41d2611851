"""Functions that learn from the training data and remember it for new rows: scale, poly, splines, summaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lme_jax.formula.splines import bs, ns


def scale(x: np.ndarray, center: Any = True, scale: Any = True, *, memory: dict) -> np.ndarray:
    """R's ``scale``: minus the mean, divided by the standard deviation; numbers in place of TRUE are used as given."""
    if "shift" not in memory:
        shift = (x.mean() if center else 0.0) if isinstance(center, bool) else float(center)
        rest = x - shift
        spread = (np.sqrt(rest @ rest / (len(x) - 1)) if scale else 1.0) if isinstance(scale, bool) else float(scale)
        memory.update(shift=shift, spread=spread)
    return (x - memory["shift"]) / memory["spread"]


def center(x: np.ndarray, *, memory: dict) -> np.ndarray:
    """The variable minus its mean."""
    return scale(x, True, False, memory=memory)


def poly(x: np.ndarray, degree: Any = 1, raw: Any = False, *, memory: dict) -> np.ndarray:
    """R's ``poly``: orthonormal polynomials by their three-term recurrence, or plain powers if `raw`."""
    degree = int(degree)
    if not 1 <= degree <= 1000:
        raise ValueError("the degree must be at least 1, and not absurd")
    if raw:
        return x[:, None] ** np.arange(1, degree + 1)
    if "alpha" not in memory:
        memory.update(_recurrence(x, degree))
    alpha, norms = memory["alpha"], memory["norms"]
    values = [np.ones_like(x), x - alpha[0]]
    for j in range(1, degree):
        values.append((x - alpha[j]) * values[j] - norms[j] / norms[j - 1] * values[j - 1])
    return np.column_stack(values[1:]) / np.sqrt(norms[1:])


def _recurrence(x: np.ndarray, degree: int) -> dict[str, np.ndarray]:
    """Coefficients of the monic orthogonal polynomials on the points x; norms are squared."""
    if degree >= len(np.unique(x)):
        raise ValueError(f"the degree must be less than the number of different values, {len(np.unique(x))}")
    shift = x.mean()
    q, r = np.linalg.qr(np.vander(x - shift, degree + 1, increasing=True))
    monic = q * np.diag(r)
    norms = (monic**2).sum(axis=0)
    alpha = shift + ((x - shift) @ monic**2) / norms
    return {"alpha": alpha[:degree], "norms": norms}


def _from_formulaic(name: str) -> Callable[..., np.ndarray]:
    def transform(x: np.ndarray, *args: Any, memory: dict, **kwargs: Any) -> np.ndarray:
        from formulaic.transforms import TRANSFORMS  # slow to import, seldom needed

        whole = [int(a) if isinstance(a, float) and a.is_integer() else a for a in args]
        named = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in kwargs.items()}
        found = TRANSFORMS[name](x, *whole, _state=memory.setdefault("state", {}), **named)
        found = getattr(found, "__wrapped__", found)
        columns = [np.asarray(v) for k, v in found.items() if not str(k).startswith("__")]
        return np.column_stack(columns)

    return transform


# Each takes the finite values of one variable and its memory; returns (n,) or (n, k).
TRANSFORMS: dict[str, Callable[..., np.ndarray]] = {
    "scale": scale,
    "center": center,
    "poly": poly,
    "bs": bs,
    "ns": ns,
    "cr": _from_formulaic("cr"),
    "cc": _from_formulaic("cc"),
}


def _quantile(x: np.ndarray, probs: Any = (0.0, 0.25, 0.5, 0.75, 1.0)) -> Any:
    found = np.quantile(x, probs)
    return found.tolist() if found.ndim else float(found)


# Each takes the finite values of its arguments, all rows together; its value at the fit is kept for new rows.
SUMMARIES: dict[str, Callable[..., Any]] = {
    "mean": np.mean,
    "median": np.median,
    "sd": lambda x: np.std(x, ddof=1),
    "var": lambda x: np.var(x, ddof=1),
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
    "length": len,
    "quantile": _quantile,
}
