"""What a formula may reach: never Python's internals; without a context, no foreign code at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import FormulaError

_DATA = (np.ndarray, pd.Series, pd.DataFrame, pd.Index, str, bytes, list, dict, tuple, set)
_NUMPY = ("np", "numpy")
_PLAIN = (
    ast.Expression,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Name,
    ast.Constant,
    ast.expr_context,
    ast.boolop,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.keyword,
    ast.List,
    ast.Tuple,
)


def refuse_internals(name: str) -> None:
    """Names such as ``__builtins__`` and private attributes lead out of a formula's world."""
    root, *attributes = name.split(".")
    if root.startswith("__") or any(a.startswith("_") for a in attributes if a):
        raise FormulaError(
            f"A formula cannot use {name!r}: Python's internals and private attributes are closed to it."
        )


def find_function(name: str, context: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A function of the context, such as ``f`` or ``np.log``; None if there is none.

    Attributes are followed from modules and from the caller's own objects, not from data (an array's
    ``tofile`` writes files). Where the context has no ``np``, NumPy's elementwise functions are there all the same.
    """
    refuse_internals(name)
    found = context.get(name)
    if callable(found):
        return found
    root, *attributes = name.split(".")
    target = context.get(root)
    if target is None:
        return _ufunc(root, attributes)
    if not attributes or isinstance(target, _DATA):
        return None
    for attribute in attributes:
        target = getattr(target, attribute, None)
    return target if callable(target) else None


def _ufunc(root: str, attributes: list[str]) -> Callable[..., Any] | None:
    if root not in _NUMPY or len(attributes) != 1:
        return None
    found = getattr(np, attributes[0], None)
    return found if isinstance(found, np.ufunc) else None


def own_function(name: str, context: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A function that the caller wrote under this name: defined in their module, or passed on purpose.

    It comes before a listed one of the same name. A result keeps it as "own:name".
    """
    kept = context.get(f"own:{name}")
    if kept is not None:
        return kept
    found = context.get(name)
    if not isinstance(found, FunctionType):
        return None
    home = context.get("__name__")
    return found if home is None or found.__module__ == home else None


def check_python(expression: str, functions: Iterable[str] | None, what: str) -> None:
    """Refuse a Python expression that reaches for internals, or beyond `functions` where these are given."""
    plain = re.sub(r"`[^`]*`", "_column", expression).strip()
    try:
        # pandas' "@name" is a variable: read it as one, and let no restricted expression have any.
        tree = ast.parse(plain if functions is not None else plain.replace("@", ""), mode="eval")
    except (SyntaxError, ValueError, RecursionError) as error:
        if functions is not None or "__" in plain:
            raise FormulaError(f"{what} {expression!r} cannot be read: {error}.") from error
        return  # whoever evaluates it will say what is wrong with it
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            refuse_internals(node.id)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            refuse_internals(f"x.{node.attr}")
    if functions is None:
        return
    allowed = set(functions)
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    fine = {id(node) for node in called if _is_listed(node.func, allowed)}
    fine |= {id(node.func) for node in called if id(node) in fine}
    for node in ast.walk(tree):
        if id(node) not in fine and not isinstance(node, _PLAIN):
            raise FormulaError(
                f"{what} {expression!r} uses {ast.unparse(node)!r}; without a context only columns, operators "
                "and the listed functions are allowed."
            )


def _is_listed(function: ast.expr, allowed: set[str]) -> bool:
    if isinstance(function, ast.Name):
        return function.id in allowed
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        root = function.value.id
        return (root == "contr" and root in allowed) or _ufunc(root, [function.attr]) is not None
    return False
