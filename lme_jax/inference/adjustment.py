"""p-values and critical values of several tests at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from ..errors import DataError
from .linear_tests import t_pvalue, t_quantile
from .simultaneous import MaxT, max_t, quantile, range_tail

Adjust = Literal["none", "tukey", "mvt", "sidak", "bonferroni", "holm", "fdr"]
ADJUSTMENTS: tuple[str, ...] = get_args(Adjust)
# These order p-values and have no intervals of their own.
STEPWISE = ("holm", "fdr")
BY_P_VALUES = ("none", "sidak", "bonferroni", "holm", "fdr")
NAMES = {
    "tukey": "Tukey's method",
    "mvt": "multivariate t",
    "sidak": "Šidák's method",
    "bonferroni": "Bonferroni's method",
    "holm": "Holm's method",
    "fdr": "the false discovery rate (Benjamini & Hochberg)",
}


@dataclass(frozen=True)
class Tests:
    """One family: m statistics with degrees of freedom and correlations (m, m), all finite; how they are adjusted.

    Attributes
    ----------
    means : k, of which they are all the differences; None if they are something else.
    """

    t: np.ndarray
    df: np.ndarray
    R: np.ndarray
    adjust: str = "none"
    means: int | None = None

    @cached_property
    def _greatest(self) -> MaxT | None:
        """The distribution of the greatest |t|, for methods that ask for it."""
        if len(self.t) < 2 or self.adjust not in ("tukey", "mvt"):
            return None
        if self.adjust == "mvt":
            return max_t(self.R)
        k = self.means
        assert k is not None
        return MaxT(lambda c, df: range_tail(np.sqrt(2.0) * c, k, df), "", 0.0)

    @property
    def how(self) -> str:
        """How the distribution of the greatest |t| was computed, in words."""
        return self._greatest.method if self._greatest is not None else ""

    @property
    def p(self) -> np.ndarray:
        """Adjusted p-values (m,); each test keeps its own degrees of freedom."""
        raw = t_pvalue(self.t, self.df)
        if len(raw) < 2:
            return raw
        if self._greatest is None:
            return ordered(raw, self.adjust)
        # Between one p-value and Bonferroni's, whatever rounding says of probabilities near zero.
        return np.clip(self._greatest.tail(np.abs(self.t), self.df), raw, np.minimum(len(raw) * raw, 1.0))

    def critical(self, level: float) -> np.ndarray:
        """(m,) |t| beyond which intervals end that hold together with probability ``level``.

        Holm's and the false discovery rate's p-values have no intervals of their own; Bonferroni's stand for them.
        """
        m, adjust = len(self.t), self.adjust
        if self._greatest is not None:
            df, where = np.unique(self.df, return_inverse=True)
            ends = t_quantile(0.5 + level / 2.0, df), t_quantile(1.0 - (1.0 - level) / (2.0 * m), df)
            return quantile(self._greatest.tail, level, df, ends)[where]
        size = (1.0 - level) / m if adjust in ("bonferroni", *STEPWISE) else 1.0 - level
        size = -np.expm1(np.log(level) / m) if adjust == "sidak" else size
        return t_quantile(1.0 - size / 2.0, self.df)


def check_adjust(adjust: str, all_pairs: bool) -> str:
    """A known method that the tests allow."""
    if adjust not in ADJUSTMENTS:
        raise DataError(f"adjust={adjust!r} is unknown; use {', '.join(map(repr, ADJUSTMENTS))}")
    if adjust == "tukey" and not all_pairs:
        raise DataError("adjust='tukey' is for all pairwise differences: use 'mvt', which is exact for any family")
    return adjust


def ordered(raw: np.ndarray, adjust: str) -> np.ndarray:
    """Adjusted p-values by a method that asks for the p-values alone."""
    if adjust not in BY_P_VALUES:
        raise DataError(f"adjust={adjust!r} of p-values alone is unknown; use {', '.join(map(repr, BY_P_VALUES))}")
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


def in_words(adjust: str, sizes: Sequence[int], means: int | None, how: Sequence[str]) -> list[str]:
    """What was done, for a note below a table."""
    if adjust == "none" or max(sizes, default=0) < 2:
        return []
    family = f"a family of {means} means" if adjust == "tukey" else f"{max(sizes)} tests"
    text = f"p-values adjusted by {NAMES[adjust]} for {family}"
    text += "; the intervals are Bonferroni's" if adjust in STEPWISE else ""
    ways = list(dict.fromkeys(word for word in how if word))
    return [f"{text} ({ways[0]})." if ways else f"{text}."]
