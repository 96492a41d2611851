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
    found = _of_moves(first, moves, bends, sigma2, data, second)._replace(
        information=likelihood.without_beta(-whole.hessian, p), expected=_expected(first, moves, sigma2, data, reml)
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
    back = likelihood.totals_of(data).basis.map[:p, :p]
    inverse = back @ np.linalg.inv(first.M) @ back.T
    user = np.linalg.inv(back)
    X_a = user.T @ moves.B[:, :p, :p] @ user
    slope = np.concatenate([sigma2 * inverse @ X_a @ inverse, inverse[None]])
    found = Jets(sigma2 * inverse, slope, None, np.empty((0, 0)), np.empty((0, 0)))
    if not second:
        return found
    curve, bend = np.zeros((2, k + 1, k + 1, p, p))
    F = np.einsum("ci,acbd,dj->abij", user, moves.BB[:, :p, :, :p], user, optimize=True)
    products = np.einsum("aij,jk,bkl->abil", X_a, inverse, X_a, optimize=True)
    inner = products + np.swapaxes(products, 0, 1) - F - np.swapaxes(F, 0, 1)
    bent = user.T @ likelihood.bent(first, bends, k)[:, :, :p, :p] @ user
    curve[:k, :k], bend[:k, :k] = sigma2 * inverse @ (inner + bent) @ inverse, sigma2 * inverse @ bent @ inverse
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


def expected_information(params: np.ndarray, data: Statistics, *, reml: bool) -> np.ndarray:
    """(k + 1, k + 1) of (Ψ, σ²), at packed (β, Ψ, σ²) on the natural scale; variances may be zero."""
    _, first, moves, _ = likelihood.expand(params, data, scale="natural", reml=reml)
    p = data.n_fixed
    J = to_profile(np.asarray(params, float), "natural", p, data.template)[0][p:, p:]
    return J.T @ _expected(first, moves, float(params[-1]), data, reml) @ J


def _expected(first: likelihood.Sums, m: likelihood.Moves, sigma2: float, data: Statistics, reml: bool) -> np.ndarray:
    """½tr(V⁻¹V_aV⁻¹V_b), with P in the place of V⁻¹ under REML; V in the units of σ²."""
    p, k = len(first.M), len(m.trace)
    out = np.empty((k + 1, k + 1))
    trace, trace2 = m.trace, m.trace2
    N = float(likelihood.totals_of(data).n_rows)
    if reml and p:
        X_a, twice, products = likelihood.fixed_traces(first.M, m)
        trace, trace2, N = trace - X_a, trace2 - twice - twice.T + products, N - p
    out[:k, :k] = 0.5 * trace2
    out[:k, k] = out[k, :k] = 0.5 * trace / sigma2
    out[k, k] = 0.5 * N / sigma2**2
    return out
