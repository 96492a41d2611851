"""R's ``splines::bs`` and ``splines::ns``: B-splines, natural splines, and how they go on beyond the boundary."""

from __future__ import annotations

from typing import Any

import numpy as np

from lme_jax.errors import LmeJaxWarning
from lme_jax.formula.notes import warn


def bspline_basis(x: np.ndarray, knots: np.ndarray, degree: int, derivative: int = 0) -> np.ndarray:
    """Values or derivatives of all B-splines on a knot sequence.

    Parameters
    ----------
    x : (n,) array
        Beyond the boundary the polynomials of the first and last interval go on.
    knots : (k,) array
        Non-decreasing, the boundary knots repeated degree + 1 times.
    degree, derivative : int

    Returns
    -------
    (n, k - degree - 1) array
    """
    n_intervals = len(knots) - 1
    span = np.clip(np.searchsorted(knots, x, side="right") - 1, degree, n_intervals - degree - 1)
    while (empty := (knots[span] == knots[span + 1]) & (span > degree)).any():
        span = span - empty
    basis = np.zeros((len(x), n_intervals))
    basis[np.arange(len(x)), span] = 1.0
    for k in range(1, degree + 1):
        width = knots[k:] - knots[:-k]
        scale = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        left, right = basis[:, :-1] * scale[:-1], basis[:, 1:] * scale[1:]
        if k <= degree - derivative:
            basis = (x[:, None] - knots[: -k - 1]) * left + (knots[k + 1 :] - x[:, None]) * right
        else:
            basis = k * (left - right)
    return basis


def bs(x: np.ndarray, df: Any = None, knots: Any = None, degree: int = 3, *, memory: dict, **options: Any) -> Any:
    """R's ``bs(x, df, knots, degree, intercept, Boundary.knots)``: the B-spline basis of a polynomial spline."""
    degree, intercept, boundary = int(degree), *_options(options)
    if "knots" not in memory:
        boundary, inside = _boundary(x, boundary)
        n_inner = 0 if df is None else int(df) - degree - intercept
        memory.update(boundary=boundary, knots=_inner_knots(inside, knots, n_inner, memory["label"]))
    lower, upper = memory["boundary"]
    outside = int(((x < lower) | (x > upper)).sum())
    if outside:
        warn(
            f"{memory['label']}: {outside} values lie beyond the boundary knots {lower:g} and {upper:g}; "
            "the outer polynomials are continued there, as R does, and may go far astray.",
            LmeJaxWarning,
        )
    full = _full_knots(memory, degree)
    return bspline_basis(x, full, degree)[:, 0 if intercept else 1 :]


def ns(x: np.ndarray, df: Any = None, knots: Any = None, *, memory: dict, **options: Any) -> np.ndarray:
    """R's ``ns(x, df, knots, intercept, Boundary.knots)``: cubic in between, linear beyond the boundary knots."""
    intercept, boundary = _options(options)
    if "knots" not in memory:
        boundary, inside = _boundary(x, boundary)
        n_inner = 0 if df is None else int(df) - 1 - intercept
        memory.update(boundary=boundary, knots=_inner_knots(inside, knots, n_inner, memory["label"]))
    full = _full_knots(memory, 3)
    ends = np.array(memory["boundary"])
    nearest = np.clip(x, *ends)
    basis = bspline_basis(nearest, full, 3)
    outside = nearest != x
    if outside.any():
        slopes = bspline_basis(ends, full, 3, derivative=1)
        side = (x[outside] > ends[1]).astype(int)
        basis[outside] += (x - nearest)[outside, None] * slopes[side]
    first = 0 if intercept else 1
    curvature = bspline_basis(ends, full, 3, derivative=2)[:, first:]
    free, _ = np.linalg.qr(curvature.T, mode="complete")
    return basis[:, first:] @ free[:, 2:]


def _options(options: dict[str, Any]) -> tuple[bool, Any]:
    """The intercept and the boundary knots under R's names or patsy's."""
    given = {key.replace(".", "_"): value for key, value in options.items()}
    intercept = bool(given.pop("intercept", given.pop("include_intercept", False)))
    boundary = given.pop("Boundary_knots", None)
    lower, upper = given.pop("lower_bound", None), given.pop("upper_bound", None)
    if boundary is None and (lower is not None or upper is not None):
        boundary = [lower, upper]
    if given.pop("extrapolation", "extend") != "extend":
        raise ValueError("beyond the boundary knots splines are continued, as in R; clip the variable with pmin, pmax")
    if given:
        raise ValueError(f"unknown arguments {list(given)}; known: df, knots, degree, intercept, Boundary.knots")
    return intercept, boundary


def _boundary(x: np.ndarray, given: Any) -> tuple[tuple[float, float], np.ndarray]:
    """The boundary knots and the values within them."""
    if len(x) == 0:
        raise ValueError("no finite values")
    lower, upper = given if given is not None else (None, None)
    lower = float(x.min()) if lower is None else float(lower)
    upper = float(x.max()) if upper is None else float(upper)
    lower, upper = min(lower, upper), max(lower, upper)
    if lower == upper:
        raise ValueError(f"all values are {lower:g}")
    return (lower, upper), x[(x >= lower) & (x <= upper)]


def _inner_knots(x: np.ndarray, given: Any, count: int, label: str) -> np.ndarray:
    if given is not None:
        inner = np.sort(np.atleast_1d(np.asarray(given, dtype=np.float64)))
        if inner.ndim != 1 or not np.isfinite(inner).all():
            raise ValueError("knots must be finite numbers")
        return inner
    if count < 0:
        warn(f"{label}: `df` is too small; the smallest possible is used, as R does.", LmeJaxWarning)
    if count > len(x):
        raise ValueError(f"`df` asks for {count} knots within {len(x)} values")
    return np.quantile(x, np.linspace(0, 1, max(count, 0) + 2)[1:-1])


def _full_knots(memory: dict, degree: int) -> np.ndarray:
    lower, upper = memory["boundary"]
    inner = memory["knots"]
    if len(inner) and not (lower < inner[0] and inner[-1] < upper):
        raise ValueError(f"all knots must lie between the boundary knots {lower:g} and {upper:g}")
    return np.concatenate([np.full(degree + 1, lower), inner, np.full(degree + 1, upper)])
