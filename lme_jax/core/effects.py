"""Predicted random effects and means of any design, from the verbs of its engine (MATH §3, §5).

References: Henderson (1975), Biometrics 31, 423–447; Bates et al. (2015), eq. 58.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConvergenceError, DataError
from . import covariance, criterion, crossed, linalg, programs
from .checks import check_codes
from .crossed import Data
from .crossed_data import NestedData
from .moments import GroupData
from .nested import as_chain
from .records import Fit, RandomEffects
from .types import Array, at_least_float, namespace

Statistics = GroupData | Data


def random_effects(fitted: Fit, data: Statistics) -> tuple[RandomEffects, ...]:
    """BLUPs with conditional and prediction-error covariances of every level, one record per factor.

    Levels that pad a one-factor model to its bucketed length are included, as zeros.

    Notes
    -----
    Chains: one pass from the outermost factor inwards. Crossed: one K × K inverse, and for each level of factor 1 the
    block of S⁻¹ over the d_u effects it meets; of JAX arrays m₁K² operations.
    """
    return programs.run(_random_effects, *_estimates(fitted), data)


def predict(fitted: Fit, data: Statistics, X: Any, Z: Any, groups: Any) -> Array:
    """Predicted means Xβ̂ + Zb̂ of new rows; differentiable in all arrays.

    Parameters
    ----------
    fitted, data : a fit and the data it was fitted to.
    X : (m, p).
    Z : (m, q); of several factors a list of such, one per factor.
    groups : (m,) codes of the levels as ``data`` has them, or a list of such; −1 for a new level, whose effects are 0.

    Raises
    ------
    DataError
        On NumPy input: for a code that is no level of ``data``. Traced, such a row is NaN.
    """
    Zs, codes = _per_factor(Z), _per_factor(groups)
    sizes, levels = _sizes(data)
    if len(Zs) != len(sizes) or len(codes) != len(sizes):
        raise DataError(
            f"the model has {len(sizes)} grouping factors, but Z has {len(Zs)} and groups {len(codes)}: give a list "
            "with one array per factor"
        )
    codes = [_checked(code, m) for code, m in zip(codes, levels, strict=True)]
    Zs = [at_least_float(z) for z in Zs]
    return programs.run(_predict, *_estimates(fitted)[:2], data, at_least_float(X), Zs, codes)


def _per_factor(values: Any) -> list[Any]:
    several = isinstance(values, (list, tuple)) and len(values) and np.ndim(values[0]) > 0
    # Rows given as lists are an array of one factor.
    return list(values) if several and not isinstance(values[0], (list, tuple)) else [values]


def _sizes(data: Statistics) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Effects and levels per factor."""
    if isinstance(data, GroupData):
        q, _, m = data.moments.ZtW.shape
        return (q,), (m,)
    return data.layout.sizes, data.layout.levels


def _checked(codes: Any, n_levels: int) -> Any:
    if namespace(codes) is not np:
        return codes
    codes = np.asarray(codes)
    bad = np.flatnonzero((codes < -1) | (codes >= n_levels))
    if len(bad):
        raise DataError(
            f"groups[{bad[0]}] is {codes[bad[0]]}: codes of the {n_levels} levels run from 0 to {n_levels - 1}, "
            "and −1 is a new level"
        )
    return check_codes(np.maximum(codes, 0), n_levels) - (codes < 0)


def _estimates(fitted: Fit) -> tuple[Array, ...]:
    return fitted.theta, fitted.beta, fitted.sigma, fitted.unscaled_cov


class _Solved(NamedTuple):
    """An engine at a fit, its L (q, q) per factor, and map[p, p] with which y is multiplied in conditioned columns."""

    data: Data
    engine: Any
    solved: Any
    Ls: list[Array]
    unit: Array


def _solve(theta: Array, data: Statistics) -> _Solved:
    chain = as_chain(data.moments) if isinstance(data, GroupData) else data
    scaled = theta * covariance.theta_scale(chain.template, chain.basis.z_scale)
    Ls = criterion.factors(scaled, chain.template, chain.layout.sizes)
    engine = crossed.traced_engine(chain) if namespace(theta, chain.WtW) is not np else crossed.engine_of(chain)
    solved = engine.solve(Ls)
    if solved is None:
        raise ConvergenceError("the fit is not finite, so there are no random effects to predict")
    return _Solved(chain, engine, solved, Ls, 1.0 / chain.basis.z_scale)


def _residual(beta: Array, data: Data) -> Array:
    """(p+1, 1) with y − Xβ = [X y]·map of it: ((W̃_y − X̃a)/d with a = A⁻¹(c + dβ)."""
    basis, p, xp = data.basis, data.n_fixed, namespace(beta, data.WtW)
    A, c, d = basis.map[:p, :p], basis.map[:p, p], basis.map[p, p]
    a = linalg.solve_upper(A.T, (c + d * beta)[:, None])
    return xp.concatenate([-a, xp.ones((1, 1), a.dtype)]) / d


def _reached(at: _Solved, columns: Array) -> list[Array]:
    """ΨZᵀV⁻¹[X y]·columns per factor (q, c, m), conditioned units of Z."""
    D = at.engine.project(at.solved, columns)
    return [namespace(L).tensordot(L @ L.T, d, 1) for L, d in zip(at.Ls, D, strict=True)]


def _in_callers_order(at: _Solved, j: int, values: Array) -> Array:
    """(…, m) → (m, …), the levels of factor j as the caller counts them; of the outermost they stand so already."""
    if isinstance(at.data, NestedData) and j != at.data.layout.order[-1]:
        values = values[..., at.data.position[at.data.layout.order.index(j)]]
    return namespace(values).moveaxis(values, -1, 0)


def _blups(theta: Array, beta: Array, data: Statistics) -> list[Array]:
    """b̂ = ΨZᵀV⁻¹(y − Xβ) per factor (m, q)."""
    at = _solve(theta, data)
    reached = _reached(at, _residual(beta, at.data))
    units = [at.unit[at.data.layout.columns(j)] for j in range(len(reached))]
    return [_in_callers_order(at, j, r[:, 0] * u[:, None]) for j, (r, u) in enumerate(zip(reached, units, strict=True))]


def _random_effects(
    theta: Array, beta: Array, sigma: Array, unscaled_cov: Array, data: Statistics
) -> tuple[RandomEffects, ...]:
    """Var(b̂ − b) = Var(b | y) + ΨZᵀV⁻¹X Cov(β̂) (·)ᵀ."""
    at, p = _solve(theta, data), data.n_fixed
    xp, A = namespace(theta, at.data.WtW), at.data.basis.map[:p, :p]
    # The fixed effects' covariance is KKᵀ in conditioned columns.
    inner = linalg.solve_upper(A.T, linalg.solve_upper(A.T, unscaled_cov).T)
    columns = xp.concatenate([xp.eye(p + 1, p, dtype=inner.dtype), _residual(beta, at.data)], axis=1)
    out = []
    for j, (reach, own) in enumerate(zip(_reached(at, columns), at.engine.variances(at.solved), strict=True)):
        unit = at.unit[at.data.layout.columns(j)]
        size = (sigma**2 * unit[:, None] * unit[None])[:, :, None]
        extra = xp.einsum("apm,pr,brm->abm", reach[:, :p], inner, reach[:, :p])
        records = (reach[:, p] * unit[:, None], size * own, size * (own + extra))
        out.append(RandomEffects(*(_in_callers_order(at, j, r) for r in records)))
    return tuple(out)


def _predict(
    theta: Array, beta: Array, data: Statistics, X: Array, Zs: Sequence[Array], codes: Sequence[Array]
) -> Array:
    xp = namespace(theta, beta, X, *Zs, *codes)
    total = X @ beta
    for b, Z, code in zip(_blups(theta, beta, data), Zs, codes, strict=True):
        known, outside = code >= 0, (code < -1) | (code >= len(b))
        chosen = xp.where(known[:, None], b[xp.where(known & ~outside, code, 0)], 0.0)
        total = total + xp.where(outside, np.nan, (Z * chosen).sum(1))
    return total
