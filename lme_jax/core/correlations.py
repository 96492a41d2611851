"""Correlation matrices of the effects of a level as functions of unconstrained angles φ.

Every family has R(φ) = K(φ)K(φ)ᵀ smooth in φ, with the singular correlations as stationary points, so that they are
reached like any other point: ρ = sin φ (AR(1)), partial autocorrelations sin φ_k (Toeplitz; Barndorff-Nielsen & Schou
1973), the share sin² φ of the common eigenvalue (compound symmetry), ρ = sin² φ ≥ 0 (exponential). φ (n, *lanes) may
carry lanes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .jets import Jet, elementwise, joined
from .types import Array, namespace

Detail = tuple[Any, ...]
# Correlations that a start is given at most, and the least of a family that has none below zero.
STEEPEST, FAINTEST = 0.999, 0.01


class Correlation(NamedTuple):
    """What is asked of a family; q ≥ 2 effects, ``detail`` what the block knows beside (coordinates).

    Attributes
    ----------
    n_angles : q → n.
    root : (φ, q, detail) → K (q, q, *lanes); ``full`` says that it is not lower triangular.
    derivatives : (φ, q, detail) → R (q, q, *lanes), ∂R (q, q, n, *lanes), ∂²R (q, q, n, n, *lanes).
    angles : (R, q, detail) → φ whose correlations are near R (q, q, *lanes), away from singular ones.
    fold : φ → the canonical φ of the same R, and the sign of its derivative.
    smallest : (φ, q, detail) → (m, *lanes) roots that vanish where R is singular.
    names : q → labels of φ.
    lags : q → lags (0 aside) whose correlations are the free ones.
    distance : (q, detail) → distance of the first two effects, where people read a range; None elsewhere.
    """

    n_angles: Callable[[int], int]
    root: Callable[[Array, int, Detail], Array]
    derivatives: Callable[[Array, int, Detail], tuple[Array, Array, Array]]
    angles: Callable[[Array, int, Detail], Array]
    fold: Callable[[Array], tuple[Array, Array]]
    smallest: Callable[[Array, int, Detail], Array]
    names: Callable[[int], list[str]]
    lags: Callable[[int], list[int]] = lambda q: [1]
    distance: Callable[[int, Detail], float] | None = None
    full: bool = False


def _one(q: int) -> int:
    return 1


def _ones(like: Array, n: int) -> Array:
    return namespace(like).ones((n, *like.shape[1:]), like.dtype)


def lag_means(R: Array) -> Array:
    """(q − 1, *lanes) means of R (q, q, *lanes) along its subdiagonals."""
    q, xp = len(R), namespace(R)
    at = np.arange(q)
    return xp.stack([R[at[k:], at[: q - k]].mean(0) for k in range(1, q)])


def _clipped(r: Array) -> Array:
    return namespace(r).clip(r, -STEEPEST, STEEPEST)


def _fold_sine(phi: Array) -> tuple[Array, Array]:
    xp = namespace(phi)
    return xp.arcsin(xp.sin(phi)), xp.where(xp.cos(phi) < 0, -1.0, 1.0)


def _fold_square(phi: Array) -> tuple[Array, Array]:
    xp = namespace(phi)
    return xp.arcsin(xp.abs(xp.sin(phi))), xp.where(xp.sin(phi) * xp.cos(phi) < 0, -1.0, 1.0)


def identity(q: int, like: Array) -> np.ndarray:
    """I (q, q, 1 per lane) to broadcast against arrays of ``like``'s kind (n, *lanes)."""
    return np.eye(q, dtype=like.dtype).reshape(q, q, *[1] * (like.ndim - 1))


def _lags(q: int, like: Array) -> np.ndarray:
    """|i − j| (q, q, 1 per axis of ``like``)."""
    return np.abs(np.subtract.outer(np.arange(q), np.arange(q))).reshape(q, q, *[1] * like.ndim)


# ---------------------------------------------------------------- AR(1)


def _ar1_root(phi: Array, q: int, detail: Detail) -> Array:
    phi, xp = phi[0], namespace(phi)
    rho, innovation = xp.sin(phi), xp.cos(phi)
    lag = np.maximum(np.subtract.outer(np.arange(q), np.arange(q)), 0)
    ones = xp.ones((1, *phi.shape), phi.dtype)
    steps = xp.concatenate([ones, xp.broadcast_to(rho, (q - 1, *phi.shape))])
    first = xp.concatenate([ones, xp.broadcast_to(innovation, (q - 1, *phi.shape))])
    lower = np.tri(q, dtype=bool).reshape(q, q, *[1] * phi.ndim)
    return xp.where(lower, xp.cumprod(steps, axis=0)[lag] * first[None], 0.0)


def _ar1_derivatives(phi: Array, q: int, detail: Detail) -> tuple[Array, Array, Array]:
    xp, lag = namespace(phi), _lags(q, phi[0])
    rho, d_rho = xp.sin(phi[0]), xp.cos(phi[0])
    slope = xp.where(lag > 0, lag * rho ** np.maximum(lag - 1, 0), 0.0)
    bend = xp.where(lag > 1, lag * (lag - 1) * rho ** np.maximum(lag - 2, 0), 0.0)
    return rho**lag, (slope * d_rho)[:, :, None], (bend * d_rho**2 - slope * rho)[:, :, None, None]


AR1 = Correlation(
    n_angles=_one,
    root=_ar1_root,
    derivatives=_ar1_derivatives,
    angles=lambda R, q, detail: namespace(R).arcsin(_clipped(lag_means(R)[:1])),
    fold=_fold_sine,
    smallest=lambda phi, q, detail: abs(namespace(phi).cos(phi)),
    names=lambda q: ["arcsin ρ"],
)


# ---------------------------------------------------------------- Toeplitz


def _toeplitz_root(phi: Array, q: int, detail: Detail) -> Array:
    """K row by row through the normalised lattice: x_t and the backward errors as combinations of the innovations."""
    xp = namespace(phi)
    sine, cosine = xp.sin(phi), xp.cos(phi)
    unit = identity(q, phi) + xp.zeros((1, *phi.shape[1:]), phi.dtype)
    rows, backward = [unit[0]], [unit[0]]
    for t in range(1, q):
        f, errors = unit[t], []
        for k in range(t, 0, -1):
            b = backward[k - 1]
            errors.append(cosine[k - 1] * b - sine[k - 1] * f)
            f = cosine[k - 1] * f + sine[k - 1] * b
        rows.append(f)
        backward = [f, *errors[::-1]]
    return xp.stack(rows)


def autocorrelations(partial: Jet) -> Jet:
    """Lags 0 … n from the n partial autocorrelations: the Levinson–Durbin recursion."""
    one = Jet(partial.value[:1] * 0.0 + 1.0, partial.first[:, :1] * 0.0, partial.second[:, :, :1] * 0.0)
    r, v, a = one, one, None
    for k in range(len(partial.value)):
        pi = partial[k : k + 1]
        ahead = pi * v
        r = joined(r, ahead if a is None else ahead + (a * r[::-1][:k]).sum())
        a = pi if a is None else joined(a - pi * a[::-1], pi)
        v = v * (one - pi * pi)
    return r


def _toeplitz_derivatives(phi: Array, q: int, detail: Detail) -> tuple[Array, Array, Array]:
    xp, lag = namespace(phi), np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
    r = autocorrelations(elementwise(xp.sin(phi), xp.cos(phi), -xp.sin(phi)))
    first, second = xp.moveaxis(r.first, 1, 0), xp.moveaxis(r.second, 2, 0)
    return r.value[lag], first[lag], second[lag]


def _toeplitz_angles(R: Array, q: int, detail: Detail) -> Array:
    """Partial autocorrelations of the lags' means by the same recursion, each held inside (−1, 1)."""
    xp, r = namespace(R), lag_means(R)
    found: list[Array] = []
    past: list[Array] = []
    v = _ones(r, 1)[0]
    for k in range(q - 1):
        rest = r[k] - sum((c * r[k - 1 - j] for j, c in enumerate(past)), 0.0 * r[k])
        pi = _clipped(rest / v)
        past = [*(c - pi * past[k - 1 - j] for j, c in enumerate(past)), pi]
        v = v * (1.0 - pi * pi)
        found.append(pi)
    return xp.arcsin(xp.stack(found))


TOEPLITZ = Correlation(
    n_angles=lambda q: q - 1,
    root=_toeplitz_root,
    derivatives=_toeplitz_derivatives,
    angles=_toeplitz_angles,
    fold=_fold_sine,
    smallest=lambda phi, q, detail: abs(namespace(phi).cos(phi).prod(0))[None],
    names=lambda q: [f"arcsin partial {k}" for k in range(1, q)],
    lags=lambda q: list(range(1, q)),
)


# ---------------------------------------------------------------- compound symmetry


def _cs_root(phi: Array, q: int, detail: Detail) -> Array:
    """The symmetric root: R has the eigenvalues q sin²φ once and q cos²φ/(q − 1)."""
    xp, one = namespace(phi), identity(q, phi)
    mean = np.full_like(one, 1.0 / q)
    return math.sqrt(q) * xp.sin(phi[0]) * mean + math.sqrt(q / (q - 1)) * xp.cos(phi[0]) * (one - mean)


def _cs_derivatives(phi: Array, q: int, detail: Detail) -> tuple[Array, Array, Array]:
    xp, one = namespace(phi), identity(q, phi)
    s2, c2, steep = xp.sin(2.0 * phi[0]), xp.cos(2.0 * phi[0]), q / (q - 1.0)
    rho = xp.sin(phi[0]) ** 2 - xp.cos(phi[0]) ** 2 / (q - 1.0)
    R = one + (1.0 - one) * rho
    return R, ((1.0 - one) * (steep * s2))[:, :, None], ((1.0 - one) * (2.0 * steep * c2))[:, :, None, None]


def _cs_angles(R: Array, q: int, detail: Detail) -> Array:
    xp = namespace(R)
    share = (R[np.tril_indices(q, -1)].mean(0) * (q - 1.0) + 1.0) / q
    return xp.arcsin(xp.sqrt(xp.clip(share, (1.0 - STEEPEST) / q, STEEPEST)))[None]


COMPOUND_SYMMETRY = Correlation(
    n_angles=_one,
    root=_cs_root,
    derivatives=_cs_derivatives,
    angles=_cs_angles,
    fold=_fold_square,
    smallest=lambda phi, q, detail: abs(namespace(phi).concatenate([namespace(phi).sin(phi), namespace(phi).cos(phi)])),
    names=lambda q: ["arcsin √share"],
    full=True,
)


# ---------------------------------------------------------------- exponential in given coordinates


@functools.lru_cache(maxsize=64)
def _gaps(q: int, coordinates: Detail) -> tuple[np.ndarray, float]:
    """Distances |c_i − c_j| (q, q) in units of the smallest one, which makes all of them at least 1; and that unit."""
    c = np.asarray(coordinates, float)
    unit = float(np.diff(c).min())
    distance = np.abs(np.subtract.outer(c, c)) / unit
    return np.where(np.eye(q, dtype=bool), 0.0, np.maximum(distance, 1.0)), unit


def _innovations(u: Array, cosine: Array, gap: np.ndarray) -> Array:
    """√(1 − u^2g) (q − 1, *lanes) = cos φ √((1 + u)(1 − x^g)/(1 − x)) with x = u² and u = sin²φ."""
    xp, info = namespace(u), np.finfo(u.dtype)
    gap = gap.reshape(-1, *[1] * u.ndim).astype(u.dtype)
    log_x = xp.log(xp.clip(u * u, float(info.tiny), 1.0 - float(info.eps)))
    return cosine * xp.sqrt((1.0 + u) * xp.expm1(gap * log_x) / xp.expm1(log_x))


def _exponential_root(phi: Array, q: int, coordinates: Detail) -> Array:
    xp, (distance, _) = namespace(phi), _gaps(q, coordinates)
    u, cosine = xp.sin(phi[0]) ** 2, xp.cos(phi[0])
    first = xp.concatenate([_ones(phi, 1), _innovations(u, cosine, np.diagonal(distance, -1))])
    lower = np.tri(q, dtype=bool).reshape(q, q, *[1] * u.ndim)
    return xp.where(lower, u ** distance.reshape(lower.shape).astype(u.dtype) * first[None], 0.0)


def _exponential_derivatives(phi: Array, q: int, coordinates: Detail) -> tuple[Array, Array, Array]:
    xp, d = namespace(phi), _gaps(q, coordinates)[0].reshape(q, q, *[1] * (phi.ndim - 1)).astype(phi.dtype)
    u, s2, c2 = xp.sin(phi[0]) ** 2, xp.sin(2.0 * phi[0]), xp.cos(2.0 * phi[0])
    less = xp.where(d > 0, d * u ** np.maximum(d - 1.0, 0.0), 0.0)
    # (∂u)² = 4u(1 − u) takes the power that ∂²u^d lacks where u vanishes.
    bend = less * (4.0 * (d - 1.0) * (1.0 - u) + 2.0 * c2)
    return u**d, (less * s2)[:, :, None], bend[:, :, None, None]


def _exponential_angles(R: Array, q: int, coordinates: Detail) -> Array:
    """From the mean over the pairs of the log correlation per unit of distance."""
    xp, pairs = namespace(R), np.tril_indices(q, -1)
    apart = _gaps(q, coordinates)[0][pairs].reshape(-1, *[1] * (R.ndim - 2)).astype(R.dtype)
    log_u = (xp.log(xp.clip(R[pairs], FAINTEST, STEEPEST)) / apart).mean(0)
    return xp.arcsin(xp.sqrt(xp.clip(xp.exp(log_u), FAINTEST, STEEPEST)))[None]


EXPONENTIAL = Correlation(
    n_angles=_one,
    root=_exponential_root,
    derivatives=_exponential_derivatives,
    angles=_exponential_angles,
    fold=_fold_square,
    smallest=lambda phi, q, c: abs(
        _innovations(namespace(phi).sin(phi[0]) ** 2, namespace(phi).cos(phi[0]), np.diagonal(_gaps(q, c)[0], -1))
    ),
    names=lambda q: ["arcsin √ρ"],
    distance=lambda q, coordinates: float(coordinates[1] - coordinates[0]),
)
