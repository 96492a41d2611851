"""The registry of covariance structures: whatever is asked of one stands in its entry, and nowhere else.

A structure gives the relative covariance Ψ = L(θ)L(θ)ᵀ (q, q) of the effects of a level, θ unconstrained, with a
deviance even in the columns of L. There are two kinds: *linear* ones, L = Σ θ_a B_a (``linear_structures``), and
*scaled correlations*, L = D K(φ) (``scaled_structures``). Arrays of parameters may carry lanes.
"""

import difflib
from typing import Any

from ..errors import DataError
from .blocks import REGISTRY, Block, Quantity, Structure, StructureLike, entry
from .correlations import AR1, COMPOUND_SYMMETRY, EXPONENTIAL, TOEPLITZ
from .linear_structures import DIAGONAL, FIXED, HOMOGENEOUS_CS, IDENTITY, REDUCED_RANK, UNSTRUCTURED
from .scaled_structures import read_coordinates, scaled

__all__ = [
    "REGISTRY",
    "Block",
    "Quantity",
    "Structure",
    "StructureLike",
    "entry",
    "make_block",
    "scaled",
    "suggestion",
]

REGISTRY.update(
    {
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
            read_detail=read_coordinates,
            needs="coordinates",
            ordered=True,
        ),
        "fixed": FIXED,
        "reduced_rank": REDUCED_RANK,
    }
)


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
