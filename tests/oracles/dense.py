"""The oracle: every quantity of a linear mixed model of any design from its dense n × n covariance.

Nothing here knows of chains, sparsity or moments: V/σ² = W⁻¹ + Σ_j Z_j(K_j ⊗ Ψ_j)Z_jᵀ is formed as it is written and
factored in long double. θ is packed as lme_jax packs it (``templates``), factors one after the other.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from . import templates
from .long import LONG, cholesky, reflect, solve_lower, solve_upper

LOG_2PI = np.log(2 * LONG(np.pi))


class Factor(NamedTuple):
    """Effects of the m levels of a grouping factor.

    Attributes
    ----------
    Z : (n, q) columns of a level's effects; codes : (n,) the level of every row.
    template : a structure's name or blocks (structure, size).
    members : (n, m), optional, shares of the levels in every row, instead of codes.
    related : (m, m), optional, K with Cov(b) = K ⊗ Ψ.
    name : of the column of labels.
    """

    Z: np.ndarray
    codes: np.ndarray | None
    m: int
    template: str | tuple = "unstructured"
    members: np.ndarray | None = None
    related: np.ndarray | None = None
    name: str = "g"

    @property
    def blocks(self):
        """The template as blocks."""
        return templates.as_template(self.template, self.Z.shape[1])

    @property
    def shares(self):
        """(n, m) of the levels in the rows."""
        return np.eye(self.m)[self.codes] if self.members is None else self.members

    @property
    def columns(self):
        """(n, mq) of all effects, level by level."""
        return (self.shares[:, :, None] * self.Z[:, None, :]).reshape(len(self.Z), -1)


class Model(NamedTuple):
    """Rows and factors; Var(ε) = σ²/w, and y is corrected for the offset."""

    y: np.ndarray
    X: np.ndarray
    factors: tuple
    weights: np.ndarray | None = None
    offset: np.ndarray | None = None
    reml: bool = True


class Dense(NamedTuple):
    """Everything at one θ.

    Attributes
    ----------
    deviance : −2 log L or the REML criterion, β and σ profiled; gradient (k,), hessian (k, k) of it in θ.
    beta : (p,); sigma; unscaled_cov : (p, p) Cov β̂/σ².
    log_scale_slope : (k,) ∂ log σ̂²/∂θ.
    b, conditional_cov, prediction_cov : per factor (m, q), (m, q, q): BLUPs, Var(b|y) at fixed β, Var(b̂ − b).
    joint_cov : (p + K, p + K) covariance of (β̂, b̂ − b) over all effects.
    """

    deviance: float
    gradient: np.ndarray
    hessian: np.ndarray
    beta: np.ndarray
    sigma: float
    unscaled_cov: np.ndarray
    log_scale_slope: np.ndarray
    b: list
    conditional_cov: list
    prediction_cov: list
    joint_cov: np.ndarray


class _Solved(NamedTuple):
    """log|V|, rᵀV⁻¹r, R with RᵀR = XᵀV⁻¹X, β̂, T = R⁻ᵀXᵀV⁻¹Z, s = ZᵀV⁻¹r and ZᵀPZ."""

    log_det: float
    rss: float
    R: np.ndarray
    beta: np.ndarray
    T: np.ndarray
    s: np.ndarray
    ZPZ: np.ndarray


def n_theta(model):
    """Number of covariance parameters."""
    return sum(templates.n_theta(f.blocks) for f in model.factors)


def split(theta, model):
    """θ (k,) factor by factor."""
    ends = np.cumsum([templates.n_theta(f.blocks) for f in model.factors])
    return np.split(np.asarray(theta), ends[:-1])


def all_columns(model):
    """Z (n, K) of all effects."""
    return np.concatenate([f.columns for f in model.factors], axis=1)


def covariances(theta, model):
    """Ψ_j/σ² (q, q) of every factor."""
    roots = [templates.root(t[None], f.blocks)[0] for t, f in zip(split(theta, model), model.factors, strict=True)]
    return [L @ L.T for L in roots]


def prior(Psis, model):
    """Cov(b)/σ² (K, K) of all effects."""
    pairs = zip(Psis, model.factors, strict=True)
    return _block_diagonal([np.kron(np.eye(f.m) if f.related is None else f.related, P) for P, f in pairs])


def deviance(theta, model):
    """−2 log L, or the REML criterion, at θ."""
    return float(_criterion(_solve(prior(covariances(_long(theta), model), model), model), model))


def gradient_and_hessian(theta, model):
    """(k,), (k, k) of the deviance in θ."""
    theta = _long(theta)
    solved = _solve(prior(covariances(theta, model), model), model)
    return [a.astype(float) for a in _derivatives(solved, theta, model)[:2]]


def at(theta, model):
    """Everything at θ (k,)."""
    theta = _long(theta)
    D = prior(covariances(theta, model), model)
    solved = _solve(D, model)
    gradient, hessian, slope = _derivatives(solved, theta, model)
    sigma2 = solved.rss / _dof(model)
    unscaled = _inverse(solved.R)
    half = solved.T @ D
    conditional = D - D @ (solved.ZPZ + solved.T.T @ solved.T) @ D
    prediction = conditional + half.T @ half
    across = -solve_upper(solved.R, half)
    joint = np.block([[unscaled, across], [across.T, prediction]])
    doubles = [a.astype(float) for a in (gradient, hessian, solved.beta, unscaled, slope, sigma2 * joint)]
    gradient, hessian, beta, unscaled, slope, joint = doubles
    b, spread = (D @ solved.s).astype(float), [(sigma2 * C).astype(float) for C in (conditional, prediction)]
    return Dense(
        float(_criterion(solved, model)), gradient, hessian, beta, float(np.sqrt(sigma2)), unscaled, slope,
        [b[span].reshape(f.m, -1) for f, span in zip(model.factors, spans(model), strict=True)],
        *[[_levels(C, f, s) for f, s in zip(model.factors, spans(model), strict=True)] for C in spread],
        joint,
    )  # fmt: skip


def spans(model):
    """Where the effects of every factor stand among all."""
    ends = np.cumsum([f.m * f.Z.shape[1] for f in model.factors])
    return [slice(end - f.m * f.Z.shape[1], end) for end, f in zip(ends, model.factors, strict=True)]


def predict(dense, A, Z):
    """Means Aβ̂ + Zb̂ (r,) of new rows without offset, and standard errors of their errors; Z (r, K) of all effects."""
    rows = np.concatenate([A, Z], axis=1)
    estimates = np.concatenate([dense.beta, *(b.ravel() for b in dense.b)])
    return rows @ estimates, np.sqrt(np.einsum("ri,ij,rj->r", rows, dense.joint_cov, rows))


# ---------------------------------------------------------------- algebra on V


def _long(theta):
    return np.asarray(theta, float).astype(LONG)


def _block_diagonal(blocks):
    """scipy's, which knows no long double."""
    shape = scipy.linalg.block_diag(*[np.ones(np.shape(b)) for b in blocks])
    out = np.zeros(shape.shape, LONG)
    out[shape > 0] = np.concatenate([np.asarray(b, LONG).ravel() for b in blocks])
    return out


def _dof(model):
    return len(model.y) - (model.X.shape[1] if model.reml else 0)


def _solve(D, model):
    n, p = model.X.shape
    root = np.sqrt(np.ones(n) if model.weights is None else _long(model.weights))[:, None]
    Z = root * all_columns(model)
    K = cholesky(np.eye(n, dtype=LONG) + Z @ D @ Z.T)
    y = _long(model.y) - (0 if model.offset is None else model.offset)
    white = solve_lower(K, np.column_stack([root * model.X, root[:, 0] * y, Z]))
    white = reflect(white, p)
    R, rest = np.triu(white[:p, :p]), white[p:, p:]
    e, Ze = rest[:, 0], rest[:, 1:]
    log_det = 2 * np.log(np.diag(K)).sum() - 2 * np.log(root).sum()
    return _Solved(log_det, e @ e, R, solve_upper(R, white[:p, p]), white[:p, p + 1 :], Ze.T @ e, Ze.T @ Ze)


def _criterion(solved, model):
    dof = _dof(model)
    value = solved.log_det + dof * (1 + LOG_2PI + np.log(solved.rss / dof))
    return value + (2 * np.log(np.abs(np.diag(solved.R))).sum() if model.reml else 0)


def _derivatives(solved, theta, model):
    """Gradient, Hessian, and ∂ log σ̂²/∂θ, with D_a = ∂Cov(b)/∂θ_a (MATH §4).

    d_a = tr(UD_a) − N sᵀD_as/Q,  d_ab = tr(UD_ab) − tr(UD_aUD_b) − N(sᵀD_abs − 2sᵀD_a(ZᵀPZ)D_bs + d_Qa d_Qb/Q)/Q,
    where U = ZᵀPZ under REML, else ZᵀV⁻¹Z.
    """
    U = solved.ZPZ + (0 if model.reml else solved.T.T @ solved.T)
    first, second = _prior_derivatives(theta, model)
    s, ratio = solved.s, _dof(model) / solved.rss
    Ds = np.array([D @ s for D in first])
    slopes = Ds @ s
    UD = np.array([U @ D for D in first])
    gradient = np.array([np.trace(M) for M in UD]) - ratio * slopes
    traces = np.array([[(A * B.T).sum() for B in UD] for A in UD])
    bend = np.array([[(U * D).sum() - ratio * (s @ D @ s) for D in row] for row in second])
    curved = 2 * Ds @ solved.ZPZ @ Ds.T - np.outer(slopes, slopes) / solved.rss
    return gradient, bend - traces + ratio * curved, -slopes / solved.rss


def _prior_derivatives(theta, model):
    """∂Cov(b) [k] and ∂²Cov(b) [k][k] over σ²."""
    zeros = [np.zeros((f.Z.shape[1],) * 2) for f in model.factors]

    def placed(j, move):
        return prior([move if i == j else zero for i, zero in enumerate(zeros)], model)

    moves = [templates.derivatives(t[None], f.blocks) for t, f in zip(split(theta, model), model.factors, strict=True)]
    owner = [(j, a) for j, (first, _) in enumerate(moves) for a in range(first.shape[1])]
    none = placed(0, zeros[0])
    first = [placed(j, moves[j][0][0, a]) for j, a in owner]
    second = [[placed(i, moves[i][1][0, a, b]) if i == j else none for j, b in owner] for i, a in owner]
    return first, second


def _inverse(R):
    """(RᵀR)⁻¹."""
    half = solve_upper(R, np.eye(len(R), dtype=LONG))
    return half @ half.T


def _levels(C, factor, span):
    """The blocks (m, q, q) of a factor's levels."""
    m = factor.m
    blocks = C[span, span].reshape(m, -1, m, factor.Z.shape[1])
    return blocks[np.arange(m), :, np.arange(m)]
