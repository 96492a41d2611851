"""Satterthwaite's degrees of freedom of many fits of one design at once, from the arrays that the lanes leave.

Cov β̂ = σ²M⁻¹(θ) with M = XᵀV⁻¹X of the design alone, and ∂M⁻¹/∂θ_a = M⁻¹WᵀΨ_aWM⁻¹ level by level, with
W = ZᵀV⁻¹X = (I + ZᵀZΨ)⁻¹ZᵀX and Ψ_a = ∂(LLᵀ)/∂θ_a: for a contrast l only Σ uuᵀ over the levels counts, u = WM⁻¹l.
The covariance of (θ̂, log σ̂²) comes from the profiled deviance, as in ``wald.variance_parameter_covariance``, without
its flat directions: a variance at zero counts as known, as in ``degrees.satterthwaite``.
"""

from typing import NamedTuple

import numpy as np

from ..core.covariance import Template, packed_positions, squared_derivatives
from ..core.likelihood import flat_inverse
from ..core.records import Fit
from ..data import ModelData
from ..errors import UnsupportedError
from .degrees import of_average
from .linear_tests import f_pvalue, t_pvalue

# Crossed designs of more effects than this would take a dense system of that size in every lane.
MOST_EFFECTS = 600
# Numbers that are held at once.
CHUNK = 1 << 22


class LevelSums(NamedTuple):
    """What Cov β̂ depends on beside θ and σ.

    Attributes
    ----------
    effects : (P, K, K) ZᵀZ, and fixed : (P, K, p) ZᵀX, of the distinct independent sets of rows.
    times : (P,) how many sets are like each.
    levels : per factor the levels in such a set; spans : per factor its place among the q effects of Ψ.
    """

    effects: np.ndarray
    fixed: np.ndarray
    times: np.ndarray
    levels: tuple[int, ...]
    spans: tuple[slice, ...]


def level_sums(data: ModelData) -> LevelSums:
    """Of one factor a set of rows per level, equal ones pooled; of several factors all rows together."""
    w = np.ones(data.n_rows) if data.design.weights is None else data.design.weights
    X = data.X
    if not data.has_one_factor:
        effects = sum(f.n_independent * len(f.columns) for f in data.factors)
        if effects > MOST_EFFECTS:
            raise UnsupportedError(
                f"Satterthwaite's degrees of freedom of many fits need {MOST_EFFECTS} random effects or fewer where "
                f"factors cross, here are {effects}: use method='z' or 'lrt'"
            )
        Z = np.concatenate([f.effects.toarray() for f in data.factors], axis=1)
        levels = tuple(f.n_independent for f in data.factors)
        return LevelSums((Z.T * w @ Z)[None], (Z.T * w @ X)[None], np.ones(1), levels, data.factor_slices)
    only = data.factors[0]
    columns = np.concatenate([only.Z, X], axis=1)
    products = (only.Z * w[:, None])[:, :, None] * columns[:, None, :]
    q = only.Z.shape[1]
    unique, count = np.unique(only.rows.T @ products.reshape(len(w), -1), axis=0, return_counts=True)
    sums = unique.reshape(len(unique), q, -1)
    return LevelSums(sums[:, :, :q], sums[:, :, q:], count.astype(float), (1,), data.factor_slices)


def lane_tests(fit: Fit, data: ModelData, L: np.ndarray, null: np.ndarray, dof: float) -> np.ndarray:
    """p-values (R,) of Lβ = null, L (m, p): t with Satterthwaite's degrees of freedom, or F by lmerTest's rule.

    Parameters
    ----------
    fit : of the lanes, on the leading axis; dof : rows (ML), or rows less fixed effects (REML).
    """
    sums = level_sums(data)
    per_lane = sums.effects.shape[0] * sums.effects.shape[1] * (len(L) + sums.effects.shape[1])
    size = max(1, CHUNK // per_lane)
    lanes = np.arange(len(fit.beta))
    parts = [_p_values(_some(fit, which), sums, data.template, L, null, dof) for which in _cut(lanes, size)]
    return np.concatenate(parts)


def _cut(lanes: np.ndarray, size: int) -> list[np.ndarray]:
    return [lanes[i : i + size] for i in range(0, len(lanes), size)]


def _some(fit: Fit, which: np.ndarray) -> Fit:
    return Fit(**{name: np.asarray(getattr(fit, name))[which] for name in vars(fit)})


def _p_values(fit: Fit, sums: LevelSums, template: Template, L: np.ndarray, null: np.ndarray, dof: float) -> np.ndarray:
    sigma2, q = fit.sigma[:, None, None] ** 2, len(L)
    gap = fit.beta @ L.T - null
    cov = sigma2 * (L @ fit.unscaled_cov @ L.T)
    turned = np.broadcast_to(L, (len(gap), *L.shape))
    if q > 1:
        turned = np.swapaxes(np.linalg.eigh(cov)[1], 1, 2) @ L
    nu = lane_degrees(fit, sums, template, turned, dof)
    if q == 1:
        return t_pvalue(gap[:, 0] / np.sqrt(cov[:, 0, 0]), nu[:, 0])
    ratio = np.einsum("ri,ri->r", gap, np.linalg.solve(cov, gap[:, :, None])[:, :, 0]) / q
    return f_pvalue(ratio, q, of_average(nu))


def lane_degrees(fit: Fit, sums: LevelSums, template: Template, L: np.ndarray, dof: float) -> np.ndarray:
    """Satterthwaite's degrees of freedom (R, m) of the rows of L (R, m, p) in each lane."""
    theta, sigma2 = np.asarray(fit.theta), fit.sigma[:, None] ** 2
    V = fit.unscaled_cov @ np.swapaxes(L, 1, 2)
    variance = sigma2 * np.einsum("rmp,rpm->rm", L, V)
    square = _sum_of_squares(fit.relative_factor @ np.swapaxes(fit.relative_factor, 1, 2), sums, V)
    slopes = squared_derivatives(np.moveaxis(theta, -1, 0), template)[0]
    # Of a template whose slopes are those of every lane alike there is no last axis.
    packed = np.broadcast_to(slopes.reshape(*slopes.shape[:2], -1), (*slopes.shape[:2], len(theta)))
    steps = packed[packed_positions(square.shape[1])]
    slope = sigma2[:, :, None] * np.einsum("ijar,rijm->rma", steps, square)
    cov, g = 2.0 * flat_inverse(np.nan_to_num(fit.hessian)), np.asarray(fit.log_scale_slope)
    moved = np.einsum("rab,rb->ra", cov, g)
    spread = np.einsum("rma,rab,rmb->rm", slope, cov, slope) + 2.0 * variance * np.einsum("rma,ra->rm", slope, moved)
    spread += variance**2 * (2.0 / dof + (moved * g).sum(1))[:, None]
    return 2.0 * variance**2 / spread


def _sum_of_squares(Psi: np.ndarray, sums: LevelSums, V: np.ndarray) -> np.ndarray:
    """Σ uuᵀ over the levels (R, q, q, m), u = (I + ZᵀZΨ)⁻¹ZᵀXv for the columns v of V (R, p, m); block by block."""
    R, q, m = len(Psi), Psi.shape[1], V.shape[2]
    K = sums.effects.shape[1]
    whole = np.zeros((R, K, K))
    places, at = [], 0
    for n, span in zip(sums.levels, sums.spans, strict=True):
        size = n * (span.stop - span.start)
        whole[:, at : at + size, at : at + size] = np.einsum(
            "ij,rab->riajb", np.eye(n), Psi[:, span, span], optimize=True
        ).reshape(R, size, size)
        places.append((slice(at, at + size), n, span))
        at += size
    out = np.zeros((R, q, q, m))
    for own_effects, fixed, times in zip(sums.effects, sums.fixed, sums.times, strict=True):
        u = np.linalg.solve(np.eye(K) + own_effects @ whole, fixed @ V)
        for part, n, span in places:
            own = u[:, part].reshape(R, n, -1, m)
            out[:, span, span] += times * np.einsum("rnam,rnbm->rabm", own, own)
    return out
