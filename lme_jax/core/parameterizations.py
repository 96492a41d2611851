"""The three packed parameter vectors of a model, the maps between them and their Jacobians (MATH §1).

Every vector is (β, ω, σ²): β the p fixed effects, ω the k covariance parameters of the random effects,
    natural   ω = Ψ = Cov(b)             (response units² per unit² of Z)
    profile   ω = Ψ/σ² = LLᵀ             (statsmodels' ``params`` and ``cov_re_unscaled``)
    sqrt      ω = θ, the packed L        (statsmodels with ``use_sqrt``)
in row-major lower-triangle order per block. Keeping σ² makes each map a bijection.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from . import covariance, programs
from .covariance import Template
from .structures import entry
from .types import Array, at_least_float

Scale = Literal["natural", "profile", "sqrt"]


def _profile_from_sqrt(theta: Array, template: Template) -> Array:
    L = covariance.factor(theta, template)
    return _project(L @ L.T, template)


def _project(M: Array, template: Template) -> Array:
    """ω of a covariance M (q, q) that has the template's pattern."""
    basis = covariance.linear_basis(template)
    rows, columns = zip(*(np.argwhere(E)[0] for E in basis), strict=True)
    return M[np.array(rows), np.array(columns)]


def covariance_of(omega: Array, template: Template) -> Array:
    """The (q, q) covariance Σ ω_a E_a."""
    return jnp.einsum("a,aij->ij", omega, jnp.asarray(covariance.linear_basis(template), omega.dtype))


def sqrt_from_profile(omega: Array, template: Template) -> Array:
    """θ ≥ 0 on the diagonal with LLᵀ = Σ ω_a E_a; zero columns where that is singular."""
    M, parts, at = covariance_of(omega, template), [], 0
    for block in template:
        part = M[at : at + block.size, at : at + block.size]
        at += block.size
        parts.append(entry(block).near(block, covariance.semidefinite_root(part)))
    return jnp.concatenate(parts)


def convert(params: Array, source: Scale, target: Scale, *, n_fixed: int, template: Template) -> Array:
    """(β, ω, σ²) on the ``source`` scale → the same model on the ``target`` scale, (p + k + 1,)."""
    how = dict(source=source, target=target, n_fixed=n_fixed, template=template)
    return programs.run(_convert, at_least_float(params), **how, backend="jax")


def _convert(params: Array, *, source: Scale, target: Scale, n_fixed: int, template: Template) -> Array:
    beta, omega, sigma2 = params[:n_fixed], params[n_fixed:-1], params[-1]
    if source == target:
        return params
    profile = {
        "natural": lambda: omega / sigma2,
        "profile": lambda: omega,
        "sqrt": lambda: _profile_from_sqrt(omega, template),
    }[source]()
    out = {
        "natural": lambda: profile * sigma2,
        "profile": lambda: profile,
        "sqrt": lambda: sqrt_from_profile(profile, template),
    }[target]()
    return jnp.concatenate([beta, out, sigma2[None]])


def jacobian(params: Array, source: Scale, target: Scale, *, n_fixed: int, template: Template) -> Array:
    """∂ target / ∂ source of ``convert`` at ``params``, (p + k + 1, p + k + 1)."""
    how = dict(source=source, target=target, n_fixed=n_fixed, template=template)
    return programs.run(_jacobian, at_least_float(params), **how, backend="jax")


def _jacobian(params: Array, **how: Any) -> Array:
    return jax.jacfwd(lambda x: _convert(x, **how))(params)
