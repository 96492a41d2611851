"""p-values and critical values of several tests at once."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..errors import DataError
from .simultaneous import MaxT, max_t, quantile, range_tail, t_quantile, t_tail

Adjust = Literal["none", "tukey", "mvt", "sidak", "bonferroni", "holm", "fdr"]
ADJUSTMENTS: tuple[str, ...] = get_args(Adjust)
# These order p-values and have no intervals of their own.
STEPWISE = ("holm", "fdr")
NAMES = {
    "tukey": "Tukey's method",
    "mvt": "multivariate t",
    "sidak": "Šidák's method",
    "bonferroni": "Bonferroni's method",
    "holm": "Holm's method",
    "fdr": "the false discovery rate (Benjamini & Hochberg)",
}


class Tests(NamedTuple):
    """One family: m statistics with degrees of freedom and correlations (m, m), all finite.

    Attributes
    ----------
    means : k, of which they are all the differences; None if they are something else.
    """

    t: np.ndarray
    df: np.ndarray
    R: np.ndarray
    means: int | None = None


class Adjusted(NamedTuple):
    """p (m,), critical values (m,) of |t|, and how they were found, in words."""

    p: np.ndarray
    critical: np.ndarray
    note: str


def check_adjust(adjust: str, all_pairs: bool) -> str:
    """A known method that the tests allow."""
    if adjust not in ADJUSTMENTS:
        raise DataError(f"adjust={adjust!r} is unknown; use {', '.join(map(repr, ADJUSTMENTS))}")
    if adjust == "tukey" and not all_pairs:
        raise DataError("adjust='tukey' is for all pairwise differences: use 'mvt', which is exact for any family")
    return adjust


def adjusted(tests: Tests, adjust: str, level: float) -> Adjusted:
    """p-values for tests of one family, and critical values whose intervals hold together with probability ``level``.

    Notes
    -----
    Every test keeps its own degrees of freedom. Holm's and the false discovery rate's p-values have no intervals of
    their own; Bonferroni's are given.
    """
    raw, m = t_tail(tests.t, tests.df), len(tests.t)
    if adjust in ("tukey", "mvt") and m > 1:
        return _simultaneous(tests, adjust, level, raw)
    size = (1.0 - level) / m if adjust in ("bonferroni", *STEPWISE) else 1.0 - level
    size = -np.expm1(np.log(level) / m) if adjust == "sidak" else size
    return Adjusted(_ordered(raw, adjust), t_quantile(1.0 - size / 2.0, tests.df), "")


def _ordered(raw: np.ndarray, adjust: str) -> np.ndarray:
    """Adjusted p-values that depend on the p-values alone."""
    m = len(raw)
    if adjust == "sidak":
        return -np.expm1(m * np.log1p(-np.minimum(raw, 1.0 - 1e-16)))
    if adjust == "bonferroni":
        return np.minimum(m * raw, 1.0)
    if adjust not in STEPWISE:
        return raw
    order = np.argsort(raw, kind="stable")
    if adjust == "holm":
        steps = np.maximum.accumulate((m - np.arange(m)) * raw[order])
    else:
        steps = np.minimum.accumulate((m / np.arange(1, m + 1) * raw[order])[::-1])[::-1]
    out = np.empty(m)
    out[order] = np.minimum(steps, 1.0)
    return out


def _simultaneous(tests: Tests, adjust: str, level: float, raw: np.ndarray) -> Adjusted:
    """Tukey's range, or the greatest of correlated t: between one p-value and Bonferroni's, whatever rounding says."""
    m, df = len(tests.t), tests.df
    found = _tukey(tests) if adjust == "tukey" else max_t(tests.R)
    size = np.abs(tests.t)
    p = np.clip(found.tail(size, df), raw, np.minimum(m * raw, 1.0))
    unique, where = np.unique(df, return_inverse=True)
    ends = t_quantile(0.5 + level / 2.0, unique), t_quantile(1.0 - (1.0 - level) / (2.0 * m), unique)
    critical = quantile(found.tail, level, unique, ends)[where]
    return Adjusted(p, critical, found.method if adjust == "mvt" else "")


def _tukey(tests: Tests) -> MaxT:
    k = tests.means
    assert k is not None
    return MaxT(lambda c, df: range_tail(np.sqrt(2.0) * c, k, df), "the studentized range", 0.0)


def in_words(adjust: str, sizes: Sequence[int], means: int | None, how: Sequence[str]) -> list[str]:
    """What was done, for a note below a table."""
    if adjust == "none" or max(sizes, default=0) < 2:
        return []
    family = f"a family of {means} means" if adjust == "tukey" else f"{max(sizes)} tests"
    text = f"p-values adjusted by {NAMES[adjust]} for {family}"
    text += "; the intervals are Bonferroni's" if adjust in STEPWISE else ""
    ways = list(dict.fromkeys(word for word in how if word))
    return [f"{text} ({ways[0]})." if ways else f"{text}."]
