"""Profiled deviance of one grouping factor, with its gradient and exact Hessian (MATH §3).

The per-level algebra is ``levels``, run over vectors of levels; the sums over the levels are thin matrix
products, and ``assembly`` makes the derivatives of them:
    H(Ψ) = WᵀV⁻¹W = WᵀW − Σ CᵀWC with W = [X y],         log|V| = Σ log|I + LᵀGL|.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from . import assembly, covariance, levels
from .assembly import LevelSums
from .compression import GroupData
from .levels import Filled, Packed
from .profiled import AtOptimum, Expansion, profiled_deviance
from .types import Array, float64_on_host


def log_det_and_cross(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """log|V| () and H = [X y]ᵀV⁻¹[X y] (p+1, p+1) in the conditioned basis, at scaled θ."""
    L = covariance.factor(theta, data.template)
    log_det, cross = _log_det_and_explained(L, data.G, data.count, data.C, covariance.filled(data.template))
    return log_det, data.moments.WtW - cross


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _log_det_and_explained(L: Array, G: Array, count: Array, C: Array, filled: Filled) -> tuple[Array, Array]:
    """log|V| and Σ CᵀWC (p+1, p+1)."""
    log_det, W = levels.weigh(L, G, filled)
    return (count * log_det).sum(), _quadratic(W, C)


def _weighted(W: Packed, C: Array) -> list[Array]:
    return [levels.dot([entry[None] for entry in row], C) for row in levels.unpack(W)]


def _quadratic(W: Packed, C: Array) -> Array:
    return sum(WC @ c.T for WC, c in zip(_weighted(W, C), C, strict=True))


@functools.partial(_log_det_and_explained.defjvp, symbolic_zeros=True)
def _log_det_and_explained_jvp(filled: Filled, primals: Any, tangents: Any) -> Any:
    """The tangents are linear in sums that cost about what the values cost, in reverse too.

    d log|V| = tr(dΨ ΣU) + Σ tr(W dG),   d ΣCᵀWC = Σ DᵀdΨD − Σ (WC)ᵀdG(WC) + Σ (dCᵀWC + (WC)ᵀdC).
    """
    L, G, count, C = primals
    dL, dG, d_count, dC = tangents
    log_det, W = levels.weigh(L, G, filled)
    log_v, explained = (count * log_det).sum(), _quadratic(W, C)
    log_v_dot, explained_dot = jnp.zeros_like(log_v), jnp.zeros_like(explained)
    WC = _weighted(W, C)
    if not isinstance(dL, SymbolicZero):
        half = dL @ L.T
        F = levels.complement(W, G)
        D = levels.spread(F, C)
        for (i, j), U in zip(levels.pairs(len(D)), levels.precision(G, F), strict=True):
            moved = half[i, j] + half[j, i]
            log_v_dot += moved * (count * U).sum() * (1.0 if i == j else 2.0)
            DD = D[i] @ D[j].T
            explained_dot += moved * (DD if i == j else DD + DD.T)
    if not isinstance(dG, SymbolicZero):
        for i, row in enumerate(levels.unpack(W)):
            for j, weight in enumerate(row):
                log_v_dot += (count * weight * dG[i, j]).sum()
                explained_dot -= (WC[i] * dG[i, j]) @ WC[j].T
    if not isinstance(dC, SymbolicZero):
        for moved_C, weighted in zip(dC, WC, strict=True):
            product = moved_C @ weighted.T
            explained_dot += product + product.T
    if not isinstance(d_count, SymbolicZero):
        log_v_dot += (d_count * log_det).sum()
    return (log_v, explained), (log_v_dot, explained_dot)


def objective(theta: Array, data: GroupData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (), gradient (k,), Hessian (k, k) and what the fit keeps, at scaled θ (k,).

    Notes
    -----
    O(P·(q³ + kq·p·(p + kq))) with kq = q(q+1)/2 and P distinct levels.
    """
    L = covariance.factor(theta, data.template)
    log_det, W = levels.weigh(L, data.G, covariance.filled(data.template))
    H = data.moments.WtW - _quadratic(W, data.C)
    F = levels.complement(W, data.G)
    A = assembly.whitening(H)
    T = levels.spread(F, [A.T @ c for c in data.C])
    sums = _level_sums(levels.precision(data.G, F), T, data.count, reml)
    log_v = (data.count * log_det).sum()
    return assembly.assemble_derivatives(theta, data.template, log_v, H, sums, data.moments, reml)


def _level_sums(U: Packed, T: list[Array], count: Array, reml: bool) -> LevelSums:
    """Sums of U and of the whitened T = [T e], q arrays (p+1, P)."""
    p, packed = len(T[0]) - 1, jnp.stack(U)
    counted = packed * count
    TT, by_U = [], []
    for i, j in levels.pairs(len(T)):
        product = T[i] @ T[j].T
        TT.append(0.5 * (product + product.T))
        by_U.append((T[i] * T[j]) @ packed.T)
    stacked = jnp.stack(by_U, axis=1)
    return LevelSums(
        counted.sum(-1),
        counted @ packed.T,
        jnp.stack(TT),
        stacked[p].T,
        stacked[:p].sum(0).T if reml else None,
    )


def covariance_expansion(L: Array, data: GroupData) -> Expansion:
    """log|V| and H around Ψ = LLᵀ as functions of a symmetric step Δ (q, q), exact to second order.

    Smooth at a singular Ψ too, where no square root of Ψ + Δ is.

    Notes
    -----
    log|V| += tr(Δ ΣU) − ½ Σ tr(ΔUΔU) and H −= Σ Dᵀ(Δ − ΔUΔ)D.
    """
    q, width = len(L), data.n_fixed + 1
    log_det, W = levels.weigh(L, data.G, levels.dense(q))
    F = levels.complement(W, data.G)
    U = levels.precision(data.G, F)
    D = jnp.concatenate(levels.spread(F, data.C))
    value, explained = (data.count * log_det).sum(), _quadratic(W, data.C)
    counted = jnp.stack(U) * data.count
    U_sum = levels.stacked(counted.sum(-1))
    UU = levels.stacked([levels.stacked(row) for row in counted @ jnp.stack(U).T])
    DD = (D @ D.T).reshape(q, width, q, width)
    DUD = levels.stacked([((u * D) @ D.T).reshape(q, width, q, width) for u in U])

    def at(step: Array) -> tuple[Array, Array]:
        log_v = value + (step * U_sum).sum() - 0.5 * jnp.einsum("ij,kl,jkli->", step, step, UU)
        shift = jnp.einsum("ij,iwjv->wv", step, DD) - jnp.einsum("ij,kl,jkiwlv->wv", step, step, DUD)
        return log_v, data.moments.WtW - explained - 0.5 * (shift + shift.T)

    return Expansion(at)


def level_weights(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """Per level, at scaled θ: W = L M⁻¹Lᵀ (q, q, G) (= Var(b|y)/σ², conditioned) and ZᵀW."""
    moments = data.moments
    L = covariance.factor(theta, data.template)
    W = levels.weigh(L, moments.ZtZ, covariance.filled(data.template))[1]
    return levels.stacked(W), moments.ZtW


@float64_on_host
def deviance(theta: Array, data: GroupData, *, reml: bool = True) -> Array:
    """Profiled deviance at θ in the user's units; see ``fit.deviance``. O(P·q²(q + p²))."""
    return _deviance(jnp.asarray(theta), data, reml)


@functools.partial(jax.jit, static_argnames="reml")
def _deviance(theta: Array, data: GroupData, reml: bool) -> Array:
    scaled = theta * covariance.theta_scale(data.template, data.moments.basis.z_scale)
    return profiled_deviance(*log_det_and_cross(scaled, data), data.moments, reml)
