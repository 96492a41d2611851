"""Covariance structures spelled around a bar, as lme4 2 and glmmTMB do: ``cs(f | g)``, ``rr(x | g, d = 2)``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from lme_jax.core.structures import REGISTRY
from lme_jax.errors import FormulaError
from lme_jax.formula.functions import FACTOR_CALLS
from lme_jax.formula.syntax import Binary, Call, Name, Node, Number, Paren, Unary

BARS = ("|", "||")
_CONDITIONS = ("==", "!=", "<", ">", "<=", ">=", "&", "&&", "|", "||", "%in%")
_TRUTH = {"TRUE": True, "T": True, "True": True, "FALSE": False, "F": False, "False": False}


class Spelled(NamedTuple):
    """A structure by its name in the registry, and what stood beside the bar, not evaluated yet."""

    structure: str
    argument: Any = None
    in_formula: bool = False


def spellings() -> dict[str, str]:
    """Name in formulas → name in the registry."""
    return {name: structure for structure, known in REGISTRY.items() for name in known.spellings}


def strip(node: Node) -> Node:
    """The node inside its parentheses."""
    while isinstance(node, Paren):
        node = node.inner
    return node


def joins_conditions(node: Binary) -> bool:
    """Whether a "|" inside a call is a logical "or"."""
    sides = [strip(node.left), strip(node.right)]
    return any(isinstance(s, Unary) or (isinstance(s, Binary) and s.op in _CONDITIONS) for s in sides)


def wraps_bar(node: Node) -> bool:
    """Whether a call stands around a bar directly."""
    first = node.args[0] if isinstance(node, Call) and node.args else None
    return isinstance(first, Binary) and first.op in BARS and not joins_conditions(first)


def read_wrapper(node: Call) -> tuple[Binary, Spelled]:
    """The bar inside a call, and the structure that the call names."""
    bar = node.args[0]
    assert isinstance(bar, Binary)
    known = spellings()
    if node.function not in known:
        raise FormulaError(f"{node}: unknown covariance structure {node.function}(){_suggestion(node.function, known)}")
    if bar.op == "||":
        raise FormulaError(f"{node}: || is for terms without a structure's name; write {node.function}(… | …).")
    structure = known[node.function]
    given = dict(node.kwargs)
    if "hom" in given:
        structure = _partner(structure, given.pop("hom"), node)
    argument = _argument(structure, list(node.args[1:]), given, node)
    bar = _coordinate_bar(bar, node) if REGISTRY[structure].needs == "coordinates" else bar
    return bar, Spelled(structure, argument, in_formula=True)


def _suggestion(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}()?" if near else f"; there are {', '.join(sorted(known))}."


def _partner(structure: str, hom: Node, node: Call) -> str:
    """The structure with equal variances (``hom = TRUE``) or with one for each effect."""
    wanted = _TRUTH.get(hom.name) if isinstance(hom, Name) else None
    if wanted is None:
        raise FormulaError(f"{node}: hom must be TRUE or FALSE, not {hom}.")
    if REGISTRY[structure].homogeneous == wanted:
        return structure
    partner = REGISTRY[structure].partner
    if partner is None:
        kind = "equal" if wanted else "unequal"
        raise FormulaError(f"{node}: {node.function}() has no form with {kind} variances; leave out hom.")
    return partner


def _argument(structure: str, positional: list[Node], given: dict[str, Node], node: Call) -> Node | None:
    """The rank or the matrix; whatever else stands there is refused."""
    names = {"rank": "d", "matrix": "M"}
    name = names.get(REGISTRY[structure].needs or "")
    argument = given.pop(name, None) if name is not None else None
    if argument is None and name is not None and positional:
        argument = positional.pop(0)
    if positional or given:
        extra = ", ".join([*map(str, positional), *(f"{k} = {v}" for k, v in given.items())])
        wanted = f"{node.function}(… | g, {name} = …)" if name else f"{node.function}(… | g)"
        raise FormulaError(f"{node}: {extra} has no meaning there; write {wanted}.")
    if argument is None and name == "M":
        raise FormulaError(f"{node}: name the known matrix too, {node.function}(0 + f | g, M).")
    return argument


def _coordinate_bar(bar: Binary, node: Call) -> Binary:
    """``t | g`` as ``0 + factor(t) | g``: an effect for each distinct value, which are the coordinates."""
    lhs = strip(bar.left)
    if isinstance(lhs, Binary) and lhs.op == "+" and lhs.left == Number("0"):
        lhs = lhs.right
    elif isinstance(lhs, Binary) and lhs.op in "+-" and lhs.right == Number("0" if lhs.op == "+" else "1"):
        lhs = lhs.left
    if not isinstance(lhs, Name | Call):
        raise FormulaError(f"{node}: {node.function}() takes one variable, whose values are the coordinates: (t | g).")
    factor = lhs if isinstance(lhs, Call) and lhs.function in FACTOR_CALLS else Call("factor", (lhs,), ())
    return Binary("|", Binary("+", Number("0"), factor), bar.right)
