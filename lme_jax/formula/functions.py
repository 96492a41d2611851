"""Functions of formulas that work row by row, on numbers (ELEMENTWISE) or on values of any kind (GENERAL)."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np

from lme_jax.errors import FormulaError
from lme_jax.formula.crossing import interaction
from lme_jax.formula.values import Factor, as_number, factorize, level_labels, logical, text_factor

FACTOR_CALLS = ("factor", "as.factor", "C", "ordered", "as.ordered", "relevel", "interaction", "cut")


# More breaks or values of a sequence than this are a slip of the pen.
MAX_VALUES = 100_000

# --- numbers ---------------------------------------------------------------------------------------------


def _log(x: Any, base: Any = None) -> Any:
    return np.log(x) if base is None else np.log(x) / np.log(base)


def _round(x: Any, digits: Any = 0) -> Any:
    return np.round(x, int(digits))


def _extreme(pick: np.ufunc, pick_present: np.ufunc) -> Callable[..., Any]:
    def function(*args: Any, na_rm: Any = False) -> Any:
        return reduce(pick_present if na_rm else pick, args)

    return function


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "log": _log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "exp": np.exp,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceiling": np.ceil,
    "trunc": np.trunc,
    "round": _round,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "plogis": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "qlogis": lambda p: np.log(p / (1.0 - p)),
    "pmin": _extreme(np.minimum, np.fmin),
    "pmax": _extreme(np.maximum, np.fmax),
}


# --- values of any kind ----------------------------------------------------------------------------------


def as_text(value: Any) -> Factor | str:
    """R's ``as.character``: the labels of the levels, or numbers with up to 15 digits."""
    if isinstance(value, str):
        return value
    factor = value if isinstance(value, Factor) else factorize(np.atleast_1d(value), "")
    labels = level_labels(factor.levels)
    return text_factor(factor.codes, labels) if np.ndim(value) or isinstance(value, Factor) else labels[0]


def paste(*args: Any, sep: str = " ") -> Any:
    """Text joined row by row; a row with a missing part is missing."""
    parts = [as_text(a) for a in args]
    rows = [part for part in parts if isinstance(part, Factor)]
    if not rows:
        return sep.join(map(str, parts))
    n = len(rows[0].codes)
    zeros = np.zeros(n, dtype=np.int64)
    factors = [p if isinstance(p, Factor) else Factor(zeros, np.array([p], dtype=object)) for p in parts]
    joined = interaction(factors, sep, first_slowest=True)
    return text_factor(joined.codes, joined.levels)


def if_else(test: Any, yes: Any, no: Any) -> Any:
    """R's ``ifelse`` of numbers, logicals or text."""
    where = as_number(test, "The test of ifelse()")
    missing, chosen = np.isnan(where), np.nan_to_num(where) != 0
    kinds = [isinstance(v, str) or (isinstance(v, Factor) and v.levels.dtype != bool) for v in (yes, no)]
    if not any(kinds):
        number = np.where(missing, np.nan, np.where(chosen, as_number(yes, "ifelse()"), as_number(no, "ifelse()")))
        both_logical = all(is_logical(v) for v in (yes, no))
        return logical(number) if both_logical else number
    if any(isinstance(v, Factor) and not v.text for v, text in zip((yes, no), kinds, strict=True) if text):
        raise FormulaError("ifelse() of factors gives R's integer codes; wrap them in as.character() to get labels.")
    (a, a_levels), (b, b_levels) = _coded(as_text(yes)), _coded(as_text(no))
    codes = np.where(chosen, a, np.where(b < 0, -1, b + len(a_levels)))
    return text_factor(np.where(missing, -1, codes), [*a_levels, *b_levels])


def is_logical(value: Any) -> bool:
    """Whether a value holds TRUE and FALSE."""
    if isinstance(value, Factor):
        return value.levels.dtype == bool
    return isinstance(value, bool | np.bool_) or np.asarray(value).dtype.kind == "b"


def _coded(text: Factor | str) -> tuple[Any, list[str]]:
    return (np.int64(0), [text]) if isinstance(text, str) else (text.codes, text.levels.tolist())


def cut(
    x: Any,
    breaks: Any = None,
    labels: Any = None,
    include_lowest: Any = False,
    right: Any = True,
    dig_lab: Any = 3,
    ordered_result: Any = False,
    *,
    memory: dict,
) -> Any:
    """R's ``cut``: intervals between `breaks` (or that many of equal width over the range at the fit)."""
    x = np.asarray(as_number(x, "cut()"))
    if "breaks" not in memory:
        memory["breaks"] = _breaks(x, breaks)
    edges = memory["breaks"]
    k = len(edges) - 1
    codes = np.searchsorted(edges, x, side="left" if right else "right") - 1
    if include_lowest:
        codes = np.where(x == (edges[0] if right else edges[-1]), 0 if right else k - 1, codes)
    codes = np.where(np.isnan(x) | (codes < 0) | (codes >= k), -1, codes).astype(np.int64)
    if labels is False:
        return np.where(codes < 0, np.nan, codes + 1.0)
    names = _interval_labels(edges, bool(right), bool(include_lowest), int(dig_lab)) if labels is None else labels
    if not isinstance(names, list) or len(names) != k:
        raise ValueError(f"there are {k} intervals; give as many labels, c(…)")
    return Factor(codes, np.array([str(name) for name in names], dtype=object), bool(ordered_result))


def _breaks(x: np.ndarray, breaks: Any) -> np.ndarray:
    if breaks is None:
        raise ValueError("cut() needs breaks: c(0, 5, 10), or the number of intervals")
    if isinstance(breaks, list):
        edges = np.sort(np.asarray(breaks, dtype=np.float64))
        if len(edges) < 2 or len(np.unique(edges)) < len(edges):
            raise ValueError("the breaks must be two or more different numbers")
        return edges
    finite, n = x[np.isfinite(x)], int(breaks)
    if not 2 <= n <= MAX_VALUES or len(finite) == 0:
        raise ValueError("the number of intervals must be 2 or more, and some values finite")
    lower, upper = float(finite.min()), float(finite.max())
    width = upper - lower
    if width == 0:
        width = abs(lower)
        return np.linspace(lower - width / 1000, upper + width / 1000, n + 1)
    edges = np.linspace(lower, upper, n + 1)
    edges[[0, -1]] = lower - width / 1000, upper + width / 1000
    return edges


def _interval_labels(edges: np.ndarray, right: bool, closed: bool, digits: int) -> list[str]:
    for d in range(digits, max(12, digits) + 1):
        texts = [{"inf": " Inf", "-inf": "-Inf"}.get(t, t) for t in (f"{e:.{d}g}" for e in edges)]
        if len(set(texts)) == len(texts):
            break
    opening, closing = ("(", "]") if right else ("[", ")")
    names = [f"{opening}{a},{b}{closing}" for a, b in pairwise(texts)]
    if closed and right:
        names[0] = "[" + names[0][1:]
    elif closed:
        names[-1] = names[-1][:-1] + "]"
    return names


def sequence(start: Any, end: Any, by: Any = None, length_out: Any = None) -> list[float]:
    """R's ``seq`` and ``from:to``."""
    step = (1.0 if end >= start else -1.0) if by is None else float(by)
    count = np.floor((end - start) / step + 1e-10) + 1 if length_out is None else length_out
    if not 0 < count <= MAX_VALUES:
        raise ValueError("seq() gives no values, or too many")
    if length_out is not None:
        return np.linspace(start, end, int(count)).tolist()
    return [float(start + i * step) for i in range(int(count))]


def _reverse(x: Any) -> Any:
    if isinstance(x, Factor):
        return x.take(np.arange(len(x.codes))[::-1])
    return x[::-1]


def _is_missing(x: Any) -> Any:
    return x.codes < 0 if isinstance(x, Factor) else np.isnan(as_number(x, "is.na()"))


def _as_numeric(x: Any) -> Any:
    """Text is read; a factor gives its codes 1, 2, …, as in R; the rest are numbers already."""
    if isinstance(x, Factor) and x.text:
        return np.append(x.levels.astype(np.float64), np.nan)[x.codes]
    if isinstance(x, Factor) and x.levels.dtype != bool:
        return np.where(x.codes < 0, np.nan, x.codes + 1.0)
    return as_number(x, "as.numeric()")


def _collect(*args: Any) -> list[Any]:
    flat: list[Any] = []
    for a in args:
        flat.extend(a if isinstance(a, list) else [a])
    if any(isinstance(a, np.ndarray | Factor) for a in flat):
        raise FormulaError("c(…) takes numbers or texts, not columns.")
    return flat


GENERAL: dict[str, Callable[..., Any]] = {
    "I": lambda x: x,
    "c": _collect,
    "ifelse": if_else,
    "paste": paste,
    "paste0": lambda *args: paste(*args, sep=""),
    "rev": _reverse,
    "is.na": _is_missing,
    "as.character": as_text,
    "as.numeric": _as_numeric,
    "as.integer": lambda x: np.trunc(_as_numeric(x)),
    "seq": sequence,
}
