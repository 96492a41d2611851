"""Columns of a linear predictor with the coding and the names of R's ``model.matrix``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lme_jax.errors import DataError, FormulaError
from lme_jax.formula.contrasts import contrast_matrix
from lme_jax.formula.expansion import Linear
from lme_jax.formula.notes import shown
from lme_jax.formula.syntax import Name, parse, walk
from lme_jax.formula.values import Factor, level_labels

Value = np.ndarray | Factor
Piece = tuple[np.ndarray, tuple[str, ...]]
# A dense design beyond this many bytes, or a factor of more levels than this as fixed effects, is a mistake.
MAX_BYTES = 16 * 2**30
MAX_LEVELS = 10_000


@dataclass(frozen=True)
class FactorCoding:
    """Levels and contrasts of a factor, fixed at training."""

    levels: np.ndarray
    labels: tuple[str, ...]
    contrasts: np.ndarray
    names: tuple[str, ...]


def factor_codings(
    values: Mapping[str, Value], chosen: Mapping[str, Any], linears: Iterable[Linear]
) -> dict[str, FactorCoding]:
    """The coding of every factor among the variables; `chosen` are the caller's contrasts."""
    factors = {label: v for label, v in values.items() if isinstance(v, Factor)}
    unknown = [k for k in chosen if k not in factors]
    if unknown:
        raise FormulaError(f"`contrasts` names {unknown}, but the factors in the formula are {list(factors)}.")
    if not factors:
        return {}
    by_contrast = _coded_by_contrasts(linears, frozenset(factors))
    return {
        label: _coding(f, chosen.get(label, f.contrast), label, label in by_contrast) for label, f in factors.items()
    }


def _coded_by_contrasts(linears: Iterable[Linear], factors: frozenset[str]) -> set[str]:
    found = set()
    for linear in linears:
        full = linear.full_coding(factors)
        found |= {v for i, term in enumerate(linear.terms) for v in term & factors if (i, v) not in full}
    return found


def _coding(factor: Factor, spec: Any, label: str, by_contrasts: bool) -> FactorCoding:
    k, n = len(factor.levels), len(factor.codes)
    if k > MAX_LEVELS or 8 * k * n > MAX_BYTES:
        raise DataError(
            f"{label} has {k} levels; as effects in X or Z they take {n} × {k} numbers, {8 * k * n / 2**30:.3g} GiB. "
            f"If it names groups write (1 | {label}); if it is a number stored as text, convert it."
        )
    labels = tuple(level_labels(factor.levels))
    if not by_contrasts:
        return FactorCoding(factor.levels, labels, np.empty((len(labels), 0)), ())
    matrix, names = contrast_matrix(factor, spec, label)
    return FactorCoding(factor.levels, labels, matrix, tuple(names))


def model_matrix(linear: Linear, values: Mapping[str, Value], codings: Mapping[str, FactorCoding], n: int) -> Piece:
    """Columns and names of one linear predictor; within a term the first variable runs fastest."""
    pieces: list[Piece] = [(np.ones((n, 1)), ("(Intercept)",))] if linear.intercept else []
    if linear.terms:
        order = {label: i for i, (label, _) in enumerate(linear.variables)}
        full = linear.full_coding(frozenset(order) & frozenset(codings))
        for i, term in enumerate(linear.terms):
            labels = sorted(term, key=order.__getitem__)
            parts = [_columns(v, values[v], codings.get(v), (i, v) in full) for v in labels]
            pieces.append(_product_of(parts, ":".join(labels)))
    if not pieces:
        return np.empty((n, 0)), ()
    if len(pieces) == 1 and linear.intercept:
        return pieces[0]
    return np.concatenate([p for p, _ in pieces], axis=1), tuple(name for _, names in pieces for name in names)


def _columns(label: str, value: Value, coding: FactorCoding | None, full: bool) -> Piece:
    if isinstance(value, Factor):
        assert coding is not None
        matrix, suffixes = (np.eye(len(coding.labels)), coding.labels) if full else (coding.contrasts, coding.names)
        # Code -1, a missing value in new data, picks the last row.
        padded = np.vstack([matrix, np.full(matrix.shape[1], np.nan)])
        return padded[value.codes], tuple(label + s for s in suffixes)
    if value.ndim == 1:
        return value[:, None], (label,)
    k = value.shape[1]
    return value, (label,) if k == 1 else tuple(f"{label}{j + 1}" for j in range(k))


def _product_of(parts: list[Piece], label: str) -> Piece:
    size = 8.0 * len(parts[0][0])
    for matrix, _ in parts:
        size *= matrix.shape[1]
    if len(parts) > 1 and size > MAX_BYTES:
        raise DataError(f"The interaction {label} takes {size / 2**30:.3g} GiB; it belongs in a random-effects term.")
    product = parts[0]
    for part in parts[1:]:
        product = _product(product, part)
    return product


def _product(a: Piece, b: Piece) -> Piece:
    columns = (b[0][:, :, None] * a[0][:, None, :]).reshape(len(a[0]), -1)
    return columns, tuple(f"{left}:{right}" for right in b[1] for left in a[1])


def recode(value: Factor, coding: FactorCoding, label: str) -> Factor:
    """A factor of new data by the levels of training; a level that these lack is an error."""
    positions = pd.Index(coding.levels).get_indexer(pd.Index(value.levels))
    used = np.unique(value.codes[value.codes >= 0])
    unseen = value.levels[used[positions[used] < 0]]
    if len(unseen):
        raise DataError(
            f"{label} has the levels {shown(unseen)} in the new data, which the training data did not; "
            f"known: {shown(coding.levels, 20)}."
        )
    return replace(value, codes=np.append(positions, -1)[value.codes], levels=coding.levels)


def recoded(value: Value, coding: FactorCoding | None, label: str) -> Value:
    """A variable of new rows by the levels of training."""
    if (coding is None) != isinstance(value, np.ndarray):
        kinds = ("a factor", "numeric") if coding is None else ("numeric", "a factor")
        raise DataError(f"{label} is {kinds[0]} in the new data but was {kinds[1]} when the model was fitted.")
    return recode(value, coding, label) if isinstance(value, Factor) and coding is not None else value


def all_levels(label: str) -> str:
    """How a person says which levels a factor has in all chunks."""
    columns = list(dict.fromkeys(part.name for part in walk(parse(label)) if isinstance(part, Name)))
    like = "like= (the moments of a chunk with all levels, or a frame that has them)"
    if len(columns) != 1:
        return f"Give moments() of every chunk {like}"
    return f"Give moments() of every chunk levels={{{columns[0]!r}: [all of them]}}, a Categorical, or {like}"


def check_same_codings(first: Mapping[str, FactorCoding], other: Mapping[str, FactorCoding]) -> None:
    """Raise DataError where the factors of two chunks of rows would not give the same columns."""
    for label in dict.fromkeys((*first, *other)):
        a, b = first.get(label), other.get(label)
        if a is None or b is None:
            raise DataError(f"{label} is a factor in one chunk and numeric in another; make it one type in all.")
        if a.labels != b.labels:
            raise DataError(
                f"{label} has the levels {shown(a.labels, 20)} in one chunk and {shown(b.labels, 20)} in another, so "
                f"their columns differ. {all_levels(label)}."
            )
        if a.names != b.names or not np.array_equal(a.contrasts, b.contrasts):
            raise DataError(f"{label} has other contrasts in one chunk than in another; give all the same contrasts=.")
