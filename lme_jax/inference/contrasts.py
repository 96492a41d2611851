"""Families of contrasts among k means as matrices (r, k), and compact letter displays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..formula.values import level_labels

DEGREES = ("linear", "quadratic", "cubic", "quartic")


class Family(NamedTuple):
    """Contrasts of k means.

    Attributes
    ----------
    K : (r, k); names : r labels; adjust : what suits their p-values; all_pairs : whether they are all the differences.
    """

    K: np.ndarray
    names: list[str]
    adjust: str
    all_pairs: bool = False


def family(method: Any, labels: Sequence[str], ref: Any = None) -> Family:
    """The contrasts that a method's name, a matrix (r, k) or a mapping of names to k coefficients stands for."""
    if isinstance(method, str):
        if method not in METHODS:
            raise DataError(f"contrast: the method {method!r} is unknown; use {', '.join(METHODS)}, or coefficients")
        if ref is not None and not method.startswith("trt.vs.ctrl"):
            raise DataError(f"contrast: ref= belongs to 'trt.vs.ctrl', not to {method!r}")
        if len(labels) < 2:
            raise DataError(f"contrast: {method!r} compares two means or more, and there is one in each family")
        return METHODS[method](list(labels), ref)
    return _given(method, labels)


def _given(method: Any, labels: Sequence[str]) -> Family:
    names = list(map(str, method)) if isinstance(method, Mapping) else None
    rows = list(method.values()) if isinstance(method, Mapping) else method
    try:
        K = np.atleast_2d(np.asarray(rows, float))
    except (TypeError, ValueError) as error:
        raise DataError(f"contrast: {method!r} is neither a method nor a matrix of coefficients") from error
    if K.shape[1] != len(labels) or K.ndim != 2 or len(K) == 0:
        raise DataError(f"contrast: give {len(labels)} coefficients, one for each of {', '.join(labels)}: {K.shape[1]}")
    return Family(K, names or [f"c{i + 1}" for i in range(len(K))], "none")


def _difference(a: str, b: str) -> str:
    return " - ".join(f"({part})" if " - " in part else part for part in (a, b))


def _pairs(labels: list[str], signs: int) -> Family:
    k = len(labels)
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)]
    eye = np.eye(k)
    K = np.array([signs * (eye[i] - eye[j]) for i, j in pairs]).reshape(-1, k)
    ordered = pairs if signs > 0 else [(j, i) for i, j in pairs]
    return Family(K, [_difference(labels[i], labels[j]) for i, j in ordered], "tukey", all_pairs=True)


def _against(labels: list[str], ref: Any) -> Family:
    """Each mean less the one of reference: its label, or its position (-1 is the last)."""
    at = position(labels, 0 if ref is None else ref)
    others = [i for i in range(len(labels)) if i != at]
    eye = np.eye(len(labels))
    return Family(eye[others] - eye[at], [_difference(labels[i], labels[at]) for i in others], "mvt")


def position(labels: Sequence[str], ref: Any) -> int:
    """Where a label, or else a position, stands."""
    text = level_labels(np.asarray([ref]))[0]
    if text in labels:
        return list(labels).index(text)
    if isinstance(ref, (int, np.integer)) and -len(labels) <= ref < len(labels):
        return int(ref) % len(labels)
    raise DataError(f"ref={ref!r} is none of {', '.join(labels)}")


def _steps(labels: list[str], ref: Any) -> Family:
    k = len(labels)
    names = [_difference(labels[i + 1], labels[i]) for i in range(k - 1)]
    return Family(np.diff(np.eye(k), axis=0), names, "mvt")


def _effects(labels: list[str], ref: Any) -> Family:
    k = len(labels)
    return Family(np.eye(k) - 1.0 / k, [f"{label} effect" for label in labels], "fdr")


def _polynomials(labels: list[str], ref: Any) -> Family:
    """Orthogonal polynomials in the positions 1 … k, scaled to whole numbers as in tables."""
    k = len(labels)
    degree = min(6, k - 1)
    powers = np.vander(np.arange(k) - (k - 1) / 2.0, degree + 1, increasing=True)
    rows = [_whole(column * np.sign(column[-1])) for column in np.linalg.qr(powers)[0].T[1:]]
    names = [DEGREES[d] if d < len(DEGREES) else f"degree {d + 1}" for d in range(degree)]
    return Family(np.array(rows).reshape(-1, k), names, "none")


def _whole(column: np.ndarray) -> np.ndarray:
    """A multiple of the coefficients that is whole, by emmeans' rule."""
    column = column / column[column > 0.01].min()
    while (off := np.abs(column - np.round(column)).max()) > 0.05:
        column = column / off
    return np.round(column)


METHODS: dict[str, Callable[[list[str], Any], Family]] = {
    "pairwise": lambda labels, ref: _pairs(labels, 1),
    "revpairwise": lambda labels, ref: _pairs(labels, -1),
    "trt.vs.ctrl": _against,
    "consec": _steps,
    "poly": _polynomials,
    "eff": _effects,
}


# ---------------------------------------------------------------- letters


def letters(order: Sequence[int], differ: np.ndarray) -> list[str]:
    """Compact letter display: means that share a letter do not differ.

    Parameters
    ----------
    order : the means in the order in which letters are given; the texts are in this order too.
    differ : (k, k) symmetric, whether two means differ.

    References
    ----------
    Piepho (2004), J. Comput. Graph. Stat. 13, 456–466: insert and absorb, then sweep.
    """
    columns = [frozenset(order)]
    for i, j in ((i, j) for a, i in enumerate(order) for j in order[a + 1 :]):
        if differ[i, j]:
            split = [part for c in columns for part in ((c - {i}, c - {j}) if {i, j} <= c else (c,))]
            columns = _absorbed(split)
    columns = _swept(columns)
    rank = {mean: place for place, mean in enumerate(order)}
    columns.sort(key=lambda c: sorted(rank[mean] for mean in c))
    return ["".join(_letter(n) if i in c else "" for n, c in enumerate(columns)) for i in order]


def _absorbed(columns: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    unique = list(dict.fromkeys(columns))
    return [c for c in unique if not any(c < other for other in unique)]


def _swept(columns: list[frozenset[int]]) -> list[frozenset[int]]:
    """Without columns all of whose pairs stand together in others too."""
    kept = list(columns)
    for column in columns:
        rest = [c for c in kept if c != column]
        pairs = [{i, j} for i in column for j in column]
        if rest and all(any(pair <= c for c in rest) for pair in pairs):
            kept = rest
    return kept


def _letter(n: int) -> str:
    text = ""
    while n >= 0:
        text, n = chr(ord("a") + n % 26) + text, n // 26 - 1
    return text
