"""Many one-factor models in one program: deviance, gradient and exact Hessian, lanes on the last axis.

The algebra of ``grouped``, laid out for thousands of small models that often share a design: two scans over
the levels do the arithmetic of ``levels`` on vectors over the lanes, which no library call on small
matrices matches. The first collects log|V|, H = WᵀV⁻¹W and what depends on U; the second, with β̂(θ) known,
the sums of the whitened residual that ``assembly`` makes the derivatives of.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg

from . import assembly, covariance, levels, linalg, starts
from .assembly import LevelSums
from .covariance import Template
from .moments import Basis, GroupMoments, between_dominates, within_levels, within_metric
from .profiled import AtOptimum
from .types import Array, namespace, pytree, static


@pytree
class LaneData:
    """Sufficient statistics of R models with one grouping factor each; a last axis of length 1 is shared by all.

    Attributes
    ----------
    roots : (P, kq, R or 1) packed lower-triangular roots of ZᵀZ per level (see ``levels``).
    count : (P, R or 1) levels whose log-determinant an entry stands for.
    cX : (P, q, p, R or 1) and cy : (P, q, R), the roots' R⁻ᵀZᵀX and R⁻ᵀZᵀy; rest : (p+1, p+1, R) what they leave of
        WᵀW, W = [X y]; all conditioned.
    n_rows, log_weights : (R or 1,).
    basis : map (p+1, p+1, R), log_det_x (R or 1,), z_scale (q, R or 1).
    """

    roots: Array
    count: Array
    cX: Array
    cy: Array
    rest: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: Template = static()

    @property
    def n_lanes(self) -> int:
        return self.cy.shape[-1]

    @property
    def G(self) -> Array:
        """(P, q, q, R or 1) ZᵀZ per level."""
        R = levels.unpack_lower(list(namespace(self.roots).moveaxis(self.roots, 1, 0)))
        return namespace(self.roots).moveaxis(levels.stacked(levels.squared(R)), 2, 0)


def roots_of(G: Array, C: Array) -> tuple[Array, Array]:
    """Packed roots R (P, kq, ·) and c = R⁻ᵀC (P, q, w, ·) of levels with ZᵀZ G (P, q, q, ·) and C (P, q, w, ·)."""
    xp = namespace(G, C)
    R = levels.root(xp.moveaxis(G, 0, 2))
    c = levels.against_root(R, list(xp.moveaxis(C, 0, 2)))
    return xp.stack(R, axis=1), xp.moveaxis(xp.stack(c), 2, 0)


def from_moments(
    G: Array, count: Array, C: Array, WtW: Array, n_rows: Array, log_weights: Array, basis: Basis, template: Template
) -> LaneData:
    """Lanes from ZᵀZ (P, q, q, R or 1), C = ZᵀW (P, q, p+1, R) of which a level counts once, and WᵀW (p+1, p+1, R)."""
    roots, c = roots_of(G, C)
    between = (c[:, :, :, None] * c[:, :, None]).sum((0, 1))
    return LaneData(
        roots, count, c[:, :, :-1].copy(), c[:, :, -1].copy(), WtW - between, n_rows, log_weights, basis, template
    )


def lacks_digits(data: LaneData) -> np.ndarray:
    """(R,) whether y varies so much more between levels than within, least squares on X there, that digits went."""
    p = len(data.rest) - 1
    c = np.concatenate([data.cX + np.zeros(data.n_lanes), data.cy[:, :, None]], axis=2)
    between = np.einsum("gqar,gqbr->abr", c, c, optimize=True)
    M = within_metric(between, data.rest)
    size = np.sqrt(np.maximum(np.einsum("aar->ar", M), np.finfo(float).tiny))
    with np.errstate(invalid="ignore", divide="ignore"):
        left = linalg.cholesky(M / (size[:, None] * size))[p, p] * size[p]
    return between_dominates(between[p, p], left**2)


def put_moments(data: LaneData, lane: int, moments: GroupMoments, common: np.ndarray) -> None:
    """Overwrite a lane but for units of Z and weights; ``common`` (p, p) leads to the X that the moments are of."""
    for array in (data.roots, data.cX, data.cy):
        array[..., lane] = 0.0
    p = len(common)
    R, c, data.rest[..., lane] = within_levels(moments)
    n_levels = R.shape[-1]
    data.roots[:n_levels, :, lane], data.cX[:n_levels, ..., lane] = R.T, np.moveaxis(c[:, :p], -1, 0)
    data.cy[:n_levels, ..., lane], data.n_rows[lane] = c[:, p].T, moments.n_rows
    whole = scipy.linalg.block_diag(common, 1.0) @ moments.basis.map
    data.basis.map[..., lane], data.basis.log_det_x[lane] = whole, np.linalg.slogdet(whole[:p, :p])[1]


def moment_start(data: LaneData) -> Array:
    """Scaled θ (k, R) from moments of the residuals of least squares; see ``starts``."""
    G, R = data.G, list(namespace(data.roots).moveaxis(data.roots, 1, 0))
    lower = linalg.tril(G.shape[1])
    weight = np.where(lower[0] == lower[1], 1.0, 2.0).astype(data.cy.dtype)[:, None]
    G = G[:, lower[0], lower[1]]
    counted = data.count[:, None] * G
    K = assembly.step_products((counted[:, :, None] * G[:, None]).sum(0))
    Cy = levels.transposed_times(R, [c[None] for c in namespace(data.cy).moveaxis(data.cy, 1, 0)])
    cc = weight * namespace(data.cy).stack([(Cy[i][0] * Cy[j][0]).sum(0) for i, j in levels.pairs(len(Cy))])
    t = weight * counted.sum(0)
    rss = data.rest[-1, -1] + (data.cy**2).sum((0, 1))
    return starts.from_moments(data.template, K, t, cc, rss, data.n_rows)


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
    return data.roots, data.count, data.cX, data.cy


def _one_by_one(data: LaneData) -> Iterator[Any]:
    """What ``_levels`` has of each level."""
    return zip(*_levels(data), strict=True)


def _zeros(f: Callable[[Any], Arrays], argument: Any, data: LaneData) -> Arrays:
    """Zeros shaped as f(argument), with all lanes; JAX only."""
    import jax

    shapes = jax.eval_shape(f, argument)
    return [jax.numpy.zeros((*a.shape[:-1], data.n_lanes), data.cy.dtype) for a in shapes]


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
        R, count, cX, cy = level
        at = levels.within(L, list(R), filled)
        U = levels.squared(levels.half_precision(at, list(R)))
        TX, Ty = levels.whitened(at, cX), levels.whitened(at, [c[None] for c in cy])
        counted = [count * u for u in U]
        XX = sum(t[:, None] * t[None] for t in TX)
        UU = [counted[x] * U[y] for x, y in levels.pairs(kq)]
        return [XX, levels.dot(TX, Ty), levels.dot(Ty, Ty)[0], count * at.log_det, *counted, *UU]

    XX, yX, yy, log_det, *U = _sum_over_levels(terms, data)
    stacked = namespace(*U).stack(U[:kq])
    return log_det, data.rest + _bordered(XX, yX, yy), stacked, levels.stacked(U[kq:])


def _sum_over_levels(terms: Callable[[Any], Arrays], data: LaneData) -> Arrays:
    if namespace(data.cy) is np:
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
        R, _, cX, cy = level
        at = levels.within(L, list(R), filled)
        B = levels.half_precision(at, list(R))
        cT = [sum((A[m, :p] * c[m][None] for m in range(p)), 0.0 * A[:p, p]) for c in cX]
        ce = [sum((A[m, p] * c[m] for m in range(p)), y)[None] for c, y in zip(cX, cy, strict=True)]
        T, e = (levels.carried(B, levels.whitened(at, c)) for c in (cT, ce))
        return [*T, *(own[0] for own in e), *levels.squared(B)]

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
    if namespace(data.cy) is np:
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
