"""The three packed parameter vectors of a model, the maps between them and their derivatives (MATH §1).

Every vector is (β, ω, σ²): β the p fixed effects, ω the k covariance parameters of the random effects,
    natural   ω = Ψ = Cov(b)             (response units² per unit² of Z)
    profile   ω = Ψ/σ² = LLᵀ             (statsmodels' ``params`` and ``cov_re_unscaled``)
    sqrt      ω = θ, the packed L        (statsmodels with ``use_sqrt``)
in row-major lower-triangle order per block. Keeping σ² makes each map a bijection. NumPy.
"""

from typing import Any, Literal, get_args

import numpy as np

from ..errors import DataError
from . import covariance
from .covariance import Template
from .structures import entry

Scale = Literal["natural", "profile", "sqrt"]


def check_scale(scale: Any) -> Scale:
    if scale not in get_args(Scale):
        raise DataError(f"scale={scale!r} is unknown; use one of {', '.join(map(repr, get_args(Scale)))}")
    return scale


def covariance_of(omega: np.ndarray, template: Template) -> np.ndarray:
    """The (q, q) covariance Σ ω_a E_a."""
    return np.tensordot(omega, covariance.linear_basis(template), 1)


def profile_from_sqrt(theta: np.ndarray, template: Template) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ω (k,) of θ, ∂ω/∂θ (k, k) and ∂²ω/∂θ² (k, k, k)."""
    rows, columns = np.array([np.argwhere(E)[0] for E in covariance.linear_basis(template)]).reshape(-1, 2).T
    rows, columns = np.maximum(rows, columns), np.minimum(rows, columns)
    L = covariance.factor(theta, template)
    J, J2 = covariance.squared_derivatives(theta, template)
    packed = rows * (rows + 1) // 2 + columns
    return (L @ L.T)[rows, columns], np.asarray(J)[packed], np.asarray(J2)[packed]


def sqrt_from_profile(omega: np.ndarray, template: Template) -> np.ndarray:
    """θ ≥ 0 on the diagonal with LLᵀ = Σ ω_a E_a; zero columns where that is singular."""
    M, parts, at = covariance_of(omega, template), [np.zeros(0)], 0
    for block in template:
        part = M[at : at + block.size, at : at + block.size]
        at += block.size
        parts.append(entry(block).near(block, covariance.semidefinite_root(part)))
    return np.concatenate(parts)


def convert(params: Any, source: Scale, target: Scale, *, n_fixed: int, template: Template) -> np.ndarray:
    """(β, ω, σ²) on the ``source`` scale → the same model on the ``target`` scale, (p + k + 1,)."""
    params = _checked(params, source, n_fixed, template)
    check_scale(target)
    if source == target:
        return params.copy()
    beta, omega, sigma2 = params[:n_fixed], params[n_fixed:-1], params[-1]
    if source == "natural":
        omega = omega / sigma2
    elif source == "sqrt":
        omega = profile_from_sqrt(omega, template)[0]
    if target == "natural":
        omega = omega * sigma2
    elif target == "sqrt":
        omega = sqrt_from_profile(omega, template)
    return np.concatenate([beta, omega, [sigma2]])


def jacobian(params: Any, source: Scale, target: Scale, *, n_fixed: int, template: Template) -> np.ndarray:
    """∂ target / ∂ source of ``convert`` at ``params``, (p + k + 1, p + k + 1).

    Raises
    ------
    DataError
        Of a singular covariance whose root is asked for: the map has no derivative there.
    """
    params = _checked(params, source, n_fixed, template)
    here = to_profile(params, source, n_fixed, template)[0]
    there = to_profile(convert(params, source, target, n_fixed=n_fixed, template=template), target, n_fixed, template)
    if target == "sqrt" and source != "sqrt" and np.linalg.cond(there[0]) > 1.0 / np.finfo(float).eps:
        raise DataError("the covariance is singular, so its root has no derivative: take the Jacobian from 'sqrt'")
    return np.eye(len(params)) if source == target else np.linalg.solve(there[0], here)


def to_profile(params: np.ndarray, source: Scale, n_fixed: int, template: Template) -> tuple[np.ndarray, np.ndarray]:
    """∂(β, ω, σ²)/∂params on the profile scale (r, r) and ∂² (r, r, r), r = p + k + 1."""
    r, cov = len(params), slice(n_fixed, len(params) - 1)
    J, J2 = np.eye(r), np.zeros((r, r, r))
    if source == "sqrt":
        _, J[cov, cov], J2[cov, cov, cov] = profile_from_sqrt(params[cov], template)
    elif source == "natural":
        sigma2, where = params[-1], np.arange(n_fixed, r - 1)
        J[cov, cov] = np.eye(r - 1 - n_fixed) / sigma2
        J[cov, -1] = -params[cov] / sigma2**2
        J2[where, where, -1] = J2[where, -1, where] = -1.0 / sigma2**2
        J2[where, -1, -1] = 2.0 * params[cov] / sigma2**3
    return J, J2


def _checked(params: Any, scale: Scale, n_fixed: int, template: Template) -> np.ndarray:
    check_scale(scale)
    params, k = np.asarray(params, float), covariance.n_theta(template)
    if params.shape != (n_fixed + k + 1,):
        raise DataError(
            f"params of shape {params.shape}: give {n_fixed} fixed effects, {k} covariance parameters and σ², "
            f"({n_fixed + k + 1},)"
        )
    return params
