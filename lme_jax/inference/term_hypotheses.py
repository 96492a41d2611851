"""The hypotheses that an analysis of variance tests of each term: types I, II and III, whatever the contrasts in use.

A term is contained in another that has the same covariates and all its factors beside others (SAS; lmerTest).
References: Searle (1987), Linear Models for Unbalanced Data; SAS/STAT, "The four types of estimable functions".
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError, UnsupportedError
from ..formula import Design
from ..formula.matrix import FactorCoding, model_matrix
from ..formula.rank import independent_columns
from ..formula.values import Factor
from .terms import coded_terms, fixed_terms, lme4_terms

Type = Literal[1, 2, 3]
_TYPES: dict[str, Type] = {"1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}
# Entries below are rounding of numbers of order one.
ROUNDING = 1e-12


def read_type(given: Any) -> Type:
    """1, 2 or 3, of numbers or Roman numerals."""
    found = _TYPES.get(str(given).upper())
    if found is None:
        raise DataError(f"type={given!r} is unknown; use 1, 2, 3 or 'I', 'II', 'III'")
    return found


class Structure(NamedTuple):
    """Terms, the intercept not among them.

    Attributes
    ----------
    columns : term → its columns among the kept ones; terms all of whose columns were dropped are left out.
    contained_in : term → the terms that contain it.
    """

    columns: dict[str, list[int]]
    contained_in: dict[str, list[str]]


def structure(design: Design) -> Structure:
    """The terms of a design; of one that no formula describes every column is a term, contained in none."""
    columns = {name: own for name, own in fixed_terms(design).items() if name not in ("(Intercept)", "Intercept")}
    kinds = _variables(design)
    contained = {
        name: [other for other in columns if other != name and _contains(kinds.get(other), kinds.get(name))]
        for name in columns
    }
    return Structure(columns, contained)


def _contains(larger: Any, smaller: Any) -> bool:
    """Whether a term, (factors, covariates), has the same covariates and more factors than another."""
    return larger is not None and smaller is not None and larger[1] == smaller[1] and smaller[0] < larger[0]


def _variables(design: Design) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Term → its factors and its covariates."""
    state: Any = design.state
    if not hasattr(state, "parsed"):
        return {}
    out = {}
    for labels, _ in coded_terms(state.parsed.fixed, state.codings):
        factors = frozenset(labels) & frozenset(state.codings)
        out[":".join(labels)] = (factors, frozenset(labels) - factors)
    return out


def hypotheses(design: Design, kind: Type) -> dict[str, np.ndarray]:
    """Term → L (its rank, p) with the hypothesis Lβ = 0.

    Notes
    -----
    I: what the term adds to those before it, rows of the triangular factor of XᵀX with a unit diagonal. II: what it
    adds to all terms that do not contain it. III: from the general form of estimable functions of the indicators of all
    levels, made orthogonal to those of the terms that contain it; with observations in all cells the equality of
    unweighted means. II and III of a term that no other contains: its coefficients. The rows are lmerTest's, on which
    Satterthwaite's degrees of freedom of several rows depend: III takes those of treatment contrasts, whatever are in
    use, and a term alone those of type I. lmerTest does not see that ``a`` is contained in ``a:b`` where b is alone.
    """
    found = structure(design)
    if kind != 1 and not hasattr(design.state, "parsed"):
        _check_apart(found.columns)
    if kind == 1 or len(found.columns) == 1:
        return _sequential(design, found)
    if kind == 2:
        return _type_two(design, found)
    return _type_three(design, found)


def _check_apart(terms: Iterable[str]) -> None:
    """Refuse terms of which one may contain another: only lmer's formulas say which of their variables are factors."""
    parts = [frozenset(name.split(":")) for name in terms]
    if any(one < other for one in parts for other in parts):
        raise UnsupportedError("types II and III of interactions need the terms of an lmer() formula: fit with lmer()")


def _triangle(X: np.ndarray) -> np.ndarray:
    """U with unit diagonal and XᵀX = UᵀDU."""
    R = np.asarray(np.linalg.qr(X, mode="r"))
    return R / np.diag(R)[:, None]


def _sequential(design: Design, found: Structure) -> dict[str, np.ndarray]:
    triangle = _triangle(design.X)
    return {name: triangle[columns] for name, columns in found.columns.items()}


def _type_two(design: Design, found: Structure) -> dict[str, np.ndarray]:
    R = np.asarray(np.linalg.qr(design.X, mode="r"))
    p, out = R.shape[1], {}
    for name, own in found.columns.items():
        containing = [c for other in found.contained_in[name] for c in found.columns[other]]
        if not containing:
            out[name] = np.eye(p)[own]
            continue
        others = [c for c in range(p) if c not in {*own, *containing}]
        order = [*others, *own, *sorted(containing)]
        rows = _triangle(np.take(R, order, axis=1))[len(others) : len(others) + len(own)]
        out[name] = rows[:, np.argsort(order)]
    return out


# ---------------------------------------------------------------- type III


def _type_three(design: Design, found: Structure) -> dict[str, np.ndarray]:
    p = design.X.shape[1]
    state: Any = design.state
    if not hasattr(state, "parsed"):
        return {name: np.eye(p)[own] for name, own in found.columns.items()}
    complete = len(state.keep) == sum(map(len, lme4_terms(state).values()))
    if complete and not any(found.contained_in.values()) and all(map(_by_treatment, state.codings.values())):
        return {name: np.eye(p)[own] for name, own in found.columns.items()}
    return _from_indicators(design, found)


def _by_treatment(coding: FactorCoding) -> bool:
    """Whether contrasts compare each level with the first, or are not used."""
    return not coding.names or np.array_equal(coding.contrasts, np.eye(len(coding.labels))[:, 1:])


def _from_indicators(design: Design, found: Structure) -> dict[str, np.ndarray]:
    state: Any = design.state
    every, spans, by_treatment = indicators(design)
    chosen = by_treatment[independent_columns(every[:, by_treatment])]
    # X in terms of the columns of treatment contrasts, and the general form: each row estimates an indicator's effect.
    back = np.linalg.inv(every[:, chosen])
    general = _zapped((back @ every).T)
    own = {name: [j for j, c in enumerate(chosen) if spans[name].start <= c < spans[name].stop] for name in spans}
    degree = {":".join(labels): len(labels) for labels, _ in coded_terms(state.parsed.fixed, state.codings)}
    for name in sorted(found.columns, key=lambda term: -degree[term]):
        containing = [c for other in found.contained_in[name] for c in own[other]]
        if containing and own[name]:
            above, here = general[:, containing], general[:, own[name]]
            general[:, own[name]] = here - above @ np.linalg.lstsq(above, here, rcond=None)[0]
    L = {name: _zapped(general[np.ix_(chosen, own[name])].T) for name in found.columns}
    return {name: _zapped(rows[np.abs(rows).sum(1) > 1e-8] @ back) for name, rows in L.items()}


def _zapped(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < ROUNDING * max(float(np.abs(values).max(initial=0.0)), 1.0), 0.0, values)


def indicators(design: Design) -> tuple[np.ndarray, dict[str, slice], np.ndarray]:
    """The columns with all factors coded by indicators of all levels, as combinations of the kept columns of X.

    Returns
    -------
    C : (p, P); the term's columns by name; positions (P_t,) of the columns that treatment contrasts would have.

    Notes
    -----
    Which combinations they are follows from the coding, not from the rows, but for columns that were dropped.
    """
    state: Any = design.state
    linear, codings = state.parsed.fixed, state.codings
    terms = coded_terms(linear, codings)
    values, n = _made_up_rows(terms, codings, state.widths)
    all_levels = {k: replace(c, contrasts=np.eye(len(c.labels)), names=c.labels) for k, c in codings.items()}
    X, every = (model_matrix(linear, values, coding, n)[0] for coding in (codings, all_levels))
    whole = np.linalg.lstsq(X, every, rcond=None)[0]
    keep = np.asarray(state.keep)
    lost = np.setdiff1d(np.arange(len(whole)), keep)
    combined = whole[keep] + (state.columns.dependence @ whole[lost] if len(lost) else 0.0)
    spans, masks, at = {}, [np.ones(int(linear.intercept), bool)], int(linear.intercept)
    for labels, full in terms:
        mask = np.ones(1, bool)
        for label in labels:
            k = len(codings[label].labels) if label in codings else state.widths[label]
            kept = np.arange(k) > 0 if label in codings and label not in full else np.ones(k, bool)
            mask = np.kron(kept, mask)
        spans[":".join(labels)] = slice(at, at + len(mask))
        masks.append(mask)
        at += len(mask)
    return _zapped(combined), spans, np.flatnonzero(np.concatenate(masks))


def _made_up_rows(terms: Any, codings: Any, widths: Any) -> tuple[dict[str, Any], int]:
    """Rows in which every combination of levels that a term can have occurs, with numbers at random."""
    rng = np.random.default_rng(0)
    labels = [*dict.fromkeys(label for own, _ in terms for label in own)]
    sizes = {label: len(codings[label].labels) for label in labels if label in codings}
    blocks: dict[str, list[np.ndarray]] = {label: [] for label in sizes}
    n = 2 * sum(widths.values()) + 2
    for own, _ in terms:
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
