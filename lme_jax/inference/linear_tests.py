"""Tests of Lβ = c against a ``degrees.Reference``: row by row, and all rows together."""

from typing import Any, NamedTuple

import numpy as np
import scipy.special

from ..errors import DataError
from .degrees import DEPENDENT, Reference


class Rows(NamedTuple):
    """One test per row, each (m,)."""

    estimate: np.ndarray
    se: np.ndarray
    df: np.ndarray
    statistic: np.ndarray
    p: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Joint(NamedTuple):
    """The test of all rows together.

    ``value`` is F(num_df, den_df), its factor ``scale`` in it already; χ²/num_df where den_df is infinite.
    """

    value: float
    num_df: int
    den_df: float
    p: float
    scale: float


def row_tests(L: np.ndarray, c: np.ndarray, beta: np.ndarray, reference: Reference, level: float = 0.95) -> Rows:
    """Tests of each row of L (m, p) against c (m,), with limits of Lβ."""
    if not 0.0 < level < 1.0:
        raise DataError(f"level={level!r} must lie between 0 and 1")
    estimate, df = L @ beta, reference.single(L)
    se = np.sqrt(np.einsum("mi,ij,mj->m", L, reference.cov, L))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (estimate - c) / se
    half = t_quantile(0.5 + 0.5 * level, df) * se
    return Rows(estimate, se, df, t, t_pvalue(t, df), estimate - half, estimate + half)


def joint_test(L: np.ndarray, c: np.ndarray, beta: np.ndarray, reference: Reference) -> Joint:
    """The F test of all rows of L (m, p); rows that follow from the others do not count.

    Raises
    ------
    DataError
        If the rows contradict each other, or no row is left.
    """
    L, c = independent_rows(L, c)
    cov = L @ reference.cov @ L.T
    unit = 1.0 / np.sqrt(np.diag(cov))
    gap = unit * (L @ beta - c)
    wald = float(gap @ np.linalg.solve(unit[:, None] * cov * unit, gap))
    df, scale = reference.several(L)
    value = scale * wald / len(L)
    return Joint(value, len(L), df, float(f_pvalue(value, len(L), df)), scale)


def independent_rows(L: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L (m, p) and c (m,) where the rows are independent, else as many orthonormal rows as say the same."""
    size = np.sqrt((L**2).sum(1))
    if not (size > 0).any():
        raise DataError("the hypothesis has no row that involves a fixed effect")
    unit = np.where(size > 0, size, 1.0)
    left, s, right = np.linalg.svd(L / unit[:, None], full_matrices=False)
    kept = s > DEPENDENT * s[0]
    if kept.sum() == len(L):
        return L, c
    values = left.T @ (c / unit) / np.where(kept, s, 1.0)
    if (np.abs(L @ right[kept].T @ values[kept] - c) > 1e-8 * np.maximum(np.abs(c).max(), 1.0)).any():
        raise DataError("the hypotheses contradict each other: no fixed effects fulfil all of them")
    return right[kept], values[kept]


# ---------------------------------------------------------------- distributions, infinite degrees of freedom among them


def t_pvalue(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Two-sided p-values of t statistics."""
    t = np.abs(t)
    with np.errstate(invalid="ignore", divide="ignore"):
        student = scipy.special.betainc(0.5 * df, 0.5, 1.0 / (1.0 + t**2 / df))
    return np.where(np.isinf(df), 2.0 * scipy.special.ndtr(-t), student)


def t_quantile(share: float, df: np.ndarray) -> np.ndarray:
    """The share's quantile of t."""
    finite = np.where(np.isinf(df), 1.0, df)
    return np.where(np.isinf(df), scipy.special.ndtri(share), scipy.special.stdtrit(finite, share))


def f_pvalue(value: Any, num_df: int, den_df: Any) -> np.ndarray:
    """Upper tails of F; of χ²/num_df where den_df is infinite; NaN where den_df is not positive."""
    value, den_df = np.asarray(value, float), np.asarray(den_df, float)
    finite = np.where(np.isfinite(den_df) & (den_df > 0), den_df, 1.0)
    with np.errstate(invalid="ignore"):
        fisher = scipy.special.betainc(0.5 * finite, 0.5 * num_df, 1.0 / (1.0 + num_df * value / finite))
    tail = np.where(np.isinf(den_df), scipy.special.chdtrc(num_df, num_df * value), fisher)
    return np.where(den_df > 0, tail, np.nan)
