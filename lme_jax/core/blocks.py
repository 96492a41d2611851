"""What a covariance structure is asked, and what is told of it; the entries themselves are in ``structures``."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import DataError
from .correlations import Detail
from .types import Array, namespace

# What stays of a size when a search begins on the other side of a covariance.
AWAY = 0.1

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


REGISTRY: "dict[str, Structure]" = {}


def entry(block: Block) -> "Structure":
    """What the registry knows of a block's structure."""
    return REGISTRY[block.structure]


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


def nothing(block: Block) -> None:
    """What a structure does not have."""
    return None


def _away_from_zero(block: Block, theta: Array) -> Array:
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
    basis: Callable[[Block], np.ndarray | None] = nothing
    root: Callable[[Block, Array], Array] | None = None
    derivatives: Callable[[Block, Array], tuple[Array, Array]] | None = None
    filled: Callable[[Block], np.ndarray] | None = None
    opposite: Callable[[Block, Array], Array] = _away_from_zero
    patterns: Callable[[Block], np.ndarray | None] = nothing
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


# ---------------------------------------------------------------- what several structures share


def row_norms(L: Array) -> Array:
    """Standard deviations (q, *lanes)."""
    return namespace(L).sqrt((L * L).sum(1))


def absolute(block: Block, theta: Array) -> tuple[Array, Array]:
    """|θ| and the signs."""
    sign = namespace(theta).where(theta < 0, -1.0, 1.0)
    return theta * sign, sign


def deviations(columns: Sequence[str]) -> list[Quantity]:
    """The standard deviation of every effect."""
    return [Quantity(f"SD {name}", "sd", i) for i, name in enumerate(columns)]
