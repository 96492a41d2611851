"""Columns of a data frame as numbers or factors."""

from __future__ import annotations

import difflib
import sys
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.notes import shown


@dataclass(frozen=True)
class Factor:
    """Integer codes (-1: missing) into the array of levels; `text` marks plain text, R's character."""

    codes: np.ndarray
    levels: np.ndarray
    ordered: bool = False
    contrast: Any = None
    text: bool = False

    def take(self, rows: np.ndarray) -> Factor:
        return Factor(self.codes[rows], self.levels, self.ordered, self.contrast, self.text)

    def without_unused_levels(self) -> Factor:
        used = np.zeros(len(self.levels) + 1, dtype=bool)
        used[self.codes] = True
        used = used[:-1]
        if used.all():
            return self
        renumber = np.append(np.cumsum(used) - 1, -1)
        return Factor(renumber[self.codes], self.levels[used], self.ordered, self.contrast, self.text)


def take(value: np.ndarray | Factor, rows: np.ndarray) -> np.ndarray | Factor:
    """Rows of a variable."""
    return value.take(rows) if isinstance(value, Factor) else value[rows]


def namespace(context: Mapping[str, Any] | int | None, here: int = 1) -> Mapping[str, Any]:
    """The names a formula may use beyond its columns; a number counts frames above the calling function."""
    if context is None:
        return {}
    if isinstance(context, int):
        frame = sys._getframe(context + here)
        return ChainMap(frame.f_locals, frame.f_globals)
    return context


# --- frames and columns ----------------------------------------------------------------------------------


def as_frame(data: Any) -> pd.DataFrame:
    """Return `data` as a DataFrame without copying it."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, str | PathLike):
        raise DataError(f"`data` is the text {str(data)!r}; read the file first, e.g. pandas.read_csv({str(data)!r}).")
    if not isinstance(data, Mapping | np.ndarray | list | tuple):
        frame = _through_narwhals(data)
        if frame is not None:
            return frame
    try:
        return pd.DataFrame(data)
    except (ValueError, TypeError) as error:
        raise DataError(f"`data` must be a DataFrame or a dict of equally long arrays: {error}") from error


def aligned(values: Any, index: pd.Index, what: str) -> Any:
    """A Series or DataFrame in the order of `index` by its own labels, which must hold these, each once.

    Labels that are equal in equal order are positions, unique or not.
    """
    if values.index.equals(index):
        return values
    if not (values.index.is_unique and index.is_unique and index.isin(values.index).all()):
        raise DataError(
            f"the row labels of {what} are not those of the data (or not unique), so rows cannot be matched: give the "
            "same index, or an array (.to_numpy()) in the order of the data's rows"
        )
    return values.loc[index]


def in_order(values: Any, index: pd.Index, what: str, renamed: pd.Index | None = None) -> Any:
    """`values`, a Series put in the order of `index` by its labels (then `renamed`); anything else goes by position."""
    if not isinstance(values, pd.Series):
        return values
    found = aligned(values, index, what)
    return found if renamed is None else found.set_axis(renamed)


def _through_narwhals(data: Any) -> pd.DataFrame | None:
    """A frame of polars, Arrow, DuckDB, modin … as pandas; None of what narwhals does not know.

    polars has no ordered factors: its Enum is a list of levels, though pandas receives it as ordered.
    """
    import narwhals.stable.v2 as nw

    known = nw.from_native(data, pass_through=True)
    if isinstance(known, nw.LazyFrame):
        known = known.collect()
    if not isinstance(known, nw.DataFrame):
        return None
    frame = known.to_pandas()
    enums = (
        [c for c, dtype in known.schema.items() if isinstance(dtype, nw.Enum)]
        if known.implementation.is_polars()
        else []
    )
    return frame.assign(**{c: frame[c].cat.as_unordered() for c in enums}) if enums else frame


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return one column, or say which ones there are."""
    if name not in frame.columns:
        if any(not isinstance(c, str) and str(c) == name for c in frame.columns):
            raise DataError(
                f"The column {name} is not named by text; rename first: data.rename(columns=str), then `{name}`."
            )
        near = difflib.get_close_matches(name, [str(c) for c in frame.columns], n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; columns: {shown(frame.columns, 20)}."
        raise DataError(f"The data have no column {name!r}{hint}")
    values = frame[name]
    if isinstance(values, pd.DataFrame):
        raise DataError(f"The data have {values.shape[1]} columns named {name!r}; rename them.")
    return values


def factorize(values: Any, name: str) -> Factor:
    """Code a column by its levels: a Categorical's own order, else sorted (text by code point)."""
    if isinstance(values, Factor):
        return values
    values = values if isinstance(values, pd.Series) else pd.Series(values)
    if isinstance(values.dtype, pd.CategoricalDtype):
        coded = values.array
        levels = np.asarray(coded.categories)
        return Factor(np.asarray(coded.codes, dtype=np.int64), levels, bool(coded.ordered))
    try:
        codes, levels = pd.factorize(values)
    except TypeError as error:
        raise _unhashable(values, name, error) from error
    levels = np.asarray(levels)
    order = _level_order(levels, name)
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    rank[-1] = -1
    text = isinstance(values.dtype, pd.StringDtype) or (levels.dtype == object and all(type(x) is str for x in levels))
    return Factor(rank[codes], levels[order], text=bool(text))


def _unhashable(values: pd.Series, name: str, error: TypeError) -> DataError:
    for row, value in enumerate(values):
        try:
            hash(value)
        except TypeError:
            kind = type(value).__name__
            return DataError(
                f"Column {name!r} holds a {kind} in row {row} (from 0); a cell must hold one number or one text. "
                "Take the part you need into a column of its own."
            )
    return DataError(f"The values of column {name!r} cannot be told apart: {error}.")


def _level_order(levels: np.ndarray, name: str) -> np.ndarray:
    if levels.dtype != object:
        return np.argsort(levels, kind="stable")
    kinds = {type(level) for level in levels.tolist()}
    if len(kinds) > 1 and not all(issubclass(k, int | float | np.number) for k in kinds):
        names = ", ".join(sorted(k.__name__ for k in kinds))
        raise DataError(f"Column {name!r} mixes the types {names}; convert it to one type, e.g. .astype(str).")
    try:
        return np.array(sorted(range(len(levels)), key=levels.__getitem__), dtype=np.int64)
    except TypeError as error:
        raise DataError(f"The values of column {name!r} cannot be sorted ({error}); convert them to text.") from error


def plain_values(series: pd.Series, name: str, rows: np.ndarray | None = None) -> Any:
    """A column as a float64 or bool array, or as a Factor; times as days since 1970-01-01.

    `rows` are the row numbers that messages give, if not 0, 1, 2 …
    """
    dtype = series.dtype
    kind = dtype.kind
    if kind in "fiu" and isinstance(dtype, np.dtype):
        return series.to_numpy().astype(np.float64, copy=False)
    if isinstance(dtype, (pd.CategoricalDtype, pd.StringDtype)):
        return factorize(series, name)
    if pd.api.types.is_bool_dtype(dtype):
        return series.to_numpy(dtype=bool) if not series.isna().any() else logical_factor(series)
    if kind == "c":
        raise DataError(f"Column {name!r} is complex; use its real and imaginary parts as columns.")
    if kind in "mM":
        return days(series)
    if pd.api.types.is_numeric_dtype(dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(dtype, np.dtype) and kind == "O":
        return _object_values(series, name, rows)
    raise DataError(f"Column {name!r} has type {dtype}, which a formula cannot use; convert it to numbers or text.")


def is_time(series: pd.Series) -> bool:
    """Whether a column holds dates, times or durations."""
    kind = series.dtype.kind
    if kind == "O" and isinstance(series.dtype, np.dtype):
        for value in series.array:
            if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
                continue
            return isinstance(value, date)
        return False
    return kind in "mM" and not isinstance(series.dtype, pd.PeriodDtype)


def days(series: pd.Series) -> np.ndarray:
    """Dates and times as days since 1970-01-01 (UTC), durations as days; NaN where missing."""
    if series.dtype.kind == "m":
        return series.to_numpy(dtype="timedelta64[ns]") / np.timedelta64(1, "D")
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    return (series.to_numpy(dtype="datetime64[ns]") - np.datetime64(0, "ns")) / np.timedelta64(1, "D")


def _object_values(series: pd.Series, name: str, rows: np.ndarray | None) -> Any:
    """Python objects: numbers with gaps of any kind are numbers, dates are days, text is text."""
    missing = series.isna().to_numpy()
    present = series[~missing] if missing.any() else series
    kind = pd.api.types.infer_dtype(present, skipna=False)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal", "empty"):
        values = np.full(len(series), np.nan)
        values[~missing] = pd.to_numeric(present).to_numpy(dtype=np.float64)
        return values
    if kind == "boolean":
        return logical_factor(series)
    if kind in ("date", "datetime", "datetime64"):
        return days(pd.to_datetime(series))
    if kind in ("mixed", "mixed-integer"):
        _refuse_odd_object(series, missing, name, rows)
    return factorize(series, name)


def _refuse_odd_object(series: pd.Series, missing: np.ndarray, name: str, rows: np.ndarray | None) -> None:
    """Numbers with a few other things among them: name the first, which made the column no column of numbers."""
    number = np.array([isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in series])
    odd = np.flatnonzero(~number & ~missing)
    if not 0 < len(odd) < number.sum():
        return
    value = series.iloc[int(odd[0])]
    if isinstance(value, str | bool):
        raise DataError(
            f"Column {name!r} is not numeric because of the value {value!r} in row {_row(int(odd[0]), rows)} (from 0); "
            f"correct it, make it missing (pandas.to_numeric(data[{name!r}], errors='coerce')), "
            "or convert the column to text if its values are levels."
        )


def _row(position: int, rows: np.ndarray | None) -> int:
    return position if rows is None else int(rows[position])


# --- factors ---------------------------------------------------------------------------------------------


def logical_factor(values: Any) -> Factor:
    """A factor FALSE, TRUE from booleans with gaps."""
    codes = pd.Series(values).astype("boolean").astype("Int8").to_numpy(dtype=np.int64, na_value=-1)
    return Factor(codes, np.array([False, True]))


def logical(values: Any) -> Any:
    """0, 1 and NaN as a bool array, or as a logical factor if any is NaN."""
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    if missing.any():
        return Factor(np.where(missing, -1, values).astype(np.int64), np.array([False, True]))
    return values.astype(bool)


def text_factor(codes: np.ndarray, labels: Any) -> Factor:
    """Text from codes into labels that may repeat: levels sorted by code point, as in `factorize`."""
    levels, position = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    return Factor(np.append(position.ravel(), -1)[codes], levels.astype(object), text=True).without_unused_levels()


def level_labels(levels: np.ndarray) -> list[str]:
    """Levels as R prints them: 15 significant digits, TRUE and FALSE, dates."""
    if levels.dtype == bool:
        return ["TRUE" if level else "FALSE" for level in levels]
    if levels.dtype.kind == "f":
        return [f"{level:.15g}" for level in levels]
    if levels.dtype.kind == "M":
        whole = levels == levels.astype("datetime64[D]")
        return np.datetime_as_string(levels, unit="D" if whole.all() else "s").tolist()
    return [f"{level:.15g}" if isinstance(level, float) else str(level) for level in levels.tolist()]


def odd_value(factor: Factor) -> tuple[str, int] | None:
    """The first value (and its position) that is no number in text that is numbers for the most part."""
    if not factor.text or len(factor.levels) == 0:
        return None
    numeric = np.array([_is_number(level) for level in factor.levels.tolist()])
    odd = np.append(~numeric, False)[factor.codes]
    if numeric.all() or 2 * numeric.sum() < len(numeric) or not odd.any():
        return None
    at = int(odd.argmax())
    return str(factor.levels[factor.codes[at]]), at


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def refuse_numbers_as_text(factor: Factor, name: str, rows: np.ndarray | None) -> None:
    """Refuse text that was meant as numbers: most of its many levels can be read as such."""
    k = len(factor.levels)
    if not factor.text or k <= 10 or 4 * k <= len(factor.codes):
        return
    numbers = [level for level in factor.levels.tolist() if _is_number(level)]
    # Whole numbers may well be codes, as long as most rows share theirs with others.
    codes = all(level.strip().isdigit() for level in numbers) and 2 * k <= len(factor.codes)
    if codes or len(numbers) < 0.8 * k:
        return
    odd = odd_value(factor)
    cause = "although its values are numbers"
    if odd is not None:
        cause = f"because of the value {odd[0]!r} in row {_row(odd[1], rows)} (from 0)"
    raise DataError(
        f"Column {name!r} is text {cause}, and would become a factor with {k} levels. Correct it, or read numbers "
        f"with pandas.to_numeric(data[{name!r}], errors='coerce'); write factor({name}) if levels are meant."
    )


def as_number(value: Any, what: object) -> Any:
    """Numbers for arithmetic; a logical counts as 0 and 1. `what` names the expression in messages."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64, copy=False)
    if isinstance(value, Factor):
        if value.levels.dtype == bool:
            return np.where(value.codes < 0, np.nan, value.codes.astype(np.float64))
        odd = odd_value(value)
        if odd is not None:
            raise DataError(f"{what} needs numbers but got text: {odd[0]!r} in row {odd[1]} (from 0) is no number.")
        raise DataError(f"{what} needs numbers but got a factor with levels {shown(value.levels, 4)}.")
    if isinstance(value, str):
        raise FormulaError(f"{what} needs numbers but got the text {value!r}.")
    if isinstance(value, list):
        raise FormulaError(f"{what} needs one number per row or one number, but got {len(value)} values: c(…).")
    if value is None:
        raise FormulaError(f"{what} needs numbers but got NULL.")
    return value
