"""Tokens, syntax tree and deparsing of R formulas; knows nothing of data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from lme_jax.errors import FormulaError


class Node:
    """A node of the syntax tree; ``str(node)`` writes it as R's ``deparse`` does."""


@dataclass(frozen=True)
class Name(Node):
    name: str

    def __str__(self) -> str:
        return self.name if _SYNTACTIC.fullmatch(self.name) else f"`{self.name}`"


@dataclass(frozen=True)
class Number(Node):
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def value(self) -> float:
        return float(self.text.rstrip("L"))


@dataclass(frozen=True)
class String(Node):
    value: str

    def __str__(self) -> str:
        return f'"{self.value}"'


@dataclass(frozen=True)
class Call(Node):
    function: str
    args: tuple[Node, ...]
    kwargs: tuple[tuple[str, Node], ...]

    def __str__(self) -> str:
        inner = [str(a) for a in self.args] + [f"{k} = {v}" for k, v in self.kwargs]
        return f"{self.function}({', '.join(inner)})"


@dataclass(frozen=True)
class Binary(Node):
    op: str
    left: Node
    right: Node

    def __str__(self) -> str:
        gap = "" if self.op in _TIGHT else " "
        return f"{self.left}{gap}{self.op}{gap}{self.right}"


@dataclass(frozen=True)
class Unary(Node):
    op: str
    operand: Node

    def __str__(self) -> str:
        return f"{self.op}{self.operand}"


@dataclass(frozen=True)
class Paren(Node):
    inner: Node

    def __str__(self) -> str:
        return f"({self.inner})"


_SYNTACTIC = re.compile(r"(?:[^\W\d_]|\.(?!\d))[\w.]*")
_TIGHT = frozenset("/:^")
_TOKEN = re.compile(
    r"""
    (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?L?)
  | (?P<name>(?:[^\W\d]|\.(?!\d))[\w.]*)
  | `(?P<quoted>[^`]+)`
  | (?P<string>"[^"]*"|'[^']*')
  | (?P<op>%in%|\*\*|\|\||&&|==|!=|<=|>=|[-+*/:^|~(),=<>!&])
    """,
    re.VERBOSE,
)
# R's precedences, from ?Syntax; "^" associates to the right.
_BINDING = {
    "~": 0,
    "|": 1,
    "||": 1,
    "&": 2,
    "&&": 2,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "%in%": 7,
    ":": 8,
    "^": 10,
}
_BINDING |= dict.fromkeys(("==", "!=", "<", ">", "<=", ">="), 4)
_UNARY_BINDING = {"~": 0, "!": 3, "+": 9, "-": 9}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokenize(text: str) -> list[_Token]:
    tokens, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise FormulaError(f"Cannot read {text[at]!r} at position {at} of the formula {text!r}.")
        kind = str(match.lastgroup)
        value = "^" if match[0] == "**" else match[kind]
        tokens.append(_Token(kind, value[1:-1] if kind == "string" else value, at))
        at = match.end()
    return [*tokens, _Token("end", "", len(text))]


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens = _tokenize(text)
        self.i = 0

    def parse(self) -> Node:
        node = self.binary(0)
        if self.tokens[self.i].kind != "end":
            self.fail()
        return node

    def binary(self, floor: int) -> Node:
        left = self.operand()
        while True:
            token = self.tokens[self.i]
            binding = _BINDING.get(token.text, -1) if token.kind == "op" else -1
            if binding < floor:
                return left
            self.i += 1
            left = Binary(token.text, left, self.binary(binding if token.text == "^" else binding + 1))

    def operand(self) -> Node:
        token = self.tokens[self.i]
        if token.kind == "op" and token.text in _UNARY_BINDING:
            self.i += 1
            return Unary(token.text, self.binary(_UNARY_BINDING[token.text]))
        if token.kind == "op" and token.text == "(":
            self.i += 1
            inner = self.binary(0)
            self.close()
            return Paren(inner)
        if token.kind in ("end", "op"):
            self.fail()
        self.i += 1
        if token.kind == "number":
            return Number(token.text)
        if token.kind == "string":
            return String(token.text)
        following = self.tokens[self.i]
        if token.kind == "name" and following.kind == "op" and following.text == "(":
            self.i += 1
            return self.call(token.text)
        return Name(token.text)

    def call(self, function: str) -> Call:
        args: list[Node] = []
        kwargs: list[tuple[str, Node]] = []
        while not self.at(")"):
            if self.tokens[self.i].kind == "name" and self.tokens[self.i + 1].text == "=":
                key = self.tokens[self.i].text
                self.i += 2
                kwargs.append((key, self.binary(0)))
            else:
                args.append(self.binary(0))
            if not self.at(","):
                break
            self.i += 1
        self.close()
        return Call(function, tuple(args), tuple(kwargs))

    def at(self, text: str) -> bool:
        token = self.tokens[self.i]
        return token.kind == "op" and token.text == text

    def close(self) -> None:
        if not self.at(")"):
            self.fail()
        self.i += 1

    def fail(self) -> None:
        token = self.tokens[self.i]
        before = self.tokens[self.i - 1].text if self.i else ""
        where = f"at position {token.at} of the formula {self.text!r}"
        if before in ("|", "||"):
            raise FormulaError(f"A random-effects term has no grouping factor after {before!r} {where}; write (1 | g).")
        if token.text in ("|", "||"):
            raise FormulaError(f"A random-effects term has no effects before {token.text!r} {where}; write (1 | g).")
        if token.kind == "end":
            raise FormulaError(f"The formula {self.text!r} ends too early: a ')' or an operand is missing.")
        raise FormulaError(f"Unexpected {token.text!r} {where}.")


def parse(text: str) -> Node:
    """Parse R formula text into a syntax tree.

    Raises
    ------
    FormulaError
        If the text is not a formula.
    """
    return _Parser(text).parse()


def children(node: Node) -> Iterator[Node]:
    """Yield the direct sub-expressions of a node."""
    for field in fields(node):  # type: ignore[arg-type]
        value = getattr(node, field.name)
        if isinstance(value, Node):
            yield value
        elif field.name == "args":
            yield from value
        elif field.name == "kwargs":
            yield from (v for _, v in value)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and everything below it."""
    yield node
    for child in children(node):
        yield from walk(child)
