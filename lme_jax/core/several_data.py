"""Rows → ``SeveralLanes``: many responses of one design with several grouping factors (NumPy).

Everything but y is compressed once; a block of responses costs one sparse product with the columns of Z.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from ..errors import DataError
from .covariance import Template
from .crossed_start import Moments
from .moments import NO_RESIDUAL, Basis, pilot_basis, power_of_two_scale
from .several_lanes import SeveralLanes, SharedMoments
from .starts import is_balanced_chain

# Effects of the factors beside the largest, and of all, up to which lanes are quicker than one fit after another.
MOST_DENSE, MOST_EFFECTS = 64, 160


def suits_lanes(n_effects: Sequence[int], by_code: Sequence[bool]) -> bool:
    """Whether designs of so many effects per factor are fitted as lanes: few effects, one factor at least by codes."""
    first = largest(n_effects, by_code)
    return first is not None and sum(n_effects) <= MOST_EFFECTS and sum(n_effects) - n_effects[first] <= MOST_DENSE


def largest(n_effects: Sequence[int], by_code: Sequence[bool]) -> int | None:
    """The factor with the most effects among those whose rows have one level each, which is the one to eliminate."""
    candidates = [j for j, single in enumerate(by_code) if single]
    return max(candidates, key=lambda j: n_effects[j], default=None)


class SeveralDesign:
    """X and the columns of the random effects of n rows, ready to compress any number of responses.

    Parameters
    ----------
    X : (n, p).
    Zs : per factor (n, m_j q_j) sparse, the effects' columns level by level.
    n_levels : per factor m_j; by_code : whether each of its rows has one level.
    templates : per factor, of its q_j effects.
    weights, offset : (n,), optional.

    Raises
    ------
    DataError
        For columns of X that are dependent.
    """

    def __init__(
        self,
        X: np.ndarray,
        Zs: Sequence[Any],
        n_levels: Sequence[int],
        by_code: Sequence[bool],
        templates: Sequence[Template],
        *,
        weights: np.ndarray | None = None,
        offset: np.ndarray | None = None,
    ) -> None:
        self.n_rows, self.n_fixed = X.shape
        self._offset = None if offset is None else np.asarray(offset, float)[:, None]
        self._root = None if weights is None else np.sqrt(np.asarray(weights, float))[:, None]
        self._log_weights = 0.0 if weights is None else float(np.log(weights).sum())
        template = tuple(block for one in templates for block in one)
        sizes = tuple(sum(block.size for block in one) for one in templates)
        self._z_scale = self._scale_of(Zs, sizes, n_levels, template)
        basis = pilot_basis(np.zeros(self.n_rows), X, np.zeros((self.n_rows, 0)), (), self._log_weights)
        self._map, self._log_det_x = basis.map[:-1, :-1], basis.log_det_x
        self._X = self._weighted(X @ self._map)
        XtX = self._X.T @ self._X
        if len(XtX) and np.linalg.eigvalsh(XtX)[0] < 1e-13 * np.trace(XtX):
            raise DataError("the columns of X are linearly dependent: drop the redundant ones")
        self._chol = scipy.linalg.cho_factor(XtX) if len(XtX) else None
        first = largest([Z.shape[1] for Z in Zs], by_code)
        if first is None:
            raise DataError("lanes need a factor whose rows have one level each")
        order = [first, *(j for j in range(len(Zs)) if j != first)]
        scales = np.split(self._z_scale, np.cumsum(sizes)[:-1])
        scaled = [Zs[j] @ scipy.sparse.diags(1.0 / np.tile(scales[j], n_levels[j])) for j in order]
        Z = scipy.sparse.hstack(scaled, format="csr")
        Z = Z if self._root is None else scipy.sparse.diags(self._root[:, 0]) @ Z
        self._Zt = Z.T.tocsr()
        ends = np.cumsum([Zs[j].shape[1] for j in order])
        spans = {j: slice(int(end) - Zs[j].shape[1], int(end)) for j, end in zip(order, ends, strict=True)}
        self.shared = _shared_moments(
            (self._Zt @ Z).toarray(),
            self._Zt @ self._X,
            XtX,
            template=template,
            sizes=sizes,
            levels=tuple(int(m) for m in n_levels),
            first=first,
            spans=tuple(spans[j] for j in range(len(Zs))),
        )

    def _scale_of(
        self, Zs: Sequence[Any], sizes: Sequence[int], n_levels: Sequence[int], template: Template
    ) -> np.ndarray:
        """(Σq,) powers of two near the root mean square of the effects' columns."""
        sums = [
            np.asarray(Z.multiply(Z).sum(0)).reshape(m, q).sum(0) for Z, m, q in zip(Zs, n_levels, sizes, strict=True)
        ]
        return power_of_two_scale(np.concatenate(sums), self.n_rows, template, self._log_weights)

    def _weighted(self, columns: np.ndarray) -> np.ndarray:
        return columns if self._root is None else columns * self._root

    def compress(self, Y: np.ndarray) -> SeveralLanes:
        """Statistics of the complete responses Y (n, R)."""
        E = self._weighted(np.array(Y, float) if self._offset is None else Y - self._offset)
        p, lanes = self.n_fixed, E.shape[1]
        XtY = self._X.T @ E
        coefficients = scipy.linalg.cho_solve(self._chol, XtY) if p else XtY
        explained = (coefficients * XtY).sum(0)
        E -= self._X @ coefficients
        rss = np.einsum("nr,nr->r", E, E)
        none_left = ~(rss > NO_RESIDUAL**2 * np.abs(explained)) | ~(rss > 0)
        spread = np.where(none_left, 1.0, np.sqrt(rss / self.n_rows))
        E /= spread
        full = np.zeros((p + 1, p + 1, lanes))
        full[:p, :p] = self._map[:, :, None]
        full[:p, p] = -(self._map @ coefficients) / spread
        full[p, p] = 1.0 / spread
        return SeveralLanes(
            self._Zt @ E,
            np.concatenate([self._X.T @ E, (rss / spread**2)[None]]),
            np.where(none_left, np.nan, float(self.n_rows)),
            np.array([self._log_weights]),
            Basis(full, np.array([self._log_det_x]), self._z_scale[:, None]),
            self.shared,
        )


def _shared_moments(
    ZtZ: np.ndarray,
    ZtX: np.ndarray,
    XtX: np.ndarray,
    *,
    template: Template,
    sizes: tuple[int, ...],
    levels: tuple[int, ...],
    first: int,
    spans: tuple[slice, ...],
) -> SharedMoments:
    n, q = spans[first].stop, sizes[first]
    m = n // q
    at = np.arange(m)
    blocks = ZtZ[:n, :n].reshape(m, q, m, q)[at, :, at]
    G, pattern, count = np.unique(blocks.reshape(m, -1), axis=0, return_inverse=True, return_counts=True)
    pattern = pattern.reshape(-1)
    cross, size = np.ascontiguousarray(ZtZ[:n, n:]), len(ZtZ) - n
    products = np.empty((len(G), q, q, size, size))
    for t in range(len(G)):
        own = cross.reshape(m, q, size)[pattern == t]
        products[t] = np.einsum("uik,ujl->ijkl", own, own, optimize=True)
    return SharedMoments(
        template,
        sizes,
        levels,
        first,
        spans,
        np.moveaxis(G.reshape(-1, q, q), 0, 2)[:, :, None],
        count.astype(float),
        pattern,
        cross,
        ZtZ[n:, n:],
        products.reshape(len(G) * q * q, size * size),
        ZtX,
        XtX,
        _start_moments(ZtZ, ZtX, XtX, sizes, spans),
        _is_chain(ZtZ, spans) and is_balanced_chain(template, [np.diag(ZtZ)[span] for span in spans]),
    )


def _is_chain(ZtZ: np.ndarray, spans: tuple[slice, ...]) -> bool:
    """Whether every level of a factor lies in one level of the next larger unit."""
    order = sorted(spans, key=lambda span: span.start - span.stop)
    return all(((ZtZ[inner, outer] != 0).sum(1) <= 1).all() for inner, outer in itertools.pairwise(order))


def _start_moments(
    ZtZ: np.ndarray, ZtX: np.ndarray, XtX: np.ndarray, sizes: tuple[int, ...], spans: tuple[slice, ...]
) -> Moments:
    """``crossed_start.Moments`` from the dense cross-products; the responses' part is empty."""
    C = ZtX @ np.linalg.inv(np.linalg.cholesky(XtX)).T if len(XtX) else ZtX
    kind = np.zeros((sum(sizes), len(ZtZ)))
    for j, (q, span) in enumerate(zip(sizes, spans, strict=True)):
        for a in range(q):
            kind[sum(sizes[:j]) + a, span.start + a : span.stop : q] = 1.0
    return Moments(
        squares=kind @ ZtZ**2 @ kind.T,
        across=kind @ (ZtZ * (C @ C.T)) @ kind.T,
        traces=kind @ np.diag(ZtZ),
        gram=np.stack([C[own > 0].T @ C[own > 0] for own in kind]),
        rhs=np.zeros(len(kind)),
    )
