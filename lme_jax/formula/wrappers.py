"""Covariance structures spelled around a bar, as lme4 2 and glmmTMB do: ``cs(f | g)``, ``rr(x | g, d = 2)``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lme_jax.core.structures import REGISTRY, Block, make_block
from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.evaluate import FACTOR_CALLS, Evaluator
from lme_jax.formula.expansion import Linear
from lme_jax.formula.guard import refuse_internals
from lme_jax.formula.matrix import FactorCoding
from lme_jax.formula.notes import shown
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


# ---------------------------------------------------------------- with the data


def resolve(
    spelled: Spelled,
    text: str,
    lhs: Linear,
    columns: Sequence[str],
    codings: Mapping[str, FactorCoding],
    evaluator: Evaluator,
) -> Block:
    """The block of a term's effects, everything checked; ``text`` names the term in messages."""
    known = REGISTRY[spelled.structure]
    where = f"the random-effects term ({text})"
    if known.ordered:
        _check_order(spelled, where, columns)
    given: Any = _evaluated(spelled.argument, where, evaluator)
    if known.needs == "coordinates" and given is None:
        given = _coordinates(where, lhs, codings)
    if known.needs == "matrix":
        given = _aligned(given, where, columns, lhs, codings)
    try:
        return make_block(spelled.structure, len(columns), given)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _check_order(spelled: Spelled, where: str, columns: Sequence[str]) -> None:
    if len(columns) > 1 and "(Intercept)" in columns:
        raise FormulaError(
            f"{where}: {spelled.structure} takes effects in an order, and the intercept is none of them; "
            "write (0 + … | …)."
        )
    if len(columns) == 1 and spelled.in_formula:
        raise FormulaError(
            f"{where} has a single effect, {columns[0]}, where {spelled.structure} takes several in an order; "
            "write 0 + factor(…) for an effect per value."
        )


def _evaluated(argument: Any, where: str, evaluator: Evaluator) -> Any:
    """A number or a matrix that a formula names; what is no node was given as it is."""
    if isinstance(argument, Number):
        return argument.value
    if isinstance(argument, Name):
        refuse_internals(argument.name)
        value = evaluator.context.get(argument.name)
        if value is None:
            raise FormulaError(f"{where}: there is no {argument.name} where the model is called.")
        return value
    if isinstance(argument, Node):
        raise FormulaError(f"{where}: give a number or the name of a matrix, not {argument}.")
    return argument


def _only_factor(lhs: Linear, codings: Mapping[str, FactorCoding]) -> FactorCoding | None:
    """The factor of a term that has an effect for each of its levels and no others."""
    if lhs.intercept or len(lhs.terms) != 1 or len(lhs.variables) != 1:
        return None
    return codings.get(lhs.variables[0][0])


def _coordinates(where: str, lhs: Linear, codings: Mapping[str, FactorCoding]) -> np.ndarray:
    coding = _only_factor(lhs, codings)
    if coding is None:
        raise FormulaError(f"{where}: coordinates are the values of one variable, ou(t | g), or given beside the name.")
    try:
        return np.array([float(label) for label in coding.levels])
    except (TypeError, ValueError) as error:
        name = lhs.variables[0][0]
        raise DataError(f"{where}: coordinates must be numbers, but {name} has {shown(coding.levels, 4)}.") from error


def _aligned(
    given: Any, where: str, columns: Sequence[str], lhs: Linear, codings: Mapping[str, FactorCoding]
) -> np.ndarray:
    """A known matrix in the order of the effects: a DataFrame by its labels, the effects' names or the levels."""
    if not isinstance(given, pd.DataFrame):
        return np.asarray(given.toarray() if hasattr(given, "toarray") else given)
    rows = pd.Index(given.index.astype(str))
    if not rows.is_unique or not rows.equals(pd.Index(given.columns.astype(str))):
        raise DataError(f"{where}: the matrix must have the same unique labels, in one order, on rows and columns.")
    coding = _only_factor(lhs, codings)
    wanted = list(columns)
    if coding is not None and not rows.isin(wanted).any():
        wanted = [str(level) for level in coding.levels]
    positions = rows.get_indexer(pd.Index(wanted))
    if (positions < 0).any():
        missing = [name for name, at in zip(wanted, positions, strict=True) if at < 0]
        raise DataError(f"{where}: the matrix lacks the labels {shown(missing)}; it has {shown(list(rows), 6)}.")
    return given.to_numpy(dtype=float)[np.ix_(positions, positions)]
