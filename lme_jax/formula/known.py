"""What is known of a grouping factor beyond its codes: shares in several levels, relatedness of the levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.notes import shown

TOLERANCE = 1e-8


def check_mapping(given: Any, argument: str) -> None:
    """The argument must map factors to something."""
    if not isinstance(given, Mapping):
        raise FormulaError(f"`{argument}` must map factors, {{'g': …}}; got {type(given).__name__}.")


def check_names(given: Mapping[str, Any], labels: Iterable[str], argument: str) -> None:
    """Every key must be the label of a grouping factor of the formula."""
    labels = list(dict.fromkeys(labels))
    unknown = [key for key in given if key not in labels]
    if unknown:
        raise FormulaError(f"`{argument}` names {unknown}; the grouping factors are {labels}.")


def membership_rows(given: Any, name: str, n: int, levels: np.ndarray | None = None) -> tuple[Any, np.ndarray]:
    """Weights of the levels in each of n rows as CSR (n, m), and the labels of the m levels.

    Parameters
    ----------
    given : DataFrame whose columns are the levels, or a dense or scipy sparse (n, m) array.
    levels : labels that a DataFrame must have, in the order wanted; else its own columns.
    """
    if isinstance(given, pd.DataFrame):
        labels = np.asarray(given.columns, dtype=object)
        unknown = [c for c in labels if c not in set(levels)] if levels is not None else []
        if unknown:
            raise DataError(f"memberships[{name!r}] has the levels {shown(unknown)}, which the training data did not.")
        given = given if levels is None else given.reindex(columns=levels, fill_value=0.0)
        labels = labels if levels is None else levels
        given = given.to_numpy(dtype=float)
    else:
        given = given if scipy.sparse.issparse(given) else np.asarray(given)
        labels = np.arange(given.shape[1]) if given.ndim == 2 else np.empty(0)
        labels = labels if levels is None else levels
    try:
        rows = scipy.sparse.csr_matrix(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"memberships[{name!r}] must be an array of numbers: {error}") from error
    if len(labels) == 0 or rows.nnz == 0:
        raise DataError(f"memberships[{name!r}] holds no weights: no row belongs to any level.")
    if rows.shape != (n, len(labels)):
        raise DataError(
            f"memberships[{name!r}] must hold one row per row of the data and one column per level: "
            f"expected {(n, len(labels))}, got {np.shape(given)}."
        )
    if not np.isfinite(rows.data).all():
        raise DataError(f"memberships[{name!r}] holds missing or infinite weights.")
    return rows, labels


def heaviest(rows: Any) -> np.ndarray:
    """(n,) the level with the largest weight of each row."""
    return np.asarray(abs(rows).argmax(axis=1)).ravel().astype(np.int32)


def relatedness_matrix(given: Any, name: str, levels: np.ndarray, extend: bool) -> tuple[np.ndarray, np.ndarray]:
    """The dense relatedness K and the labels of its rows.

    Parameters
    ----------
    given : DataFrame labelled by level on both axes, or a dense or sparse array in the order of `levels`.
    levels : the levels that the data have.
    extend : bool
        Keep the labelled levels of K that the data do not have: their effects are predicted too.
    """
    what = f"relatedness[{name!r}]"
    if isinstance(given, pd.DataFrame):
        labels, positions = _labelled(given, what, levels)
        matrix = given.to_numpy(dtype=float)
        if not extend:
            matrix, labels = matrix[np.ix_(positions, positions)], levels
    else:
        labels = levels
        if np.shape(given) != (len(levels), len(levels)):
            raise DataError(
                f"{what} has shape {np.shape(given)}; the factor has {len(levels)} levels in the rows used. "
                "A DataFrame labelled by level may hold more levels than the data."
            )
        matrix = _dense(given, what)
    if not np.isfinite(matrix).all():
        raise DataError(f"{what} holds missing or infinite values.")
    gap = np.abs(matrix - matrix.T).max()
    if gap > TOLERANCE * np.abs(matrix).max():
        raise DataError(f"{what} is not symmetric: the largest difference is {gap:.3g}.")
    return 0.5 * (matrix + matrix.T), labels


def _dense(given: Any, what: str) -> np.ndarray:
    try:
        return given.toarray().astype(float) if scipy.sparse.issparse(given) else np.array(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must hold numbers: {error}") from error
    except MemoryError as error:
        size = 8 * given.shape[0] ** 2 / 2**30
        raise DataError(f"{what} is used as a dense matrix, which takes {size:.3g} GiB.") from error


def _labelled(given: pd.DataFrame, what: str, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (as the data have them where K has them as text), and the positions of the data's levels."""
    if not given.index.equals(pd.Index(given.columns)) or not given.index.is_unique:
        raise DataError(f"{what} must have the same unique labels, in one order, on its rows and columns.")
    positions = given.index.get_indexer(pd.Index(levels))
    labels = np.asarray(given.index)
    if (positions < 0).all():
        text = pd.Index(given.index.astype(str))
        positions = text.get_indexer(pd.Index([str(level) for level in levels]))
        labels = np.array(given.index, dtype=object)
        labels[positions[positions >= 0]] = levels[positions >= 0]
    if (positions < 0).any():
        raise DataError(f"{what} lacks the levels {shown(levels[positions < 0])} that the data have.")
    return labels, positions


def semidefinite_root(matrix: np.ndarray, name: str) -> np.ndarray:
    """R (m, r) with RRᵀ = `matrix`, by Cholesky or, where K is singular, by its eigenvectors. O(m³)."""
    try:
        return scipy.linalg.cholesky(matrix, lower=True)
    except scipy.linalg.LinAlgError:
        values, vectors = scipy.linalg.eigh(matrix)
    largest = max(float(values[-1]), 0.0)
    if values[0] < -TOLERANCE * largest or largest == 0.0:
        raise DataError(
            f"relatedness[{name!r}] is not positive semidefinite: its eigenvalues run from {values[0]:.3g} to "
            f"{values[-1]:.3g}. Check it, or project it onto its non-negative eigenvalues first."
        )
    kept = values > 1e-12 * largest * len(values)
    return vectors[:, kept] * np.sqrt(values[kept])
