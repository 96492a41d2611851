"""The little language of residual structures: ``"ar1(visit | id)"``, ``"ident(sex) * power(age)"``; knows no data.

Words are those of R's mmrm where it has them. What nlme, SAS and glmmTMB call them is known here only to say so.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lme_jax.core.residual.registry import FAMILIES, VARIANCES
from lme_jax.errors import FormulaError
from lme_jax.formula.syntax import Binary, Call, Name, Node, Number, String, Unary, parse, walk
from lme_jax.formula.wrappers import strip

# Word → the names of its options; those whose clock are visits, those of distances.
OPTIONS = {word: tuple(entry.options) for word, entry in FAMILIES.items() if word != "ident"}
VISITS = tuple(word for word in OPTIONS if not FAMILIES[word].distance)
DISTANCES = tuple(word for word in OPTIONS if FAMILIES[word].distance)
METRICS = ("euclidean", "manhattan", "maximum")

_OTHERS = {
    "corar1": "ar1",
    "corcar1": "car1",
    "corarma": "arma",
    "corsymm": "us",
    "corcompsymm": "cs",
    "corexp": "sp_exp",
    "corgaus": "sp_gau",
    "corratio": "sp_rat",
    "un": "us",
    "unstructured": "us",
    "vc": "gls without residual=, or variance='ident(…)'",
    "ar": "ar1",
    "arh": "ar1h",
    "arh1": "ar1h",
    "hetar1": "ar1h",
    "hetcs": "csh",
    "homcs": "cs",
    "hettoep": "toeph",
    "homtoep": "toep",
    "ante": "adh",
    "ante1": "adh",
    "sp": "sp_exp, sp_gau or car1",
    "ou": "car1",
    "varident": "variance='ident(…)'",
    "varpower": "variance='power(…)'",
    "varexp": "variance='exp(…)'",
    "varconstpower": "variance='constpower(…)'",
    "varfixed": "variance='fixed(…)'",
    "varcomb": "variance='ident(…) * power(…)'",
    "corlin": "none: its likelihood has kinks; sp_exp, sp_gau and sp_rat are there",
    "corspher": "none: its likelihood has kinks; sp_exp, sp_gau and sp_rat are there",
}
_TRUTH = {"TRUE": True, "T": True, "True": True, "FALSE": False, "F": False, "False": False}
_SAS = re.compile(r"\s*(?:TYPE\s*=\s*(?!SP\b)(\w+)|(?:TYPE\s*=\s*)?SP\s*\(\s*(\w+)\s*\))", re.IGNORECASE)
_EXAMPLE = "write residual='ar1(visit | id)'"


@dataclass(frozen=True)
class CorrelationSpelling:
    """``word(clock | group / subject, options)``; no clock: the order of the rows; no subject: all rows are one's."""

    word: str
    clock: tuple[Node, ...]
    group: Node | None
    subject: tuple[Node, ...]
    options: tuple[tuple[str, Any], ...]
    text: str

    @property
    def by_visit(self) -> bool:
        return self.word in VISITS


@dataclass(frozen=True)
class VarianceSpelling:
    """``word(covariate | strata)``, ``ident(strata)``."""

    word: str
    covariate: Node | None
    strata: tuple[Node, ...]
    text: str


@dataclass(frozen=True)
class ResidualSpelling:
    """What ``residual=`` and ``variance=`` said."""

    correlation: CorrelationSpelling | None
    variances: tuple[VarianceSpelling, ...]

    @property
    def subjects(self) -> frozenset[str]:
        """The columns that name the subject: ``.`` in a formula does not stand for them."""
        parts = () if self.correlation is None else self.correlation.subject
        return frozenset(n.name for part in parts for n in walk(part) if isinstance(n, Name))

    @property
    def text(self) -> str:
        parts = [] if self.correlation is None else [self.correlation.text]
        return " × ".join(parts + [v.text for v in self.variances])


def read_residual(residual: Any, variance: Any) -> ResidualSpelling:
    """Both texts parsed."""
    for what, given in (("residual", residual), ("variance", variance)):
        if given is not None and not isinstance(given, str):
            raise FormulaError(f"{what}={given!r} must be text such as 'ar1(visit | id)' or 'ident(sex)'.")
    return ResidualSpelling(
        None if residual is None else parse_correlation(residual),
        () if variance is None else parse_variance(variance),
    )


# ---------------------------------------------------------------- correlation


@lru_cache(maxsize=256)
def parse_correlation(text: str) -> CorrelationSpelling:
    """The structure that a text spells."""
    _refuse_sas(text)
    return read_correlation(strip(parse(text)), text)


def _refuse_sas(text: str) -> None:
    """``TYPE=UN``, ``SP(EXP)(x)``: no formulas, so that the parser would only say where it stopped."""
    found = _SAS.match(text)
    if found is None:
        return
    word = f"sp_{found[2]}".lower() if found[2] else str(found[1]).lower()
    word = "car1" if word == "sp_pow" else _OTHERS.get(word, word)
    written = f"{word}(visit | id)" if word in VISITS else f"{word}(time | id)" if word in DISTANCES else word
    raise FormulaError(f"residual={text!r} is SAS's way: write {written!r}.")


def read_correlation(node: Node, text: str) -> CorrelationSpelling:
    """The structure that a node spells."""
    if isinstance(node, Binary) and node.op == "*":
        raise FormulaError(f"{text}: one residual= structure; variance functions go to variance=.")
    if isinstance(node, Name) or not isinstance(node, Call):
        word = node.name if isinstance(node, Name) else str(node)
        raise FormulaError(f"residual={text!r} is no structure: {_EXAMPLE}{_known(word)}")
    if node.function in VARIANCES and node.function not in OPTIONS:
        raise FormulaError(f"{node} is a variance function: pass it as variance={str(node)!r}.")
    if node.function not in OPTIONS:
        raise FormulaError(f"{node}: unknown residual structure {node.function}(){_known(node.function)}")
    clock, bar = _clock_and_bar(node)
    group, subject = _subject(bar, node)
    options = _options(node)
    if len(clock) > 1 and not node.function.startswith("sp_"):
        raise FormulaError(f"{node}: {node.function} takes one variable before the bar, not {len(clock)}.")
    return CorrelationSpelling(node.function, clock, group, subject, options, str(node))


def _known(word: str) -> str:
    """What a word of another package, or a misspelt one, may have meant."""
    plain = word.lower().replace("(1)", "")
    if plain in _OTHERS:
        return f"; the word here is {_OTHERS[plain]}."
    near = difflib.get_close_matches(plain, OPTIONS, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(OPTIONS)}."


def _clock_and_bar(node: Call) -> tuple[tuple[Node, ...], Node | None]:
    """The variables before the bar, and what stands after it."""
    if not node.args:
        raise FormulaError(f"{node} names no variables: write {node.function}(visit | id).")
    *first, last = node.args
    right: Node | None = None
    if isinstance(last, Binary) and last.op == "|":
        right, last = last.right, last.left
    elif isinstance(last, Binary) and last.op == "||":
        raise FormulaError(f"{node}: || has no meaning in a residual structure; write {node.function}(… | id).")
    clock = tuple(_bare(part, node) for part in (*first, last))
    if any(isinstance(part, Binary) and part.op == "|" for part in clock):
        raise FormulaError(f"{node} holds more than one '|'.")
    if len(clock) == 1 and isinstance(clock[0], Number):
        if clock[0].value != 1:
            raise FormulaError(f"{node}: write 1 for the order of the rows, or a variable, before the bar.")
        clock = ()
    return clock, right


def _bare(part: Node, node: Call) -> Node:
    """A variable, without the ``0 +`` of glmmTMB and the ``~`` of nlme."""
    part = strip(part)
    if isinstance(part, Unary) and part.op == "~":
        part = strip(part.operand)
    if isinstance(part, Binary) and part.op == "+" and part.left == Number("0"):
        part = strip(part.right)
    if isinstance(part, Binary) and part.op == "+":
        raise FormulaError(f"{node}: coordinates are separated by commas: {node.function}(x1, x2 | id).")
    return part


def _subject(bar: Node | None, node: Call) -> tuple[Node | None, tuple[Node, ...]]:
    """``arm / id`` or ``id`` after the bar: the group with parameters of its own, and the subject's parts."""
    if bar is None or bar == Number("1"):
        return None, ()
    bar, group = strip(bar), None
    if isinstance(bar, Binary) and bar.op == "/":
        group, bar = strip(bar.left), strip(bar.right)
        if isinstance(group, Binary):
            raise FormulaError(f"{node}: one group stands before the '/', such as (visit | arm / id), not {group}.")
    return group, _parts(bar, node)


def _parts(node: Node, whole: Node) -> tuple[Node, ...]:
    """The factors of ``a:b``."""
    node = strip(node)
    if isinstance(node, Binary) and node.op == ":":
        return (*_parts(node.left, whole), *_parts(node.right, whole))
    if not isinstance(node, Name | Call):
        raise FormulaError(f"{whole}: {node} is no factor; write a column, a call such as factor(f), or a:b.")
    return (node,)


def _options(node: Call) -> tuple[tuple[str, Any], ...]:
    allowed = OPTIONS[node.function]
    found = []
    for name, value in node.kwargs:
        if name not in allowed:
            can = f"takes {', '.join(allowed)}" if allowed else "takes no options"
            raise FormulaError(f"{node}: {node.function} {can}, not {name}.")
        found.append((name, _option(name, value, node)))
    if node.function == "arma" and not any(name in ("p", "q") and value for name, value in found):
        raise FormulaError(f"{node}: say the orders, such as arma(visit | id, p = 1, q = 1).")
    return tuple(found)


def _option(name: str, value: Node, node: Call) -> Any:
    if name == "nugget":
        truth = _TRUTH.get(value.name) if isinstance(value, Name) else None
        if truth is None:
            raise FormulaError(f"{node}: nugget must be TRUE or FALSE, not {value}.")
        return truth
    if name == "metric":
        metric = value.value if isinstance(value, String) else value.name if isinstance(value, Name) else None
        if metric not in METRICS:
            raise FormulaError(f"{node}: metric must be one of {', '.join(METRICS)}, not {value}.")
        return metric
    if not isinstance(value, Number) or not value.value.is_integer():
        raise FormulaError(f"{node}: {name} must be a whole number, not {value}.")
    return int(value.value)


# ---------------------------------------------------------------- variance


@lru_cache(maxsize=256)
def parse_variance(text: str) -> tuple[VarianceSpelling, ...]:
    """The variance functions that a text multiplies."""
    return tuple(_variance(part, text) for part in _factors(strip(parse(text)), text))


def _factors(node: Node, text: str) -> list[Node]:
    if isinstance(node, Unary) and node.op == "~":
        raise FormulaError(f"variance={text!r}: write a function, 'ident(sex)' for a variance per level.")
    if isinstance(node, Binary) and node.op == "*":
        return [*_factors(strip(node.left), text), *_factors(strip(node.right), text)]
    return [node]


def _variance(node: Node, text: str) -> VarianceSpelling:
    if not isinstance(node, Call) or node.function not in VARIANCES:
        word = node.function if isinstance(node, Call) else str(node)
        meant = _OTHERS.get(word.lower(), "")
        hint = f"; write {meant}." if meant.startswith("variance") else f"; there are {', '.join(VARIANCES)}."
        raise FormulaError(f"variance={text!r}: {node} is no variance function{hint} '*' joins several.")
    if node.kwargs or not node.args:
        raise FormulaError(f"{node}: write {node.function}({'stratum' if node.function == 'ident' else 'x'}).")
    if node.function == "ident":
        return VarianceSpelling("ident", None, _strata(node), str(node))
    if len(node.args) > 1:
        raise FormulaError(f"{node}: {node.function} takes one variable, and strata after a bar: (x | stratum).")
    covariate = strip(node.args[0])
    strata: tuple[Node, ...] = ()
    if isinstance(covariate, Binary) and covariate.op == "|":
        strata, covariate = _parts(covariate.right, node), strip(covariate.left)
    if node.function == "fixed" and strata:
        raise FormulaError(f"{node}: fixed has no parameters, so none by stratum: write fixed(x).")
    return VarianceSpelling(node.function, covariate, strata, str(node))


def _strata(node: Call) -> tuple[Node, ...]:
    parts: list[Node] = []
    for part in node.args:
        part = strip(part)
        if isinstance(part, Binary) and part.op == "|" and part.left == Number("1"):
            part = part.right
        parts += _parts(part, node)
    return tuple(parts)
