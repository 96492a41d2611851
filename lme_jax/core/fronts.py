"""Cholesky factor and selected inverse of a sparse positive-definite matrix, by fronts (Duff & Reid 1983).

Columns that are eliminated together, and the rows they reach, are one small dense matrix, a front. Fronts of one height
in the elimination tree and about one size are a stack, so that a factor costs a few calls of NumPy per stack. With
F the front, L₁₁ its pivots' Cholesky factor and L₂₁ = F₂₁L₁₁⁻ᵀ, F₂₂ − L₂₁L₂₁ᵀ is added to the fronts above. Of the
inverse Z, in the way back, with B = L₂₁L₁₁⁻¹ and Z₂₂ read from above (Takahashi, Fagan & Chin 1973):
    Z₂₁ = −Z₂₂B,   Z₁₁ = L₁₁⁻ᵀL₁₁⁻¹ − BᵀZ₂₁.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from scipy.linalg import lapack

# A front takes its only child in where this many zeros, or this share of its entries, are then stored as well.
FEW_ZEROS, SHARE_ZEROS = 64, 0.1
# Pivots from which a matrix goes to LAPACK by itself.
ALONE = 64


class Stack(NamedTuple):
    """b fronts of w pivots and u further rows, padded: pivots by ones on the diagonal, rows by the index K.

    Attributes
    ----------
    pivots : (b, w), rows : (b, u) positions in the order of elimination, K where padded.
    at : where its b(w+u)² entries begin among those of all stacks; places : (b, u, u) of its update in fronts above.
    padding : (b, w) bool.
    """

    pivots: np.ndarray
    rows: np.ndarray
    at: int
    places: np.ndarray
    padding: np.ndarray


class Plan(NamedTuple):
    """What depends on the pattern only.

    Attributes
    ----------
    order : (K,) the column eliminated at every position; stacks : leaves first; size : entries of all fronts.
    where : (N,) of every listed pair among them; work : multiplications of a factor.
    """

    order: np.ndarray
    stacks: list[Stack]
    size: int
    where: np.ndarray
    work: float


class Factor(NamedTuple):
    """log|S|; per stack L₁₁⁻¹ (b, w, w) and L₂₁ (b, u, w)."""

    log_det: float
    inverses: list[np.ndarray]
    below: list[np.ndarray]


# ---------------------------------------------------------------- the pattern


def plan(row: np.ndarray, column: np.ndarray, K: int, most_work: float) -> Plan | None:
    """The plan for a pattern of pairs row ≥ column, the diagonal among them; None where it takes more work."""
    order = _fill_reducing(row, column, K)
    position = np.empty(K, np.int64)
    position[order] = np.arange(K)
    later, earlier = np.maximum(position[row], position[column]), np.minimum(position[row], position[column])
    reached = _reached(later, earlier, K, most_work)
    if reached is None:
        return None
    first, last, above = _fronts(reached)
    return _laid_out(order, reached, first, last, above, later, earlier)


def _fill_reducing(row: np.ndarray, column: np.ndarray, K: int) -> np.ndarray:
    """Minimum degree, as SuperLU computes it for an incomplete factor that drops everything."""
    off = row != column
    lower = scipy.sparse.coo_matrix((np.full(off.sum(), 1e-3 / K), (row[off], column[off])), shape=(K, K))
    A = (lower + lower.T + scipy.sparse.identity(K)).tocsc()
    options = {"SymmetricMode": True}
    found = scipy.sparse.linalg.spilu(
        A, drop_tol=1.0, fill_factor=1.0, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options
    )
    return np.argsort(found.perm_c)


def _reached(later: np.ndarray, earlier: np.ndarray, K: int, most_work: float) -> list[np.ndarray] | None:
    """Per column the rows below its diagonal in the factor, ascending."""
    off = later != earlier
    own = scipy.sparse.csc_matrix((np.ones(off.sum(), bool), (later[off], earlier[off])), shape=(K, K))
    own.sort_indices()
    own = np.split(own.indices, own.indptr[1:-1])
    parts: list[list[np.ndarray]] = [[a] if len(a) else [] for a in own]
    out: list[np.ndarray] = []
    work = 0.0
    for mine in parts:
        rows = np.unique(np.concatenate(mine)) if len(mine) > 1 else mine[0] if mine else np.zeros(0, np.int32)
        out.append(rows)
        mine.clear()
        if len(rows):
            work += len(rows) ** 2
            if len(rows) > 1:
                parts[rows[0]].append(rows[1:])
        if work > most_work:
            return None
    return out


def _fronts(reached: list[np.ndarray]) -> tuple[list[int], list[int], list[np.ndarray]]:
    """First and last column of every front, and the rows it reaches: successive columns that are alike, or nearly."""
    first: list[int] = []
    last: list[int] = []
    zeros: list[int] = []
    for j, rows in enumerate(reached):
        follows = j > 0 and len(reached[j - 1]) and reached[j - 1][0] == j
        if follows:
            width = j - first[-1]
            extra = zeros[-1] + width * (len(rows) + 1 - len(reached[j - 1]))
            if extra <= max(FEW_ZEROS, SHARE_ZEROS * (width + 1) * (width + 1 + len(rows))):
                last[-1], zeros[-1] = j, extra
                continue
        first.append(j)
        last.append(j)
        zeros.append(0)
    return first, last, [reached[j] for j in last]


def _bucket(n: int) -> int:
    """The padded length: two significant bits, so at most a third more."""
    if n <= 4 or n > 256:
        return n
    unit = 1 << (n.bit_length() - 3)
    return -(-n // unit) * unit


def _laid_out(
    order: np.ndarray,
    reached: list[np.ndarray],
    first: list[int],
    last: list[int],
    above: list[np.ndarray],
    later: np.ndarray,
    earlier: np.ndarray,
) -> Plan:
    """Stacks of fronts, and where every entry stands."""
    K, n = len(order), len(first)
    front_of = np.repeat(np.arange(n), np.array(last) - np.array(first) + 1)
    height = np.zeros(n, int)
    for f, rows in enumerate(above):
        if len(rows):
            up = front_of[rows[0]]
            height[up] = max(height[up], height[f] + 1)
    shapes = [(_bucket(b - a + 1), _bucket(len(rows))) for a, b, rows in zip(first, last, above, strict=True)]
    groups: dict[tuple[int, int, int], list[int]] = {}
    for f in range(n):
        groups.setdefault((int(height[f]), *shapes[f]), []).append(f)
    begin, side, pad = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    at, work = 0, 0.0
    keys = sorted(groups)
    for key in keys:
        _, w, u = key
        members = np.array(groups[key])
        begin[members], side[members] = at + np.arange(len(members)) * (w + u) ** 2, w + u
        pad[members] = w - (np.array(last)[members] - np.array(first)[members] + 1)
        at += len(members) * (w + u) ** 2
        work += len(members) * float(w + u) ** 2 * w
    # Entries of pivots and of rows are looked up by (front, position): keys in ascending order.
    sizes = np.array([len(rows) for rows in above])
    row_front = np.repeat(np.arange(n), sizes)
    row_key = row_front * K + (np.concatenate(above) if n else np.zeros(0, int))
    row_rank = np.arange(len(row_key)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    firsts, width = np.array(first), np.array(last) - np.array(first) + 1

    def local(front: np.ndarray, position: np.ndarray) -> np.ndarray:
        inside = front_of[position] == front
        found = (
            row_rank[np.minimum(np.searchsorted(row_key, front * K + position), max(len(row_key) - 1, 0))]
            if len(row_key)
            else np.zeros(len(front), int)
        )
        return np.where(inside, position - firsts[front], width[front] + pad[front] + found)

    def place(front: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return begin[front] + local(front, a) * side[front] + local(front, b)

    stacks = []
    for key in keys:
        _, w, u = key
        members = np.array(groups[key])
        pivots, rows = np.full((len(members), w), K), np.full((len(members), u), K)
        for i, f in enumerate(members):
            pivots[i, : width[f]] = np.arange(first[f], last[f] + 1)
            rows[i, : sizes[f]] = above[f]
        places = np.full((len(members), u, u), at)
        if u:
            up = front_of[rows[:, 0]]
            real = rows < K
            owner = np.repeat(up, u)
            mine = np.where(real, local(owner, np.minimum(rows, K - 1).ravel()).reshape(rows.shape), 0)
            some = real[:, :, None] & real[:, None, :]
            inside = begin[up][:, None, None] + mine[:, :, None] * side[up][:, None, None] + mine[:, None, :]
            places[some] = inside[some]
        stacks.append(Stack(pivots, rows, int(begin[members[0]]), places, pivots == K))
    return Plan(order, stacks, at, place(front_of[earlier], later, earlier), work)


# ---------------------------------------------------------------- the numbers


def factor(plan: Plan, values: np.ndarray) -> Factor | None:
    """The factor of the matrix with these values (N,) at the listed pairs; None where it is not positive definite."""
    # One entry more, for what is padded.
    F = np.zeros(plan.size + 1)
    F[plan.where] = values
    log_det, inverses, below = 0.0, [], []
    for stack in plan.stacks:
        front = _front(F, stack)
        w = stack.pivots.shape[1]
        which, pivot = np.nonzero(stack.padding)
        front[which, pivot, pivot] = 1.0
        root = _roots(front[:, :w, :w])
        if root is None:
            return None
        log_det += 2.0 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum()
        inverse = _inverses(root)
        L21 = front[:, w:, :w] @ np.swapaxes(inverse, 1, 2)
        if L21.shape[1]:
            update = front[:, w:, w:] - L21 @ np.swapaxes(L21, 1, 2)
            if len(update) == 1:
                F[stack.places[0]] += update[0]
            else:
                np.add.at(F, stack.places.ravel(), update.ravel())
        inverses.append(inverse)
        below.append(L21)
    return Factor(float(log_det), inverses, below)


def _front(F: np.ndarray, stack: Stack) -> np.ndarray:
    b, w = stack.pivots.shape
    n = w + stack.rows.shape[1]
    return F[stack.at : stack.at + b * n * n].reshape(b, n, n)


def _roots(A: np.ndarray) -> np.ndarray | None:
    """Lower Cholesky factors of (b, w, w), of which the lower triangles are read."""
    if len(A) == 1 and A.shape[1] > ALONE:
        root, info = lapack.dpotrf(A[0].T, lower=0, clean=1)
        return root.T[None] if info == 0 else None
    try:
        return np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        return None


def _inverses(root: np.ndarray) -> np.ndarray:
    """The inverses (b, w, w) of lower triangles."""
    if root.shape[1] == 1:
        return 1.0 / root
    if len(root) == 1 and root.shape[1] > ALONE:
        return lapack.dtrtri(root[0], lower=1)[0][None]
    return np.tril(np.linalg.inv(root))


def solve(plan: Plan, found: Factor, R: np.ndarray) -> np.ndarray:
    """S⁻¹R for R (K, c)."""
    x = np.zeros((len(R) + 1, R.shape[1]))
    x[:-1] = R[plan.order]
    halves = []
    for stack, inverse, L21 in zip(plan.stacks, found.inverses, found.below, strict=True):
        half = inverse @ x[stack.pivots]
        halves.append(half)
        if L21.shape[1]:
            np.subtract.at(x, stack.rows, L21 @ half)
            x[-1] = 0.0
    steps = list(zip(plan.stacks, found.inverses, found.below, halves, strict=True))
    for stack, inverse, L21, half in reversed(steps):
        rest = half - np.swapaxes(L21, 1, 2) @ x[stack.rows] if L21.shape[1] else half
        x[stack.pivots] = np.swapaxes(inverse, 1, 2) @ rest
        x[-1] = 0.0
    out = np.empty(R.shape)
    out[plan.order] = x[:-1]
    return out


def selected_inverse(plan: Plan, found: Factor) -> np.ndarray:
    """S⁻¹ (N,) at the listed pairs."""
    Z = np.zeros(plan.size + 1)
    for stack, inverse, L21 in reversed(list(zip(plan.stacks, found.inverses, found.below, strict=True))):
        front, w = _front(Z, stack), stack.pivots.shape[1]
        corner = np.swapaxes(inverse, 1, 2) @ inverse
        if L21.shape[1]:
            B = L21 @ inverse
            Z22 = Z[stack.places]
            Z21 = -Z22 @ B
            corner = corner - np.swapaxes(B, 1, 2) @ Z21
            front[:, w:, w:], front[:, w:, :w], front[:, :w, w:] = Z22, Z21, np.swapaxes(Z21, 1, 2)
        front[:, :w, :w] = corner
    return Z[plan.where]
