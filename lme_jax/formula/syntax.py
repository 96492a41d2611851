"""Tokens, syntax tree and deparsing of R formulas; knows nothing of data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lme_jax.errors import FormulaError

# Deeper nesting than anybody writes; Python's stack would end at a few hundred.
MAX_DEPTH = 60


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
        whole = self.text.endswith("L") and self.value.is_integer()
        return f"{self.value:.0f}" if whole else number_text(self.value)

    @property
    def value(self) -> float:
        return float(self.text.rstrip("L"))


@dataclass(frozen=True)
class String(Node):
    value: str

    def __str__(self) -> str:
        escaped = self.value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'


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
        pieces: list[str] = []
        node: Node = self
        while isinstance(node, Binary):  # along the left, where sums of a thousand variables are deep
            gap = "" if node.op in _TIGHT else " "
            pieces.append(f"{gap}{node.op}{gap}{node.right}")
            node = node.left
        return "".join([str(node), *reversed(pieces)])


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
_TIGHT = frozenset(("/", ":", "^", "%%", "%/%"))
_COMPARISONS = ("==", "!=", "<", ">", "<=", ">=")
_TOKEN = re.compile(
    r"""
    (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?L?)
  | (?P<name>(?:[^\W\d]|\.(?!\d))[\w.]*(?:::[^\W\d][\w.]*)?)
  | `(?P<quoted>[^`]+)`
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<op>%in%|%/%|%%|\*\*|\|\||&&|==|!=|<=|>=|[-+*/:^|~(),=<>!&\[\];])
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
    "%%": 7,
    "%/%": 7,
    ":": 8,
    "^": 10,
}
_BINDING |= dict.fromkeys(_COMPARISONS, 4)
_UNARY_BINDING = {"~": 0, "!": 3, "+": 9, "-": 9}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def number_text(value: float) -> str:
    """A number as R deparses it: 15 significant digits, fixed or scientific, whichever is shorter."""
    if not math.isfinite(value):
        return "Inf" if value > 0 else "-Inf" if value < 0 else "NaN"
    digits = next(d for d in range(15, 0, -1) if d == 1 or f"{value:.{d - 1}e}"[: d + 1][-1] != "0")
    scientific = f"{value:.{digits - 1}e}"
    exponent = int(scientific.split("e")[1])
    fixed = f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return fixed if len(fixed) <= len(scientific) else scientific


def _skip(text: str, at: int) -> int:
    """The position after blanks and a comment, which runs from ``#`` to the end of its line."""
    while at < len(text) and (text[at].isspace() or text[at] == "#"):
        if text[at] == "#":
            at = text.find("\n", at)
            if at < 0:
                return len(text)
        at += 1
    return at


_HINTS = {
    "$": " Name the column alone: x, not data$x.",
    "`": " A backtick opens a name and has no partner.",
    '"': " A quotation mark has no partner.",
    "'": " A quotation mark has no partner.",
}


def _tokenize(text: str) -> list[_Token]:
    tokens, at = [], _skip(text, 0)
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            hint = _HINTS.get(text[at], "")
            raise FormulaError(f"Cannot read {text[at]!r} at position {at} of the formula {text!r}.{hint}")
        kind = str(match.lastgroup)
        value = "^" if match[0] == "**" else match[kind]
        tokens.append(_Token(kind, _unescape(value[1:-1]) if kind == "string" else value, at))
        at = _skip(text, match.end())
    if tokens and tokens[-1].kind == "op" and tokens[-1].text == ";":
        tokens.pop()
    return [*tokens, _Token("end", "", len(text))]


def _unescape(text: str) -> str:
    plain = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda m: plain.get(m[1], m[1]), text) if "\\" in text else text


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens = _tokenize(text)
        self.i = 0
        self.depth = 0

    def parse(self) -> Node:
        node = self.binary(0)
        if self.tokens[self.i].kind != "end":
            self.fail()
        return node

    def binary(self, floor: int) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"The formula {self.text[:60]!r}… is nested more than {MAX_DEPTH} levels deep.")
        left = self.operand()
        while True:
            token = self.tokens[self.i]
            binding = _BINDING.get(token.text, -1) if token.kind == "op" else -1
            if binding < floor:
                self.depth -= 1
                return left
            if token.text in _COMPARISONS and isinstance(left, Binary) and left.op in _COMPARISONS:
                raise FormulaError(f"Comparisons cannot be chained in {self.text!r}; join two with &.")
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
        if token.kind == "op" and token.text == "[":
            self.i += 1
            return Call("c", *self.arguments("]"))
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

    def call(self, function: str) -> Node:
        args, kwargs = self.arguments(")")
        if function == "Q" and len(args) == 1 and isinstance(args[0], String) and not kwargs:
            return Name(args[0].value)
        return Call(function, args, kwargs)

    def arguments(self, end: str) -> tuple[tuple[Node, ...], tuple[tuple[str, Node], ...]]:
        args: list[Node] = []
        kwargs: list[tuple[str, Node]] = []
        while not self.at(end):
            if self.tokens[self.i].kind == "name" and self.tokens[self.i + 1].text == "=":
                key = self.tokens[self.i].text
                self.i += 2
                kwargs.append((key, self.binary(0)))
            else:
                args.append(self.binary(0))
            if not self.at(","):
                break
            self.i += 1
        self.close(end)
        return tuple(args), tuple(kwargs)

    def at(self, text: str) -> bool:
        token = self.tokens[self.i]
        return token.kind == "op" and token.text == text

    def close(self, end: str = ")") -> None:
        if not self.at(end):
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


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-expressions of a node."""
    if isinstance(node, Binary):
        return node.left, node.right
    if isinstance(node, Call):
        return (*node.args, *(value for _, value in node.kwargs))
    if isinstance(node, Paren):
        return (node.inner,)
    return (node.operand,) if isinstance(node, Unary) else ()


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and everything below it, from left to right."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(children(node)))
