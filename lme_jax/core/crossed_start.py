"""Where a search over several factors starts: variances of the effects from moments of the response.

With z_a the column of an effect a over all its levels, Z_a, and r the pilot residuals, E‖Z_aᵀr‖² is linear in the
variances of all the effects taken for uncorrelated (Henderson 1953, method 1, by effects):
    E‖Z_aᵀr‖² = Σ_b τ_b²‖Z_aᵀZ_b‖² + σ² tr(Z_aᵀZ_a),    E rᵀr = Σ_b τ_b² tr(Z_bᵀZ_b) + σ²n.
"""

from typing import Any

import numpy as np

from . import covariance, linalg
from .crossed_data import CrossedData, Layout, NestedData
from .types import Array, namespace

# Variances of an effect's part of y, relative to σ²: not at zero, where the deviance is stationary whatever the
# data; not where it is flat.
SMALLEST, LARGEST = 0.01, 1e4
RIDGE = 1e-6


def moment_start(data: CrossedData | NestedData) -> Array:
    """θ (k,) in the user's units from moments, effects uncorrelated; NumPy for NumPy, so that nothing is compiled."""
    xp = namespace(data.WtW, data.C[0] if isinstance(data, NestedData) else data.base)
    squares, traces, rhs = _nested(data, xp) if isinstance(data, NestedData) else _crossed(data, xp)
    rss, n = data.WtW[-1, -1], data.n_rows
    A = xp.concatenate([xp.column_stack([squares, traces]), xp.append(traces, n)[None]])
    diagonal = xp.diagonal(A)
    unit = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    found = _solve(A / xp.outer(unit, unit) + RIDGE * xp.eye(len(unit)), xp.append(rhs, rss) / unit) / unit
    sigma2 = xp.maximum(found[-1], 0.1 * rss / n)
    ratio = found[:-1] / xp.where(sigma2 > 0, sigma2, 1.0)
    # Bounds on the share of an average row, so that the unit of the weights does not matter.
    share = xp.where(traces > 0, traces, n) / n
    ratio = xp.clip(xp.where(xp.isfinite(ratio), ratio * share, 1.0), SMALLEST, LARGEST) / share
    return covariance.start(data.template, xp.sqrt(ratio) / data.basis.z_scale)


def _solve(A: Array, b: Array) -> Array:
    """A⁻¹b (s,) for positive-definite A (s, s)."""
    if isinstance(A, np.ndarray):
        return np.linalg.solve(A, b)
    K = linalg.cholesky(A)
    return linalg.solve_upper(K, linalg.solve_lower(K, b[:, None]))[:, 0]


def _nested(data: NestedData, xp: Any) -> tuple[Array, Array, Array]:
    layout, size = data.layout, sum(data.layout.sizes)
    squares = [[0.0] * size for _ in range(size)]
    traces, rhs = [0.0] * size, [0.0] * size
    for at, j in enumerate(layout.order):
        # The columns that factor j's meet stand in this order: its own, then those of the factors around it.
        met = [effect for f in layout.order[at:] for effect in _effects(layout, f)]
        products = xp.concatenate([data.G[at], data.C[at]], axis=1)
        for a, effect in enumerate(_effects(layout, j)):
            for b, other in enumerate(met):
                squares[effect][other] = squares[other][effect] = (products[a, b] ** 2).sum()
            traces[effect] = products[a, a].sum()
            rhs[effect] = (products[a, -1] ** 2).sum()
    return xp.array(squares), xp.array(traces), xp.array(rhs)


def _crossed(data: CrossedData, xp: Any) -> tuple[Array, Array, Array]:
    layout, size = data.layout, sum(data.layout.sizes)
    # The effect that each column of the dense system belongs to.
    kind = xp.asarray(np.concatenate([np.tile(_effects(layout, j), layout.levels[j]) for j, _ in layout.dense_slices]))
    on_diagonal = data.pair_row == data.pair_column
    both = kind[data.pair_row] * size + kind[data.pair_column]
    listed = _sums(xp, (1.0 - 0.5 * on_diagonal) * data.base**2, both, size**2).reshape(size, size)
    squares = listed + listed.T
    traces = _sums(xp, on_diagonal * data.base, kind[data.pair_row], size)
    rhs = _sums(xp, data.Z2W[:, -1] ** 2, kind, size)
    own = np.eye(size)[list(_effects(layout, layout.order[0]))]
    squares = squares + own.T @ (data.count * data.G**2).sum(-1) @ own
    for a, unit in enumerate(own):
        met = unit[:, None] * _sums(xp, data.entry_value[a] ** 2, kind[data.entry_column], size)
        squares = squares + met + met.T
        traces = traces + unit * (data.count * data.G[a, a]).sum()
        rhs = rhs + unit * (data.Z1W[a, -1] ** 2).sum()
    return squares, traces, rhs


def _effects(layout: Layout, j: int) -> range:
    columns = layout.columns(j)
    return range(columns.start, columns.stop)


def _sums(xp: Any, values: Array, kinds: Array, size: int) -> Array:
    """Sum of the values of each kind (size,)."""
    if xp is np:
        return np.bincount(kinds, values, size)
    return xp.zeros(size, values.dtype).at[kinds].add(values)
