"""The deviance of several grouping factors with its derivatives, from what every engine can do (MATH §5–6).

With Ψ_j = L_jL_jᵀ, U = ZᵀV⁻¹Z, T = ZᵀV⁻¹XR⁻ᵀ where RRᵀ = XᵀV⁻¹X, and e = ZᵀV⁻¹(y − Xβ̂), moving Ψ by Δ changes
    log|V| by Σ_l tr(ΔU_ll),   Q = rᵀV⁻¹r by −Σ_l eᵀΔe,   log|XᵀV⁻¹X| by −Σ_l tr(TᵀΔT).
So the gradient needs of U only the sums of its diagonal blocks. Second derivatives of Q need UΔe, one ``apply`` for
all parameters; those of log|V| need tr(V⁻¹V_aV⁻¹V_b), which costs more. The average information (Gilmour, Thompson
& Cullis 1995) replaces it by its unbiased form in the data, (N/Q) eᵀΔ_aUΔ_be less what X explains; where a column
of L is zero both are exact, so a saddle there is seen.

NumPy, but for ``slope``. Effects run (q, columns, levels), a list over the caller's factors.
"""

import functools
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.linalg import lapack

from . import assembly, covariance, linalg, multistart, starts
from .covariance import Template
from .crossed_data import CrossedData, NestedData
from .levels import pairs
from .optimize import NewtonState
from .profiled import AtOptimum, deviance_of_root, nothing_kept
from .types import Array

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
    tighter : times ``tol`` at which a search ends: less than 1 where another evaluation is cheap beside the digits
        that a search by the average information, which converges more slowly, leaves at its end.
    """

    exact: bool
    n_starts: int
    tighter: float

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
    """A factor's template, and where its parameters and effects stand among all.

    Attributes
    ----------
    root : (k, q²) with L = θ·root; square : (q², k, k) with Ψ = ½ θᵀ·square·θ; None of AR(1) blocks.
    """

    template: Template
    theta: slice
    effects: slice
    root: np.ndarray | None
    square: np.ndarray | None


@functools.lru_cache(maxsize=256)
def parts(template: Template, sizes: tuple[int, ...]) -> tuple[Part, ...]:
    """The parts of the factors of q = ``sizes`` effects."""
    out, blocks = [], list(template)
    k = at = 0
    for q in sizes:
        mine: tuple[Any, ...] = ()
        while sum(block.size for block in mine) < q:
            mine = (*mine, blocks.pop(0))
        here = slice(k, k + covariance.n_theta(mine))
        packed = covariance.squared_basis(mine)
        root = square = None
        if packed is not None:
            square = packed[_position(q).reshape(-1)]
            root = np.array([covariance.factor(unit, mine).reshape(-1) for unit in np.eye(len(packed[0]))])
        out.append(Part(mine, here, slice(at, at + q), root, square))
        k, at = here.stop, at + q
    return tuple(out)


def factors(theta: Any, template: Template, sizes: tuple[int, ...]) -> list[Any]:
    """L_j(θ), (q_j, q_j), of every factor in the caller's order."""
    if type(theta) is not np.ndarray:
        return [covariance.factor(theta[part.theta], part.template) for part in parts(template, sizes)]
    return [_root(theta[part.theta], part, q) for part, q in zip(parts(template, sizes), sizes, strict=True)]


def _root(theta: np.ndarray, part: Part, q: int) -> np.ndarray:
    return covariance.factor(theta, part.template) if part.root is None else (theta @ part.root).reshape(q, q)


def moves_of(theta: np.ndarray, part: Part, q: int) -> tuple[np.ndarray, np.ndarray]:
    """∂Ψ (q, q, k) and ∂²Ψ (q², k, k) of a factor."""
    if part.square is not None:
        return (part.square @ theta).reshape(q, q, -1), part.square
    J, J2 = covariance.squared_derivatives(theta, part.template)
    return J[_position(q)], J2[_position(q).reshape(-1)]


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
    D : per factor ZᵀV⁻¹[X y]A, whitened: T, and e in the last column.
    bend : (k, k) Σ tr(g_Ψ ∂²Ψ); q : (k, k) eᵀΔ_aUΔ_be less what X explains; slopes : (k,) −∂Q/∂θ; Q : rᵀV⁻¹r.
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
    places, sizes = parts(data.template, data.layout.sizes), data.layout.sizes
    solved = engine.solve(factors(theta, data.template, sizes))
    R = None if solved is None else linalg.cholesky(solved.H)
    if R is None or not np.isfinite(R[-1, -1]):
        return None
    p, k = len(R) - 1, len(theta)
    Q, dof = float(R[p, p] ** 2), float(data.n_rows) - (p if reml else 0)
    D = engine.project(solved, whitening(R))
    gradient, bend = np.empty(k), np.zeros((k, k))
    owner: list[int] = []
    moves, Y = [], []
    for j, (part, trace, d) in enumerate(zip(places, engine.traces(solved), D, strict=True)):
        mine = part.theta
        step, curvature = moves_of(theta[mine], part, sizes[j])
        slope = _slope_psi(trace, d, dof / Q, reml).reshape(-1)
        gradient[mine] = slope @ step.reshape(len(slope), -1)
        bend[mine, mine] = (slope @ curvature.reshape(len(slope), -1)).reshape(curvature.shape[1:])
        owner += [j] * step.shape[2]
        moves += [step[:, :, a] for a in range(step.shape[2])]
        Y.append(moved(step, d[:, p:], mine, k))
    cross = contract(D, Y)
    slopes, across = cross[p], cross[:p]
    quadratic = contract(Y, engine.apply(solved, Y)) - across.T @ across
    value = deviance_of_root(solved.log_det, R, data, reml)
    kept = AtOptimum(solved.H, -slopes / Q)
    quadratic = 0.5 * (quadratic + quadratic.T)
    return Point(theta, solved, tuple(owner), moves, D, value, gradient, bend, quadratic, slopes, Q, dof, kept)


def whitening(R: np.ndarray) -> np.ndarray:
    """``assembly.whitening`` in one call."""
    A = lapack.dtrtri(R, lower=1)[0].T
    A[:, -1] *= R[-1, -1]
    return A


def _slope_psi(trace: np.ndarray, d: np.ndarray, weight: float, reml: bool) -> np.ndarray:
    """The symmetric (q, q) derivative of the deviance in a factor's Ψ; ``weight`` = N/Q."""
    p = d.shape[1] - 1
    e = d[:, p]
    slope = trace - weight * (e @ e.T)
    if reml and p:
        # Not of one array with itself, for which NumPy makes a slow rank-k update.
        slope -= np.tensordot(d[:, :p], d[:, :p], ([1, 2], [1, 2])) if len(d) > 1 else np.vdot(d[0, :p], d[0, :p])
    return slope


def moved(step: np.ndarray, d: np.ndarray, mine: slice, k: int) -> np.ndarray:
    """Δ_ad of a factor (q, k·c, m), zero for the parameters of others: step (q, q, k_j), d (q, c, m)."""
    q, c, m = d.shape
    out = np.zeros((q, k, c, m))
    if q == 1:
        np.multiply(step[0, 0][:, None, None], d, out=out[:, mine])
    else:
        out[:, mine] = np.tensordot(step, d, ((1,), (0,)))
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
    k, T = len(point.theta), [d[:, :p] for d in point.D]
    Y = []
    for j, part in enumerate(parts(data.template, data.layout.sizes)):
        step = np.stack([move for i, move in zip(point.owner, point.moves, strict=True) if i == j], axis=2)
        Y.append(moved(step, T[j], part.theta, k))
    YUY = contract(Y, engine.apply(point.solved, Y)).reshape(k, p, k, p)
    YT = contract(Y, T).reshape(k, p * p)
    return 2.0 * np.trace(YUY, axis1=1, axis2=3) - YT @ YT.copy().T


def slope(engine: Any, theta: Array, data: CrossedData | NestedData, reml: bool) -> tuple[Array, Array, AtOptimum]:
    """Deviance (), gradient (k,) in scaled θ and what the fit keeps, of JAX arrays, in closed form.

    The gradient in L of every factor is that in Ψ times 2L; of a dense factor the sum of UL costs no more than S⁻¹.
    """
    import jax

    Ls, pull = jax.vjp(lambda x: factors(x, data.template, data.layout.sizes), theta)
    solved = engine.solve(Ls)
    R = linalg.cholesky(solved.H)
    p, Q = len(R) - 1, R[-1, -1] ** 2
    dof = data.n_rows - (p if reml else 0)
    in_root, log_scale = [], []
    for L, UL, d in zip(
        Ls, engine.rooted_traces(solved, Ls), engine.project(solved, assembly.whitening(R)), strict=True
    ):
        eeL = d[:, p] @ (d[:, p].T @ L) / Q
        fixed = sum(d[:, c] @ (d[:, c].T @ L) for c in range(p)) if reml else 0.0
        in_root.append(2.0 * (UL - dof * eeL - fixed))
        log_scale.append(-2.0 * eeL)
    value = deviance_of_root(solved.log_det, R, data, reml)
    return value, pull(in_root)[0], AtOptimum(solved.H, pull(log_scale)[0])


def differentiated(engine: Any, theta: Array, data: CrossedData | NestedData, reml: bool) -> tuple[Any, ...]:
    """``slope`` of JAX arrays with the Hessian (k, k), its derivative in forward mode: what ``objective`` returns."""
    import jax

    def gradient(x: Array) -> tuple[Array, tuple[Array, Array, AtOptimum]]:
        found = slope(engine, x, data, reml)
        return found[1], found

    hessian, (value, first, kept) = jax.jacfwd(gradient, has_aux=True)(theta)
    return value, first, 0.5 * (hessian + hessian.T), kept


class _Secant:
    """What the average information lacks of the Hessian, learnt from the gradients on the way.

    Near the optimum the two differ by nearly constant terms, so that a search would converge by a constant factor,
    about a tenth, per evaluation. The least symmetric change of the difference, in the metric of the average
    information, that explains the latest two gradients makes it superlinear (Dennis, Gay & Welsch 1981). None is made
    far from the optimum, where the difference is not constant, or where the sum would stray from the information.
    """

    def __init__(self, k: int) -> None:
        self.lacking = np.zeros((k, k))
        self.x: Any = None
        self.gradient: Any = None

    def corrected(self, x: np.ndarray, gradient: np.ndarray, information: np.ndarray) -> np.ndarray:
        """The curvature (k, k) at ``x``."""
        out = information + self.lacking
        if self.x is not None:
            step, weighed = x - self.x, information @ (x - self.x)
            size = step @ weighed
            # In deviance units: not across the valley, and not where differences of gradients are rounding.
            if 1e-10 < size < 0.1:
                rest = (gradient - self.gradient - out @ step) / size
                across = np.outer(rest, weighed)
                self.lacking = self.lacking + across + across.T - (rest @ step / size) * np.outer(weighed, weighed)
                out = information + self.lacking
        self.x, self.gradient = x, gradient
        if not _is_near(out, information):
            self.lacking = np.zeros_like(information)
            return information
        return out


def _is_near(A: np.ndarray, B: np.ndarray) -> bool:
    """Whether A/4 < B < 4A as quadratic forms; B must be positive definite."""
    low, high = linalg.cholesky(A - 0.25 * B), linalg.cholesky(4.0 * B - A)
    return bool(np.isfinite(low[0, 0]) and np.isfinite(high[0, 0]))


def objective(engine: Engine, data: CrossedData | NestedData, reml: bool, exact: bool) -> Any:
    """θ → (deviance, gradient, curvature, what the fit keeps), for ``optimize.advance``.

    The curvature is the Hessian, or in the points of one search the average information and what it was seen to lack.
    """
    k, w = covariance.n_theta(data.template), len(data.WtW)
    nothing = AtOptimum(np.full((w, w), np.nan), np.full(k, np.nan))
    failed = (np.float64(np.nan), np.full(k, np.nan), np.full((k, k), np.nan), nothing)
    secant = _Secant(k)

    def at(theta: np.ndarray) -> tuple[Any, ...]:
        point = evaluate(engine, theta, data, reml)
        if point is None:
            return failed
        if exact:
            curvature = exact_hessian(engine, point, data, reml)
        else:
            curvature = secant.corrected(theta, point.gradient, average_information(point))
        return point.value, point.gradient, curvature, point.kept

    return at


def search(
    engine: Engine, data: CrossedData | NestedData, x0: np.ndarray, tol: Any, max_iter: Any, reml: bool
) -> tuple[NewtonState, Any]:
    """The optimum over scaled θ, and how many were seen; its Hessian is the average information unless ``exact``.

    Where a structure holds Ψ on a surface of low rank the information may be indefinite at the optimum.
    """
    tol = tol * engine.tighter
    exact = engine.exact or covariance.loses_rank(data.template)
    curved, nothing = objective(engine, data, reml, exact), nothing_kept(data.n_fixed, x0)
    once = engine.n_starts == 0 or max_iter <= 1
    further = None if once else plan(data, engine.n_starts)
    done = multistart.minimise(curved, multistart.begin(x0, nothing), further, tol, max_iter)
    return done.found, done.optima


def plan(data: CrossedData | NestedData, n_starts: int) -> multistart.Plan:
    """Search again, at most ``n_starts`` times, where the best end is in doubt."""
    certain = starts.is_balanced_chain(data.template, data.G) if isinstance(data, NestedData) else np.False_
    return starts.plan_of_several(data.template, n_starts, certain)
