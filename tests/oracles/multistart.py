"""The best optimum of a one-factor linear mixed model, by many searches; shares no code with lme_jax.

Rows are whitened by the weights and reduced once by Householder reflections in long double: q rows of [Z X y] a group
and one pooled triangle. At a θ, every group is whitened by the QR of [LᵀZᵀ; I] and all are joined by a QR of [X y], so
that no cross-product is ever inverted and neither offsets, weights nor ratios of variances eat the digits.
Derivatives are analytic; all starts are searched at once, as lanes, by a Newton trust region.
"""

from typing import NamedTuple

import numpy as np

from . import dense, templates
from .long import LONG, big_rows_first, reflect, solve_upper

LOG_2PI = np.log(2 * np.pi)


class Design(NamedTuple):
    """A one-factor model: codes are 0 … m−1; weights w > 0 with Var(ε) = σ²/w; y is corrected for the offset."""

    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    codes: np.ndarray
    weights: np.ndarray | None = None
    offset: np.ndarray | None = None
    structure: str | tuple = "unstructured"
    reml: bool = True


class Problem(NamedTuple):
    """What a search needs. X is orthonormal and y an OLS residual of unit size; columns of Z are scaled.

    ``z`` (m, q, q), ``w`` (m, q, p+1): the rows of each group that meet Z; ``rest`` (p+1, p+1): all other rows.
    The deviance of the data is the deviance of these numbers plus ``shift``.
    """

    z: np.ndarray
    w: np.ndarray
    rest: np.ndarray
    template: tuple
    scale: np.ndarray
    dof: int
    reml: bool
    shift: float

    def evaluate(self, theta, *, order=2):
        """Deviance (and derivatives, order 2) at lanes of scaled θ (S, k)."""
        return evaluate(theta, self, order=order)


class Point(NamedTuple):
    """Lanes of deviances, gradients and Hessians."""

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray


class Optimum(NamedTuple):
    """``theta`` in lme_jax's packing; ``local``: deviances of the distinct local optima, best first."""

    deviance: float
    theta: np.ndarray
    local: np.ndarray
    curvature: float


# ---------------------------------------------------------------- the data, once


def prepare(design, *, scale=None):
    """The Problem of a Design; ``scale`` (q,) of the columns of Z, by default each group's typical root of Σz²."""
    w = np.ones(len(design.y), LONG) if design.weights is None else design.weights.astype(LONG)
    root = np.sqrt(w)[:, None]
    y = design.y.astype(LONG) - (0 if design.offset is None else design.offset)
    X, Z, y = root * design.X, root * design.Z, root * y[:, None]
    n, p, q = len(y), X.shape[1], Z.shape[1]
    template = templates.as_template(design.structure, q)
    X, y, log_det = orthonormal(X, y)
    scale = z_scale(Z, design.codes, template) if scale is None else np.asarray(scale, LONG)
    rows = np.hstack([Z / scale, X, y])
    z, kept, rest = reduced(rows, design.codes, q)
    dof = n - (p if design.reml else 0)
    unit = np.sqrt((y**2).sum() / n)
    kept[..., -1] /= unit
    rest[:, -1] /= unit
    shift = -np.log(w).sum() + dof * (1 + LOG_2PI + 2 * np.log(unit)) + (2 * log_det if design.reml else 0)
    theta_scale = templates.theta_scale(template, scale.astype(float))
    doubles = [a.astype(float) for a in (z, kept, rest)]
    return Problem(*doubles, template, theta_scale, dof, design.reml, float(shift))


def orthonormal(X, y):
    """X with orthonormal columns, y without its part along X, and log|det| of the map between."""
    p = X.shape[1]
    if not p:
        return X, y, LONG(0)
    size = np.sqrt((X * X).sum(0))
    X = X / size
    log_det = np.log(size).sum()
    for _ in range(2):
        R = reflect(big_rows_first(X), p)[:p]
        X = solve_upper(R.T[::-1, ::-1], X.T[::-1])[::-1].T
        log_det += np.log(np.abs(np.diag(R))).sum()
    for _ in range(3):
        y = y - X @ (X.T @ y)
    return X, y, log_det


def z_scale(Z, codes, template):
    """(q,) typical root of a group's Σz², in which θ = 1 means that a group knows its effect as well as not at all."""
    sums = np.array([(Z[codes == g] ** 2).sum(0) for g in np.unique(codes)], float)
    logs = np.where(sums > 0, np.log(np.where(sums > 0, sums, 1.0)), np.nan)
    typical = np.array([np.exp(0.5 * np.nanmedian(c)) if np.isfinite(c).any() else 1.0 for c in logs.T])
    return templates.common_scale(template, typical).astype(LONG)


def reduced(rows, codes, q):
    """z (m, q, q), w (m, q, p+1), rest (p+1, p+1) of rows [Z X y]."""
    z, w, rest = [], [], []
    width = rows.shape[1] - q
    for g in np.unique(codes):
        R = reflect(big_rows_first(rows[codes == g]), q)
        top = np.vstack([R[:q], np.zeros((max(q - len(R), 0), R.shape[1]), R.dtype)])
        z.append(top[:, :q])
        w.append(top[:, q:])
        rest.append(R[q:, q:])
    rest = np.vstack([*rest, np.zeros((width + 1, width), LONG)])
    return np.array(z), np.array(w), np.triu(reflect(big_rows_first(rest), width)[:width])


# ---------------------------------------------------------------- the deviance at lanes of θ


def whitened(theta, problem):
    """V⁻½[Z X y] of every lane and group, (S, m, q, q+p+1), and log|V| (S,)."""
    z, w = problem.z, problem.w
    q = z.shape[1]
    L = templates.root(theta, problem.template)
    BT = np.swapaxes(z[None] @ L[:, None], 2, 3)
    eye = np.broadcast_to(np.eye(q), BT.shape)
    R = np.linalg.qr(np.concatenate([BT, eye], axis=2), mode="r")
    inverse = np.swapaxes(np.linalg.inv(R), 2, 3)
    log_det = 2 * np.log(np.abs(np.diagonal(R, axis1=2, axis2=3))).sum((1, 2))
    return inverse @ np.concatenate([z, w], axis=2)[None], log_det


def evaluate(theta, problem, *, order=2):
    """Deviance (and derivatives, order 2) at lanes θ (S, k) of the scaled problem."""
    white, log_det = whitened(theta, problem)
    lanes, m, q, _ = white.shape
    p = problem.w.shape[2] - 1
    rest = np.broadcast_to(problem.rest, (lanes, *problem.rest.shape))
    joined = np.concatenate([white[..., q:].reshape(lanes, m * q, p + 1), rest], axis=1)
    Q, R = np.linalg.qr(joined)
    rss = R[:, p, p] ** 2
    value = log_det + problem.dof * np.log(rss / problem.dof) + problem.shift
    if problem.reml:
        value = value + 2 * np.log(np.abs(R[:, np.arange(p), np.arange(p)])).sum(1)
    if order == 0:
        return value
    Qg = Q[:, : m * q].reshape(lanes, m, q, p + 1)
    e = Qg[..., p] * R[:, p, p][:, None, None]
    return Point(value, *slopes(theta, problem, white[..., :q], Qg[..., :p], e, rss))


def slopes(theta, problem, Zt, Qx, e, rss):
    """Gradient and Hessian in θ from whitened Z (S, m, q, q), the orthonormal X and the whitened residuals."""
    ZtT = np.swapaxes(Zt, 2, 3)
    A, T = ZtT @ Zt, ZtT @ Qx
    s = (ZtT @ e[..., None])[..., 0]
    ratio = (problem.dof / rss)[:, None, None]
    G = A.sum(1) - ratio * np.einsum("smi,smj->sij", s, s)
    if problem.reml:
        G -= np.einsum("smip,smjp->sij", T, T)
    first, second = templates.derivatives(theta, problem.template)
    gradient = np.einsum("sij,saij->sa", G, first)
    curved = np.einsum("sij,sabij->sab", G, second)
    return gradient, curved + curvature(first, A, s, T, rss, problem)


def curvature(E, A, s, T, rss, problem):
    """Second derivatives along directions E (S, k, q, q) of Ψ."""
    lanes, k = E.shape[:2]
    AE = A[:, :, None] @ E[:, None]
    flat = np.moveaxis(AE, 2, 1).reshape(lanes, k, -1)
    turned = np.moveaxis(np.swapaxes(AE, 3, 4), 2, 1).reshape(lanes, k, -1)
    H = -flat @ np.swapaxes(turned, 1, 2)
    Es = np.einsum("saij,smj->sami", E, s)
    AEs = np.einsum("smij,samj->sami", A, Es).reshape(lanes, k, -1)
    TEs = np.einsum("smip,sami->sap", T, Es)
    u = np.einsum("smi,sami->sa", s, Es)
    dd = 2 * (Es.reshape(lanes, k, -1) @ np.swapaxes(AEs, 1, 2) - TEs @ np.swapaxes(TEs, 1, 2))
    r = rss[:, None, None]
    H = H + problem.dof * (dd / r - u[:, :, None] * u[:, None] / r**2)
    if problem.reml and T.shape[3]:
        ET = E[:, :, None] @ T[:, None]
        AET = A[:, None] @ ET
        K = (np.swapaxes(T, 2, 3)[:, None] @ ET).sum(2).reshape(lanes, k, -1)
        ET, AET = ET.reshape(lanes, k, -1), AET.reshape(lanes, k, -1)
        H = H + 2 * ET @ np.swapaxes(AET, 1, 2) - K @ np.swapaxes(K, 1, 2)
    return 0.5 * (H + np.swapaxes(H, 1, 2))


# ---------------------------------------------------------------- the searches


class Lanes(NamedTuple):
    """Where searches ended: θ (S, k) scaled, deviance, smallest relative curvature, evaluations, whether it ended."""

    theta: np.ndarray
    value: np.ndarray
    curvature: np.ndarray
    evaluations: np.ndarray
    done: np.ndarray


def trust_step(gradient, hessian, radius):
    """Minimiser of the quadratic model in a ball, its promise, ½gᵀ|H|⁻¹g and the smallest relative eigenvalue."""
    values, vectors = np.linalg.eigh(hessian)
    size = np.abs(values).max(1, keepdims=True) + 1e-300
    g = (np.swapaxes(vectors, 1, 2) @ gradient[..., None])[..., 0]
    lowest = values[:, :1]
    decrease = 0.5 * (g * g / np.maximum(np.abs(values), 1e-13 * size)).sum(1)
    flat = (decrease < 1e-9) & (lowest[:, 0] < -1e-9 * size[:, 0])
    # At a saddle a nudge along the most negative curvature; the hard case is thereby avoided.
    g[:, 0] = np.where(flat & (np.abs(g[:, 0]) < 1e-6 * size[:, 0]), 1e-6 * size[:, 0], g[:, 0])
    floor = np.maximum(-lowest, 0) + 1e-13 * size
    low, high = floor, floor + np.linalg.norm(g, axis=1, keepdims=True) / radius[:, None] + 1e-300
    inside = np.linalg.norm(g / (values + floor), axis=1, keepdims=True) <= radius[:, None]
    for _ in range(30):
        middle = np.sqrt(low * high)
        long = np.linalg.norm(g / (values + middle), axis=1, keepdims=True) > radius[:, None]
        low, high = np.where(long, middle, low), np.where(long, high, middle)
    step = -g / (values + np.where(inside, floor, high))
    promise = -(g * step).sum(1) - 0.5 * (values * step * step).sum(1)
    return (vectors @ step[..., None])[..., 0], promise, decrease, lowest[:, 0] / size[:, 0], flat


def search(theta, problem, *, max_evaluations=120, tol=1e-10, radius=1.0, stepper=trust_step):
    """A Newton trust region from every start (S, k) of the scaled problem."""
    theta = np.array(theta, float)
    lanes = len(theta)
    value, gradient, hessian = (np.array(a) for a in problem.evaluate(theta))
    radii, curved = np.full(lanes, radius, float), np.zeros(lanes)
    count, last, done = np.ones(lanes, int), np.zeros(lanes, bool), ~np.isfinite(value)
    for _ in range(max_evaluations):
        on = np.flatnonzero(~done)
        if not len(on):
            break
        step, promise, decrease, curved[on], saddle = stepper(gradient[on], hessian[on], radii[on])
        small = (decrease < tol) & ~saddle
        new = problem.evaluate(theta[on] + step)
        count[on] += 1
        accept, ratio = gain(value[on], new.value, promise, small)
        radii[on] = next_radius(radii[on], ratio, np.linalg.norm(step, axis=1))
        moved = on[accept]
        theta[moved] += step[accept]
        for kept, found in zip((value, gradient, hessian), new, strict=True):
            kept[moved] = found[accept]
        done[on] = (small & last[on]) | (radii[on] < 1e-12 * (1 + np.abs(theta[on]).max(1)))
        last[on] = small
    return Lanes(theta, value, curved, count, done)


def gain(old, new, promise, small):
    """Which steps to take, and what they gained of their promise; near the optimum differences are rounding."""
    noise = 1e-13 * (1 + np.abs(old))
    actual = old - new
    close = small & (np.abs(actual) < 1e-7 * (1 + np.abs(old)))
    accept = np.isfinite(new) & ((actual > -noise) | close)
    return accept, np.where(accept, (actual + noise) / (np.abs(promise) + noise), 0.0)


def next_radius(radius, ratio, length):
    """Smaller after a poor step, larger after a good one at the edge."""
    radius = np.where(ratio < 0.25, 0.25 * length, radius)
    return np.where((ratio > 0.75) & (length > 0.9 * radius), 4 * radius, radius)


def persevered(found, problem, best=12, max_evaluations=600):
    """Go on from the lowest ends that ran out of evaluations: long curved valleys, where L turns at a fixed LLᵀ."""
    unfinished = [i for i in np.argsort(found.value)[:best] if not found.done[i]]
    if not unfinished:
        return found
    more = search(found.theta[unfinished], problem, max_evaluations=max_evaluations)
    fields = [np.array(a) for a in found]
    for field, new in zip(fields, more, strict=True):
        field[unfinished] = new
    return Lanes(*fields)


def starts(problem, rng, draws=300, best=10):
    """The grid of starts, and the best of random ones that are not each other's neighbours."""
    template = problem.template
    grid = templates.grid_starts(template)
    random = np.array([templates.random_theta(template, rng, -2.5, 4.0) for _ in range(draws)])
    values = problem.evaluate(random, order=0)
    chosen = []
    logs = np.sign(random) * np.log1p(10 * np.abs(random))
    for i in np.argsort(values):
        if all(np.abs(logs[i] - logs[j]).max() > 0.7 for j in chosen):
            chosen.append(i)
        if len(chosen) == best:
            break
    return np.vstack([grid, random[chosen]])


def profile_starts(problem):
    """One variance: every local minimum of a fine grid from 1e-6 to 1e7, and zero."""
    grid = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 7, 400)])[:, None]
    value = problem.evaluate(grid, order=0)
    padded = np.concatenate([[np.inf], value, [np.inf]])
    return grid[(value <= padded[:-2]) & (value <= padded[2:])]


def solve(design, *, seed=0, extra=None):
    """The best optimum of a Design: many starts, each searched by Newton.

    Parameters
    ----------
    design : Design or a Problem, of one factor or of ``several``.
    seed : of the random starts.
    extra : (·, k), optional
        More starts, as lme_jax packs θ.
    """
    problem = prepare(design) if isinstance(design, Design) else design
    k = templates.n_theta(problem.template)
    first = profile_starts(problem) if k == 1 else starts(problem, np.random.default_rng(seed))
    if extra is not None:
        given = [np.asarray(t, float) * problem.scale for t in np.atleast_2d(extra)]
        first = np.vstack([first, given])
    found = persevered(search(first, problem), problem)
    ok = np.isfinite(found.value)
    best = np.flatnonzero(ok)[np.argmin(found.value[ok])]
    theta = found.theta[best] / problem.scale
    minima = found.value[ok & (found.curvature > -1e-6)]
    return Optimum(
        float(found.value[best]),
        templates.to_lme_jax(theta, problem.template),
        distinct(minima if len(minima) else found.value[best : best + 1]),
        float(found.curvature[best]),
    )


def deviance(theta, problem):
    """The deviance at lme_jax's θ (k,)."""
    scaled = np.asarray(theta, float) * problem.scale
    return float(problem.evaluate(scaled[None], order=0)[0])


def distinct(values, tolerance=1e-5):
    """Sorted values without those that are within a tolerance of a lower one."""
    values = np.sort(values)
    return values[np.concatenate([[True], np.diff(values) > tolerance * np.maximum(1.0, np.abs(values[1:]))])]


def model_of(design):
    """A Design as the dense oracle takes it."""
    factor = dense.Factor(design.Z, design.codes, int(design.codes.max()) + 1, design.structure)
    return dense.Model(design.y, design.X, (factor,), design.weights, design.offset, design.reml)


def dense_deviance(design, theta):
    """−2 log L at lme_jax's θ from the n × n covariance."""
    return dense.deviance(theta, model_of(design))
