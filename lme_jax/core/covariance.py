"""θ → L templates of a factor's random effects, their packing, and the three parameterizations.

A *template* is a tuple of blocks, one per random term on the factor; L(θ) is block diagonal and
Cov(b) = σ²LLᵀ. L need not be triangular: the likelihood depends on LLᵀ alone. In every block the
deviance is even in each column of L, so θ is searched without bounds. Arrays of parameters may carry
lanes (many models at once) on their last axes.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from ..errors import UnsupportedError
from . import linalg
from .linalg import tril
from .types import Array, namespace

# Roots of a conditioned relative covariance that count as zero: a singular fit.
SINGULAR_BELOW = 1e-4

STRUCTURES = ("unstructured", "diagonal", "identity", "compound_symmetry", "ar1")


class Block(NamedTuple):
    """One random term: a covariance structure for ``size`` effects per level."""

    structure: str
    size: int

    @property
    def n_theta(self) -> int:
        if self.structure == "unstructured":
            return self.size * (self.size + 1) // 2
        if self.structure == "diagonal":
            return self.size
        if self.structure in ("compound_symmetry", "ar1"):
            return min(self.size, 2)
        return 1


Template = tuple[Block, ...]


def make_template(structure: str | Template, q: int) -> Template:
    """A template from a structure name (one block of q effects) or from itself, checked."""
    template = (Block(structure, q),) if isinstance(structure, str) else tuple(Block(*b) for b in structure)
    for block in template:
        if block.structure not in STRUCTURES:
            raise ValueError(f"unknown covariance structure {block.structure!r}; choose from {STRUCTURES}")
    if sum(b.size for b in template) != q:
        raise ValueError(f"the template has {sum(b.size for b in template)} effects, but Z has {q} columns")
    return template


@functools.lru_cache(maxsize=64)
def triangle(q: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the packed lower triangle of (q, q), and where its diagonal stands."""
    rows, columns = tril(q)
    return rows, columns, np.flatnonzero(rows == columns).astype(np.int32)


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
def factor_basis(block: Block) -> np.ndarray:
    """(n_theta, q, q) matrices B_a with L = Σ θ_a B_a, for every structure but AR(1)."""
    q = block.size
    if block.structure == "unstructured":
        basis = np.zeros((block.n_theta, q, q))
        basis[(np.arange(block.n_theta), *tril(q))] = 1.0
        return basis
    if block.structure == "diagonal":
        return np.eye(q)[:, :, None] * np.eye(q)[:, None, :]
    if block.structure == "compound_symmetry" and q > 1:
        mean = np.full((q, q), 1.0 / q)
        return np.stack([mean, np.eye(q) - mean])
    return np.eye(q)[None]


def factor(theta: Array, template: Template) -> Array:
    """L(θ), (q, q, *lanes) for θ (k, *lanes): a square root of the relative covariance, dimensionless.

    Unstructured blocks are lower triangular, packed row by row. Compound symmetry is parameterized by
    the signed roots (a, b) of its two eigenvalues: L = a·J/q + b·(I − J/q). AR(1) by (s, φ) with
    ρ = sin φ and L the Cholesky factor of s²ρ^|i−j|, whose innovations are cos φ: ρ = ±1 is a stationary point, as a
    zero variance is.
    """
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
    if block.structure == "ar1" and block.size > 1:
        return theta[0] * _ar1_root(theta[1], block.size)
    xp, basis = namespace(theta), factor_basis(block)
    if xp is np:
        return (
            np.tensordot(basis, theta, (0, 0))
            if theta.ndim > 1
            else np.dot(theta, basis.reshape(len(basis), -1)).reshape(basis.shape[1:])
        )
    return xp.einsum("a...,aij->ij...", theta, xp.asarray(basis, theta.dtype))


def _ar1_root(phi: Array, q: int) -> Array:
    xp = namespace(phi)
    rho, innovation = xp.sin(phi), xp.cos(phi)
    lag = np.maximum(np.subtract.outer(np.arange(q), np.arange(q)), 0)
    ones = xp.ones((1, *phi.shape), phi.dtype)
    steps = xp.concatenate([ones, xp.broadcast_to(rho, (q - 1, *phi.shape))])
    first = xp.concatenate([ones, xp.broadcast_to(innovation, (q - 1, *phi.shape))])
    lower = np.tri(q, dtype=bool).reshape(q, q, *[1] * phi.ndim)
    return xp.where(lower, xp.cumprod(steps, axis=0)[lag] * first[None], 0.0)


def start(template: Template, spread: Array) -> Array:
    """θ (k, *lanes) of uncorrelated effects with relative standard deviations ``spread`` (q, *lanes)."""
    xp = namespace(spread)
    parts, at = [], 0
    for block in template:
        sd = spread[at : at + block.size]
        at += block.size
        if block.structure == "unstructured":
            rows, columns, _ = triangle(block.size)
            on_diagonal = (rows == columns).reshape(-1, *[1] * (sd.ndim - 1))
            parts.append(xp.where(on_diagonal, sd[rows], 0.0))
        elif block.structure == "diagonal":
            parts.append(sd)
        elif block.structure == "ar1" and block.size > 1:
            parts.append(xp.stack([sd.mean(0), xp.zeros_like(sd[0])]))
        else:
            parts.append(xp.broadcast_to(sd.mean(0), (block.n_theta, *sd.shape[1:])))
    return xp.concatenate(parts)


@functools.lru_cache(maxsize=256)
def filled(template: Template) -> tuple[tuple[bool, ...], ...]:
    """(q, q): whether some θ makes the entry of L nonzero."""
    parts = [np.tri(b.size, dtype=bool) if b.structure == "ar1" else factor_basis(b).any(axis=0) for b in template]
    return tuple(tuple(bool(entry) for entry in row) for row in scipy.linalg.block_diag(*parts))


def column_groups(template: Template) -> np.ndarray:
    """(q,) labels: columns of Z with one label must share a scale (all of a non-free block's columns)."""
    labels: list[int] = []
    for block in template:
        free = block.structure in ("unstructured", "diagonal")
        labels += [len(labels) + (i if free else 0) for i in range(block.size)]
    return np.array(labels)


def theta_scale(template: Template, z_scale: Array) -> Array:
    """(k, *lanes) factors t such that L(t∘θ) belongs to Z / z_scale when L(θ) belongs to Z."""
    parts, at, xp = [], 0, namespace(z_scale)
    for block in template:
        s = z_scale[at : at + block.size]
        at += block.size
        if block.structure == "unstructured":
            parts.append(s[triangle(block.size)[0]])
        elif block.structure == "diagonal":
            parts.append(s)
        elif block.structure == "ar1" and block.size > 1:
            parts.append(xp.stack([s[0], xp.ones_like(s[0])]))
        else:
            parts.append(xp.repeat(s[:1], block.n_theta, axis=0))
    return _joined(xp, parts)


def _joined(xp: Any, parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else xp.concatenate(parts)


def canonical(theta: Array, template: Template) -> tuple[Array, Array]:
    """The θ with the same LLᵀ whose L has a non-negative diagonal (roots of eigenvalues ≥ 0).

    Returns it and the signs (k, *lanes) of its derivative in the given one.
    """
    parts, signs, xp = [], [], namespace(theta)
    for part, block in zip(split(theta, template), template, strict=True):
        if block.structure == "unstructured":
            _, columns, diagonal = triangle(block.size)
            sign = xp.where(part[diagonal] < 0, -1.0, 1.0)[columns]
            parts.append(part * sign)
        elif block.structure == "ar1" and block.size > 1:
            parts.append(xp.stack([xp.abs(part[0]), xp.arcsin(xp.sin(part[1]))]))
            sign = xp.stack([xp.where(part[0] < 0, -1.0, 1.0), xp.where(xp.cos(part[1]) < 0, -1.0, 1.0)])
        else:
            sign = xp.where(part < 0, -1.0, 1.0)
            parts.append(part * sign)
        signs.append(sign)
    return _joined(xp, parts), _joined(xp, signs)


def smallest_root(theta: Array, template: Template) -> Array:
    """The smallest conditional standard deviation of the template: 0 at a singular fit.

    For a triangular L this is min diag L, for the other structures the smallest root eigenvalue;
    for AR(1) the innovation standard deviation.
    """
    values, xp = [], namespace(theta)
    for part, block in zip(split(theta, template), template, strict=True):
        if block.structure == "unstructured":
            values.append(xp.abs(part[triangle(block.size)[2]]))
        elif block.structure == "ar1" and block.size > 1:
            values.append(xp.abs(part[:1] * xp.cos(part[1:])))
        else:
            values.append(xp.abs(part))
    return _joined(xp, values).min(0)


@functools.lru_cache(maxsize=256)
def squared_basis(template: Template) -> np.ndarray | None:
    """(kq, k, k) constants N with packed Ψ = LLᵀ equal to ½ θᵀN_xθ; None where L is not linear in θ (AR(1))."""
    if any(block.structure == "ar1" and block.size > 1 for block in template):
        return None
    q, k = sum(block.size for block in template), n_theta(template)
    basis = np.zeros((k, q, q))
    row = column = 0
    for block in template:
        basis[row : row + block.n_theta, column : column + block.size, column : column + block.size] = factor_basis(
            block
        )
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
    xp, q = namespace(theta), block.size
    if block.structure != "ar1" or q == 1:
        rows, columns = tril(q)
        position = np.zeros((q, q), int)
        position[rows, columns] = position[columns, rows] = np.arange(len(rows))
        slope, bend = squared_derivatives(theta, (block,))
        return slope[position], xp.broadcast_to(bend[position], (q, q, *bend.shape[1:3], *theta.shape[1:]))
    # Ψ = s²ρ^lag with ρ = sin φ.
    s, phi = theta
    lag = np.abs(np.subtract.outer(np.arange(q), np.arange(q))).reshape(q, q, *[1] * s.ndim)
    rho, d_rho, dd_rho = xp.sin(phi), xp.cos(phi), -xp.sin(phi)
    power = rho**lag
    d_power = xp.where(lag > 0, lag * rho ** np.maximum(lag - 1, 0), 0.0)
    dd_power = xp.where(lag > 1, lag * (lag - 1) * rho ** np.maximum(lag - 2, 0), 0.0)
    in_r, in_rr = d_power * d_rho, dd_power * d_rho**2 + d_power * dd_rho
    slope = xp.stack([2.0 * s * power, s**2 * in_r], axis=2)
    across = 2.0 * s * in_r
    bend = xp.stack([xp.stack([2.0 * power, across], axis=2), xp.stack([across, s**2 * in_rr], axis=2)], axis=2)
    return slope, bend


def linear_basis(template: Template) -> np.ndarray:
    """(k, q, q) symmetric matrices E_a with LLᵀ = Σ_a ω_a E_a: the packing of the natural and profile scales.

    ω are the row-major lower triangle of an unstructured block, the variances of a diagonal one, the one
    variance of an identity block.
    """
    q = sum(block.size for block in template)
    basis, at = [], 0
    for block in template:
        where = at + np.arange(block.size)
        at += block.size
        if block.structure == "unstructured":
            pairs = [([int(i)], [int(j)]) for i, j in zip(*tril(block.size), strict=True)]
        elif block.structure == "diagonal":
            pairs = [([i], [i]) for i in range(block.size)]
        elif block.structure == "identity" or block.size == 1:
            pairs = [(list(range(block.size)), list(range(block.size)))]
        else:
            raise UnsupportedError(
                f"a {block.structure} block is not linear in its covariance parameters: use the square-root scale"
            )
        for rows, columns in pairs:
            E = np.zeros((q, q))
            E[where[rows], where[columns]] = E[where[columns], where[rows]] = 1.0
            basis.append(E)
    return np.array(basis)


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


def pack(M: Array) -> Array:
    """Row-major lower triangle of M (q, q): statsmodels' packing order."""
    return M[tril(M.shape[0])]
