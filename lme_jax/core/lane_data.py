"""Rows → ``LaneData``: many responses of one design, some with missing rows (NumPy).

Of a shared design everything but y is compressed once. Levels with equal ZᵀZ are merged: what the
likelihood needs of m such levels is Σ c cᵀ over their stacked cross-products c, so an orthogonal rotation
of the levels that leaves rank(ZᵀX) + q nonzero entries changes nothing (exact; no squares are formed).
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from ..errors import DataError
from . import levels
from .checks import check_rows, group_codes, real_array
from .compression import bucket, enough_rows
from .covariance import make_template
from .lanes import LaneData, from_moments, lacks_digits, put_moments
from .moments import (
    NO_RESIDUAL,
    PILOT_BETWEEN,
    PILOT_PIVOT,
    Basis,
    between_dominates,
    change_basis,
    group_moments,
    pilot_basis,
    within_map,
    within_metric,
)
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
        self._levels = self._by_level(self._Z)
        q = self._Z.shape[1]
        ZtZ = (self._levels @ self._Z).reshape(self.n_groups, q, q)
        ZtZ = 0.5 * (ZtZ + np.swapaxes(ZtZ, 1, 2))
        self._roots = [r[:, None] for r in levels.root(np.moveaxis(ZtZ, 0, 2))]
        self._condition_within()
        self._merged = _MergedLevels(ZtZ, np.stack(self._roots, axis=1)[:, :, 0], self._cX_flat.reshape(-1, q, p))

    def _condition_within(self) -> None:
        """X in the columns that ``within_map`` asks for, and of it what a pilot of every level leaves."""
        cX = [c[0] for c in self._against_roots(self._X)]
        between = sum(c.T @ c for c in cX)
        move = within_map(between, self._XtX - between)
        self._X, self._map = self._X @ move, self._map @ move
        self._XtX = self._X.T @ self._X
        self._chol = scipy.linalg.cho_factor(self._XtX)
        self._pilot_x = levels.coefficients(self._roots, self._against_roots(self._X), PILOT_PIVOT)
        left = self._X - self._fitted(self._pilot_x)
        e = self._against_roots(left)
        fitted = levels.times_root(self._roots, self._pilot_x)
        self._cX = [(a + b)[0] for a, b in zip(e, fitted, strict=True)]
        self._cX_flat = np.stack(self._cX, axis=1).reshape(-1, self.n_fixed)
        self._rest_x = left.T @ left - sum(c[0].T @ c[0] for c in e)
        metric = within_metric(sum(c.T @ c for c in self._cX), self._rest_x)
        self._within_chol = scipy.linalg.cho_factor(metric)

    def _against_roots(self, columns: np.ndarray) -> list[np.ndarray]:
        """c = R⁻ᵀZᵀ(columns), q arrays (1, G, ·)."""
        C = (self._levels @ columns).reshape(self.n_groups, self._Z.shape[1], -1)
        return levels.against_root(self._roots, [C[None, :, a] for a in range(C.shape[1])])

    def _fitted(self, B: list[np.ndarray]) -> np.ndarray:
        """ZB (n, ·) of coefficients of the levels, q arrays (1, G, ·)."""
        return sum(z[:, None] * b[0, self._codes] for z, b in zip(self._Z.T, B, strict=True))

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
        rest, coefficients = np.empty((p + 1, p + 1, lanes)), np.empty((p, lanes))
        Cy, squares = np.empty((self.n_groups, q, lanes)), np.empty((2, lanes))
        for lo in range(0, lanes, at_once):
            part = slice(lo, lo + at_once)
            E = self._conditioned(np.array(Y[:, part], order="C"))
            XtY = self._X.T @ E
            own = coefficients[:, part] = scipy.linalg.cho_solve(self._chol, XtY) if p else XtY
            E -= self._X @ own
            squares[0, part], squares[1, part] = np.einsum("nr,nr->r", E, E), (own * XtY).sum(0)
            rest[p, :p, part] = self._X.T @ E
            Cy[:, :, part] = (self._levels @ E).reshape(self.n_groups, q, -1)
        last = rest[p]
        cy, step, far = self._within(Cy, last, squares[0])
        for some in np.split(far, np.arange(at_once, len(far), at_once)) if len(far) else ():
            coefficients[:, some] += step[:, some]
            E = self._conditioned(np.array(Y[:, some], order="C")) - self._X @ coefficients[:, some]
            cy[:, :, some], last[:, some] = self._piloted(E)
        rest[:p, :p] = self._rest_x[:, :, None]
        spread, n_rows = _spread(squares[0], squares[1], self.n_rows)
        rest[p, :p] /= spread
        rest[p, p] /= spread**2
        rest[:p, p] = rest[p, :p]
        cy /= spread
        merged = self._merged
        return LaneData(
            merged.roots[..., None],
            merged.count[:, None],
            merged.cX[..., None],
            merged.rotate(cy),
            rest,
            n_rows,
            np.array([self._log_weights]),
            self._basis(coefficients, spread),
            self.template,
        )

    def _within(
        self, Cy: np.ndarray, last: np.ndarray, squares: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What Zᵀy and the ``last`` row (p + 1, R) of WᵀW, overwritten by what is left of it within levels, come to.

        Returns
        -------
        cy : (G, q, R); step : (p, R) of the pilot of y, for the lanes, which are listed, that have far more between
            levels than within.
        """
        p, c = self.n_fixed, levels.against_root(self._roots, [C[None] for C in np.moveaxis(Cy, 1, 0)])
        cy = np.stack([own[0] for own in c], axis=1)
        across = self._cX_flat.T @ cy.reshape(-1, cy.shape[-1])
        between = np.einsum("gqr,gqr->r", cy, cy)
        last[:p] -= across
        last[p] = squares - between
        right = last[:p] + PILOT_BETWEEN * across
        step = scipy.linalg.cho_solve(self._within_chol, right) if p else right
        within = last[p] + PILOT_BETWEEN * between - (step * right).sum(0)
        return cy, step, np.flatnonzero(between_dominates(between, within))

    def _piloted(self, E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """cy (G, q, R) and the last row (p + 1, R) of what is left within levels, through pilots."""
        B = levels.coefficients(self._roots, self._against_roots(E), PILOT_PIVOT)
        E = E - self._fitted(B)
        e = self._against_roots(E)
        pushed = levels.transposed_times(self._roots, e)
        across = sum(b[0].T @ own[0] for b, own in zip(self._pilot_x, pushed, strict=True))
        own = np.einsum("nr,nr->r", E, E) - sum((c[0] ** 2).sum(0) for c in e)
        c = np.stack([(a + b)[0] for a, b in zip(e, levels.times_root(self._roots, B), strict=True)], axis=1)
        return c, np.concatenate([self._X.T @ E - across, own[None]])

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
        length = bucket(G)
        data = from_moments(
            _pad_first(ZtZ, length),
            _pad_first(np.ones((G, 1)), length),
            _pad_first(np.concatenate([cross[:, :, q:], Cy[:, :, None]], axis=2), length),
            WtW,
            n_rows,
            logs,
            self._basis(coefficients, spread),
            self.template,
        )
        far = np.flatnonzero(lacks_digits(data) & ~lost)
        return self._alone(data, far, Y, observed) if len(far) else data, ~lost

    def _alone(self, data: LaneData, which: np.ndarray, Y: np.ndarray, observed: np.ndarray) -> LaneData:
        """The lanes ``which`` compressed as single fits are, pilots and all."""
        own = np.repeat(data.basis.log_det_x, data.n_lanes)
        data = dataclasses.replace(data, basis=dataclasses.replace(data.basis, log_det_x=own))
        for lane in which.tolist():
            y, X, Z, codes = (a[observed[:, lane]] for a in (Y[:, lane], self._X, self._Z, self._codes))
            moments = group_moments(y, X, Z, codes, self.n_groups, template=self.template)
            basis = dataclasses.replace(moments.basis, z_scale=np.ones(Z.shape[1]))
            put_moments(data, lane, change_basis(moments, basis), self._map)
        return data


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
    roots : (P, kq); cX : (P, q, p); count : (P,).
    """

    def __init__(self, ZtZ: np.ndarray, roots: np.ndarray, cX: np.ndarray) -> None:
        n_levels, q, p = cX.shape
        _, first, pattern = np.unique(ZtZ.reshape(n_levels, -1), axis=0, return_index=True, return_inverse=True)
        members = np.split(np.argsort(pattern.reshape(-1), kind="stable"), np.cumsum(np.bincount(pattern.reshape(-1))))
        self._rotations: list[tuple[np.ndarray, np.ndarray]] = []
        alone: list[np.ndarray] = []
        R, rotated_X, count = [], [], []
        for which, members_of in zip(first, members[:-1], strict=True):
            if len(members_of) <= q:
                alone.append(members_of)
                continue
            U, sizes, Vt = np.linalg.svd(cX[members_of].reshape(len(members_of), q * p), full_matrices=False)
            rank = int((sizes > RANK_TOLERANCE * sizes.max(initial=0.0)).sum())
            if rank + q >= len(members_of):
                alone.append(members_of)
                continue
            self._rotations.append((members_of, U[:, :rank]))
            rotated = (sizes[:rank, None] * Vt[:rank]).reshape(rank, q, p)
            rotated_X.append(np.concatenate([rotated, np.zeros((q, q, p))]))
            R.append(np.broadcast_to(roots[which], (rank + q, roots.shape[1])))
            count.append(np.eye(1, rank + q)[0] * len(members_of))
        self._alone = np.concatenate(alone) if alone else np.zeros(0, int)
        self._length = bucket(len(self._alone) + sum(len(r) for r in R))
        self.roots = _pad_first(np.concatenate([roots[self._alone], *R]), self._length)
        self.cX = _pad_first(np.concatenate([cX[self._alone], *rotated_X]), self._length)
        self.count = _pad_first(np.concatenate([np.ones(len(self._alone)), *count]), self._length)

    def rotate(self, cy: np.ndarray) -> np.ndarray:
        """R⁻ᵀZᵀy (G, q, R) of the levels → (P, q, R) of the merged ones."""
        parts = [cy[self._alone]]
        _, q, lanes = cy.shape
        for members_of, U in self._rotations:
            own = cy[members_of].reshape(len(members_of), -1)
            shared = U.T @ own
            rest = (own - U @ shared).reshape(len(members_of), q, lanes)
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
