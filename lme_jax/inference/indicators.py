"""The design with all its factors coded by indicators of all levels, as combinations of the columns of X.

Which combinations they are follows from the coding, not from the rows, but for columns that were dropped: made-up rows,
in which every combination of levels occurs that a term can have, tell them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..errors import UnsupportedError
from ..formula import Design
from ..formula.matrix import model_matrix
from ..formula.values import Factor
from .terms import coded_terms

Variables = dict[str, tuple[frozenset[str], frozenset[str]]]
# Entries below are rounding of numbers of order one.
ROUNDING = 1e-12


class Indicators(NamedTuple):
    """All columns with indicators.

    Attributes
    ----------
    combined : (p, P) them as combinations of the kept columns of X.
    spans : term → its columns.
    preferred : columns in the order in which a basis of them is looked for: what treatment contrasts would keep first.
    """

    combined: np.ndarray
    spans: dict[str, slice]
    preferred: np.ndarray


class _Rows(NamedTuple):
    """Made-up rows: all columns of X (n, k), those with indicators (n, P), and ``Indicators``' other fields."""

    X: np.ndarray
    every: np.ndarray
    spans: dict[str, slice]
    preferred: np.ndarray


def variables(design: Design) -> Variables | None:
    """Term → its factors and its covariates, the intercept left out; None of a design of arrays."""
    state: Any = design.state
    if hasattr(state, "parsed"):
        terms, factors = [own for own, _ in coded_terms(state.parsed.fixed, state.codings)], frozenset(state.codings)
        return {":".join(t): (frozenset(t) & factors, frozenset(t) - factors) for t in terms}
    if not (hasattr(state, "fixed") and hasattr(state.fixed, "spec")):
        return None
    factors = frozenset(_levels(state))
    return {name: (frozenset(t) & factors, frozenset(t) - factors) for name, t in _formulaic_terms(state).items()}


def indicators(design: Design) -> Indicators:
    """``Indicators`` of a design with a formula."""
    state: Any = design.state
    rows = _rows_of_lmer(state) if hasattr(state, "parsed") else _rows_of_formulaic(state)
    whole = np.linalg.lstsq(rows.X, rows.every, rcond=None)[0]
    keep = np.asarray(state.keep)
    lost = np.setdiff1d(np.arange(len(whole)), keep)
    if len(lost) and state.columns.dependence.shape != (len(keep), len(lost)):
        raise UnsupportedError("type III is not known where missing responses took columns away: fit with lmer()")
    combined = whole[keep] + (state.columns.dependence @ whole[lost] if len(lost) else 0.0)
    return Indicators(zapped(combined), rows.spans, rows.preferred)


def zapped(values: np.ndarray) -> np.ndarray:
    """Rounding set to zero."""
    return np.where(np.abs(values) < ROUNDING * max(float(np.abs(values).max(initial=0.0)), 1.0), 0.0, values)


def _rows_of_lmer(state: Any) -> _Rows:
    linear, codings, widths = state.parsed.fixed, state.codings, state.widths
    terms = coded_terms(linear, codings)
    values, n = _made_up([own for own, _ in terms], codings, widths)
    all_levels = {k: replace(c, contrasts=np.eye(len(c.labels)), names=c.labels) for k, c in codings.items()}
    X, every = (model_matrix(linear, values, coding, n)[0] for coding in (codings, all_levels))
    spans, masks, at = {}, [np.ones(int(linear.intercept), bool)], int(linear.intercept)
    for labels, full in terms:
        mask = np.ones(1, bool)
        for label in labels:
            k = len(codings[label].labels) if label in codings else widths[label]
            kept = np.arange(k) > 0 if label in codings and label not in full else np.ones(k, bool)
            mask = np.kron(kept, mask)
        spans[":".join(labels)] = slice(at, at + len(mask))
        masks.append(mask)
        at += len(mask)
    return _Rows(X, every, spans, np.flatnonzero(np.concatenate(masks)))


def _made_up(
    terms: Sequence[Sequence[str]], codings: Mapping[str, Any], widths: Mapping[str, int]
) -> tuple[dict[str, Any], int]:
    """Values of the variables in n made-up rows, numbers at random, and n."""
    rng = np.random.default_rng(0)
    labels = [*dict.fromkeys(label for own in terms for label in own)]
    sizes = {label: len(codings[label].labels) for label in labels if label in codings}
    blocks: dict[str, list[np.ndarray]] = {label: [] for label in sizes}
    n = 2 * sum(widths.values()) + 2
    for own in terms:
        factors = [label for label in own if label in sizes]
        shape = tuple(sizes[f] for f in factors)
        repeats = 2 * int(np.prod([widths[label] for label in own if label not in sizes])) + 2
        cell = np.tile(np.arange(int(np.prod(shape))), repeats)
        codes = dict(zip(factors, np.unravel_index(cell, shape), strict=True)) if factors else {}
        for label in sizes:
            drawn = codes.get(label)
            blocks[label].append(rng.integers(sizes[label], size=len(cell)) if drawn is None else drawn)
        n = max(n, sum(map(len, blocks[next(iter(sizes))])) if sizes else n)
    values: dict[str, Any] = {k: rng.standard_normal((n, widths[k])) for k in labels if k not in sizes}
    for label, parts in blocks.items():
        parts.append(rng.integers(sizes[label], size=n - sum(map(len, parts))))
        values[label] = Factor(np.concatenate(parts), codings[label].levels)
    return values, n


# ---------------------------------------------------------------- formulas of statsmodels


def _levels(state: Any) -> dict[str, list[Any]]:
    """Factor, as the formula writes it → its levels."""
    return {factor.expr: list(coding.levels) for factor, coding in state.fixed.spec.factor_contrasts.items()}


def _formulaic_terms(state: Any) -> dict[str, list[str]]:
    """Term → what it multiplies, but for the intercept."""
    return {str(t): [f.expr for f in t.factors] for t in state.fixed.spec.term_indices if str(t) != "1"}


def _rows_of_formulaic(state: Any) -> _Rows:
    spec, levels, terms = state.fixed.spec, _levels(state), _formulaic_terms(state)
    columns = {str(t): list(where) for t, where in spec.term_indices.items()}
    widths = {e: len(columns.get(e, [])) for own in terms.values() for e in own if e not in levels}
    if not all(widths.values()):
        raise UnsupportedError("type III needs each covariate as a term of its own: add it, or fit with lmer()")
    codings = {e: SimpleNamespace(labels=own, levels=np.array(own, object)) for e, own in levels.items()}
    values, n = _made_up(list(terms.values()), codings, widths)
    X = state.fixed_columns(_frame(state, values, levels, n))[0]
    pieces = {e: np.eye(len(own))[values[e].codes] for e, own in levels.items() if e in values}
    pieces |= {e: X[:, columns[e]] for e in widths}
    intercept = [np.ones((n, 1))] if "1" in columns else []
    blocks, spans, preferred, at = [*intercept], {}, [np.arange(len(intercept))], len(intercept)
    for name, own in terms.items():
        block, later = np.ones((n, 1)), np.zeros(1, bool)
        for e in own:
            block = (pieces[e][:, :, None] * block[:, None, :]).reshape(n, -1)
            first = np.arange(pieces[e].shape[1]) == 0 if e in levels else np.zeros(pieces[e].shape[1], bool)
            later = np.logical_or.outer(first, later).ravel()
        spans[name] = slice(at, at + len(later))
        preferred.append(at + np.argsort(later, kind="stable"))
        blocks.append(block)
        at += len(later)
    return _Rows(X, np.concatenate(blocks, axis=1), spans, np.concatenate(preferred))


def _frame(state: Any, values: Mapping[str, Any], levels: Mapping[str, list[Any]], n: int) -> pd.DataFrame:
    """The made-up rows as a data frame that the formula reads."""
    known, rng = state.columns.variables, np.random.default_rng(1)
    coded = {}
    for factor in state.fixed.spec.factor_contrasts:
        own = [str(v) for v in state.fixed.spec.factor_variables[factor] if str(v) in known]
        if len(own) != 1 or own[0] in coded:
            raise UnsupportedError(f"type III cannot tell which one column {factor.expr} codes: fit with lmer()")
        drawn = np.array(levels[factor.expr], object)[values[factor.expr].codes]
        coded[own[0]] = known[own[0]].column(pd.Series(drawn).infer_objects().to_numpy())
    numbers = {v: known[v].column(rng.uniform(known[v].low, known[v].high, n)) for v in known if v not in coded}
    return pd.DataFrame({**coded, **numbers})
