"""Clusters of independent blocks for cluster-robust covariances: ``sandwich.Batch`` by ``Batch``."""

from collections.abc import Iterator

import numpy as np
import scipy.linalg

from ...errors import DataError
from ..sandwich import Batch
from .data import BlockData
from .fit import ResidualFit
from .model import pattern

# Numbers of all V of a batch.
TOGETHER = 4_000_000


def batches(fitted: ResidualFit, data: BlockData) -> Iterator[Batch]:
    """Every block of dependent rows as a cluster, numbered as in ``data.block``; σ = 1.

    Places without a row have V = 1 and X = 0, which changes nothing.
    """
    e = data.y - data.X @ fitted.beta
    root = np.ones(len(e)) if data.weights is None else np.sqrt(data.weights)
    for stack in data.stacks:
        V = pattern(data.model, fitted.params * data.unit, stack, derivatives=False).V
        n = V.shape[1]
        step = max(1, TOGETHER // (n * n))
        for lo in range(0, len(stack.rows), step):
            rows, member = stack.rows[lo : lo + step], stack.member[lo : lo + step]
            there = rows >= 0
            w = np.where(there, root[rows], 1.0)
            own = V[member] / (w[:, :, None] * w[:, None, :])
            X, r = np.where(there[:, :, None], data.X[rows], 0.0), np.where(there, e[rows], 0.0)
            yield Batch(data.block[rows.max(1)], own, X, r)


def joined(found: Iterator[Batch], of: np.ndarray) -> Iterator[Batch]:
    """Clusters of several blocks each; ``of`` (blocks,) is the cluster of every block."""
    parts: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for number, V, X, e in found:
        for block, *part in zip(number, V, X, e, strict=True):
            parts.setdefault(int(of[block]), []).append((part[0], part[1], part[2]))
    for cluster, members in parts.items():
        Vs, Xs, es = zip(*members, strict=True)
        V = scipy.linalg.block_diag(*Vs)
        yield Batch(np.array([cluster]), V[None], np.concatenate(Xs)[None], np.concatenate(es)[None])


def cluster_of_blocks(block: np.ndarray, cluster: np.ndarray, name: str) -> np.ndarray:
    """The cluster of every block, both codes (n,); a block that is in two is refused."""
    out = np.zeros(int(block.max()) + 1, int)
    out[block] = cluster
    bad = np.flatnonzero(out[block] != cluster)
    if len(bad):
        raise DataError(
            f"cluster: rows that depend on each other are in two clusters of {name} (row {bad[0]}, from 0): clusters "
            "must hold whole subjects and levels"
        )
    return out
