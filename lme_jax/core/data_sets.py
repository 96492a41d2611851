"""Rows of many data sets → ``LaneData``, a lane per data set: all of them in a few passes over the rows (NumPy).

Every data set is conditioned by itself, as ``compression`` does it, but from cross-products: X is first made
orthonormal over all rows, which takes care of units and offsets, then X̃ᵀX̃ of each data set is factorised. Where
that would cost more than half of the digits the data set takes the way of a single fit.
"""

from typing import Any

import numpy as np

from .compression import enough_rows
from .covariance import Template
from .lanes import LaneData, from_moments, lacks_digits, put_moments
from .moments import (
    NO_RESIDUAL,
    Basis,
    GroupMoments,
    add_by_code,
    group_moments,
    pilot_basis,
    power_of_two_scale,
    products,
    unpack_products,
)

# Ratio of the smallest to the largest eigenvalue of X̃ᵀX̃ from which its factor serves.
WELL_CONDITIONED = 1e-8


class DataSets:
    """Row subsets of one design, ready to be compressed in any portions.

    Parameters
    ----------
    y : (n,) response less its offset; X : (n, p); Z : (n, q); codes : (n,) levels of the grouping factor.
    sets : (n,) data set of each row in [0, n_sets); none is empty.
    template : of the q effects; weights : (n,) prior weights > 0, optional.

    Attributes
    ----------
    n_rows, n_levels : (n_sets,) rows, and levels that occur, in each.
    identified : (n_sets,) whether the rows of each identify the model; complete for those that were compressed.
    """

    def __init__(
        self,
        y: np.ndarray,
        X: np.ndarray,
        Z: np.ndarray,
        codes: np.ndarray,
        sets: np.ndarray,
        n_sets: int,
        *,
        template: Template,
        weights: np.ndarray | None = None,
    ) -> None:
        order = np.lexsort((codes, sets))
        self.template = template
        self._map = pilot_basis(np.zeros(len(y)), X, Z, template).map[:-1, :-1]
        self._y, self._X, self._Z = y[order], X[order] @ self._map, Z[order]
        self._weights = None if weights is None else weights[order]
        codes, sets = codes[order], sets[order]
        self._opens_level = np.append(True, (codes[1:] != codes[:-1]) | (sets[1:] != sets[:-1]))
        self.n_rows = np.bincount(sets, minlength=n_sets)
        self.n_levels = np.bincount(sets[self._opens_level], minlength=n_sets)
        self.identified = enough_rows(self.n_rows, self.n_levels, X.shape[1], template)
        self._begin = np.cumsum(self.n_rows) - self.n_rows

    def compress(self, which: np.ndarray, n_levels: int) -> LaneData:
        """A lane for each of the data sets ``which``, levels padded to ``n_levels``.

        One that cannot identify the model (see ``identified``) or leaves no residual becomes a lane that fails: its
        number of rows is NaN.
        """
        sizes = self.n_rows[which]
        starts = np.cumsum(sizes) - sizes
        rows = np.repeat(self._begin[which] - starts, sizes) + np.arange(sizes.sum())
        basis, W, plain, residual = self._condition(rows, sizes)
        Z = np.divide(self._Z[rows].T, np.repeat(basis.z_scale, sizes, axis=1), order="C")
        log_weights = np.zeros(len(which))
        if self._weights is not None:
            weights = self._weights[rows]
            W, Z = W * np.sqrt(weights), Z * np.sqrt(weights)
            log_weights = np.add.reduceat(np.log(weights), starts)
        G, C = self._level_sums(rows, which, Z, W, n_levels)
        data = from_moments(
            G,
            np.ones((n_levels, 1)),
            C,
            _products_by(W, starts),
            np.where(residual & self.identified[which], sizes, np.nan),
            log_weights,
            basis,
            self.template,
        )
        for lane in np.flatnonzero((~plain | lacks_digits(data)) & self.identified[which]).tolist():
            moments = self._alone(which[lane])
            if moments is not None:
                put_moments(data, lane, moments, self._map)
                data.log_weights[lane], data.basis.z_scale[:, lane] = moments.log_weights, moments.basis.z_scale
        return data

    def _condition(self, rows: np.ndarray, sizes: np.ndarray) -> tuple[Basis, np.ndarray, np.ndarray, np.ndarray]:
        """Basis of each set, W (p+1, n) in it; which sets are well conditioned, which of them leave residuals."""
        X, y = np.ascontiguousarray(self._X[rows].T), self._y[rows]
        p, starts = len(X), np.cumsum(sizes) - sizes
        gram = np.moveaxis(_products_by(X, starts), 2, 0)
        plain = sizes > p
        if p:
            roots = np.linalg.eigvalsh(gram)
            plain &= roots[:, 0] > WELL_CONDITIONED * roots[:, -1]
        gram = np.where(plain[:, None, None], gram, np.eye(p))
        # Upper triangular R⁻¹√n with XR⁻¹√n orthogonal, its columns of mean square one.
        to_q = np.triu(np.linalg.inv(np.swapaxes(np.linalg.cholesky(gram), 1, 2))) * np.sqrt(sizes)[:, None, None]
        Q = [sum(X[i] * np.repeat(to_q[:, i, j], sizes) for i in range(j + 1)) for j in range(p)]
        coefficients, residual = np.zeros((p, len(sizes))), y.copy()
        for _ in range(2):  # the second time for the rounding of the first
            step = np.array([np.add.reduceat(column * residual, starts) / sizes for column in Q]).reshape(p, len(sizes))
            coefficients += step
            residual -= sum((column * np.repeat(own, sizes) for column, own in zip(Q, step, strict=True)), 0.0)
        rss, total = np.add.reduceat(residual**2, starts), np.add.reduceat(y**2, starts)
        some = plain & (rss > NO_RESIDUAL**2 * total)
        spread = np.sqrt(np.where(some, rss, sizes) / sizes)
        full = np.zeros((p + 1, p + 1, len(sizes)))
        full[:p, :p] = np.moveaxis(self._map @ to_q, 0, 2)
        full[:p, p] = -np.einsum("ijs,js->is", full[:p, :p], coefficients) / spread
        full[p, p] = 1.0 / spread
        log_det = np.linalg.slogdet(np.moveaxis(full[:p, :p], 2, 0))[1]
        squares = np.array([np.add.reduceat(column**2, starts) for column in self._Z[rows].T])
        logs = 0.0 if self._weights is None else np.add.reduceat(np.log(self._weights[rows]), starts)
        basis = Basis(full, log_det, power_of_two_scale(squares, sizes, self.template, logs))
        return basis, np.array([*Q, residual / np.repeat(spread, sizes)]), plain, some

    def _level_sums(
        self, rows: np.ndarray, which: np.ndarray, Z: np.ndarray, W: np.ndarray, n_levels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """ZᵀZ (n_levels, q, q, lanes) and ZᵀW (n_levels, q, p+1, lanes)."""
        opens = self._opens_level[rows]
        counts = self.n_levels[which]
        lane = np.repeat(np.arange(len(which)), counts)
        place = np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts)
        q, w = len(Z), len(W)
        sums = np.zeros((q * (q + 1) // 2 + q * w, len(lane)))
        add_by_code(sums, np.cumsum(opens) - 1, products(Z, W))
        ZtZ, ZtW = unpack_products(sums, q, w)
        G, C = np.zeros((n_levels, q, q, len(which))), np.zeros((n_levels, q, w, len(which)))
        G[place, :, :, lane], C[place, :, :, lane] = np.moveaxis(ZtZ, 2, 0), np.moveaxis(ZtW, 2, 0)
        return G, C

    def _alone(self, number: int) -> GroupMoments | None:
        """Moments of one data set by itself, its X still in the common basis; None if it cannot be fitted."""
        rows = slice(self._begin[number], self._begin[number] + self.n_rows[number])
        y, X = self._y[rows], self._X[rows]
        scaled = X / np.maximum(np.abs(X).max(axis=0, initial=0.0), np.finfo(float).tiny)
        self.identified[number] = not X.shape[1] or np.linalg.matrix_rank(scaled) == X.shape[1]
        if not self.identified[number] or not _leaves_residual(y, scaled):
            return None
        codes = np.cumsum(self._opens_level[rows]) - 1
        weights = None if self._weights is None else self._weights[rows]
        return group_moments(
            y, X, self._Z[rows], codes, int(self.n_levels[number]), template=self.template, weights=weights
        )


def _products_by(columns: Any, starts: np.ndarray) -> np.ndarray:
    """(w, w, sets) sums of products of the columns (w, n) over the rows of each set."""
    w = len(columns)
    out = np.zeros((w, w, len(starts)))
    for a in range(w):
        for b in range(a + 1):
            out[a, b] = out[b, a] = np.add.reduceat(columns[a] * columns[b], starts)
    return out


def _leaves_residual(y: np.ndarray, X: np.ndarray) -> bool:
    """Whether least squares on X (n, p) of full rank leaves more of y than rounding."""
    residual = y - X @ np.linalg.lstsq(X, y)[0] if X.shape[1] else y
    return bool(residual @ residual > NO_RESIDUAL**2 * (y @ y))
