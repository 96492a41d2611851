"""The hypotheses that an analysis of variance tests of each term: types I, II and III, whatever the contrasts in use.

A term is contained in another that has the same covariates and all its factors beside others (SAS; lmerTest).
References: Searle (1987), Linear Models for Unbalanced Data; SAS/STAT, "The four types of estimable functions".
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from ..formula import Design
from ..formula.matrix import FactorCoding
from ..formula.rank import independent_columns
from .indicators import indicators, variables, zapped
from .terms import fixed_terms

Type = Literal[1, 2, 3]
_TYPES: dict[str, Type] = {"1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}


def read_type(given: Any) -> Type:
    """1, 2 or 3, of numbers or Roman numerals."""
    if not isinstance(given, (str, int, np.integer, type(None))):
        raise DataError("anova() tests the terms of this model: compare(other) puts models beside each other")
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
    kinds = variables(design) or {}
    contained = {
        name: [other for other in columns if other != name and _contains(kinds.get(other), kinds.get(name))]
        for name in columns
    }
    return Structure(columns, contained)


def _contains(larger: Any, smaller: Any) -> bool:
    """Whether a term, (factors, covariates), has the same covariates and more factors than another."""
    return larger is not None and smaller is not None and larger[1] == smaller[1] and smaller[0] < larger[0]


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
    if kind == 1 or len(found.columns) == 1:
        return _sequential(design, found)
    if kind == 2:
        return _type_two(design, found)
    return _type_three(design, found)


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
    p, kinds = design.X.shape[1], variables(design)
    state: Any = design.state
    simple = kinds is None or not any(factors for factors, _ in kinds.values())
    if hasattr(state, "parsed"):
        simple = simple or (not any(found.contained_in.values()) and all(map(_by_treatment, state.codings.values())))
    if simple and (kinds is None or not design.dropped_columns):
        return {name: np.eye(p)[own] for name, own in found.columns.items()}
    return _from_indicators(design, found)


def _by_treatment(coding: FactorCoding) -> bool:
    """Whether contrasts compare each level with the first, or are not used."""
    return not coding.names or np.array_equal(coding.contrasts, np.eye(len(coding.labels))[:, 1:])


def _from_indicators(design: Design, found: Structure) -> dict[str, np.ndarray]:
    every, spans, preferred = indicators(design)
    chosen = preferred[independent_columns(every[:, preferred])]
    # X in terms of the columns of treatment contrasts, and the general form: each row estimates an indicator's effect.
    back = np.linalg.inv(every[:, chosen])
    general = zapped((back @ every).T)
    own = {name: [j for j, c in enumerate(chosen) if spans[name].start <= c < spans[name].stop] for name in spans}
    degree = {name: len(factors | covariates) for name, (factors, covariates) in (variables(design) or {}).items()}
    for name in sorted(found.columns, key=lambda term: -degree[term]):
        containing = [c for other in found.contained_in[name] for c in own[other]]
        if containing and own[name]:
            above, here = general[:, containing], general[:, own[name]]
            general[:, own[name]] = here - above @ np.linalg.lstsq(above, here, rcond=None)[0]
    L = {name: zapped(general[np.ix_(chosen, own[name])].T) for name in found.columns}
    return {name: zapped(rows[np.abs(rows).sum(1) > 1e-8] @ back) for name, rows in L.items()}
