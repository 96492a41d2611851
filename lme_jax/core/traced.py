"""``compress`` of JAX arrays, traced or not: the moments of ``compression`` in array operations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import DataError
from . import linalg
from .checks import group_codes
from .covariance import Template, column_groups
from .moments import Basis, GroupData, GroupMoments, products, unpack_products
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
    basis = _traced_basis(y, X, Z, template)
    W = jnp.concatenate([X, y[:, None]], axis=1) @ basis.map
    Zs = Z / basis.z_scale
    log_weights = jnp.zeros((), dtype)
    if weights is not None:
        root = jnp.sqrt(weights)[:, None]
        W, Zs, log_weights = W * root, Zs * root, jnp.log(weights).sum()
    sums = jax.ops.segment_sum(jnp.stack(list(products(Zs.T, W.T)), axis=1), codes, n_groups)
    ZtZ, ZtW = unpack_products(sums.T, Z.shape[1], X.shape[1] + 1)
    # A code out of range would be left out of the sums without a word: NaN rows make the fit NOT_FINITE.
    n_rows = jnp.where(((codes >= 0) & (codes < n_groups)).all(), jnp.asarray(len(y), dtype), jnp.nan)
    moments = GroupMoments(ZtZ, ZtW, W.T @ W, n_rows, log_weights, basis, template)
    count = jnp.ones(n_groups, dtype)
    return GroupData(ZtZ, count, ZtW, moments)


def _traced_basis(y: Array, X: Array, Z: Array, template: Template) -> Basis:
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
