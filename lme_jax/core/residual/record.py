"""log|V|, H and all that moves them at one x, summed over the stacks.

Two passes: H = [X y]ᵀV⁻¹[X y] first; then, in the basis A in which X is orthonormal in V⁻¹ and r = y − Xβ̂ stands beside
it, the sums of ``likelihood.Record``. With V = KKᵀ, T = K⁻¹XA, e = K⁻¹r and A_a = K⁻¹V_aK⁻ᵀ of a pattern these are
tr A_a, tr A_aA_b, eᵀA_aA_be and, with N = Σ TTᵀ over the blocks of a pattern, tr A_aA_bN: one n × n matrix in the place
of p columns. On the grid of a structure by visit the same is summed for the T² entries of Σ, before the chain rule: the
cost is that of the patterns and not of the T(T + 1)/2 parameters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from ..criterion import whitening
from ..likelihood import Record
from .model import Model, Pattern, bend, bend_of_grids, grids, pattern
from .stacks import Stack

# Sizes from which one triangular inverse after the other is quicker than a batched general one.
LARGE = 64
# Numbers that are kept between the passes rather than made twice.
KEPT = 4_000_000


class Half(NamedTuple):
    """A stack at x: K⁻¹ (P, n, n), K⁻¹C (R, n, w) and, where it was kept, its ``Pattern``."""

    inverse: np.ndarray
    E: np.ndarray
    at: Pattern | None


class Solved(NamedTuple):
    """log|V| (), H (w, w) and the stacks."""

    log_det: float
    H: np.ndarray
    halves: list[Half]
    x: np.ndarray


class Moved(NamedTuple):
    """``Record`` in whitened columns; X_a (k, p, p), and what second derivatives of Cov β̂ need besides.

    Attributes
    ----------
    F : (k, p, k, p) F_ab; bent : (k, k, p, p) X_ab; None unless asked for.
    """

    record: Record
    X_a: np.ndarray
    F: np.ndarray | None
    bent: np.ndarray | None


class Wanted(NamedTuple):
    """Whether log|XᵀV⁻¹X| counts, X_a is asked for (it is needed then anyway), and second derivatives of Cov β̂ are."""

    reml: bool
    slopes: bool = False
    second: bool = False

    @property
    def fixed(self) -> bool:
        """Whether more than one residual is to be moved."""
        return self.reml or self.slopes or self.second


def triangular_inverse(K: np.ndarray) -> np.ndarray:
    """K⁻¹ (P, n, n) of lower triangular K."""
    n = K.shape[-1]
    if n == 1:
        return 1.0 / K
    if n < LARGE:
        return np.tril(np.linalg.inv(K))
    return np.stack([lapack.dtrtri(one, lower=1)[0] for one in K])


def solve(model: Model, x: np.ndarray, stacks: Sequence[Stack]) -> Solved | None:
    """``Solved`` at x; None where V is not positive definite or not finite."""
    on_grid = is_grid(model, stacks)
    small = not on_grid and sum(s.present.size * s.present.shape[1] for s in stacks) * (len(x) + 3) < KEPT
    w = stacks[0].C.shape[2]
    log_det, H, halves = 0.0, np.zeros((w, w)), []
    for stack in stacks:
        at = pattern(model, x, stack, derivatives=small)
        if not np.isfinite(at.V).all():
            return None
        try:
            K = np.linalg.cholesky(at.V)
        except np.linalg.LinAlgError:
            return None
        log_det += 2.0 * float(stack.copies @ np.log(np.diagonal(K, axis1=1, axis2=2)).sum(1))
        inverse = triangular_inverse(K)
        E = inverse[stack.owner] @ stack.C
        flat = E.reshape(-1, E.shape[2])
        H += flat.T @ flat
        halves.append(Half(inverse, E, at if small else None))
    return Solved(log_det, 0.5 * (H + H.T), halves, x) if np.isfinite(H).all() and np.isfinite(log_det) else None


def is_grid(model: Model, stacks: Sequence[Stack]) -> bool:
    """Whether Σ by visit is all there is and has so many parameters that its entries are the cheaper directions."""
    one = len(stacks) == 1 and not model.bars and not model.variances and not model.family.distance
    return one and stacks[0].present.shape[1] == model.n_visits and model.n_rho >= max(model.n_visits - 1, 1)


def moved(model: Model, solved: Solved, stacks: Sequence[Stack], R: np.ndarray, N: float, wanted: Wanted) -> Moved:
    """``Moved`` at the point of ``solved``; R the Cholesky factor of H, σ² = Q/N."""
    p, Q = len(R) - 1, float(R[-1, -1] ** 2)
    find = _on_grid if is_grid(model, stacks) else _by_directions
    sums = find(model, solved, stacks, whitening(R), Q / N, wanted)
    XX = sums.X_a
    record = Record(
        M=np.eye(p),
        Xr=np.zeros(p),
        Q=Q,
        trace=sums.trace,
        XB=sums.XB,
        B=sums.B,
        trace2=sums.trace2,
        BB=sums.BB,
        own=np.trace(XX, axis1=1, axis2=2),
        F=sums.F,
        products=XX.reshape(len(XX), p * p) @ XX.swapaxes(1, 2).reshape(len(XX), p * p).T,
        bend=sums.bend,
    )
    return Moved(record, XX, sums.F_full, sums.bent)


class _Sums(NamedTuple):
    trace: np.ndarray
    trace2: np.ndarray
    B: np.ndarray
    BB: np.ndarray
    XB: np.ndarray
    X_a: np.ndarray
    F: np.ndarray
    bend: np.ndarray
    F_full: np.ndarray | None = None
    bent: np.ndarray | None = None


# ---------------------------------------------------------------- along the directions of the parameters


def by_pattern(blocks: np.ndarray, stack: Stack) -> np.ndarray:
    """(P, n, n) Σ bbᵀ over the root blocks b (R, n, c) of each pattern."""
    each = blocks @ blocks.swapaxes(1, 2)
    return each if len(each) == len(stack.first) else np.add.reduceat(each, stack.first, axis=0)


def _by_directions(
    model: Model, solved: Solved, stacks: Sequence[Stack], A: np.ndarray, s2: float, wanted: Wanted
) -> _Sums:
    k, p = len(solved.x), len(A) - 1
    shapes = [(k,), (k, k), (k,), (k, k), (k, p), (k, p, p), (k, k), (k, k)]
    total = [np.zeros(shape) for shape in shapes]
    full = np.zeros((k, p, k, p)) if wanted.second else None
    bent = np.zeros((k, k, p, p)) if wanted.second else None
    for stack, half in zip(stacks, solved.halves, strict=True):
        at = half.at if half.at is not None else pattern(model, solved.x, stack)
        E = half.E @ A
        found = _one_stack(model, solved.x, stack, at, half.inverse, E, s2, wanted)
        for into, part in zip(total, found, strict=True):
            into += part
        if full is not None and bent is not None:
            full += _all_F(stack, at, half.inverse, E[:, :, :p])
            bent += _all_bends(model, solved.x, stack, at, half.inverse, E[:, :, :p])
    return _Sums(*total)._replace(F_full=full, bent=bent)


def _one_stack(
    model: Model,
    x: np.ndarray,
    stack: Stack,
    at: Pattern,
    inverse: np.ndarray,
    E: np.ndarray,
    s2: float,
    wanted: Wanted,
) -> tuple[np.ndarray, ...]:
    """The fields of ``_Sums`` up to ``bend``."""
    k, p, n = len(x), E.shape[2] - 1, E.shape[1]
    T, e = E[:, :, :p], E[:, :, p:]
    G = by_pattern(e, stack)
    moves = inverse @ at.first @ inverse.swapaxes(1, 2)
    flat, weight = moves.reshape(k, stack.copies.size * n * n), np.repeat(stack.copies, n * n)
    trace = np.trace(moves, axis1=2, axis2=3) @ stack.copies
    trace2 = (flat * weight) @ flat.T
    turned = (moves @ G).reshape(flat.shape)
    B, BB = np.trace(turned.reshape(moves.shape), axis1=2, axis2=3).sum(1), flat @ turned.T
    own = moves if len(stack.owner) == len(stack.copies) else moves[:, stack.owner]
    XB = (own @ e).reshape(k, len(E) * n) @ T.reshape(len(E) * n, p)
    S = 0.5 * G / s2 - 0.5 * stack.copies[:, None, None] * np.eye(n)
    X_a, F = np.zeros((k, p, p)), np.zeros((k, k))
    if wanted.fixed and p:
        X_a = _inner(own, T)
        M = by_pattern(T, stack)
        F = flat @ (moves @ M).reshape(flat.shape).T
        S = S + 0.5 * M if wanted.reml else S
    bent = bend(model, x, stack, at, inverse.swapaxes(1, 2) @ S @ inverse)
    return trace, trace2, B, BB, XB, X_a, F, bent


def _inner(moves: np.ndarray, T: np.ndarray) -> np.ndarray:
    """(k, p, p) Σ TᵀA_aT for A_a (k, R, n, n), T (R, n, p)."""
    flat = T.reshape(-1, T.shape[2])
    out = [(move @ T).reshape(flat.shape).T @ flat for move in moves]
    return np.array(out).reshape(len(moves), T.shape[2], T.shape[2])


def _all_F(stack: Stack, at: Pattern, inverse: np.ndarray, T: np.ndarray) -> np.ndarray:
    """(k, p, k, p) Σ TᵀA_aA_bT."""
    moves = inverse @ at.first @ inverse.swapaxes(1, 2)
    k, p = len(moves), T.shape[2]
    Y = np.stack([(move[stack.owner] @ T).reshape(-1, p) for move in moves], 1) if k else np.zeros((1, 0, p))
    flat = Y.reshape(len(Y), k * p)
    return (flat.T @ flat).reshape(k, p, k, p)


def _all_bends(
    model: Model, x: np.ndarray, stack: Stack, at: Pattern, inverse: np.ndarray, T: np.ndarray
) -> np.ndarray:
    """(k, k, p, p) Σ XᵀV⁻¹V_abV⁻¹X, a pair of columns at a time."""
    k, p = len(x), T.shape[2]
    out = np.zeros((k, k, p, p))
    D = inverse.swapaxes(1, 2)[stack.owner] @ T
    for i in range(p):
        for j in range(i + 1):
            each = D[:, :, i, None] * D[:, None, :, j]
            each = 0.5 * (each + each.swapaxes(1, 2))
            S = each if len(each) == len(stack.first) else np.add.reduceat(each, stack.first, axis=0)
            out[:, :, i, j] = out[:, :, j, i] = bend(model, x, stack, at, S)
    return out


# ---------------------------------------------------------------- along the entries of Σ


def _on_grid(model: Model, solved: Solved, stacks: Sequence[Stack], A: np.ndarray, s2: float, wanted: Wanted) -> _Sums:
    (stack,), (half,) = stacks, solved.halves
    x, T, p = solved.x, model.n_visits, len(A) - 1
    M1 = grids(model, x)[1]
    root = half.inverse * (stack.present[:, :, None] & stack.present[:, None, :])
    U = root.swapaxes(1, 2) @ root
    D = half.inverse.swapaxes(1, 2)[stack.owner] @ (half.E @ A)
    arm = stack.at.group[np.arange(len(stack.copies)), stack.present.argmax(1)]
    total = [np.zeros(s) for s in [(len(x),), (len(x),) * 2] * 2 + [(len(x), p), (len(x), p, p)] + [(len(x),) * 2] * 2]
    S = np.empty((model.n_groups, T, T))
    full = np.zeros((len(x), p, len(x), p)) if wanted.second else None
    bent = np.zeros((len(x), len(x), p, p)) if wanted.second else None
    for a in range(model.n_groups):
        scale, mine = model.arm(a)
        own = np.arange(mine.start if scale is None else scale, mine.stop)
        inside = arm == a
        owner = _renumbered(stack.owner, inside)
        part = _Grid(U[inside], D[inside[stack.owner]], stack.copies[inside], owner)
        steps = M1[own, a].reshape(len(own), T * T)
        S[a] = _one_arm(part, steps, own, s2, wanted, total)
        if full is not None and bent is not None:
            full[np.ix_(own, np.arange(p), own, np.arange(p))] = _grid_F(part, steps, p)
            bent += _grid_bends(model, x, part, a, M1, p)
    total[7] = bend_of_grids(model, x, S, M1)
    return _Sums(*total)._replace(F_full=full, bent=bent)


class _Grid(NamedTuple):
    """Of one arm: U (P, T, T), V⁻¹[X r] (R, T, w), copies (P,) and owners (R,) of its patterns."""

    U: np.ndarray
    D: np.ndarray
    copies: np.ndarray
    owner: np.ndarray

    def by_pattern(self, blocks: np.ndarray) -> np.ndarray:
        """(P, T, T) Σ bbᵀ of blocks b (R, T, c)."""
        each = blocks @ blocks.swapaxes(1, 2)
        first = np.searchsorted(self.owner, np.arange(len(self.copies)))
        return each if len(each) == len(first) else np.add.reduceat(each, first, axis=0)


def _renumbered(owner: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return (np.cumsum(inside) - 1)[owner[inside[owner]]]


def _pairs(left: np.ndarray, U: np.ndarray) -> np.ndarray:
    """(T², T²) Σ_p left_ij U_kl at (jk, li), for left, U (P, T, T) symmetric: tr(left Δ U Δ′) is ΔᵀwΔ′."""
    T = U.shape[1]
    both = left.reshape(len(left), -1).T @ U.reshape(len(U), -1)
    return both.reshape(T, T, T, T).transpose(1, 2, 3, 0).reshape(T * T, T * T)


def _one_arm(
    g: _Grid, steps: np.ndarray, own: np.ndarray, s2: float, wanted: Wanted, total: list[np.ndarray]
) -> np.ndarray:
    """Adds an arm's share to the fields of ``_Sums`` up to F; returns S (T, T) with ∂ℓ = Σ S ∂Σ."""
    T, p = g.U.shape[1], g.D.shape[2] - 1
    e = g.D[:, :, p:]
    weighed, G = g.U * g.copies[:, None, None], g.by_pattern(e)
    pair = np.ix_(own, own)
    sum_U, sum_G = weighed.sum(0), G.sum(0)
    S = 0.5 * sum_G / s2 - 0.5 * sum_U
    total[0][own], total[2][own] = steps @ sum_U.ravel(), steps @ sum_G.ravel()
    total[1][pair], total[3][pair] = (steps @ _pairs(left, g.U) @ steps.T for left in (weighed, G))
    if not p:
        return S
    X = g.D[:, :, :p]
    if not wanted.fixed:
        across = np.tensordot(X, e[:, :, 0], (0, 0)).transpose(0, 2, 1).reshape(T * T, p)
        total[4][own] = steps @ across
        return S
    flat = g.D.reshape(len(g.D), -1)
    DD = (flat.T @ flat).reshape(T, p + 1, T, p + 1).transpose(0, 2, 1, 3).reshape(T * T, -1)
    moved = (steps @ DD).reshape(len(own), p + 1, p + 1)
    total[4][own], total[5][own] = moved[:, :p, p], moved[:, :p, :p]
    M = g.by_pattern(X)
    total[6][pair] = steps @ _pairs(M, g.U) @ steps.T
    return S + 0.5 * M.sum(0) if wanted.reml else S


def _grid_F(g: _Grid, steps: np.ndarray, p: int) -> np.ndarray:
    """(k, p, k, p) Σ XᵀV⁻¹Σ_aUΣ_bV⁻¹X of one arm: first Σ U_jk D_ic D_ld over the patterns, then the directions."""
    T, width = g.U.shape[1], g.U.shape[1] * p
    moves = steps.reshape(len(steps), T, T)
    first = np.searchsorted(g.owner, np.arange(len(g.copies) + 1))
    X = g.D[:, :, :p].reshape(len(g.D), width)
    total = np.zeros((T * T, width * width))
    step = max(1, KEPT // width**2)
    for lo in range(0, len(g.copies), step):
        mine = range(lo, min(lo + step, len(g.copies)))
        DD = np.stack([X[first[q] : first[q + 1]].T @ X[first[q] : first[q + 1]] for q in mine])
        total += g.U[lo : lo + step].reshape(len(mine), -1).T @ DD.reshape(len(mine), -1)
    half = np.tensordot(moves, total.reshape(T, T, T, p, T, p), ((1, 2), (2, 0)))
    return np.tensordot(half, moves, ((1, 3), (1, 2))).swapaxes(2, 3)


def _grid_bends(model: Model, x: np.ndarray, g: _Grid, a: int, M1: np.ndarray, p: int) -> np.ndarray:
    """(k, k, p, p) Σ XᵀV⁻¹Σ_abV⁻¹X of arm a: Σ_ij DD_ij ∂²Σ_ij, an entry of Σ at a time."""
    T, k = g.U.shape[1], len(x)
    X = g.D[:, :, :p].reshape(len(g.D), T * p)
    DD = (X.T @ X).reshape(T, p, T, p)
    i, j = np.tril_indices(T)
    bends, S = np.empty((len(i), k * k)), np.zeros((model.n_groups, T, T))
    for at, (row, column) in enumerate(zip(i, j, strict=True)):
        S[a] = 0.0
        S[a, row, column] = S[a, column, row] = 0.5
        bends[at] = bend_of_grids(model, x, S, M1).ravel()
    both = DD[i, :, j] + DD[j, :, i]
    # On the diagonal S has ½ once where it has it twice elsewhere.
    return (bends.T @ both.reshape(len(i), p * p)).reshape(k, k, p, p)
