"""From log|V| and H = [X y]ᵀV⁻¹[X y] to the profiled deviance, β̂ and σ̂: shared by every engine.

Arrays may carry lanes (many models at once) on their last axes.
"""

from typing import NamedTuple, Protocol

import numpy as np

from . import linalg
from .moments import Basis
from .types import Array, namespace


class RowTotals(Protocol):
    """What the deviance needs of the data beside log|V| and H."""

    @property
    def n_rows(self) -> Array: ...
    @property
    def log_weights(self) -> Array: ...
    @property
    def basis(self) -> Basis: ...


def deviance_of_root(log_det: Array, F: Array, totals: RowTotals, reml: bool) -> Array:
    """``profiled_deviance`` from the Cholesky factor F of H."""
    p, xp = F.shape[0] - 1, namespace(F, totals.n_rows)
    basis = totals.basis
    log_rss = 2.0 * xp.log(F[p, p] / basis.map[p, p])
    dof = totals.n_rows - (p if reml else 0)
    value = log_det - totals.log_weights + dof * (1.0 + xp.log(2.0 * np.pi / dof) + log_rss)
    if reml:
        value = value + linalg.log_det(F[:p, :p]) - 2.0 * basis.log_det_x
    return value


def profiled_deviance(log_det: Array, H: Array, totals: RowTotals, reml: bool) -> Array:
    """Deviance with β and σ profiled out (Bates et al. 2015, eqs 34, 41), in the user's units."""
    return deviance_of_root(log_det, linalg.cholesky(H), totals, reml)


class AtOptimum(NamedTuple):
    """What an evaluation leaves for the fit: H (p+1, p+1) and ∂ log σ̂²/∂θ (k,), scaled θ."""

    H: Array
    log_scale_slope: Array


def nothing_kept(p: int, x: Array) -> AtOptimum:
    """A record shaped as that of p fixed effects at ``x`` (k, *lanes)."""
    xp, lanes = namespace(x), x.shape[1:]
    return AtOptimum(xp.zeros((p + 1, p + 1, *lanes), x.dtype), xp.zeros_like(x))


class Estimates(NamedTuple):
    """β̂ (p, *lanes), σ̂ (*lanes) and Cov β̂ / σ̂² = (XᵀV⁻¹X)⁻¹ (p, p, *lanes), in the user's units."""

    beta: Array
    sigma: Array
    unscaled_cov: Array


def estimates(H: Array, totals: RowTotals, reml: bool) -> Estimates:
    """Generalised least squares from H in the conditioned basis, mapped back exactly."""
    p, xp = H.shape[0] - 1, namespace(H, totals.n_rows)
    basis = totals.basis
    F = linalg.cholesky(H)
    inverse = linalg.inverse_lower(F[:p, :p])
    beta = (inverse * F[p, :p][:, None]).sum(0)
    A, c, d = basis.map[:p, :p], basis.map[:p, p], basis.map[p, p]
    dof = totals.n_rows - (p if reml else 0)
    sigma = F[p, p] / (d * xp.sqrt(dof))
    if linalg.is_one(H):
        root = inverse @ A.T
        return Estimates((A @ beta - c) / d, sigma, root.T @ root)
    root = xp.einsum("ij...,kj...->ik...", inverse, A)
    unscaled = xp.einsum("ij...,ik...->jk...", root, root)
    return Estimates((xp.einsum("ij...,j...->i...", A, beta) - c) / d, sigma, unscaled)
