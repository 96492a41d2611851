"""How Cov β̂ moves with the covariance parameters: what degrees of freedom and small-sample corrections are made of.

With M = XᵀV⁻¹X, X_a = XᵀV⁻¹V_aV⁻¹X and F_ab = XᵀV⁻¹V_aV⁻¹V_bV⁻¹X for V_a = ∂V/∂θ_a, V_ab = ∂²V/∂θ_a∂θ_b (σ² = 1),
    ∂M⁻¹ = M⁻¹X_aM⁻¹,   ∂²M⁻¹ = M⁻¹(X_aM⁻¹X_b + X_bM⁻¹X_a − F_ab − F_ba + X_ab)M⁻¹.

References: Giesbrecht & Burns (1985), J. Am. Stat. Assoc. 80, 853–859; Kenward & Roger (1997), Biometrics 53, 983–997.
"""

from typing import NamedTuple

import numpy as np

from . import likelihood
from .likelihood import Statistics
from .parameterizations import Scale, convert, to_profile
from .records import Fit


class Jets(NamedTuple):
    """Cov β̂ to second order in r parameters of V, those of the covariance and σ², at a fit; user's units.

    Attributes
    ----------
    cov : (p, p); slope : (r, p, p) first derivatives; curve : (r, r, p, p) second ones, None if not asked for.
    information : (r, r) observed information, β profiled out: the inverse of the parameters' asymptotic covariance.
    expected : (r, r) expected information with β known (ML), or under REML with β unknown.
    bend : (r, r, p, p) cov·XᵀV⁻¹V_abV⁻¹X·cov, None where V is linear in the parameters, or if not asked for.
    """

    cov: np.ndarray
    slope: np.ndarray
    curve: np.ndarray | None
    information: np.ndarray
    expected: np.ndarray
    bend: np.ndarray | None = None


def jets(fitted: Fit, data: Statistics, *, reml: bool = True, second: bool = False, natural: bool = False) -> Jets:
    """``Jets`` at a fit, or at any (β, θ, σ) that it holds; NumPy.

    Parameters
    ----------
    second : with ``curve`` and ``bend``.
    natural : in the (co)variances ω = Ψ and σ², in which V is linear, instead of (θ, σ²); (θ, σ²) all the same for
        structures that are not linear in any parameters (``likelihood.is_linear``).

    Notes
    -----
    One evaluation of ``likelihood.score_and_hessian``.
    """
    beta, sigma2 = np.asarray(fitted.beta, float), float(fitted.sigma) ** 2
    params, p = np.concatenate([beta, np.asarray(fitted.theta, float), [sigma2]]), len(beta)
    natural = natural and likelihood.is_linear(data)
    if natural:
        params = convert(params, "sqrt", "natural", n_fixed=p, template=data.template)
    scale: Scale = "natural" if natural else "sqrt"
    whole, first, moves, bends = likelihood.expand(params, data, scale=scale, reml=reml)
    N = float(likelihood.totals_of(data).n_rows)
    of_fixed = likelihood.fixed_traces(first.M, moves) if reml and p else None
    found = _of_moves(first, moves, bends, sigma2, data, second)._replace(
        information=likelihood.without_beta(-whole.hessian, p),
        expected=expected_information(moves.trace, moves.trace2, of_fixed, N - p if reml else N, sigma2),
    )
    return _linear(found, params, p, data) if natural else found


def _of_moves(
    first: likelihood.Sums,
    moves: likelihood.Moves,
    bends: list[np.ndarray | None],
    sigma2: float,
    data: Statistics,
    second: bool,
) -> Jets:
    """Cov β̂ and its derivatives in the parameters of the moves and σ²; the informations are left empty."""
    p, k = len(first.M), len(moves.trace)
    F = moves.BB[:, :p, :, :p] if second else None
    bent = likelihood.bent(first, bends, k)[:, :, :p, :p] if second else None
    back = likelihood.totals_of(data).basis.map[:p, :p]
    return of_products(first.M, moves.B[:, :p, :p], F, bent, back, sigma2)


def of_products(
    M: np.ndarray, X_a: np.ndarray, F: np.ndarray | None, bent: np.ndarray | None, back: np.ndarray, sigma2: float
) -> Jets:
    """Cov β̂ and its derivatives in k parameters of V/σ² and σ², whatever engine moved V; the informations left empty.

    Parameters
    ----------
    M : (p, p) XᵀV⁻¹X; X_a : (k, p, p); F : (k, p, k, p) F_ab and bent : (k, k, p, p) X_ab, None where no second
        derivatives are asked for. back : (p, p), X is conditioned, X·back of the user's.
    """
    p, k = len(M), len(X_a)
    inverse = np.linalg.inv(M)
    left = back @ inverse
    slope = np.concatenate([sigma2 * left @ X_a @ left.T, (left @ back.T)[None]])
    found = Jets(sigma2 * left @ back.T, slope, None, np.empty((0, 0)), np.empty((0, 0)))
    if F is None or bent is None:
        return found
    curve, bend = np.zeros((2, k + 1, k + 1, p, p))
    inner = (X_a @ inverse).reshape(k * p, p) @ np.moveaxis(X_a, 1, 0).reshape(p, k * p)
    inner = np.swapaxes(inner.reshape(k, p, k, p) - F, 1, 2)
    inner = inner + np.swapaxes(inner, 0, 1)
    bend[:k, :k] = sigma2 * left @ bent @ left.T
    curve[:k, :k] = sigma2 * left @ inner @ left.T + bend[:k, :k]
    for out in (curve, bend):
        out[:k, k] = out[k, :k] = slope[:k] / sigma2
    return found._replace(curve=curve, bend=bend)


def _linear(found: Jets, params: np.ndarray, p: int, data: Statistics) -> Jets:
    """From (Ψ/σ², σ²) to (Ψ, σ²); the observed information is there already."""
    J, J2 = to_profile(params, "natural", p, data.template)
    J, J2 = J[p:, p:], J2[p:, p:, p:]
    slope, expected = np.tensordot(J.T, found.slope, 1), J.T @ found.expected @ J
    curve = found.curve
    if curve is not None:
        curve = np.einsum("ca,cdij,db->abij", J, curve, J, optimize=True) + np.einsum("cab,cij->abij", J2, found.slope)
    return found._replace(slope=slope, curve=curve, expected=expected, bend=None)


def expected_information_at(params: np.ndarray, data: Statistics, *, reml: bool) -> np.ndarray:
    """(k + 1, k + 1) of (Ψ, σ²), at packed (β, Ψ, σ²) on the natural scale; variances may be zero."""
    _, first, moves, _ = likelihood.expand(params, data, scale="natural", reml=reml)
    p, s2 = data.n_fixed, float(params[-1])
    N = float(likelihood.totals_of(data).n_rows)
    of_fixed = likelihood.fixed_traces(first.M, moves) if reml and p else None
    own = expected_information(moves.trace, moves.trace2, of_fixed, N - p if reml else N, s2)
    J = to_profile(np.asarray(params, float), "natural", p, data.template)[0][p:, p:]
    return J.T @ own @ J


def expected_information(
    trace: np.ndarray,
    trace2: np.ndarray,
    of_fixed: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    N: float,
    sigma2: float,
) -> np.ndarray:
    """(k + 1, k + 1) ½tr(V⁻¹V_aV⁻¹V_b) with σ² last; with P in the place of V⁻¹ where ``fixed_traces`` are given.

    Parameters
    ----------
    trace : (k,); trace2 : (k, k); see ``likelihood.Moves``. N : n or, under REML, n − p.
    """
    k = len(trace)
    if of_fixed is not None:
        X_a, twice, products = of_fixed
        trace, trace2 = trace - X_a, trace2 - twice - twice.T + products
    out = np.empty((k + 1, k + 1))
    out[:k, :k] = 0.5 * trace2
    out[:k, k] = out[k, :k] = 0.5 * trace / sigma2
    out[k, k] = 0.5 * N / sigma2**2
    return out
