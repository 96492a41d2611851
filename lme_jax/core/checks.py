"""What every way from rows to statistics asks of its arrays: real, finite, of one length, codes in range (NumPy)."""

from typing import Any

import numpy as np
import scipy.sparse

from ..errors import DataError


def real_array(name: str, values: Any, ndim: int) -> np.ndarray:
    """A float64 array of ``ndim`` axes; what is complex, text, ragged or of another shape is refused by name."""
    if values is None or np.iscomplexobj(values) or scipy.sparse.issparse(values):
        kind = "None" if values is None else "complex" if np.iscomplexobj(values) else "a sparse matrix"
        raise DataError(f"{name} is {kind}: give an array of real numbers with {ndim} axes")
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be real numbers: {error}") from error
    if array.ndim != ndim:
        expected = "(n,), one number per row" if ndim == 1 else "(n, columns), one row per observation"
        raise DataError(f"{name} has shape {array.shape}; give {expected}")
    return array


def group_codes(groups: Any, n_groups: int | None) -> tuple[np.ndarray, int]:
    """Integer codes and the number of levels; labels are coded in sorted order unless ``n_groups`` is given.

    Raises
    ------
    DataError
        For codes outside [0, n_groups), missing labels, or labels that are not one per row.
    """
    try:
        groups = np.asarray(groups)
    except ValueError as error:
        raise DataError(f"groups must hold one label per row: {error}") from error
    if groups.ndim != 1:
        raise DataError(f"groups has shape {groups.shape}; give (n,), one label per row")
    if n_groups is not None:
        return check_codes(groups, n_groups), n_groups
    if groups.dtype.kind in "fO":
        missing = groups != groups if groups.dtype.kind == "f" else [g is None or g != g for g in groups]
        if np.any(missing):
            raise DataError(f"groups is missing in row {int(np.argmax(missing))} (from 0): leave out such rows")
    if groups.dtype.kind in "iuf" and (groups[1:] >= groups[:-1]).all():
        steps = np.concatenate([[0], np.cumsum(groups[1:] != groups[:-1])])[: len(groups)]
        return steps.astype(np.int32), int(steps[-1:].sum()) + 1
    try:
        levels, codes = np.unique(groups, return_inverse=True)
    except TypeError as error:
        raise DataError(
            f"the labels in groups cannot be sorted: make them all numbers or all text ({error})"
        ) from error
    return codes.reshape(-1).astype(np.int32), len(levels)


def check_codes(codes: Any, n_levels: int, what: str = "groups") -> np.ndarray:
    """The codes as integers, each in [0, n_levels): one outside would meet another level's sums, or none.

    Raises
    ------
    DataError
        Naming the first value that is not such a code, and its row.
    """
    codes = np.asarray(codes)
    if codes.ndim != 1 or codes.dtype.kind not in "iufb":
        raise DataError(f"{what} has shape {codes.shape} and dtype {codes.dtype}; give (n,) integer codes")
    if codes.dtype.kind == "f" and not (codes == np.floor(codes)).all():
        row = int(np.argmin(codes == np.floor(codes)))
        raise DataError(f"{what} has the value {codes[row]:g} in row {row} (from 0), which is no integer code")
    if len(codes) and (codes.min() < 0 or codes.max() >= n_levels):
        row = int(np.argmax((codes < 0) | (codes >= n_levels)))
        raise DataError(
            f"{what} has the code {codes[row]:g} in row {row} (from 0); codes must lie in [0, {n_levels}), the "
            "number of levels"
        )
    return codes if codes.dtype.kind in "iu" else codes.astype(np.int64)


def check_rows(**arrays: Any) -> None:
    """Raise DataError unless all arrays are finite and of one length (None is skipped); weights > 0."""
    given = {name: np.asarray(a) for name, a in arrays.items() if a is not None}
    first, n = next((name, len(a)) for name, a in given.items())
    for name, a in given.items():
        if len(a) != n:
            raise DataError(f"{name} has {len(a)} rows, {first} has {n}: give one row per observation")
        if np.iscomplexobj(a):
            raise DataError(f"{name} is complex: give real numbers")
        with np.errstate(all="ignore"):
            clean = np.isfinite(a.sum())  # finite whenever every entry is, short of overflow
        bad = np.zeros(0, bool) if clean else ~np.isfinite(a.reshape(n, -1)).all(axis=1)
        if bad.any():
            rows = np.flatnonzero(bad)[:5].tolist()
            raise DataError(f"{name} has {int(bad.sum())} non-finite rows (first {rows}): drop or impute them")
        if name == "weights" and (a <= 0).any():
            rows = np.flatnonzero(a <= 0)[:5].tolist()
            raise DataError(f"weights must be > 0 (rows {rows} are not): drop rows that should not count")
    if n == 0:
        raise DataError("there are no rows to fit")
