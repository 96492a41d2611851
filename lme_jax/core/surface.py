"""−2ℓ over (θ, log σ²), and one combination of β where asked, the rest of β at its best: gradient and exact Hessian.

With a(θ) = log|V| [+ log|XᵀV⁻¹X|], Q = rᵀV⁻¹r at unit σ², τ = log σ² and N = n [− p],
    −2ℓ = a + Nτ + Qe^{−τ} + constants.
A combination γ = lᵀβ that is held makes r = y − Xβ̂ + κt: t is what the other columns leave of the column of X that
goes with γ, of unit length in V⁻¹, and Q = Q̂ + κ². NumPy; engines and sums over levels as in ``criterion`` and
``assembly``, whose notation this is.
"""

from typing import Any, NamedTuple

import numpy as np

from . import assembly, covariance, criterion, grouped, likelihood, linalg
from .dense import Dense
from .levels import pairs
from .likelihood import Statistics
from .moments import GroupData

# Effects in a dense system up to which the exact Hessian costs little more than the gradient.
EXACT = 1000


class Surface(NamedTuple):
    """−2ℓ and its derivatives in x = (θ scaled, [γ,] log σ²)."""

    value: float
    gradient: np.ndarray
    hessian: np.ndarray


class Problem(NamedTuple):
    """What an evaluation is made from.

    Attributes
    ----------
    held : the engine; None for one factor, whose levels are summed directly.
    direction : l (p,) of the combination of β that is a coordinate, user's units, or None.
    exact : whether the Hessian is; else its traces are taken from the data (average information).
    """

    data: Statistics
    reml: bool
    held: Any
    direction: np.ndarray | None
    exact: bool

    @property
    def k(self) -> int:
        return covariance.n_theta(self.data.template)


def problem(data: Statistics, reml: bool, direction: np.ndarray | None = None) -> Problem:
    """Of compressed data; a ``direction`` makes sense by ML only."""
    if isinstance(data, GroupData):
        return Problem(data, reml, None, direction, True)
    held = likelihood.engine(data)
    return Problem(data, reml, held, direction, not isinstance(held, Dense) or held.K <= EXACT)


class _Whitened(NamedTuple):
    """A (p+1, p+1) with [X y]A = [X̃, r], X̃ of unit cross-product in V⁻¹; Q, log|XᵀV⁻¹X|; κ, and −∂κ/∂γ."""

    A: np.ndarray
    Q: float
    log_det_x: float
    kappa: float
    slope: float


def _whiten(H: np.ndarray, gamma: float | None, at: Problem) -> _Whitened | None:
    """From H of the conditioned columns; γ None where all of β is at its best."""
    basis, p = likelihood.totals_of(at.data).basis, len(H) - 1
    T = np.eye(p + 1)
    T[p, p] = 1.0 / basis.map[p, p]
    if at.direction is not None:
        weights = basis.map[:p, :p].T @ at.direction
        length = float(np.linalg.norm(weights))
        T[:p, :p] = last_along(weights / length)
    R = linalg.cholesky(T.T @ H @ T)
    if not np.isfinite(R[-1, -1]):
        return None
    A, Q = T @ assembly.whitening(R), float(R[p, p] ** 2)
    log_det_x = 2.0 * float(np.log(np.diagonal(R)[:p]).sum() - basis.log_det_x)
    if at.direction is None or gamma is None:
        return _Whitened(A, Q, log_det_x, 0.0, 0.0)
    held = (gamma + at.direction @ basis.map[:p, p] / basis.map[p, p]) / length
    kappa = float(R[p, p - 1] - held * R[p - 1, p - 1])
    A[:, p] += kappa * A[:, p - 1]
    return _Whitened(A, Q + kappa**2, log_det_x, kappa, float(R[p - 1, p - 1]) / length)


def last_along(unit: np.ndarray) -> np.ndarray:
    """An orthogonal matrix (p, p) with ``unit`` as its last column."""
    v = unit.copy()
    v[-1] -= -1.0 if unit[-1] > 0 else 1.0
    reflection = np.eye(len(v)) - 2.0 * np.outer(v, v) / (v @ v)
    reflection[:, -1] *= -1.0 if unit[-1] > 0 else 1.0
    return reflection


class _Parts(NamedTuple):
    """a and Q with their derivatives: (k,) and (k, k) in θ; ``across`` (k,) is ∂²Q/∂θ∂γ."""

    a: float
    a_slope: np.ndarray
    a_curve: np.ndarray
    Q_slope: np.ndarray
    Q_curve: np.ndarray
    across: np.ndarray
    white: _Whitened


def evaluate(x: np.ndarray, at: Problem) -> Surface | None:
    """The surface at x, or None where it is not finite."""
    k, s2 = at.k, float(np.exp(x[-1]))
    gamma = None if at.direction is None else float(x[k])
    found = (_of_levels if at.held is None else _of_engine)(x[:k], gamma, s2, at)
    if found is None:
        return None
    totals, white = likelihood.totals_of(at.data), found.white
    N = float(totals.n_rows) - (len(white.A) - 1 if at.reml else 0)
    value = found.a + N * (x[-1] + np.log(2.0 * np.pi)) + white.Q / s2 - float(totals.log_weights)
    gradient, hessian = np.zeros(len(x)), np.zeros((len(x), len(x)))
    gradient[:k], hessian[:k, :k] = found.a_slope + found.Q_slope / s2, found.a_curve + found.Q_curve / s2
    if gamma is not None:
        gradient[k], hessian[k, k] = -2.0 * white.kappa * white.slope / s2, 2.0 * white.slope**2 / s2
        hessian[:k, k] = hessian[k, :k] = found.across / s2
    hessian[-1, :-1] = hessian[:-1, -1] = -np.append(found.Q_slope / s2, gradient[k : len(x) - 1])
    gradient[-1], hessian[-1, -1] = N - white.Q / s2, white.Q / s2
    return Surface(float(value), gradient, hessian) if np.isfinite(value) else None


# ---------------------------------------------------------------- one factor


def _of_levels(theta: np.ndarray, gamma: float | None, s2: float, at: Problem) -> _Parts | None:
    data: Any = at.data
    log_det, H, levels_at = grouped.at_levels(theta, data)
    white = _whiten(H, gamma, at)
    if white is None:
        return None
    sums = grouped.whitened_sums(levels_at, white.A, at.reml)
    p, kq, q = len(H) - 1, len(sums.U), len(data.G)
    weight = np.array([1.0 if i == j else 2.0 for i, j in pairs(q)])
    moved, free = weight[:, None, None] * sums.TT, p - (gamma is not None)
    a_slope, Q_slope = weight * sums.U, -moved[:, p, p]
    by_U, fixed = -sums.UU, moved[:, :p, :p].reshape(kq, -1)
    explained = moved[:, :free, p]
    a_curve = assembly.step_products(by_U if sums.U_TT is None else by_U + 2.0 * sums.U_TT)
    a = float(log_det)
    if at.reml and p:
        a += white.log_det_x
        a_slope = a_slope - np.trace(moved[:, :p, :p], axis1=1, axis2=2)
        a_curve = a_curve - fixed @ fixed.T
    Q_curve = assembly.step_products(2.0 * sums.U_ee) - 2.0 * explained @ explained.T
    J, J2 = covariance.squared_derivatives(theta, data.template)
    across = np.zeros(len(theta)) if gamma is None else 2.0 * white.slope * (moved[:, p - 1, p] @ J)
    return _Parts(
        a,
        a_slope @ J,
        J.T @ a_curve @ J + np.tensordot(a_slope, J2, 1),
        Q_slope @ J,
        J.T @ Q_curve @ J + np.tensordot(Q_slope, J2, 1),
        across,
        white,
    )


# ---------------------------------------------------------------- any engine


def _of_engine(theta: np.ndarray, gamma: float | None, s2: float, at: Problem) -> _Parts | None:
    data: Any = at.data
    template, sizes, k = data.template, data.layout.sizes, len(theta)
    Ls = criterion.factors(theta, template, sizes)
    solved = at.held.solve(Ls)
    white = None if solved is None else _whiten(solved.H, gamma, at)
    if white is None:
        return None
    p, s2 = len(solved.H) - 1, s2
    D = at.held.project(solved, white.A)
    a_slope, Q_slope, a_bend, Q_bend = np.empty(k), np.empty(k), np.zeros((k, k)), np.zeros((k, k))
    owner, moves, Y, YT = [], [], [], []
    for j, (part, U, d) in enumerate(zip(criterion.parts(template, sizes), at.held.traces(solved), D, strict=True)):
        step, bend = criterion.moves_of(theta[part.theta], part, sizes[j])
        fixed = d[:, :p]
        by_a = U - np.tensordot(fixed, fixed, ([1, 2], [1, 2])) if at.reml and p else U
        by_Q = -d[:, p] @ d[:, p].T
        for slope, curve, psi in ((a_slope, a_bend, by_a), (Q_slope, Q_bend, by_Q)):
            slope[part.theta] = np.tensordot(psi, step, ((0, 1), (0, 1)))
            curve[part.theta, part.theta] = np.tensordot(psi.reshape(-1), bend, 1)
        owner += [j] * step.shape[2]
        moves += [step[:, :, b] for b in range(step.shape[2])]
        Y.append(criterion.moved(step, d[:, p:], part.theta, k))
        YT.append(criterion.moved(step, fixed, part.theta, k))
    cross, free = criterion.contract(D, Y), p - (gamma is not None)
    quadratic = criterion.contract(Y, at.held.apply(solved, Y)) - cross[:free].T @ cross[:free]
    if not at.exact:
        curve = -quadratic / s2
    else:
        curve = -likelihood.trace_products(at.held, solved, Ls, tuple(owner), moves)
        if at.reml and p:
            curve = curve + _of_fixed(at.held, solved, YT, D, k, p)
    a = float(solved.log_det) + (white.log_det_x if at.reml and p else 0.0)
    across = np.zeros(k) if gamma is None else 2.0 * white.slope * cross[p - 1]
    return _Parts(a, a_slope, _symmetric(curve + a_bend), Q_slope, _symmetric(2.0 * quadratic + Q_bend), across, white)


def _of_fixed(held: Any, solved: Any, YT: list[np.ndarray], D: list[np.ndarray], k: int, p: int) -> np.ndarray:
    """Second derivatives (k, k) of log|XᵀV⁻¹X| along the moves of V themselves."""
    YUY = criterion.contract(YT, held.apply(solved, YT)).reshape(k, p, k, p)
    squares = criterion.contract(YT, [d[:, :p] for d in D]).reshape(k, p * p)
    return 2.0 * np.trace(YUY, axis1=1, axis2=3) - squares @ squares.T


def _symmetric(M: np.ndarray) -> np.ndarray:
    return 0.5 * (M + M.T)
