"""Models beside models: random terms made smaller, and what of a larger model lies on its boundary in a smaller one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.fixed_effects import expected_information
from ..core.records import Fit
from ..core.structures import entry
from ..data import ModelData
from ..formula import RandomTerm
from .chi_bar import Mixture, chi2, correlated_pair, mixture
from .terms import coded_terms, term_columns

Key = tuple[str, str, str]
# A variance below this share of the residual one is zero.
EMPTY = 1e-8
# As many new variances have a mixture of their own; orthant probabilities of more take long.
ORTHANTS = 5


def parameter_keys(data: ModelData) -> list[Key] | None:
    """(factor, effect, effect) of every natural parameter; None where a structure has none, or effects share one."""
    keys: list[Key] = []
    for term in data.terms:
        rule = entry(term.block)
        if len(term.columns) > 1 and not (rule.free or (rule.uncorrelated and not rule.homogeneous)):
            return None
        keys += [(term.factor, term.columns[j], term.columns[i]) for i, j in rule.pairs(term.block)]
    return keys if len(set(keys)) == len(keys) else None


def natural_parameters(fit: Fit, data: ModelData) -> np.ndarray:
    """Ψ (k,) of a fit in the order of ``parameter_keys``."""
    L = np.asarray(fit.relative_factor)
    return float(fit.sigma) ** 2 * (L @ L.T)[data.covariance_positions]


def boundary_law(
    larger: ModelData, smaller: ModelData | None, psi: np.ndarray | None, sigma: float, reml: bool, df: int
) -> tuple[Mixture, str]:
    """The law of the likelihood ratio where the smaller model is true, and words where χ² stands in for it.

    Parameters
    ----------
    smaller, psi : the smaller model and Ψ of its fit; None without random effects.
    sigma : its residual standard deviation.
    df : parameters more in the larger one, fixed effects among them.

    Notes
    -----
    A new effect's covariances with old ones are free: near zero Ψ is positive semidefinite wherever the variance is
    positive, for any covariances. Weights are from the expected information at the smaller model's estimates.
    """
    keys, old = parameter_keys(larger), [] if smaller is None else parameter_keys(smaller)
    values = dict(zip(old or [], [] if psi is None else psi, strict=False))
    if keys is None or old is None or not set(old) <= set(keys):
        return chi2(df), f"chi2({df}), boundaries not looked at"
    new = [key for key in keys if key not in values]
    variances = [key for key in new if key[1] == key[2]]
    fresh = {key[:2] for key in variances}
    if any(value <= EMPTY * sigma**2 for key, value in values.items() if key[1] == key[2]):
        return chi2(df), f"chi2({df}), though a variance is zero in the smaller model"
    joint = [key for key in new if key[1] != key[2] and {(key[0], key[1]), (key[0], key[2])} <= fresh]
    if len(variances) > (2 if joint else ORTHANTS):
        return chi2(df), f"at most chi2({df})"
    if len(variances) <= 1:
        return mixture(np.eye(len(variances)), df - len(variances)), ""
    params = np.array([*np.zeros(larger.X.shape[1]), *(values.get(key, 0.0) for key in keys), sigma**2])
    spread = np.linalg.inv(expected_information(params, larger.compressed, reml=reml))
    bounded = [variances[0], *joint, variances[1]] if joint else variances
    where = [keys.index(key) for key in bounded]
    law = correlated_pair if joint else mixture
    return law(spread[np.ix_(where, where)], df - len(bounded)), ""


# ---------------------------------------------------------------- random terms made smaller


def reductions(data: ModelData) -> Iterator[tuple[str, RandomTerm | None, ModelData | None]]:
    """What the random effects can lose: in words, as a term of its own, and the data without; None if none is left.

    A term with one effect goes as a whole. Of several effects each goes alone that no other effect of the term
    contains, with all its columns; terms of other structures than unstructured and diagonal go as a whole. What is
    correlated with effects that stay is no term of its own: None.
    """
    for term, text, groups in _terms(data):
        if not groups:
            yield f"({text})", term, _with_term(data, term, None)
        for name, columns in groups:
            own = _part(term, columns) if entry(term.block).uncorrelated else None
            left = [j for j in range(len(term.columns)) if j not in columns]
            yield f"{name} in ({text})", own, _with_term(data, term, _part(term, left))


def _terms(data: ModelData) -> Iterator[tuple[RandomTerm, str, list[tuple[str, list[int]]]]]:
    state: Any = data.design.state
    bars = state.parsed.bars if hasattr(state, "parsed") else [None] * len(data.design.terms)
    for term, bar in zip(data.design.terms, bars, strict=True):
        text = bar.text if bar else f"{' + '.join(term.columns)} | {term.factor}"
        rule = entry(term.block)
        if len(term.columns) == 1 or not (rule.free or rule.uncorrelated) or rule.homogeneous:
            yield term, text, []
        elif bar is None:
            yield term, text, [(name, [j]) for j, name in enumerate(term.columns)]
        else:
            yield term, text, _droppable(bar.lhs, state, term, rule.uncorrelated)


def _droppable(linear: Any, state: Any, term: RandomTerm, uncorrelated: bool) -> list[tuple[str, list[int]]]:
    """Terms of a bar's left side that no other contains; the intercept too if it is uncorrelated with them."""
    if not linear.intercept and len(linear.terms) == 1:
        return []
    own = term_columns(linear, state)
    labels = {name: frozenset(parts) for name, (parts, _) in zip(own, coded_terms(linear, state.codings), strict=True)}
    out = [("1", [0])] if linear.intercept and uncorrelated else []
    return out + [(t, c) for t, c in own.items() if not any(labels[t] < other for other in labels.values())]


def _part(term: RandomTerm, kept: list[int]) -> RandomTerm:
    return replace(term, Z=term.Z[:, kept], columns=tuple(term.columns[j] for j in kept))


def _with_term(data: ModelData, term: RandomTerm, small: RandomTerm | None) -> ModelData | None:
    """The data with a smaller term, or none, in the place of one."""
    terms = tuple(small if other is term else other for other in data.design.terms)
    left = tuple(t for t in terms if t is not None)
    if not left:
        return None
    return ModelData.from_design(replace(data.design, terms=left), factor_in_names=True)
