"""Likelihood-ratio tests of nested models, one with no random effects at all among them.

References: Self & Liang (1987), JASA 82, 605–610; Stram & Lee (1994), Biometrics 50, 1171–1177.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..data import ModelData
from ..errors import DataError
from .chi_bar import binomial

# Columns count as combinations of others where at most this share of a direction is left: of one design, and beside
# another package's, whose columns were computed by other code.
DEPENDENT, OUTSIDE = 1e-12, 1e-8


class LikelihoodRatio(NamedTuple):
    """Twice the difference of log-likelihoods, its p-value, and how many parameters more the larger model has."""

    statistic: float
    pvalue: float
    df: int

    def __repr__(self) -> str:
        return f"<Likelihood ratio {self.statistic:.6g}, {self.df} parameters more, p = {self.pvalue:.4g}>"


def likelihood_ratio(statistic: float, df: int, n_boundary: int) -> LikelihoodRatio:
    """The test of a statistic against a mixture of χ².

    Parameters
    ----------
    statistic : 2(ℓ₁ − ℓ₀); what rounding makes negative counts as zero.
    df : parameters more in the larger model, 1 or more.
    n_boundary : how many of them are variances that are zero in the smaller one: each is positive in half of all
        samples, so that χ²₍df−j₎ has the binomial weight of j zeros among them (``chi_bar`` of uncorrelated ones).
    """
    statistic = max(0.0, statistic)
    return LikelihoodRatio(statistic, binomial(n_boundary, df - n_boundary).pvalue(statistic), int(df))


@dataclass(frozen=True)
class LinearFit:
    """The model without random effects, by (weighted) least squares.

    Attributes
    ----------
    beta : (p,); sigma : residual standard deviation; deviance : −2 log L or the REML criterion.
    n_params : fixed effects and σ.
    data : whose fixed effects they are, None of another package's fit.
    """

    beta: np.ndarray
    sigma: float
    deviance: float
    reml: bool
    n_params: int
    data: ModelData | None = field(default=None, repr=False, compare=False)

    @property
    def llf(self) -> float:
        """Log-likelihood (restricted under REML)."""
        return -0.5 * self.deviance


def least_squares(y: np.ndarray, X: np.ndarray, weights: np.ndarray | None, reml: bool) -> LinearFit:
    """Fit y (n,) to X (n, p) with Var(ε_i) = σ²/w_i; columns that others determine do not count (under ML).

    −2 log L = N(1 + log 2πσ̂²) − Σ log w, under REML + log|XᵀWX|, with N the rows, or rows less p: what the deviance of
    a mixed model is where Ψ = 0.
    """
    root = np.ones(len(y)) if weights is None else np.sqrt(np.asarray(weights, float))
    decomposed = _decomposed(root[:, None] * X)
    left, s, right = decomposed
    target = root * y
    beta = right.T @ ((left.T @ target) / s)
    residual = target - left @ (left.T @ target)
    squares, dof = np.array([residual @ residual]), len(y) - (len(s) if reml else 0)
    deviance = float(_criterion(squares, decomposed, root, reml)[0])
    return LinearFit(beta, float(np.sqrt(squares[0] / dof)), deviance, reml, len(s) + 1)


def deviances_without_random_effects(Y: np.ndarray, data: ModelData, reml: bool) -> np.ndarray:
    """Deviances (R,) of many responses Y (n, R) by least squares; see ``least_squares``."""
    weights = data.design.weights
    root = np.ones(len(Y)) if weights is None else np.sqrt(weights)
    decomposed = _decomposed(root[:, None] * data.X)
    target = root[:, None] * (Y - data.offset[:, None])
    residual = target - decomposed[0] @ (decomposed[0].T @ target)
    return _criterion((residual**2).sum(0), decomposed, root, reml)


def _criterion(squares: np.ndarray, decomposed: Any, root: np.ndarray, reml: bool) -> np.ndarray:
    """Deviances of residual sums of squares (R,); root (n,) of the weights."""
    _, s, right = decomposed
    dof = len(root) - (len(s) if reml else 0)
    deviance = dof * (1.0 + np.log(2.0 * np.pi * squares / dof)) - 2.0 * np.log(root).sum()
    return deviance + 2.0 * (np.log(s).sum() - np.linalg.slogdet(right)[1]) if reml else deviance


def _decomposed(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """left (n, r), s (r,), right (r, p) with (XᵀX)⁻¹Xᵀ = rightᵀ·diag(1/s)·leftᵀ, whatever the units of the columns."""
    length = np.sqrt((X**2).sum(0))
    length[length == 0] = 1.0
    left, s, right = np.linalg.svd(X / length, full_matrices=False)
    kept = s > DEPENDENT * s.max(initial=0.0)
    return left[:, kept], s[kept], right[kept] / length


def linear_model(result: Any, data: ModelData, reml: bool) -> LinearFit:
    """The least-squares fit of another package, as the smaller model of the data by their criterion.

    Parameters
    ----------
    result : with ``llf`` and a ``model`` that has ``endog`` (n,) and ``exog`` (n, p): statsmodels' OLS and WLS.

    Raises
    ------
    DataError
        If it has other rows, another response or other weights, if it is no least-squares fit, or if its columns are
        not among (combinations of) those of the data.
    """
    y, X = np.ravel(np.asarray(result.model.endog, float)), np.asarray(result.model.exog, float)
    X = X.reshape(len(y), -1)
    weights = np.broadcast_to(np.asarray(getattr(result.model, "weights", 1.0), float), y.shape)
    check_same_response(y, data.y)
    own = np.ones(data.n_rows) if data.design.weights is None else data.design.weights
    if not np.allclose(weights, own, rtol=1e-9):
        raise DataError("the two fits have other prior weights: a likelihood-ratio test needs the same ones")
    if data.offset.any():
        raise DataError("the larger model has an offset, the other none: compare with compare_lr_test(), no argument")
    alone = least_squares(y, X, weights, False)
    if not np.isclose(-2.0 * float(result.llf), alone.deviance, rtol=1e-6, atol=1e-6):
        raise DataError("the smaller model is no least-squares fit of a linear model: its log-likelihood is another")
    left = _decomposed(data.X)[0]
    rest = X - left @ (left.T @ X)
    if (np.sqrt((rest**2).sum(0)) > OUTSIDE * np.sqrt((X**2).sum(0))).any():
        raise DataError("the models are not nested: the linear model has fixed effects that the larger one has not")
    if reml and alone.n_params - 1 < data.X.shape[1]:
        raise DataError("under REML models with different fixed effects cannot be compared: fit with reml=False")
    return least_squares(y, data.X, weights, True) if reml else alone


def without_random_effects(data: ModelData, reml: bool) -> LinearFit:
    """The fixed effects of the data alone, by their criterion."""
    return replace(least_squares(data.y - data.offset, data.X, data.design.weights, reml), data=data)


def check_same_response(one: np.ndarray, other: np.ndarray) -> None:
    """Refuse two responses (n,) that differ, in whatever order their rows stand."""
    if len(one) != len(other):
        raise DataError(f"compare_lr_test needs two fits of the same rows: here are {len(other)} and {len(one)}")
    a, b = np.sort(one), np.sort(other)
    if not np.allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max()):
        raise DataError("the two fits have different responses (or rows): their likelihoods cannot be compared")
