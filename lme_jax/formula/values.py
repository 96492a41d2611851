"""Evaluate the variables of a formula on a data frame: numbers, factors and transforms that remember."""

from __future__ import annotations

import difflib
import operator
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic.transforms import TRANSFORMS

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.syntax import Binary, Call, Name, Node, Number, Paren, String, Unary


@dataclass(frozen=True)
class Factor:
    """Integer codes (-1: missing) into the array of levels."""

    codes: np.ndarray
    levels: np.ndarray
    ordered: bool = False
    contrast: Any = None

    def take(self, rows: np.ndarray) -> Factor:
        return Factor(self.codes[rows], self.levels, self.ordered, self.contrast)

    def without_unused_levels(self) -> Factor:
        used = np.zeros(len(self.levels), dtype=bool)
        used[self.codes[self.codes >= 0]] = True
        if used.all():
            return self
        renumber = np.append(np.cumsum(used) - 1, -1)
        return Factor(renumber[self.codes], self.levels[used], self.ordered, self.contrast)


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


def as_frame(data: Any) -> pd.DataFrame:
    """Return `data` as a DataFrame without copying it."""
    if isinstance(data, pd.DataFrame):
        return data
    if hasattr(data, "to_pandas"):
        return data.to_pandas()
    try:
        return pd.DataFrame(data)
    except (ValueError, TypeError) as error:
        raise DataError(f"`data` must be a DataFrame or a dict of equally long arrays: {error}") from error


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return one column, or say which ones there are."""
    if name not in frame.columns:
        near = difflib.get_close_matches(name, [str(c) for c in frame.columns], n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; columns: {list(frame.columns)[:20]}."
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
        levels = np.asarray(values.cat.categories)
        return Factor(np.asarray(values.cat.codes, dtype=np.int64), levels, bool(values.cat.ordered))
    codes, levels = pd.factorize(values)
    levels = np.asarray(levels)
    order = _level_order(levels, name)
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    rank[-1] = -1
    return Factor(rank[codes], levels[order])


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


def plain_values(series: pd.Series, name: str) -> Any:
    """A column as a float64 or bool array, or as a Factor."""
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return factorize(series, name)
    if pd.api.types.is_bool_dtype(dtype):
        return series.to_numpy(dtype=bool) if not series.isna().any() else _logical_factor(series)
    if pd.api.types.is_complex_dtype(dtype):
        raise DataError(f"Column {name!r} is complex; use its real and imaginary parts as columns.")
    if pd.api.types.is_numeric_dtype(dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(dtype, pd.StringDtype):
        return factorize(series, name)
    if dtype.kind == "O":
        return _object_values(series, name)
    raise DataError(f"Column {name!r} has type {dtype}, which a formula cannot use; convert it to numbers or text.")


def _object_values(series: pd.Series, name: str) -> Any:
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal", "empty"):
        return pd.to_numeric(series).to_numpy(dtype=np.float64, na_value=np.nan)
    if kind == "boolean":
        return _logical_factor(series)
    return factorize(series, name)


def _logical_factor(values: Any) -> Factor:
    codes = pd.Series(values).astype("boolean").astype("Int8").to_numpy(dtype=np.int64, na_value=-1)
    return Factor(codes, np.array([False, True]))


def as_number(value: Any, what: str) -> Any:
    """Numbers for arithmetic; a logical counts as 0 and 1."""
    if isinstance(value, Factor):
        if value.levels.dtype == bool:
            return np.where(value.codes < 0, np.nan, value.codes.astype(np.float64))
        raise DataError(f"{what} needs numbers but got a factor with levels {list(value.levels[:4])} ….")
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype != np.float64 else value
    if isinstance(value, str):
        raise FormulaError(f"{what} needs numbers but got the text {value!r}.")
    return value


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": operator.pow,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_LOGICAL = {"&": np.logical_and, "&&": np.logical_and, "|": np.logical_or, "||": np.logical_or}
_CONSTANTS: dict[str, Any] = {
    "TRUE": True,
    "FALSE": False,
    "T": True,
    "F": False,
    "True": True,
    "False": False,
    "pi": np.pi,
}
_CONSTANTS |= {"NULL": None, "None": None}
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "I": lambda x: x,
    "log": lambda x, base=None: np.log(x) if base is None else np.log(x) / np.log(base),
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "floor": np.floor,
    "ceiling": np.ceil,
    "round": np.round,
    "sign": np.sign,
}
# formulaic's transforms keep what they learn from the training data in `_state`.
_STATEFUL = {name: TRANSFORMS[name] for name in ("poly", "scale", "center", "bs", "cr", "cc")}
_FACTOR_CALLS = ("factor", "as.factor", "C", "ordered", "as.ordered", "relevel", "interaction")
_NUMERIC_CALLS = ("as.numeric", "as.integer")


class Evaluator:
    """Evaluate expressions on a frame.

    Parameters
    ----------
    frame : DataFrame
    context : mapping
        Names beyond the columns: functions, and arrays with one value per row of the frame.
    state : dict
        What the transforms learned, by expression; filled on the first evaluation, read later.
    used : dict
        Receives the objects taken from `context`, so that a result need not keep the whole of it.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        context: Mapping[str, Any],
        state: dict[str, dict],
        used: dict[str, Any] | None = None,
        rows: np.ndarray | None = None,
    ):
        self.frame, self.context, self.state = frame, context, state
        self.used = {} if used is None else used
        self.rows = rows

    def variable(self, node: Node) -> np.ndarray | Factor:
        """One variable of the model frame: (n,) or (n, k) float64, or a Factor."""
        with np.errstate(all="ignore"):
            value = self.value(node)
        if isinstance(value, Factor):
            return value
        array = np.asarray(value)
        if array.ndim == 0:
            array = np.full(len(self.frame), array)
        if array.ndim > 2 or array.shape[0] != len(self.frame):
            raise FormulaError(f"{node} gave shape {array.shape}; the data have {len(self.frame)} rows.")
        if array.dtype == bool:
            return Factor(array.astype(np.int64), np.array([False, True]))
        if array.dtype.kind in "iuf":
            return array.astype(np.float64, copy=False)
        if array.ndim == 1 and array.dtype.kind in "OUT":
            return factorize(array, str(node))
        raise DataError(f"{node} gave values of type {array.dtype}; expected numbers, text or a Categorical.")

    def grouping(self, node: Node) -> Factor:
        """A grouping factor; unlike a variable it keeps the column's own labels (integers stay integers)."""
        if isinstance(node, Name) and node.name in self.frame.columns:
            return factorize(column(self.frame, node.name), node.name)
        value = self.variable(node)
        if isinstance(value, np.ndarray) and value.ndim == 2:
            raise FormulaError(f"The grouping factor {node} has {value.shape[1]} columns; expected one.")
        return factorize(value, str(node))

    def value(self, node: Node) -> Any:
        if isinstance(node, Name):
            return self.name(node.name)
        if isinstance(node, Number):
            return node.value
        if isinstance(node, String):
            return node.value
        if isinstance(node, Paren):
            return self.value(node.inner)
        if isinstance(node, Unary):
            return self.unary(node)
        if isinstance(node, Binary):
            return self.binary(node)
        if isinstance(node, Call):
            return self.call(node)
        raise FormulaError(f"Cannot evaluate {node}.")

    def name(self, name: str) -> Any:
        if name in self.frame.columns:
            return plain_values(column(self.frame, name), name)
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        value = self.context.get(name)
        if isinstance(value, int | float | str | np.number):
            self.used[name] = value
            return value
        if isinstance(value, list | np.ndarray | pd.Series):
            self.used[name] = value
            aligned = pd.Series(np.asarray(value))
            return plain_values(aligned if self.rows is None else aligned.iloc[self.rows], name)
        return plain_values(column(self.frame, name), name)

    def unary(self, node: Unary) -> Any:
        value = as_number(self.value(node.operand), str(node))
        if node.op == "!":
            return np.logical_not(value)
        if node.op == "~":
            raise FormulaError(f"A '~' inside {node} has no meaning here.")
        return -value if node.op == "-" else value

    def binary(self, node: Binary) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if node.op in _COMPARISONS:
            return self.compare(node, left, right)
        left, right = as_number(left, str(node)), as_number(right, str(node))
        if node.op in _LOGICAL:
            return _LOGICAL[node.op](left, right)
        if node.op in _ARITHMETIC:
            return _ARITHMETIC[node.op](left, right)
        raise FormulaError(f"The operator {node.op!r} cannot be computed in {node}.")

    def compare(self, node: Binary, left: Any, right: Any) -> Any:
        if isinstance(left, Factor) and isinstance(right, str | float | bool):
            result = _COMPARISONS[node.op](left.levels, right)
            return Factor(np.where(left.codes < 0, -1, np.append(result, 0)[left.codes]), np.array([False, True]))
        left, right = as_number(left, str(node)), as_number(right, str(node))
        result = np.asarray(_COMPARISONS[node.op](left, right))
        missing = np.isnan(left) | np.isnan(right)
        if missing.any():
            return Factor(np.where(missing, -1, result), np.array([False, True]))
        return result

    def call(self, node: Call) -> Any:
        if node.function in _FACTOR_CALLS:
            return self.factor_call(node)
        args = [self.value(a) for a in node.args]
        kwargs = {k: self.value(v) for k, v in node.kwargs}
        if node.function == "c":
            return args
        try:
            if node.function in _NUMERIC_CALLS:
                return _parse_numbers(args[0], node)
            if node.function in _STATEFUL:
                return self.stateful(node, args, kwargs)
            if node.function in _ELEMENTWISE:
                return self.elementwise(node, args, kwargs)
            return self.function(node.function)(*map(_for_user, args), **kwargs)
        except (TypeError, ValueError, IndexError) as error:
            if isinstance(error, FormulaError | DataError):
                raise
            raise FormulaError(f"Cannot compute {node}: {error}") from error

    def elementwise(self, node: Call, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if node.function == "I" and len(args) == 1 and not kwargs:
            return args[0]
        return _ELEMENTWISE[node.function](*(as_number(a, str(node)) for a in args), **kwargs)

    def stateful(self, node: Call, args: list[Any], kwargs: dict[str, Any]) -> np.ndarray:
        x = np.asarray(as_number(args[0], str(node)))
        rest = [int(a) if isinstance(a, float) and a.is_integer() else a for a in args[1:]]
        kwargs = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in kwargs.items()}
        finite = np.isfinite(x)
        state = self.state.setdefault(str(node), {})
        part = _STATEFUL[node.function](x[finite], *rest, _state=state, **kwargs)
        part = _stack(getattr(part, "__wrapped__", part))
        out = np.full((len(x), *part.shape[1:]), np.nan)
        out[finite] = part
        return out

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the context, such as ``f`` or ``np.log``."""
        root, *attributes = name.split(".")
        target = self.context.get(name) or self.context.get(root, np if root in ("np", "numpy") else None)
        for attribute in attributes if name not in self.context else ():
            target = getattr(target, attribute, None)
        if callable(target):
            self.used[name] = target
            return target
        known = sorted({*_ELEMENTWISE, *_STATEFUL, *_FACTOR_CALLS, *_NUMERIC_CALLS})
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
        raise FormulaError(f"Unknown function {name!r} in the formula; {hint} Pass others by `context`.")

    def factor_call(self, node: Call) -> Factor:
        kwargs = {k: self.value(v) for k, v in node.kwargs if k not in ("contr", "contrasts")}
        if not node.args:
            raise FormulaError(f"{node} needs a column.")
        if node.function == "interaction":
            return interact([self.grouping(a) for a in node.args])[0]
        value = self.grouping(node.args[0])
        if "levels" in kwargs:
            value = _reorder(value, kwargs["levels"], node)
        if node.function == "relevel":
            ref = kwargs["ref"] if "ref" in kwargs else self.value(node.args[-1])
            if isinstance(ref, Factor) or ref not in value.levels.tolist():
                raise FormulaError(f"{node}: `ref` must be one of the levels {value.levels.tolist()[:20]}.")
            value = _reorder(value, [ref, *(x for x in value.levels.tolist() if x != ref)], node)
        contrast = next((v for k, v in node.kwargs if k in ("contr", "contrasts")), None)
        if node.function == "C" and len(node.args) > 1:
            contrast = node.args[1]
        chosen = getattr(contrast, "name", getattr(contrast, "value", getattr(contrast, "function", None)))
        ordered = node.function in ("ordered", "as.ordered") or bool(kwargs.get("ordered", value.ordered))
        return Factor(value.codes, value.levels, ordered, chosen)


def _for_user(value: Any) -> Any:
    return value.levels[value.codes] if isinstance(value, Factor) else value


def _stack(value: Any) -> np.ndarray:
    """Transforms with several columns come as an array or as a dict of columns."""
    if isinstance(value, dict):
        return np.column_stack([np.asarray(v) for k, v in value.items() if not str(k).startswith("__")])
    return np.asarray(value, dtype=np.float64)


def _parse_numbers(value: Any, node: Call) -> np.ndarray:
    if isinstance(value, Factor) and value.levels.dtype != bool:
        value = np.append(value.levels.astype(np.float64), np.nan)[value.codes]
    number = as_number(value, str(node))
    return np.trunc(number) if node.function == "as.integer" else number


def _reorder(value: Factor, levels: Any, node: Call) -> Factor:
    if not isinstance(levels, list):
        raise FormulaError(f"In {node}, levels must be given as c(...).")
    position = {level: i for i, level in enumerate(levels)}
    codes = np.array([*(position.get(x, -1) for x in value.levels.tolist()), -1])[value.codes]
    return Factor(codes, np.array(levels), value.ordered, value.contrast)


def level_labels(levels: np.ndarray) -> list[str]:
    """Levels as R prints them: 15 significant digits, TRUE and FALSE."""
    if levels.dtype == bool:
        return ["TRUE" if level else "FALSE" for level in levels]
    if levels.dtype.kind == "f":
        return [f"{level:.15g}" for level in levels]
    return [f"{level:.15g}" if isinstance(level, float) else str(level) for level in levels.tolist()]


def meet_new_rows(crossing: Crossing, parts: Callable[[], list[Factor]], needed: bool, n: int) -> tuple[Any, Any]:
    """Codes of new rows and their own levels; all -1 and None where columns that nobody needs are absent."""
    try:
        found = parts()
    except DataError:
        if needed:
            raise
        return np.full(n, -1, np.int32), None
    return crossing.lookup(found), interact(found)[0]


@dataclass(frozen=True)
class Crossing:
    """The levels of an interaction: its parts' levels and the mixed-radix numbers of its cells."""

    part_levels: tuple[np.ndarray, ...]
    numbers: np.ndarray

    def lookup(self, parts: list[Factor]) -> np.ndarray:
        """Codes of new rows; -1 for a level or a cell that did not occur, or a missing part."""
        codes = []
        for part, levels in zip(parts, self.part_levels, strict=True):
            positions = np.append(pd.Index(levels).get_indexer(pd.Index(part.levels)), -1)
            codes.append(positions[part.codes])
        numbers, missing = _radix_numbers(codes, [len(levels) for levels in self.part_levels])
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(~missing & (self.numbers[at] == numbers), at, -1).astype(np.int32)


def interact(parts: list[Factor]) -> tuple[Factor, Crossing]:
    """Cross factors, keeping the combinations that occur.

    Returns
    -------
    factor : Factor
        Levels "a1:b1" for an interaction, first part slowest; a single part keeps its labels.
    crossing : Crossing
        Finds the codes of new rows.
    """
    sizes = [len(f.levels) for f in parts]
    numbers, missing = _radix_numbers([f.codes for f in parts], sizes)
    occurring, codes = _compact(np.where(missing, -1, numbers), int(np.prod(sizes, dtype=object)))
    crossing = Crossing(tuple(f.levels for f in parts), occurring)
    if len(parts) == 1:
        return Factor(codes, parts[0].levels[occurring], parts[0].ordered), crossing
    rest, names = occurring, []
    for factor, size in zip(reversed(parts), reversed(sizes), strict=True):
        names.append(np.array(level_labels(factor.levels), dtype=object)[rest % size])
        rest = rest // size
    labels = np.array([":".join(cell) for cell in zip(*reversed(names), strict=True)], dtype=object)
    return Factor(codes, labels), crossing


def _compact(numbers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct non-negative numbers, and each entry's position among them (-1 stays -1)."""
    if size <= 4 * len(numbers) + 1000:
        used = np.zeros(size + 1, dtype=bool)
        used[numbers] = True
        used[-1] = False
        renumber = np.append(np.cumsum(used[:-1]) - 1, -1)
        return np.flatnonzero(used), renumber[numbers]
    codes, distinct = pd.factorize(numbers, sort=True, use_na_sentinel=False)
    gap = int(len(distinct) > 0 and distinct[0] == -1)
    return distinct[gap:], codes - gap


def _radix_numbers(codes: list[np.ndarray], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mixed-radix numbers of rows of codes, and which rows have a missing part."""
    if float(np.prod([float(s) for s in sizes])) > 2.0**62:
        raise DataError("The interaction of the grouping factors has more than 2^62 cells; build one column instead.")
    total, missing = np.zeros(len(codes[0]), dtype=np.int64), np.zeros(len(codes[0]), dtype=bool)
    for code, size in zip(codes, sizes, strict=True):
        total = total * size + code
        missing |= code < 0
    return total, missing
