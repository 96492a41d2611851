"""Where a search over several factors starts: variances of the effects from moments of the response.

With z_a the columns of an effect a over all its levels, M = I − XX⁺ and r = My, E‖Z_aᵀr‖² is linear in the variances
of all the effects taken for uncorrelated (Henderson 1953, method 1, by effects):
    E‖Z_aᵀr‖² = Σ_b τ_b²‖Z_aᵀMZ_b‖² + σ² tr(Z_aᵀMZ_a),    E rᵀr = Σ_b τ_b² tr(Z_bᵀMZ_b) + σ²(n − p),
and with C_a = Z_aᵀX(XᵀX)^(−½), ‖Z_aᵀMZ_b‖² = ‖Z_aᵀZ_b‖² − 2 tr(C_aᵀZ_aᵀZ_bC_b) + tr(C_aᵀC_aC_bᵀC_b).
"""

from typing import Any, NamedTuple

import numpy as np

from . import covariance, linalg
from .covariance import Template
from .crossed_data import CrossedData, Layout, NestedData
from .types import Array, namespace

# Variances of an effect's part of y, relative to σ²: not at zero, where the deviance is stationary whatever the
# data; not where it is flat.
SMALLEST, LARGEST = 0.01, 1e4
# The least share of r's variance that σ² is taken for.
NOISE = 0.01
RIDGE = 1e-6
PAIRS_AT_ONCE = 1 << 18


class Moments(NamedTuple):
    """Sums over the levels, by effects.

    Attributes
    ----------
    squares : (s, s) ‖Z_aᵀZ_b‖²; across : (s, s) tr(C_aᵀZ_aᵀZ_bC_b); traces : (s,) tr Z_aᵀZ_a.
    gram : (s, p, p) C_aᵀC_a; rhs : (s,) ‖Z_aᵀr‖².
    """

    squares: Array
    across: Array
    traces: Array
    gram: Array
    rhs: Array


def moment_start(data: CrossedData | NestedData) -> Array:
    """θ (k,) in the user's units from moments, effects uncorrelated; NumPy for NumPy, so that nothing is compiled."""
    xp = namespace(data.WtW, data.C[0] if isinstance(data, NestedData) else data.base)
    p, root = data.n_fixed, linalg.cholesky(data.WtW)
    sums = _nested(data, root, xp) if isinstance(data, NestedData) else _crossed(data, root, xp)
    return theta_from(sums, root[p, p] ** 2, data.n_rows, p, data.template, data.basis.z_scale)


def theta_from(sums: Moments, rss: Array, n: Any, p: int, template: Template, z_scale: Array) -> Array:
    """θ (k, *lanes) in the user's units, for ``sums.rhs`` (s, *lanes), ``rss`` (*lanes) and z_scale (s, *ones)."""
    xp = namespace(sums.squares, sums.rhs, rss)
    flat, dof = sums.gram.reshape(len(sums.traces), -1), n - p
    squares = sums.squares - 2.0 * sums.across + flat @ flat.T
    traces = sums.traces - xp.einsum("acc->a", sums.gram)
    A = xp.concatenate([xp.concatenate([squares, traces[:, None]], 1), xp.append(traces, dof)[None]])
    diagonal = xp.diagonal(A)
    unit = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    right = xp.concatenate([sums.rhs, rss[None]])
    each = (len(unit), *[1] * (right.ndim - 1))
    scaled = A / xp.outer(unit, unit) + RIDGE * xp.eye(len(unit))
    unit = unit.reshape(each)
    found = _solve(scaled, right / unit) / unit
    sigma2 = xp.maximum(found[-1], NOISE * rss / dof)
    ratio = found[:-1] / xp.where(sigma2 > 0, sigma2, 1.0)
    # Bounds on the share of an average row, so that the unit of the weights does not matter.
    share = xp.where(sums.traces > 0, sums.traces, n) / n
    share = share.reshape(len(share), *each[1:])
    ratio = xp.clip(xp.where(xp.isfinite(ratio), ratio * share, 1.0), SMALLEST, LARGEST) / share
    return covariance.start(template, xp.sqrt(ratio) / z_scale)


def _solve(A: Array, b: Array) -> Array:
    """A⁻¹b (s, *lanes) for positive-definite A (s, s)."""
    K = linalg.cholesky(A)
    return linalg.solve_upper(K, linalg.solve_lower(K, b.reshape(len(b), -1))).reshape(b.shape)


def _whitened(ZtW: Array, root: Array) -> tuple[Array, Array]:
    """C (q, p, m) and Zᵀr (q, m) from ZᵀW (q, p+1, m) and the Cholesky factor of WᵀW."""
    rows = linalg.inverse_lower(root) @ ZtW
    return rows[:, :-1], rows[:, -1] * root[-1, -1]


def _nested(data: NestedData, root: Array, xp: Any) -> Moments:
    layout, size, p = data.layout, sum(data.layout.sizes), data.n_fixed
    squares = [[0.0] * size for _ in range(size)]
    across = [[0.0] * size for _ in range(size)]
    traces, rhs, gram = [0.0] * size, [0.0] * size, [xp.zeros((p, p))] * size
    cs: dict[int, Array] = {}
    for at in range(len(layout.order) - 1, -1, -1):
        j, inner = layout.order[at], data.G[at]
        width = data.C[at].shape[1] - p - 1
        C, Ztr = _whitened(data.C[at][:, width:], root)
        ancestor, blocks = None, [(j, C)]
        for up in range(at + 1, len(layout.order)):
            ancestor = data.parent[at] if ancestor is None else data.parent[up - 1][ancestor]
            blocks.append((layout.order[up], cs[layout.order[up]][:, :, ancestor]))
        cs[j] = C
        products = xp.concatenate([inner, data.C[at][:, :width]], axis=1)
        # The columns that factor j's meet stand in this order: its own, then those of the factors around it.
        met = [(effect, c) for f, block in blocks for effect, c in zip(_effects(layout, f), block, strict=True)]
        for a, effect in enumerate(_effects(layout, j)):
            for b, (other, c) in enumerate(met):
                squares[effect][other] = squares[other][effect] = (products[a, b] ** 2).sum()
                both = (products[a, b] * (C[a] * c).sum(0)).sum()
                across[effect][other] = across[other][effect] = both
            traces[effect] = products[a, a].sum()
            gram[effect] = C[a] @ C[a].T
            rhs[effect] = (Ztr[a] ** 2).sum()
    return Moments(xp.array(squares), xp.array(across), xp.array(traces), xp.stack(gram), xp.array(rhs))


def _crossed(data: CrossedData, root: Array, xp: Any) -> Moments:
    layout, size, p = data.layout, sum(data.layout.sizes), data.n_fixed
    # The effect that each column of the dense system belongs to.
    kind = np.concatenate([np.tile(_effects(layout, j), layout.levels[j]) for j, _ in layout.dense_slices])
    C2, Zr2 = _whitened(data.Z2W.T[None], root)
    C1, Zr1 = _whitened(data.Z1W, root)
    squares, across, traces = _pair_sums(data, kind, C2[0], xp)
    gram = xp.stack([xp.where(kind == e, C2[0], 0.0) @ C2[0].T for e in range(size)])
    rhs = _sums(xp, Zr2[0] ** 2, kind, size)
    own = np.eye(size)[list(_effects(layout, layout.order[0]))]
    squares = squares + own.T @ (data.count * data.G**2).sum(-1) @ own
    G = data.G[:, :, data.pattern]
    within = xp.stack([xp.stack([(g * (a * b).sum(0)).sum() for g, b in zip(row, C1, strict=True)])
                       for row, a in zip(G, C1, strict=True)])  # fmt: skip
    across = across + own.T @ within @ own
    column_kind = xp.asarray(kind)[data.entry_column]
    for a, unit in enumerate(own):
        values = data.entry_value[a]
        met = unit[:, None] * _sums(xp, values**2, column_kind, size)
        squares = squares + met + met.T
        at_once = sum(c1[data.entry_level] * c2[data.entry_column] for c1, c2 in zip(C1[a], C2[0], strict=True))
        met = unit[:, None] * _sums(xp, values * at_once if p else 0.0 * values, column_kind, size)
        across = across + met + met.T
        traces = traces + unit * (data.count * data.G[a, a]).sum()
        gram = gram + unit[:, None, None] * (C1[a] @ C1[a].T)
        rhs = rhs + unit * (Zr1[a] ** 2).sum()
    return Moments(squares, across, traces, gram, rhs)


def _pair_sums(data: CrossedData, kind: np.ndarray, C: Array, xp: Any) -> tuple[Array, Array, Array]:
    """``squares``, ``across`` and ``traces`` of the dense system's columns, from the listed pairs, some at a time."""
    size = sum(data.layout.sizes)
    squares, across, traces = xp.zeros(size**2), xp.zeros(size**2), xp.zeros(size)
    kind = xp.asarray(kind)
    for lo in range(0, data.base.shape[0], PAIRS_AT_ONCE):
        some = slice(lo, lo + PAIRS_AT_ONCE)
        row, column, base = data.pair_row[some], data.pair_column[some], data.base[some]
        on_diagonal = row == column
        once = (1.0 - 0.5 * on_diagonal) * base
        both = kind[row] * size + kind[column]
        squares = squares + _sums(xp, once * base, both, size**2)
        if len(C):
            across = across + _sums(xp, once * sum(c[row] * c[column] for c in C), both, size**2)
        traces = traces + _sums(xp, on_diagonal * base, kind[row], size)
    squares, across = squares.reshape(size, size), across.reshape(size, size)
    return squares + squares.T, across + across.T, traces


def _effects(layout: Layout, j: int) -> range:
    columns = layout.columns(j)
    return range(columns.start, columns.stop)


def _sums(xp: Any, values: Array, kinds: Array, size: int) -> Array:
    """Sum of the values of each kind (size,)."""
    if xp is np:
        return np.bincount(kinds, values, size)
    return xp.zeros(size, values.dtype).at[kinds].add(values)
