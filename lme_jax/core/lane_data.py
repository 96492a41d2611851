"""Rows → ``LaneData``: many responses of one design, some with missing rows (NumPy).

Of a shared design everything but y is compressed once. Levels with equal ZᵀZ are merged: what the
likelihood needs of m such levels is Σ c cᵀ over their stacked cross-products c, so an orthogonal rotation
of the levels that leaves rank(ZᵀX) + q nonzero entries changes nothing (exact; no squares are formed).
"""

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from ..errors import DataError
from .checks import check_rows, group_codes, real_array
from .compression import bucket, enough_rows
from .covariance import make_template
from .lanes import LaneData
from .moments import NO_RESIDUAL, Basis, pilot_basis
from .structures import StructureLike

# Columns that explain less than this of the largest are rounding.
RANK_TOLERANCE = 1e-13
# Responses compressed at once: a few thousand rows of them fit in the cache.
CACHED_LANES = 64


class SharedDesign:
    """X, Z, groups and weights of n rows, ready to compress any number of responses.

    Parameters
    ----------
    X : (n, p); Z : (n, q); groups : (n,) labels, or codes in [0, n_groups).
    weights : (n,) prior weights > 0, optional; offset : (n,), optional.
    structure : covariance template of the q effects.

    Raises
    ------
    DataError
        For lengths that differ, values that are not finite, codes out of range, weights ≤ 0, columns of X that are
        dependent.
    """

    def __init__(
        self,
        X: Any,
        Z: Any,
        groups: Any,
        *,
        weights: Any = None,
        offset: Any = None,
        structure: StructureLike = "unstructured",
        n_groups: int | None = None,
    ) -> None:
        X, Z = real_array("X", X, 2), real_array("Z", Z, 2)
        self.n_rows, self.n_fixed = X.shape
        self.template = make_template(structure, Z.shape[1])
        codes, self.n_groups = group_codes(groups, n_groups)
        check_rows(X=X, Z=Z, groups=codes, weights=weights, offset=offset)
        self._root = None if weights is None else np.sqrt(np.asarray(weights, float))[:, None]
        self._log_weights = 0.0 if weights is None else np.log(np.asarray(weights, float)).sum()
        self._log_row_weights = None if weights is None else np.log(np.asarray(weights, float))
        self._offset = None if offset is None else np.asarray(offset, float)[:, None]
        basis = pilot_basis(np.zeros(self.n_rows), X, Z, self.template, self._log_weights)
        p = self.n_fixed
        self._map, self._log_det_x, self._z_scale = basis.map[:p, :p], basis.log_det_x, basis.z_scale
        self._X, self._Z = X @ self._map, Z / self._z_scale
        if self._root is not None:
            self._X, self._Z = self._X * self._root, self._Z * self._root
        self._codes = codes
        self._XtX = self._X.T @ self._X
        if p and np.linalg.eigvalsh(self._XtX)[0] < 1e-13 * np.trace(self._XtX):
            raise DataError("the columns of X are linearly dependent: drop the redundant ones")
        self._chol = scipy.linalg.cho_factor(self._XtX)
        self._levels = self._by_level(self._Z)
        q = self._Z.shape[1]
        ZtX = (self._levels @ self._X).reshape(self.n_groups, q, p)
        ZtZ = (self._levels @ self._Z).reshape(self.n_groups, q, q)
        self._merged = _MergedLevels(0.5 * (ZtZ + np.swapaxes(ZtZ, 1, 2)), ZtX)

    @property
    def n_levels(self) -> int:
        """Levels that ``compress`` leaves, after merging."""
        return len(self._merged.count)

    def _by_level(self, columns: np.ndarray) -> Any:
        """(G·c, n) CSR: row g·c + a sums column a over the rows of level g."""
        n, c = columns.shape
        rows = (self._codes[:, None].astype(np.int64) * c + np.arange(c)).ravel()
        pick = scipy.sparse.csc_matrix((columns.ravel(), rows, np.arange(n + 1) * c), shape=(self.n_groups * c, n))
        return pick.tocsr()

    def _conditioned(self, Y: np.ndarray) -> np.ndarray:
        Y = Y if self._offset is None else Y - self._offset
        return Y if self._root is None else Y * self._root

    def _basis(self, coefficients: np.ndarray, spread: np.ndarray) -> Basis:
        """The map to [X̃, (y − X̃·coefficients)/spread] for each lane."""
        p, lanes = coefficients.shape
        out = np.zeros((p + 1, p + 1, lanes))
        out[:p, :p] = self._map[:, :, None]
        out[:p, p] = -(self._map @ coefficients) / spread
        out[p, p] = 1.0 / spread
        return Basis(out, np.array([self._log_det_x]), self._z_scale[:, None])

    def compress(self, Y: np.ndarray, lanes_at_once: int = CACHED_LANES) -> LaneData:
        """Statistics of the complete responses Y (n, R); ``lanes_at_once`` bounds the copies of rows."""
        at_once = max(1, min(lanes_at_once, CACHED_LANES))
        p, lanes, q = self.n_fixed, Y.shape[1], self._Z.shape[1]
        WtW, coefficients = np.empty((p + 1, p + 1, lanes)), np.empty((p, lanes))
        WtW[:p, :p] = self._XtX[:, :, None]
        Cy, explained = np.empty((self.n_groups, q, lanes)), np.empty(lanes)
        for lo in range(0, lanes, at_once):
            part = slice(lo, lo + at_once)
            E = self._conditioned(np.array(Y[:, part], order="C"))
            XtY = self._X.T @ E
            own = coefficients[:, part] = scipy.linalg.cho_solve(self._chol, XtY) if p else XtY
            explained[part] = (own * XtY).sum(0)
            E -= self._X @ own
            WtW[p, :p, part] = self._X.T @ E
            WtW[p, p, part] = np.einsum("nr,nr->r", E, E)
            Cy[:, :, part] = (self._levels @ E).reshape(self.n_groups, q, -1)
        spread, n_rows = _spread(WtW[p, p], explained, self.n_rows)
        WtW[p, :p] /= spread
        WtW[p, p] /= spread**2
        WtW[:p, p] = WtW[p, :p]
        Cy /= spread
        merged = self._merged
        return LaneData(
            merged.G[..., None],
            merged.count[:, None],
            merged.CX[..., None],
            merged.rotate(Cy),
            WtW,
            n_rows,
            np.array([self._log_weights]),
            self._basis(coefficients, spread),
            self.template,
        )

    def compress_observed(self, Y: np.ndarray, observed: np.ndarray) -> tuple[LaneData, np.ndarray]:
        """Statistics of responses Y (n, R) of which only the rows ``observed`` (n, R) count, lane by lane.

        Returns
        -------
        LaneData, (R,) bool
            And whether the remaining rows identify the model. A lane in which they do not gets NaN rows, so that
            its search ends at once.
        """
        mask = observed.astype(float)
        Y = np.where(observed, self._conditioned(np.where(observed, Y, 0.0)), 0.0)
        p, lanes, q, G = self.n_fixed, Y.shape[1], self._Z.shape[1], self.n_groups
        XtX = ((self._X[:, :, None] * self._X[:, None]).reshape(-1, p * p).T @ mask).T.reshape(lanes, p, p)
        rows = mask.sum(0)
        occupied = (self._by_level(np.ones((self.n_rows, 1))) @ mask > 0).sum(0)
        lost = ~enough_rows(rows, occupied, p, self.template)
        if p:
            roots = np.linalg.eigvalsh(XtX)
            lost = lost | (roots[:, 0] < 1e-12 * roots[:, -1])
            safe = np.where(lost[:, None, None], np.eye(p), XtX)
            coefficients = np.linalg.solve(safe, (self._X.T @ Y).T[:, :, None])[:, :, 0].T
        else:
            coefficients = np.zeros((0, lanes))
        E = (Y - self._X @ coefficients) * mask
        rss = np.einsum("nr,nr->r", E, E)
        spread, n_rows = _spread(rss, np.einsum("nr,nr->r", Y, Y), rows)
        n_rows = np.where(lost, np.nan, n_rows)
        WtW = np.empty((p + 1, p + 1, lanes))
        WtW[:p, :p] = np.moveaxis(XtX, 0, 2)
        WtW[:p, p] = WtW[p, :p] = self._X.T @ E / spread
        WtW[p, p] = rss / spread**2
        products = (self._Z[:, :, None] * np.concatenate([self._Z, self._X], axis=1)[:, None]).reshape(self.n_rows, -1)
        cross = (self._by_level(products) @ mask).reshape(G, q, q + p, lanes)
        ZtZ = 0.5 * (cross[:, :, :q] + np.swapaxes(cross[:, :, :q], 1, 2))
        Cy = (self._levels @ E).reshape(G, q, lanes) / spread
        logs = np.zeros(1) if self._log_row_weights is None else self._log_row_weights @ mask
        levels = bucket(G)
        data = LaneData(
            _pad_first(ZtZ, levels),
            _pad_first(np.ones((G, 1)), levels),
            _pad_first(cross[:, :, q:], levels),
            _pad_first(Cy, levels),
            WtW,
            n_rows,
            logs,
            self._basis(coefficients, spread),
            self.template,
        )
        return data, ~lost


def _spread(rss: np.ndarray, explained: np.ndarray, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square residual per lane, and n, NaN for lanes that leave no residual."""
    with np.errstate(invalid="ignore", divide="ignore"):
        none_left = ~(rss > NO_RESIDUAL**2 * np.abs(explained)) | ~(rss > 0)
        return np.where(none_left, 1.0, np.sqrt(rss / n)), np.where(none_left, np.nan, n)


def _pad_first(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


class _MergedLevels:
    """Levels of one design, those with equal ZᵀZ rotated into few; see the module's docstring.

    Attributes
    ----------
    G : (P, q, q); CX : (P, q, p); count : (P,).
    """

    def __init__(self, ZtZ: np.ndarray, ZtX: np.ndarray) -> None:
        n_levels, q, p = ZtX.shape
        _, first, pattern = np.unique(ZtZ.reshape(n_levels, -1), axis=0, return_index=True, return_inverse=True)
        members = np.split(np.argsort(pattern.reshape(-1), kind="stable"), np.cumsum(np.bincount(pattern.reshape(-1))))
        self._rotations: list[tuple[np.ndarray, np.ndarray]] = []
        alone: list[np.ndarray] = []
        G, CX, count = [], [], []
        for which, levels in zip(first, members[:-1], strict=True):
            if len(levels) <= q:
                alone.append(levels)
                continue
            U, sizes, Vt = np.linalg.svd(ZtX[levels].reshape(len(levels), q * p), full_matrices=False)
            rank = int((sizes > RANK_TOLERANCE * sizes.max(initial=0.0)).sum())
            if rank + q >= len(levels):
                alone.append(levels)
                continue
            self._rotations.append((levels, U[:, :rank]))
            rotated = (sizes[:rank, None] * Vt[:rank]).reshape(rank, q, p)
            CX.append(np.concatenate([rotated, np.zeros((q, q, p))]))
            G.append(np.broadcast_to(ZtZ[which], (rank + q, q, q)))
            count.append(np.eye(1, rank + q)[0] * len(levels))
        self._alone = np.concatenate(alone) if alone else np.zeros(0, int)
        self._length = bucket(len(self._alone) + sum(len(g) for g in G))
        self.G = _pad_first(np.concatenate([ZtZ[self._alone], *G]), self._length)
        self.CX = _pad_first(np.concatenate([ZtX[self._alone], *CX]), self._length)
        self.count = _pad_first(np.concatenate([np.ones(len(self._alone)), *count]), self._length)

    def rotate(self, Cy: np.ndarray) -> np.ndarray:
        """Zᵀy (G, q, R) of the levels → (P, q, R) of the merged ones."""
        parts = [Cy[self._alone]]
        _, q, lanes = Cy.shape
        for levels, U in self._rotations:
            own = Cy[levels].reshape(len(levels), -1)
            shared = U.T @ own
            rest = (own - U @ shared).reshape(len(levels), q, lanes)
            gram = np.einsum("mar,mbr->abr", rest, rest)
            parts += [shared.reshape(-1, q, lanes), np.swapaxes(_semidefinite_roots(gram), 0, 1)]
        return _pad_first(np.concatenate(parts), self._length)


def _semidefinite_roots(gram: np.ndarray) -> np.ndarray:
    """Lower (q, q, R) factors of positive-semidefinite (q, q, R) matrices."""
    q = len(gram)
    rest, out = gram.copy(), np.zeros_like(gram)
    for j in range(q):
        pivot = rest[j, j]
        usable = pivot > 16 * q * np.finfo(float).eps * gram[j, j]
        column = np.where(usable, rest[:, j] / np.sqrt(np.where(usable, pivot, 1.0)), 0.0)
        column[:j] = 0.0
        out[:, j] = column
        rest -= column[:, None] * column[None]
    return out
