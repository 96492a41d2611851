"""The likelihood given the random effects, and how many parameters the fitted values use.

With P = V⁻¹ − V⁻¹X(XᵀV⁻¹X)⁻¹XᵀV⁻¹, e = P(y − Xβ̂) (σ² = 1, R = diag 1/w, V = R + ZΨZᵀ) is y − ŷ = Re. With
W_a = ∂V/∂θ_a and u_a = PW_ae the fitted values move by ∂ŷ/∂y = I − RP + Σ R u_a ∂θ_a/∂y, where
½σ̂²H∂θ/∂y = u_a − (eᵀW_ae/Q)e and H is the Hessian of the profiled deviance. In inner products R = V − ZΨZᵀ, so that
only sums over levels count.

References: Vaida & Blanchard (2005), Biometrika 92, 351–370; Greven & Kneib (2010), Biometrika 97, 773–789.
"""

from typing import NamedTuple

import numpy as np

from . import criterion, likelihood
from .likelihood import Statistics
from .records import Fit


class Conditional(NamedTuple):
    """log f(y | b̂, β̂, σ̂); tr ∂ŷ/∂y with θ known, and with θ estimated."""

    loglik: float
    trace: float
    df: float


def conditional(fitted: Fit, data: Statistics, *, reml: bool = True) -> Conditional:
    """``Conditional`` at a fit; NumPy.

    Notes
    -----
    Directions of θ along which the deviance is flat do not move with y. A parameter at its bound stays there.
    """
    beta, theta, sigma2 = np.asarray(fitted.beta, float), np.asarray(fitted.theta, float), float(fitted.sigma) ** 2
    params, p, k = np.concatenate([beta, theta, [sigma2]]), len(beta), len(theta)
    whole, first, moves, _ = likelihood.expand(params, data, scale="sqrt", reml=reml)
    Psi = [L @ L.T for L in likelihood.roots(theta, "sqrt", data)]
    inverse, totals = np.linalg.inv(first.M), likelihood.totals_of(data)
    parts = list(zip(Psi, first.U, first.DD, strict=True))
    trace = p + sum(float(np.sum(W * (U - _through(inverse, DD, p)))) for W, U, DD in parts)
    residual = first.Q - sum(float(np.sum(W * DD[:, p, :, p])) for W, _, DD in parts)
    n = float(totals.n_rows)
    loglik = -0.5 * (n * np.log(2.0 * np.pi * sigma2) - float(totals.log_weights) + residual / sigma2)
    if not k:
        return Conditional(loglik, trace, trace)
    # ½σ̂²H, H = −2 × the Hessian of ℓ with β and σ² profiled out.
    H = likelihood.without_beta(whole.hessian, p)
    profiled = H[:k, :k] - np.outer(H[:k, k], H[:k, k]) / H[k, k]
    inner = _moved_products(first, moves, Psi, theta, inverse, data)
    return Conditional(loglik, trace, trace + float(np.sum(likelihood.flat_inverse(-sigma2 * profiled) * inner)))


def _through(inverse: np.ndarray, DD: np.ndarray, p: int) -> np.ndarray:
    """Σ D_XM⁻¹D_Xᵀ (q, q) over the levels of a factor."""
    return np.einsum("icjd,cd->ij", DD[:, :p, :, :p], inverse, optimize=True)


def _moved_products(
    first: likelihood.Sums,
    moves: likelihood.Moves,
    Psi: list[np.ndarray],
    theta: np.ndarray,
    inverse: np.ndarray,
    data: Statistics,
) -> np.ndarray:
    """(k, k): u_aᵀR(u_b − (eᵀW_be/Q)e)."""
    p, k = len(inverse), len(theta)
    steps, at = likelihood.slopes_of_psi(theta, data), 0
    Y = []
    for step, d in zip(steps, first.D, strict=True):
        here = slice(at, at + step.shape[2])
        Y.append(criterion.moved(step, d[:, p:], here, k))
        at = here.stop
    back = likelihood.engine(data).apply(first.solved, Y)
    slope, across = moves.B[:, p, p], moves.B[:, :p, p]
    both = moves.BB[:, p, :, p] - across @ inverse @ across.T
    with_e = slope.copy()
    for W, d, moved in zip(Psi, first.D, back, strict=True):
        u = moved.reshape(len(d), k, -1) - np.einsum("icm,cd,ad->iam", d[:, :p], inverse, across, optimize=True)
        both = both - np.einsum("iam,ij,jbm->ab", u, W, u, optimize=True)
        with_e = with_e - np.einsum("iam,ij,jm->a", u, W, d[:, p], optimize=True)
    return both - np.outer(with_e, slope) / first.Q
