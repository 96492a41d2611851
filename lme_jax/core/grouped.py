"""Profiled deviance of one grouping factor, with its gradient and exact Hessian (MATH §3).

The per-level algebra is ``levels``, run over vectors of levels; the sums over the levels are thin matrix
products, and ``assembly`` makes the derivatives of them:
    H(Ψ) = WᵀV⁻¹W = WᵀW − Σ CᵀWC with W = [X y],         log|V| = Σ log|I + LᵀGL|.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

from typing import Any

import numpy as np

from . import assembly, covariance, levels, linalg, programs, threads
from .assembly import LevelSums
from .levels import Filled, Packed
from .moments import GroupData
from .profiled import AtOptimum, profiled_deviance
from .rules import custom_jvp
from .types import Array, at_least_float, namespace

# Levels whose vectors, some sixty of them, fit in a core's cache together.
LEVELS_AT_ONCE = 8192


def log_det_and_cross(theta: Array, data: GroupData) -> tuple[Array, Array]:
    """log|V| () and H = [X y]ᵀV⁻¹[X y] (p+1, p+1) in the conditioned basis, at scaled θ."""
    L = covariance.factor(theta, data.template)
    return summed(L, *_smooth(data), data.R, data.c, data.rest, covariance.filled(data.template))


def _smooth(data: GroupData) -> tuple[Array, Array, Array, Array]:
    """What JAX differentiates in place of R, c and rest."""
    return data.G, data.count, data.C, data.moments.WtW


@custom_jvp(nondiff_argnums=(8,))
def summed(
    L: Array, G: Array, count: Array, C: Array, WtW: Array, R: Array, c: Array, rest: Array, filled: Filled
) -> tuple[Array, Array]:
    """log|V| and H."""
    at = levels.within(L, R, filled)
    return (count * at.log_det).sum(), rest + sum(t @ t.T for t in levels.whitened(at, c))


@custom_jvp(nondiff_argnums=(5,))
def by_level(L: Array, G: Array, C: Array, R: Array, c: Array, filled: Filled) -> tuple[Packed, list[Array]]:
    """U, packed, and D of every level: q arrays (p+1, P)."""
    at = levels.within(L, R, filled)
    B = levels.half_precision(at, R)
    return levels.squared(B), levels.carried(B, levels.whitened(at, c))


def weighted(W: Packed, C: Array) -> list[Array]:
    """WC of every level: q arrays (p+1, P)."""
    return [levels.dot([entry[None] for entry in row], C) for row in levels.unpack(W)]


def quadratic(W: Packed, C: Array) -> Array:
    """Σ CᵀWC over the levels (p+1, p+1)."""
    return sum(WC @ c.T for WC, c in zip(weighted(W, C), C, strict=True))


@summed.defjvp(symbolic_zeros=True)
def _summed_jvp(filled: Filled, primals: Any, tangents: Any) -> Any:
    """The tangents are linear in sums that cost about what the values cost, in reverse too.

    d log|V| = tr(dΨ ΣU) + Σ tr(W dG),   d ΣCᵀWC = Σ DᵀdΨD − Σ (WC)ᵀdG(WC) + Σ (dCᵀWC + (WC)ᵀdC).
    """
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero

    L, G, count, C, *_ = primals
    dL, dG, d_count, dC, dWtW, *_ = tangents
    log_det, W = levels.weigh(L, G, filled)
    log_v, H = summed(*primals, filled)
    log_v_dot, explained_dot = jnp.zeros_like(log_v), jnp.zeros_like(H)
    WC = weighted(W, C)
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
        for moved_C, own in zip(dC, WC, strict=True):
            product = moved_C @ own.T
            explained_dot += product + product.T
    if not isinstance(d_count, SymbolicZero):
        log_v_dot += (d_count * log_det).sum()
    moved_H = -explained_dot if isinstance(dWtW, SymbolicZero) else dWtW - explained_dot
    return (log_v, H), (log_v_dot, moved_H)


@by_level.defjvp(symbolic_zeros=True)
def _by_level_jvp(filled: Filled, primals: Any, tangents: Any) -> Any:
    """dU = FᵀdGF − U dΨ U,  dD = Fᵀ(dC − dG WC) − U dΨ D."""
    from jax.custom_derivatives import SymbolicZero

    L, G, C, *_ = primals
    dL, dG, dC, *_ = tangents
    U, D = by_level(*primals, filled)
    W = levels.weigh(L, G, filled)[1]
    full, F = levels.unpack(U), levels.complement(W, G)
    U_dot, D_dot = [0.0 * u for u in U], [0.0 * d for d in D]
    if not isinstance(dL, SymbolicZero):
        half = dL @ L.T
        moved = levels.product(full, levels.rows(half + half.T))
        change = levels.product(moved, full)
        U_dot = [u - change[i][j] for u, (i, j) in zip(U_dot, levels.pairs(len(D)), strict=True)]
        D_dot = [d - levels.dot([m[None] for m in row], D) for d, row in zip(D_dot, moved, strict=True)]
    if not isinstance(dG, SymbolicZero):
        moved = levels.product(levels.columns(F), levels.rows(dG))
        change, WC = levels.product(moved, F), weighted(W, C)
        U_dot = [u + change[i][j] for u, (i, j) in zip(U_dot, levels.pairs(len(D)), strict=True)]
        D_dot = [d - levels.dot([m[None] for m in row], WC) for d, row in zip(D_dot, moved, strict=True)]
    if not isinstance(dC, SymbolicZero):
        D_dot = [d + own for d, own in zip(D_dot, levels.spread(F, list(dC)), strict=True)]
    return (U, D), (tuple(U_dot), D_dot)


def objective(theta: Array, data: GroupData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (), gradient (k,), Hessian (k, k) and what the fit keeps, at scaled θ (k,).

    Notes
    -----
    O(P·(q³ + kq·p·(p + kq))) with kq = q(q+1)/2 and P distinct levels.
    """
    log_det, H, levels_at = at_levels(theta, data)
    R = linalg.cholesky(H)
    sums = whitened_sums(levels_at, assembly.whitening(R), reml)
    return assembly.assemble_derivatives(theta, data.template, log_det, H, R, sums, data.moments, reml)


LevelsAt = list[tuple[Array, Packed, list[Array]]]


def at_levels(theta: Array, data: GroupData) -> tuple[Array, Array, LevelsAt]:
    """log|V|, H, and count, U and D of the levels at scaled θ (k,)."""
    L, filled = covariance.factor(theta, data.template), covariance.filled(data.template)
    if namespace(data.G, data.C) is np:
        return _on_host(L, data, filled)
    log_det, H = log_det_and_cross(theta, data)
    U, D = by_level(L, data.G, data.C, data.R, data.c, filled)
    return log_det, H, [(data.count, U, D)]


def whitened_sums(levels_at: LevelsAt, A: Array, reml: bool) -> LevelSums:
    """The sums over the levels, D whitened by A (p+1, p+1)."""

    def sums_of(level: tuple[Array, Packed, list[Array]]) -> LevelSums:
        count, U, D = level
        return _level_sums(U, [A.T @ d for d in D], count, reml)

    parts = threads.each(sums_of, levels_at)
    return parts[0] if len(parts) == 1 else LevelSums(*(_total(values) for values in zip(*parts, strict=True)))


def _on_host(L: Array, data: GroupData, filled: Filled) -> tuple[Array, Array, LevelsAt]:
    """log|V|, H, and count, U and D of the levels, piece by piece; nothing is computed twice."""

    def evaluate(cut: slice) -> tuple[Array, Array, tuple[Array, Packed, list[Array]]]:
        R, c, count = data.R[:, cut], data.c[:, :, cut], data.count[cut]
        at = levels.within(L, R, filled)
        T, B = levels.whitened(at, c), levels.half_precision(at, R)
        own = count, levels.squared(B), levels.carried(B, T)
        return count @ at.log_det, sum(t @ t.T for t in T), own

    log_dets, between, own = zip(*threads.each(evaluate, _pieces(data)), strict=True)
    return sum(log_dets), data.rest + sum(between), list(own)


def _total(values: tuple[Array, ...]) -> Array:
    return None if values[0] is None else sum(values)


def _pieces(data: GroupData) -> list[slice]:
    """The levels in pieces that stay in the cache."""
    P = data.count.shape[-1]
    return [slice(lo, lo + LEVELS_AT_ONCE) for lo in range(0, P, LEVELS_AT_ONCE)]


def _level_sums(U: Packed, T: list[Array], count: Array, reml: bool) -> LevelSums:
    """Sums of U and of the whitened T = [T e], q arrays (p+1, P)."""
    xp = namespace(*U, *T)
    i, j = linalg.tril(len(T))
    packed, effects = xp.stack(U), xp.stack(T)
    kq, w, P = len(U), effects.shape[1], effects.shape[2]
    counted = packed * count
    flat = effects.reshape(-1, P)
    products = (flat @ flat.T).reshape(len(T), w, len(T), w)[i, :, j]
    by_U = ((effects[i] * effects[j]).reshape(kq * w, P) @ packed.T).reshape(kq, w, kq)
    return LevelSums(
        counted.sum(-1),
        counted @ packed.T,
        0.5 * (products + xp.swapaxes(products, 1, 2)),
        by_U[:, -1].T,
        by_U[:, :-1].sum(1).T if reml else None,
    )


def residual_moments(data: GroupData) -> tuple[Array, Array, Array, Array, Array]:
    """K, t, cᵀE_xc, rᵀr and n − p of ``starts.from_moments``: the sums of ``objective`` at Ψ = 0."""
    lower, moments = linalg.tril(len(data.G)), data.moments
    R = linalg.cholesky(moments.WtW)
    A, p = assembly.whitening(R), data.n_fixed
    sums = _level_sums(tuple(data.G[lower]), [A.T @ c for c in data.C], data.count, True)
    return (*assembly.moments(sums, p), R[p, p] ** 2, moments.n_rows - p)


def profile(theta: np.ndarray, data: GroupData, reml: bool) -> np.ndarray:
    """Deviances (S,) at many scaled θ (k, S) at once; NumPy."""
    L = covariance.factor(theta[:, None], data.template)
    at = levels.within(L, data.R[..., None], covariance.filled(data.template))
    w, q = data.n_fixed + 1, len(data.c)
    inverse = levels.columns(levels.whitened_identity(at))
    between: Array = 0.0
    for a, b in levels.pairs(q):
        products = (data.c[a][:, None] * data.c[b][None]).reshape(w * w, -1)
        between = between + (products @ levels.dot(inverse[a], inverse[b])) * (1.0 if a == b else 2.0)
    H = data.rest[:, :, None] + between.reshape(w, w, -1)
    H = 0.5 * (H + np.swapaxes(H, 0, 1))
    return profiled_deviance(data.count @ at.log_det, H, data.moments, reml)


def deviance(theta: Array, data: GroupData, *, reml: bool = True) -> Array:
    """Profiled deviance at θ in the user's units; see ``fit.deviance``. O(P·q²(q + p²))."""
    return programs.run(_deviance, at_least_float(theta), data, reml=reml)


def _deviance(theta: Array, data: GroupData, *, reml: bool) -> Array:
    scaled = theta * covariance.theta_scale(data.template, data.moments.basis.z_scale)
    return profiled_deviance(*log_det_and_cross(scaled, data), data.moments, reml)
