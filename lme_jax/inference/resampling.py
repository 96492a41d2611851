"""Bootstrap and jackknife samples of a fitted model, as lanes of the batch engine or as responses.

Blocks of responses are drawn with seeds of their own, so that the numbers do not depend on how the work is cut.

References: Efron & Tibshirani (1993), chs 6, 14; Carpenter, Goldstein & Rasbash (2003), JRSS C 52, 431–443;
Davison & Hinkley (1997), §3.8.
"""

from collections.abc import Collection, Iterator

import numpy as np

from ..core.batch import Family
from ..core.compression import Basis, bucket
from ..core.lanes import LaneData
from ..core.records import Fit
from ..data import ModelData
from .simulation import simulate_responses

BLOCK = 256


def parametric_responses(data: ModelData, fitted: Fit, n: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (n_rows, ≤ BLOCK) of responses drawn from the fitted model, n in all."""
    for block, size in _blocks(n):
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
    for block, size in _blocks(n):
        rng = np.random.default_rng([seed, block])
        out = np.repeat(mean[:, None], size, axis=1)
        for factor, values in zip(data.factors, effects, strict=True):
            drawn = values[rng.integers(len(values), size=(size, len(values)))]
            out += factor.effects @ drawn.reshape(size, -1).T
        drawn = residual[rng.integers(len(residual), size=(data.n_rows, size))]
        yield out + (drawn if weights is None else drawn / root[:, None])


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    for block in range(-(-n // BLOCK)):
        yield block, min(BLOCK, n - block * BLOCK)


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
    cross-products of the levels, and no rows. Samples that do not identify the fixed effects fail.
    """

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

    def lanes(self, times: np.ndarray) -> LaneData:
        """The lanes that use the levels ``times`` (n_groups, R)."""
        moments, p, width = self._moments, self._data.X.shape[1], self._moments.WtW.shape[0]
        lanes = times.shape[1]
        padded = np.zeros((len(self._Z), lanes))
        padded[: self.n_groups] = times
        WtW = (self._WtW.T @ times).reshape(width, width, lanes)  # noqa: N806
        n_rows = self._n_rows @ times
        if p:
            roots = np.linalg.eigvalsh(np.moveaxis(WtW[:p, :p], 2, 0))
            n_rows = np.where(roots[:, 0] < 1e-12 * roots[:, -1], np.nan, n_rows)
        C = self._C[..., None] * np.sqrt(padded)[:, None, None]  # noqa: N806
        basis = moments.basis
        return LaneData(
            self._Z[..., None],
            padded,
            np.ascontiguousarray(C[:, :, :p]),
            np.ascontiguousarray(C[:, :, p]),
            WtW,
            n_rows,
            self._log_weights @ times,
            Basis(
                np.repeat(basis.map[:, :, None], lanes, axis=2),
                np.reshape(basis.log_det_x, 1),
                np.reshape(basis.z_scale, (-1, 1)),
            ),
            self._data.template,
        )

    def bootstrap(self, n: int, seed: int, width: int, start: np.ndarray | None) -> Family:
        """n samples of as many levels as there are, with replacement."""
        drawn = [
            np.random.default_rng([seed, block]).multinomial(
                self.n_groups, np.full(self.n_groups, 1.0 / self.n_groups), size
            )
            for block, size in _blocks(n)
        ]
        return self._family(np.concatenate(drawn).T.astype(float), width, start)

    def jackknife(self, width: int, start: np.ndarray | None) -> Family:
        """Each level left out once."""
        return self._family(1.0 - np.eye(self.n_groups), width, start)

    def _family(self, times: np.ndarray, width: int, start: np.ndarray | None) -> Family:
        return Family.cut(np.arange(times.shape[1]), width, lambda which: self.lanes(times[:, which]), start)
