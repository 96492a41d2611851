"""Wilkinson-Rogers expansion of one linear predictor, term by term as ``stats::terms.formula`` does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lme_jax.errors import FormulaError
from lme_jax.formula.syntax import Binary, Call, Name, Node, Number, Paren, String, Unary

Term = frozenset[str]
MAX_TERMS = 20_000


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
        full: set[tuple[int, str]] = set()
        if not factors:
            return full
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


def expand_linear(node: Node | None, dot: tuple[str, ...] = (), response: Node | None = None) -> tuple[Linear, bool]:
    """Expand a right-hand side into terms sorted by degree.

    Parameters
    ----------
    node : Node or None
        None: nothing but the intercept.
    dot : column names that ``.`` stands for.
    response : Node, optional
        R counts it as the first variable and drops it as a term.

    Returns
    -------
    linear : Linear
    echoed : bool
        Whether the response was dropped.
    """
    expansion = _Expansion(dot)
    if response is not None:
        expansion.variables[str(response)] = response
    terms = [] if node is None else expansion.sum(node)
    alone = frozenset() if response is None else frozenset([str(response)])
    kept_terms = [term for term in terms if term != alone]
    ordered = tuple(sorted(kept_terms, key=len))
    used: Term = frozenset().union(*ordered)
    kept = tuple((label, variable) for label, variable in expansion.variables.items() if label in used)
    linear = Linear(kept, ordered, expansion.intercept, tuple(expansion.offsets))
    return linear, len(kept_terms) < len(terms)


class _Expansion:
    """What is collected on the way: variables, offsets and the intercept (the last 0 or 1 wins)."""

    def __init__(self, dot: tuple[str, ...]):
        self.dot = dot
        self.variables: dict[str, Node] = {}
        self.offsets: list[Node] = []
        self.intercept = True

    def sum(self, node: Node, kept: bool = True) -> list[Term]:
        """Terms of a node that stands in a sum; `kept` is False under an odd number of minus signs."""
        spine: list[Binary] = []
        while isinstance(node, Binary) and node.op in "+-":
            spine.append(node)
            node = node.left
        terms = dict.fromkeys(self.summand(node, kept))
        for binary in reversed(spine):
            if binary.op == "+":
                terms.update(dict.fromkeys(self.summand(binary.right, kept)))
            else:
                for term in self.summand(binary.right, not kept):
                    terms.pop(term, None)
        return list(terms)

    def summand(self, node: Node, kept: bool) -> list[Term]:
        if isinstance(node, Paren):
            return self.sum(node.inner, kept)
        if isinstance(node, Unary) and node.op == "+":
            return self.sum(node.operand, kept)
        if isinstance(node, Unary) and node.op == "-":
            self.sum(node.operand, not kept)
            return []
        if isinstance(node, Number):
            self.intercept = (_zero_or_one(node) == 1) == kept
            return []
        if _is_offset(node):
            if not kept:
                raise FormulaError(f"Cannot subtract {node}: an offset has no coefficient; add offset(-(…)) instead.")
            self.offsets.append(node.args[0])  # type: ignore[attr-defined]
            return []
        return self.product(node) if not _is_sum(node) else self.sum(node, kept)

    def product(self, node: Node) -> list[Term]:
        """Terms of a node that may be part of an interaction."""
        spine: list[Binary] = []
        while isinstance(node, Binary) and node.op in _COMBINE:
            spine.append(node)
            node = node.left
        terms = self.factor(node)
        for binary in reversed(spine):
            _refuse_membership(binary)
            terms = _COMBINE[binary.op](terms, self.product(binary.right))
            _check_size(terms, binary)
        return terms

    def factor(self, node: Node) -> list[Term]:
        if isinstance(node, Paren):
            return self.product(node.inner)
        if isinstance(node, Binary) and node.op == "^":
            return self.power(node)
        if isinstance(node, Unary) and node.op in "+-":
            if node.op == "-":
                raise FormulaError(f"{node} cannot be part of an interaction; for its negative write I({node}).")
            return self.product(node.operand)
        if isinstance(node, Number):
            raise FormulaError(f"The number {node} cannot be part of an interaction; wrap arithmetic in I(...).")
        if _is_offset(node):
            raise FormulaError(f"{node} cannot be part of an interaction; add it to the formula: + {node}.")
        nodes: list[Node] = [Name(column) for column in self.dot] if node == Name(".") else [node]
        for n in nodes:
            self.variables.setdefault(str(n), n)
        return [frozenset([str(n)]) for n in nodes]

    def power(self, node: Binary) -> list[Term]:
        degree = node.right
        while isinstance(degree, Paren):
            degree = degree.inner
        whole = isinstance(degree, Number) and degree.value >= 1 and degree.value % 1 == 0
        if not whole:
            raise FormulaError(f"In {node} the power must be a positive integer; for arithmetic write I({node}).")
        base = self.product(node.left)
        terms, left = base, degree.value - 1  # type: ignore[attr-defined]
        while left > 0:
            raised = _interaction(base, terms)
            _check_size(raised, node)
            if raised == terms:  # every further power is the same
                break
            terms, left = raised, left - 1
        return terms


def _is_offset(node: Node) -> bool:
    return isinstance(node, Call) and node.function == "offset" and len(node.args) == 1


def _is_sum(node: Node) -> bool:
    return isinstance(node, Binary) and node.op in "+-"


def _zero_or_one(node: Number) -> float:
    if node.value not in (0, 1):
        raise FormulaError(f"The number {node} has no meaning in a formula; write 0 or 1, or I({node} * x).")
    return node.value


def _refuse_membership(node: Binary) -> None:
    right = node.right.inner if isinstance(node.right, Paren) else node.right
    if node.op == "%in%" and (isinstance(right, String) or (isinstance(right, Call) and right.function == "c")):
        raise FormulaError(f"In a sum of terms %in% means nesting; to test membership write I({node}).")


def _check_size(terms: list[Term], node: Node) -> None:
    if len(terms) > MAX_TERMS:
        raise FormulaError(f"{str(node)[:60]} stands for more than {MAX_TERMS} terms.")


def _unique(terms: list[Term]) -> list[Term]:
    return list(dict.fromkeys(terms))


def _interaction(left: list[Term], right: list[Term]) -> list[Term]:
    return _unique([a | b for a in left for b in right])


def _cross(left: list[Term], right: list[Term]) -> list[Term]:
    return _unique(left + right + _interaction(left, right))


def _nest(left: list[Term], right: list[Term]) -> list[Term]:
    return _unique(left + _interaction([frozenset().union(*left)], right))


def _within(left: list[Term], right: list[Term]) -> list[Term]:
    return _interaction(left, [frozenset().union(*right)])


_COMBINE: dict[str, Callable[[list[Term], list[Term]], list[Term]]] = {
    "+": lambda a, b: _unique(a + b),
    "-": lambda a, b: [t for t in a if t not in b],
    "*": _cross,
    "/": _nest,
    ":": _interaction,
    "%in%": _within,
}
