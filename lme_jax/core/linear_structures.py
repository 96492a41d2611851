"""Structures whose root is linear in its parameters, L = Σ θ_a B_a."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from .blocks import AWAY, Block, Quantity, Structure, absolute, deviations, nothing, row_norms
from .correlations import Detail
from .linalg import tril
from .types import Array, namespace

# Eigenvalues of a known matrix that rounding may have made negative, relative to the largest.
TOLERANCE = 1e-10
# Factors of a reduced rank where none are named, as in glmmTMB.
DEFAULT_RANK = 2


def _overall(L: Array) -> Array:
    """Root mean square (*lanes) of the standard deviations."""
    return namespace(L).sqrt((L * L).sum((0, 1)) / len(L))


def _sizes(block: Block, theta: Array) -> Array:
    return abs(theta)


def _first_scale(block: Block, z: Array) -> Array:
    return namespace(z).repeat(z[:1], block.n_theta, axis=0)


# ---------------------------------------------------------------- unstructured, and of reduced rank


def _width(block: Block) -> int:
    """Columns of L that can be other than zero."""
    return min(int(block.detail[0]), block.size) if block.detail else block.size


@functools.lru_cache(maxsize=256)
def trapezoid(q: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the packed lower trapezoid of (q, d), row by row, and where its diagonal stands."""
    rows, columns = tril(q)
    kept = columns < d
    rows, columns = rows[kept], columns[kept]
    return rows, columns, np.flatnonzero(rows == columns).astype(np.int32)


def _entries(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return trapezoid(block.size, _width(block))


def _entry_basis(block: Block) -> np.ndarray:
    rows, columns, _ = _entries(block)
    basis = np.zeros((len(rows), block.size, block.size))
    basis[np.arange(len(rows)), rows, columns] = 1.0
    return basis


def _loading_start(block: Block, sd: Array) -> Array:
    """Effect i on factor i mod d alone."""
    rows, columns, _ = _entries(block)
    own = (rows % _width(block) == columns).reshape(-1, *[1] * (sd.ndim - 1))
    return namespace(sd).where(own, sd[rows], 0.0)


def _entry_opposite(block: Block, theta: Array) -> Array:
    rows, columns, _ = _entries(block)
    on_diagonal = (rows == columns).reshape(-1, *[1] * (theta.ndim - 1))
    xp = namespace(theta)
    return xp.where(on_diagonal, xp.abs(theta) + AWAY, -theta)


def _column_signs(block: Block, theta: Array) -> tuple[Array, Array]:
    _, columns, diagonal = _entries(block)
    sign = namespace(theta).where(theta[diagonal] < 0, -1.0, 1.0)[columns]
    return theta * sign, sign


def _column_sizes(block: Block, theta: Array) -> Array:
    """What each column of L adds to the ones before it: zero where fewer factors would do."""
    xp, columns = namespace(theta), _entries(block)[1]
    known: list[Array] = []
    sizes: list[Array] = []
    for j in range(_width(block)):
        v = xp.concatenate([xp.zeros((j, *theta.shape[1:]), theta.dtype), theta[columns == j]])
        for unit in known:
            v = v - (unit * v).sum(0) * unit
        size = xp.sqrt((v * v).sum(0))
        sizes.append(size)
        known.append(v / xp.maximum(size, np.finfo(theta.dtype).tiny))
    return xp.stack(sizes)


def _entry_labels(block: Block, columns: Sequence[str]) -> list[str]:
    rows, factors, _ = _entries(block)
    return [columns[i] if i == j else f"{columns[i]}.{columns[j]}" for i, j in zip(rows, factors, strict=True)]


def _entry_pairs(block: Block) -> list[tuple[int, int]]:
    rows, columns, _ = _entries(block)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]


def _all_correlations(block: Block, columns: Sequence[str]) -> list[Quantity]:
    q = block.size
    across = [
        Quantity(f"Corr {columns[j]}, {columns[i]}", "correlation", i, j) for j in range(q) for i in range(j + 1, q)
    ]
    return [*deviations(columns), *across]


def _loadings(block: Block, columns: Sequence[str]) -> list[Quantity]:
    rows, factors, _ = _entries(block)
    loads = [
        Quantity(f"Loading {columns[i]}, factor {j + 1}", "root", a)
        for a, (i, j) in enumerate(zip(rows, factors, strict=True))
    ]
    return [*deviations(columns), *loads]


def _entry_patterns(block: Block) -> np.ndarray:
    basis = _entry_basis(block)
    return np.maximum(basis, np.swapaxes(basis, 1, 2))


UNSTRUCTURED = Structure(
    n_theta=lambda block: block.size * (block.size + 1) // 2,
    basis=_entry_basis,
    start=_loading_start,
    near=lambda block, L: L[_entries(block)[:2]],
    opposite=_entry_opposite,
    canonical=_column_signs,
    smallest=lambda block, theta: abs(theta[_entries(block)[2]]),
    scale=lambda block, z: z[_entries(block)[0]],
    names=_entry_labels,
    pairs=_entry_pairs,
    quantities=_all_correlations,
    patterns=_entry_patterns,
    spellings=("us",),
    apart=True,
    free=True,
    leans=True,
    moments=True,
)


def _read_rank(given: Any, size: int) -> Detail:
    rank = DEFAULT_RANK if given is None or given == () else given[0] if isinstance(given, tuple) else given
    if isinstance(rank, bool) or not isinstance(rank, int | float | np.number) or int(rank) != rank or rank < 1:
        raise DataError(f"a reduced rank is a whole number from 1 up; got d={rank!r}")
    if rank > size:
        asked = "the default d = 2" if given is None or given == () else f"d = {int(rank)}"
        raise DataError(
            f"a covariance of {size} effects cannot have rank {int(rank)} ({asked}): choose d up to {size}, "
            "which is unstructured"
        )
    return (int(rank),)


REDUCED_RANK = UNSTRUCTURED._replace(
    n_theta=lambda block: len(_entries(block)[0]),
    smallest=_column_sizes,
    quantities=_loadings,
    patterns=nothing,
    read_detail=_read_rank,
    needs="rank",
    spellings=("rr",),
    free=False,
)


# ---------------------------------------------------------------- diagonal, identity, compound symmetry, known


DIAGONAL = Structure(
    n_theta=lambda block: block.size,
    basis=lambda block: np.eye(block.size)[:, :, None] * np.eye(block.size)[:, None, :],
    start=lambda block, sd: sd,
    near=lambda block, L: row_norms(L),
    canonical=absolute,
    smallest=_sizes,
    scale=lambda block, z: z,
    names=lambda block, columns: list(columns),
    pairs=lambda block: [(i, i) for i in range(block.size)],
    quantities=lambda block, columns: deviations(columns),
    patterns=lambda block: np.eye(block.size)[:, :, None] * np.eye(block.size)[:, None, :],
    spellings=("diag",),
    partner="identity",
    apart=True,
    uncorrelated=True,
)

IDENTITY = Structure(
    n_theta=lambda block: 1,
    basis=lambda block: np.eye(block.size)[None],
    start=lambda block, sd: sd.mean(0)[None],
    near=lambda block, L: _overall(L)[None],
    canonical=absolute,
    smallest=_sizes,
    scale=_first_scale,
    names=lambda block, columns: ["sd"],
    pairs=lambda block: [(0, 0)],
    quantities=lambda block, columns: [Quantity("SD", "sd", 0)],
    patterns=lambda block: np.eye(block.size)[None],
    spellings=("homdiag", "ident"),
    partner="diagonal",
    homogeneous=True,
    uncorrelated=True,
)


def _mean_basis(block: Block) -> np.ndarray:
    """L = a·J/q + b·(I − J/q): (a, b) are the signed roots of the two eigenvalues."""
    q = block.size
    mean = np.full((q, q), 1.0 / q)
    return np.stack([mean, np.eye(q) - mean][: min(q, 2)])


def _mean_near(block: Block, L: Array) -> Array:
    q, xp = block.size, namespace(L)
    if q == 1:
        return _overall(L)[None]
    common = (L.sum(0) ** 2).sum(0) / q
    return xp.sqrt(xp.stack([common, xp.maximum((L * L).sum((0, 1)) - common, 0.0) / (q - 1)]))


def _one_correlation(block: Block, columns: Sequence[str]) -> list[Quantity]:
    return [Quantity("SD", "sd", 0), *([Quantity("ρ", "correlation", 1, 0)] if block.size > 1 else [])]


HOMOGENEOUS_CS = Structure(
    n_theta=lambda block: min(block.size, 2),
    basis=_mean_basis,
    start=lambda block, sd: namespace(sd).broadcast_to(sd.mean(0), (block.n_theta, *sd.shape[1:])),
    near=_mean_near,
    canonical=absolute,
    smallest=_sizes,
    scale=_first_scale,
    names=lambda block, columns: ["root_mean", "root_contrast"][: block.n_theta],
    pairs=lambda block: [(0, 0), (1, 0)][: block.n_theta],
    quantities=_one_correlation,
    spellings=("homcs",),
    partner="het_compound_symmetry",
    homogeneous=True,
)


@functools.lru_cache(maxsize=64)
def _known_root(detail: Detail) -> tuple[np.ndarray, float, np.ndarray]:
    """A square root of M, the root mean square of its standard deviations, and M⁺."""
    M = np.array(detail, float)
    values, axes = np.linalg.eigh(M)
    kept = values > TOLERANCE * values[-1]
    if kept.all():
        return np.linalg.cholesky(M), float(np.sqrt(np.diag(M).mean())), np.linalg.inv(M)
    root = axes * np.sqrt(np.where(kept, values, 0.0))
    return root, float(np.sqrt(np.diag(M).mean())), np.linalg.pinv(M, hermitian=True)


def _known_near(block: Block, L: Array) -> Array:
    _, _, inverse = _known_root(block.detail)
    rank = np.linalg.matrix_rank(inverse, hermitian=True)
    xp = namespace(L)
    return xp.sqrt(xp.einsum("ij,jk...,ik...->...", xp.asarray(inverse, L.dtype), L, L) / rank)[None]


def _read_matrix(given: Any, size: int) -> Detail:
    try:
        M = np.array([[float(x) for x in row] for row in np.asarray(given).tolist()])
    except (TypeError, ValueError) as error:
        raise DataError("a fixed covariance needs its matrix M (q, q) of numbers beside the name") from error
    if M.shape != (size, size):
        raise DataError(f"the fixed covariance matrix has shape {M.shape}; the term has {size} effects")
    if not np.isfinite(M).all():
        raise DataError("the fixed covariance matrix holds missing or infinite values")
    if np.abs(M - M.T).max() > 1e-8 * np.abs(M).max():
        raise DataError(f"the fixed covariance matrix is not symmetric: off by {np.abs(M - M.T).max():.3g}")
    M = 0.5 * (M + M.T)
    values = np.linalg.eigvalsh(M)
    if values[-1] <= 0.0 or values[0] < -TOLERANCE * values[-1]:
        raise DataError(f"the fixed covariance matrix is no covariance: its eigenvalues reach {values[0]:.3g}")
    return tuple(map(tuple, M.tolist()))


FIXED = IDENTITY._replace(
    basis=lambda block: _known_root(block.detail)[0][None],
    start=lambda block, sd: sd.mean(0)[None] / _known_root(block.detail)[1],
    near=_known_near,
    smallest=lambda block, theta: abs(theta) * _known_root(block.detail)[1],
    names=lambda block, columns: ["scale"],
    pairs=lambda block: [(int(np.argmax(np.diag(np.array(block.detail)))),) * 2],
    quantities=lambda block, columns: [Quantity("Scale of M", "root", 0)],
    patterns=nothing,
    read_detail=_read_matrix,
    needs="matrix",
    spellings=("fixed", "propto"),
    partner=None,
    uncorrelated=False,
)
