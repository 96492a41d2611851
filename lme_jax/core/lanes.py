"""Many one-factor models in one program: deviance, gradient and exact Hessian, lanes on the last axis.

The algebra of ``grouped``, laid out for thousands of small models that often share a design: two scans over
the levels do the arithmetic of ``levels`` on vectors over the lanes, which no library call on small
matrices matches. The first collects log|V|, H = WᵀV⁻¹W and what depends on U; the second, with β̂(θ) known,
the sums of the whitened residual that ``assembly`` makes the derivatives of.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import assembly, covariance, levels, linalg, starts
from .assembly import LevelSums
from .covariance import Template
from .moments import Basis
from .profiled import AtOptimum
from .types import Array, namespace, pytree, static


@pytree
class LaneData:
    """Sufficient statistics of R models with one grouping factor each; a last axis of length 1 is shared by all.

    Attributes
    ----------
    G : (P, q, q, R or 1) ZᵀZ per level; count : (P, R or 1) levels whose log-determinant an entry stands for.
    CX : (P, q, p, R or 1) ZᵀX; Cy : (P, q, R) Zᵀy; WtW : (p+1, p+1, R) of W = [X y]; all conditioned.
    n_rows, log_weights : (R or 1,).
    basis : map (p+1, p+1, R), log_det_x (R or 1,), z_scale (q, R or 1).
    """

    G: Array
    count: Array
    CX: Array
    Cy: Array
    WtW: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()

    @property
    def n_lanes(self) -> int:
        return self.Cy.shape[-1]


def moment_start(data: LaneData) -> Array:
    """Scaled θ (k, R) from moments of the residuals of least squares; see ``starts``."""
    lower = np.tril_indices(data.G.shape[1])
    weight = np.where(lower[0] == lower[1], 1.0, 2.0).astype(data.Cy.dtype)[:, None]
    G = data.G[:, lower[0], lower[1]]
    counted = data.count[:, None] * G
    K = assembly.step_products((counted[:, :, None] * G[:, None]).sum(0))
    cc = weight * (data.Cy[:, lower[0]] * data.Cy[:, lower[1]]).sum(0)
    t = weight * counted.sum(0)
    return starts.from_moments(data.template, K, t, cc, data.WtW[-1, -1], data.n_rows)


def objective(theta: Array, data: LaneData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (R,), gradient (k, R), exact Hessian (k, k, R) and what the fit keeps, at scaled θ (k, R).

    Notes
    -----
    O(P·(q³ + kq·p·(p + kq))) per lane, P levels or merged levels; nothing of size P × R is formed.
    """
    log_det, H, U, UU = _covariance_sums(theta, data)
    R = linalg.cholesky(H)
    sums = LevelSums(U, UU, *_residual_sums(theta, data, assembly.whitening(R), reml))
    return assembly.assemble_derivatives(theta, data.template, log_det, H, R, sums, data, reml)


# Sums are carried as lists of arrays (…, R): stacked ones would be computed entry by entry.
Arrays = list[Array]


def _levels(data: LaneData) -> tuple[Array, Array, Array, Array]:
    return data.G, data.count, data.CX, data.Cy


def _one_by_one(data: LaneData) -> Iterator[Any]:
    """What ``_levels`` has of each level."""
    return zip(*_levels(data), strict=True)


def _zeros(f: Callable[[Any], Arrays], argument: Any, data: LaneData) -> Arrays:
    """Zeros shaped as f(argument), with all lanes; JAX only."""
    import jax

    shapes = jax.eval_shape(f, argument)
    return [jax.numpy.zeros((*a.shape[:-1], data.n_lanes), data.Cy.dtype) for a in shapes]


def _add(sums: Arrays, terms: Arrays) -> Arrays:
    return [total + term for total, term in zip(sums, terms, strict=True)]


def _bordered(XX: Array, Xy: Array, yy: Array) -> Array:
    """The symmetric (p+1, p+1, R) of its blocks."""
    xp = namespace(XX, Xy, yy)
    above = xp.concatenate([XX, Xy[:, None]], axis=1)
    return xp.concatenate([above, xp.concatenate([Xy, yy[None]])[None]])


def _covariance_sums(theta: Array, data: LaneData) -> tuple[Array, Array, Array, Array]:
    """log|V| (R,), H (p+1, p+1, R), ΣU (kq, R) and ΣU⊗U (kq, kq, R)."""
    L, filled = covariance.factor(theta, data.template), covariance.filled(data.template)
    kq = len(filled) * (len(filled) + 1) // 2

    def terms(level: Any) -> Arrays:
        G, count, CX, Cy = level
        log_det, W = levels.weigh(L, G, filled)
        U = levels.precision(G, levels.complement(W, G))
        counted = [count * u for u in U]
        WX, Wy = [], []
        for row in levels.unpack(W):
            WX.append(levels.dot([entry[None] for entry in row], CX))
            Wy.append(levels.dot(row, Cy))
        XX = sum(wx[:, None] * cx[None] for wx, cx in zip(WX, CX, strict=True))
        yX = levels.dot([entry[None] for entry in Wy], CX)
        UU = [counted[x] * U[y] for x, y in levels.pairs(kq)]
        return [XX, yX, levels.dot(Wy, Cy), count * log_det, *counted, *UU]

    XX, yX, yy, log_det, *U = _sum_over_levels(terms, data)
    stacked = namespace(*U).stack(U[:kq])
    return log_det, data.WtW - _bordered(XX, yX, yy), stacked, levels.stacked(U[kq:])


def _sum_over_levels(terms: Callable[[Any], Arrays], data: LaneData) -> Arrays:
    if namespace(data.Cy) is np:
        total, *rest = (terms(level) for level in _one_by_one(data))
        for more in rest:
            total = _add(total, more)
        return total
    import jax

    def step(sums: Arrays, level: Any) -> tuple[Arrays, None]:
        return _add(sums, terms(level)), None

    start = _zeros(terms, tuple(a[0] for a in _levels(data)), data)
    return jax.lax.scan(step, start, _levels(data))[0]


def _residual_sums(theta: Array, data: LaneData, A: Array, reml: bool) -> tuple[Array, Array, Array | None]:
    """Σ T̃⊗T̃ (kq, p+1, p+1, R), Σ U⊗ee and Σ U⊗TTᵀ (kq, kq, R), A (p+1, p+1, R) turning [X y] into [T e].

    The scan is a pipeline of two stages: U, T and e of a level are carried to the next step, which multiplies
    them. Inside one step XLA would fuse, and so compute them again for every product.
    """
    L, filled = covariance.factor(theta, data.template), covariance.filled(data.template)
    q, p = len(filled), len(A) - 1
    kq = q * (q + 1) // 2

    def whitened(level: Any) -> Arrays:
        G, _, CX, Cy = level
        F = levels.complement(levels.weigh(L, G, filled)[1], G)
        CT = [sum((A[m, :p] * cx[m][None] for m in range(p)), 0.0 * A[:p, p]) for cx in CX]
        Ce = [sum((A[m, p] * cx[m] for m in range(p)), cy) for cx, cy in zip(CX, Cy, strict=True)]
        T = [levels.dot([entry[None] for entry in column], CT) for column in levels.columns(F)]
        return [*T, *(levels.dot(column, Ce) for column in levels.columns(F)), *levels.precision(G, F)]

    def products(ready: Arrays) -> Arrays:
        T, e, U = ready[:q], ready[q : 2 * q], ready[2 * q :]
        out = []
        for i, j in levels.pairs(q):
            out += [T[i][:, None] * T[j][None], 0.5 * (T[i] * e[j][None] + T[j] * e[i][None]), e[i] * e[j]]
            out += [u * (e[i] * e[j]) for u in U]
            if reml:
                own = (T[i] * T[j]).sum(0)
                out += [u * own for u in U]
        return out

    return _residual_blocks(_sum_by_pipeline(whitened, products, data), kq, reml)


def _sum_by_pipeline(first: Callable[[Any], Arrays], second: Callable[[Arrays], Arrays], data: LaneData) -> Arrays:
    """Σ second(first(level)), the stages one level apart where XLA would fuse them."""
    if namespace(data.Cy) is np:
        return _sum_over_levels(lambda level: second(first(level)), data)
    import jax

    def step(carry: tuple[Arrays, Arrays], level: Any) -> tuple[tuple[Arrays, Arrays], None]:
        sums, ready = carry
        return (_add(sums, second(ready)), first(level)), None

    empty = _zeros(first, tuple(a[0] for a in _levels(data)), data)
    sums, last = jax.lax.scan(step, (_zeros(second, empty, data), empty), _levels(data))[0]
    return _add(sums, second(last))


def _residual_blocks(sums: Arrays, kq: int, reml: bool) -> tuple[Array, Array, Array | None]:
    """The sums of ``_residual_sums``, put together."""
    size, xp = len(sums) // kq, namespace(*sums)
    TT: Arrays = []
    U_ee: Arrays = []
    U_TT: Arrays = []
    for x in range(kq):
        TX, Te, ee, *by_U = sums[x * size : (x + 1) * size]
        TT.append(_bordered(0.5 * (TX + xp.swapaxes(TX, 0, 1)), Te, ee))
        U_ee.append(xp.stack(by_U[:kq]))
        if reml:
            U_TT.append(xp.stack(by_U[kq:]))
    return xp.stack(TT), xp.stack(U_ee, axis=1), xp.stack(U_TT, axis=1) if reml else None
