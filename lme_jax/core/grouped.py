"""Profiled deviance of one grouping factor, with its gradient and exact Hessian (MATH §3).

The per-level algebra is ``levels``, run over vectors of levels; the sums over the levels are thin matrix
products, and ``assembly`` makes the derivatives of them:
    H(Ψ) = WᵀV⁻¹W = WᵀW − Σ CᵀWC with W = [X y],         log|V| = Σ log|I + LᵀGL|.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

from typing import Any

import numpy as np

from . import assembly, covariance, levels, programs
from .assembly import LevelSums
from .compression import GroupData
from .levels import Filled, Packed
from .profiled import AtOptimum, profiled_deviance
from .types import Array, at_least_float, namespace


def log_det_and_cross(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """log|V| () and H = [X y]ᵀV⁻¹[X y] (p+1, p+1) in the conditioned basis, at scaled θ."""
    L = covariance.factor(theta, data.template)
    log_det, cross = log_det_and_explained(L, data.G, data.count, data.C, covariance.filled(data.template))
    return log_det, data.moments.WtW - cross


def log_det_and_explained(L: Array, G: Array, count: Array, C: Array, filled: Filled) -> tuple[Array, Array]:
    """log|V| and Σ CᵀWC (p+1, p+1); JAX differentiates them by a rule of its own."""
    if namespace(L, G, count, C) is np:
        return log_det_and_explained_sums(L, G, count, C, filled)
    from . import rules

    return rules.log_det_and_explained(L, G, count, C, filled)


def log_det_and_explained_sums(L: Array, G: Array, count: Array, C: Array, filled: Filled) -> tuple[Array, Array]:
    """``log_det_and_explained`` in plain operations."""
    log_det, W = levels.weigh(L, G, filled)
    return (count * log_det).sum(), quadratic(W, C)


def weighted(W: Packed, C: Array) -> list[Array]:
    """WC of every level: q arrays (p+1, P)."""
    return [levels.dot([entry[None] for entry in row], C) for row in levels.unpack(W)]


def quadratic(W: Packed, C: Array) -> Array:
    """Σ CᵀWC over the levels (p+1, p+1)."""
    return sum(WC @ c.T for WC, c in zip(weighted(W, C), C, strict=True))


def objective(theta: Array, data: GroupData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (), gradient (k,), Hessian (k, k) and what the fit keeps, at scaled θ (k,).

    Notes
    -----
    O(P·(q³ + kq·p·(p + kq))) with kq = q(q+1)/2 and P distinct levels.
    """
    L = covariance.factor(theta, data.template)
    log_det, W = levels.weigh(L, data.G, covariance.filled(data.template))
    H = data.moments.WtW - quadratic(W, data.C)
    F = levels.complement(W, data.G)
    A = assembly.whitening(H)
    T = levels.spread(F, [A.T @ c for c in data.C])
    sums = _level_sums(levels.precision(data.G, F), T, data.count, reml)
    log_v = (data.count * log_det).sum()
    return assembly.assemble_derivatives(theta, data.template, log_v, H, sums, data.moments, reml)


def _level_sums(U: Packed, T: list[Array], count: Array, reml: bool) -> LevelSums:
    """Sums of U and of the whitened T = [T e], q arrays (p+1, P)."""
    xp = namespace(*U)
    p, packed = len(T[0]) - 1, xp.stack(U)
    counted = packed * count
    TT, by_U = [], []
    for i, j in levels.pairs(len(T)):
        product = T[i] @ T[j].T
        TT.append(0.5 * (product + product.T))
        by_U.append((T[i] * T[j]) @ packed.T)
    stacked = xp.stack(by_U, axis=1)
    return LevelSums(
        counted.sum(-1),
        counted @ packed.T,
        xp.stack(TT),
        stacked[p].T,
        stacked[:p].sum(0).T if reml else None,
    )


def level_weights(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """Per level, at scaled θ: W = L M⁻¹Lᵀ (q, q, G) (= Var(b|y)/σ², conditioned) and ZᵀW."""
    moments = data.moments
    L = covariance.factor(theta, data.template)
    W = levels.weigh(L, moments.ZtZ, covariance.filled(data.template))[1]
    return levels.stacked(W), moments.ZtW


def deviance(theta: Array, data: GroupData, *, reml: bool = True) -> Array:
    """Profiled deviance at θ in the user's units; see ``fit.deviance``. O(P·q²(q + p²))."""
    return programs.run(_deviance, at_least_float(theta), data, reml=reml)


def _deviance(theta: Array, data: GroupData, *, reml: bool) -> Array:
    scaled = theta * covariance.theta_scale(data.template, data.moments.basis.z_scale)
    return profiled_deviance(*log_det_and_cross(scaled, data), data.moments, reml)
