"""Bootstrap and jackknife samples of a fitted model, as lanes of the batch engine or as responses.

Blocks of samples are drawn with seeds of their own, so that the numbers do not depend on how the work is cut.

References: Efron & Tibshirani (1993), chs 6, 14; Carpenter, Goldstein & Rasbash (2003), JRSS C 52, 431–443;
Davison & Hinkley (1997), §3.8.
"""

from collections.abc import Callable, Collection, Iterator

import numpy as np

from ..core.batch import Family
from ..core.compression import bucket, enough_rows
from ..core.lanes import LaneData, from_moments
from ..core.moments import Basis
from ..core.records import Fit
from ..data import ModelData
from ..inference.simulation import simulate_responses

# Samples that share a generator, and the most numbers that are drawn at once.
BLOCK = 256
BLOCK_NUMBERS = 1 << 20


def block_size(n_rows: int) -> int:
    """Samples of ``n_rows`` numbers drawn at once: by the data alone, so that a seed gives the same ones everywhere."""
    return max(1, min(BLOCK, BLOCK_NUMBERS // max(n_rows, 1)))


def parametric_responses(data: ModelData, fitted: Fit, n: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (n_rows, ≤ BLOCK) of responses drawn from the fitted model, n in all."""
    for block, size in _blocks(n, block_size(data.n_rows)):
        yield simulate_responses(data, fitted, None, size, np.random.default_rng([seed, block]))


def residual_responses(
    data: ModelData, fitted: Fit, b: Collection[np.ndarray], n: int, seed: int
) -> Iterator[np.ndarray]:
    """Blocks of responses from resampled BLUPs and residuals, both inflated to the estimated (co)variances.

    BLUPs and residuals are shrunken; centred and linearly mapped they have the covariances Ψ̂ and σ̂² exactly
    (Carpenter, Goldstein & Rasbash 2003).
    """
    sigma = float(fitted.sigma)
    L = sigma * np.asarray(fitted.relative_factor)
    mean = data.X @ np.asarray(fitted.beta) + data.offset
    effects = [_inflated(values, L[span, span]) for values, span in zip(b, data.factor_slices, strict=True)]
    residual = data.y - mean
    for factor, values in zip(data.factors, b, strict=True):
        residual = residual - np.einsum("nq,nq->n", factor.Z, factor.rows @ values)
    weights = data.design.weights
    root = np.ones(data.n_rows) if weights is None else np.sqrt(weights)
    residual = _inflated((residual * root)[:, None], np.array([[sigma]]))[:, 0]
    for block, size in _blocks(n, block_size(data.n_rows)):
        rng = np.random.default_rng([seed, block])
        out = np.repeat(mean[:, None], size, axis=1)
        for factor, values in zip(data.factors, effects, strict=True):
            drawn = values[rng.integers(len(values), size=(size, len(values)))]
            out += factor.effects @ drawn.reshape(size, -1).T
        drawn = residual[rng.integers(len(residual), size=(data.n_rows, size))]
        yield out + (drawn if weights is None else drawn / root[:, None])


def _blocks(n: int, size: int) -> Iterator[tuple[int, int]]:
    for block in range(-(-n // size)):
        yield block, min(size, n - block * size)


def _inflated(values: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Centred values (m, q) mapped to the covariance root·rootᵀ; directions in which they do not vary stay 0."""
    centred = values - values.mean(axis=0)
    roots, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    keep = roots > 1e-12 * roots.max(initial=0.0)
    whiten = (vectors[:, keep] / np.sqrt(roots[keep])) @ vectors[:, keep].T
    squares, axes = np.linalg.eigh(root @ root.T)
    return centred @ whiten @ (axes * np.sqrt(np.maximum(squares, 0.0))) @ axes.T


class LevelSamples:
    """Lanes that use each level of the one factor m times (m = 0, 1, 2 …): the cases bootstrap and the jackknife.

    A level taken m times adds m·log|M| to log|V| and m·cᵀ(·)c to H, so a sample costs a product with the
    cross-products of the levels, and no rows. Samples that do not identify the model fail.

    Attributes
    ----------
    n_obs, identified : (R,) of the samples that were compressed: their rows, and whether they identify the model.
    """

    n_obs: np.ndarray
    identified: np.ndarray

    def __init__(self, data: ModelData) -> None:
        self._data = data
        moments = data.compressed.moments  # type: ignore[union-attr]
        self.n_groups = len(data.factors[0].levels)
        self._Z = np.moveaxis(moments.ZtZ, 2, 0)
        self._C = np.moveaxis(moments.ZtW, 2, 0)
        self._moments = moments
        basis, p = moments.basis, data.X.shape[1]
        rows = data.X @ basis.map[:p] + (data.y - data.offset)[:, None] * basis.map[p]
        weights = data.design.weights
        rows = rows if weights is None else rows * np.sqrt(weights)[:, None]
        codes = data.factors[0].codes
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(self.n_groups))
        products = (rows[:, :, None] * rows[:, None]).reshape(len(rows), -1)[order]
        self._WtW = np.add.reduceat(products, starts, axis=0)
        self._n_rows = np.bincount(codes, minlength=self.n_groups).astype(float)
        logs = np.zeros(len(rows)) if weights is None else np.log(weights)
        self._log_weights = np.bincount(codes, logs, minlength=self.n_groups)

    @property
    def n_levels(self) -> int:
        return bucket(self.n_groups)

    def lanes(self, times: np.ndarray) -> tuple[LaneData, np.ndarray, np.ndarray]:
        """The lanes that use the levels ``times`` (n_groups, R), their rows (R,), and which are identified (R,)."""
        moments, p, width = self._moments, self._data.X.shape[1], self._moments.WtW.shape[0]
        lanes = times.shape[1]
        padded = np.zeros((len(self._Z), lanes))
        padded[: self.n_groups] = times
        WtW = (self._WtW.T @ times).reshape(width, width, lanes)  # noqa: N806
        n_rows = self._n_rows @ times
        # A level that was drawn twice is two levels.
        identified = enough_rows(n_rows, times.sum(0), p, self._data.template)
        if p:
            roots = np.linalg.eigvalsh(np.moveaxis(WtW[:p, :p], 2, 0))
            identified &= roots[:, 0] >= 1e-12 * roots[:, -1]
        C = self._C[..., None] * np.sqrt(padded)[:, None, None]  # noqa: N806
        basis = moments.basis
        data = from_moments(
            self._Z[..., None],
            padded,
            C,
            WtW,
            np.where(identified, n_rows, np.nan),
            self._log_weights @ times,
            Basis(
                np.repeat(basis.map[:, :, None], lanes, axis=2),
                np.reshape(basis.log_det_x, 1),
                np.reshape(basis.z_scale, (-1, 1)),
            ),
            self._data.template,
        )
        return data, n_rows, identified

    def bootstrap(self, n: int, seed: int, width: int, start: np.ndarray | None) -> Family:
        """n samples of as many levels as there are, with replacement."""
        return self._family(n, lambda which: self.times(seed, which), width, start)

    def times(self, seed: int, which: np.ndarray) -> np.ndarray:
        """(n_groups, len(which)) how often cases samples have each level."""
        size, share = block_size(self.n_groups), np.full(self.n_groups, 1.0 / self.n_groups)
        parts = []
        for block in np.unique(which // size).tolist():
            drawn = np.random.default_rng([seed, block]).multinomial(self.n_groups, share, size)
            parts.append(drawn[which[which // size == block] - block * size])
        return np.concatenate(parts).T.astype(float)

    def jackknife(self, width: int, start: np.ndarray | None) -> Family:
        """Each level left out once."""
        levels = np.arange(self.n_groups)[:, None]
        return self._family(self.n_groups, lambda which: (levels != which).astype(float), width, start)

    def _family(
        self, n: int, times: Callable[[np.ndarray], np.ndarray], width: int, start: np.ndarray | None
    ) -> Family:
        self.n_obs, self.identified = np.zeros(n), np.ones(n, bool)

        def compress(which: np.ndarray) -> LaneData:
            data, self.n_obs[which], self.identified[which] = self.lanes(times(which))
            return data

        return Family.cut(np.arange(n), width, compress, start)
