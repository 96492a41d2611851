"""The clusters of a mixed model as batches for ``sandwich``: V_i, X_i and e_i, or what they are in a smaller space.

V_i = I + Z_iΨZ_iᵀ acts as the identity outside the columns of [Z_i X_i]: without prior weights a cluster with more
rows than that is its part there, whose coordinates need cross-products of the columns only.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from ..errors import DataError, UnsupportedError
from .sandwich import Batch

ROWS_AT_ONCE = 1 << 16
VALUES_AT_ONCE = 1 << 22
# The largest order of a matrix that is decomposed for one cluster.
LARGEST = 4000
# Eigenvalues of cross-products of columns of unit length that count as zero.
DEPENDENT = 1e-11


class Rows(NamedTuple):
    """Rows sorted by cluster.

    Attributes
    ----------
    X : (n, p); e : (n,); G : (n, K) sparse ZΛ, so that V = diag(1/w) + GGᵀ; weights : (n,) or None.
    ends : (G + 1,) where the clusters' rows begin; first : (G + 1,) where their effects begin.
    """

    X: np.ndarray
    e: np.ndarray
    G: Any
    weights: np.ndarray | None
    ends: np.ndarray
    first: np.ndarray


def arrange(X: np.ndarray, e: np.ndarray, G: Any, weights: Any, codes: np.ndarray, n_clusters: int) -> Rows:
    """Rows and effects in the order of the clusters ``codes`` (n,).

    Raises
    ------
    DataError
        Where an effect is shared by two clusters: these are not independent.
    """
    order = np.argsort(codes, kind="stable") if (np.diff(codes) < 0).any() else None
    if order is not None:
        X, e, codes = X[order], e[order], codes[order]
        G, weights = G[order], None if weights is None else np.asarray(weights)[order]
    ends = np.searchsorted(codes, np.arange(n_clusters + 1))
    own = _cluster_of_effects(G, codes)
    by_cluster = np.argsort(own, kind="stable")
    first = np.searchsorted(own[by_cluster], np.arange(n_clusters + 1))
    return Rows(X, e, G[:, by_cluster], weights, ends, first)


def _cluster_of_effects(G: Any, codes: np.ndarray) -> np.ndarray:
    """(K,) the cluster of every effect; effects of no row, which move nothing, are put with the first."""
    entries = scipy.sparse.coo_matrix(G)
    present = entries.data != 0.0
    columns, clusters = entries.col[present], codes[entries.row[present]]
    low, high = np.full(G.shape[1], len(codes)), np.full(G.shape[1], -1)
    np.minimum.at(low, columns, clusters)
    np.maximum.at(high, columns, clusters)
    if (low < high).any():
        raise DataError("levels of a grouping factor are in several clusters, so that these are not independent")
    return np.maximum(high, 0)


def batches(rows: Rows) -> Iterator[Batch]:
    """All clusters, those of one size together, some at a time.

    Raises
    ------
    UnsupportedError
        For a cluster too large for its V, or its part in the columns, to be decomposed.
    """
    sizes, effects, p = np.diff(rows.ends), np.diff(rows.first), rows.X.shape[1]
    reducible = (sizes > effects + p) & (rows.weights is None)
    largest = int(np.where(reducible, effects + p, sizes).max(initial=0))
    if largest > LARGEST:
        raise UnsupportedError(
            f"CR2 decomposes a matrix of order {largest} for the largest cluster, more than {LARGEST}: take "
            "type='CR3' or 'CR1', which cost no more there than elsewhere"
        )
    for n in np.unique(sizes[~reducible]):
        for some in _pieces(np.flatnonzero((sizes == n) & ~reducible), int(n)):
            yield _direct(rows, some, int(n))
    if reducible.any():
        yield from _reduced(rows, effects, reducible)


def products(rows: Rows) -> np.ndarray:
    """[X e]ᵀV⁻¹[X e] (G, p+1, p+1) of every cluster, whatever its size.

    By V⁻¹ = W − WG(I + GᵀWG)⁻¹GᵀW, W the prior weights.
    """
    Y = np.column_stack([rows.X, rows.e])
    WY = Y if rows.weights is None else Y * rows.weights[:, None]
    WG = rows.G if rows.weights is None else scipy.sparse.diags(rows.weights) @ rows.G
    right = rows.G.T @ WY
    own = _own_products(rows, Y, WY)
    if rows.G.shape[1]:
        P = (scipy.sparse.identity(rows.G.shape[1]) + rows.G.T @ WG).tocsc()
        solved = scipy.sparse.linalg.splu(
            P, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        ).solve(np.ascontiguousarray(right))
        number = np.repeat(np.arange(len(rows.first) - 1), np.diff(rows.first))
        own -= _summed(right, solved, number, len(own))
    return own


def _pieces(which: np.ndarray, size: int) -> list[np.ndarray]:
    """Clusters, as many as fit in memory with matrices of their size."""
    step = max(1, VALUES_AT_ONCE // max(1, size * size))
    return [which[lo : lo + step] for lo in range(0, len(which), step)]


def _direct(rows: Rows, which: np.ndarray, n: int) -> Batch:
    """V itself, of clusters of n rows."""
    places = rows.ends[which][:, None] + np.arange(n)
    entries = rows.G[places.ravel()].tocoo()
    cluster = entries.row // n
    width = int(np.diff(rows.first)[which].max(initial=0))
    G = np.zeros((len(which), n, width))
    G[cluster, entries.row % n, entries.col - rows.first[which][cluster]] = entries.data
    V = G @ np.swapaxes(G, 1, 2)
    V[:, np.arange(n), np.arange(n)] += 1.0 if rows.weights is None else 1.0 / rows.weights[places]
    return Batch(which, V, rows.X[places], rows.e[places])


def _summed(left: np.ndarray, right: np.ndarray, number: np.ndarray, n: int) -> np.ndarray:
    """Σ left ⊗ right (n, a, b) over the rows of each of n numbers, which ascend; (rows, a) and (rows, b)."""
    out = np.zeros((n, left.shape[1], right.shape[1]))
    for lo in range(0, len(left), ROWS_AT_ONCE):
        some = slice(lo, lo + ROWS_AT_ONCE)
        own = number[some]
        starts = np.flatnonzero(np.concatenate([[True], own[1:] != own[:-1]]))
        for i in range(left.shape[1]):
            out[own[starts], i] += np.add.reduceat(left[some, i, None] * right[some], starts, axis=0)
    return out


def _own_products(rows: Rows, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """leftᵀright (G, a, b) of every cluster's rows."""
    number = np.repeat(np.arange(len(rows.ends) - 1), np.diff(rows.ends))
    return _summed(left, right, number, len(rows.ends) - 1)


# ---------------------------------------------------------------- in the space of the columns


def _reduced(rows: Rows, effects: np.ndarray, reducible: np.ndarray) -> Iterator[Batch]:
    own_products = _own_products(rows, rows.X, np.column_stack([rows.X, rows.e]))
    XtX, Xte = own_products[:, :, :-1], own_products[:, :, -1]
    GtG = scipy.sparse.coo_matrix(rows.G.T @ rows.G)
    GtX, Gte = rows.G.T @ rows.X, rows.G.T @ rows.e
    own = np.repeat(np.arange(len(effects)), effects)
    for k in np.unique(effects[reducible]):
        every = np.flatnonzero((effects == k) & reducible)
        for which in _pieces(every, int(k) + rows.X.shape[1]):
            yield _in_columns(which, int(k), rows.first, own, GtG, GtX, Gte, XtX, Xte)


def _in_columns(
    which: np.ndarray,
    k: int,
    first: np.ndarray,
    own: np.ndarray,
    GtG: Any,
    GtX: np.ndarray,
    Gte: np.ndarray,
    XtX: np.ndarray,
    Xte: np.ndarray,
) -> Batch:
    """Clusters of k effects in an orthonormal basis of their columns [G X] = QR: V = I + R_GR_Gᵀ, R_X, Qᵀe."""
    m, p = len(which), XtX.shape[1]
    number = np.full(len(first) - 1, -1)
    number[which] = np.arange(m)
    S, right = np.zeros((m, k + p, k + p)), np.zeros((m, k + p))
    mine = number[own[GtG.row]] >= 0
    row, column = GtG.row[mine], GtG.col[mine]
    S[number[own[row]], row - first[own[row]], column - first[own[column]]] = GtG.data[mine]
    places = first[which][:, None] + np.arange(k)
    S[:, :k, k:] = GtX[places]
    S[:, k:, :k] = np.swapaxes(S[:, :k, k:], 1, 2)
    S[:, k:, k:] = XtX[which]
    right[:, :k], right[:, k:] = Gte[places], Xte[which]
    size = np.sqrt(np.maximum(np.diagonal(S, axis1=1, axis2=2), 0.0))
    unit = np.where(size > 0, size, 1.0)
    values, vectors = np.linalg.eigh(S / unit[:, :, None] / unit[:, None, :])
    kept = values > DEPENDENT * (k + p)
    root = np.sqrt(np.where(kept, values, 0.0))
    R = root[:, :, None] * np.swapaxes(vectors, 1, 2) * unit[:, None, :]
    e = np.einsum("mij,mi->mj", vectors, right / unit) * np.where(kept, 1.0 / np.where(kept, root, 1.0), 0.0)
    V = R[:, :, :k] @ np.swapaxes(R[:, :, :k], 1, 2) + np.eye(k + p)
    return Batch(which, V, R[:, :, k:], e)
