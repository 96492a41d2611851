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

# Multiplications that moving an entry of a front costs, and a front of its own.
ENTRY, FRONT = 30, 4096
# A column that meets more than this times √K others is eliminated late (Amestoy, Davis & Duff 1996).
MANY = 10.0
# Pivots from which a matrix goes to LAPACK by itself.
ALONE = 64


class Stack(NamedTuple):
    """b fronts of w pivots and u further rows, padded: pivots by ones on the diagonal, rows by the index K.

    Attributes
    ----------
    pivots : (b, w), rows : (b, u) positions in the order of elimination, K where padded.
    at : where its b(w+u)² entries begin among all stacks'; places : (b, u, u) of its update in the fronts above.
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
    pivots, above = _fronts(reached)
    # What was merged is now eliminated together.
    again = np.concatenate(pivots) if K else np.zeros(0, np.int64)
    place = np.empty(K, np.int64)
    place[again] = np.arange(K)
    a, b = place[later], place[earlier]
    widths = np.array([len(mine) for mine in pivots])
    rows = [np.sort(place[mine]) for mine in above]
    return _laid_out(order[again], widths, rows, np.maximum(a, b), np.minimum(a, b))


def _fill_reducing(row: np.ndarray, column: np.ndarray, K: int) -> np.ndarray:
    """Columns that meet very many last; minimum degree of the others."""
    off = row != column
    row, column = row[off], column[off]
    degree = np.bincount(row, minlength=K) + np.bincount(column, minlength=K)
    few = degree <= max(16.0, MANY * np.sqrt(K))
    kept, last = np.flatnonzero(few), np.flatnonzero(~few)
    if len(kept) < 2:
        return np.argsort(degree, kind="stable")
    place = np.cumsum(few) - 1
    both = few[row] & few[column]
    order = kept[_minimum_degree(place[row[both]], place[column[both]], len(kept))]
    return np.concatenate([order, last[np.argsort(degree[last], kind="stable")]])


def _minimum_degree(row: np.ndarray, column: np.ndarray, K: int) -> np.ndarray:
    """As SuperLU computes it for an incomplete factor that drops everything."""
    lower = scipy.sparse.coo_matrix((np.full(len(row), 1e-3 / K), (row, column)), shape=(K, K))
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


def _fronts(reached: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pivots of every front and the rows it reaches, children first.

    Successive columns that reach the same are one front; children join their parents where that costs less. A child
    that reaches nearly all its parent holds would keep an update as large as the parent: schools that meet most
    teachers are better off in one front with them.
    """
    n = len(reached)
    head = np.ones(n, bool)
    for j in range(1, n):
        before = reached[j - 1]
        head[j] = not (len(before) == len(reached[j]) + 1 and before[0] == j)
    front_of = np.cumsum(head) - 1
    first = np.append(np.flatnonzero(head), n)
    width = np.diff(first)
    above = [reached[j] for j in first[1:] - 1]
    members = [[f] for f in range(len(above))]
    for f, rows in enumerate(above):
        if len(rows) == 0:
            continue
        up = front_of[rows[0]]
        mine, its, beyond = int(width[f]), int(width[up]), len(above[up])
        if _cost(mine + its, beyond) <= _cost(mine, len(rows)) + _cost(its, beyond):
            members[up] += members[f]
            members[f] = []
            width[up] += width[f]
    kept = [f for f in range(len(above)) if members[f]]
    pivots = [np.concatenate([np.arange(first[f], first[f + 1]) for f in sorted(members[g])]) for g in kept]
    return pivots, [above[f] for f in kept]


def _cost(w: int, u: int) -> int:
    """Of a front of w pivots that reaches u rows, in multiplications."""
    return (w + u) ** 2 * (w + ENTRY) + FRONT


def _bucket(n: int) -> int:
    """The padded length: two significant bits, so at most a third more."""
    if n <= 4 or n > 256:
        return n
    unit = 1 << (n.bit_length() - 3)
    return -(-n // unit) * unit


class _Places:
    """Where entries stand: front by front, of every front its pivots, padding, and the rows it reaches."""

    def __init__(self, width: np.ndarray, above: list[np.ndarray], shapes: np.ndarray, begin: np.ndarray) -> None:
        n, K = len(width), int(width.sum())
        self.K, self.width, self.begin = K, width, begin
        self.first, self.front_of = np.cumsum(width) - width, np.repeat(np.arange(n), width)
        self.side, self.pivots = shapes.sum(1), shapes[:, 0]
        sizes = np.array([len(rows) for rows in above], int)
        # Rows are found by front and position: these keys ascend. One more, beyond all, is there for pivots.
        self.key = np.append(np.repeat(np.arange(n), sizes) * K + np.concatenate([*above, np.zeros(0, int)]), n * K)
        self.rank = np.append(np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes), 0)

    def local(self, front: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The row of a front at which a position stands."""
        inside = self.front_of[position] == front
        row = self.rank[np.searchsorted(self.key, front * self.K + position)]
        return np.where(inside, position - self.first[front], self.pivots[front] + row)

    def of(self, front: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The place of an entry among those of all fronts."""
        return self.begin[front] + self.local(front, row) * self.side[front] + self.local(front, column)

    def updates(self, rows: np.ndarray, nowhere: int) -> np.ndarray:
        """The places (b, u, u) of the updates of fronts that reach ``rows`` (b, u), in the fronts above them."""
        b, u = rows.shape
        out = np.full((b, u, u), nowhere)
        if u:
            up, real = self.front_of[rows[:, 0]], rows < self.K
            mine = self.local(np.repeat(up, u), np.where(real, rows, rows[:, :1]).ravel()).reshape(b, u)
            place = self.begin[up, None, None] + mine[:, :, None] * self.side[up, None, None] + mine[:, None, :]
            np.copyto(out, place, where=real[:, :, None] & real[:, None, :])
        return out


def _heights(front_of: np.ndarray, above: list[np.ndarray]) -> np.ndarray:
    """Of every front in the tree, leaves 0."""
    out = np.zeros(len(above), int)
    for f, rows in enumerate(above):
        if len(rows):
            up = front_of[rows[0]]
            out[up] = max(out[up], out[f] + 1)
    return out


def _laid_out(
    order: np.ndarray, width: np.ndarray, above: list[np.ndarray], later: np.ndarray, earlier: np.ndarray
) -> Plan:
    """Stacks of fronts of one height and padded shape, and where every entry stands."""
    K, n = len(order), len(above)
    front_of = np.repeat(np.arange(n), width)
    shapes = np.array([(_bucket(int(w)), _bucket(len(rows))) for w, rows in zip(width, above, strict=True)])
    kinds = np.column_stack([_heights(front_of, above), shapes])
    sorting = np.lexsort(kinds.T[::-1])
    areas = shapes[sorting].sum(1) ** 2
    begin = np.empty(n, np.int64)
    begin[sorting] = np.cumsum(areas) - areas
    size = int(areas.sum())
    places = _Places(width, above, shapes, begin)
    stacks = []
    for members in np.split(sorting, np.flatnonzero(np.diff(kinds[sorting], axis=0).any(1)) + 1):
        w, u = shapes[members[0]]
        pivots, rows = np.full((len(members), w), K), np.full((len(members), u), K)
        for i, f in enumerate(members):
            pivots[i, : width[f]] = places.first[f] + np.arange(width[f])
            rows[i, : len(above[f])] = above[f]
        stacks.append(Stack(pivots, rows, int(begin[members[0]]), places.updates(rows, size), pivots == K))
    work = float((shapes.sum(1) ** 2.0 * shapes[:, 0]).sum())
    return Plan(order, stacks, size, places.of(front_of[earlier], later, earlier), work)


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
            update = front[:, w:, w:] - _squared(L21)
            if len(update) == 1:
                F[stack.places[0]] += update[0]
            else:
                np.add.at(F, stack.places.ravel(), update.ravel())
        inverses.append(inverse)
        below.append(L21)
    return Factor(float(log_det), inverses, below)


def _squared(A: np.ndarray) -> np.ndarray:
    """AAᵀ (b, u, u); of one column not by BLAS, which is called matrix by matrix."""
    return A * np.swapaxes(A, 1, 2) if A.shape[2] == 1 else A @ np.swapaxes(A, 1, 2)


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
    steps = list(zip(plan.stacks, found.inverses, found.below, strict=True))
    halves = []
    for stack, inverse, L21 in steps:
        halves.append(inverse @ x[stack.pivots])
        np.subtract.at(x, stack.rows, L21 @ halves[-1])
        x[-1] = 0.0
    for (stack, inverse, L21), half in zip(reversed(steps), reversed(halves), strict=True):
        x[stack.pivots] = np.swapaxes(inverse, 1, 2) @ (half - np.swapaxes(L21, 1, 2) @ x[stack.rows])
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
            B, Z22 = L21 @ inverse, Z[stack.places]
            Z21 = -Z22 @ B
            corner -= np.swapaxes(B, 1, 2) @ Z21
            front[:, w:, w:], front[:, w:, :w], front[:, :w, w:] = Z22, Z21, np.swapaxes(Z21, 1, 2)
        front[:, :w, :w] = corner
    return Z[plan.where]
