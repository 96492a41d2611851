"""``compress_crossed`` of JAX arrays, traced or not: where numbers go is settled by the codes, on the host.

y, X, Z, weights and offset may be traced; the codes may not, since which columns meet decides the shapes. Levels that
share ZᵀZ are not pooled: what is equal in one trace need not be in the next.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import DataError
from .checks import group_codes
from .covariance import Template, make_template
from .crossed_data import MEMORY_LIMIT, CrossedData, Layout, NestedData, chain_of, chain_places, check_memory
from .crossed_moments import parents
from .structures import StructureLike
from .traced import conditioning
from .types import Array


def compress(
    y: Any,
    X: Any,
    Zs: list[Any],
    groups: list[Any],
    n_levels: list[int | None],
    templates: list[StructureLike | Template],
    weights: Any = None,
    offset: Any = None,
) -> CrossedData | NestedData:
    """Arguments and result as of ``compress_crossed``; the groups are labels or codes, not traced."""
    if any(isinstance(g, jax.core.Tracer) for g in groups):
        raise DataError(
            "the groups of several factors are traced: which levels meet decides the shapes of the model, so give "
            "them as NumPy arrays from outside of the traced function"
        )
    if any(g is None for g in groups):
        raise DataError("rows that belong to several levels of a factor need NumPy arrays: here some are JAX arrays")
    codes, levels = zip(*(group_codes(np.asarray(g), m) for g, m in zip(groups, n_levels, strict=True)), strict=True)
    dtype = jnp.result_type(y, X, *Zs)
    y, X = jnp.asarray(y, dtype), jnp.asarray(X, dtype)
    Zs = [jnp.asarray(Z, dtype) for Z in Zs]
    sizes = tuple(Z.shape[1] for Z in Zs)
    _check_lengths(len(y), X=X, **{f"Z of factor {j}": Z for j, Z in enumerate(Zs)}, **_named_codes(codes))
    template = tuple(block for t, q in zip(templates, sizes, strict=True) for block in make_template(t, q))
    y = y if offset is None else y - offset
    basis = conditioning(y, X, jnp.concatenate(Zs, axis=1), template)
    W, log_weights = jnp.concatenate([X, y[:, None]], axis=1) @ basis.map, jnp.zeros((), dtype)
    layout = Layout(sizes, tuple(int(m) for m in levels), ())
    Zs = [Z / basis.z_scale[layout.columns(j)] for j, Z in enumerate(Zs)]
    if weights is not None:
        root, log_weights = jnp.sqrt(weights)[:, None], jnp.log(weights).sum()
        W, Zs = W * root, [Z * root for Z in Zs]
    totals = dict(
        WtW=W.T @ W, n_rows=jnp.asarray(len(y), dtype), log_weights=log_weights, basis=basis, template=template
    )
    occurring = [int(np.count_nonzero(np.bincount(code))) for code in codes]
    chain = chain_of(occurring, lambda inner, outer: parents(codes[inner], codes[outer], levels[inner]))
    if chain is not None:
        return _nested(W, Zs, list(codes), layout._replace(order=chain[0]), chain[1], totals)
    order = tuple(sorted(range(len(Zs)), key=lambda j: -sizes[j] * levels[j]))
    return _crossed(W, Zs, list(codes), layout._replace(order=order), totals)


def _named_codes(codes: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    return {f"groups of factor {j}": c for j, c in enumerate(codes)}


def _check_lengths(n: int, **arrays: Any) -> None:
    for name, array in arrays.items():
        if len(array) != n:
            raise DataError(f"{name} has {len(array)} rows, y has {n}: give one row per observation")


def _sum_by_code(codes: Any, n_levels: int, left: Array, right: Array) -> Array:
    """Σ over the rows of a level of left ⊗ right, of (n, q) and (n, w): (q, w, n_levels)."""
    rows = (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
    return jax.ops.segment_sum(rows, codes, n_levels).T.reshape(left.shape[1], right.shape[1], n_levels)


def _nested(
    W: Array,
    Zs: list[Array],
    codes: list[np.ndarray],
    layout: Layout,
    parents_of: dict[int, np.ndarray],
    totals: dict[str, Any],
) -> NestedData:
    order, (rank, parent) = layout.order, chain_places(layout, parents_of)
    G, C = [], []
    for at, j in enumerate(order):
        right = jnp.concatenate([*(Zs[k] for k in order[at:]), W], axis=1)
        sums = _sum_by_code(rank[j][codes[j]], layout.levels[j], Zs[j], right)
        G.append(sums[:, : layout.sizes[j]])
        C.append(sums[:, layout.sizes[j] :])
    return NestedData(
        G=tuple(G),
        C=tuple(C),
        parent=tuple(jnp.asarray(parent[j]) for j in order[:-1]),
        position=tuple(jnp.asarray(rank[j].astype(np.int32)) for j in order),
        layout=layout,
        **totals,
    )


def _crossed(W: Array, Zs: list[Array], codes: list[np.ndarray], layout: Layout, totals: dict[str, Any]) -> CrossedData:
    first, K = layout.order[0], layout.n_dense
    m1, q1, code = layout.levels[first], layout.sizes[first], codes[first].astype(np.int64)
    Z1, Z2 = Zs[first], jnp.concatenate([Zs[j] for j in layout.order[1:]], axis=1)
    column = _columns(codes, layout)
    # Entries of Z₁ᵀZ₂, by column.
    cells, cell = np.unique(column * m1 + code[:, None], return_inverse=True)
    entry_column, entry_level = cells // m1, cells % m1
    rows = (Z2[:, :, None] * Z1[:, None]).reshape(-1, q1)
    value = jax.ops.segment_sum(rows, cell.ravel(), len(cells)).T
    sums = _sum_by_code(code, m1, Z1, jnp.concatenate([Z1, W], axis=1))
    rows = (Z2[:, :, None] * W[:, None]).reshape(-1, W.shape[1])
    return CrossedData(
        G=sums[:, :q1],
        count=jnp.ones(m1, W.dtype),
        pattern=jnp.arange(m1, dtype=jnp.int32),
        Z1W=sums[:, q1:],
        Z2W=jax.ops.segment_sum(rows, column.ravel(), K),
        entry_level=jnp.asarray(entry_level, jnp.int32),
        entry_column=jnp.asarray(entry_column, jnp.int32),
        entry_value=value,
        **_pairs(value, entry_level, entry_column, Z2, column, m1, K),
        layout=layout,
        **totals,
    )


def _columns(codes: list[np.ndarray], layout: Layout) -> np.ndarray:
    """(n, Σq) the columns of the dense system that a row meets."""
    parts = []
    for j, rows in layout.dense_slices:
        q = layout.sizes[j]
        parts.append(rows.start + codes[j].astype(np.int64)[:, None] * q + np.arange(q))
    return np.concatenate(parts, axis=1)


def _pairs(
    value: Array, level: np.ndarray, column: np.ndarray, Z2: Array, met: np.ndarray, n_levels: int, K: int
) -> dict[str, Any]:
    """The pairs and products of ``CrossedData``, from the entries of Z₁ᵀZ₂ and the columns ``met`` by each row."""
    left, right = _products(level, n_levels, len(value))
    keys = column[left] * K + column[right]
    sorting = np.lexsort((level[left], keys))
    left, right = left[sorting], right[sorting]
    pairs, many = np.unique(keys, return_counts=True)
    a, b = value[:, left], value[:, right]
    packed = zip(*np.tril_indices(len(value)), strict=True)
    return dict(
        pair_row=jnp.asarray(pairs // K, jnp.int32),
        pair_column=jnp.asarray(pairs % K, jnp.int32),
        base=_base(Z2, met, pairs, K),
        # XLA would compute what follows from these constants while compiling, for seconds.
        product_ends=jax.lax.optimization_barrier(jnp.asarray(np.concatenate([[0], np.cumsum(many)]), jnp.int32)),
        product_pattern=jnp.asarray(level[left], jnp.int32),
        product_value=jnp.stack([a[i] * b[j] + (a[j] * b[i] if i != j else 0.0) for i, j in packed]),
    )


def _products(level: np.ndarray, n_levels: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (e, f), e ≥ f, of entries of one ``level``."""
    order = np.argsort(level, kind="stable")
    met = np.bincount(level, minlength=n_levels)
    check_memory(
        float((met * (met + 1) // 2).sum()) * (8 * (q * (q + 1) // 2) + 24),
        MEMORY_LIMIT,
        "the pairs of columns that meet",
        "give NumPy arrays",
    )
    ends = np.cumsum(met)
    place = np.arange(len(level)) - np.repeat(ends - met, met)
    which = np.repeat(np.arange(len(level)), place + 1)
    total = np.cumsum(place + 1)
    other = np.repeat(ends - met, met)[which] + np.arange(len(which)) - np.repeat(total - place - 1, place + 1)
    return order[which], order[other]


def _base(Z2: Array, column: np.ndarray, pairs: np.ndarray, K: int) -> Array:
    """Z₂ᵀZ₂ at the pairs (row·K + column, row ≥ column)."""
    total: Any = 0.0
    for s in range(column.shape[1]):
        for t in range(s + 1):
            key = np.maximum(column[:, s], column[:, t]) * K + np.minimum(column[:, s], column[:, t])
            total = total + jax.ops.segment_sum(Z2[:, s] * Z2[:, t], np.searchsorted(pairs, key), len(pairs))
    return total
