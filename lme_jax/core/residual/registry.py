"""All structures by their words."""

import difflib
from typing import Any

from ...errors import DataError
from .distances import BY_DISTANCE
from .families import Family, Options
from .terms import Correlation
from .variances import VARIANCES, VarianceFamily
from .visits import BY_VISIT

FAMILIES: dict[str, Family] = {**BY_VISIT, **BY_DISTANCE}

__all__ = ["FAMILIES", "VARIANCES", "VarianceFamily", "family", "read_options", "variance_family"]


def _look_up(word: str, table: dict[str, Any], what: str) -> Any:
    if word in table:
        return table[word]
    near = difflib.get_close_matches(str(word), table, 1)
    hint = f": did you mean {near[0]!r}?" if near else f"; choose from {', '.join(table)}"
    raise DataError(f"unknown {what} {word!r}{hint}")


def family(word: str) -> Family:
    """The entry of a correlation structure."""
    return _look_up(word, FAMILIES, "residual structure")


def variance_family(word: str) -> VarianceFamily:
    """The entry of a variance function."""
    return _look_up(word, VARIANCES, "variance function")


def read_options(term: Correlation) -> Options:
    """The options of a structure, checked, with their defaults."""
    known, given = family(term.word).options, dict(term.options)
    for name in given:
        if name not in known:
            has = f"has the options {', '.join(known)}" if known else "has no options"
            raise DataError(f"{term.word} has no option {name!r}: it {has}")
    options = {**known, **given}
    if term.word == "arma":
        p, q = options["p"], options["q"]
        if not all(isinstance(o, int) and o >= 0 for o in (p, q)) or p + q == 0:
            raise DataError(f"arma needs orders p and q, whole numbers ≥ 0 and not both 0; got p={p}, q={q}")
    return options
