"""The deviance of several grouping factors with its derivatives, from what every engine can do (MATH §5–6).

With Ψ_j = L_jL_jᵀ, U = ZᵀV⁻¹Z, T = ZᵀV⁻¹XR⁻ᵀ where RRᵀ = XᵀV⁻¹X, and e = ZᵀV⁻¹(y − Xβ̂), moving Ψ by Δ changes
    log|V| by Σ_l tr(ΔU_ll),   Q = rᵀV⁻¹r by −Σ_l eᵀΔe,   log|XᵀV⁻¹X| by −Σ_l tr(TᵀΔT).
So the gradient needs of U only the sums of its diagonal blocks. Second derivatives of Q need UΔe, one ``apply`` for
all parameters; those of log|V| need tr(V⁻¹V_aV⁻¹V_b), which costs more. The average information (Gilmour, Thompson
& Cullis 1995) replaces it by its unbiased form in the data, (N/Q) eᵀΔ_aUΔ_be less what X explains; where a column
of L is zero both are exact, so a saddle there is seen.

NumPy only. Effects run (q, columns, levels), a list over the caller's factors.
"""

import functools
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import covariance, linalg, multistart
from .assembly import whitening
from .covariance import Template
from .crossed_data import CrossedData, NestedData
from .levels import pairs
from .optimize import NewtonState
from .profiled import AtOptimum, deviance_of_root, nothing_kept
from .records import doubtful

Effects = list[np.ndarray]


class Solved(Protocol):
    """log|V| (), H = [X y]ᵀV⁻¹[X y] (p+1, p+1), and what the engine keeps."""

    @property
    def log_det(self) -> Any: ...
    @property
    def H(self) -> Any: ...


class Engine(Protocol):
    """What is asked of a way to hold V of several factors.

    Attributes
    ----------
    exact : whether ``trace_products`` costs no more than an evaluation, so that a search had better use it.
    n_starts : further starts that a search may take where its end is in doubt.
    """

    exact: bool
    n_starts: int

    def solve(self, Ls: list[np.ndarray]) -> Any:
        """A ``Solved`` for L (q, q) per factor, or None where V is not positive definite."""

    def project(self, solved: Any, A: np.ndarray) -> Effects:
        """ZᵀV⁻¹[X y]A for A (p+1, c)."""

    def apply(self, solved: Any, Y: Effects) -> Effects:
        """ZᵀV⁻¹ZY."""

    def traces(self, solved: Any) -> list[np.ndarray]:
        """Σ over the levels of ZᵀV⁻¹Z (q, q), per factor."""

    def variances(self, solved: Any) -> list[np.ndarray]:
        """Var(b | y)/σ² with β fixed, (q, q, m) per factor."""

    def trace_products(self, solved: Any, owner: tuple[int, ...], moves: list[np.ndarray]) -> np.ndarray:
        """tr(V⁻¹V_aV⁻¹V_b) (k, k) for moves Δ_a (q, q) of the factors ``owner``."""


class Part(NamedTuple):
    """A factor's template, and where its parameters and effects stand among all."""

    template: Template
    theta: slice
    effects: slice


@functools.lru_cache(maxsize=256)
def parts(template: Template, sizes: tuple[int, ...]) -> tuple[Part, ...]:
    """The parts of the factors of q = ``sizes`` effects."""
    out, at, blocks = [], 0, list(template)
    theta = 0
    for q in sizes:
        mine: list[Any] = []
        while sum(block.size for block in mine) < q:
            mine.append(blocks.pop(0))
        k = covariance.n_theta(tuple(mine))
        out.append(Part(tuple(mine), slice(theta, theta + k), slice(at, at + q)))
        theta, at = theta + k, at + q
    return tuple(out)


def factors(theta: Any, template: Template, sizes: tuple[int, ...]) -> list[Any]:
    """L_j(θ), (q_j, q_j), of every factor in the caller's order."""
    return [covariance.factor(theta[part.theta], part.template) for part in parts(template, sizes)]


@functools.lru_cache(maxsize=64)
def _position(q: int) -> np.ndarray:
    """(q, q): where an entry of a symmetric matrix stands in its packed form."""
    out = np.zeros((q, q), int)
    for at, (i, j) in enumerate(pairs(q)):
        out[i, j] = out[j, i] = at
    return out


class Point(NamedTuple):
    """Everything at one scaled θ that the derivatives share.

    Attributes
    ----------
    owner : (k,) the factor of every parameter; moves : per parameter ∂Ψ (q, q) of its factor.
    D : per factor ZᵀV⁻¹[X y]A, whitened: T, and e in the last column. Y : per factor (q, k, m), Δ_ae.
    bend : (k, k) Σ tr(g_Ψ ∂²Ψ); q : (k, k) Y_aᵀUY_b less what X explains; slopes : (k,) −∂Q/∂θ; Q : rᵀV⁻¹r.
    """

    theta: np.ndarray
    solved: Any
    owner: tuple[int, ...]
    moves: list[np.ndarray]
    D: Effects
    value: Any
    gradient: np.ndarray
    bend: np.ndarray
    q: np.ndarray
    slopes: np.ndarray
    Q: float
    dof: float
    kept: AtOptimum


def contract(A: Effects, B: Effects) -> np.ndarray:
    """AᵀB (c, d) over all effects."""
    total: Any = 0.0
    for left, right in zip(A, B, strict=True):
        for a, b in zip(left, right, strict=True):
            total = total + a @ b.T
    return total


def evaluate(engine: Engine, theta: np.ndarray, data: CrossedData | NestedData, reml: bool) -> Point | None:
    """The point at scaled θ (k,), or None where the deviance is not finite."""
    places = parts(data.template, data.layout.sizes)
    solved = engine.solve([covariance.factor(theta[part.theta], part.template) for part in places])
    R = linalg.cholesky(solved.H) if solved is not None else np.full((1, 1), np.nan)
    if not np.isfinite(R[-1, -1]):
        return None
    p = len(R) - 1
    value = deviance_of_root(solved.log_det, R, data, reml)
    Q, dof = float(R[p, p] ** 2), float(data.n_rows) - (p if reml else 0)
    D = engine.project(solved, whitening(R))
    slope_psi = _slope_psi(engine.traces(solved), D, dof / Q, reml)
    k = len(theta)
    owner, moves, Y = [], [], []
    gradient, bend = np.empty(k), np.zeros((k, k))
    for j, part in enumerate(places):
        J, J2 = covariance.squared_derivatives(theta[part.theta], part.template)
        q = len(slope_psi[j])
        packed = slope_psi[j] if q == 1 else _packed_slope(slope_psi[j])
        gradient[part.theta] = packed[0] @ J if q == 1 else packed @ J
        bend[part.theta, part.theta] = np.tensordot(packed.reshape(-1), J2, 1)
        mine = J.T[:, _position(q)]
        owner += [j] * len(mine)
        moves += list(mine)
        Y.append(_moved(mine, D[j][:, p:], part.theta, k))
    cross = contract(D, Y)
    slopes, across = cross[p], cross[:p]
    quadratic = contract(Y, engine.apply(solved, Y)) - across.T @ across
    quadratic = 0.5 * (quadratic + quadratic.T)
    kept = AtOptimum(solved.H, -slopes / Q)
    return Point(theta, solved, tuple(owner), moves, D, value, gradient, bend, quadratic, slopes, Q, dof, kept)


def _slope_psi(traces: list[np.ndarray], D: Effects, weight: float, reml: bool) -> list[np.ndarray]:
    """Per factor, the symmetric (q, q) derivative of the deviance in Ψ; ``weight`` = N/Q."""
    out = []
    for trace, d in zip(traces, D, strict=True):
        q, p = len(d), d.shape[1] - 1
        e = d[:, p]
        slope = trace - weight * (e @ e.T)
        if reml and p:
            fixed = d[:, :p].reshape(q, -1)
            slope -= fixed @ fixed.T
        out.append(slope)
    return out


def _packed_slope(slope: np.ndarray) -> np.ndarray:
    """The packed form of a symmetric derivative, whose entries off the diagonal stand for two."""
    return (slope + slope.T - np.diag(np.diag(slope)))[np.tril_indices(len(slope))]


def _moved(moves: np.ndarray, d: np.ndarray, mine: slice, k: int) -> np.ndarray:
    """Δ_ad of a factor (q, k·c, m), zero for the parameters of others: moves (k_j, q, q), d (q, c, m)."""
    q, c, m = d.shape
    out = np.zeros((q, k, c, m))
    out[:, mine] = np.moveaxis(np.tensordot(moves, d, 1), 1, 0) if q > 1 else moves[:, 0, 0][:, None, None] * d
    return out.reshape(q, k * c, m)


def average_information(point: Point) -> np.ndarray:
    """The Hessian (k, k) with the traces of log|V| and log|XᵀV⁻¹X| in their data-dependent unbiased form."""
    return point.bend + point.dof / point.Q * (point.q - np.outer(point.slopes, point.slopes) / point.Q)


def exact_hessian(engine: Engine, point: Point, data: CrossedData | NestedData, reml: bool) -> np.ndarray:
    """The Hessian (k, k) in scaled θ."""
    in_q = point.dof / point.Q * (2.0 * point.q - np.outer(point.slopes, point.slopes) / point.Q)
    out = point.bend + in_q - engine.trace_products(point.solved, point.owner, point.moves)
    p = point.D[0].shape[1] - 1
    return out + _fixed_terms(engine, point, data, p) if reml and p else out


def _fixed_terms(engine: Engine, point: Point, data: CrossedData | NestedData, p: int) -> np.ndarray:
    """Second derivative of log|XᵀV⁻¹X| along pairs of moves of Ψ."""
    k, Y = len(point.theta), []
    T = [d[:, :p] for d in point.D]
    for part, t, j in zip(parts(data.template, data.layout.sizes), T, range(len(T)), strict=True):
        mine = np.array([move for i, move in zip(point.owner, point.moves, strict=True) if i == j])
        Y.append(_moved(mine, t, part.theta, k))
    YUY = contract(Y, engine.apply(point.solved, Y)).reshape(k, p, k, p)
    YT = contract(Y, T).reshape(k, p * p)
    return 2.0 * np.trace(YUY, axis1=1, axis2=3) - YT @ YT.T


def objective(engine: Engine, data: CrossedData | NestedData, reml: bool, exact: bool) -> Any:
    """θ → (deviance, gradient, Hessian or average information, what the fit keeps), for ``optimize.newton``."""
    k, w = covariance.n_theta(data.template), len(data.WtW)
    nothing = AtOptimum(np.full((w, w), np.nan), np.full(k, np.nan))
    failed = (np.float64(np.nan), np.full(k, np.nan), np.full((k, k), np.nan), nothing)

    def at(theta: np.ndarray) -> tuple[Any, ...]:
        point = evaluate(engine, theta, data, reml)
        if point is None:
            return failed
        curvature = exact_hessian(engine, point, data, reml) if exact else average_information(point)
        return point.value, point.gradient, curvature, point.kept

    return at


def search(
    engine: Engine, data: CrossedData | NestedData, x0: np.ndarray, tol: Any, max_iter: Any, reml: bool
) -> tuple[NewtonState, Any]:
    """The optimum over scaled θ, and how many were seen; its Hessian is the average information unless ``exact``."""
    first = multistart.begin(x0, nothing_kept(data.n_fixed, x0))
    starts = covariance.other_starts(data.template, x0)[: engine.n_starts]
    curved = objective(engine, data, reml, engine.exact)
    done = multistart.minimise(curved, first, starts, doubtful(data.template), tol, max_iter)
    return done.found, done.optima
