"""Rows → additive moments of one grouping factor (MATH §2); chunks of data are merged by summation.

All sums are formed in a conditioned basis: [X y]·map is near-orthonormal beside the pilot residual, Z is scaled by
powers of two, and the exact maps back are kept in ``Basis``.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..errors import DataError
from . import levels, linalg
from .checks import check_codes
from .covariance import Template, column_groups
from .types import Array, namespace, pytree, static

PILOT_ROWS = 8_192
CHUNK_ROWS = 65_536
# A response explained to this accuracy by the fixed effects has no residual to model.
NO_RESIDUAL = 1e-12
# A column of X is a combination of others where less than this of it is left beside them: rounding.
DEPENDENT = 1e-12
# Sums of squares of y between levels, relative to those within, from which a difference of them lacks digits.
BETWEEN = 1e4
# What a sum of squares between levels counts for where there is none within.
PILOT_BETWEEN = 1e-6
# The least pivot, relative to its column, that a pilot goes by: the coefficients behind a smaller one are noise.
PILOT_PIVOT = 1e-10

# R (kq, G), c (q, p+1, G) and rest (p+1, p+1); see ``within_levels``.
Within = tuple[Array, Array, Array]
# What a difference of sums of squares leaves, relative to them, where nothing is left: rounding.
NOTHING_LEFT = 1e-13

# Per chunk, where each of its levels stands among those of all chunks.
Positions: TypeAlias = Sequence[np.ndarray]


@pytree
class Basis:
    """The exact linear maps between the user's columns and the conditioned ones.

    Attributes
    ----------
    map : (p+1, p+1) upper triangular; conditioned [X y] = [X y] @ map, with map[p, p] > 0.
    log_det_x : () log |det map[:p, :p]|.
    z_scale : (q,) powers of two; conditioned Z = Z / z_scale.
    """

    map: Array
    log_det_x: Array
    z_scale: Array


@pytree
class Pilots:
    """Additive sums of E = W − Z·B, B the coefficients of a pilot of every level: any B is exact.

    Attributes
    ----------
    B : (q, p+1, G); ZtE : (q, p+1, G); EtE : (p+1, p+1).
    """

    B: Array
    ZtE: Array
    EtE: Array


@pytree
class GroupMoments:
    """Additive cross-products per level, in a conditioned basis; the last axis runs over levels.

    Attributes
    ----------
    ZtZ : (q, q, G); ZtW : (q, p+1, G); WtW : (p+1, p+1), where W = [X y] conditioned.
    n_rows : () number of rows; log_weights : () Σ log w.
    pilots : sums of what pilots of the levels leave, where W varies far more between levels than within; else None.
    """

    ZtZ: Array
    ZtW: Array
    WtW: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()
    pilots: Pilots | None = None

    @property
    def column_squares(self) -> Array:
        """(q,) sums of squares of the conditioned columns of Z."""
        return np.einsum("aag->a", self.ZtZ)


@pytree
class GroupData:
    """What a fit needs: the levels, those with equal ZᵀZ pooled, and the moments they came from.

    Values come from R, c and rest (see ``levels``); JAX differentiates G, C and the moments, which are smooth where
    a level does not tell all its effects too.

    Attributes
    ----------
    G : (q, q, P) ZᵀZ; count : (P,) levels whose log-determinant an entry stands for.
    C : (q, p+1, P) ZᵀW, of a level or, where levels are pooled, a root of Σ C⊗C over them.
    R : (kq, P) packed lower-triangular roots of G = RᵀR; c : (q, p+1, P) R⁻ᵀC; rest : (p+1, p+1) WᵀW − Σ cᵀc.
    """

    G: Array
    count: Array
    C: Array
    R: Array
    c: Array
    rest: Array
    moments: GroupMoments

    @property
    def template(self) -> Template:
        return self.moments.template

    @property
    def n_fixed(self) -> int:
        return self.moments.WtW.shape[0] - 1


# ---------------------------------------------------------------- basis


def power_of_two_scale(squares: Any, n: Any, template: Template, log_weights: Any = 0.0) -> np.ndarray:
    """Powers of two (q, *sets) near the root mean square of Z's columns, shared where a block needs it.

    ``squares`` : (q, *sets) sums of squares of n rows. ``log_weights`` : Σ log w, so that neither the unit of the
    weights nor that of Z matters to a conditioned θ.
    """
    labels = column_groups(template)
    squares = squares * np.exp(np.asarray(log_weights) / np.maximum(n, 1))
    mean = np.array([squares[labels == label].mean(axis=0) for label in labels]) / np.maximum(n, 1)
    return np.where(mean > 0, 2.0 ** np.round(0.5 * np.log2(np.where(mean > 0, mean, 1.0))), 1.0)


def _scaled_qr(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each column's largest size s, and Q R = X / s."""
    scale = np.array([np.abs(column).max(initial=0.0) for column in X.T])
    scale[scale == 0] = 1.0
    return scale, *np.linalg.qr(X / scale)


def _dependent(R: np.ndarray) -> np.ndarray:
    """(p,) whether each column of X = QR is a combination of the earlier ones, up to rounding."""
    size = np.sqrt((R**2).sum(axis=0))
    return np.abs(np.diag(R)) <= DEPENDENT * size


def _full_rank(R: np.ndarray, dependent: np.ndarray) -> np.ndarray:
    """R (p, p) with a pivot of the column's own size wherever a column is ``dependent`` (p,) on the earlier ones."""
    size = np.sqrt((R**2).sum(axis=0))
    pivot = np.where(dependent, np.where(size > 0, size, 1.0), np.diag(R))
    return np.triu(R, 1) + np.diag(pivot)


def _pilot_map(scale: np.ndarray, Q: np.ndarray, R: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Upper-triangular (p+1, p+1) map that makes the pilot rows' X orthonormal and y a residual."""
    p, n = R.shape[1], max(len(y), 1)
    if len(R) < p:
        Q, R = np.pad(Q, [(0, 0), (0, p - Q.shape[1])]), np.pad(R, [(0, p - len(R)), (0, 0)])
    dependent = _dependent(R)
    if dependent.any():
        # The map exists all the same; what such a column leaves is rounding, and stays that small.
        Q, R = np.where(dependent, 0.0, Q), _full_rank(R, dependent)
    upper = linalg.inverse_lower(np.ascontiguousarray(R.T)).T
    inverse = upper * np.sqrt(n)
    coefficients = Q.T @ y
    residual = y - Q @ coefficients
    residual -= Q @ (Q.T @ residual)
    spread = np.sqrt((residual**2).sum() / n)
    # An (almost) perfect pilot fit must not blow the residual column up to rounding noise.
    spread = max(spread, 1e-12 * np.sqrt((y**2).sum() / n), np.finfo(float).tiny)
    out = np.zeros((p + 1, p + 1))
    out[:p, :p] = inverse / scale[:, None]
    out[:p, p] = -(upper @ coefficients) / scale / spread
    out[p, p] = 1.0 / spread
    return out


def pilot_basis(y: np.ndarray, X: np.ndarray, Z: np.ndarray, template: Template, log_weights: float = 0.0) -> Basis:
    """A conditioned basis from a strided sample of the rows (all of them when few).

    Any basis gives the same fit in exact arithmetic; this one keeps the digits of columns with
    offsets or scales of 1e±8.
    """
    n, p = X.shape
    step = max(1, n // PILOT_ROWS)
    # A stride that shares a factor with the group size would see the same visits of each group only.
    rows = np.concatenate([np.arange(min(n, PILOT_ROWS)), np.arange(PILOT_ROWS, n, step)])
    scale, Q, R = _scaled_qr(X if step == 1 else X[rows])
    if step > 1 and _dependent(R).any():
        step, (scale, Q, R) = 1, _scaled_qr(X)
    to_w = _pilot_map(scale, Q, R, y if step == 1 else y[rows])
    # Not a BLAS product: on a stride it costs more to wake its threads than to sum.
    z_scale = power_of_two_scale(np.einsum("nq,nq->q", Z, Z), n, template, log_weights)
    return Basis(to_w, np.linalg.slogdet(to_w[:p, :p])[1], z_scale)


def basis_of_rows(y: np.ndarray, X: np.ndarray, z_scale: np.ndarray, n_rows: float) -> Basis:
    """The conditioned basis of all these rows, which stand for ``n_rows``."""
    to_w = _pilot_map(*_scaled_qr(X), y) * np.sqrt(n_rows / max(len(y), 1))
    p = X.shape[1]
    return Basis(to_w, np.linalg.slogdet(to_w[:p, :p])[1], z_scale)


# ---------------------------------------------------------------- moments


def gram(W: np.ndarray) -> np.ndarray:
    """WWᵀ of few long rows; of an array with itself NumPy makes a rank-k update, which is slow for them."""
    out = W @ W.copy().T
    return 0.5 * (out + out.T)


def products(Z: Any, W: Any) -> Iterator[Any]:
    """Rows z_a z_b (a ≥ b), then z_a w_c, of Z (q, n) and W (p+1, n)."""
    q, w = len(Z), len(W)
    yield from (Z[a] * Z[b] for a in range(q) for b in range(a + 1))
    yield from (Z[a] * W[c] for a in range(q) for c in range(w))


def unpack_products(sums: Any, q: int, w: int) -> tuple[Any, Any]:
    """(kq + qw, G) sums → ZtZ (q, q, G) and ZtW (q, w, G)."""
    kq = q * (q + 1) // 2
    position = np.zeros((q, q), int)
    position[linalg.tril(q)] = np.arange(kq)
    return sums[np.maximum(position, position.T)], sums[kq:].reshape(q, w, -1)


def group_moments(
    y: np.ndarray,
    X: np.ndarray,
    Z: np.ndarray,
    codes: np.ndarray,
    n_groups: int,
    *,
    template: Template,
    weights: np.ndarray | None = None,
    basis: Basis | None = None,
) -> GroupMoments:
    """Cross-products per level in one pass over NumPy rows, or two, chunk by chunk.

    Parameters
    ----------
    y : (n,) response; X : (n, p); Z : (n, q); codes : (n,) integers in [0, n_groups).
    weights : (n,) prior weights > 0: Var(ε_i) = σ²/w_i.
    basis : a common basis, if one is known to suit all chunks (saves a pilot per chunk); a pilot of these rows
        if None, and ``merge`` finds the common one. The chunk itself may be tiny, rank deficient or exactly fitted.

    Raises
    ------
    DataError
        For codes outside [0, n_groups).

    Notes
    -----
    O(n(q² + q(p+1) + (p+1)²)) operations; the extra memory is O(CHUNK_ROWS · (p + q²)). Where y varies so much more
    between levels than within that digits would go, a second pass sums what ``Pilots`` leave.
    """
    return moments_and_within(y, X, Z, codes, n_groups, template, weights, basis)[0]


def moments_and_within(
    y: np.ndarray, X: np.ndarray, Z: np.ndarray, codes: Any, n_groups: int, template: Template, weights: Any, basis: Any
) -> tuple[GroupMoments, Within | None]:
    """``group_moments``, and ``within_levels`` of them where finding them has told it."""
    codes = check_codes(codes, n_groups)
    log_weights = 0.0 if weights is None else np.log(weights).sum()
    given = basis is not None
    basis = pilot_basis(y, X, Z, template, log_weights) if basis is None else basis
    n, p, q = len(y), X.shape[1], Z.shape[1]
    sums = np.zeros((q * (q + 1) // 2 + q * (p + 1), n_groups))
    WtW = np.zeros((p + 1, p + 1))
    for rows, Zs, W in _conditioned_chunks(y, X, Z, weights, basis):
        WtW += gram(W)
        add_by_code(sums, codes[rows], products(Zs, W))
    ZtZ, ZtW = unpack_products(sums, q, p + 1)
    moments = GroupMoments(ZtZ, ZtW, WtW, np.float64(n), np.float64(log_weights), basis, template)
    within = within_levels(moments)
    between, rest = _between_and_rest(within)
    if not _needs_pilots(between, rest):
        return moments, within
    moments = moments if given else change_basis(moments, moved_basis(basis, within_map(between, rest)))
    return _add_pilots(moments, _conditioned_chunks(y, X, Z, weights, moments.basis), codes), None


def _conditioned_chunks(
    y: np.ndarray, X: np.ndarray, Z: np.ndarray, weights: np.ndarray | None, basis: Basis
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows, and their Z (q, n) and W (p+1, n) in a basis, weighted, a chunk at a time."""
    p = X.shape[1]
    for lo in range(0, len(y), CHUNK_ROWS):
        rows = slice(lo, min(lo + CHUNK_ROWS, len(y)))
        W = basis.map[:p].T @ X[rows].T + basis.map[p][:, None] * y[rows]
        Zs = np.divide(Z[rows].T, basis.z_scale[:, None], order="C")
        if weights is not None:
            root = np.sqrt(weights[rows])
            W, Zs = W * root, Zs * root
        yield rows, Zs, W


# ---------------------------------------------------------------- within levels


def within_levels(moments: GroupMoments) -> Within:
    """R (kq, G), c (q, p+1, G) and what is left of WᵀW (p+1, p+1) within the levels; see ``GroupData``."""
    xp, pilots = namespace(moments.ZtZ, moments.ZtW), moments.pilots
    R = levels.root(moments.ZtZ)
    e = levels.against_root(R, moments.ZtW if pilots is None else pilots.ZtE)
    rest = (moments.WtW if pilots is None else pilots.EtE) - sum(a @ a.T for a in e)
    c = e if pilots is None else [a + b for a, b in zip(e, levels.times_root(R, pilots.B), strict=True)]
    return xp.stack(R), xp.stack(c), 0.5 * (rest + rest.T)


def within_metric(between: Array, rest: Array) -> Array:
    """Sums of squares (w, w) that weigh the variation within levels, and that between them where there is none."""
    return rest + PILOT_BETWEEN * between


def within_map(between: Array, rest: Array) -> Array:
    """Unit upper-triangular (w, w): each column of W less what the earlier ones tell of it within the levels.

    A column that varies between levels alone so becomes free of those that vary within: else it would vary within by
    rounding, which is much where what varies between levels counts for little.
    """
    xp = namespace(rest)
    K = within_root(between, rest)
    move = linalg.transpose(linalg.inverse_lower(K)) * xp.diagonal(K)
    return xp.where(xp.isfinite(move).all(), move, linalg.identity(len(K), K))


def within_root(between: Array, rest: Array) -> Array:
    """Lower Cholesky factor of ``within_metric``, whose last pivot squared is what X leaves of y there."""
    M, xp = within_metric(between, rest), namespace(rest)
    size = xp.sqrt(xp.maximum(M.diagonal(), xp.finfo(M.dtype).tiny))
    eps = 8.0 * float(xp.finfo(M.dtype).eps)
    return size[:, None] * linalg.cholesky(M / (size[:, None] * size) + eps * xp.eye(len(M), dtype=M.dtype))


def moved_basis(basis: Basis, move: Array) -> Basis:
    """The basis whose conditioned columns are those of ``basis`` times a unit upper-triangular ``move``."""
    return Basis(basis.map @ move, basis.log_det_x, basis.z_scale)


def between_dominates(between: Any, within: Any) -> Any:
    """Whether a sum of squares between levels is so much larger than that within that a difference lacks digits."""
    return ~(between <= BETWEEN * within)


def _between_and_rest(within: Within) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares of W (p+1, p+1) between the levels and within."""
    return sum(own @ own.T for own in within[1]), within[2]


def _needs_pilots(between: np.ndarray, rest: np.ndarray) -> bool:
    """Whether y, less what X tells of it, varies so much more between the levels that digits would go."""
    return bool(between_dominates(between[-1, -1], within_root(between, rest)[-1, -1] ** 2))


def _add_pilots(moments: GroupMoments, chunks: Iterator[Any], codes: np.ndarray) -> GroupMoments:
    """The moments with the sums of E = W − Z·B, B the least squares of each level; the second pass over the rows."""
    q, w, n_groups = moments.ZtW.shape
    B = _coefficients(moments.ZtZ, moments.ZtW)
    sums, EtE = np.zeros((q * w, n_groups)), np.zeros((w, w))
    for rows, Zs, W in chunks:
        E = W - sum(z * b[:, codes[rows]] for z, b in zip(Zs, B, strict=True))
        EtE += gram(E)
        add_by_code(sums, codes[rows], (Zs[a] * E[b] for a in range(q) for b in range(w)))
    return dataclasses.replace(moments, pilots=Pilots(B, sums.reshape(q, w, n_groups), EtE))


def add_by_code(sums: np.ndarray, codes: np.ndarray, columns: Iterable[np.ndarray]) -> None:
    """sums[j, codes[i]] += columns[j][i]; sorted codes, the usual order of rows, are quickest."""
    if not len(codes):
        return
    if (codes[1:] >= codes[:-1]).all():
        starts = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])
        present = codes[starts]
        for total, column in zip(sums, columns, strict=True):
            total[present] += np.add.reduceat(column, starts)
        return
    lo = int(codes.min())
    width = int(codes.max()) - lo + 1
    # bincount takes no other integers without a copy.
    from_lowest = (codes - lo).astype(np.intp, copy=False)
    for total, column in zip(sums, columns, strict=True):
        total[lo : lo + width] += np.bincount(from_lowest, column, minlength=width)


def transition(old: Basis, new: Basis, keep: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A with W' = WA, and s with Z' = Zs, from one basis to another; that of the columns ``keep`` of X, if given."""
    to_w = np.asarray(new.map)
    if keep is not None:
        p = len(old.map) - 1
        to_w = np.eye(p + 1)[:, [*keep, p]] @ to_w
    return np.linalg.solve(np.asarray(old.map), to_w), np.asarray(old.z_scale) / np.asarray(new.z_scale)


def change_basis(moments: GroupMoments, basis: Basis, keep: Sequence[int] | None = None) -> GroupMoments:
    """The same moments expressed in another basis (exact up to rounding); see ``transition``."""
    if keep is None and _same(moments.basis, basis):
        return moments
    A, s = transition(moments.basis, basis, keep)
    pilots = moments.pilots
    if pilots is not None:
        pilots = Pilots(
            np.einsum("qcg,cd->qdg", pilots.B, A) / s[:, None, None],
            np.einsum("qcg,cd->qdg", pilots.ZtE, A) * s[:, None, None],
            A.T @ pilots.EtE @ A,
        )
    return dataclasses.replace(
        moments,
        ZtZ=moments.ZtZ * (s[:, None] * s[None, :])[:, :, None],
        ZtW=np.einsum("qcg,cd->qdg", moments.ZtW, A) * s[:, None, None],
        WtW=A.T @ moments.WtW @ A,
        basis=basis,
        pilots=pilots,
    )


def merge(*parts: GroupMoments, positions: Positions | None = None, n_levels: int | None = None) -> GroupMoments:
    """Moments of all chunks together: they add.

    Parameters
    ----------
    parts : moments of one or more chunks.
    positions : per chunk (m,), optional
        Which of the ``n_levels`` levels of all chunks each of its levels is; without them every chunk must use one
        coding of the levels.

    Raises
    ------
    DataError
        For chunks of other columns, structures or levels.

    Notes
    -----
    Chunks in different bases are carried into one that suits all their rows, so no chunk need be typical:
    the first may be tiny, lack a treatment or be fitted exactly. The result is new.
    """
    check_alike(parts, [(*m.ZtW.shape[:2], None if positions else m.ZtW.shape[2]) for m in parts])
    places = [slice(None)] * len(parts) if positions is None else positions
    length = parts[0].ZtZ.shape[-1] if n_levels is None else n_levels
    basis = common_basis(parts)
    if all(m.pilots is None for m in parts):
        merged = _sum([change_basis(m, basis) for m in parts], places, length)
        if not _needs_pilots(*_between_and_rest(within_levels(merged))):
            return merged
    parts = tuple(_with_pilots(m) for m in parts)
    # From where the levels of all show what varies within; the chunks go there directly, which costs no digits.
    merged = _sum([change_basis(m, basis) for m in parts], places, length)
    basis = moved_basis(basis, within_map(*_between_and_rest(within_levels(merged))))
    return _sum([change_basis(m, basis) for m in parts], places, length)


def check_alike(parts: Sequence[Any], shapes: Sequence[Any]) -> None:
    """Raise DataError where chunks cannot be added: of other templates, or of other ``shapes``."""
    if not parts:
        raise DataError("there are no moments to merge: give those of one chunk or more")
    for m, shape in zip(parts, shapes, strict=True):
        if m.template != parts[0].template or shape != shapes[0]:
            raise DataError(
                f"cannot merge moments of shapes {shapes[0]} and {shape}, or of different templates: "
                "code all chunks with the same columns and the same list of levels"
            )


def _same(a: Basis, b: Basis) -> bool:
    return np.array_equal(a.map, b.map) and np.array_equal(a.z_scale, b.z_scale)


def added(arrays: Sequence[np.ndarray], places: Sequence[Any], length: int) -> np.ndarray:
    """The sum of arrays (…, m), the last axis of each put in its places among ``length``."""
    out = np.zeros((*arrays[0].shape[:-1], length))
    for array, place in zip(arrays, places, strict=True):
        out[..., place] += array
    return out


def _sum(parts: Sequence[GroupMoments], places: Sequence[Any], length: int) -> GroupMoments:
    """The moments of chunks that are in one basis."""
    ZtZ = added([m.ZtZ for m in parts], places, length)
    return GroupMoments(
        ZtZ,
        added([m.ZtW for m in parts], places, length),
        sum(m.WtW for m in parts),
        sum(m.n_rows for m in parts),
        sum(m.log_weights for m in parts),
        parts[0].basis,
        parts[0].template,
        _merged_pilots(parts, places, ZtZ),
    )


def _merged_pilots(parts: Sequence[GroupMoments], places: Sequence[Any], ZtZ: np.ndarray) -> Pilots | None:
    """The pilots of the levels of all chunks together, each chunk's sums carried over to them exactly."""
    if all(m.pilots is None for m in parts):
        return None
    own = [m.pilots for m in parts if m.pilots is not None]
    right = [pilots.ZtE + _each(m.ZtZ, pilots.B) for m, pilots in zip(parts, own, strict=True)]
    B = _coefficients(ZtZ, added(right, places, ZtZ.shape[-1]))
    moved = [_move_pilots(m, a, B[:, :, place]) for m, a, place in zip(parts, own, places, strict=True)]
    return Pilots(B, added([a.ZtE for a in moved], places, ZtZ.shape[-1]), sum(a.EtE for a in moved))


def _coefficients(G: np.ndarray, C: np.ndarray) -> np.ndarray:
    """The least squares (q, p+1, G) of every level, as a pilot."""
    R = levels.root(G)
    return np.stack(levels.coefficients(R, levels.against_root(R, C), PILOT_PIVOT))


def _with_pilots(moments: GroupMoments) -> GroupMoments:
    """The moments with the sums of what pilots leave, from cross-products where a chunk needed none for itself."""
    if moments.pilots is not None:
        return moments
    nothing = Pilots(np.zeros_like(moments.ZtW), moments.ZtW, moments.WtW)
    pilots = _move_pilots(moments, nothing, _coefficients(moments.ZtZ, moments.ZtW))
    # Columns that do not vary within the levels: their rounding is not to be magnified in another basis.
    varies = (pilots.EtE.diagonal() > NOTHING_LEFT * moments.WtW.diagonal()).astype(float)
    pilots = Pilots(pilots.B, pilots.ZtE * varies[:, None], pilots.EtE * np.outer(varies, varies))
    return dataclasses.replace(moments, pilots=pilots)


def _move_pilots(moments: GroupMoments, pilots: Pilots, B: np.ndarray) -> Pilots:
    """The sums of E − ZΔ, Δ = B less the old pilots.

    Where a chunk has too few rows of a level Δ is large and ZΔ small all the same: it is RΔ that is squared.
    """
    R = levels.root(moments.ZtZ)
    e, step = levels.against_root(R, pilots.ZtE), levels.times_root(R, B - pilots.B)
    across = sum(a @ s.T for a, s in zip(e, step, strict=True))
    EtE = pilots.EtE - across - across.T + sum(s @ s.T for s in step)
    return Pilots(B, pilots.ZtE - np.stack(levels.transposed_times(R, step)), EtE)


def _each(G: np.ndarray, B: np.ndarray) -> np.ndarray:
    """GB of every level (q, p+1, G)."""
    return np.einsum("abg,bcg->acg", G, B)


def common_basis(parts: Sequence[Any], keep: Sequence[int] | None = None) -> Basis:
    """A conditioned basis of the rows of all chunks, as ``pilot_basis`` would find it from the rows.

    The triangular factors of the chunks' [X y] stacked have the cross-products of all rows; each comes from
    near-orthonormal columns, so no digit is lost to squaring. ``keep`` leaves out the other columns of X.
    """
    first = parts[0].basis
    if keep is None and all(_same(first, m.basis) for m in parts):
        return first
    n, log_weights = sum(m.n_rows for m in parts), sum(m.log_weights for m in parts)
    stacked = np.concatenate([triangle(m.WtW, m.basis) for m in parts])
    if keep is not None:
        stacked = stacked[:, [*keep, -1]]
    p = stacked.shape[1] - 1
    scale, Q, R = _scaled_qr(stacked[:, :p])
    root = np.sqrt(n / len(stacked))
    to_w = _pilot_map(scale, Q, R, stacked[:, p]) * root
    squares = sum(m.column_squares * np.asarray(m.basis.z_scale) ** 2 for m in parts)
    z_scale = power_of_two_scale(squares, n, parts[0].template, log_weights)
    return Basis(to_w, np.linalg.slogdet(to_w[:p, :p])[1], z_scale)


def without_columns(moments: GroupMoments, keep: Sequence[int]) -> GroupMoments:
    """The moments of a model with the columns ``keep`` of X alone."""
    return change_basis(moments, common_basis([moments], keep), keep)


def triangle(WtW: np.ndarray, basis: Basis) -> np.ndarray:
    """T (p+1, p+1) with TᵀT = [X y]ᵀ[X y], in the user's columns."""
    size = np.sqrt(np.diag(WtW))
    whole = np.where(size > 0, size, 1.0)
    values, vectors = np.linalg.eigh(WtW / np.outer(whole, whole))
    half = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T * size
    return np.linalg.solve(np.asarray(basis.map).T, half.T).T


def rows_with_residual(n_rows: Any, WtW: np.ndarray, basis: Basis) -> np.float64:
    """The number of rows, NaN where least squares on X leaves no more of y than rounding."""
    p = len(WtW) - 1
    last = np.sqrt(np.maximum(np.diag(WtW), np.finfo(float).tiny))
    scaled = WtW / np.outer(last, last)
    root = linalg.cholesky(scaled)
    if np.isfinite(root[p, p]):
        left = root[p, p] ** 2
    else:
        left = 1.0 - (scaled[p, :p] @ np.linalg.lstsq(scaled[:p, :p], scaled[:p, p], rcond=1e-12)[0] if p else 0.0)
    residual = last[p] ** 2 * left / np.asarray(basis.map)[p, p] ** 2
    y = linalg.solve_upper(np.asarray(basis.map).T, np.eye(p + 1)[:, p:])[:, 0]  # y = W @ this
    total = y @ WtW @ y
    return np.float64(n_rows if residual > NO_RESIDUAL**2 * total else np.nan)
