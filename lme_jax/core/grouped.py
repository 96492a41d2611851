"""Profiled deviance of one grouping factor, with its gradient and exact Hessian (MATH §3).

The per-level algebra is ``levels``, run over vectors of levels; the sums over the levels are thin matrix
products, and ``assembly`` makes the derivatives of them:
    H(Ψ) = WᵀV⁻¹W = WᵀW − Σ CᵀWC with W = [X y],         log|V| = Σ log|I + LᵀGL|.

References: Lindstrom & Bates (1988); Bates et al. (2015), eqs 30–42.
"""

from typing import Any, NamedTuple

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
    log_det, cross = log_det_and_explained(L, data.G, data.count, data.C, covariance.filled(data.template))
    return log_det, data.moments.WtW - cross


@custom_jvp(nondiff_argnums=(4,))
def log_det_and_explained(L: Array, G: Array, count: Array, C: Array, filled: Filled) -> tuple[Array, Array]:
    """log|V| and Σ CᵀWC (p+1, p+1)."""
    log_det, W = levels.weigh(L, G, filled)
    return (count * log_det).sum(), quadratic(W, C)


def weighted(W: Packed, C: Array) -> list[Array]:
    """WC of every level: q arrays (p+1, P)."""
    return [levels.dot([entry[None] for entry in row], C) for row in levels.unpack(W)]


def quadratic(W: Packed, C: Array) -> Array:
    """Σ CᵀWC over the levels (p+1, p+1)."""
    return sum(WC @ c.T for WC, c in zip(weighted(W, C), C, strict=True))


@log_det_and_explained.defjvp(symbolic_zeros=True)
def _log_det_and_explained_jvp(filled: Filled, primals: Any, tangents: Any) -> Any:
    """The tangents are linear in sums that cost about what the values cost, in reverse too.

    d log|V| = tr(dΨ ΣU) + Σ tr(W dG),   d ΣCᵀWC = Σ DᵀdΨD − Σ (WC)ᵀdG(WC) + Σ (dCᵀWC + (WC)ᵀdC).
    """
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero

    L, G, count, C = primals
    dL, dG, d_count, dC = tangents
    log_det, W = levels.weigh(L, G, filled)
    log_v, explained = (count * log_det).sum(), quadratic(W, C)
    log_v_dot, explained_dot = jnp.zeros_like(log_v), jnp.zeros_like(explained)
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
    return (log_v, explained), (log_v_dot, explained_dot)


def objective(theta: Array, data: GroupData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (), gradient (k,), Hessian (k, k) and what the fit keeps, at scaled θ (k,).

    Notes
    -----
    O(P·(q³ + kq·p·(p + kq))) with kq = q(q+1)/2 and P distinct levels.
    """
    L, filled = covariance.factor(theta, data.template), covariance.filled(data.template)
    pieces = _pieces(data)

    def first(piece: _Piece) -> tuple[Array, Array, Packed]:
        log_det, W = levels.weigh(L, piece.G, filled)
        return (piece.count * log_det).sum(), quadratic(W, piece.C), W

    log_dets, explained, weights = zip(*threads.each(first, pieces), strict=True)
    H = data.moments.WtW - sum(explained)
    R = linalg.cholesky(H)
    A = assembly.whitening(R)

    def second(work: tuple[_Piece, Packed]) -> LevelSums:
        piece, W = work
        F = levels.complement(W, piece.G)
        T = levels.spread(F, [A.T @ c for c in piece.C])
        return _level_sums(levels.precision(piece.G, F), T, piece.count, reml)

    parts = threads.each(second, list(zip(pieces, weights, strict=True)))
    sums = parts[0] if len(parts) == 1 else LevelSums(*(_total(values) for values in zip(*parts, strict=True)))
    return assembly.assemble_derivatives(theta, data.template, sum(log_dets), H, R, sums, data.moments, reml)


def _total(values: tuple[Array, ...]) -> Array:
    return None if values[0] is None else sum(values)


class _Piece(NamedTuple):
    """Some of the levels of a model: as ``GroupData``."""

    G: Array
    count: Array
    C: Array


def _pieces(data: GroupData) -> list[_Piece]:
    """The levels, on the host in pieces that stay in the cache."""
    P = data.count.shape[-1]
    if P <= LEVELS_AT_ONCE or namespace(data.G, data.C) is not np:
        return [_Piece(data.G, data.count, data.C)]
    cuts = [slice(lo, lo + LEVELS_AT_ONCE) for lo in range(0, P, LEVELS_AT_ONCE)]
    return [_Piece(data.G[:, :, cut], data.count[cut], data.C[:, :, cut]) for cut in cuts]


def _level_sums(U: Packed, T: list[Array], count: Array, reml: bool) -> LevelSums:
    """Sums of U and of the whitened T = [T e], q arrays (p+1, P)."""
    xp = namespace(*U, *T)
    i, j = np.tril_indices(len(T))
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
    lower, moments = np.tril_indices(len(data.G)), data.moments
    R = linalg.cholesky(moments.WtW)
    A, p = assembly.whitening(R), data.n_fixed
    sums = _level_sums(tuple(data.G[lower]), [A.T @ c for c in data.C], data.count, True)
    return (*assembly.moments(sums, p), R[p, p] ** 2, moments.n_rows - p)


def profile(theta: np.ndarray, data: GroupData, reml: bool) -> np.ndarray:
    """Deviances (S,) at many scaled θ (k, S) at once; NumPy."""
    L = covariance.factor(theta[:, None], data.template)
    log_det, W = levels.weigh(L, data.G[..., None], covariance.filled(data.template))
    w = data.n_fixed + 1
    explained: Array = 0.0
    for (a, b), weight in zip(levels.pairs(len(data.C)), W, strict=True):
        products = (data.C[a][:, None] * data.C[b][None]).reshape(w * w, -1)
        explained = explained + (products @ weight) * (1.0 if a == b else 2.0)
    H = data.moments.WtW[:, :, None] - explained.reshape(w, w, -1)
    H = 0.5 * (H + np.swapaxes(H, 0, 1))
    return profiled_deviance(data.count @ log_det, H, data.moments, reml)


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
