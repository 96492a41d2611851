"""What is asked of single rows and blocks at a fit: residuals whitened, effects, predictions, covariance of given rows.

V and R are in units of σ² unless said; one pass over the stacks, all blocks of a pattern at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...errors import DataError
from .. import covariance, linalg
from ..records import RandomEffects
from .data import BlockData
from .distances import between
from .fit import ResidualFit
from .model import Model, Pattern, grids, pattern
from .record import triangular_inverse
from .stacks import Rows, Stack

# Numbers gathered at once when rows of many blocks are multiplied by their patterns' matrices.
CHUNK = 4_000_000
# New rows of one set of blocks that are predicted together.
TOGETHER = 500
# Words whose matrices are of any number of visits.
ANY_LENGTH = ("ar1", "arma", "ident")


class SubjectSums(NamedTuple):
    """Of one block: its rows (n_i,), XᵀV⁻¹r (p,), XᵀV⁻¹X (p, p), and K⁻¹X (n_i, p), K⁻¹r (n_i,) with V = KKᵀ."""

    rows: np.ndarray
    score: np.ndarray
    information: np.ndarray
    X: np.ndarray
    r: np.ndarray


class Prediction(NamedTuple):
    """New rows: mean (m,), and the variance (m,) of what is observed there less that, response units².

    ``error`` (m,) is the share of it that comes from estimating β.
    """

    mean: np.ndarray
    variance: np.ndarray
    error: np.ndarray


def _patterns(fitted: ResidualFit, data: BlockData) -> Iterator[tuple[Stack, Pattern]]:
    for stack in data.stacks:
        yield stack, pattern(data.model, fitted.params * data.unit, stack, derivatives=False)


def _root_w(data: BlockData) -> np.ndarray | float:
    return 1.0 if data.weights is None else np.sqrt(data.weights)[:, None]


def _applied(stack: Stack, matrices: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
    """out[rows] = matrix of its pattern times columns[rows], for every block of a stack; columns (n, c)."""
    n = stack.rows.shape[1]
    step = max(1, CHUNK // (n * (n + columns.shape[1])))
    for lo in range(0, len(stack.rows), step):
        rows, member = stack.rows[lo : lo + step], stack.member[lo : lo + step]
        there = rows >= 0
        found = matrices[member] @ np.where(there[:, :, None], columns[rows], 0.0)
        out[rows[there]] = found[there]


def _roots(V: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(V)


def residuals(fitted: ResidualFit, data: BlockData) -> np.ndarray:
    """y − Xβ̂ (n,)."""
    return data.y - data.X @ fitted.beta


def whitened(fitted: ResidualFit, data: BlockData, columns: np.ndarray) -> np.ndarray:
    """K⁻¹ columns (n, c) with V = KKᵀ of every block, rows in the data's order."""
    out = np.empty_like(columns)
    for stack, at in _patterns(fitted, data):
        _applied(stack, triangular_inverse(_roots(at.V)), columns * _root_w(data), out)
    return out


def solved(fitted: ResidualFit, data: BlockData, columns: np.ndarray) -> np.ndarray:
    """V⁻¹ columns (n, c)."""
    out = np.empty_like(columns)
    for stack, at in _patterns(fitted, data):
        root = triangular_inverse(_roots(at.V))
        _applied(stack, root.swapaxes(1, 2) @ root, columns * _root_w(data), out)
    return out * _root_w(data)


def correlated(fitted: ResidualFit, data: BlockData, columns: np.ndarray, *, given_effects: bool = False) -> np.ndarray:
    """σKz for columns z (n, c) of standard normals: draws of y − Xβ, or with ``given_effects`` of y − Xβ − Zb."""
    out = np.empty_like(columns)
    for stack, at in _patterns(fitted, data):
        _applied(stack, _roots(_alone(stack, at) if given_effects else at.V), columns, out)
    return fitted.sigma * out / _root_w(data)


def normalized(fitted: ResidualFit, data: BlockData, r: np.ndarray) -> np.ndarray:
    """Residuals r (n,) by the inverse lower Cholesky factor of σ²R, in clock order within every subject.

    ``r`` is what R is the covariance of: y − Xβ̂ − Zb̂ as nlme has it, or y − Xβ̂ where there is no bar.
    """
    out, columns = np.empty((len(r), 1)), np.asarray(r, float)[:, None] * _root_w(data)
    for stack, at in _patterns(fitted, data):
        _applied(stack, triangular_inverse(_roots(_alone(stack, at))), columns, out)
    return out[:, 0] / fitted.sigma


def _alone(stack: Stack, at: Pattern) -> np.ndarray:
    """R (P, n, n), the identity at places without a row."""
    return at.R + np.eye(at.R.shape[1]) * (~stack.present)[:, :, None]


def residual_sd(fitted: ResidualFit, data: BlockData) -> np.ndarray:
    """σ√R_ii (n,): what Pearson residuals are divided by."""
    out = np.empty((len(data.y), 1))
    for stack, at in _patterns(fitted, data):
        sd = np.sqrt(np.diagonal(at.R, axis1=1, axis2=2))[stack.member]
        there = stack.rows >= 0
        out[stack.rows[there], 0] = sd[there]
    return (fitted.sigma * out / _root_w(data))[:, 0]


def subject_sums(fitted: ResidualFit, data: BlockData, r: np.ndarray | None = None) -> Iterator[SubjectSums]:
    """``SubjectSums`` of every block, r = y − Xβ̂ unless given: what cluster-robust covariances need."""
    r = residuals(fitted, data) if r is None else r
    E = whitened(fitted, data, np.column_stack([data.X, r]))
    for stack in data.stacks:
        for rows in stack.rows:
            rows = rows[rows >= 0]
            X, e = E[rows, :-1], E[rows, -1]
            yield SubjectSums(rows, X.T @ e, X.T @ X, X, e)


# ---------------------------------------------------------------- effects of the bars


def random_effects(fitted: ResidualFit, data: BlockData) -> list[RandomEffects]:
    """BLUPs of every bar's levels with Var(b | y) at fixed β and Var(b̂ − b), levels in sorted order of their codes."""
    half = solved(fitted, data, np.column_stack([residuals(fitted, data), data.X]))
    out = []
    for j, (here, block) in enumerate(zip(data.model.theta, data.model.bars, strict=True)):
        L = covariance.factor(fitted.params[here], (block,))
        Psi, Z, codes = L @ L.T, data.rows.Z[j], data.rows.codes[j]
        m = int(codes.max()) + 1
        sums = np.zeros((m, block.size, half.shape[1]))
        np.add.at(sums, codes, Z[:, :, None] * half[:, None, :])
        U = _inner(fitted, data, j, m)
        b = sums[:, :, 0] @ Psi
        conditional = Psi - Psi @ U @ Psi
        across = Psi @ sums[:, :, 1:]
        extra = across @ fitted.unscaled_cov @ across.swapaxes(1, 2)
        s2 = fitted.sigma**2
        out.append(RandomEffects(b, s2 * conditional, s2 * (conditional + extra)))
    return out


def _inner(fitted: ResidualFit, data: BlockData, j: int, m: int) -> np.ndarray:
    """ZᵀV⁻¹Z (m, q, q) of every level of bar j, user's units."""
    q = data.model.bars[j].size
    own = data.rows.Z[j] if data.weights is None else data.rows.Z[j] * np.sqrt(data.weights)[:, None]
    out, codes = np.zeros((m, q, q)), data.rows.codes[j]
    for stack, at in _patterns(fitted, data):
        root = triangular_inverse(_roots(at.V))
        inverse = root.swapaxes(1, 2) @ root
        levels = stack.levels[j]
        inverse = inverse if levels is None else inverse * levels
        Z = np.zeros((*stack.present.shape, q))
        lead = stack.rows[np.searchsorted(stack.member, np.arange(len(stack.copies)))]
        Z[stack.present] = own[lead[stack.present]]
        product = Z[:, :, :, None] * (inverse @ Z)[:, :, None, :]
        there = stack.rows >= 0
        np.add.at(out, codes[stack.rows[there]], product[stack.member][there])
    return 0.5 * (out + out.swapaxes(1, 2))


# ---------------------------------------------------------------- given rows


def visit_covariances(fitted: ResidualFit, data: BlockData) -> np.ndarray:
    """(A, T, T) σ²R at all visits, per arm; of structures by visit, variance functions aside."""
    return fitted.sigma**2 * grids(data.model, fitted.params * data.unit)[0]


def covariance_of(
    fitted: ResidualFit, data: BlockData, rows: Rows, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """σ²R and σ²V (m, m) of any rows, of the data or new, user's units of Z."""
    n, x = len(rows.subject), fitted.params * data.unit
    model, rows = _long_enough(data.model, rows)
    bare = model._replace(bars=())
    stack = Stack(
        copies=np.ones(1),
        present=np.ones((1, n), bool),
        at=rows._replace(Z=(), codes=()).map(np.arange(n)[None]),
        owner=np.zeros(1, int),
        first=np.zeros(1, int),
        C=np.zeros((1, n, 1)),
        rows=np.arange(n)[None],
        member=np.zeros(1, int),
        together=(rows.subject[:, None] == rows.subject)[None],
        levels=(),
        distance=between(rows.clock[None], str(model.settings.get("metric", "euclidean")))
        if model.family.distance
        else None,
    )
    R = pattern(bare, x[model.n_theta :], stack, derivatives=False).R[0]
    root = np.ones(n) if weights is None else 1.0 / np.sqrt(weights)
    R = fitted.sigma**2 * R * np.outer(root, root)
    V = R.copy()
    for here, block, Z, codes in zip(model.theta, model.bars, rows.Z, rows.codes, strict=True):
        half = Z @ covariance.factor(fitted.params[here], (block,))
        V += fitted.sigma**2 * (half @ half.T) * (codes[:, None] == codes)
    return R, V


def _long_enough(model: Model, rows: Rows) -> tuple[Model, Rows]:
    """The model with visits for rows before the first one or after the last, which then count from the earliest."""
    if model.family.distance or model.word not in ANY_LENGTH:
        return model, rows
    low, high = int(rows.clock.min()), int(rows.clock.max())
    if low >= 0 and high < model.n_visits:
        return model, rows
    return model._replace(n_visits=max(high - low + 1, 2)), rows._replace(clock=rows.clock - low)


def residual_covariance(fitted: ResidualFit, data: BlockData, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """σ²R and σ²V of rows (m,) of the data, in the order given: those of a subject, say, by its clock."""
    rows = np.asarray(rows)
    weights = None if data.weights is None else data.weights[rows]
    return covariance_of(fitted, data, data.rows.map(rows), weights)


def rows_of_subject(data: BlockData, subject: int) -> np.ndarray:
    """Row numbers of a subject, 0 … in sorted order of the codes given to ``compress``, by its clock."""
    rows = np.flatnonzero(data.rows.subject == subject)
    clock = data.rows.clock[rows]
    keys = [clock] if clock.ndim == 1 else list(clock.T[::-1])
    return rows[np.lexsort(keys)]


def predict(
    fitted: ResidualFit, data: BlockData, X: np.ndarray, rows: Rows, weights: np.ndarray | None = None
) -> Prediction:
    """New rows given all rows of the data: the residuals of the same subject and levels count.

    Parameters
    ----------
    X : (m, p).
    rows : what V depends on, in the codes of ``data.rows``; a subject or level that is not there, −1 say, is new.
    weights : (m,), optional.

    Notes
    -----
    Best linear unbiased; its variance counts that β̂ is estimated.
    """
    mean, variance, error = X @ fitted.beta, np.empty(len(X)), np.empty(len(X))
    r = residuals(fitted, data)
    for chosen, old in _linked(data, rows):
        new = rows.map(chosen)
        joint = data.rows.map(old).joined(new)
        w = None
        if data.weights is not None or weights is not None:
            left = np.ones(len(old)) if data.weights is None else data.weights[old]
            w = np.concatenate([left, np.ones(len(chosen)) if weights is None else weights[chosen]])
        V = covariance_of(fitted, data, joint, w)[1]
        n = len(old)
        own, D = np.diagonal(V)[n:].copy(), X[chosen]
        if n:
            K = np.linalg.cholesky(V[:n, :n])
            right = np.column_stack([V[:n, n:], r[old], data.X[old]])
            half, known = np.hsplit(linalg.solve_lower(K, right), [len(chosen)])
            step = half.T @ known
            mean[chosen] += step[:, 0]
            own -= (half**2).sum(0)
            D = D - step[:, 1:]
        error[chosen] = fitted.sigma**2 * np.einsum("ip,pr,ir->i", D, fitted.unscaled_cov, D)
        variance[chosen] = np.maximum(own, 0.0) + error[chosen]
    return Prediction(mean, variance, error)


def _linked(data: BlockData, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """New rows that depend on the same blocks, and the rows of those."""
    if any(len(Z.T) != b.size for Z, b in zip(rows.Z, data.model.bars, strict=True)):
        raise DataError("the new rows' Z must have the columns of the bars that were fitted")
    known, given = (data.rows.subject, *data.rows.codes), (rows.subject, *rows.codes)
    links = np.stack([_blocks_of(own, data, new) for own, new in zip(known, given, strict=True)], 1)
    links = np.sort(links, axis=1)
    order = np.argsort(data.block, kind="stable")
    ends = np.searchsorted(data.block[order], np.arange(int(data.block.max()) + 2))
    for link in np.unique(links, axis=0):
        chosen = np.flatnonzero((links == link).all(1))
        parts = [order[ends[b] : ends[b + 1]] for b in np.unique(link[link >= 0])]
        old = np.concatenate(parts) if parts else np.zeros(0, int)
        for lo in range(0, len(chosen), TOGETHER):
            yield chosen[lo : lo + TOGETHER], old


def _blocks_of(own: np.ndarray, data: BlockData, new: np.ndarray) -> np.ndarray:
    """The block that holds each new code, −1 where none does."""
    table = np.full(int(own.max()) + 1, -1)
    table[own] = data.block
    known = (new >= 0) & (new < len(table))
    return np.where(known, table[np.where(known, new, 0)], -1)
