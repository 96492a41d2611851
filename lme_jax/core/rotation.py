"""A factor whose rows belong to many levels, turned into one by codes: the singular vectors of its Z.

With W^½Z = USTᵀ, the rows Uᵀ[y X] have independent effects of the sizes S (one row per singular vector),
and the part of the data orthogonal to U has no effect of this factor at all, so that its triangular factor
stands for it. The likelihood keeps its value once the number of rows and Σ log w are put right.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse

from .compression import compress
from .covariance import Template
from .crossed_data import CrossedData, NestedData, compress_crossed
from .moments import GroupData


def compress_rotated(
    y: np.ndarray,
    X: np.ndarray,
    Zs: list[Any],
    n_levels: list[int],
    templates: tuple[Template, ...],
    which: int,
    *,
    weights: Any = None,
    offset: Any = None,
) -> GroupData | CrossedData | NestedData:
    """Statistics of a model all of whose factors have sparse columns; factor ``which`` has one effect.

    Notes
    -----
    One singular value decomposition, O(n r min(n, r)) for the r columns of that factor, and dense rows for
    the columns of the others.
    """
    n, p = X.shape
    root = np.ones(n) if weights is None else np.sqrt(np.asarray(weights, float))
    y = y if offset is None else y - offset
    U, S, _ = np.linalg.svd(root[:, None] * Zs[which].toarray(), full_matrices=False)
    kept = 1e-13 * S[0] * max(Zs[which].shape) < S
    U, S = U[:, kept], S[kept]
    others = [Z.toarray() for j, Z in enumerate(Zs) if j != which]
    rest = root[:, None] * np.concatenate([X, y[:, None], *others], axis=1)
    rotated = U.T @ rest
    remainder = np.linalg.qr(rest - U @ rotated, mode="r")
    rows = np.concatenate([rotated, remainder])
    size = np.concatenate([S, np.zeros(len(remainder))])[:, None]
    codes = np.concatenate([np.arange(len(S)), np.zeros(len(remainder), int)])
    log_weights = np.float64(2.0 * np.log(root).sum())
    if not others:
        data = compress(rows[:, p], rows[:, :p], size, codes, structure=templates[which], n_groups=len(S))
        moments = dataclasses.replace(data.moments, n_rows=np.float64(n), log_weights=log_weights)
        return dataclasses.replace(data, moments=moments)
    return _several(rows, size, codes, Zs, n_levels, templates, which, p, n, log_weights)


def _several(
    rows: np.ndarray,
    size: np.ndarray,
    codes: np.ndarray,
    Zs: list[Any],
    n_levels: list[int],
    templates: tuple[Template, ...],
    which: int,
    p: int,
    n: int,
    log_weights: Any,
) -> CrossedData | NestedData:
    columns, lo = [], p + 1
    for j, Z in enumerate(Zs):
        if j == which:
            columns.append(size)
            continue
        columns.append(scipy.sparse.csr_matrix(rows[:, lo : lo + Z.shape[1]]))
        lo += Z.shape[1]
    levels = [int(codes.max()) + 1 if j == which else m for j, m in enumerate(n_levels)]
    by_code = [codes if j == which else None for j in range(len(Zs))]
    data = compress_crossed(rows[:, p], rows[:, :p], columns, by_code, levels, templates)
    return dataclasses.replace(data, n_rows=np.float64(n), log_weights=log_weights)
