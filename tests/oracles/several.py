"""The deviance of any ``dense.Model`` at lanes of θ, for the searches of ``multistart``; shares no code with lme_jax.

As with one factor, rows are reduced once by Householder reflections in long double: K rows of [Z X y] that meet an
effect and one triangle. At a θ they are whitened by the QR of [ΛᵀZᵀ; I] over all K effects of all factors. A factor of
related levels is turned into independent ones by a root of K. Parameters and kinds of effects run over the factors.
"""

from typing import NamedTuple

import numpy as np

from . import templates
from .long import LONG
from .multistart import LOG_2PI, Point, orthonormal, reduced


class Problem(NamedTuple):
    """What a search needs: see ``multistart.Problem``; here all effects are one group.

    ``z`` (K, K), ``w`` (K, p+1), ``rest`` (p+1, p+1); ``shapes``: (levels, effects per level) of the factors.
    """

    z: np.ndarray
    w: np.ndarray
    rest: np.ndarray
    template: tuple
    shapes: tuple
    scale: np.ndarray
    dof: int
    reml: bool
    shift: float

    def evaluate(self, theta, *, order=2):
        """Deviance (and derivatives, order 2) at lanes of scaled θ (S, k)."""
        return evaluate(theta, self, order=order)


def independent(factor):
    """(n, mq) columns of effects that are independent between levels, in long double."""
    if factor.related is None:
        return factor.columns.astype(LONG)
    values, vectors = np.linalg.eigh(factor.related)
    root = (vectors * np.sqrt(np.maximum(values, 0))).astype(LONG)
    return factor.columns.astype(LONG) @ np.kron(root, np.eye(factor.Z.shape[1]))


def prepare(model):
    """The Problem of a Model."""
    n, p = model.X.shape
    w = np.ones(n, LONG) if model.weights is None else model.weights.astype(LONG)
    root = np.sqrt(w)[:, None]
    y = model.y.astype(LONG) - (0 if model.offset is None else model.offset)
    X, y, log_det = orthonormal(root * model.X, root * y[:, None])
    template = tuple(block for f in model.factors for block in f.blocks)
    shapes = tuple((f.m, f.Z.shape[1]) for f in model.factors)
    Zs = [root * independent(f) for f in model.factors]
    scale = templates.common_scale(template, np.concatenate([typical(Z, *s) for Z, s in zip(Zs, shapes, strict=True)]))
    kinds = np.cumsum([0, *(q for _, q in shapes)])
    Zs = [Z / np.tile(scale[at : at + q], m) for Z, (m, q), at in zip(Zs, shapes, kinds, strict=False)]
    rows = np.hstack([*Zs, X, y])
    z, kept, rest = reduced(rows, np.zeros(n, int), sum(m * q for m, q in shapes))
    unit = np.sqrt((y**2).sum() / n)
    kept[..., -1] /= unit
    rest[:, -1] /= unit
    dof = n - (p if model.reml else 0)
    shift = -np.log(w).sum() + dof * (1 + LOG_2PI + 2 * np.log(unit)) + (2 * log_det if model.reml else 0)
    doubles = [a.astype(float) for a in (z[0], kept[0], rest)]
    theta_scale = templates.theta_scale(template, scale)
    return Problem(*doubles, template, shapes, theta_scale, dof, model.reml, float(shift))


def typical(Z, m, q):
    """(q,) typical root of a level's Σz²."""
    sums = (Z.astype(float) ** 2).sum(0).reshape(m, q)
    logs = np.log(np.where(sums > 0, sums, np.nan))
    return np.array([np.exp(0.5 * np.nanmedian(c)) if np.isfinite(c).any() else 1.0 for c in logs.T])


def spans(shapes):
    """(slice of effects, slice of kinds of effects, m, q) of every factor."""
    lo = kind = 0
    for m, q in shapes:
        yield slice(lo, lo + m * q), slice(kind, kind + q), m, q
        lo, kind = lo + m * q, kind + q


def moved(Y, E, shapes):
    """Y (S, r, K) times the K × K matrices that hold a factor's blocks E (S, k, Σq, Σq) at its levels: (S, k, r, K)."""
    lanes, rows, _ = Y.shape
    parts = []
    for here, kinds, m, q in spans(shapes):
        part = Y[..., here].reshape(lanes, 1, rows * m, q) @ E[..., kinds, kinds]
        parts.append(part.reshape(*part.shape[:2], rows, m * q))
    return np.concatenate(parts, axis=-1)


def summed(G, shapes):
    """(S, Σq, Σq): the blocks of G (S, K, K) summed over the levels of each factor."""
    size = sum(q for _, q in shapes)
    out = np.zeros((len(G), size, size))
    for here, kinds, m, q in spans(shapes):
        out[:, kinds, kinds] = np.einsum("smimj->sij", G[:, here, here].reshape(-1, m, q, m, q))
    return out


def whitened(theta, problem):
    """V⁻½[Z X y] of every lane (S, K, K+p+1), and log|V| (S,)."""
    L = templates.root(theta, problem.template)
    BT = np.swapaxes(moved(problem.z[None], L[:, None], problem.shapes)[:, 0], 1, 2)
    R = np.linalg.qr(np.concatenate([BT, np.broadcast_to(np.eye(len(problem.z)), BT.shape)], axis=1), mode="r")
    log_det = 2 * np.log(np.abs(np.diagonal(R, axis1=1, axis2=2))).sum(1)
    return np.swapaxes(np.linalg.inv(R), 1, 2) @ np.hstack([problem.z, problem.w]), log_det


def evaluate(theta, problem, *, order=2):
    """Deviance (and derivatives, order 2) at lanes θ (S, k) of the scaled problem."""
    white, log_det = whitened(theta, problem)
    lanes, K, _ = white.shape
    p = len(problem.rest) - 1
    rest = np.broadcast_to(problem.rest, (lanes, *problem.rest.shape))
    Q, R = np.linalg.qr(np.concatenate([white[..., K:], rest], axis=1))
    rss = R[:, p, p] ** 2
    value = log_det + problem.dof * np.log(rss / problem.dof) + problem.shift
    if problem.reml:
        value = value + 2 * np.log(np.abs(R[:, np.arange(p), np.arange(p)])).sum(1)
    if order == 0:
        return value
    Z = np.swapaxes(white[..., :K], 1, 2)
    s = (Z @ Q[:, :K, p:])[..., 0] * R[:, p, p][:, None]
    return Point(value, *slopes(theta, problem, Z @ white[..., :K], Z @ Q[:, :K, :p], s, rss))


def slopes(theta, problem, A, T, s, rss):
    """Gradient and Hessian in θ from A = ZᵀV⁻¹Z, T = ZᵀV⁻¹X of orthonormal X, and s = ZᵀV⁻¹r."""
    shapes, lanes, ratio = problem.shapes, len(theta), problem.dof / rss
    U = A - T @ np.swapaxes(T, 1, 2) if problem.reml else A
    G = summed(U - ratio[:, None, None] * s[:, :, None] * s[:, None], shapes)
    first, second = templates.derivatives(theta, problem.template)
    gradient = np.einsum("sij,saij->sa", G, first)
    H = np.einsum("sij,sabij->sab", G, second)
    UE = moved(U, first, shapes)
    k = UE.shape[1]
    H -= UE.reshape(lanes, k, -1) @ np.swapaxes(np.swapaxes(UE, 2, 3).reshape(lanes, k, -1), 1, 2)
    Es = moved(s[:, None], first, shapes)[:, :, 0]
    TEs = Es @ T
    u = (Es @ s[..., None])[..., 0]
    quadratic = 2 * (Es @ A @ np.swapaxes(Es, 1, 2) - TEs @ np.swapaxes(TEs, 1, 2))
    H += ratio[:, None, None] * (quadratic - u[:, :, None] * u[:, None] / rss[:, None, None])
    return gradient, 0.5 * (H + np.swapaxes(H, 1, 2))
