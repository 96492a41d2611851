"""Many responses of one design of a structure by visit: the deviance with derivatives of all lanes together.

Of a pattern of visits only A = Σ X_tX_sᵀ (one for all lanes), Σ X_ty_s and Σ y_ty_s over its patients count, K pairs
t ≥ s of visits, both orders summed. With U = S(SᵀΣS)⁻¹Sᵀ on the grid everything in ``likelihood.Record`` is a product
of such arrays with U, U ⊗ U or U(Σ rrᵀ)U, summed over the patterns of an arm for the entries of Σ before its parameters
come in. Lanes run first inside, last where the search has them.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import linalg
from ..moments import Basis
from ..profiled import AtOptimum, deviance_of_root
from .data import BlockData
from .model import Model, bend_of_grids, grids


class Grid(NamedTuple):
    """What all lanes share.

    Attributes
    ----------
    model; present : (P, T); arm : (P,); copies : (P,) patients of a pattern.
    A : per pair of visits the columns c of p(p + 1)/2 that are not zero for it, and (P, c) of them, X conditioned by
        ``to_x``; WX : (n, p) those rows, weighted.
    rows : (B, T) their numbers, −1 where there is none; member : (B,) the pattern.
    root_w : (n,) or None; n, log_weights.
    """

    model: Model
    present: np.ndarray
    arm: np.ndarray
    copies: np.ndarray
    A: tuple[tuple[np.ndarray, np.ndarray], ...]
    WX: np.ndarray
    to_x: np.ndarray
    rows: np.ndarray
    member: np.ndarray
    root_w: np.ndarray | None
    n: int
    log_weights: np.float64

    @property
    def n_fixed(self) -> int:
        """p."""
        return self.WX.shape[1]


class Lanes(NamedTuple):
    """Sums of the responses: Xy (L, P, K, p), yy (L, P, K), conditioned; ``profiled.RowTotals`` of all lanes."""

    grid: Grid
    Xy: np.ndarray
    yy: np.ndarray
    n_rows: np.ndarray
    log_weights: np.float64
    basis: Basis

    def some(self, which: np.ndarray) -> "Lanes":
        """Some of the lanes."""
        basis = Basis(self.basis.map[:, :, which], self.basis.log_det_x, self.basis.z_scale)
        return Lanes(self.grid, self.Xy[which], self.yy[which], self.n_rows[which], self.log_weights, basis)


def possible(data: BlockData) -> bool:
    """Whether one Σ by visit and arm is all there is, on its grid."""
    model = data.model
    alone = not model.bars and not model.variances and not model.family.distance and model.size > 0
    return alone and data.series is None and len(data.stacks) == 1 and data.stacks[0].present.shape[1] == model.n_visits


def shared(data: BlockData) -> Grid:
    """The grid of a design."""
    (stack,) = data.stacks
    root_w = None if data.weights is None else np.sqrt(data.weights)
    p = data.n_fixed
    to_x = data.basis.map[:p, :p]
    WX = (data.X if root_w is None else data.X * root_w[:, None]) @ to_x
    arm = stack.at.group[np.arange(len(stack.copies)), stack.present.argmax(1)]
    grid = Grid(
        data.model, stack.present, arm, stack.copies, (), WX, to_x, stack.rows, stack.member, root_w,
        len(data.y), data.log_weights,
    )  # fmt: skip
    i, j = linalg.tril(p)
    A = np.moveaxis(_pairs_of_visits(grid, WX, WX)[:, :, i, j], 1, 0)
    live = [np.flatnonzero(one.any(0)) for one in A]
    return grid._replace(A=tuple((c, one[:, c].copy()) for c, one in zip(live, A, strict=True)))


def work(grid: Grid) -> int:
    """Multiplications of an evaluation of one lane, nearly."""
    return len(grid.A) * len(grid.copies) * sum(len(columns) for columns, _ in grid.A)


def _by_pattern(grid: Grid, columns: np.ndarray) -> list[np.ndarray]:
    """Per pattern its patients' rows of columns (n, c), (n_m, T, c)."""
    padded = np.concatenate([columns, np.zeros((1, columns.shape[1]))])
    return [padded[grid.rows[grid.member == m]] for m in range(len(grid.copies))]


def _pairs_of_visits(grid: Grid, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, K, c, d) Σ a_tb_sᵀ + a_sb_tᵀ over the patients of a pattern, t ≥ s; once where t = s."""
    T, out = grid.present.shape[1], []
    t, s = linalg.tril(T)
    for x, y in zip(_by_pattern(grid, a), _by_pattern(grid, b), strict=True):
        both = np.tensordot(x, y, (0, 0)).transpose(0, 2, 1, 3)
        out.append(both[t, s] + np.where(t == s, 0.0, 1.0)[:, None, None] * both[s, t])
    return np.stack(out)


def lanes(grid: Grid, Y: np.ndarray) -> Lanes:
    """Of responses Y (n, L)."""
    T, (t, s) = grid.present.shape[1], linalg.tril(grid.present.shape[1])
    Y = Y if grid.root_w is None else Y * grid.root_w[:, None]
    p, L = grid.n_fixed, Y.shape[1]
    coefficients = np.linalg.solve(grid.WX.T @ grid.WX, grid.WX.T @ Y)
    rest = Y - grid.WX @ coefficients
    total, left = (Y**2).sum(0), (rest**2).sum(0)
    told = left > 1e-24 * total
    scale = np.where(told, np.sqrt(grid.n / np.where(told, left, 1.0)), 1.0)
    rest = rest * scale
    across = np.ascontiguousarray(np.moveaxis(_pairs_of_visits(grid, grid.WX, rest), 3, 0))
    own = []
    for e in _by_pattern(grid, rest):
        both = np.einsum("itl,isl->tsl", e, e, optimize=True) if len(e) < 2 * T else _squares(e)
        own.append(both[t, s] * np.where(t == s, 1.0, 2.0)[:, None])
    to_w = np.zeros((p + 1, p + 1, L))
    to_w[:p, :p] = grid.to_x[:, :, None]
    to_w[:p, p], to_w[p, p] = -(grid.to_x @ coefficients) * scale, scale
    basis = Basis(to_w, np.linalg.slogdet(grid.to_x)[1], np.ones(0))
    n_rows = np.where(told, float(grid.n), np.nan)
    return Lanes(grid, across, np.moveaxis(np.stack(own), 2, 0).copy(), n_rows, grid.log_weights, basis)


def _squares(e: np.ndarray) -> np.ndarray:
    """(T, T, L) Σ_i e_ite_is of e (n, T, L)."""
    each = e.transpose(2, 1, 0)
    return np.moveaxis(each @ each.swapaxes(1, 2), 0, 2)


# ---------------------------------------------------------------- one point


class At(NamedTuple):
    """Of every lane at its x: M (L, A, T, T) and M1 (L, k, A, T, T), U (L, P, T, T), log|V| (L,)."""

    M: np.ndarray
    M1: np.ndarray
    U: np.ndarray
    log_det: np.ndarray


def at(grid: Grid, x: np.ndarray, derivatives: bool = True) -> At:
    """``At`` of x (k, L); NaN where V is not positive definite."""
    found = [grids(grid.model, own) for own in x.T]
    M = np.stack([one for one, _ in found])
    M1 = np.stack([first for _, first in found]) if derivatives else np.zeros((0, 0))
    both = grid.present[:, :, None] & grid.present[:, None, :]
    V = np.where(both, M[:, grid.arm], np.eye(M.shape[-1]))
    K = _cholesky(V)
    log_det = 2.0 * np.log(np.diagonal(K, axis1=2, axis2=3)).sum(2) @ grid.copies
    inverse = np.linalg.inv(K)
    return At(M, M1, (inverse.swapaxes(2, 3) @ inverse) * both, log_det)


def _cholesky(V: np.ndarray) -> np.ndarray:
    """Lower factors (L, …, n, n); NaN in the lanes of which one is not positive definite."""
    try:
        return np.linalg.cholesky(V)
    except np.linalg.LinAlgError:
        return np.stack([_factors(one) for one in V])


def _factors(V: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.cholesky(V)
    except np.linalg.LinAlgError:
        return np.full_like(V, np.nan)


def packed(S: np.ndarray) -> np.ndarray:
    """(…, K) the pairs t ≥ s of symmetric S (…, T, T)."""
    t, s = linalg.tril(S.shape[-1])
    return S[..., t, s]


def full(v: np.ndarray, T: int) -> np.ndarray:
    """Symmetric (…, T, T) of sums of both orders (…, K)."""
    t, s = linalg.tril(T)
    out = np.empty((*v.shape[:-1], T, T))
    out[..., t, s] = out[..., s, t] = v * np.where(t == s, 1.0, 0.5)
    return out


def times_A(grid: Grid, v: np.ndarray) -> np.ndarray:
    """(N, p(p + 1)/2) vA for v (N, P, K)."""
    p = grid.n_fixed
    out = np.zeros((len(v), p * (p + 1) // 2))
    for k, (columns, A) in enumerate(grid.A):
        out[:, columns] += v[:, :, k] @ A
    return out


def A_times(grid: Grid, v: np.ndarray) -> np.ndarray:
    """(N, P, K) Av for v (N, p(p + 1)/2)."""
    return np.stack([v[:, columns] @ A.T for columns, A in grid.A], 2)


def symmetric(v: np.ndarray, p: int) -> np.ndarray:
    """(…, p, p) of its lower triangle (…, p(p + 1)/2)."""
    i, j = linalg.tril(p)
    where = np.zeros((p, p), int)
    where[i, j] = where[j, i] = np.arange(len(i))
    return v[..., where]


def twice_lower(M: np.ndarray) -> np.ndarray:
    """(…, p(p + 1)/2) with Σ v·w = Σ_ij M_ijB_ij for w the lower triangle of B."""
    i, j = linalg.tril(M.shape[-1])
    return M[..., i, j] * np.where(i == j, 1.0, 2.0)


class Point(NamedTuple):
    """H (L, w, w), its Cholesky factor R with NaN where there is none, the deviance (L,), N (L,)."""

    at: At
    H: np.ndarray
    R: np.ndarray
    value: np.ndarray
    N: np.ndarray


def point(x: np.ndarray, data: Lanes, reml: bool, derivatives: bool = True) -> Point:
    """``Point`` of x (k, L)."""
    grid, p = data.grid, data.grid.n_fixed
    here = at(grid, x, derivatives)
    U = packed(here.U)
    L = len(U)
    H = np.empty((L, p + 1, p + 1))
    H[:, :p, :p] = symmetric(times_A(grid, U), p)
    H[:, :p, p] = H[:, p, :p] = (U.reshape(L, 1, -1) @ data.Xy.reshape(L, -1, p))[:, 0]
    H[:, p, p] = (U * data.yy).sum((1, 2))
    R = _cholesky(H)
    value = deviance_of_root(here.log_det, np.moveaxis(R, 0, 2), data, reml)
    return Point(here, H, R, value, data.n_rows - (p if reml else 0))


class Fixed(NamedTuple):
    """What moves log|V| and log|XᵀV⁻¹X| in all lanes, whitened; the fields of ``likelihood.Record``.

    Attributes
    ----------
    trace : (L, k); trace2 : (L, k, k); own : (L, k); F, products : (L, k, k); X_a : (L, k, p, p).
    whitening : (L, p, p) R⁻ᵀ of X; X2 : (L, P, T, T) Σ UXM⁻¹XᵀU.
    """

    trace: np.ndarray
    trace2: np.ndarray
    own: np.ndarray
    F: np.ndarray
    products: np.ndarray
    X_a: np.ndarray
    whitening: np.ndarray
    X2: np.ndarray


def fixed(grid: Grid, U: np.ndarray, R: np.ndarray, steps: np.ndarray) -> Fixed:
    """``Fixed`` of U (L, P, T, T), R (L, p, p) the factor of XᵀV⁻¹X, and directions Σ_a (L, k, A, T, T)."""
    T, (L, k) = U.shape[-1], steps.shape[:2]
    p = R.shape[-1]
    inverse = np.linalg.inv(R).swapaxes(1, 2)
    X2 = U @ full(A_times(grid, twice_lower(inverse @ inverse.swapaxes(1, 2))), T) @ U
    lower = np.zeros((L, k, p * (p + 1) // 2))
    for a in range(grid.model.n_groups):
        lower += twice_lower(steps[:, :, a]) @ _moved(grid, U, a)
    X_a = inverse[:, None].swapaxes(2, 3) @ symmetric(lower, p) @ inverse[:, None]
    flat = X_a.reshape(L, k, p * p)
    weighed = U * grid.copies[:, None, None]
    return Fixed(
        trace=along(grid, weighed, steps),
        trace2=along_twice(grid, weighed, U, steps),
        own=np.trace(X_a, axis1=2, axis2=3),
        F=along_twice(grid, X2, U, steps),
        products=flat @ flat.swapaxes(1, 2),
        X_a=X_a,
        whitening=inverse,
        X2=X2,
    )


def _spread(V: np.ndarray, t: int, s: int) -> np.ndarray:
    """(K, L, P) ½(U_itU_js + U_jtU_is) of V = U (T, T, L, P), for pairs i ≥ j."""
    i, j = linalg.tril(len(V))
    return 0.5 * (V[i, t] * V[j, s] + V[j, t] * V[i, s])


def _moved(grid: Grid, U: np.ndarray, a: int) -> np.ndarray:
    """(L, K, p(p + 1)/2) Σ UXXᵀU over the patients of arm a, entry by entry."""
    mine, p = grid.arm == a, grid.n_fixed
    V = np.ascontiguousarray(np.moveaxis(U[:, mine], (2, 3), (0, 1)))
    t, s = linalg.tril(U.shape[-1])
    out = np.zeros((len(t) * len(U), p * (p + 1) // 2))
    for k, (columns, A) in enumerate(grid.A):
        out[:, columns] += _spread(V, t[k], s[k]).reshape(len(out), -1) @ A[mine]
    return out.reshape(len(t), len(U), -1).swapaxes(0, 1)


def along(grid: Grid, S: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(L, k) Σ tr SΣ_a for S (L, P, T, T)."""
    arms = np.stack([S[:, grid.arm == a].sum(1) for a in range(grid.model.n_groups)], 1)
    L, k = steps.shape[:2]
    return (steps.reshape(L, k, -1) @ arms.reshape(L, -1, 1))[:, :, 0]


def along_twice(grid: Grid, S: np.ndarray, U: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(L, k, k) Σ tr SΣ_aUΣ_b for S, U (L, P, T, T)."""
    L, k, A, T, _ = steps.shape
    out = np.zeros((L, k, k))
    for a in range(A):
        mine = grid.arm == a
        left, right = S[:, mine].reshape(L, -1, T * T), U[:, mine].reshape(L, -1, T * T)
        both = (left.swapaxes(1, 2) @ right).reshape(L, T, T, T, T)
        # S_ij U_kl stands at (jk, li).
        both = both.transpose(0, 2, 3, 4, 1).reshape(L, T * T, T * T)
        own = steps[:, :, a].reshape(L, k, T * T)
        out += own @ both @ own.swapaxes(1, 2)
    return out


def evaluate(x: np.ndarray, data: Lanes, reml: bool) -> tuple[Any, np.ndarray, np.ndarray, AtOptimum]:
    """``residual.objective.evaluate`` of lanes on the last axis, x (k, L)."""
    grid, p = data.grid, data.grid.n_fixed
    one = point(x, data, reml)
    here, steps, Q, N = one.at, one.at.M1, one.R[:, p, p] ** 2, one.N
    f = fixed(grid, here.U, one.R[:, :p, :p], steps)
    s2 = (Q / N)[:, None, None]
    beta = (f.whitening @ one.R[:, p, :p, None])[:, :, 0]
    G = here.U @ full(_residual_squares(data, beta), steps.shape[-1]) @ here.U
    B, BB = along(grid, G, steps), along_twice(grid, G, here.U, steps)
    XB = _across(data, here.U, steps) @ f.whitening - (f.X_a @ one.R[:, None, p, :p, None])[..., 0]
    S = 0.5 * G / s2[..., None] - 0.5 * grid.copies[:, None, None] * here.U
    slope, curvature = -0.5 * f.trace + 0.5 * B / s2[:, :, 0], 0.5 * f.trace2 - BB / s2
    if reml and p:
        slope, S = slope + 0.5 * f.own, S + 0.5 * f.X2
        curvature = curvature + 0.5 * f.products - 0.5 * (f.F + f.F.swapaxes(1, 2))
    curvature = curvature + _bends(grid, x, S, steps)
    curvature = curvature + XB @ XB.swapaxes(1, 2) / s2 + 0.5 * B[:, :, None] * B[:, None] / (N[:, None, None] * s2**2)
    hessian = -(curvature + curvature.swapaxes(1, 2))
    kept = AtOptimum(np.moveaxis(one.H, 0, 2), -(B / Q[:, None]).T)
    return one.value, -2.0 * slope.T, np.moveaxis(hessian, 0, 2), kept


def _residual_squares(data: Lanes, beta: np.ndarray) -> np.ndarray:
    """(L, P, K) Σ r_tr_s, both orders, of r = y − Xβ."""
    L, P, K, p = data.Xy.shape
    mixed = (data.Xy.reshape(L, P * K, p) @ beta[:, :, None]).reshape(L, P, K)
    return data.yy - 2.0 * mixed + A_times(data.grid, twice_lower(beta[:, :, None] * beta[:, None]))


def _across(data: Lanes, U: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(L, k, p) Σ XᵀUΣ_aUy."""
    grid, (L, k, _, T, _) = data.grid, steps.shape
    out, (t, s) = np.zeros((L, k, grid.n_fixed)), linalg.tril(T)
    for a in range(grid.model.n_groups):
        mine = grid.arm == a
        V = np.ascontiguousarray(np.moveaxis(U[:, mine], (2, 3), (0, 1)))
        own = data.Xy[:, mine]
        entries = sum(_spread(V, t[i], s[i]).swapaxes(0, 1) @ own[:, :, i] for i in range(len(t)))
        out += twice_lower(steps[:, :, a]) @ entries
    return out


def _bends(grid: Grid, x: np.ndarray, S: np.ndarray, M1: np.ndarray) -> np.ndarray:
    """(L, k, k) Σ S ∂²Σ of every lane, S (L, P, T, T)."""
    arms = np.stack([S[:, grid.arm == a].sum(1) for a in range(grid.model.n_groups)], 1)
    each = zip(x.T, arms, M1, strict=True)
    return np.stack([bend_of_grids(grid.model, own, s, first) for own, s, first in each])
