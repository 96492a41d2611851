"""Where the variance of the response lies: R², intraclass correlations, design effects; and what X lacks in it.

References: Nakagawa & Schielzeth (2013), Methods Ecol. Evol. 4, 133–142; Johnson (2014), Methods Ecol. Evol. 5,
944–946; Nakagawa, Johnson & Schielzeth (2017), J. R. Soc. Interface 14; Fox & Monette (1992), JASA 87, 178–183.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..core.records import Fit
from ..data import ModelData
from .terms import fixed_terms


class Shares(NamedTuple):
    """Variance of the linear predictor (n − 1), of every random term averaged over the rows, and σ² of weight one."""

    fixed: float
    random: dict[str, float]
    residual: float

    @property
    def total(self) -> float:
        return self.fixed + sum(self.random.values()) + self.residual


def mean_products(data: ModelData) -> list[np.ndarray]:
    """Mean of zzᵀ (q, q) over the rows, per factor: the mean variance of its effects is tr Ψ·mean."""
    out = []
    for factor in data.factors:
        weight = _row_weight(factor)
        out.append((factor.Z * weight[:, None]).T @ factor.Z / len(factor.Z))
    return out


def _row_weight(factor: Any) -> np.ndarray:
    """(n,) variance of a unit effect in each row: 1 but for shared or related levels."""
    if factor.by_code:
        return np.ones(len(factor.Z))
    rows = factor.rows if factor.root is None else factor.rows @ factor.root
    return np.asarray(rows.multiply(rows).sum(1)).ravel() if hasattr(rows, "multiply") else (rows**2).sum(1)


def shares(data: ModelData, fitted: Fit) -> Shares:
    """Of a fit."""
    L, s2 = np.asarray(fitted.relative_factor), float(fitted.sigma) ** 2
    predictor = data.X @ np.asarray(fitted.beta)
    random: dict[str, float] = {}
    for factor, span, mean in zip(data.factors, data.factor_slices, mean_products(data), strict=True):
        Psi, at = s2 * (L[span, span] @ L[span, span].T), 0
        for block, label in zip(factor.template, _labels(data, factor.name), strict=True):
            own = slice(at, at + block.size)
            random[label] = float((Psi[own, own] * mean[own, own]).sum())
            at = own.stop
    return Shares(float(np.var(predictor, ddof=1)), random, s2)


def fixed_shares(data: ModelData, fitted: Fit) -> dict[str, float]:
    """Covariance of every fixed term's part of Xβ̂ with all of it; constants have none."""
    beta, predictor = np.asarray(fitted.beta), data.X @ np.asarray(fitted.beta)
    centred = predictor - predictor.mean()
    out = {}
    for name, columns in fixed_terms(data.design).items():
        if np.ptp(data.X[:, columns], axis=0).any():
            out[name] = float(data.X[:, columns] @ beta[columns] @ centred) / (len(predictor) - 1)
    return out


def _labels(data: ModelData, factor: str) -> list[str]:
    return [label for label, term in zip(data.term_labels, data.terms, strict=True) if term.factor == factor]


def icc_functions(data: ModelData, factor: str | None) -> dict[str, tuple[Callable[..., float], float, float]]:
    """(function of Ψ by factor and σ², 0, 1) of the adjusted ICC: all factors' share, or one's (repeatability)."""
    means = dict(zip([f.name for f in data.factors], mean_products(data), strict=True))
    names = list(means) if factor is None else [factor]

    def share(psi: Mapping[str, np.ndarray], sigma2: float) -> float:
        parts = {name: float((psi[name] * mean).sum()) for name, mean in means.items()}
        return sum(parts[name] for name in names) / (sum(parts.values()) + sigma2)

    return {"ICC" if factor is None else factor: (share, 0.0, 1.0)}


def design_effects(data: ModelData, fitted: Fit) -> pd.DataFrame:
    """Kish's 1 + (m − 1)·ICC per factor, m = Σm²/n: what clustering multiplies the variance of a mean by."""
    found = shares(data, fitted)
    random = {factor.name: sum(found.random[label] for label in _labels(data, factor.name)) for factor in data.factors}
    whole, rows = sum(random.values()) + found.residual, {}
    for factor in data.factors:
        sizes = np.asarray(factor.sizes, float)
        mean, icc = float((sizes**2).sum() / sizes.sum()), random[factor.name] / whole
        effect = 1.0 + (mean - 1.0) * icc
        rows[factor.name] = {"icc": icc, "size": mean, "design_effect": effect, "effective_n": data.n_rows / effect}
    return pd.DataFrame.from_dict(rows, orient="index")


def inflation(data: ModelData, fitted: Fit) -> pd.DataFrame:
    """Generalised variance inflation of every term but the intercept: ``gvif``, ``df`` and gvif^(1/(2·df))."""
    cov, terms = np.asarray(fitted.unscaled_cov), fixed_terms(data.design)
    constant = [j for j in range(data.X.shape[1]) if np.ptp(data.X[:, j]) == 0.0]
    terms = {name: columns for name, columns in terms.items() if not set(columns) <= set(constant)}
    used = [j for columns in terms.values() for j in columns]
    sd = np.sqrt(np.diagonal(cov))
    R = cov / np.outer(sd, sd)

    def log_det(columns: list[int]) -> float:
        return float(np.linalg.slogdet(R[np.ix_(columns, columns)])[1]) if columns else 0.0

    rows = {}
    for name, columns in terms.items():
        others = [j for j in used if j not in columns]
        gvif = float(np.exp(log_det(columns) + log_det(others) - log_det(used)))
        rows[name] = {"gvif": gvif, "df": len(columns), "per_df": gvif ** (0.5 / len(columns))}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gvif", "df", "per_df"])
