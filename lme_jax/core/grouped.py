"""Profiled deviance of one grouping factor, and its exact second-order expansion (MATH §3).

With Ψ = LLᵀ and per level G = ZᵀZ, C = ZᵀW, W = [X y]:
    V⁻¹ quantities:  U = ZᵀV⁻¹Z = (I + GΨ)⁻¹G,   D = ZᵀV⁻¹W = (I + GΨ)⁻¹C,
    H(Ψ) = WᵀV⁻¹W = WᵀW − Σ CᵀΨD,                log|V| = Σ log|I + LᵀGL|.
Moving Ψ by Δ gives, to second order and exactly so for first and second derivatives,
    log|V| += tr(Δ ΣU) − ½ Σ tr(ΔUΔU),           H −= Σ Dᵀ(Δ − ΔUΔ)D,
so that one pass over the patterns collects sums that do not depend on how θ enters Ψ, and the k×k
Hessian is autodiff of a small function of those sums.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from . import covariance, linalg
from .compression import GroupData
from .profiled import Expansion, profiled_deviance
from .types import Array, float64_on_host


def kernel(L: Array, G: Array) -> tuple[Array, Array, Array]:
    """Per pattern: log|I + LᵀGL| (P,), W = L M⁻¹Lᵀ and F = (I + ΨG)⁻¹ = I − WG, both (q, q, P)."""
    log_det, W = _log_det_and_weight(L, G)
    return log_det, W, _complement(W, G)


def _complement(W: Array, G: Array) -> Array:
    return jnp.eye(W.shape[0], dtype=W.dtype)[:, :, None] - linalg.matmul(W, G)


@jax.custom_jvp
def _log_det_and_weight(L: Array, G: Array) -> tuple[Array, Array]:
    """W is formed as a square of K⁻¹Lᵀ: as FΨ it would lose the digits that Ψ is larger than G⁻¹."""
    root = L[:, :, None]
    eye = jnp.eye(L.shape[0], dtype=L.dtype)[:, :, None]
    K = linalg.cholesky(linalg.matmul(linalg.transpose(root), linalg.matmul(G, root)) + eye)
    left = linalg.solve_lower(K, jnp.broadcast_to(linalg.transpose(root), K.shape))
    return linalg.log_det(K), linalg.matmul(linalg.transpose(left), left)


def _log_det_and_weight_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> Any:
    """d log|M| = tr(U dΨ) + tr(W dG),  dW = F dΨ Fᵀ − W dG W: as cheap as the values, in reverse too."""
    L, G = primals
    log_det, W = _log_det_and_weight(L, G)
    log_det_dot, W_dot = jnp.zeros_like(log_det), jnp.zeros_like(W)
    dL, dG = tangents
    if not isinstance(dL, SymbolicZero):
        F = _complement(W, G)
        half = dL @ L.T
        dPsi = half + half.T
        log_det_dot += (linalg.matmul(G, F) * dPsi[:, :, None]).sum((0, 1))
        W_dot += linalg.matmul(linalg.matmul(F, dPsi[:, :, None]), linalg.transpose(F))
    if not isinstance(dG, SymbolicZero):
        log_det_dot += (W * dG).sum((0, 1))
        W_dot -= linalg.matmul(linalg.matmul(W, dG), W)
    return (log_det, W), (log_det_dot, W_dot)


_log_det_and_weight.defjvp(_log_det_and_weight_jvp, symbolic_zeros=True)


def _symmetric_square(F: Array) -> Array:
    """(kq, kq, P): the action D⊗D = (Fᵀ⊗Fᵀ)(C⊗C) on packed symmetric pairs."""
    i, j = np.tril_indices(F.shape[0])
    a, b = i, j
    first = F[a][:, i] * F[b][:, j]
    swapped = F[b][:, i] * F[a][:, j]
    off = jnp.asarray((a != b)[:, None, None], F.dtype)
    return linalg.transpose(first + off * swapped)


def log_det_and_cross(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """log|V| () and H = [X y]ᵀV⁻¹[X y] (p+1, p+1) in the conditioned basis, at scaled θ."""
    L = covariance.factor(theta, data.template)
    log_det, W, _ = kernel(L, data.G)
    cross = _cross(W, data)
    H = data.moments.WtW - covariance.unpack_symmetric(cross, data.n_fixed + 1)
    return (data.count * log_det).sum(), H


def _cross(W: Array, data: GroupData) -> Array:
    """Σ CᵀWC over the levels, packed (kw,)."""
    return (_double_off_diagonal(W)[:, None] * data.C2).sum((0, 2))


def _double_off_diagonal(S: Array) -> Array:
    """Packed lower triangle (kq, …) of symmetric S with off-diagonals doubled: tr-products become dots."""
    i, j = np.tril_indices(S.shape[0])
    weight = np.where(i == j, 1.0, 2.0).reshape((-1,) + (1,) * (S.ndim - 2))
    return S[i, j] * weight.astype(S.dtype)


def covariance_expansion(L: Array, data: GroupData) -> Expansion:
    """log|V| and H around Ψ = LLᵀ as functions of a symmetric step Δ (q, q), exact to second order.

    Smooth at a singular Ψ too, where no square root of Ψ + Δ is.

    Notes
    -----
    One pass: O(P·kq²·kw) with kq = q(q+1)/2 and kw = (p+1)(p+2)/2, mostly one matrix product.
    """
    width, q = data.n_fixed + 1, data.G.shape[0]
    log_det, W, F = kernel(L, data.G)
    U = linalg.matmul(data.G, F)[np.tril_indices(q)]
    D2 = linalg.matmul(_symmetric_square(F), data.C2)
    value = (data.count * log_det).sum()
    cross = _cross(W, data)
    U_sum = _unpack_rows((U * data.count).sum(-1), q)
    UU = _unpack_pairs(jnp.einsum("xp,yp->xy", U * data.count, U), q)
    D_sum = _unpack_rows(D2.sum(-1), q)
    DUD = _unpack_pairs(jnp.einsum("xp,ywp->xyw", U, D2), q)

    def at(step: Array) -> tuple[Array, Array]:
        log_v = value + (step * U_sum).sum() - 0.5 * jnp.einsum("ij,kl,jkli->", step, step, UU)
        shift = jnp.einsum("ij,ijw->w", step, D_sum) - jnp.einsum("ij,kl,jkilw->w", step, step, DUD)
        return log_v, data.moments.WtW - covariance.unpack_symmetric(cross + shift, width)

    return Expansion(at)


def expansion(theta: Array, data: GroupData) -> Expansion:
    """log|V| and H around scaled θ as functions of a step δ (k,), exact to second order."""
    L = covariance.factor(theta, data.template)
    around = covariance_expansion(L, data)

    def at(delta: Array) -> tuple[Array, Array]:
        moved = covariance.factor(theta + delta, data.template)
        return around.at(moved @ moved.T - L @ L.T)

    return Expansion(at)


def _unpack_rows(packed: Array, q: int) -> Array:
    """(kq, …) → (q, q, …) symmetric in the first two axes."""
    position = np.zeros((q, q), int)
    position[np.tril_indices(q)] = np.arange(q * (q + 1) // 2)
    return packed[np.maximum(position, position.T)]


def _unpack_pairs(packed: Array, q: int) -> Array:
    """(kq, kq, …) → (q, q, q, q, …)."""
    rows = _unpack_rows(packed, q)
    return jnp.moveaxis(_unpack_rows(jnp.moveaxis(rows, 2, 0), q), (0, 1), (2, 3))


def level_weights(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """Per level, at scaled θ: W = L M⁻¹Lᵀ (q, q, G) (= Var(b|y)/σ², conditioned) and ZᵀW."""
    W = kernel(covariance.factor(theta, data.template), data.moments.ZtZ)[1]
    return W, data.moments.ZtW


@float64_on_host
def deviance(theta: Array, data: GroupData, *, reml: bool = True) -> Array:
    """Profiled deviance at θ in the user's units; see ``fit.deviance``. O(P·q²(q + kw))."""
    return _deviance(jnp.asarray(theta), data, reml)


@functools.partial(jax.jit, static_argnames="reml")
def _deviance(theta: Array, data: GroupData, reml: bool) -> Array:
    scaled = theta * covariance.theta_scale(data.template, data.moments.basis.z_scale)
    return profiled_deviance(*log_det_and_cross(scaled, data), data.moments, reml)
