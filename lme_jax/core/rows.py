"""Rows → sufficient statistics of any design: the front door of arrays."""

from typing import Any

import numpy as np
import scipy.sparse

from ..errors import DataError
from . import compression
from .checks import group_codes
from .crossed_data import CrossedData, NestedData, compress_crossed
from .moments import GroupData
from .types import is_host


def compress(
    y: Any,
    X: Any,
    Z: Any,
    groups: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    structure: Any = "unstructured",
    n_groups: Any = None,
) -> GroupData | NestedData | CrossedData:
    """Sufficient statistics of a model, for ``fit``, ``deviance`` and all else.

    Parameters
    ----------
    y : (n,); X : (n, p)
        NumPy arrays (float64, equal levels pooled) or JAX arrays (traced or not; their dtype, under jit, vmap and
        grad).
    Z : (n, q); with several grouping factors a list of such, one per factor.
    groups : (n,)
        Group labels; with several factors a list of such, which may not be traced: which levels meet decides the
        shapes. Of one factor, integer codes in [0, n_groups) when traced. In NumPy a factor whose rows belong to
        several levels has None here, and Z a scipy sparse (n, levels · q) matrix, level by level.
    weights, offset : (n,), optional
        Prior weights w > 0 with Var(ε) = σ²/w; a known term subtracted from y.
    structure : str, or tuple of (structure, size)
        Covariance template of the q effects; with several factors a list, one per factor, or one name for all.
    n_groups : int, optional
        Needed only when ``groups`` is traced, or None; with several factors a list.

    Returns
    -------
    GroupData
        Of one factor; with several NestedData where each lies inside the next, else CrossedData. Pytrees of fixed
        shapes.

    Raises
    ------
    DataError
        On NumPy input: lengths that differ, values that are not finite, codes out of range, weights ≤ 0, columns
        of X that are dependent. Traced codes out of range end in a fit whose status is NOT_FINITE.
    """
    if not _has_several(Z, groups):
        return compression.compress(
            y, X, Z, groups, weights=weights, offset=offset, structure=structure, n_groups=n_groups
        )
    Zs, codes = list(Z), list(groups)
    if len(Zs) != len(codes):
        raise DataError(f"Z is a list of {len(Zs)}, groups of {len(codes)}: give one of each per grouping factor")
    templates = _each("structure", structure if isinstance(structure, list) else [structure] * len(Zs), len(Zs))
    levels = _each("n_groups", [None] * len(Zs) if n_groups is None else list(n_groups), len(Zs))
    if not is_host((y, X, [z for z in Zs if not scipy.sparse.issparse(z)], weights, offset)):
        from .traced_several import compress as compress_traced

        return compress_traced(y, X, Zs, codes, levels, templates, weights, offset)
    codes, levels = zip(*(_levels(j, g, m) for j, (g, m) in enumerate(zip(codes, levels, strict=True))), strict=True)
    data = compress_crossed(y, X, Zs, list(codes), list(levels), tuple(templates), weights=weights, offset=offset)
    compression.refuse_dependent(data.WtW)
    return data


def _has_several(Z: Any, groups: Any) -> bool:
    """Whether Z and groups are lists with an entry per factor."""
    listed = isinstance(groups, (list, tuple)) and isinstance(Z, (list, tuple)) and len(groups) > 0
    return listed and (groups[0] is None or np.ndim(groups[0]) > 0)


def _each(name: str, values: list[Any], n: int) -> list[Any]:
    if len(values) != n:
        raise DataError(f"{name} is a list of {len(values)}, but there are {n} grouping factors: give one per factor")
    return values


def _levels(j: int, groups: Any, n_levels: int | None) -> tuple[np.ndarray | None, int]:
    """Codes and number of levels of factor j."""
    if groups is not None:
        return group_codes(groups, n_levels)
    if n_levels is None:
        raise DataError(f"groups of factor {j} is None, for a sparse Z: give its number of levels in n_groups")
    return None, n_levels
