"""When rows are taken as a chain, and how they become one."""

from typing import NamedTuple

import numpy as np

from .. import moments
from ..blocks import Block
from ..compression import dependent_columns
from ..moments import Basis
from . import classes, identification, markov
from .chains import Chain
from .model import Model
from .series import Series
from .stacks import LARGEST, SMALL_GRID, Rows, sorted_rows

# Σ n³ over blocks of n rows above which they are not factored: a chain takes some 15 ms of any few thousand rows.
FACTORED = 100_000
# … and above which they are not factored for anything.
AFFORDABLE = 500_000_000
# Rows at which a search of more than twice as many begins, and the levels that they are of.
SAMPLE_ROWS, SAMPLE_LEVELS = 20_000, 1_000


class Found(NamedTuple):
    """The series with the basis of its W and WᵀW (w, w)."""

    series: Series
    basis: Basis
    WtW: np.ndarray


def possible(model: Model, rows: Rows) -> bool:
    """Whether R⁻¹ is tridiagonal and all bars have levels of one factor, each of whole subjects."""
    if not markov.applies(model, rows):
        return False
    if not rows.codes:
        return True
    code = rows.codes[0]
    if not all(np.array_equal(code, c) for c in rows.codes[1:]):
        return False
    if code is rows.subject or np.array_equal(code, rows.subject):
        return True
    of = np.zeros(int(rows.subject.max()) + 1, np.int64)
    of[rows.subject] = code
    return bool((of[rows.subject] == code).all())


def cheaper(model: Model, rows: Rows, block: np.ndarray) -> bool:
    """Whether a chain is possible and the blocks are too much to factor; few visits without bars stay on their grid."""
    grid = not model.bars and not model.variances and not model.family.distance and model.n_visits <= SMALL_GRID
    size = np.bincount(block).astype(float)
    return not grid and float((size**3).sum()) > FACTORED and possible(model, rows)


def affordable(block: np.ndarray) -> bool:
    """Whether the blocks can be factored at all, in seconds."""
    size = np.bincount(block).astype(float)
    return bool(size.max() <= LARGEST and (size**3).sum() <= AFFORDABLE)


def compress(model: Model, rows: Rows, block: np.ndarray, W: np.ndarray) -> Found:
    """The rows, √w Z in conditioned units, and √w [X y] as a ``Series``."""
    if not possible(model, rows):
        raise identification.DataError(
            f"{model.word} with these bars is not a chain under the levels of one factor: use the engine 'blocks'"
        )
    rows = rows._replace(clock=rows.clock.reshape(len(block)))
    order = sorted_rows(block, rows)
    if (np.diff(order) != 1).any():
        rows, block, W = rows.map(order), block[order], W[order]
    basis = _basis(W)
    conditioned = basis.map.T @ W.T
    joined = np.zeros(len(block), bool)
    gap = np.zeros(len(block), rows.clock.dtype)
    if model.word != "ident":
        joined[1:] = rows.subject[1:] == rows.subject[:-1]
        gap[1:] = np.where(joined[1:], rows.clock[1:] - rows.clock[:-1], 0)
    level = np.cumsum(np.diff(block, prepend=block[0]) != 0)
    Z = np.concatenate(rows.Z, axis=1).T.copy() if rows.Z else np.zeros((0, len(block)))
    chain = Chain(conditioned, Z, rows._replace(Z=(), codes=()), level, joined, gap, markov.homoscedastic(model))
    identification.check_chain(model, chain.at, joined)
    return Found(Series(chain, classes.compress(model, chain)), basis, _gram(chain))


def _basis(W: np.ndarray) -> Basis:
    n = len(W)
    pilot = moments.pilot_basis(W[:, -1], W[:, :-1], np.ones((n, 1)), (Block("unstructured", 1),))
    return Basis(pilot.map, pilot.log_det_x, np.ones(0))


def _gram(chain: Chain) -> np.ndarray:
    total = np.zeros((len(chain.W),) * 2)
    for rows in chain.chunks():
        total += moments.gram(chain.W[:, rows])
    return total


class Sample(NamedTuple):
    """Some rows, and the columns of X (p′,) that they tell apart."""

    series: Series
    kept: np.ndarray


def sampled(model: Model, chain: Chain) -> Sample | None:
    """The first rows of levels here and there; None of few rows."""
    n = chain.W.shape[1]
    if n <= 2 * SAMPLE_ROWS:
        return None
    starts = np.flatnonzero(np.diff(chain.level, prepend=-1))
    ends = np.append(starts[1:], n)
    if len(starts) > SAMPLE_LEVELS:
        chosen = np.sort(np.random.default_rng(0).choice(len(starts), SAMPLE_LEVELS, replace=False))
        starts, ends = starts[chosen], ends[chosen]
    ends = np.minimum(ends, starts + max(2, SAMPLE_ROWS // len(starts)))
    size = ends - starts
    rows = np.repeat(starts - (np.cumsum(size) - size), size) + np.arange(size.sum())
    joined = chain.joined[rows].copy()
    joined[np.cumsum(size) - size] = False
    W = chain.W[:, rows]
    p = len(W) - 1
    kept = np.setdiff1d(np.arange(p), dependent_columns((W @ W.T)[:p, :p]))
    level = np.repeat(np.arange(len(starts)), size)
    part = Chain(W[[*kept, p]], chain.Z[:, rows], chain.at.map(rows), level, joined, chain.gap[rows], chain.apart)
    told = model.word == "ident" or all(joined[part.at.group == a].any() for a in range(model.n_groups))
    return Sample(Series(part, classes.compress(model, part)), kept) if told else None
