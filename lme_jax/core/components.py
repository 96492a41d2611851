"""Log-likelihood, score and Hessian of any model with linear covariance, at any parameters, in plain NumPy.

The evaluation engine behind statsmodels' ``loglike``, ``score`` and ``hessian``: it shares no code with the
fits, and with ``lindstrom_bates`` the step from sums to derivatives. Levels that meet in a row are joined
into blocks (connected components; a block lies inside a group), blocks with equal numbers of levels are
stacked, and every quantity comes from the blocks' cross-products G = AᵀA and C = Aᵀ[X y] with A the block's
random-effects columns. Nothing inverts Ψ, so zero variances need no special case. Parameters are (β, ω) on
the profile scale, ω = Σ ω_a E_a = Cov(b)/σ², with σ² profiled out.

References: Lindstrom & Bates (1988), J. Am. Stat. Assoc. 83, 1014–1022, sections 4–5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from ..errors import UnsupportedError
from . import lindstrom_bates
from .covariance import Block, Template, linear_basis

BLOCK_LIMIT = 4096
CHUNK = 1 << 22


class Term(NamedTuple):
    """One random term: Z (n, q), the level of each row (n,), how many levels, the covariance of a level."""

    Z: np.ndarray
    codes: np.ndarray
    n_levels: int
    structure: str


class Batch(NamedTuple):
    """Blocks of one shape. levels : per term; columns : (B, q) among all effects; G : (B, q, q); C : (B, q, p+1)."""

    levels: tuple[int, ...]
    columns: np.ndarray
    G: np.ndarray
    C: np.ndarray


class Sums(NamedTuple):
    """Totals over the blocks at one (β, ω): what value, score and Hessian are made of."""

    log_det: float
    H: np.ndarray


@dataclass(frozen=True)
class Components:
    """Compressed moments of a model.

    Attributes
    ----------
    template : a block per term, in packed order.
    pilot : (p,) ordinary least squares β, taken out of y so that offsets cost no digits.
    S : (p+1, p+1) [X y−Xβ₀]ᵀ[X y−Xβ₀].
    """

    template: Template
    batches: tuple[Batch, ...]
    S: np.ndarray
    pilot: np.ndarray
    n_rows: int
    log_weights: float

    @classmethod
    def build(
        cls,
        y: np.ndarray,
        X: np.ndarray,
        terms: Sequence[Term],
        weights: np.ndarray | None = None,
    ) -> "Components":
        """From rows: y (n,) less any offset, X (n, p), the random terms, prior weights (n,)."""
        root = None if weights is None else np.sqrt(weights)
        Xw = X if root is None else X * root[:, None]
        yw = y if root is None else y * root
        pilot = np.linalg.lstsq(Xw, yw, rcond=None)[0] if X.shape[1] else np.zeros(0)
        W = np.column_stack([Xw, yw - Xw @ pilot])
        A = _columns(terms, root)
        blocks, count = _blocks(terms)
        batches = tuple(_batches(terms, A, W, blocks, count))
        template = tuple(Block(t.structure, t.Z.shape[1]) for t in terms)
        log_weights = 0.0 if weights is None else float(np.log(weights).sum())
        return cls(template, batches, W.T @ W, pilot, len(y), log_weights)

    @property
    def n_fixed(self) -> int:
        return len(self.pilot)

    @property
    def n_omega(self) -> int:
        return sum(block.n_theta for block in self.template)

    def dof(self, reml: bool) -> int:
        """N: rows, less the fixed effects under REML."""
        return self.n_rows - (self.n_fixed if reml else 0)

    # ------------------------------------------------------------ values

    def _chunks(self, omega: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Batch]]:
        """(E, Ψ, G, C-carrying batch) a few blocks at a time."""
        bases = [linear_basis((block,)) for block in self.template]
        for batch in self.batches:
            E = _embed(bases, batch.levels)
            Psi = np.einsum("a,aij->ij", omega, E)
            size = max(1, CHUNK // max(1, batch.G.shape[1] ** 2 * (len(E) + 1)))
            for lo in range(0, len(batch.G), size):
                part = slice(lo, lo + size)
                yield E, Psi, batch.G[part], Batch(batch.levels, batch.columns[part], batch.G[part], batch.C[part])

    def sums(self, omega: np.ndarray) -> Sums:
        """log|V| and [X y]ᵀV⁻¹[X y]; NaN where V is not positive definite."""
        log_det, H = 0.0, self.S.copy()
        for _, Psi, G, part in self._chunks(omega):
            inner = np.eye(len(Psi)) + G @ Psi
            signs, logs = np.linalg.slogdet(inner)
            log_det += logs.sum() if (signs > 0).all() else np.nan
            D = np.linalg.solve(inner, part.C)
            H -= np.einsum("gip,ij,gjc->pc", part.C, Psi, D, optimize=True)
        return Sums(log_det, 0.5 * (H + H.T))

    def gls(self, omega: np.ndarray) -> np.ndarray:
        """(p,) generalised least squares β̂(ω)."""
        p, H = self.n_fixed, self.sums(omega).H
        return self.pilot + np.linalg.solve(H[:p, :p], H[:p, p])

    def scale(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> float:
        """σ̂² = (y − Xβ)ᵀV⁻¹(y − Xβ)/N."""
        contrast = self._contrast(beta)
        return float(contrast @ self.sums(omega).H @ contrast) / self.dof(reml)

    def _contrast(self, beta: np.ndarray) -> np.ndarray:
        return np.append(self.pilot - np.asarray(beta, float), 1.0)

    def loglike(self, beta: np.ndarray | None, omega: np.ndarray, reml: bool) -> float:
        """ℓ(β, ω), ML or restricted, with σ² profiled out; β̂(ω) where ``beta`` is None."""
        log_det, H = self.sums(omega)
        p, N = self.n_fixed, self.dof(reml)
        if beta is None:
            shift = np.linalg.solve(H[:p, :p], H[:p, p])
            Q = H[p, p] - H[:p, p] @ shift
        else:
            contrast = self._contrast(beta)
            Q = contrast @ H @ contrast
        value = log_det - self.log_weights + N * (1.0 + np.log(2.0 * np.pi * Q / N))
        return -0.5 * float(value + (_log_det(H[:p, :p]) if reml else 0.0))

    def score_and_hessian(self, beta: np.ndarray, omega: np.ndarray, reml: bool) -> tuple[np.ndarray, np.ndarray]:
        """Exact score (p + k,) and Hessian (p + k, p + k) at (β, ω), terms in XᵀV⁻¹r included."""
        p, k, N = self.n_fixed, self.n_omega, self.dof(reml)
        contrast = self._contrast(beta)
        H = self.sums(omega).H
        M, Xr, Q = H[:p, :p], H[:p] @ contrast, contrast @ H @ contrast
        trace, B = np.zeros(k), np.zeros(k)
        trace2, B2, XB = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, p))
        X_a, F = np.zeros((k, p, p)), np.zeros((k, k, p, p))
        for E, Psi, G, part in self._chunks(omega):
            inner = np.eye(len(Psi)) + G @ Psi
            both = np.linalg.solve(inner, np.concatenate([G, part.C], axis=2))
            U, D = both[:, :, : len(Psi)], both[:, :, len(Psi) :]
            DX, Dr = D[:, :, :p], D @ contrast
            trace += np.einsum("aij,gji->a", E, U, optimize=True)
            ED = np.einsum("aij,gjc->agic", E, np.concatenate([DX, Dr[:, :, None]], axis=2), optimize=True)
            EDX, EDr = ED[..., :p], ED[..., p]
            B += np.einsum("gi,agi->a", Dr, EDr)
            XB += np.einsum("gip,agi->ap", DX, EDr, optimize=True)
            UED = np.einsum("gij,bgjc->bgic", U, ED, optimize=True)
            B2 += np.einsum("agi,bgi->ab", EDr, UED[..., p], optimize=True)
            EU = np.einsum("aij,gjk->agik", E, U, optimize=True)
            trace2 += np.einsum("agik,bgki->ab", EU, EU, optimize=True)
            if reml and p:
                X_a += np.einsum("gip,agir->apr", DX, EDX, optimize=True)
                F += np.einsum("agip,bgir->abpr", EDX, UED[..., :p], optimize=True)
        return lindstrom_bates.assemble(lindstrom_bates.Sums(Q, Xr, M, trace, B, XB, trace2, B2, X_a, F), N, reml)

    def effects_covariance(self, omega: np.ndarray) -> tuple[scipy.sparse.csr_array, np.ndarray]:
        """Var(b | y, β)/σ² of all effects (block diagonal) and the slopes Cov(b)ZᵀV⁻¹X/σ² (effects, p)."""
        p, rows, columns, values = self.n_fixed, [], [], []
        total = sum(batch.columns.size for batch in self.batches)
        slopes = np.zeros((total, p))
        for _, R, G, part in self._chunks(omega):
            q = len(R)
            both = np.linalg.solve(np.eye(q) + G @ R, np.concatenate([G, part.C], axis=2))
            variance = R - R @ both[:, :, :q] @ R
            slopes[part.columns] = R @ both[:, :, q : q + p]
            rows.append(np.repeat(part.columns, q, axis=1).ravel())
            columns.append(np.tile(part.columns, (1, q)).ravel())
            values.append(variance.ravel())
        entries = (np.concatenate(rows), np.concatenate(columns))
        return scipy.sparse.coo_array((np.concatenate(values), entries), (total, total)).tocsr(), slopes

    def profiled(self, omega: np.ndarray, reml: bool) -> tuple[float, np.ndarray, np.ndarray]:
        """ℓ(β̂(ω), ω) with its score (k,) and Hessian (k, k) in ω."""
        p, beta = self.n_fixed, self.gls(omega)
        score, hessian = self.score_and_hessian(beta, omega, reml)
        cross = hessian[p:, :p]
        inner = np.linalg.solve(hessian[:p, :p], cross.T) if p else cross.T
        return self.loglike(beta, omega, reml), score[p:], hessian[p:, p:] - cross @ inner


def _log_det(M: np.ndarray) -> float:
    scale = np.sqrt(np.abs(np.diag(M)))
    return float(np.linalg.slogdet(M / np.outer(scale, scale))[1] + 2.0 * np.log(scale).sum()) if len(M) else 0.0


# ---------------------------------------------------------------- square-root scale


def root_map(theta: np.ndarray, template: Template) -> tuple[np.ndarray, np.ndarray]:
    """ω(θ) (k,) of θ = (rows of L, standard deviations) and its Jacobian ∂ω/∂θ (k, k)."""
    omega, jacobian, at = [], np.zeros((len(theta), len(theta))), 0
    for block in template:
        rows, columns = _root_positions(block)
        part = slice(at, at + block.n_theta)
        L = _lower(theta[part], block)
        M = L @ L.T
        omega.append(M[rows, columns])
        same_row, other_row = np.equal.outer(rows, rows), np.equal.outer(columns, rows)
        jacobian[part, part] = same_row * L[columns[:, None], columns[None]] + other_row * L[rows[:, None], columns]
        at = part.stop
    return np.concatenate(omega) if omega else np.zeros(0), jacobian


def root_hessian(theta: np.ndarray, score: np.ndarray, hessian: np.ndarray, template: Template) -> np.ndarray:
    """Hessian in θ of a function whose score (k,) and Hessian (k, k) in ω are given."""
    jacobian = root_map(theta, template)[1]
    out, at = jacobian.T @ hessian @ jacobian, 0
    for block in template:
        rows, columns = _root_positions(block)
        part = slice(at, at + block.n_theta)
        weight = np.where(rows == columns, 1.0, 0.5) * score[part]
        size = rows.max() + 1
        S = np.zeros((size, size))
        S[rows, columns] = S[columns, rows] = weight
        out[part, part] += 2.0 * S[rows[:, None], rows[None]] * np.equal.outer(columns, columns)
        at = part.stop
    return out


def root_of(omega: np.ndarray, template: Template) -> np.ndarray:
    """θ with ω(θ) = ω: Cholesky rows and square roots; zero columns where the covariance is singular."""
    parts, at = [], 0
    for block in template:
        part = omega[at : at + block.n_theta]
        at += block.n_theta
        if block.structure == "unstructured":
            lower = np.zeros((block.size,) * 2)
            lower[np.tril_indices(block.size)] = part
            parts.append(_semidefinite_root(lower + np.tril(lower, -1).T)[np.tril_indices(block.size)])
        else:
            parts.append(np.sqrt(np.maximum(part, 0.0)))
    return np.concatenate(parts) if parts else np.zeros(0)


def _semidefinite_root(M: np.ndarray) -> np.ndarray:
    M, L = M.copy(), np.zeros_like(M)
    floor = 16 * len(M) * np.finfo(float).eps * np.diag(M)
    for j in range(len(M)):
        if M[j, j] > floor[j]:
            L[j:, j] = M[j:, j] / np.sqrt(M[j, j])
            M = M - np.outer(L[:, j], L[:, j])
    return L


def _root_positions(block: Block) -> tuple[np.ndarray, np.ndarray]:
    if block.structure == "unstructured":
        return np.tril_indices(block.size)
    return np.arange(block.n_theta), np.arange(block.n_theta)


def _lower(theta: np.ndarray, block: Block) -> np.ndarray:
    rows, columns = _root_positions(block)
    L = np.zeros((rows.max() + 1,) * 2)
    L[rows, columns] = theta
    return L


# ---------------------------------------------------------------- blocks


def _columns(terms: Sequence[Term], root: np.ndarray | None) -> scipy.sparse.csr_array:
    """(n, Σ levels·q) all random-effects columns, ordered by term, level, effect."""
    n = len(terms[0].codes)
    parts = []
    for term in terms:
        q = term.Z.shape[1]
        values = term.Z if root is None else term.Z * root[:, None]
        columns = term.codes.astype(np.int64)[:, None] * q + np.arange(q)
        indptr = np.arange(n + 1) * q
        parts.append(scipy.sparse.csr_array((values.ravel(), columns.ravel(), indptr), (n, term.n_levels * q)))
    return scipy.sparse.hstack(parts, format="csr") if len(parts) > 1 else parts[0]


def _blocks(terms: Sequence[Term]) -> tuple[np.ndarray, int]:
    """The block of every level (terms end to end), and how many blocks there are."""
    offsets = np.cumsum([0, *(t.n_levels for t in terms)])
    first = terms[0].codes.astype(np.int64)
    others = [t.codes.astype(np.int64) + at for t, at in zip(terms[1:], offsets[1:], strict=False)]
    rows = np.concatenate([first for _ in others]) if others else first[:0]
    columns = np.concatenate(others) if others else first[:0]
    total = int(offsets[-1])
    graph = scipy.sparse.coo_array((np.ones(len(rows), np.int8), (rows, columns)), (total, total)).tocsr()
    count, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return labels, int(count)


def _batches(
    terms: Sequence[Term], A: scipy.sparse.csr_array, W: np.ndarray, labels: np.ndarray, count: int
) -> Iterator[Batch]:
    sizes = np.array([t.Z.shape[1] for t in terms])
    term_of_level = np.repeat(np.arange(len(terms)), [t.n_levels for t in terms])
    counts = np.zeros((count, len(terms)), int)
    np.add.at(counts, (labels, term_of_level), 1)
    block_of_column = np.repeat(labels, sizes[term_of_level])
    by_block = np.argsort(block_of_column, kind="stable")
    width = counts @ sizes
    if width.max() > BLOCK_LIMIT:
        raise UnsupportedError(
            f"{width.max()} random effects meet in one block of rows; likelihood derivatives at given parameters "
            f"are formed for up to {BLOCK_LIMIT}. The fit itself and its GLS standard errors need none of this."
        )
    starts = np.concatenate([[0], np.cumsum(width)])
    local = np.empty(len(block_of_column), int)
    local[by_block] = np.arange(len(by_block)) - np.repeat(starts[:-1], width)
    AtA = (A.T @ A).tocoo()
    AtW = np.asarray(A.T @ W)
    shapes, shape_of = np.unique(counts, axis=0, return_inverse=True)
    shape_of = shape_of.ravel()
    position = np.empty(count, int)
    entry_shape = shape_of[block_of_column[AtA.row]]
    order = np.argsort(entry_shape, kind="stable")
    cuts = np.searchsorted(entry_shape[order], np.arange(len(shapes) + 1))
    for s, shape in enumerate(shapes):
        members = np.flatnonzero(shape_of == s)
        position[members] = np.arange(len(members))
        q = int(shape @ sizes)
        columns = by_block[starts[members][:, None] + np.arange(q)]
        here = order[cuts[s] : cuts[s + 1]]
        G = np.zeros((len(members), q, q))
        G[position[block_of_column[AtA.row[here]]], local[AtA.row[here]], local[AtA.col[here]]] = AtA.data[here]
        yield Batch(tuple(int(c) for c in shape), columns, G, AtW[columns])


def _embed(bases: Sequence[np.ndarray], levels: tuple[int, ...]) -> np.ndarray:
    """(k, q, q) derivative of a block's Cov(b)/σ² in ω."""
    q = sum(m * E.shape[1] for m, E in zip(levels, bases, strict=True))
    out, at, a = np.zeros((sum(len(E) for E in bases), q, q)), 0, 0
    for m, E in zip(levels, bases, strict=True):
        part = slice(at, at + m * E.shape[1])
        for basis in E:
            out[a, part, part] = np.kron(np.eye(m), basis)
            a += 1
        at = part.stop
    return out
