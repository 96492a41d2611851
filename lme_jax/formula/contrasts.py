"""Contrast matrices with R's values and R's column names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.notes import shown
from lme_jax.formula.values import Factor, level_labels


def contrast_matrix(factor: Factor, spec: Any, name: str) -> tuple[np.ndarray, list[str]]:
    """The (levels, columns) coding of a factor and the suffixes of its column names.

    Parameters
    ----------
    factor : Factor
    spec : str, array, DataFrame or None
        None: treatment contrasts, polynomial ones for an ordered factor. A DataFrame is matched by its index.
    name : str
        The factor, for messages.
    """
    labels = level_labels(factor.levels)
    k = len(labels)
    if k < 2:
        raise DataError(f"The factor {name!r} has one level only ({shown(labels)}) in the rows used; leave it out.")
    if spec is None:
        spec = "poly" if factor.ordered else "treatment"
    if isinstance(spec, str):
        build = _NAMED.get(spec.removeprefix("contr.").lower())
        if build is None:
            raise FormulaError(f"Unknown contrasts {spec!r} for {name!r}; known: {', '.join(_NAMED)}, or a matrix.")
        return build(labels)
    if isinstance(spec, pd.DataFrame):
        return _from_frame(spec, factor, labels, name)
    matrix = np.asarray(spec, dtype=np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    _check_matrix(matrix, labels, name)
    return matrix, [str(j + 1) for j in range(matrix.shape[1])]


def _from_frame(spec: pd.DataFrame, factor: Factor, labels: list[str], name: str) -> tuple[np.ndarray, list[str]]:
    rows = spec.index.get_indexer(pd.Index(factor.levels))
    if (rows < 0).any():
        rows = pd.Index(spec.index.map(str)).get_indexer(labels)
    if (rows < 0).any():
        absent = [label for label, row in zip(labels, rows, strict=True) if row < 0]
        raise DataError(f"The contrast matrix of {name!r} has no row for the levels {shown(absent)}.")
    matrix = spec.to_numpy(dtype=np.float64)[rows]
    _check_matrix(matrix, labels, name)
    return matrix, [str(c) for c in spec.columns]


def _check_matrix(matrix: np.ndarray, labels: list[str], name: str) -> None:
    k = len(labels)
    if matrix.ndim != 2 or matrix.shape[0] != k or not 1 <= matrix.shape[1] < k or not np.isfinite(matrix).all():
        raise DataError(
            f"The contrast matrix of {name!r} has shape {matrix.shape}; it needs {k} finite rows "
            f"(levels {shown(labels, 20)}) and at most {k - 1} columns."
        )


def _treatment(labels: list[str]) -> tuple[np.ndarray, list[str]]:
    return np.eye(len(labels))[:, 1:], labels[1:]


def _sum(labels: list[str]) -> tuple[np.ndarray, list[str]]:
    k = len(labels)
    return np.vstack([np.eye(k - 1), -np.ones(k - 1)]), [str(j) for j in range(1, k)]


def _helmert(labels: list[str]) -> tuple[np.ndarray, list[str]]:
    k = len(labels)
    matrix = np.triu(-np.ones((k, k - 1)))
    matrix[np.arange(1, k), np.arange(k - 1)] = np.arange(1, k)
    return matrix, [str(j) for j in range(1, k)]


def _poly(labels: list[str]) -> tuple[np.ndarray, list[str]]:
    k = len(labels)
    q, r = np.linalg.qr(np.vander(np.arange(k) - (k - 1) / 2, k, increasing=True))
    names = [".L", ".Q", ".C"] + [f"^{j}" for j in range(4, k)]
    return q[:, 1:] * np.sign(np.diag(r))[1:], names[: k - 1]


_NAMED = {"treatment": _treatment, "sum": _sum, "helmert": _helmert, "poly": _poly}
