"""Sufficient statistics of one grouping factor for fits: the front door, and levels pooled (MATH §2).

Of the additive moments (``moments``) the levels that share ZᵀZ are replaced by a few, so that the cost of a fit
does not grow with the number of levels. Padding and bucketing live here.
"""

from typing import Any

import numpy as np

from ..errors import DataError
from . import linalg
from .checks import check_rows, group_codes, real_array
from .covariance import Template, make_template
from .levels import transposed_times
from .moments import (
    Basis,
    GroupData,
    GroupMoments,
    Pilots,
    Within,
    add_by_code,
    group_moments,
    merge,
    moments_and_within,
    rows_with_residual,
    within_levels,
)
from .structures import StructureLike, entry
from .types import is_host

__all__ = [
    "Basis",
    "GroupData",
    "GroupMoments",
    "bucket",
    "compress",
    "dependent_columns",
    "distinct_levels",
    "enough_rows",
    "group_moments",
    "make_template",
    "merge",
    "pool",
]

PATTERN_SAMPLE = 2_048

# ---------------------------------------------------------------- patterns


def bucket(size: int) -> int:
    """The padded length for ``size`` entries: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, … (≤ 25 % more)."""
    if size <= 8:
        return max(size, 1)
    step = 1 << (size.bit_length() - 3)
    return -(-size // step) * step


def _pad_last(array: np.ndarray, length: int) -> np.ndarray:
    if length == array.shape[-1]:
        return array
    out = np.zeros((*array.shape[:-1], length))
    out[..., : array.shape[-1]] = array
    return out


def pool(moments: GroupMoments, within: Within | None = None) -> GroupData:
    """Replace the levels that share ZᵀZ exactly by few that give the same likelihood (NumPy).

    Of m such levels only m·log|I + LᵀGL| and Σ C⊗C count. The second is q(p+1) × q(p+1): as many entries as
    its rank, the scaled eigenvectors, replace the levels where m is larger. Entries and levels are padded to
    bucketed lengths with empty ones, which change nothing.

    The number of rows is NaN, and with it the deviance, where the fixed effects leave nothing of y.
    ``within`` : ``within_levels`` of the moments, where it is known.

    Raises
    ------
    DataError
        For columns of X that others determine.
    """
    refuse_dependent(moments.WtW)
    n_rows = rows_with_residual(moments.n_rows, moments.WtW, moments.basis)
    n_groups = moments.ZtZ.shape[-1]
    padded = bucket(n_groups)
    levels = GroupMoments(
        _pad_last(moments.ZtZ, padded),
        _pad_last(moments.ZtW, padded),
        moments.WtW,
        n_rows,
        moments.log_weights,
        moments.basis,
        moments.template,
        _pad_pilots(moments.pilots, padded),
    )
    R, c, rest = within_levels(moments) if within is None else within
    first, pattern = distinct_levels(moments.ZtZ)
    size = np.bincount(pattern)
    q, w, _ = moments.ZtW.shape
    many = size > q * w
    if not many.any():
        count = _pad_last(np.ones(n_groups), padded)
        return GroupData(levels.ZtZ, count, levels.ZtW, _pad_last(R, padded), _pad_last(c, padded), rest, levels)
    alone = np.flatnonzero(~many[pattern])
    rows = np.flatnonzero(many[pattern])
    which = np.cumsum(many)[pattern[rows]] - 1
    find_roots = _roots if moments.pilots is None else _roots_one_by_one
    roots, owner = find_roots(c.reshape(q * w, -1)[:, rows], which, int(many.sum()))
    start = np.diff(owner, prepend=-1) > 0
    count = np.concatenate([np.ones(len(alone)), np.where(start, size[many][owner], 0.0)])
    chosen = np.concatenate([alone, first[many][owner]])
    c = np.concatenate([c[:, :, alone], roots.T.reshape(q, w, -1)], axis=2)
    return _pooled(levels, chosen, R[:, chosen], c, count, rest)


def _pooled(
    moments: GroupMoments, chosen: np.ndarray, R: np.ndarray, c: np.ndarray, count: np.ndarray, rest: np.ndarray
) -> GroupData:
    """Entries with the ZᵀZ of the levels ``chosen``."""
    G, C = moments.ZtZ[:, :, chosen], np.stack(transposed_times(R, c))
    G, count, C, R, c = (_pad_last(a, bucket(len(chosen))) for a in (G, count, C, R, c))
    return GroupData(G, count, C, R, c, rest, moments)


def _pad_pilots(pilots: Pilots | None, length: int) -> Pilots | None:
    return pilots and Pilots(_pad_last(pilots.B, length), _pad_last(pilots.ZtE, length), pilots.EtE)


def refuse_dependent(WtW: np.ndarray) -> None:
    """DataError of columns of X that others determine, from [X y]ᵀ[X y] (p+1, p+1) in a conditioned basis."""
    lost = dependent_columns(WtW[:-1, :-1])
    if len(lost):
        raise DataError(
            f"columns {lost.tolist()} of X (from 0) are combinations of the earlier ones, so their effects cannot be "
            "told apart: leave them out"
        )


def dependent_columns(XtX: np.ndarray) -> np.ndarray:
    """Positions of the columns that the earlier ones determine, from XᵀX (p, p) in a conditioned basis."""
    own, rest, lost = np.diag(XtX).copy(), np.array(XtX, float), []
    floor = np.maximum(1e-13 * own, 1e-24 * own.sum())
    for j in range(len(own)):
        if not rest[j, j] > floor[j]:
            lost.append(j)
            continue
        rest = rest - np.outer(rest[:, j], rest[j]) / rest[j, j]
    return np.array(lost, int)


def enough_rows(n_rows: np.ndarray, n_levels: np.ndarray, n_fixed: int, template: Template) -> np.ndarray:
    """Whether rows and occupied levels, per lane, can identify the model: lme4's conditions, as single fits have them.

    More rows than fixed effects, than levels, and than effects of every block of free covariances; two levels or more.
    """
    needed = np.maximum(n_levels, n_fixed)
    for block in template:
        if entry(block).free:
            needed = np.maximum(needed, n_levels * block.size)
    return (n_rows > needed) & (n_levels >= 2)


def distinct_levels(ZtZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A level of each distinct ZᵀZ (q, q, G), and the number of its pattern for every level."""
    n_groups = ZtZ.shape[-1]
    packed = ZtZ[linalg.tril(len(ZtZ))]
    # Hash columns by one random projection; equal ones meet, and a collision of unequal ones is checked away.
    key = np.random.default_rng(0).uniform(1.0, 2.0, len(packed)) @ packed
    sample = key[: min(n_groups, PATTERN_SAMPLE)]
    if n_groups > PATTERN_SAMPLE and len(np.unique(sample)) > 0.9 * len(sample):
        # Hardly a level shares its ZᵀZ with another: sorting all of them would cost more than it saves.
        return np.arange(n_groups), np.arange(n_groups)
    _, first, pattern = np.unique(key, return_index=True, return_inverse=True)
    if not np.array_equal(packed[:, first[pattern.reshape(-1)]], packed):
        _, first, pattern = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    return first, pattern.reshape(-1)


def _roots(vectors: np.ndarray, owner: np.ndarray, n_owners: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows r with Σ r rᵀ = Σ v vᵀ over the columns v of each owner; whose they are: at least one each, in order."""
    width = len(vectors)
    i, j = linalg.tril(width)
    sums = np.zeros((len(i), n_owners))
    add_by_code(sums, owner, (vectors[a] * vectors[b] for a, b in zip(i, j, strict=True)))
    gram = np.empty((n_owners, width, width))
    gram[:, i, j] = gram[:, j, i] = sums.T
    values, axes = np.linalg.eigh(gram)
    kept = values > width * np.finfo(float).eps * values[:, -1:]
    kept[:, -1] = True
    own, which = np.nonzero(kept)
    return np.sqrt(np.maximum(values[own, which], 0.0))[:, None] * axes[own, :, which], own


def _roots_one_by_one(vectors: np.ndarray, owner: np.ndarray, n_owners: int) -> tuple[np.ndarray, np.ndarray]:
    """``_roots`` without squares, whose rounding the small vectors beside far larger ones would not survive."""
    found = [np.linalg.qr(vectors[:, owner == own].T, mode="r") for own in range(n_owners)]
    return np.concatenate(found), np.repeat(np.arange(n_owners), [len(r) for r in found])


# ---------------------------------------------------------------- front door


def compress(
    y: Any,
    X: Any,
    Z: Any,
    groups: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    structure: StructureLike = "unstructured",
    n_groups: int | None = None,
) -> GroupData:
    """Sufficient statistics of a one-factor model, for ``fit`` and ``deviance``.

    Parameters
    ----------
    y : (n,); X : (n, p); Z : (n, q)
        NumPy arrays (float64, patterns pooled) or JAX arrays (traced or not; their dtype, under jit,
        vmap and grad).
    groups : (n,)
        Group labels; integer codes in [0, n_groups) when traced.
    weights, offset : (n,), optional
        Prior weights w > 0 with Var(ε) = σ²/w; a known term subtracted from y.
    structure : str, (str, what it needs), or tuple of (structure, size[, what it needs])
        Covariance of the q effects: one structure, or a template of blocks.
    n_groups : int, optional
        Needed only when ``groups`` is traced.

    Returns
    -------
    GroupData
        A pytree of fixed shapes, O(G(q² + qp)) numbers.

    Raises
    ------
    DataError
        On NumPy input: lengths that differ, values that are not finite, codes out of range, weights ≤ 0, columns
        of X that are dependent. Traced codes out of range end in a fit whose status is NOT_FINITE.
    """
    if not is_host((y, X, Z, weights, offset, groups)):
        from .traced import compress as _compress_traced

        template = make_template(structure, _n_columns("Z", Z))
        return _compress_traced(y, X, Z, groups, weights, offset, template, n_groups)
    y, X, Z = real_array("y", y, 1), real_array("X", X, 2), real_array("Z", Z, 2)
    weights, offset = (None if a is None else real_array(name, a, 1) for name, a in _prior(weights, offset))
    template = make_template(structure, Z.shape[1])
    codes, n_groups = group_codes(groups, n_groups)
    check_rows(y=y, X=X, Z=Z, groups=codes, weights=weights, offset=offset)
    y = y if offset is None else y - offset
    return pool(*moments_and_within(y, X, Z, codes, n_groups, template, weights, None))


def _prior(weights: Any, offset: Any) -> tuple[tuple[str, Any], ...]:
    return ("weights", weights), ("offset", offset)


def _n_columns(name: str, values: Any) -> int:
    if np.ndim(values) != 2:
        raise DataError(f"{name} has shape {np.shape(values)}; give (n, columns), one row per observation")
    return int(np.shape(values)[1])
