"""From a syntax tree to terms: bars, Wilkinson-Rogers expansion and R's rule for coding factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

from lme_jax.errors import FormulaError
from lme_jax.formula.syntax import Binary, Call, Name, Node, Number, Paren, Unary, parse, walk

STRUCTURES = ("unstructured", "diagonal", "identity", "compound_symmetry", "ar1")
_WRAPPERS = {
    "us": "unstructured",
    "diag": "diagonal",
    "ident": "identity",
    "homdiag": "identity",
    "cs": "compound_symmetry",
    "ar1": "ar1",
}
_BARS = ("|", "||")
Term = frozenset[str]
Signed = tuple[str, Node]


@dataclass(frozen=True)
class Linear:
    """One linear predictor: its variables in order of appearance and its terms in R's order."""

    variables: tuple[tuple[str, Node], ...]
    terms: tuple[Term, ...]
    intercept: bool
    offsets: tuple[Node, ...] = ()

    def full_coding(self, factors: frozenset[str]) -> set[tuple[int, str]]:
        """(term position, factor) pairs that R codes by indicators, not by contrasts.

        ``stats:::TermCode`` codes factor v of term T by contrasts if T without v is contained in an earlier
        term; without an intercept the first factor of the first term that has one gets indicators.
        """
        full = set()
        for i, term in enumerate(self.terms):
            for v in term & factors:
                margin = term - {v}
                if margin and not any(margin <= earlier for earlier in self.terms[:i]):
                    full.add((i, v))
        if not self.intercept:
            order = [label for label, _ in self.variables]
            for i, term in enumerate(self.terms):
                present = term & factors
                if present:
                    full.add((i, min(present, key=order.index)))
                    break
        return full


@dataclass(frozen=True)
class Bar:
    """One random-effects term ``lhs | parts[0]:parts[1]:...``."""

    lhs: Linear
    parts: tuple[Node, ...]
    label: str
    structure: str
    text: str


@dataclass(frozen=True)
class MixedFormula:
    """A parsed lme4 formula."""

    text: str
    response: Node
    fixed: Linear
    bars: tuple[Bar, ...]


def has_bar(node: Node) -> bool:
    return any(isinstance(n, Binary) and n.op in _BARS for n in walk(node))


def parse_mixed(formula: str, columns: Sequence[str]) -> MixedFormula:
    """Parse an lme4 formula; `columns` gives a meaning to ``.``."""
    if not isinstance(formula, str):
        raise FormulaError(f"The formula must be text such as 'y ~ x + (1 | g)', not {type(formula).__name__}.")
    return _parse_mixed(formula, tuple(columns) if _uses_dot(formula) else None)


@lru_cache(maxsize=256)
def _uses_dot(formula: str) -> bool:
    return any(n == Name(".") for n in walk(parse(formula)))


@lru_cache(maxsize=256)
def _parse_mixed(formula: str, columns: tuple[str, ...] | None) -> MixedFormula:
    tree = parse(formula)
    if not (isinstance(tree, Binary) and tree.op == "~"):
        raise FormulaError(f"The formula {formula!r} has no response; write 'y ~ x + (1 | g)'.")
    if has_bar(tree.left):
        raise FormulaError(f"The response of {formula!r} holds a '|'; random effects belong after '~'.")
    fixed, raw_bars = _split_bars(tree.right)
    if not raw_bars:
        raise FormulaError(
            f"The formula {formula!r} has no random-effects term; add one such as (1 | g), or fit a linear model."
        )
    _refuse_twins(raw_bars)
    bars = tuple(bar for raw in raw_bars for bar in _expand_bar(*raw))
    dot = _dot_columns(columns, tree.left, bars) if columns is not None else ()
    return MixedFormula(formula, tree.left, expand_linear(fixed, dot), bars)


def _dot_columns(columns: tuple[str, ...], response: Node, bars: tuple[Bar, ...]) -> tuple[str, ...]:
    used = {n.name for n in walk(response) if isinstance(n, Name)}
    used |= {n.name for bar in bars for part in bar.parts for n in walk(part) if isinstance(n, Name)}
    return tuple(c for c in columns if c not in used)


# --- bars ------------------------------------------------------------------------------------------------


def _summands(node: Node, sign: str = "+") -> list[Signed]:
    if isinstance(node, Binary) and node.op in "+-":
        return _summands(node.left, sign) + _summands(node.right, _times(sign, node.op))
    if isinstance(node, Unary) and node.op in "+-":
        return _summands(node.operand, _times(sign, node.op))
    if isinstance(node, Paren) and not (isinstance(node.inner, Binary) and node.inner.op in _BARS):
        return _summands(node.inner, sign)
    return [(sign, node)]


def _times(a: str, b: str) -> str:
    return "+" if a == b else "-"


def _split_bars(rhs: Node) -> tuple[list[Signed], list[tuple[Node, Node, str]]]:
    fixed: list[Signed] = []
    bars: list[tuple[Node, Node, str]] = []
    for sign, node in _summands(rhs):
        if not has_bar(node):
            fixed.append((sign, node))
            continue
        bar, structure = _as_bar(node)
        if sign == "-":
            raise FormulaError(f"Cannot subtract the random-effects term {node}; leave it out of the formula.")
        if has_bar(bar.left) or has_bar(bar.right):
            raise FormulaError(f"The random-effects term {node} holds more than one '|'.")
        bars.append((bar.left, bar.right, structure))
    return fixed, bars


def _refuse_twins(bars: list[tuple[Node, Node, str]]) -> None:
    for i, (lhs, group, _) in enumerate(bars):
        if any((lhs, group) == other[:2] for other in bars[:i]):
            raise FormulaError(f"The random-effects term ({lhs} | {group}) is there twice; remove one.")


def _as_bar(node: Node) -> tuple[Binary, str]:
    if isinstance(node, Paren) and isinstance(node.inner, Binary):
        return node.inner, "diagonal" if node.inner.op == "||" else "unstructured"
    if isinstance(node, Call) and node.function in _WRAPPERS and len(node.args) == 1 and not node.kwargs:
        bar = node.args[0]
        if isinstance(bar, Binary) and bar.op == "|":
            return bar, _WRAPPERS[node.function]
    if isinstance(node, Binary) and node.op in _BARS:
        raise FormulaError(f"The random-effects term {node} needs parentheses: write '... + (1 | g)'.")
    raise FormulaError(
        f"A random-effects term can only be added: {node} combines one with something else. "
        "Write it as '+ (effects | group)'; for an interaction with x put x inside: (x | group)."
    )


def _expand_bar(lhs: Node, group: Node, structure: str) -> list[Bar]:
    linear = expand_linear([("+", lhs)])
    sep = "||" if structure == "diagonal" else "|"
    return [Bar(linear, parts, label, structure, f"{lhs} {sep} {label}") for parts, label in _groupings(group)]


def _groupings(group: Node) -> list[tuple[tuple[Node, ...], str]]:
    """Expand ``a/b``, ``a*b`` and ``a + b`` into interactions; a nested chain has its finest first."""
    group = _strip(group)
    if isinstance(group, Binary) and group.op == "/":
        outer, inner = _groupings(group.left), _groupings(group.right)
        return [_interact(i, outer[0]) for i in inner] + outer
    if isinstance(group, Binary) and group.op in "+*":
        left, right = _groupings(group.left), _groupings(group.right)
        crossed = [_interact(a, b) for a in left for b in right] if group.op == "*" else []
        return left + right + crossed
    if isinstance(group, Binary) and group.op == ":":
        return [_interact(a, b) for a in _groupings(group.left) for b in _groupings(group.right)]
    if not isinstance(group, Name | Call):
        raise FormulaError(f"{group} is no grouping factor; write a column, a call such as factor(f), a:b or a/b.")
    return [((group,), group.name if isinstance(group, Name) else str(group))]


def _interact(a: tuple[tuple[Node, ...], str], b: tuple[tuple[Node, ...], str]) -> tuple[tuple[Node, ...], str]:
    right = f"({b[1]})" if len(b[0]) > 1 else b[1]
    return a[0] + b[0], f"{a[1]}:{right}"


def _strip(node: Node) -> Node:
    while isinstance(node, Paren):
        node = node.inner
    return node


# --- Wilkinson-Rogers expansion --------------------------------------------------------------------------


def expand_linear(summands: list[Signed], dot: tuple[str, ...] = ()) -> Linear:
    """Expand a sum into terms sorted by degree, as ``stats::terms.formula`` does."""
    variables: dict[str, Node] = {}
    offsets: list[Node] = []
    terms: dict[Term, None] = {}
    intercept = True
    for sign, node in [pair for s, n in summands for pair in _summands(n, s)]:
        if isinstance(node, Number):
            intercept = (_zero_or_one(node) == 1) == (sign == "+")
        elif isinstance(node, Call) and node.function == "offset" and len(node.args) == 1 and sign == "+":
            offsets.append(node.args[0])
        elif sign == "+":
            terms.update(dict.fromkeys(_expand(node, variables, dot)))
        else:
            for term in _expand(node, variables, dot):
                terms.pop(term, None)
    ordered = tuple(sorted(terms, key=len))
    used = frozenset().union(*ordered)
    kept = tuple((label, node) for label, node in variables.items() if label in used)
    return Linear(kept, ordered, intercept, tuple(offsets))


def _zero_or_one(node: Number) -> float:
    if node.value not in (0, 1):
        raise FormulaError(f"The number {node} has no meaning in a formula; write 0 or 1, or I({node} * x).")
    return node.value


def _expand(node: Node, variables: dict[str, Node], dot: tuple[str, ...]) -> list[Term]:
    if isinstance(node, Paren):
        return _expand(node.inner, variables, dot)
    if isinstance(node, Binary) and node.op == "^":
        return _power(node, variables, dot)
    if isinstance(node, Binary) and node.op in ("+", "-", "*", "/", ":", "%in%"):
        left, right = _expand(node.left, variables, dot), _expand(node.right, variables, dot)
        return _COMBINE[node.op](left, right)
    if isinstance(node, Number):
        raise FormulaError(f"The number {node} cannot be part of an interaction; wrap arithmetic in I(...).")
    if node == Name("."):
        nodes: list[Node] = [Name(column) for column in dot]
    else:
        nodes = [node]
    for n in nodes:
        variables.setdefault(str(n), n)
    return [frozenset([str(n)]) for n in nodes]


def _power(node: Binary, variables: dict[str, Node], dot: tuple[str, ...]) -> list[Term]:
    degree = _strip(node.right)
    if not isinstance(degree, Number) or degree.value < 1 or degree.value != int(degree.value):
        raise FormulaError(f"In {node} the power must be a positive integer; for arithmetic write I({node}).")
    base = _expand(node.left, variables, dot)
    return reduce(_cross, [base] * int(degree.value))


def _unique(terms: list[Term]) -> list[Term]:
    return list(dict.fromkeys(terms))


def _interaction(left: list[Term], right: list[Term]) -> list[Term]:
    return _unique([a | b for a in left for b in right])


def _cross(left: list[Term], right: list[Term]) -> list[Term]:
    return _unique(left + right + _interaction(left, right))


def _nest(left: list[Term], right: list[Term]) -> list[Term]:
    return _unique(left + _interaction([frozenset().union(*left)], right))


_COMBINE = {
    "+": lambda a, b: _unique(a + b),
    "-": lambda a, b: [t for t in a if t not in b],
    "*": _cross,
    "/": _nest,
    ":": _interaction,
    "%in%": _interaction,
}


# --- updating --------------------------------------------------------------------------------------------


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
