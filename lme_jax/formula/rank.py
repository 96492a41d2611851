"""Full column rank: drop the columns that earlier ones determine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lme_jax.errors import RankWarning
from lme_jax.formula.notes import warn

_TOLERANCE = 1e-7
# A squared residual fraction this large is far above the rounding error of a Gram matrix.
_COMFORTABLE = 1e-8


def drop_dependent_columns(X: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Indices of the columns of `X` that earlier columns do not determine.

    Parameters
    ----------
    X : (n, p) array
        Finite values; the scale of a column is immaterial.
    names : sequence of str
        Column names, for the warning.

    Returns
    -------
    keep : (r,) int64 array
        Increasing.

    Warns
    -----
    RankWarning
        Naming the columns left out.

    Notes
    -----
    Column j goes if what is left of it after projection on the kept earlier columns is shorter than 1e-7
    times the column, the criterion of R's ``dqrdc2``. One Gram matrix, O(n p²), settles the comfortable case;
    otherwise Gram-Schmidt with reorthogonalisation decides, at the same order of cost.
    """
    keep = independent_columns(X)
    kept = set(keep.tolist())
    dropped = [names[j] for j in range(X.shape[1]) if j not in kept]
    if dropped:
        warn(
            f"The fixed-effects design has rank {len(keep)}, not {X.shape[1]}: "
            f"dropped {', '.join(dropped)}, which earlier columns determine.",
            RankWarning,
        )
    return keep


def independent_columns(X: np.ndarray) -> np.ndarray:
    """``drop_dependent_columns`` without a word."""
    if _gram_is_comfortable(X):
        return np.arange(X.shape[1])
    return np.array(_gram_schmidt(X), dtype=np.int64)


def _gram_is_comfortable(X: np.ndarray) -> bool:
    if X.shape[1] > X.shape[0]:
        return False
    with np.errstate(all="ignore"):
        gram = X.T @ X
        scale = 1.0 / np.sqrt(np.diag(gram))
        gram = gram * scale[:, None] * scale
    if not np.isfinite(gram).all():
        return False
    try:
        pivots = np.diag(np.linalg.cholesky(gram))
    except np.linalg.LinAlgError:
        return False
    return bool((pivots**2 > _COMFORTABLE).all())


def _gram_schmidt(X: np.ndarray) -> list[int]:
    n, p = X.shape
    basis = np.empty((n, min(n, p)), order="F")
    keep: list[int] = []
    for j in range(p):
        peak = np.abs(X[:, j]).max(initial=0.0)
        if peak == 0.0 or len(keep) == n:
            continue
        column = X[:, j] / peak
        size = np.linalg.norm(column)
        q = basis[:, : len(keep)]
        for _ in range(2):
            column = column - q @ (q.T @ column)
        left = np.linalg.norm(column)
        if left > _TOLERANCE * size:
            basis[:, len(keep)] = column / left
            keep.append(j)
    return keep
