"""``compress`` of JAX arrays, traced or not: the moments of ``compression`` in array operations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import DataError
from . import levels, linalg
from .checks import group_codes
from .covariance import Template, column_groups
from .moments import (
    PILOT_PIVOT,
    Basis,
    GroupData,
    GroupMoments,
    Pilots,
    moved_basis,
    products,
    unpack_products,
    within_levels,
    within_map,
)
from .types import Array


def compress(
    y: Any, X: Any, Z: Any, groups: Any, weights: Any, offset: Any, template: Template, n_groups: int | None
) -> GroupData:
    dtype = jnp.result_type(y, X, Z)
    y, X, Z = (jnp.asarray(a, dtype) for a in (y, X, Z))
    codes: Array = groups
    if isinstance(groups, jax.core.Tracer):
        if n_groups is None:
            raise DataError("groups is traced: pass n_groups, the number of groups, as a Python int")
    else:
        host_codes, n_groups = group_codes(np.asarray(groups), n_groups)
        codes = jnp.asarray(host_codes)
    if offset is not None:
        y = y - offset
    log_weights, root = jnp.zeros((), dtype), None
    if weights is not None:
        root, log_weights = jnp.sqrt(weights)[:, None], jnp.log(weights).sum()
    basis = conditioning(y, X, Z, template)
    Zs = Z / basis.z_scale if root is None else Z / basis.z_scale * root

    def conditioned(basis: Basis) -> Array:
        W = jnp.concatenate([X, y[:, None]], axis=1) @ basis.map
        return W if root is None else W * root

    basis, B = _pilots(basis, *jax.lax.stop_gradient((conditioned(basis), Zs)), codes, n_groups)
    E = conditioned(basis) - jnp.einsum("nq,qwn->nw", Zs, B[:, :, codes])
    ZtZ, ZtE = _level_sums(Zs, E, codes, n_groups)
    EtE = E.T @ E
    pushed = linalg.matmul(ZtZ, B)
    across = jnp.einsum("qcg,qdg->cd", B, ZtE + 0.5 * pushed)
    # A code out of range would be left out of the sums without a word: NaN rows make the fit NOT_FINITE.
    n_rows = jnp.where(((codes >= 0) & (codes < n_groups)).all(), jnp.asarray(len(y), dtype), jnp.nan)
    pilots = Pilots(B, ZtE, EtE)
    moments = GroupMoments(ZtZ, ZtE + pushed, EtE + across + across.T, n_rows, log_weights, basis, template, pilots)
    R, c, rest = jax.lax.stop_gradient(within_levels(moments))
    count = jnp.ones(n_groups, dtype)
    return GroupData(ZtZ, count, moments.ZtW, R, c, rest, moments)


def _level_sums(Z: Array, W: Array, codes: Array, n_groups: int) -> tuple[Array, Array]:
    """ZᵀZ (q, q, G) and ZᵀW (q, w, G)."""
    sums = jax.ops.segment_sum(jnp.stack(list(products(Z.T, W.T)), axis=1), codes, n_groups)
    return unpack_products(sums.T, Z.shape[1], W.shape[1])


def _pilots(basis: Basis, W: Array, Z: Array, codes: Array, n_groups: int) -> tuple[Basis, Array]:
    """The pilots (q, p+1, G) of the levels, and the basis whose pilot of y is what they ask for; constants."""
    G, C = _level_sums(Z, W, codes, n_groups)
    R = levels.root(G)
    c = levels.against_root(R, C)
    between = sum(a @ a.T for a in c)
    move = within_map(between, W.T @ W - between)
    B = jnp.stack(levels.coefficients(R, c, PILOT_PIVOT))
    return moved_basis(basis, move), jnp.einsum("qcg,cd->qdg", B, move)


def conditioning(y: Array, X: Array, Z: Array, template: Template) -> Basis:
    """The conditioned basis in array operations; constant under differentiation (any basis is exact)."""
    y, X, Z = jax.lax.stop_gradient((y, X, Z))
    n, p = X.shape
    W = jnp.concatenate([X, y[:, None]], axis=1)
    size = jnp.maximum(jnp.abs(W).max(0), jnp.finfo(W.dtype).tiny)
    to_w = jnp.diag(1.0 / size)
    for _ in range(2):
        K = linalg.cholesky((W @ to_w).T @ (W @ to_w) / n + 1e-14 * jnp.eye(p + 1, dtype=W.dtype))
        to_w = to_w @ linalg.solve_lower(K, jnp.eye(p + 1, dtype=W.dtype)).T
    to_w = jnp.where(jnp.isfinite(to_w).all(), to_w, jnp.diag(1.0 / size))
    labels = column_groups(template)
    squares = (Z * Z).mean(0)
    shared = jnp.stack([squares[labels == label].mean() for label in labels])
    z_scale = jnp.where(shared > 0, jnp.exp2(jnp.round(0.5 * jnp.log2(jnp.where(shared > 0, shared, 1.0)))), 1.0)
    return Basis(to_w, jnp.log(jnp.abs(jnp.diagonal(to_w)[:p])).sum(), z_scale)
