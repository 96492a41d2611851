"""The registry of covariance structures: whatever is asked of one stands in its entry, and nowhere else.

A structure gives the relative covariance Ψ = L(θ)L(θ)ᵀ (q, q) of the effects of a level, θ unconstrained, with a
deviance even in the columns of L. There are two kinds. *Linear* ones have L = Σ θ_a B_a. *Scaled correlations* have
L = D K(φ) with the families of ``correlations``; D is s·I (homogeneous) or diag(t_i²) (heterogeneous: with signed
standard deviations s_i the covariances s_i s_j ρ_ij would not be even in s_i; in t_i a zero variance is a stationary
point whose curvature tells whether the deviance falls from there). Arrays of parameters may carry lanes.
"""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from .correlations import AR1, COMPOUND_SYMMETRY, EXPONENTIAL, TOEPLITZ, Correlation, Detail
from .linalg import tril
from .types import Array, namespace

# What stays of a size when a search begins on the other side of a covariance.
AWAY = 0.1
# Eigenvalues of a known matrix that rounding may have made negative, relative to the largest.
TOLERANCE = 1e-10
# Factors of a reduced rank where none are named, as in glmmTMB.
DEFAULT_RANK = 2


# A structure's name, (name, what it needs), or a template of blocks.
StructureLike = str | tuple[Any, ...]


class Block(NamedTuple):
    """One random term: a covariance structure for ``size`` effects per level, and what it knows beside.

    ``detail``: the rank (d,) of a reduced rank; coordinates of an exponential; rows of a known matrix.
    """

    structure: str
    size: int
    detail: Detail = ()

    @property
    def n_theta(self) -> int:
        return entry(self).n_theta(self)


class Quantity(NamedTuple):
    """A number that people read of a block: a standard deviation, a correlation, or a function of one.

    ``kind``: "sd" √Ψ_ii of effect ``row``; "correlation" of ``row`` and ``column``; "range" −distance/log of that
    correlation; "root" σθ_a with a = ``row``, a loading or a scale.
    """

    label: str
    kind: Literal["sd", "correlation", "range", "root"]
    row: int
    column: int = 0
    distance: float = 1.0


def _plain_detail(given: Any, size: int) -> Detail:
    if given is None or (isinstance(given, tuple) and given == ()):
        return ()
    raise DataError(f"this covariance structure takes nothing beside its name; got {given!r}")


def _no_basis(block: Block) -> None:
    return None


def _same(block: Block, theta: Array) -> Array:
    return abs(theta) + AWAY


class Structure(NamedTuple):
    """What is asked of a structure; ``block`` says the size, and θ are the block's own (k, *lanes).

    Attributes
    ----------
    n_theta : block → k.
    basis : block → (k, q, q) matrices B_a of a linear structure, else None; then ``root`` and ``derivatives`` serve.
    root : (block, θ) → L (q, q, *lanes).
    derivatives : (block, θ) → ∂Ψ (q, q, k, *lanes), ∂²Ψ (q, q, k, k, *lanes).
    filled : block → (q, q) which entries of L can be other than zero, the diagonal always.
    start : (block, sd (q, *lanes)) → θ of effects as uncorrelated as the structure lets them be.
    near : (block, L (q, q, *lanes)) → θ whose Ψ is near LLᵀ: exact where LLᵀ has the structure and is not singular.
    opposite : (block, θ) → θ with the covariances turned, away from zero.
    canonical : (block, θ) → the canonical θ of the same Ψ, and the sign of its derivative (k, *lanes).
    smallest : (block, θ) → (m, *lanes) conditional standard deviations that are zero at a singular fit.
    scale : (block, z (q, *lanes)) → t (k, *lanes) with L(t∘θ) for Z / z where L(θ) is for Z; ``apart`` says that
        every column of Z may have a z of its own.
    names : (block, effects' names) → labels of θ.
    pairs : block → entries (i, j) of Ψ that stand for the k parameters.
    quantities : (block, effects' names) → what people read.
    patterns : block → (k, q, q) E_a with Ψ = Σ ω_a E_a, None where Ψ is not linear in parameters of its own.
    read_detail : (what the caller gave, size) → ``detail``, checked.
    needs : what must be given beside the name: "rank", "coordinates" or "matrix".
    spellings : names in formulas; ``partner`` : the structure with (or without) equal variances.
    free : every covariance is estimated; uncorrelated : none is. leans : starts try correlated effects.
    moments : the first start uses the covariances of the moments, not the variances only.
    ordered : the effects are in an order (times, places), so that an intercept has no place among them.
    """

    n_theta: Callable[[Block], int]
    start: Callable[[Block, Array], Array]
    near: Callable[[Block, Array], Array]
    canonical: Callable[[Block, Array], tuple[Array, Array]]
    smallest: Callable[[Block, Array], Array]
    scale: Callable[[Block, Array], Array]
    names: Callable[[Block, Sequence[str]], list[str]]
    pairs: Callable[[Block], list[tuple[int, int]]]
    quantities: Callable[[Block, Sequence[str]], list[Quantity]]
    basis: Callable[[Block], np.ndarray | None] = _no_basis
    root: Callable[[Block, Array], Array] | None = None
    derivatives: Callable[[Block, Array], tuple[Array, Array]] | None = None
    filled: Callable[[Block], np.ndarray] | None = None
    opposite: Callable[[Block, Array], Array] = _same
    patterns: Callable[[Block], np.ndarray | None] = _no_basis
    read_detail: Callable[[Any, int], Detail] = _plain_detail
    needs: Literal["rank", "coordinates", "matrix"] | None = None
    spellings: tuple[str, ...] = ()
    partner: str | None = None
    homogeneous: bool = False
    apart: bool = False
    free: bool = False
    uncorrelated: bool = False
    leans: bool = False
    moments: bool = False
    ordered: bool = False


# ---------------------------------------------------------------- what several linear structures share


def _row_norms(L: Array) -> Array:
    """Standard deviations (q, *lanes)."""
    return namespace(L).sqrt((L * L).sum(1))


def _overall(L: Array) -> Array:
    """Root mean square (*lanes) of the standard deviations."""
    return namespace(L).sqrt((L * L).sum((0, 1)) / len(L))


def _absolute(block: Block, theta: Array) -> tuple[Array, Array]:
    sign = namespace(theta).where(theta < 0, -1.0, 1.0)
    return theta * sign, sign


def _sizes(block: Block, theta: Array) -> Array:
    return abs(theta)


def _first_scale(block: Block, z: Array) -> Array:
    return namespace(z).repeat(z[:1], block.n_theta, axis=0)


def _deviations(columns: Sequence[str]) -> list[Quantity]:
    return [Quantity(f"SD {name}", "sd", i) for i, name in enumerate(columns)]


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
    return [*_deviations(columns), *across]


def _loadings(block: Block, columns: Sequence[str]) -> list[Quantity]:
    rows, factors, _ = _entries(block)
    loads = [
        Quantity(f"Loading {columns[i]}, factor {j + 1}", "root", a)
        for a, (i, j) in enumerate(zip(rows, factors, strict=True))
    ]
    return [*_deviations(columns), *loads]


def _entry_patterns(block: Block) -> np.ndarray:
    basis = _entry_basis(block)
    return np.maximum(basis, np.swapaxes(basis, 1, 2))


UNSTRUCTURED = Structure(
    n_theta=lambda block: block.size * (block.size + 1) // 2,
    basis=_entry_basis,
    start=lambda block, sd: _loading_start(block, sd),
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
    patterns=_no_basis,
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
    near=lambda block, L: _row_norms(L),
    canonical=_absolute,
    smallest=_sizes,
    scale=lambda block, z: z,
    names=lambda block, columns: list(columns),
    pairs=lambda block: [(i, i) for i in range(block.size)],
    quantities=lambda block, columns: _deviations(columns),
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
    canonical=_absolute,
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
    canonical=_absolute,
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
    patterns=_no_basis,
    read_detail=_read_matrix,
    needs="matrix",
    spellings=("fixed", "propto"),
    partner=None,
    uncorrelated=False,
)


# ---------------------------------------------------------------- scaled correlations


def scaled(family: Correlation, *, homogeneous: bool, **more: Any) -> Structure:
    """Ψ = D R(φ) D: θ is (s, φ) with D = s·I, or (t, φ) with D = diag(t²)."""

    def n_scales(block: Block) -> int:
        return 1 if homogeneous else block.size

    def cut(block: Block, theta: Array) -> tuple[Array, Array]:
        return theta[: n_scales(block)], theta[n_scales(block) :]

    def deviations(block: Block, t: Array) -> Array:
        """(q, *lanes), with a sign where they are homogeneous."""
        return namespace(t).broadcast_to(t, (block.size, *t.shape[1:])) if homogeneous else t * t

    def n_angles(block: Block) -> int:
        return family.n_angles(block.size) if block.size > 1 else 0

    def root(block: Block, theta: Array) -> Array:
        t, phi = cut(block, theta)
        s = deviations(block, t)
        return s[:, None] * family.root(phi, block.size, block.detail) if block.size > 1 else s[:, None]

    def scales_of(block: Block, sd: Array) -> Array:
        xp = namespace(sd)
        return xp.sqrt((sd * sd).mean(0))[None] if homogeneous else xp.sqrt(sd)

    def with_correlations(block: Block, t: Array, R: Array) -> Array:
        if block.size == 1:
            return t
        return namespace(t).concatenate([t, family.angles(R, block.size, block.detail)])

    def start(block: Block, sd: Array) -> Array:
        xp, q = namespace(sd), block.size
        R = np.eye(q).reshape(q, q, *[1] * (sd.ndim - 1)) + xp.zeros_like(sd[:1])
        t = sd.mean(0)[None] if homogeneous else xp.sqrt(sd)
        return with_correlations(block, t, R)

    def near(block: Block, L: Array) -> Array:
        xp, sd = namespace(L), _row_norms(L)
        unit = L / xp.where(sd > 0, sd, 1.0)[:, None]
        return with_correlations(block, scales_of(block, sd), xp.einsum("ik...,jk...->ij...", unit, unit))

    def opposite(block: Block, theta: Array) -> Array:
        t, phi = cut(block, theta)
        t = abs(t) + AWAY
        if block.size == 1:
            return t
        R = family.derivatives(phi, block.size, block.detail)[0]
        one = np.eye(block.size).reshape(*R.shape[:2], *[1] * (R.ndim - 2))
        return with_correlations(block, t, 2.0 * one - R)

    def canonical(block: Block, theta: Array) -> tuple[Array, Array]:
        t, phi = cut(block, theta)
        xp, (t, t_sign) = namespace(theta), _absolute(block, t)
        if block.size == 1:
            return t, t_sign
        phi, phi_sign = family.fold(phi)
        return xp.concatenate([t, phi]), xp.concatenate([t_sign, phi_sign])

    def smallest(block: Block, theta: Array) -> Array:
        t, phi = cut(block, theta)
        s = abs(deviations(block, t))
        return s.min(0)[None] * family.smallest(phi, block.size, block.detail) if block.size > 1 else s

    def scale(block: Block, z: Array) -> Array:
        xp = namespace(z)
        own = z[:1] if homogeneous else xp.sqrt(z)
        return xp.concatenate([own, xp.ones((n_angles(block), *z.shape[1:]), own.dtype)])

    def derivatives(block: Block, theta: Array) -> tuple[Array, Array]:
        t, phi = cut(block, theta)
        return _scaled_derivatives(block, t, phi, family if block.size > 1 else None, homogeneous)

    def names(block: Block, columns: Sequence[str]) -> list[str]:
        own = ["sd"] if homogeneous else [f"√sd {name}" for name in columns]
        return own + (family.names(block.size) if block.size > 1 else [])

    def lags(block: Block) -> list[int]:
        return family.lags(block.size) if block.size > 1 else []

    def pairs(block: Block) -> list[tuple[int, int]]:
        return [*((i, i) for i in range(n_scales(block))), *((k, 0) for k in lags(block))]

    def quantities(block: Block, columns: Sequence[str]) -> list[Quantity]:
        own = [Quantity("SD", "sd", 0)] if homogeneous else _deviations(columns)
        if family.distance is not None and block.size > 1:
            return [*own, Quantity("Range", "range", 1, 0, family.distance(block.size, block.detail))]
        several = len(lags(block)) > 1
        return [*own, *(Quantity(f"ρ lag {k}" if several else "ρ", "correlation", k, 0) for k in lags(block))]

    def filled(block: Block) -> np.ndarray:
        return np.ones((block.size,) * 2, bool) if family.full else np.tri(block.size, dtype=bool)

    entry = Structure(
        n_theta=lambda block: n_scales(block) + n_angles(block),
        root=root,
        derivatives=derivatives,
        filled=filled,
        start=start,
        near=near,
        opposite=opposite,
        canonical=canonical,
        smallest=smallest,
        scale=scale,
        names=names,
        pairs=pairs,
        quantities=quantities,
        homogeneous=homogeneous,
        apart=not homogeneous,
        leans=True,
        moments=True,
    )
    return entry._replace(**more)


def _scaled_derivatives(
    block: Block, t: Array, phi: Array, family: Correlation | None, homogeneous: bool
) -> tuple[Array, Array]:
    """∂Ψ and ∂²Ψ of Ψ_ij = s_i s_j R_ij by the product rule."""
    xp, q, lanes = namespace(t), block.size, t.shape[1:]
    one = np.eye(q).reshape(q, q, *[1] * len(lanes))
    if family is None:
        R, dR, ddR = xp.ones((1, 1, *lanes)), xp.zeros((1, 1, 0, *lanes)), xp.zeros((1, 1, 0, 0, *lanes))
    else:
        R, dR, ddR = family.derivatives(phi, q, block.detail)
    # s (q), its slopes E (q, n) and bends F (q, n, n) in the n parameters of scale.
    if homogeneous:
        s, E = xp.broadcast_to(t, (q, *lanes)), xp.ones((q, 1, *lanes), t.dtype)
        F = xp.zeros((q, 1, 1, *lanes), t.dtype)
    else:
        s, E = t * t, 2.0 * one * t[None]
        F = xp.broadcast_to(2.0 * one[:, :, None] * one[:, None], (q, q, q, *lanes))
    slope = E[:, None] * s[None, :, None] + s[:, None, None] * E[None]
    bend = F[:, None] * s[None, :, None, None] + s[:, None, None, None] * F[None]
    across = E[:, None, :, None] * E[None, :, None]
    bend = bend + across + xp.swapaxes(across, 2, 3)
    product = s[:, None] * s[None]
    mixed = slope[:, :, :, None] * dR[:, :, None]
    first = xp.concatenate([slope * R[:, :, None], product[:, :, None] * dR], axis=2)
    upper = xp.concatenate([bend * R[:, :, None, None], mixed], axis=3)
    lower = xp.concatenate([xp.swapaxes(mixed, 2, 3), product[:, :, None, None] * ddR], axis=3)
    return first, xp.concatenate([upper, lower], axis=2)


def _read_coordinates(given: Any, size: int) -> Detail:
    try:
        c = np.asarray(given, float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"coordinates must be numbers, one per effect; got {given!r}") from error
    if len(c) != size:
        raise DataError(f"an exponential structure needs a coordinate for each of its {size} effects; got {len(c)}")
    if not np.isfinite(c).all() or (np.diff(c) <= 0).any():
        raise DataError(f"coordinates must be finite and increase from effect to effect; got {c.tolist()}")
    return tuple(c.tolist())


# ---------------------------------------------------------------- the registry


REGISTRY: dict[str, Structure] = {
    "unstructured": UNSTRUCTURED,
    "diagonal": DIAGONAL,
    "identity": IDENTITY,
    "compound_symmetry": HOMOGENEOUS_CS,
    "het_compound_symmetry": scaled(
        COMPOUND_SYMMETRY, homogeneous=False, spellings=("cs", "hetcs"), partner="compound_symmetry"
    ),
    "ar1": scaled(AR1, homogeneous=True, spellings=("ar1", "homar1"), partner="het_ar1", ordered=True),
    "het_ar1": scaled(AR1, homogeneous=False, spellings=("hetar1",), partner="ar1", ordered=True),
    "toeplitz": scaled(TOEPLITZ, homogeneous=True, spellings=("homtoep",), partner="het_toeplitz", ordered=True),
    "het_toeplitz": scaled(
        TOEPLITZ, homogeneous=False, spellings=("toep", "hettoep"), partner="toeplitz", ordered=True
    ),
    "exponential": scaled(
        EXPONENTIAL,
        homogeneous=True,
        spellings=("ou", "exp"),
        read_detail=_read_coordinates,
        needs="coordinates",
        ordered=True,
    ),
    "fixed": FIXED,
    "reduced_rank": REDUCED_RANK,
}


def entry(block: Block) -> Structure:
    """What the registry knows of a block's structure."""
    return REGISTRY[block.structure]


def make_block(structure: Any, size: int, detail: Any = None) -> Block:
    """A block of ``size`` effects from a structure's name, or (name, detail), checked."""
    if not isinstance(structure, str):
        try:
            structure, detail = structure
        except (TypeError, ValueError):
            raise DataError(f"a covariance structure is a name, or (name, what it needs); got {structure!r}") from None
    if structure not in REGISTRY:
        raise DataError(f"unknown covariance structure {structure!r}{suggestion(structure)}")
    return Block(structure, size, REGISTRY[structure].read_detail(detail, size))


def suggestion(name: Any) -> str:
    """What a misspelt structure may have meant, or all there is."""
    by_spelling = {spelling: known for known, e in REGISTRY.items() for spelling in e.spellings}
    if name in by_spelling:
        return f": did you mean {by_spelling[name]!r}?"
    near = difflib.get_close_matches(str(name), REGISTRY, 1)
    return f": did you mean {near[0]!r}?" if near else f"; choose from {', '.join(REGISTRY)}"
