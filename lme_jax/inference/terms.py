"""Which columns of X belong to which term of the formula."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..formula import Design


def fixed_terms(design: Design) -> dict[str, list[int]]:
    """Term → its columns among those that were kept; columns themselves where no formula says more."""
    state: Any = design.state
    if hasattr(state, "parsed"):
        return _kept(lme4_terms(state), state.keep)
    if hasattr(state, "fixed") and hasattr(state.fixed, "spec"):
        indices = state.fixed.spec.term_indices
        named = {"Intercept" if str(term) == "1" else str(term): list(columns) for term, columns in indices.items()}
        return _kept(named, np.arange(len(state.fixed.names))[state.keep])
    return {name: [j] for j, name in enumerate(design.exog_names)}


def _kept(terms: Mapping[str, list[int]], keep: np.ndarray) -> dict[str, list[int]]:
    places = {int(column): j for j, column in enumerate(keep)}
    out = {name: [places[c] for c in columns if c in places] for name, columns in terms.items()}
    return {name: columns for name, columns in out.items() if columns}


def lme4_terms(state: Any) -> dict[str, list[int]]:
    """Terms of an lme4 formula in R's order, with their columns before dependent ones were dropped."""
    linear = state.parsed.fixed
    first: dict[str, list[int]] = {"(Intercept)": [0]} if linear.intercept else {}
    return first | term_columns(linear, state)


def term_columns(linear: Any, state: Any) -> dict[str, list[int]]:
    """Terms of a linear predictor of an lme4 formula, but for the intercept, with their columns."""
    out, at = {}, int(linear.intercept)
    for labels, full in coded_terms(linear, state.codings):
        size = int(np.prod([_width(state, label, label in full) for label in labels]))
        out[":".join(labels)] = list(range(at, at + size))
        at += size
    return out


def coded_terms(linear: Any, codings: Mapping[str, Any]) -> list[tuple[list[str], set[str]]]:
    """Per term its variables, the first of them fastest, and which of them are coded by indicators."""
    order = {label: i for i, (label, _) in enumerate(linear.variables)}
    full = linear.full_coding(frozenset(order) & frozenset(codings))
    terms = enumerate(linear.terms)
    return [(sorted(term, key=order.__getitem__), {v for v in term if (i, v) in full}) for i, term in terms]


def _width(state: Any, label: str, full: bool) -> int:
    """Columns that a variable brings to a term."""
    coding = state.codings.get(label)
    if coding is None:
        return int(state.widths[label])
    return len(coding.labels) if full else len(coding.names)
