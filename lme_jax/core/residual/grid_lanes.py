"""Many responses of one design of a structure by visit: the deviance with derivatives of all lanes together.

Of a pattern of visits only A = Σ X_tX_sᵀ (one for all lanes), Σ X_ty_s and Σ y_ty_s over its patients count, pairs t ≥ s of
visits, both orders summed. With U = S(SᵀΣS)⁻¹Sᵀ on the grid and W_a = UΣ_aU everything in ``likelihood.Record`` is a product
of such arrays with U, W_a or U(Σ rrᵀ)U. Lanes run first inside, last where the search has them.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import linalg
from ..moments import Basis
from ..profiled import AtOptimum, deviance_of_root
from .data import BlockData
from .model import Model, bend_of_grids, grids
from .stacks import Stack


class Grid(NamedTuple):
    """What all lanes share.

    Attributes
    ----------
    model; present : (P, T); arm : (P,); copies : (P,) patients of a pattern.
    A : (P·K, p(p + 1)/2) with K = T(T + 1)/2, X conditioned by ``basis``; WX : (n, p) those rows, weighted.
    rows : (B, T) their numbers, −1 where there is none; member : (B,) the pattern.
    root_w : (n,) or None; n, log_weights.
    """

    model: Model
    present: np.ndarray
    arm: np.ndarray
    copies: np.ndarray
    A: np.ndarray
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
    """Sums of the responses: Xy (L, P·K, p), yy (L, P·K), conditioned; ``profiled.RowTotals`` of all lanes."""

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
        data.model, stack.present, arm, stack.copies, np.zeros((0, 0)), WX, to_x, stack.rows, stack.member, root_w,
        len(data.y), data.log_weights,
    )  # fmt: skip
    i, j = linalg.tril(p)
    return grid._replace(A=_pairs_of_visits(grid, WX, WX)[:, i, j])


def _by_pattern(grid: Grid, columns: np.ndarray) -> list[np.ndarray]:
    """Per pattern its patients' rows of columns (n, c), (n_m, T, c)."""
    padded = np.concatenate([columns, np.zeros((1, columns.shape[1]))])
    return [padded[grid.rows[grid.member == m]] for m in range(len(grid.copies))]


def _pairs_of_visits(grid: Grid, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P·K, c, d) Σ a_tb_sᵀ + a_sb_tᵀ over the patients of a pattern, t ≥ s; once where t = s."""
    T, out = grid.present.shape[1], []
    t, s = linalg.tril(T)
    for x, y in zip(_by_pattern(grid, a), _by_pattern(grid, b), strict=True):
        both = np.tensordot(x, y, (0, 0)).transpose(0, 2, 1, 3)
        out.append(both[t, s] + np.where(t == s, 0.0, 1.0)[:, None, None] * both[s, t])
    return np.concatenate(out)


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
    across = np.moveaxis(_pairs_of_visits(grid, grid.WX, rest), 2, 0)
    own = []
    for e in _by_pattern(grid, rest):
        both = np.einsum("itl,isl->tsl", e, e, optimize=True) if len(e) < 2 * T else _squares(e)
        own.append(both[t, s] * np.where(t == s, 1.0, 2.0)[:, None])
    to_w = np.zeros((p + 1, p + 1, L))
    to_w[:p, :p] = grid.to_x[:, :, None]
    to_w[:p, p], to_w[p, p] = -(grid.to_x @ coefficients) * scale, scale
    basis = Basis(to_w, np.linalg.slogdet(grid.to_x)[1], np.ones(0))
    n_rows = np.where(told, float(grid.n), np.nan)
    return Lanes(grid, across, np.concatenate(own).T.copy(), n_rows, grid.log_weights, basis)


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
    """(…, P·K) the pairs t ≥ s of symmetric S (…, P, T, T)."""
    t, s = linalg.tril(S.shape[-1])
    return S[..., t, s].reshape(*S.shape[:-3], -1)


def full(v: np.ndarray, P: int, T: int) -> np.ndarray:
    """Symmetric (…, P, T, T) of sums of both orders (…, P·K)."""
    t, s = linalg.tril(T)
    out = np.empty((*v.shape[:-1], P, T, T))
    half = v.reshape(*v.shape[:-1], P, -1) * np.where(t == s, 1.0, 0.5)
    out[..., t, s] = out[..., s, t] = half
    return out


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
    H = np.empty((len(U), p + 1, p + 1))
    H[:, :p, :p] = symmetric(U @ grid.A, p)
    H[:, :p, p] = H[:, p, :p] = (U[:, None] @ data.Xy)[:, 0]
    H[:, p, p] = (U * data.yy).sum(1)
    R = _cholesky(H)
    value = deviance_of_root(here.log_det, np.moveaxis(R, 0, 2), data, reml)
    return Point(here, H, R, value, data.n_rows - (p if reml else 0))


class Sums(NamedTuple):
    """Fields of ``likelihood.Record`` of all lanes, those of y None without a response, and X_a (L, k, p, p), whitened.

    Attributes
    ----------
    whitening : (L, p, p) R⁻ᵀ of X; W : (L, k, P, T, T); Y : (L, k, P, T, T) Σ_aU; X2 : (L, P, T, T) Σ UXM⁻¹XᵀU.
    """

    trace: np.ndarray
    trace2: np.ndarray
    own: np.ndarray
    F: np.ndarray
    products: np.ndarray
    X_a: np.ndarray
    whitening: np.ndarray
    W: np.ndarray
    Y: np.ndarray
    X2: np.ndarray


def sums(grid: Grid, U: np.ndarray, R: np.ndarray, steps: np.ndarray) -> Sums:
    """``Sums`` of U (L, P, T, T), R (L, p, p) the factor of XᵀV⁻¹X, and directions Σ_a (L, k, A, T, T)."""
    P, T, k = *grid.present.shape, steps.shape[1]
    L, p = len(U), R.shape[-1]
    Y = steps[:, :, grid.arm] @ U[:, None]
    W = U[:, None] @ Y
    inverse = np.linalg.inv(R).swapaxes(1, 2)
    M = full(twice_lower(inverse @ inverse.swapaxes(1, 2)) @ grid.A.T, P, T)
    X2 = U @ M @ U
    X_a = symmetric(packed(W).reshape(L * k, -1) @ grid.A, p).reshape(L, k, p, p)
    X_a = inverse[:, None].swapaxes(2, 3) @ X_a @ inverse[:, None]
    flat, turned = X_a.reshape(L, k, p * p), X_a.swapaxes(2, 3).reshape(L, k, p * p)
    return Sums(
        trace=np.einsum("lamtt,m->la", Y, grid.copies, optimize=True),
        trace2=_pairs(Y, Y * grid.copies[:, None, None]),
        own=np.trace(X_a, axis1=2, axis2=3),
        F=_pairs(Y, steps[:, :, grid.arm] @ X2[:, None]),
        products=flat @ turned.swapaxes(1, 2),
        X_a=X_a,
        whitening=inverse,
        W=W,
        Y=Y,
        X2=X2,
    )


def _pairs(Y: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """(L, k, k) Σ tr Y_aZ_b."""
    L, k = Y.shape[:2]
    return Y.reshape(L, k, -1) @ Z.swapaxes(3, 4).reshape(L, k, -1).swapaxes(1, 2)


def evaluate(x: np.ndarray, data: Lanes, reml: bool) -> tuple[Any, np.ndarray, np.ndarray, AtOptimum]:
    """``residual.objective.evaluate`` of lanes on the last axis, x (k, L)."""
    grid, p = data.grid, data.grid.n_fixed
    P, T = grid.present.shape
    one = point(x, data, reml)
    here, Q, N = one.at, one.R[:, p, p] ** 2, one.N
    s = sums(grid, here.U, one.R[:, :p, :p], here.M1)
    s2 = (Q / N)[:, None, None]
    beta = (s.whitening @ one.R[:, p, :p, None])[:, :, 0]
    rr = full(_residual_squares(data, beta), P, T)
    G = here.U @ rr @ here.U
    B = (s.W * rr[:, None]).sum((2, 3, 4))
    BB = _pairs(s.Y, here.M1[:, :, grid.arm] @ G[:, None])
    cross = data.Xy - (grid.A @ _columns(beta)).reshape(P * (T * (T + 1) // 2), p, -1).transpose(2, 0, 1)
    XB = (packed(s.W) @ cross) @ s.whitening
    S = 0.5 * G / s2[..., None] - 0.5 * grid.copies[:, None, None] * here.U
    slope, curvature = -0.5 * s.trace + 0.5 * B / s2[:, :, 0], 0.5 * s.trace2 - BB / s2
    if reml and p:
        slope, S = slope + 0.5 * s.own, S + 0.5 * s.X2
        curvature = curvature + 0.5 * s.products - 0.5 * (s.F + s.F.swapaxes(1, 2))
    curvature = curvature + _bends(grid, x, S, here.M1)
    curvature = curvature + XB @ XB.swapaxes(1, 2) / s2 + 0.5 * B[:, :, None] * B[:, None] / (N[:, None, None] * s2**2)
    hessian = -(curvature + curvature.swapaxes(1, 2))
    kept = AtOptimum(np.moveaxis(one.H, 0, 2), -(B / Q[:, None]).T)
    return one.value, -2.0 * slope.T, np.moveaxis(hessian, 0, 2), kept


def _residual_squares(data: Lanes, beta: np.ndarray) -> np.ndarray:
    """(L, P·K) Σ r_tr_s, both orders, of r = y − Xβ."""
    mixed = np.einsum("lkp,lp->lk", data.Xy, beta, optimize=True)
    return data.yy - 2.0 * mixed + twice_lower(beta[:, :, None] * beta[:, None]) @ data.grid.A.T


def _columns(beta: np.ndarray) -> np.ndarray:
    """(p(p + 1)/2, p·L) so that A times it is Aβ (P·K, p·L), A in its lower triangles."""
    L, p = beta.shape
    i, j = linalg.tril(p)
    out = np.zeros((len(i), p, L))
    out[np.arange(len(i)), i] += beta.T[j]
    off = i != j
    out[np.flatnonzero(off), j[off]] += beta.T[i[off]]
    return out.reshape(len(i), p * L)


def _bends(grid: Grid, x: np.ndarray, S: np.ndarray, M1: np.ndarray) -> np.ndarray:
    """(L, k, k) Σ S ∂²Σ of every lane, S (L, P, T, T)."""
    arms = np.stack([S[:, grid.arm == a].sum(1) for a in range(grid.model.n_groups)], 1)
    each = zip(x.T, arms, M1, strict=True)
    return np.stack([bend_of_grids(grid.model, own, s, first) for own, s, first in each])
