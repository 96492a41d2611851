"""Moments → sufficient statistics of a model with several grouping factors (MATH §5), on the host.

Two shapes of model. Where every factor lies inside the next (pupils in schools in districts) the
statistics are one small block per level (``NestedData``). Otherwise the factor with the most random
effects is eliminated level by level and the K effects of all the others are solved as one
symmetric system, dense or sparse (``CrossedData``); its matrix is a sum over the pairs of columns that meet in a level
of the first factor, and those pairs are listed here once, pooled over levels that share ZᵀZ.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy.sparse

from ..errors import DataError
from .compression import distinct_levels
from .covariance import Template
from .crossed_moments import CrossedMoments, Meeting, crossed_moments, products_of_effects, sum_duplicates
from .moments import Basis, rows_with_residual
from .pattern import pattern_of
from .types import Array, pytree, static

MEMORY_LIMIT = 8 * 2**30
# Pairs of columns that are listed at a time.
PAIR_CHUNK = 1 << 20

ParentsOf: TypeAlias = Callable[[int, int], np.ndarray | None]


class Layout(NamedTuple):
    """Sizes of the factors in the caller's order, and the order in which they are eliminated."""

    sizes: tuple[int, ...]
    levels: tuple[int, ...]
    order: tuple[int, ...]

    def columns(self, j: int) -> slice:
        """Where factor j's effects stand among all Σq columns of Z."""
        lo = sum(self.sizes[:j])
        return slice(lo, lo + self.sizes[j])

    @property
    def dense_slices(self) -> tuple[tuple[int, slice], ...]:
        """(factor, its rows in the dense system) for all factors but the first eliminated."""
        out, lo = [], 0
        for j in self.order[1:]:
            hi = lo + self.sizes[j] * self.levels[j]
            out.append((j, slice(lo, hi)))
            lo = hi
        return tuple(out)

    @property
    def n_dense(self) -> int:
        return sum(self.sizes[j] * self.levels[j] for j in self.order[1:])


@pytree
class CrossedData:
    """Statistics of a model whose factors are not nested; factor 1 is the one eliminated first.

    Attributes
    ----------
    G : (q₁, q₁, P) distinct Z₁ᵀZ₁; count : (P,) levels that share each; pattern : (m₁,) of each level.
    Z1W : (q₁, p+1, m₁); Z2W : (K, p+1); WtW : (p+1, p+1).
    entry_level, entry_column : (E,) int32, sorted by column; entry_value : (q₁, E); the sparse Z₁ᵀZ₂.
    pair_row, pair_column : (N,) int32, row ≥ column; base : (N,) Z₂ᵀZ₂ at those places.
    product_ends : (N+1,) where each pair's products begin; product_pattern : (T,) int32; product_value :
        (q₁(q₁+1)/2, T) such that Z₂ᵀZ₁M₁Z₁ᵀZ₂ at the pairs is the sum of M₁[product_pattern] · product_value.
    n_rows, log_weights, basis : as in ``GroupMoments``; z_scale runs over the caller's factors.
    """

    G: Array
    count: Array
    pattern: Array
    Z1W: Array
    Z2W: Array
    WtW: Array
    entry_level: Array
    entry_column: Array
    entry_value: Array
    pair_row: Array
    pair_column: Array
    base: Array
    product_ends: Array
    product_pattern: Array
    product_value: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()
    layout: Layout = static()

    @property
    def n_fixed(self) -> int:
        return self.WtW.shape[0] - 1


@pytree
class NestedData:
    """Statistics of a chain of nested factors, innermost first.

    Attributes
    ----------
    G : per factor (q, q, m) ZᵀZ; C : per factor (q, w, m) Zᵀ[Z of the outer factors, X, y].
    parent : per factor but the last, (m,) int32, the level of the next factor, non-decreasing.
    position : per factor (m,) int32, where each of the caller's levels stands here.
    """

    G: tuple[Array, ...]
    C: tuple[Array, ...]
    parent: tuple[Array, ...]
    position: tuple[Array, ...]
    WtW: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()
    layout: Layout = static()

    @property
    def n_fixed(self) -> int:
        return self.WtW.shape[0] - 1


def compress_crossed(
    y: Any,
    X: Any,
    Zs: list[Any],
    codes: list[Any],
    n_levels: list[int],
    templates: tuple[str | Template, ...],
    *,
    weights: Any = None,
    offset: Any = None,
    memory_limit: int = MEMORY_LIMIT,
) -> CrossedData | NestedData:
    """Sufficient statistics of a model with several grouping factors, from NumPy rows.

    Parameters
    ----------
    y : (n,); X : (n, p).
    Zs : per factor (n, q_j), or a scipy sparse (n, m_j q_j) matrix of the effects' columns, level by level,
        for rows that belong to several levels (multi-membership, kinship: ZL_K); then its codes are None.
    codes : per factor (n,) integers in [0, n_levels[j]).
    n_levels : per factor, the number of levels.
    templates : per factor, the covariance template of its q_j effects (all its terms merged).
    weights, offset : (n,), optional.
    memory_limit : bytes that the dense system and the pair lists may take.

    Returns
    -------
    NestedData where each factor lies inside the next, else CrossedData.

    Raises
    ------
    DataError
        Lengths that differ, values that are not finite, codes out of range, or too much memory.

    Notes
    -----
    O(n Σq (Σq + p) + W) with W = Σ_u d_u(d_u+1)/2 over the levels u of the largest factor, each meeting
    d_u effects of the other factors.
    """
    moments = crossed_moments(y, X, Zs, codes, n_levels, templates, weights=weights, offset=offset)
    return pool_crossed(moments, memory_limit)


def pool_crossed(moments: CrossedMoments, memory_limit: int = MEMORY_LIMIT) -> CrossedData | NestedData:
    """The sufficient statistics in additive moments, of rows of one chunk or of many that were merged.

    Returns
    -------
    NestedData where each factor lies inside the next, else CrossedData.

    Raises
    ------
    DataError
        For pair lists or a system of the factors above ``memory_limit`` bytes.
    """
    totals = dict(
        WtW=moments.WtW,
        n_rows=rows_with_residual(moments.n_rows, moments.WtW, moments.basis),
        log_weights=moments.log_weights,
        basis=moments.basis,
        template=moments.template,
    )
    layout = Layout(moments.sizes, moments.n_levels, ())
    by_code = [own is None for own in moments.shared]
    chain = _chain(moments) if all(by_code) else None
    if chain is not None:
        order, parents = chain
        return _nested(moments, layout._replace(order=order), parents, totals)
    effects = [q * m if c else -1 for q, m, c in zip(*layout[:2], by_code, strict=True)]
    order = tuple(sorted(range(len(effects)), key=lambda j: -effects[j]))
    if not by_code[order[0]]:
        # Nothing is block diagonal: an empty first factor leaves the whole model to the dense system.
        raise DataError("at least one factor must be given by codes; the others may be sparse matrices")
    return _crossed(moments, layout._replace(order=order), totals, memory_limit)


# ---------------------------------------------------------------- nested chain


def chain_of(occurring: Sequence[int], parents_of: ParentsOf) -> tuple[tuple[int, ...], dict[int, np.ndarray]] | None:
    """Whether factors are a chain, each inside the next.

    Parameters
    ----------
    occurring : per factor the number of levels that occur.
    parents_of : (inner, outer) → (m_inner,) the outer level of every inner level, or None where one meets two.

    Returns
    -------
    The order, innermost first, and per factor but the last its parents; None if they are no chain.
    """
    order = tuple(sorted(range(len(occurring)), key=lambda j: -occurring[j]))
    parents = {}
    for inner, outer in itertools.pairwise(order):
        found = parents_of(inner, outer)
        if found is None:
            return None
        parents[inner] = found
    return order, parents


def chain_places(
    layout: Layout, parents: Mapping[int, np.ndarray]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Per factor of a chain where its levels stand in ``NestedData``; per factor but the last, their parents there."""
    order, levels = layout.order, layout.levels
    rank = {order[-1]: np.arange(levels[order[-1]])}
    parent = {}
    for inner, outer in zip(order[-2::-1], order[:0:-1], strict=True):
        found = rank[outer][parents[inner]]
        sorting = np.argsort(found, kind="stable")
        rank[inner] = np.empty_like(sorting)
        rank[inner][sorting] = np.arange(len(sorting))
        parent[inner] = found[sorting].astype(np.int32)
    return rank, parent


def _chain(moments: CrossedMoments) -> tuple[tuple[int, ...], dict[int, np.ndarray]] | None:
    if len(moments.sizes) == 1:
        return (0,), {}
    occurring = [moments.n_occurring(j) for j in range(len(moments.sizes))]

    def parents_of(inner: int, outer: int) -> np.ndarray | None:
        if moments.n_met(inner, outer) > occurring[inner]:
            return None
        met = moments.meeting(inner, outer)
        parent = np.zeros(moments.n_levels[inner], np.int64)
        parent[met.row] = met.column
        return parent

    return chain_of(occurring, parents_of)


def _nested(
    moments: CrossedMoments, layout: Layout, parents: Mapping[int, np.ndarray], totals: dict[str, Any]
) -> NestedData:
    order, levels = layout.order, layout.levels
    rank, parent = chain_places(layout, parents)
    G, C = [], []
    for at, j in enumerate(order):
        sorting = np.argsort(rank[j])
        outer_parts = [_per_inner_level(moments.meeting(j, k), levels[j]) for k in order[at + 1 :]]
        C.append(np.concatenate([*outer_parts, moments.ZtW[j]], axis=1)[:, :, sorting])
        G.append(np.ascontiguousarray(moments.ZtZ[j][:, :, sorting]))
    return NestedData(
        G=tuple(G),
        C=tuple(C),
        parent=tuple(parent[j] for j in order[:-1]),
        position=tuple(rank[j].astype(np.int32) for j in order),
        layout=layout,
        **totals,
    )


def _per_inner_level(meeting: Meeting, n_levels: int) -> np.ndarray:
    """The products (q_j, q_k, m_j) with the one outer level of every inner level."""
    out = np.zeros((*meeting.value.shape[:2], n_levels))
    out[:, :, meeting.row] = meeting.value
    return out


# ---------------------------------------------------------------- crossed factors


def _with_first(moments: CrossedMoments, layout: Layout) -> list[Any]:
    """Z₁ᵀZ₂ as CSR (m₁, K) per column of Z₁, of one structure: factors in elimination order, effects innermost."""
    first = layout.order[0]
    parts = [_by_row(moments.meeting(first, j), layout, first, j) for j in layout.order[1:]]
    return [scipy.sparse.hstack(own, format="csr") if len(own) > 1 else own[0] for own in zip(*parts, strict=True)]


def _by_row(meeting: Meeting, layout: Layout, first: int, j: int) -> list[Any]:
    q, m1 = layout.sizes[j], layout.levels[first]
    columns = (meeting.column[:, None] * np.int32(q) + np.arange(q, dtype=np.int32)).ravel()
    ends = np.concatenate([[0], np.cumsum(np.bincount(meeting.row, minlength=m1) * q)])
    shape = (m1, q * layout.levels[j])
    return [scipy.sparse.csr_matrix((own.T.ravel(), columns, ends), shape=shape) for own in meeting.value]


def _crossed(moments: CrossedMoments, layout: Layout, totals: dict[str, Any], memory_limit: int) -> CrossedData:
    first = layout.order[0]
    q1, K = layout.sizes[first], layout.n_dense
    G = moments.ZtZ[first]
    representative, pattern = distinct_levels(G)
    cross = _with_first(moments, layout)
    met = np.diff(cross[0].indptr).astype(np.int64)
    n_products = int((met * (met + 1) // 2).sum())
    kq = q1 * (q1 + 1) // 2
    # One array is doubled while its pieces are joined.
    pooled = _dense_is_better(met, pattern, K)
    peak = n_products * (8 * kq + 12) if not pooled else 0
    check_memory(peak, memory_limit, f"{n_products} pairs of columns of all factors but the largest")
    base = products_of_effects(moments, layout.order[1:])
    by_column = [c.tocsc() for c in cross]
    entries: dict[str, Any] = dict(
        entry_level=by_column[0].indices.astype(np.int32),
        entry_column=np.repeat(np.arange(K, dtype=np.int32), np.diff(by_column[0].indptr)),
        entry_value=np.stack([c.data for c in by_column]),
    )
    del by_column
    pairs = (_pooled_pairs if pooled else _listed_pairs)(cross, base, pattern, len(representative))
    data = CrossedData(
        G=np.ascontiguousarray(G[:, :, representative]),
        count=np.bincount(pattern, minlength=len(representative)).astype(float),
        pattern=pattern.astype(np.int32),
        Z1W=np.ascontiguousarray(moments.ZtW[first]),
        Z2W=np.concatenate([np.moveaxis(moments.ZtW[j], 2, 0).reshape(-1, len(moments.WtW)) for j in layout.order[1:]]),
        **entries,
        **pairs,
        layout=layout,
        **totals,
    )
    return _check_system(data, peak, memory_limit)


def check_memory(size: float, limit: float, what: str, or_else: str = "give compress_crossed a memory_limit") -> None:
    if size > limit:
        raise DataError(
            f"{what} would take {size / 2**30:.1f} GiB, above the limit of {limit / 2**30:.1f} GiB: merge rare "
            f"levels of the smaller factors, drop a factor, or {or_else}"
        )


def _check_system(data: CrossedData, listed: int, limit: int) -> CrossedData:
    """The data, or DataError where the system of all factors but the largest takes too much beside the ``listed``."""
    K = data.layout.n_dense
    if 16 * K * K + listed <= limit:
        return data
    met = pattern_of(data)
    if met is None:
        check_memory(16 * K * K + listed, limit, f"the dense {K} × {K} system of all factors but the largest")
    else:
        check_memory(met.nbytes + listed, limit, f"the sparse factor of {K} effects of all factors but the largest")
    return data


def _dense_is_better(met: np.ndarray, pattern: np.ndarray, K: int) -> bool:
    """Whether pooling first (one Gram matrix per pattern) is much smaller than listing every pair."""
    pooled = (int(pattern.max(initial=0)) + 1) * (K * (K + 1) // 2)
    return int((met * (met + 1) // 2).sum()) > 4 * pooled


def _listed_pairs(cross: list[Any], base: Any, pattern: np.ndarray, n_patterns: int) -> dict[str, Any]:
    """The pairs and products of ``CrossedData``, from Z₁ᵀZ₂ (m₁, K) and the lower triangle of Z₂ᵀZ₂, as CSR.

    The columns that are the later of a pair are taken some at a time, so that little more than the result is held.
    """
    K = cross[0].shape[1]
    own = scipy.sparse.csr_matrix((np.arange(cross[0].nnz), cross[0].indices, cross[0].indptr), shape=cross[0].shape)
    own = own.tocsc()
    # Of every entry of Z₁ᵀZ₂, by column: where its level's entries begin, and how many there are up to it.
    first = cross[0].indptr[own.indices].astype(np.int64)
    many = own.data - first + 1
    work = np.concatenate([[0], np.cumsum(many)])[own.indptr]
    lists, lo = _Lists(min(int(work[-1]) + base.nnz, K * (K + 1) // 2), int(work[-1]), len(cross)), 0
    while lo < K:
        hi = max(lo + 1, int(np.searchsorted(work, work[lo] + PAIR_CHUNK, side="right")) - 1)
        entries = slice(own.indptr[lo], own.indptr[hi])
        column = np.repeat(np.arange(lo, hi), np.diff(own.indptr[lo : hi + 1]))
        level = own.indices[entries]
        keys, products = _products(
            cross, own.data[entries], first[entries], many[entries], column, pattern[level], n_patterns
        )
        lists.append(*_align(keys, products, base, lo, hi))
        lo = hi
    return lists.finished()


def _products(
    cross: list[Any],
    entry: np.ndarray,
    first: np.ndarray,
    many: np.ndarray,
    column: np.ndarray,
    pattern: np.ndarray,
    n_patterns: int,
) -> tuple[np.ndarray, list[Any]]:
    """Per packed pair (a ≥ b) of Z₁ columns, CSR (pairs, P): Σ over a pattern's levels of products of entries.

    Every ``entry`` of CSR Z₁ᵀZ₂ meets the ``many`` from ``first`` on. The pairs that occur come with their keys, which
    count from that of the first column's first.
    """
    lo = int(column[0]) if len(column) else 0
    which = np.repeat(np.arange(len(entry), dtype=np.int32), many)
    ends = np.cumsum(many)
    other = (first - ends + many)[which] + np.arange(len(which))
    below = lo * (lo + 1) // 2
    key = (column * (column + 1) // 2 - below)[which] + cross[0].indices[other]
    keys, place = _distinct(key)
    which_pattern = pattern[which].astype(np.int32)
    out = []
    for a, b in zip(*np.tril_indices(len(cross)), strict=True):
        value = cross[a].data[entry][which] * cross[b].data[other]
        if a != b:
            value += cross[b].data[entry][which] * cross[a].data[other]
        out.append(sum_duplicates(value, place, which_pattern, (len(keys), n_patterns)))
    return keys, out


def _distinct(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, ascending, and the place of every key among them, in O(len(key)) memory."""
    length = int(key.max(initial=-1)) + 1
    if length > 8 * len(key):
        return np.unique(key, return_inverse=True)
    used = np.zeros(length, bool)
    used[key] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - 1)[key]


def _pooled_pairs(cross: list[Any], base: Any, pattern: np.ndarray, n_patterns: int) -> dict[str, Any]:
    """``_listed_pairs`` by one Gram matrix per pattern."""
    K, ab = cross[0].shape[1], list(zip(*np.tril_indices(len(cross)), strict=True))
    i, j = np.tril_indices(K)
    columns: list[list[np.ndarray]] = [[] for _ in ab]
    for t in range(n_patterns):
        members = np.flatnonzero(pattern == t)
        local = [c[members] for c in cross]
        if local[0].nnz > 0.03 * len(members) * K:
            local = [c.toarray() for c in local]
        for out, (a, b) in zip(columns, ab, strict=True):
            product = local[a].T @ local[b]
            product = product.toarray() if scipy.sparse.issparse(product) else product
            out.append((product if a == b else product + product.T)[i, j])
    # All packed pairs must share one structure, so zeros are kept wherever any of them is not zero.
    some = sum(np.abs(np.stack(c, axis=1)) for c in columns) > 0
    where = scipy.sparse.csr_matrix(some)
    products = [
        scipy.sparse.csr_matrix((np.stack(c, axis=1)[some], where.indices, where.indptr), shape=some.shape)
        for c in columns
    ]
    lists = _Lists(len(some), products[0].nnz, len(cross))
    lists.append(*_align(np.arange(len(some)), products, base, 0, K))
    return lists.finished()


def _align(keys: np.ndarray, products: list[Any], base: Any, lo: int, hi: int) -> tuple[np.ndarray, ...]:
    """The pairs whose later column is in [lo, hi) that occur in the products or in Z₂ᵀZ₂, in the order of their keys.

    Returns
    -------
    Row, column, Z₂ᵀZ₂, number of products; the products' patterns, and their values (q₁(q₁+1)/2, T).
    """
    below = lo * (lo + 1) // 2
    row = np.repeat(np.arange(lo, hi, dtype=np.int64), np.diff(base.indptr[lo : hi + 1]))
    entries = slice(base.indptr[lo], base.indptr[hi])
    own = row * (row + 1) // 2 - below + base.indices[entries]
    per_key = np.diff(products[0].indptr)
    occurs = per_key > 0
    pair_key, place = _distinct(np.concatenate([keys[occurs], own]))
    n = int(occurs.sum())
    many, value = np.zeros(len(pair_key), np.int32), np.zeros(len(pair_key))
    many[place[:n]] = per_key[occurs]
    np.add.at(value, place[n:], base.data[entries])
    starts = np.arange(lo, hi + 1, dtype=np.int64)
    starts = starts * (starts + 1) // 2 - below
    per_row = np.diff(np.searchsorted(pair_key, starts))
    return (
        np.repeat(np.arange(lo, hi, dtype=np.int32), per_row),
        (pair_key - np.repeat(starts[:-1], per_row)).astype(np.int32),
        value,
        many,
        products[0].indices.astype(np.int32),
        np.stack([c.data for c in products]),
    )


class _Lists:
    """The lists of ``CrossedData``, filled piece by piece.

    They are made as long as they can get. Memory that is not written to is not taken, and is given back at the end;
    many pieces, joined at the end, would leave holes instead.
    """

    def __init__(self, n_pairs: int, n_products: int, q: int) -> None:
        self.pairs = {"pair_row": np.int32, "pair_column": np.int32, "base": float, "many": np.int32}
        self.arrays: dict[str, Any] = {name: np.empty(n_pairs, dtype) for name, dtype in self.pairs.items()}
        self.pattern: Any = np.empty(n_products, np.int32)
        self.values: list[Any] = [np.empty(n_products) for _ in range(q * (q + 1) // 2)]
        self.n_pairs = self.n_products = 0

    def append(self, *piece: np.ndarray) -> None:
        """What ``_align`` returns."""
        here = slice(self.n_pairs, self.n_pairs + len(piece[0]))
        for name, part in zip(self.pairs, piece, strict=False):
            self.arrays[name][here] = part
        pattern, values = piece[-2:]
        there = slice(self.n_products, self.n_products + len(pattern))
        self.pattern[there] = pattern
        for out, value in zip(self.values, values, strict=True):
            out[there] = value
        self.n_pairs, self.n_products = here.stop, there.stop

    def finished(self) -> dict[str, Any]:
        for array in self.arrays.values():
            array.resize(self.n_pairs, refcheck=False)
        for values in (self.pattern, *self.values):
            values.resize(self.n_products, refcheck=False)
        many = self.arrays.pop("many")
        ends = np.zeros(len(many) + 1, np.int32 if self.n_products < 2**31 else np.int64)
        np.cumsum(many, out=ends[1:])
        # One packed pair of Z₁ columns needs no copy.
        value = self.values[0][None] if len(self.values) == 1 else np.stack(self.values)
        return dict(**self.arrays, product_ends=ends, product_pattern=self.pattern, product_value=value)
