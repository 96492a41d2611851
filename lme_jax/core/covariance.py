"""θ → L templates of a factor's random effects and their packing.

A *template* is a tuple of blocks, one per random term on the factor; L(θ) is block diagonal and
Cov(b) = σ²LLᵀ. L need not be triangular: the likelihood depends on LLᵀ alone. In every block the
deviance is even in each column of L, so θ is searched without bounds. What a block's structure is stands in
``structures``; here blocks are put side by side. Arrays of parameters may carry lanes (many models at once) on
their last axes.
"""

import functools
from typing import Any

import numpy as np
import scipy.linalg

from ..errors import DataError, UnsupportedError
from . import linalg
from .linalg import tril
from .structures import Block, StructureLike, entry, make_block
from .types import Array, namespace

# Roots of a conditioned relative covariance that count as zero: a singular fit.
SINGULAR_BELOW = 1e-4

Template = tuple[Block, ...]


def make_template(structure: StructureLike, q: int) -> Template:
    """A checked template of q effects from a structure, a name or (name, what it needs), or from a template."""
    single = isinstance(structure, str) or (len(structure) > 0 and isinstance(structure[0], str))
    template = (make_block(structure, q),) if single else tuple(_checked(*block) for block in structure)
    if sum(b.size for b in template) != q:
        raise DataError(f"the template has {sum(b.size for b in template)} effects, but Z has {q} columns")
    return template


def _checked(structure: str, size: int, detail: Any = ()) -> Block:
    return make_block(structure, size, detail)


@functools.lru_cache(maxsize=256)
def n_theta(template: Template) -> int:
    """Number of covariance parameters k of a template."""
    return sum(block.n_theta for block in template)


def split(theta: Array, template: Template) -> list[Array]:
    """θ (k,) cut into its blocks."""
    parts, at = [], 0
    for block in template:
        parts.append(theta[at : at + block.n_theta])
        at += block.n_theta
    return parts


@functools.lru_cache(maxsize=256)
def factor_basis(block: Block) -> np.ndarray | None:
    """(k, q, q) matrices B_a with L = Σ θ_a B_a; None where L is not linear in θ."""
    return entry(block).basis(block)


def factor(theta: Array, template: Template) -> Array:
    """L(θ), (q, q, *lanes) for θ (k, *lanes): a square root of the relative covariance, dimensionless."""
    blocks = [_block_factor(part, block) for part, block in zip(split(theta, template), template, strict=True)]
    if len(blocks) == 1:
        return blocks[0]
    q = sum(block.size for block in template)
    L, at = namespace(theta).zeros((q, q, *theta.shape[1:]), theta.dtype), 0
    for part in blocks:
        here = slice(at, at + len(part))
        L = linalg.put(L, (here, here), part)
        at += len(part)
    return L


def _block_factor(theta: Array, block: Block) -> Array:
    basis = factor_basis(block)
    if basis is None:
        root = entry(block).root
        assert root is not None
        return root(block, theta)
    xp = namespace(theta)
    if xp is np:
        return (
            np.tensordot(basis, theta, (0, 0))
            if theta.ndim > 1
            else np.dot(theta, basis.reshape(len(basis), -1)).reshape(basis.shape[1:])
        )
    return xp.einsum("a...,aij->ij...", theta, xp.asarray(basis, theta.dtype))


def by_block(values: Array, template: Template) -> list[Array]:
    """Values of the effects (q, …) cut into blocks."""
    if len(template) == 1:
        return [values]
    ends = np.cumsum([block.size for block in template])
    return [values[end - block.size : end] for end, block in zip(ends, template, strict=True)]


def start(template: Template, spread: Array) -> Array:
    """θ (k, *lanes) of uncorrelated effects with relative standard deviations ``spread`` (q, *lanes)."""
    parts = zip(template, by_block(spread, template), strict=True)
    return _joined(namespace(spread), [entry(block).start(block, sd) for block, sd in parts])


@functools.lru_cache(maxsize=256)
def filled(template: Template) -> tuple[tuple[bool, ...], ...]:
    """(q, q): whether some θ makes the entry of L nonzero; true on the diagonal."""
    pattern = scipy.linalg.block_diag(*(_block_filled(block) for block in template))
    return tuple(tuple(bool(entry) for entry in row) for row in pattern)


def _block_filled(block: Block) -> np.ndarray:
    basis, own = factor_basis(block), entry(block).filled
    if own is not None:
        return own(block)
    assert basis is not None
    return basis.any(axis=0) | np.eye(block.size, dtype=bool)


@functools.lru_cache(maxsize=256)
def loses_rank(template: Template) -> bool:
    """Whether Ψ is singular whatever θ: L has columns of zeros."""
    bases = [factor_basis(block) for block in template]
    return any(basis is not None and not basis.any(axis=(0, 1)).all() for basis in bases)


def column_groups(template: Template) -> np.ndarray:
    """(q,) labels: columns of Z with one label must share a scale."""
    labels: list[int] = []
    for block in template:
        labels += [len(labels) + (i if entry(block).apart else 0) for i in range(block.size)]
    return np.array(labels)


def theta_scale(template: Template, z_scale: Array) -> Array:
    """(k, *lanes) factors t such that L(t∘θ) belongs to Z / z_scale when L(θ) belongs to Z."""
    parts = zip(template, by_block(z_scale, template), strict=True)
    return _joined(namespace(z_scale), [entry(block).scale(block, z) for block, z in parts])


def _joined(xp: Any, parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else xp.concatenate(parts)


def canonical(theta: Array, template: Template) -> tuple[Array, Array]:
    """The θ with the same LLᵀ whose L has a non-negative diagonal (roots of eigenvalues ≥ 0).

    Returns it and the signs (k, *lanes) of its derivative in the given one.
    """
    xp, parts = namespace(theta), zip(split(theta, template), template, strict=True)
    thetas, signs = zip(*(entry(block).canonical(block, part) for part, block in parts), strict=True)
    return _joined(xp, list(thetas)), _joined(xp, list(signs))


def smallest_root(theta: Array, template: Template) -> Array:
    """The smallest conditional standard deviation of the template: 0 at a singular fit.

    For a triangular L this is min diag L, for a reduced rank the least that a factor adds to the ones before it,
    for the other structures the smallest root eigenvalue or innovation.
    """
    parts = zip(split(theta, template), template, strict=True)
    return _joined(namespace(theta), [entry(block).smallest(block, part) for part, block in parts]).min(0)


@functools.lru_cache(maxsize=256)
def squared_basis(template: Template) -> np.ndarray | None:
    """(kq, k, k) constants N with packed Ψ = LLᵀ equal to ½ θᵀN_xθ; None where L is not linear in θ."""
    bases = [factor_basis(block) for block in template]
    q, k = sum(block.size for block in template), n_theta(template)
    basis = np.zeros((k, q, q))
    row = column = 0
    for block, own in zip(template, bases, strict=True):
        if own is None:
            return None
        basis[row : row + block.n_theta, column : column + block.size, column : column + block.size] = own
        row, column = row + block.n_theta, column + block.size
    products = np.einsum("aij,ckj->acik", basis, basis)
    i, j = tril(q)
    return np.moveaxis((products + np.swapaxes(products, 2, 3))[:, :, i, j], 2, 0)


def squared_derivatives(theta: Array, template: Template) -> tuple[Array, Array]:
    """Of packed Ψ = L(θ)L(θ)ᵀ: ∂Ψ/∂θ (kq, k, *lanes) and ∂²Ψ/∂θ² (kq, k, k, *lanes or 1s)."""
    basis, xp = squared_basis(template), namespace(theta)
    if basis is not None:
        lanes = [1] * (theta.ndim - 1)
        if theta.ndim == 1 and xp is np:
            return basis @ theta, basis
        curvature = xp.asarray(basis, theta.dtype)
        return xp.tensordot(curvature, theta, 1), curvature.reshape(*basis.shape, *lanes)
    q, k, lanes = sum(block.size for block in template), n_theta(template), theta.shape[1:]
    first, second = xp.zeros((q, q, k, *lanes), theta.dtype), xp.zeros((q, q, k, k, *lanes), theta.dtype)
    row = column = 0
    for part, block in zip(split(theta, template), template, strict=True):
        here, mine = slice(column, column + block.size), slice(row, row + block.n_theta)
        slope, bend = _block_derivatives(part, block)
        first = linalg.put(first, (here, here, mine), slope)
        second = linalg.put(second, (here, here, mine, mine), bend)
        row, column = row + block.n_theta, column + block.size
    lower = tril(q)
    return first[lower], second[lower]


def _block_derivatives(theta: Array, block: Block) -> tuple[Array, Array]:
    """∂Ψ/∂θ (q, q, k, *lanes) and ∂²Ψ/∂θ² (q, q, k, k, *lanes) of one block."""
    own, q = entry(block).derivatives, block.size
    if own is not None:
        return own(block, theta)
    position = packed_positions(q)
    slope, bend = squared_derivatives(theta, (block,))
    xp = namespace(theta)
    return slope[position], xp.broadcast_to(bend[position], (q, q, *bend.shape[1:3], *theta.shape[1:]))


@functools.lru_cache(maxsize=64)
def packed_positions(q: int) -> np.ndarray:
    """(q, q): where an entry of a symmetric matrix stands in its packed form."""
    rows, columns = tril(q)
    position = np.zeros((q, q), int)
    position[rows, columns] = position[columns, rows] = np.arange(len(rows))
    return position


def linear_basis(template: Template) -> np.ndarray:
    """(k, q, q) symmetric matrices E_a with LLᵀ = Σ_a ω_a E_a: the packing of the natural and profile scales.

    ω are the row-major lower triangle of an unstructured block, the variances of a diagonal one, the one
    variance of an identity block.
    """
    q, k = sum(block.size for block in template), n_theta(template)
    basis, row, column = np.zeros((k, q, q)), 0, 0
    for block in template:
        own = np.ones((1, 1, 1)) if block.size == 1 else entry(block).patterns(block)
        if own is None:
            raise UnsupportedError(
                f"a {block.structure} block is not linear in its covariance parameters: use the square-root scale"
            )
        basis[row : row + len(own), column : column + block.size, column : column + block.size] = own
        row, column = row + len(own), column + block.size
    return basis


def semidefinite_root(M: Array) -> Array:
    """Lower L with LLᵀ = M (q, q) positive semidefinite; zero columns where a pivot vanishes."""
    q, xp = M.shape[0], namespace(M)
    floor = 16 * q * np.finfo(M.dtype).eps * xp.diagonal(M)
    L = xp.zeros_like(M)
    for j in range(q):
        pivot = M[j, j]
        root = xp.sqrt(xp.where(pivot > floor[j], pivot, 1.0))
        column = xp.where((np.arange(q) >= j) & (pivot > floor[j]), M[:, j] / root, 0.0)
        M = M - xp.outer(column, column)
        L = linalg.put(L, (slice(None), j), column)
    return L
