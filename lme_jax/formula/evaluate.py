"""Evaluate the variables of a formula on a data frame: numbers, factors and transforms that remember."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any, Literal

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, FormulaError, LmeJaxError
from lme_jax.formula.crossing import interaction
from lme_jax.formula.functions import ELEMENTWISE, FACTOR_CALLS, GENERAL, cut, is_logical, sequence
from lme_jax.formula.guard import find_function, own_function, refuse_internals
from lme_jax.formula.notes import shown
from lme_jax.formula.syntax import Binary, Call, Name, Node, Number, Paren, String, Unary
from lme_jax.formula.transforms import SUMMARIES, TRANSFORMS
from lme_jax.formula.values import (
    Factor,
    as_number,
    column,
    days,
    factorize,
    is_time,
    level_labels,
    logical,
    plain_values,
    refuse_numbers_as_text,
)

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": np.divide,
    "^": np.power,
    "%%": np.mod,
    "%/%": np.floor_divide,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_CONSTANTS: dict[str, Any] = {
    "TRUE": True,
    "FALSE": False,
    "T": True,
    "F": False,
    "True": True,
    "False": False,
    "pi": np.pi,
    "Inf": np.inf,
    "NULL": None,
    "None": None,
}
KNOWN_FUNCTIONS = frozenset((*ELEMENTWISE, *GENERAL, *TRANSFORMS, *SUMMARIES, *FACTOR_CALLS))


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
    rows : (n,) positions, optional
        Rows of the original data that the frame holds: those of arrays in `context`.
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
        self.n = len(frame)
        self._columns: dict[str, Any] = {}
        self._times: dict[str, str] = {}

    # --- what a model asks for

    def variable(self, node: Node) -> np.ndarray | Factor:
        """One variable of the model frame: (n,) or (n, k) float64, or a Factor."""
        if isinstance(node, Name):
            value = self.name(node.name)
            self._check_bare_column(node.name, value)
        else:
            with np.errstate(all="ignore"):
                value = self.value(node)
        if isinstance(value, Factor):
            return value
        array = np.asarray(value)
        if array.ndim == 0:
            array = np.full(self.n, array)
        if array.ndim > 2 or array.shape[0] != self.n:
            raise FormulaError(f"{node} gave shape {array.shape}; the data have {self.n} rows.")
        if array.dtype == bool and array.ndim == 1:
            return Factor(array.astype(np.int64), np.array([False, True]))
        if array.dtype.kind in "iuf":
            return array.astype(np.float64, copy=False)
        if array.ndim == 1 and array.dtype.kind in "OUT":
            return factorize(array, str(node))
        raise DataError(
            f"{node} gave values of type {array.dtype}; expected a column of numbers, text or a Categorical."
        )

    def grouping(self, node: Node) -> Factor:
        """A grouping factor; unlike a variable it keeps the column's own labels (integers stay integers)."""
        if isinstance(node, Name) and node.name in self.frame.columns:
            return factorize(column(self.frame, node.name), node.name)
        value = self.variable(node)
        if isinstance(value, np.ndarray) and value.ndim == 2:
            raise FormulaError(f"The grouping factor {node} has {value.shape[1]} columns; expected one.")
        return factorize(value, str(node))

    def _check_bare_column(self, name: str, value: Any) -> None:
        if isinstance(value, Factor):
            refuse_numbers_as_text(value, name, self.rows)
        elif name in self._times:
            raise DataError(
                f"Column {name!r} has type {self._times[name]}, which a formula cannot use as it is. "
                f"Write as.numeric({name}) "
                f"for days since 1970-01-01, I({name} - min({name})) for days since the first, or factor({name})."
            )

    def time_kinds(self) -> dict[str, Literal["time", "duration"]]:
        """The columns looked at so far that hold times, which are days in computations."""
        return {name: "duration" if "timedelta" in dtype else "time" for name, dtype in self._times.items()}

    # --- nodes

    def value(self, node: Node) -> Any:
        """The value of a node: a number, a text, a float64 or bool array, a Factor or a list (``c(…)``)."""
        kind = type(node)
        if kind is Name:
            return self.name(node.name)  # type: ignore[attr-defined]
        if kind is Number or kind is String:
            return node.value  # type: ignore[attr-defined]
        if kind is Call:
            return self.call(node)  # type: ignore[arg-type]
        if kind is Binary:
            return self.binary(node)  # type: ignore[arg-type]
        if kind is Paren:
            return self.value(node.inner)  # type: ignore[attr-defined]
        if kind is Unary:
            return self.unary(node)  # type: ignore[arg-type]
        raise FormulaError(f"Cannot evaluate {node}.")

    def name(self, name: str) -> Any:
        found = self._columns.get(name)
        if found is not None:
            return found
        if name in self.frame.columns:
            series = column(self.frame, name)
            found = self._columns[name] = plain_values(series, name, self.rows)
            if series.dtype.kind in "mMO" and is_time(series):
                self._times[name] = str(series.dtype)
            return found
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        refuse_internals(name)
        value = self.context.get(name)
        if isinstance(value, int | float | str | np.number):
            self.used[name] = value
            return value
        if isinstance(value, list | np.ndarray | pd.Series):
            self.used[name] = value
            aligned = pd.Series(np.asarray(value))
            return plain_values(aligned if self.rows is None else aligned.iloc[self.rows], name)
        return column(self.frame, name)  # says what is missing

    def unary(self, node: Unary) -> Any:
        value = as_number(self.value(node.operand), node)
        if node.op == "!":
            return logical(np.where(np.isnan(value), np.nan, value == 0))
        if node.op == "~":
            raise FormulaError(f"A '~' inside {node} has no meaning here.")
        return -value if node.op == "-" else value

    def binary(self, node: Binary) -> Any:
        spine = [node]
        while isinstance(node.left, Binary):
            node = node.left
            spine.append(node)
        left = self.value(node.left)
        for step in reversed(spine):
            left = self.combine(step, left, self.value(step.right))
        return left

    def combine(self, node: Binary, left: Any, right: Any) -> Any:
        if node.op in _COMPARISONS:
            return self.compare(node, left, right)
        if node.op == "%in%":
            return _contained(left, right, node)
        left, right = as_number(left, node), as_number(right, node)
        if node.op == ":" and np.ndim(left) == 0 == np.ndim(right):
            return sequence(left, right)
        left, right = _aligned(left, right, node)
        if node.op in ("&", "&&", "|", "||"):
            return logical(_both(left, right) if node.op[0] == "&" else 1.0 - _both(1.0 - left, 1.0 - right))
        if node.op in _ARITHMETIC:
            return _ARITHMETIC[node.op](left, right)
        raise FormulaError(f"The operator {node.op!r} cannot be computed in {node}; it belongs outside I() and calls.")

    def compare(self, node: Binary, left: Any, right: Any) -> Any:
        left, right = self.as_time(node.right, left), self.as_time(node.left, right)
        if isinstance(right, Factor) and isinstance(left, str | float | bool):
            return _compare_levels(right, left, _MIRRORED.get(node.op, node.op), node)
        if isinstance(left, Factor) and isinstance(right, str | float | bool):
            return _compare_levels(left, right, node.op, node)
        if isinstance(left, Factor) and isinstance(right, Factor) and not (is_logical(left) or is_logical(right)):
            return _compare_factors(left, right, node)
        left, right = _aligned(as_number(left, node), as_number(right, node), node)
        result = _COMPARISONS[node.op](left, right)
        return logical(np.where(np.isnan(left) | np.isnan(right), np.nan, result))

    def as_time(self, beside: Node, value: Any) -> Any:
        """A text that is compared with a column of dates, as days."""
        if not isinstance(value, str) or not isinstance(beside, Name) or beside.name not in self._times:
            return value
        try:
            return float(days(pd.Series([pd.Timestamp(value)]))[0])
        except ValueError as error:
            raise FormulaError(f"Cannot read {value!r} as a date, which is compared with {beside}: {error}") from error

    # --- calls

    def call(self, node: Call) -> Any:
        own = own_function(node.function, self.context)
        function = node.function.rpartition("::")[2]
        try:
            if own is None and function in FACTOR_CALLS:
                return self.factor_call(node, function)
            args = [self.value(a) for a in node.args]
            if own is None and function in KNOWN_FUNCTIONS:
                return self.known(node, function, args)
            kwargs = {k: self.value(v) for k, v in node.kwargs}
            function_called = self.function(node.function) if own is None else self.keep_own(node.function, own)
            return _plain(function_called(*map(_for_user, args), **kwargs), node)
        except LmeJaxError:
            raise
        except Exception as error:
            raise FormulaError(f"Cannot compute {node}: {error}") from error

    def known(self, node: Call, function: str, args: list[Any]) -> Any:
        """A function of the list; its keywords may be written with R's dots."""
        kwargs = {k.replace(".", "_"): self.value(v) for k, v in node.kwargs}
        if function in ELEMENTWISE:
            numbers = _all_aligned([as_number(a, node) for a in args], node)
            return ELEMENTWISE[function](*numbers, **kwargs)
        if function in ("as.numeric", "as.integer") and isinstance(args[0], Factor) and not args[0].text:
            args = [self.same_levels(node, args[0])]
        if function in GENERAL:
            return GENERAL[function](*args, **kwargs)
        if function in SUMMARIES:
            return self.summary(node, function, args, kwargs)
        return self.transform(node, function, args, kwargs)

    def summary(self, node: Call, function: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        memory = self.state.setdefault(str(node), {})
        if "value" not in memory:
            kwargs.pop("na_rm", None)
            several = function in ("min", "max", "sum")
            given, rest = (args, []) if several else (args[:1], args[1:])
            if not given:
                raise FormulaError(f"{node} needs a column.")
            if function == "length":
                memory["value"] = float(len(given[0].codes if isinstance(given[0], Factor) else given[0]))
                return memory["value"]
            pooled = np.concatenate([np.ravel(as_number(a, node)) for a in given])
            finite = pooled[np.isfinite(pooled)]
            if len(finite) == 0:
                raise DataError(f"{node} has no finite values to work on.")
            found = SUMMARIES[function](finite, *rest, **kwargs)
            memory["value"] = found if isinstance(found, list) else float(found)
        return memory["value"]

    def transform(self, node: Call, function: str, args: list[Any], kwargs: dict[str, Any]) -> np.ndarray:
        label = str(node)
        if not args:
            raise FormulaError(f"{label} needs a column.")
        x = np.asarray(as_number(args[0], node))
        if x.ndim != 1:
            raise FormulaError(f"{label} needs one column of numbers.")
        memory = self.state.setdefault(label, {"label": label})
        finite = np.isfinite(x)
        part = np.asarray(TRANSFORMS[function](x[finite], *args[1:], memory=memory, **kwargs), dtype=np.float64)
        if len(part) == self.n:
            return part
        out = np.full((len(x), *part.shape[1:]), np.nan)
        out[finite] = part
        return out

    def keep_own(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.used[f"own:{name}"] = function
        return function

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the context, such as ``f`` or ``np.log``."""
        found = find_function(name, self.context)
        if found is not None:
            self.used[name] = found
            return found
        own = [k for k, v in self.context.items() if isinstance(v, FunctionType) and not k.startswith("_")]
        near = difflib.get_close_matches(name, [*KNOWN_FUNCTIONS, *own], n=3, cutoff=0.4)
        hint = f" did you mean {_listed(near)}?" if near else ""
        raise FormulaError(
            f"Unknown function {name!r} in the formula;{hint} help(lme_jax.formula) lists them all; a function of "
            "your own must be defined or imported where you call."
        )

    # --- factors

    def same_levels(self, node: Call, value: Factor) -> Factor:
        """The factor by the levels it had at the fit, then those that are new: what depends on their order stays."""
        memory = self.state.setdefault(f"levels of {node.args[0]}", {})
        first = memory.setdefault("levels", value.levels)
        if first is value.levels:
            return value
        at = np.append(pd.Index(first).get_indexer(pd.Index(value.levels)), -1)
        new = at[:-1] < 0
        at[:-1][new] = len(first) + np.arange(new.sum())
        added = value.levels[new]
        alike = first.dtype.kind == added.dtype.kind
        levels = np.concatenate([first, added] if alike else [first.astype(object), added.astype(object)])
        return replace(value, codes=at[value.codes], levels=levels)

    def factor_call(self, node: Call, function: str) -> Any:
        kwargs = {k.replace(".", "_"): self.value(v) for k, v in node.kwargs if k not in ("contr", "contrasts")}
        if not node.args:
            raise FormulaError(f"{node} needs a column.")
        if function == "cut":
            args = [self.value(a) for a in node.args]
            return cut(*args, memory=self.state.setdefault(str(node), {}), **kwargs)
        if function == "interaction":
            parts = [self.grouping(a) for a in node.args]
            return interaction(parts, str(kwargs.get("sep", ".")), bool(kwargs.get("lex_order", False)))
        value = self.same_levels(node, self.grouping(node.args[0]))
        levels = kwargs.get("levels")
        if levels is None and function in ("factor", "ordered") and len(node.args) > 1:
            levels = self.value(node.args[1])
        if levels is not None:
            value = _reorder(value, levels, node)
        if kwargs.get("labels") is not None:
            value = _relabel(value, kwargs["labels"], node)
        if function == "relevel":
            ref = kwargs["ref"] if "ref" in kwargs else self.value(node.args[-1])
            value = _reorder(value, _with_first(value, ref, node), node)
        ordered = function in ("ordered", "as.ordered") or bool(kwargs.get("ordered", value.ordered))
        return Factor(value.codes, value.levels, ordered, _contrast(node, function))


def _contrast(node: Call, function: str) -> str | None:
    """The contrasts named in ``C(f, sum)`` or ``contr = …``."""
    chosen = next((v for k, v in node.kwargs if k in ("contr", "contrasts")), None)
    if function == "C" and len(node.args) > 1:
        chosen = node.args[1]
    return getattr(chosen, "name", getattr(chosen, "value", getattr(chosen, "function", None)))


def _with_first(value: Factor, ref: Any, node: Call) -> list[Any]:
    levels = value.levels.tolist()
    if isinstance(ref, Factor | np.ndarray | list) or ref not in levels:
        raise FormulaError(f"{node}: `ref` must be one of the levels {shown(levels, 20)}.")
    return [ref, *(x for x in levels if x != ref)]


def _reorder(value: Factor, levels: Any, node: Call) -> Factor:
    if not isinstance(levels, list):
        raise FormulaError(f"In {node}, levels must be given as c(...).")
    own = value.levels.tolist()
    if all(isinstance(level, str) for level in levels) and not all(isinstance(level, str) for level in own):
        own = level_labels(value.levels)
    position = {level: i for i, level in enumerate(levels)}
    codes = np.array([*(position.get(x, -1) for x in own), -1])[value.codes]
    return Factor(codes, np.array(levels), value.ordered, value.contrast)


def _relabel(value: Factor, labels: Any, node: Call) -> Factor:
    if not isinstance(labels, list) or len(labels) != len(value.levels):
        raise FormulaError(f"In {node}, labels must be c(...) with one label for each of {len(value.levels)} levels.")
    names = list(dict.fromkeys(map(str, labels)))
    merged = np.array([*(names.index(str(label)) for label in labels), -1])
    return Factor(merged[value.codes], np.array(names, dtype=object), value.ordered, value.contrast)


def _compare_levels(factor: Factor, other: str | float | bool, op: str, node: Binary) -> Any:
    """A factor against one value: by its labels, or for an ordered factor by the order of its levels."""
    levels: Any = factor.levels
    if op in _MIRRORED and factor.ordered:
        if other not in levels.tolist():
            raise FormulaError(f"In {node}, {other!r} is not one of the levels {shown(levels, 20)}.")
        levels, other = np.arange(len(levels)), levels.tolist().index(other)
    elif op in _MIRRORED and levels.dtype.kind not in "biuf" and not factor.text:
        raise FormulaError(f"{node}: {op!r} has no meaning for a factor without an order.")
    elif isinstance(other, str) != (levels.dtype.kind not in "biuf"):
        levels = np.array(level_labels(levels), dtype=object)
        other = other if isinstance(other, str) else f"{other:.15g}"
    result = np.asarray(_COMPARISONS[op](levels, other), dtype=np.float64)
    return logical(np.append(result, np.nan)[factor.codes])


def _compare_factors(left: Factor, right: Factor, node: Binary) -> Any:
    if node.op in _MIRRORED:
        raise FormulaError(f"{node}: {node.op!r} has no meaning for two factors; compare numbers, or use == and !=.")
    names = {label: i for i, label in enumerate(level_labels(left.levels))}
    position = np.array([*(names.get(label, -2) for label in level_labels(right.levels)), -1])[right.codes]
    result = _COMPARISONS[node.op](left.codes, position)
    return logical(np.where((left.codes < 0) | (right.codes < 0), np.nan, result))


def _contained(left: Any, right: Any, node: Binary) -> Any:
    """R's ``%in%``; a missing value is in nothing."""
    wanted = right if isinstance(right, list) else [right]
    if any(isinstance(w, np.ndarray | Factor) for w in wanted):
        raise FormulaError(f"In {node} the right side must be values: c('a', 'b').")
    if isinstance(left, Factor):
        labels = {w if isinstance(w, str) else level_labels(np.asarray([w]))[0] for w in wanted}
        held = np.array([*(label in labels for label in level_labels(left.levels)), False])
        return held[left.codes]
    return np.isin(as_number(left, node), [as_number(w, node) for w in wanted])


def _both(left: Any, right: Any) -> Any:
    """Logical and of 0, 1 and NaN in R's three values: FALSE whatever the other, if one is."""
    unknown = np.isnan(left) | np.isnan(right)
    return np.where((left == 0) | (right == 0), 0.0, np.where(unknown, np.nan, 1.0))


def _aligned(left: Any, right: Any, node: Node) -> tuple[Any, Any]:
    """A variable beside the columns of a matrix is repeated for each, as in R."""
    a, b = _all_aligned([left, right], node)
    return a, b


def _all_aligned(values: list[Any], node: Node) -> list[Any]:
    shapes = [np.shape(v) for v in values]
    if any(len(shape) == 2 for shape in shapes):
        values = [v[:, None] if np.ndim(v) == 1 else v for v in values]
    try:
        np.broadcast_shapes(*map(np.shape, values))
    except ValueError:
        raise FormulaError(f"The parts of {node} have unlike shapes: {', '.join(map(str, shapes))}.") from None
    return values


def _for_user(value: Any) -> Any:
    """An argument as a caller's function gets it: a factor as its labels, None where missing."""
    if not isinstance(value, Factor):
        return value
    if (value.codes < 0).any():
        return np.array([*value.levels.tolist(), None], dtype=object)[value.codes]
    return value.levels[value.codes]


def _plain(value: Any, node: Node) -> Any:
    """What a caller's function returned: a scalar, a float64 or bool array, or a Factor."""
    if np.isscalar(value):
        return value
    if isinstance(value, pd.DataFrame):
        return value.to_numpy()
    if isinstance(value, pd.Series | pd.Categorical):
        return plain_values(pd.Series(value), str(node))
    array = np.asarray(value)
    return plain_values(pd.Series(array), str(node)) if array.ndim == 1 and array.dtype.kind not in "biuf" else array


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
