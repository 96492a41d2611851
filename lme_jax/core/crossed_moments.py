"""Rows → additive moments of several grouping factors (MATH §5); chunks of data are merged by summation, on the host.

Beside what each factor has alone (see ``moments``) the products of its effects with those of every other factor are
kept, level by level where they meet. Which factor lies in which is asked of all rows together, after the merge.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from ..errors import DataError
from .checks import check_codes, check_rows, real_array
from .covariance import Template, make_template
from .moments import (
    CHUNK_ROWS,
    Basis,
    GroupMoments,
    Positions,
    add_by_code,
    added,
    check_alike,
    common_basis,
    gram,
    pilot_basis,
    transition,
)
from .types import Array, pytree, static

# Rows that are looked at first for whether a factor lies inside another.
GLIMPSE_ROWS = 1024


@pytree
class Meeting:
    """The products of the effects of two factors, where a level of one meets a level of the other.

    Attributes
    ----------
    row, column : (E,) int32, sorted by row, then column; value : (q_j, q_k, E).
    """

    row: Array
    column: Array
    value: Array


@pytree
class CrossedMoments:
    """Additive cross-products of several factors, in a conditioned basis.

    Attributes
    ----------
    ZtZ : per factor (q, q, m); ZtW : per factor (q, p+1, m), where W = [X y] conditioned.
    meetings : per pair of factors, in the order of ``pairs``.
    shared : per factor whose rows belong to several levels the meeting of it with itself; None for the others.
    WtW, n_rows, log_weights, basis : as in ``GroupMoments``; z_scale runs over the factors.
    """

    ZtZ: tuple[Array, ...]
    ZtW: tuple[Array, ...]
    meetings: tuple[Meeting, ...]
    shared: tuple[Meeting | None, ...]
    WtW: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(G.shape[0] for G in self.ZtZ)

    @property
    def n_levels(self) -> tuple[int, ...]:
        return tuple(G.shape[2] for G in self.ZtZ)

    @property
    def column_squares(self) -> np.ndarray:
        """(Σq,) sums of squares of the conditioned columns of all Z."""
        return np.concatenate([np.einsum("aag->a", G) for G in self.ZtZ])

    def meeting(self, j: int, k: int) -> Meeting:
        """The meeting of factors j ≠ k, its rows levels of j."""
        at = pairs(len(self.ZtZ)).index((min(j, k), max(j, k)))
        return self.meetings[at] if j < k else transposed(self.meetings[at])

    def n_met(self, j: int, k: int) -> int:
        """How many pairs of levels of factors j ≠ k meet."""
        return len(self.meetings[pairs(len(self.ZtZ)).index((min(j, k), max(j, k)))].row)

    def n_occurring(self, j: int) -> int:
        """How many levels of a factor, of two or more, occur in the rows."""
        # The pairs begin with those of factor 0.
        return int(np.count_nonzero(np.bincount(self.meetings[j - 1].column if j else self.meetings[0].row)))


def pairs(n_factors: int) -> list[tuple[int, int]]:
    """The pairs of factors, in the order in which their meetings are kept."""
    return list(itertools.combinations(range(n_factors), 2))


def transposed(meeting: Meeting) -> Meeting:
    """The same meeting seen from the other factor."""
    order = np.argsort(meeting.column, kind="stable")
    value = np.moveaxis(meeting.value, 0, 1)[:, :, order]
    return Meeting(meeting.column[order], meeting.row[order], value)


# ---------------------------------------------------------------- rows


def crossed_moments(
    y: Any,
    X: Any,
    Zs: Sequence[Any],
    codes: Sequence[Any],
    n_levels: Sequence[int],
    templates: Sequence[str | Template],
    *,
    weights: Any = None,
    offset: Any = None,
) -> CrossedMoments:
    """Cross-products of the rows of one chunk; the arguments are those of ``crossed_data.compress_crossed``.

    Raises
    ------
    DataError
        Lengths that differ, values that are not finite, codes out of range.
    """
    y, X = real_array("y", y, 1), real_array("X", X, 2)
    sparse = [scipy.sparse.issparse(Z) for Z in Zs]
    Zs = [
        Z.tocsr() if s else real_array(f"Z of factor {j}", Z, 2)
        for j, (Z, s) in enumerate(zip(Zs, sparse, strict=True))
    ]
    sizes = [Z.shape[1] // m if s else Z.shape[1] for Z, m, s in zip(Zs, n_levels, sparse, strict=True)]
    blocks = [make_template(t, q) for t, q in zip(templates, sizes, strict=True)]
    check_rows(y=y, X=X, weights=weights, offset=offset)
    for j, (Z, code) in enumerate(zip(Zs, codes, strict=True)):
        _check_factor(j, len(y), Z, code, n_levels[j])
    codes = [None if s else check_codes(c, m) for c, m, s in zip(codes, n_levels, sparse, strict=True)]
    y = y if offset is None else y - np.asarray(offset, float)
    weights = None if weights is None else np.asarray(weights, float)
    return _summed_rows(y, X, Zs, codes, n_levels, sizes, tuple(block for t in blocks for block in t), weights)


def _check_factor(j: int, n: int, Z: Any, codes: Any, n_levels: int) -> None:
    if scipy.sparse.issparse(Z):
        if Z.shape[0] != n or Z.shape[1] % n_levels or not np.isfinite(Z.data).all():
            raise DataError(
                f"factor {j}: the sparse Z is {Z.shape}; it needs {n} rows, a multiple of {n_levels} columns "
                "and finite values"
            )
        return
    check_rows(y=np.zeros(n), **{f"Z of factor {j}": Z, f"codes of factor {j}": codes})
    check_codes(codes, n_levels, f"codes of factor {j}")


def _summed_rows(
    y: np.ndarray,
    X: np.ndarray,
    Zs: Sequence[Any],
    codes: Sequence[np.ndarray | None],
    n_levels: Sequence[int],
    sizes: Sequence[int],
    template: Template,
    weights: np.ndarray | None,
) -> CrossedMoments:
    log_weights = 0.0 if weights is None else float(np.log(weights).sum())
    basis = _basis(y, X, Zs, sizes, n_levels, template, log_weights)
    # Columns are used one at a time: each is contiguous.
    W = (basis.map[:-1].T @ X.T + basis.map[-1][:, None] * y).T
    scales = np.split(basis.z_scale, np.cumsum(sizes)[:-1])
    root = None if weights is None else np.sqrt(weights)
    W = W if root is None else W * root[:, None]
    Zs = [_conditioned(Z, s, m, root) for Z, s, m in zip(Zs, scales, n_levels, strict=True)]
    alone = [_alone(Z, c, m, q, W) for Z, c, m, q in zip(Zs, codes, n_levels, sizes, strict=True)]
    factors = list(zip(Zs, codes, n_levels, sizes, strict=True))
    return CrossedMoments(
        ZtZ=tuple(G for G, _, _ in alone),
        ZtW=tuple(C for _, C, _ in alone),
        meetings=tuple(_meeting(*factors[j], *factors[k]) for j, k in pairs(len(factors))),
        shared=tuple(own for _, _, own in alone),
        WtW=gram(W.T),
        n_rows=np.float64(len(y)),
        log_weights=np.float64(log_weights),
        basis=basis,
        template=template,
    )


def _basis(
    y: np.ndarray,
    X: np.ndarray,
    Zs: Sequence[Any],
    sizes: Sequence[int],
    n_levels: Sequence[int],
    template: Template,
    log_weights: float,
) -> Basis:
    """The conditioned basis; columns of a sparse factor are scaled by their root mean square per level."""
    columns = []
    for Z, q, m in zip(Zs, sizes, n_levels, strict=True):
        if scipy.sparse.issparse(Z):
            squares = np.asarray(Z.multiply(Z).sum(0)).reshape(m, q).sum(0)
            columns.append(np.broadcast_to(np.sqrt(squares / len(y)), (len(y), q)))
        else:
            columns.append(Z)
    return pilot_basis(y, X, np.concatenate(columns, axis=1), template, log_weights)


def _conditioned(Z: Any, scale: np.ndarray, n_levels: int, root: np.ndarray | None) -> Any:
    """Z in the basis, times the roots of the weights."""
    if not scipy.sparse.issparse(Z):
        scaled = np.divide(Z.T, scale[:, None], order="C").T
        return scaled if root is None else scaled * root[:, None]
    scaled = Z @ scipy.sparse.diags(1.0 / np.tile(scale, n_levels))
    return (scaled if root is None else scipy.sparse.diags(root) @ scaled).tocsr()


def _alone(
    Z: Any, codes: np.ndarray | None, n_levels: int, q: int, W: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Meeting | None]:
    """ZᵀZ (q, q, m) and ZᵀW (q, p+1, m) of one factor, and its meeting with itself if it is sparse."""
    if codes is not None:
        sums = _sum_by_code(codes, n_levels, list(Z.T), [*Z.T, *W.T])
        return sums[:, :q], sums[:, q:], None
    own = _blocks(Z.T @ Z, q, q)
    G, diagonal = np.zeros((q, q, n_levels)), own.row == own.column
    G[:, :, own.row[diagonal]] = own.value[:, :, diagonal]
    ZtW = np.moveaxis(np.asarray(Z.T @ W).reshape(n_levels, q, -1), 0, 2)
    return G, np.ascontiguousarray(ZtW), own


def _sum_by_code(codes: np.ndarray, n_levels: int, columns: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    """(len(columns), len(right), n_levels): Σ over the rows of a level of the products of columns (n,)."""
    width = len(right)
    sums = np.zeros((len(columns) * width, n_levels))
    for lo in range(0, len(codes), CHUNK_ROWS):
        rows = slice(lo, lo + CHUNK_ROWS)
        add_by_code(sums, codes[rows], (z[rows] * w[rows] for z in columns for w in right))
    return sums.reshape(len(columns), width, n_levels)


def _meeting(Z1: Any, code1: Any, m1: int, q1: int, Z2: Any, code2: Any, m2: int, q2: int) -> Meeting:
    """The meeting of two factors in the rows, each given by codes or sparse."""
    if code1 is None or code2 is None:
        sparse = [Z if c is None else _by_column(Z, c, m) for Z, c, m in ((Z1, code1, m1), (Z2, code2, m2))]
        return _blocks(sparse[0].T @ sparse[1], q1, q2)
    parent = parents(code1, code2, m1)
    if parent is not None:
        return _inside(code1, parent, m1, list(Z1.T), list(Z2.T))
    parent = parents(code2, code1, m2)
    if parent is not None:
        return transposed(_inside(code2, parent, m2, list(Z2.T), list(Z1.T)))
    return _summed(code1, code2, ((a * b for b in Z2.T) for a in Z1.T), m1, m2)


def parents(inner: np.ndarray, outer: np.ndarray, n_inner: int) -> np.ndarray | None:
    """The outer level of every inner level, or None where some inner level meets two."""
    parent = np.zeros(n_inner, np.int64)
    # Most factors that are not nested show it in a few rows.
    for rows in (slice(GLIMPSE_ROWS), slice(None)):
        parent[inner[rows]] = outer[rows]
        if not np.array_equal(parent[inner[rows]], outer[rows]):
            return None
    return parent


def _inside(
    codes: np.ndarray, parent: np.ndarray, n_levels: int, inner: list[np.ndarray], outer: list[np.ndarray]
) -> Meeting:
    """The meeting of a factor with one that it lies in."""
    value = _sum_by_code(codes, n_levels, inner, outer)
    occurs = np.flatnonzero(np.bincount(codes, minlength=n_levels)).astype(np.int32)
    if len(occurs) < n_levels:
        value, parent = value[:, :, occurs], parent[occurs]
    return Meeting(occurs, parent.astype(np.int32), value)


def _summed(row: np.ndarray, column: np.ndarray, value: Iterable[Iterable[Any]], m1: int, m2: int) -> Meeting:
    """Entries (q_j, q_k, n) added up where both levels are the same."""
    sums = [[sum_duplicates(v, row, column, (m1, m2)) for v in own] for own in value]
    first = sums[0][0]
    rows = np.repeat(np.arange(m1, dtype=np.int32), np.diff(first.indptr))
    return Meeting(rows, first.indices.astype(np.int32), np.stack([[s.data for s in own] for own in sums]))


def sum_duplicates(value: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> Any:
    """A CSR matrix with sorted columns, the entries of one place added up; zeros stay."""
    out = scipy.sparse.coo_matrix((value, (row, column)), shape=shape).tocsr()
    out.sum_duplicates()
    return out


def _by_column(Z: np.ndarray, codes: np.ndarray, n_levels: int) -> Any:
    """Z (n, q) of a factor by codes as CSR (n, mq), level by level, effects innermost."""
    n, q = Z.shape
    columns = (codes[:, None].astype(np.int32) * q + np.arange(q, dtype=np.int32)).ravel()
    return scipy.sparse.csr_matrix((Z.ravel(), columns, np.arange(n + 1, dtype=np.int32) * q), shape=(n, q * n_levels))


def _blocks(products: Any, q1: int, q2: int) -> Meeting:
    """The meeting in a sparse (m₁q₁, m₂q₂) matrix."""
    blocks = products.tobsr(blocksize=(q1, q2))
    blocks.sort_indices()
    row = np.repeat(np.arange(len(blocks.indptr) - 1, dtype=np.int32), np.diff(blocks.indptr))
    return Meeting(row, blocks.indices.astype(np.int32), np.ascontiguousarray(np.moveaxis(blocks.data, 0, 2)))


# ---------------------------------------------------------------- chunks


def change_basis(moments: CrossedMoments, basis: Basis, keep: Sequence[int] | None = None) -> CrossedMoments:
    """The same moments expressed in another basis (exact up to rounding); see ``moments.transition``."""
    if basis is moments.basis:
        return moments
    A, scale = transition(moments.basis, basis, keep)
    s = np.split(scale, np.cumsum(moments.sizes)[:-1])

    def scaled(meeting: Meeting, j: int, k: int) -> Meeting:
        return dataclasses.replace(meeting, value=meeting.value * (s[j][:, None] * s[k])[:, :, None])

    places = pairs(len(s))
    return dataclasses.replace(
        moments,
        ZtZ=tuple(G * (own[:, None] * own)[:, :, None] for G, own in zip(moments.ZtZ, s, strict=True)),
        ZtW=tuple(np.einsum("qcg,cd->qdg", C, A) * own[:, None, None] for C, own in zip(moments.ZtW, s, strict=True)),
        meetings=tuple(scaled(met, j, k) for met, (j, k) in zip(moments.meetings, places, strict=True)),
        shared=tuple(met and scaled(met, j, j) for j, met in enumerate(moments.shared)),
        WtW=A.T @ moments.WtW @ A,
        basis=basis,
    )


def merge_crossed(
    *parts: CrossedMoments, positions: Sequence[Positions] | None = None, n_levels: Sequence[int] | None = None
) -> CrossedMoments:
    """Moments of all chunks together: they add. As ``moments.merge``.

    Parameters
    ----------
    positions : per chunk and factor (m,), optional
        Which of the ``n_levels`` levels of all chunks each level of the chunk is.
    """
    first = parts[0] if parts else None
    check_alike(parts, [(m.sizes, len(m.WtW), None if positions else m.n_levels) for m in parts])
    assert first is not None
    lengths = first.n_levels if n_levels is None else tuple(n_levels)
    if positions is None:
        positions = [[np.arange(m) for m in lengths]] * len(parts)
    basis = common_basis(parts)
    moved = [change_basis(m, basis) for m in parts]

    def of_factor(name: str, j: int) -> np.ndarray:
        return added([getattr(m, name)[j] for m in moved], [own[j] for own in positions], lengths[j])

    def of_pair(meetings: Sequence[Any], j: int, k: int) -> Meeting:
        places = [(own[j], own[k]) for own in positions]
        return _added_meetings(meetings, places, lengths[j], lengths[k])

    factors = range(len(lengths))
    return CrossedMoments(
        ZtZ=tuple(of_factor("ZtZ", j) for j in factors),
        ZtW=tuple(of_factor("ZtW", j) for j in factors),
        meetings=tuple(of_pair([m.meetings[at] for m in moved], j, k) for at, (j, k) in enumerate(pairs(len(lengths)))),
        shared=tuple(None if first.shared[j] is None else of_pair([m.shared[j] for m in moved], j, j) for j in factors),
        WtW=sum(m.WtW for m in moved),
        n_rows=sum(m.n_rows for m in moved),
        log_weights=sum(m.log_weights for m in moved),
        basis=basis,
        template=first.template,
    )


def _added_meetings(
    meetings: Sequence[Any], places: Sequence[tuple[np.ndarray, np.ndarray]], m1: int, m2: int
) -> Meeting:
    row = np.concatenate([rows[met.row] for met, (rows, _) in zip(meetings, places, strict=True)])
    column = np.concatenate([columns[met.column] for met, (_, columns) in zip(meetings, places, strict=True)])
    return _summed(row, column, np.concatenate([met.value for met in meetings], axis=2), m1, m2)


def without_columns(moments: CrossedMoments, keep: Sequence[int]) -> CrossedMoments:
    """The moments of a model with the columns ``keep`` of X alone."""
    return change_basis(moments, common_basis([moments], keep), keep)


# ---------------------------------------------------------------- all effects side by side


def as_crossed(moments: GroupMoments) -> CrossedMoments:
    """The moments of one factor in the form of several."""
    return CrossedMoments(
        (moments.ZtZ,),
        (moments.ZtW,),
        (),
        (None,),
        moments.WtW,
        moments.n_rows,
        moments.log_weights,
        moments.basis,
        moments.template,
    )


def products_of_effects(moments: CrossedMoments, factors: Sequence[int]) -> Any:
    """The lower triangle of ZᵀZ of some factors as CSR (K, K): by factor, then by level, effects innermost."""
    blocks: list[list[Any]] = [[None] * len(factors) for _ in factors]
    for a, j in enumerate(factors):
        for b, k in enumerate(factors[: a + 1]):
            met = moments.meeting(j, k) if a != b else moments.shared[j] or _diagonal(moments.ZtZ[j])
            blocks[a][b] = _as_matrix(met, moments.n_levels[j], moments.n_levels[k])
    return scipy.sparse.tril(scipy.sparse.bmat(blocks, format="csr"), format="csr")


def _diagonal(G: np.ndarray) -> Meeting:
    """The meeting of a factor with itself, of which every row has one level."""
    occurs = np.flatnonzero(np.einsum("aag->g", G)).astype(np.int32)
    return Meeting(occurs, occurs, G[:, :, occurs])


def _as_matrix(meeting: Meeting, m1: int, m2: int) -> Any:
    q1, q2, _ = meeting.value.shape
    ends = np.concatenate([[0], np.cumsum(np.bincount(meeting.row, minlength=m1))])
    blocks = np.ascontiguousarray(np.moveaxis(meeting.value, 2, 0))
    return scipy.sparse.bsr_matrix((blocks, meeting.column, ends), shape=(m1 * q1, m2 * q2)).tocsr()


def in_users_columns(moments: CrossedMoments) -> CrossedMoments:
    """The moments of [X y] and Z themselves; for what needs no conditioning."""
    w = len(moments.WtW)
    return change_basis(moments, Basis(np.eye(w), np.float64(0.0), np.ones(sum(moments.sizes))))
