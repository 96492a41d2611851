"""From a syntax tree to terms: bars, R's coding of factors and R's ``update``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from lme_jax.errors import FormulaError
from lme_jax.formula.expansion import Linear, expand_linear
from lme_jax.formula.syntax import Binary, Call, Name, Node, Paren, Unary, children, parse, walk
from lme_jax.formula.wrappers import BARS, Spelled, joins_conditions, read_wrapper, spellings, strip, wraps_bar

_UNSTRUCTURED, _DIAGONAL = Spelled("unstructured"), Spelled("diagonal")
Signed = tuple[str, Node]
RawBar = tuple[Node, Node, Spelled]


@dataclass(frozen=True)
class Bar:
    """One random-effects term ``lhs | parts[0]:parts[1]:...``."""

    lhs: Linear
    parts: tuple[Node, ...]
    label: str
    structure: Spelled
    text: str


@dataclass(frozen=True)
class MixedFormula:
    """A parsed lme4 formula; `echoed` says that the response stood on the right too and was left out there."""

    text: str
    response: Node
    fixed: Linear
    bars: tuple[Bar, ...]
    echoed: bool


def has_bar(node: Node) -> bool:
    """Whether a random-effects term is in a node; a "|" between conditions inside a call is a logical "or"."""
    waiting = [(node, False)]
    while waiting:
        node, inside = waiting.pop()
        if isinstance(node, Binary) and node.op in BARS and not (inside and joins_conditions(node)):
            return True
        inside = inside or (isinstance(node, Call) and not (wraps_bar(node) and node.function in spellings()))
        waiting.extend((child, inside) for child in children(node))
    return False


def parse_mixed(formula: str, columns: Iterable[object], *, bars: bool = True) -> MixedFormula:
    """Parse an lme4 formula; `columns` gives a meaning to ``.``, `bars` says that there must be random effects."""
    if not isinstance(formula, str):
        raise FormulaError(f"The formula must be text such as 'y ~ x + (1 | g)', not {type(formula).__name__}.")
    try:
        return _parse_mixed(formula, tuple(map(str, columns)) if _uses_dot(formula) else None, bars)
    except RecursionError:
        raise FormulaError(f"The formula {formula[:60]!r}… is nested too deeply.") from None


@lru_cache(maxsize=256)
def _uses_dot(formula: str) -> bool:
    return "." in formula and any(n == Name(".") for n in walk(parse(formula)))


@lru_cache(maxsize=256)
def _parse_mixed(formula: str, columns: tuple[str, ...] | None, needed: bool) -> MixedFormula:
    tree = parse(formula)
    if not (isinstance(tree, Binary) and tree.op == "~"):
        raise FormulaError(f"The formula {formula!r} has no response; write 'y ~ x + (1 | g)'.")
    if has_bar(tree.left):
        raise FormulaError(f"The response of {formula!r} holds a '|'; random effects belong after '~'.")
    raw_bars: list[RawBar] = []
    fixed = _take_bars(tree.right, raw_bars)
    if not raw_bars and needed:
        raise FormulaError(
            f"The formula {formula!r} has no random-effects term; add one such as (1 | g), or fit a linear model."
        )
    _refuse_twins(raw_bars)
    bars = tuple(bar for raw in raw_bars for bar in _expand_bar(*raw))
    dot = _dot_columns(columns, tree.left, bars) if columns is not None else ()
    linear, echoed = expand_linear(fixed, dot, tree.left)
    return MixedFormula(formula, tree.left, linear, bars, echoed)


def _dot_columns(columns: tuple[str, ...], response: Node, bars: tuple[Bar, ...]) -> tuple[str, ...]:
    used = {n.name for n in walk(response) if isinstance(n, Name)}
    used |= {n.name for bar in bars for part in bar.parts for n in walk(part) if isinstance(n, Name)}
    return tuple(c for c in columns if c not in used)


# --- bars ------------------------------------------------------------------------------------------------


def _is_bar(node: Node) -> bool:
    return isinstance(node, Binary) and node.op in BARS


def _is_sum(node: Node) -> bool:
    return isinstance(node, Binary) and node.op in ("+", "-")


def _take_bars(node: Node, bars: list[RawBar]) -> Node | None:
    """Append the bars of a sum to `bars` and return the sum without them, None if nothing else is there."""
    spine: list[Binary] = []
    while _is_sum(node):
        spine.append(node)  # type: ignore[arg-type]
        node = node.left  # type: ignore[attr-defined]
    rest = _take_bar(node, bars)
    for sum_ in reversed(spine):
        if sum_.op == "-" and has_bar(sum_.right):
            raise FormulaError(f"Cannot subtract the random-effects term {sum_.right}; leave it out of the formula.")
        right = _take_bar(sum_.right, bars)
        if right is not None and rest is not None:
            rest = Binary(sum_.op, rest, right)
        elif right is not None:
            rest = Unary("-", right) if sum_.op == "-" else right
    return rest


def _take_bar(node: Node, bars: list[RawBar]) -> Node | None:
    if not has_bar(node):
        return node
    if isinstance(node, Paren) and not _is_bar(node.inner):
        inner = _take_bars(node.inner, bars)
        return None if inner is None else Paren(inner)
    if isinstance(node, Unary) and node.op == "+":
        return _take_bars(node.operand, bars)
    if isinstance(node, Unary) and node.op == "-":
        raise FormulaError(f"Cannot subtract the random-effects term {node.operand}; leave it out of the formula.")
    if _is_sum(node):
        return _take_bars(node, bars)
    bar, structure = _as_bar(node)
    if has_bar(bar.left) or has_bar(bar.right):
        raise FormulaError(f"The random-effects term {node} holds more than one '|'.")
    bars.append((bar.left, bar.right, structure))
    return None


def _refuse_twins(bars: list[RawBar]) -> None:
    seen = set()
    for lhs, group, structure in bars:
        text = f"{lhs} {_separator(structure)} {group}"
        if text in seen:
            raise FormulaError(f"The random-effects term ({text}) is there twice; remove one.")
        seen.add(text)


def _separator(structure: Spelled) -> str:
    return "||" if structure == _DIAGONAL else "|"


def _as_bar(node: Node) -> tuple[Binary, Spelled]:
    if isinstance(node, Paren) and isinstance(node.inner, Binary):
        return node.inner, _DIAGONAL if node.inner.op == "||" else _UNSTRUCTURED
    if isinstance(node, Call) and wraps_bar(node):
        return read_wrapper(node)
    if isinstance(node, Binary) and node.op in BARS:
        raise FormulaError(f"The random-effects term {node} needs parentheses: write '... + (1 | g)'.")
    raise FormulaError(
        f"A random-effects term can only be added: {node} combines one with something else. "
        "Write it as '+ (effects | group)'; for an interaction with x put x inside: (x | group)."
    )


def _expand_bar(lhs: Node, group: Node, structure: Spelled) -> list[Bar]:
    linear, _ = expand_linear(lhs)
    if linear.offsets:
        raise FormulaError(f"offset() has no meaning in the random-effects term ({lhs} | {group}); add it outside.")
    sep = _separator(structure)
    return [Bar(linear, parts, label, structure, f"{lhs} {sep} {label}") for parts, label in _groupings(group)]


def _groupings(group: Node) -> list[tuple[tuple[Node, ...], str]]:
    """Expand ``a/b`` and ``a*b`` into interactions; a nested chain has its finest first."""
    group = strip(group)
    if isinstance(group, Binary) and group.op == "+":
        raise FormulaError(
            f"Two grouping factors cannot be added: ({group}). Write a term for each, "
            f"(… | {group.left}) + (… | {group.right}), or their interaction {group.left}:{group.right}."
        )
    if isinstance(group, Binary) and group.op == "/":
        outer, inner = _groupings(group.left), _groupings(group.right)
        return [_interact(i, outer[0]) for i in inner] + outer
    if isinstance(group, Binary) and group.op == "*":
        left, right = _groupings(group.left), _groupings(group.right)
        return left + right + [_interact(a, b) for a in left for b in right]
    if isinstance(group, Binary) and group.op == ":":
        return [_interact(a, b) for a in _groupings(group.left) for b in _groupings(group.right)]
    if not isinstance(group, Name | Call):
        raise FormulaError(f"{group} is no grouping factor; write a column, a call such as factor(f), a:b or a/b.")
    return [((group,), group.name if isinstance(group, Name) else str(group))]


def _interact(a: tuple[tuple[Node, ...], str], b: tuple[tuple[Node, ...], str]) -> tuple[tuple[Node, ...], str]:
    right = f"({b[1]})" if len(b[0]) > 1 else b[1]
    return a[0] + b[0], f"{a[1]}:{right}"


# --- updating --------------------------------------------------------------------------------------------


def _summands(node: Node, sign: str = "+") -> list[Signed]:
    """The signed parts of a sum; parentheses stay, as R honours them in subtractions, unless they hold bars."""
    found: list[Signed] = []
    while isinstance(node, Binary) and node.op in "+-":
        found.append((_times(sign, node.op), node.right))
        node = node.left
    found.append((sign, node))
    return [pair for s, n in reversed(found) for pair in _open(s, n)]


def _open(sign: str, node: Node) -> list[Signed]:
    if isinstance(node, Paren) and not _is_bar(node.inner) and has_bar(node):
        return _summands(node.inner, sign)
    if isinstance(node, Unary) and node.op in "+-":
        return _summands(node.operand, _times(sign, node.op))
    return [(sign, node)]


def _times(a: str, b: str) -> str:
    return "+" if a == b else "-"


def update_formula(old: str, change: str) -> str:
    """R's ``update``: `change` with ``.`` standing for the old response, or the old right-hand side.

    ``". ~ . + x - z"`` adds and removes fixed effects, ``". ~ . - (1 | g)"`` a random-effects term, written
    as it was; ``"log(.) ~ ."`` changes the response.
    """
    before, after = parse(old), parse(change)
    for tree, text in ((before, old), (after, change)):
        if not (isinstance(tree, Binary) and tree.op == "~"):
            raise FormulaError(f"The formula {text!r} has no '~'; write '. ~ . + x'.")
    response = _replace_dot(after.left, before.left)  # type: ignore[attr-defined]
    kept: list[Signed] = []
    for sign, node in _summands(after.right):  # type: ignore[attr-defined]
        pieces = _summands(before.right, sign) if node == Name(".") else [(sign, node)]  # type: ignore[attr-defined]
        for s, piece in pieces:
            if s == "-" and has_bar(piece):
                _remove_bar(kept, piece)
            else:
                kept.append((s, piece))
    text = " ".join(f"{sign} {node}" for sign, node in kept)
    return f"{response} ~ {text.removeprefix('+ ') or '1'}"


def _replace_dot(node: Node, value: Node) -> Node:
    if node == Name("."):
        return value
    if isinstance(node, Call):
        return Call(node.function, tuple(_replace_dot(a, value) for a in node.args), node.kwargs)
    if isinstance(node, Binary):
        return Binary(node.op, _replace_dot(node.left, value), _replace_dot(node.right, value))
    if isinstance(node, Paren):
        return Paren(_replace_dot(node.inner, value))
    return node


def _remove_bar(kept: list[Signed], bar: Node) -> None:
    for i, (_, node) in enumerate(kept):
        if node == bar:
            del kept[i]
            return
    there = ", ".join(str(node) for _, node in kept if has_bar(node))
    raise FormulaError(f"There is no random-effects term {bar} to remove; there are {there}.")


# --- residual structures in a formula ----------------------------------------------------------------------


def split_residual(formula: str) -> tuple[str, str | None]:
    """An mmrm formula as one without its residual structure, and that: ``y ~ x + us(v | id)``.

    The structure is the call that stands around a bar; without one the formula is returned as it is.
    """
    tree = parse(formula) if isinstance(formula, str) else None
    if not (isinstance(tree, Binary) and tree.op == "~"):
        return formula, None
    parts = _summands(tree.right)
    found = [(sign, node) for sign, node in parts if isinstance(node, Call) and _ends_in_bar(node)]
    if not found:
        return formula, None
    if len(found) > 1 or found[0][0] == "-":
        terms = ", ".join(str(node) for _, node in found)
        raise FormulaError(f"The formula must add one residual structure, such as us(visit | id); it has {terms}.")
    text = " ".join(f"{sign} {node}" for sign, node in parts if (sign, node) != found[0])
    return f"{tree.left} ~ {text.removeprefix('+ ') or '1'}", str(found[0][1])


def _ends_in_bar(node: Call) -> bool:
    """Whether the last argument of a call is a bar."""
    last = node.args[-1] if node.args else None
    return isinstance(last, Binary) and last.op in BARS and not joins_conditions(last)
