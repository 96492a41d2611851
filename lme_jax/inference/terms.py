"""Which columns of X belong to which term of the formula."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..formula import Design


def fixed_terms(design: Design) -> dict[str, list[int]]:
    """Term → its columns among those that were kept; columns themselves where no formula says more."""
    state: Any = design.state
    if hasattr(state, "parsed"):
        return _kept(_lme4_terms(state, _all_names(design)), state.keep)
    if hasattr(state, "fixed") and hasattr(state.fixed, "spec"):
        indices = state.fixed.spec.term_indices
        named = {"Intercept" if str(term) == "1" else str(term): list(columns) for term, columns in indices.items()}
        return _kept(named, np.arange(len(state.fixed.names))[state.keep])
    return {name: [j] for j, name in enumerate(design.exog_names)}


def _kept(terms: Mapping[str, list[int]], keep: np.ndarray) -> dict[str, list[int]]:
    places = {int(column): j for j, column in enumerate(keep)}
    out = {name: [places[c] for c in columns if c in places] for name, columns in terms.items()}
    return {name: columns for name, columns in out.items() if columns}


def _all_names(design: Design) -> list[str]:
    """Names of the columns before dependent ones were dropped."""
    state: Any = design.state
    names = dict(zip(np.asarray(state.keep).tolist(), design.exog_names, strict=True))
    dropped = iter(design.dropped_columns)
    return [names[j] if j in names else next(dropped) for j in range(len(names) + len(design.dropped_columns))]


def _lme4_terms(state: Any, names: Sequence[str]) -> dict[str, list[int]]:
    """Terms of an lme4 formula in R's order; a term's columns stand side by side, first variable fastest."""
    linear, codings = state.parsed.fixed, state.codings
    order = {label: i for i, (label, _) in enumerate(linear.variables)}
    full = linear.full_coding(frozenset(order) & frozenset(codings))
    out: dict[str, list[int]] = {"(Intercept)": [0]} if linear.intercept else {}
    at = len(out)
    for i, term in enumerate(linear.terms):
        labels = sorted(term, key=order.__getitem__)
        parts = {label: _factor_parts(label, codings.get(label), (i, label) in full) for label in labels}
        size = _n_columns(parts, names, at)
        out[":".join(labels)] = list(range(at, at + size))
        at += size
    return out


def _factor_parts(label: str, coding: Any, full: bool) -> list[str] | None:
    """What a factor contributes to the names of a term's columns; None for numbers."""
    return None if coding is None else [label + suffix for suffix in (coding.labels if full else coding.names)]


def _n_columns(parts: Mapping[str, list[str] | None], names: Sequence[str], at: int) -> int:
    """Columns of the term that begins at ``at``: numbers have one, or, such as poly(x, 2), label1, label2, …"""
    choices = [[label, f"{label}1"] if own is None else own[:1] for label, own in parts.items()]
    first = next((list(c) for c in itertools.product(*choices) if ":".join(c) == names[at]), list(parts))
    size = 1
    for j, (label, own) in enumerate(parts.items()):
        if own is not None:
            size *= len(own)
        elif first[j] != label:
            count = 1
            for name in names[at + size :: size]:
                if name != ":".join([*first[:j], f"{label}{count + 1}", *first[j + 1 :]]):
                    break
                count += 1
            size *= count
    return size
