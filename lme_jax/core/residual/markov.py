"""AR(1) and CAR(1) in long data: R⁻¹ is tridiagonal and its entries are few functions of ρ times sums over the rows.

A pair of neighbours of one subject, a gap g apart and correlated φ, adds φ/(1 − φ²)·(e_t − e_s)(e_t − e_s)ᵀ −
φ/(1 + φ)·(e_te_tᵀ + e_se_sᵀ) to R⁻¹ = I + … and log(1 − φ²) to log|R|. So R⁻¹ = Σ_s c_s(ρ)B_s with two B_s for every
distinct gap; where gaps are many, with two for every Chebyshev node in log g: g·φ/(1 − φ²), φ/(1 + φ) and log(1 − φ²)
are smooth in log g. Of the rows then only ZᵀB_sZ, ZᵀB_s[X y] per level and [X y]ᵀB_s[X y] count: an evaluation costs
the levels, or the patterns of them that share all ZᵀB_sZ, and no rows.

V = R + ZΨZᵀ: with G = ZᵀR⁻¹Z, C = ZᵀR⁻¹[X y], N = (Ψ⁻¹ + G)⁻¹ and U = (I + GΨ)⁻¹,
log|V| = log|R| + log|I + ΨG| and [X y]ᵀV⁻¹[X y] = [X y]ᵀR⁻¹[X y] − CᵀNC, differentiated twice below.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

from .. import covariance
from ..likelihood import Record
from ..moments import add_by_code
from . import roots
from .model import Model, steps
from .stacks import Rows, sorted_rows

# Rows from which sums are made instead of blocks; effects per level, and distinct gaps that are sets of their own.
LEAST_ROWS, MOST_EFFECTS, MOST_GAPS = 20_000, 6, 24
# Nodes for gaps between 1 and e^r: NODES[0] + NODES[1]·r leave 1e-12 of the coefficients.
NODES = (12, 8.0)
# Ratio of the largest to the least gap beyond which the nodes would be too many.
WIDEST = 1e5
# Rows taken at a time where every one of them counts for every node.
CHUNK = 1 << 17


class Sums(NamedTuple):
    """Sums of S sets over the rows, P patterns of levels and R roots of their C, conditioned columns.

    Attributes
    ----------
    nodes : (K,) gaps; pairs : (K,) how many pairs of neighbours count for each. S = 1 + 2K: I, differences, squares.
    scale : (K,) what the differences' sums were divided by.
    G : (S, P, q, q); copies : (P,); owner : (R,); C : (S, R, q, p+1); W : (S, p+1, p+1).
    correlation : of the residuals of least squares of neighbours, and the gap where it was seen.
    """

    nodes: np.ndarray
    pairs: np.ndarray
    scale: np.ndarray
    G: np.ndarray
    copies: np.ndarray
    owner: np.ndarray
    C: np.ndarray
    W: np.ndarray
    correlation: tuple[float, float]


class Solved(NamedTuple):
    """log|V| and H at x, with first and second derivatives (k, …), (k, k, …)."""

    log_det: float
    H: np.ndarray
    log_det1: np.ndarray
    log_det2: np.ndarray
    H1: np.ndarray
    H2: np.ndarray
    x: np.ndarray


# ---------------------------------------------------------------- whether, and from what


def serves(model: Model, r: Rows, n: int) -> bool:
    """Whether the sums stand for the rows: many rows, one factor of bars at most, subjects within its levels."""
    if n < LEAST_ROWS or model.word not in ("ar1", "car1") or model.variances or model.n_groups > 1:
        return False
    if model.settings.get("nugget") or sum(b.size for b in model.bars) > MOST_EFFECTS:
        return False
    if not all(np.array_equal(r.codes[0], other) for other in r.codes[1:]):
        return False
    gaps = _gaps(r, sorted_rows(r.subject, r._replace(codes=())))[1]
    if not len(gaps) or (_distinct(gaps) is None and gaps.max() > WIDEST * gaps.min()):
        return False
    return not r.codes or _nested(r.subject, r.codes[0])


def _times(r: Rows) -> np.ndarray:
    return r.clock if r.clock.ndim == 1 else r.clock[:, 0]


def _gaps(r: Rows, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows in order of subject and time: positions of those with a predecessor, and how far that is."""
    subject, t = r.subject[order], _times(r)[order]
    later = np.flatnonzero(subject[1:] == subject[:-1]) + 1
    return later, (t[later] - t[later - 1]).astype(float)


def _nested(inner: np.ndarray, outer: np.ndarray) -> bool:
    of = np.zeros(int(inner.max()) + 1, outer.dtype)
    of[inner] = outer
    return bool((of[inner] == outer).all())


def build(model: Model, r: Rows, W: np.ndarray) -> Sums:
    """The sums of rows W (n, p+1) conditioned, r.Z in the search's units."""
    block = r.codes[0] if r.codes else np.zeros(len(W), int)
    order = sorted_rows(block, r)
    Z = np.concatenate([Z[order] for Z in r.Z], axis=1) if r.Z else np.zeros((len(W), 0))
    W, level = W[order], block[order]
    later, gaps = _gaps(r, order)
    e, nearest = W[:, -1], gaps == gaps.min()
    before, after = e[later[nearest] - 1], e[later[nearest]]
    r1 = float(before @ after / max(np.sqrt((before @ before) * (after @ after)), np.finfo(float).tiny))
    m, q, w = int(block.max()) + 1, Z.shape[1], W.shape[1]
    columns = _Columns(Z, W, level[later], later)
    few = _distinct(gaps)
    nodes, scale, pairs, found, WW = _of_nodes(columns, gaps, m) if few is None else _of_gaps(columns, *few, m)
    own = _level_sums(_products(Z, W), level, m)[:, None]
    both = np.concatenate([own, found], axis=1).transpose(1, 0, 2).reshape(1 + 2 * len(nodes), m, q, q + w)
    sets = np.concatenate([(W.T @ W)[None], WW])
    pooled = _pooled(both[..., :q], both[..., q:])
    return Sums(nodes, pairs, scale, *pooled, sets, (r1, float(gaps.min())))


class _Columns(NamedTuple):
    """Z (n, q), W (n, w); of pairs of neighbours the level and the later row."""

    Z: np.ndarray
    W: np.ndarray
    level: np.ndarray
    later: np.ndarray

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Z and W of the earlier and the later rows of some pairs."""
        b = self.later[rows]
        return self.Z[b - 1], self.W[b - 1], self.Z[b], self.W[b]


_Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _products(Z: np.ndarray, W: np.ndarray) -> np.ndarray:
    """(n, q(q+w)) z_i·(z, w), row by row."""
    return (Z[:, :, None] * np.concatenate([Z, W], axis=1)[:, None, :]).reshape(len(Z), -1)


def _level_sums(products: np.ndarray, level: np.ndarray, m: int) -> np.ndarray:
    """(m, J) sums per level."""
    out = np.zeros((products.shape[1], m))
    add_by_code(out, level, products.T)
    return out.T


def _distinct(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The distinct gaps and which of them each one is; None where they are many."""
    known = np.unique(gaps[:CHUNK])
    if len(known) > MOST_GAPS:
        return None
    of = np.minimum(np.searchsorted(known, gaps), len(known) - 1)
    others = np.unique(gaps[known[of] != gaps])
    if not len(others):
        return known, of
    known = np.union1d(known, others)
    return (known, np.searchsorted(known, gaps)) if len(known) <= MOST_GAPS else None


def _of_gaps(columns: _Columns, known: np.ndarray, of: np.ndarray, m: int) -> _Found:
    """Nodes, scale, pairs, sums (m, 2K, J) and (2K, w, w), differences first, where every gap is a node."""
    sums, squares = [], []
    for k in range(len(known)):
        rows = np.flatnonzero(of == k)
        Za, Wa, Zb, Wb = columns.of(rows)
        level = columns.level[rows]
        sums.append(_level_sums(_products(Zb - Za, Wb - Wa), level, m))
        sums.append(_level_sums(_products(Za, Wa) + _products(Zb, Wb), level, m))
        squares += [(Wb - Wa).T @ (Wb - Wa), Wa.T @ Wa + Wb.T @ Wb]
    turn = np.arange(2 * len(known)).reshape(-1, 2).T.ravel()
    return (
        known,
        np.ones(len(known)),
        np.bincount(of).astype(float),
        np.stack(sums, 1)[:, turn],
        np.stack(squares)[turn],
    )


def _of_nodes(columns: _Columns, gaps: np.ndarray, m: int) -> _Found:
    """The same at Chebyshev nodes in log g, for which every pair counts by its Lagrange weights."""
    x = np.log(gaps)
    low, high = float(x.min()), float(x.max())
    K = int(np.ceil(NODES[0] + NODES[1] * (high - low)))
    nodes = 0.5 * (low + high) + 0.5 * (high - low) * np.cos((np.arange(K) + 0.5) * np.pi / K)
    q, w = columns.Z.shape[1], columns.W.shape[1]
    pairs, sums = np.zeros(K), np.zeros((m, 2, K, q * (q + w)))
    squares = np.zeros((2, K, w * w))
    for rows in _alike(columns.level):
        Za, Wa, Zb, Wb = columns.of(rows.ravel())
        shares = _lagrange(x[rows.ravel()], nodes)
        pairs += shares.sum(0)
        scaled = shares / gaps[rows.ravel()][:, None]
        squares[0] += scaled.T @ _outer(Wb - Wa)
        squares[1] += shares.T @ (_outer(Wa) + _outer(Wb))
        at, shape = columns.level[rows[:, 0]], (*rows.shape, -1)
        for i, (share, of) in enumerate(
            ((scaled, _products(Zb - Za, Wb - Wa)), (shares, _products(Za, Wa) + _products(Zb, Wb)))
        ):
            if q:
                np.add.at(sums[:, i], at, share.reshape(shape).swapaxes(1, 2) @ of.reshape(shape))
    return (
        np.exp(nodes),
        np.exp(nodes),
        pairs,
        sums.reshape(m, 2 * K, q * (q + w)),
        squares.reshape(2 * K, w, w),
    )  # fmt: skip


def _outer(W: np.ndarray) -> np.ndarray:
    return (W[:, :, None] * W[:, None, :]).reshape(len(W), -1)


def _alike(level: np.ndarray) -> Iterator[np.ndarray]:
    """Positions (levels, n) of the pairs of levels that have n of them; long levels in pieces."""
    starts = np.flatnonzero(np.diff(level, prepend=-1))
    ends = np.append(starts[1:], len(level))
    pieces = [(lo, min(lo + CHUNK, e)) for s, e in zip(starts, ends, strict=True) if e - s > CHUNK
              for lo in range(s, e, CHUNK)]  # fmt: skip
    for lo, hi in pieces:
        yield np.arange(lo, hi)[None]
    size = ends - starts
    for n in np.unique(size[size <= CHUNK]):
        first = starts[size == n]
        step = max(1, CHUNK // int(n))
        for lo in range(0, len(first), step):
            yield first[lo : lo + step, None] + np.arange(n)


def _lagrange(x: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(n, K) weights of Chebyshev nodes of the first kind, by the barycentric formula."""
    K = len(nodes)
    weight = np.where(np.arange(K) % 2, -1.0, 1.0) * np.sin((np.arange(K) + 0.5) * np.pi / K)
    step = x[:, None] - nodes
    at = step == 0.0
    terms = weight / np.where(at, 1.0, step)
    return np.where(at.any(1, keepdims=True), at, terms / terms.sum(1, keepdims=True))


def _pooled(G: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Levels that share all G_s as one pattern, their C_s as a root."""
    S, m, q, _ = G.shape
    w = C.shape[3]
    if not q:
        return G[:, :0], np.zeros(0), np.zeros(0, int), C[:, :0]
    flat = np.ascontiguousarray(G.transpose(1, 0, 2, 3).reshape(m, -1))
    key = flat @ np.random.default_rng(0).uniform(1.0, 2.0, flat.shape[1])
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    if not np.array_equal(flat[first[of]], flat):
        first, of = np.arange(m), np.arange(m)
    copies = np.bincount(of)
    vectors = C.transpose(1, 0, 2, 3).reshape(m, -1)
    alone = np.flatnonzero(copies[of] <= roots.FEW)
    parts, owners = [vectors[alone]], [of[alone]]
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(copies)
    for p in np.flatnonzero(copies > roots.FEW):
        found = roots.reduced(vectors[order[ends[p] - copies[p] : ends[p]]])
        parts.append(found)
        owners.append(np.full(len(found), p))
    C = np.concatenate(parts).reshape(-1, S, q, w).transpose(1, 0, 2, 3)
    return G[:, first], copies.astype(float), np.concatenate(owners), np.ascontiguousarray(C)


# ---------------------------------------------------------------- coefficients of the sets


def coefficients(model: Model, x: np.ndarray, sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """c (3, S) with its two derivatives in the correlation's parameter, and log|R| (3,) likewise."""
    phi, less = _correlations(model, float(x[model.correlation][0]), sums.nodes)
    one = less[0]
    # φ/(1 − φ²), −φ/(1 + φ) and log(1 − φ²) in φ; 1 − φ² without cancellation.
    difference = _chain(phi[0] / one, (1.0 + phi[0] ** 2) / one**2, 2.0 * phi[0] * (3.0 + phi[0] ** 2) / one**3, phi)
    square = _chain(-phi[0] / (1.0 + phi[0]), -1.0 / (1.0 + phi[0]) ** 2, 2.0 / (1.0 + phi[0]) ** 3, phi)
    log = _chain(np.log(one), -2.0 * phi[0] / one, -2.0 * (1.0 + phi[0] ** 2) / one**2, phi)
    identity = np.array([[1.0], [0.0], [0.0]])
    return np.concatenate([identity, difference * sums.scale, square], axis=1), log @ sums.pairs


def _correlations(model: Model, x: float, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """φ (3, K) with two derivatives in x, and 1 − φ² (1, K)."""
    if model.word == "ar1":
        rho, slope = np.sin(x), np.cos(x)
        power = rho**gaps
        first = gaps * rho ** (gaps - 1.0)
        second = np.where(gaps > 1.0, gaps * (gaps - 1.0) * rho ** np.maximum(gaps - 2.0, 0.0), 0.0)
        less = -np.expm1(gaps * np.log1p(-(slope**2))) if slope**2 < 1.0 else 1.0 - power**2
        return np.stack([power, first * slope, second * slope**2 - first * rho]), np.atleast_2d(less)
    u = gaps * np.exp(-x)
    phi = np.exp(-u)
    return np.stack([phi, u * phi, (u * u - u) * phi]), np.atleast_2d(-np.expm1(-2.0 * u))


def _chain(f: np.ndarray, f1: np.ndarray, f2: np.ndarray, phi: np.ndarray) -> np.ndarray:
    return np.stack([f, f1 * phi[1], f2 * phi[1] ** 2 + f1 * phi[2]])


# ---------------------------------------------------------------- log|V| and H with two derivatives


def solve(model: Model, x: np.ndarray, sums: Sums) -> Solved | None:
    """``Solved`` at x; None where it is not finite."""
    k, w, at = len(x), sums.W.shape[1], model.correlation.start
    c, log_R = coefficients(model, x, sums)
    W = np.tensordot(c, sums.W, 1)
    log_det, H = float(log_R[0]), W[0]
    log1, log2 = np.zeros(k), np.zeros((k, k))
    H1, H2 = np.zeros((k, w, w)), np.zeros((k, k, w, w))
    log1[at], log2[at, at], H1[at], H2[at, at] = log_R[1], log_R[2], W[1], W[2]
    if model.bars:
        more = _of_bars(model, x, sums, c)
        log_det, H = log_det + more.log_det, H + more.H
        log1, log2, H1, H2 = log1 + more.log_det1, log2 + more.log_det2, H1 + more.H1, H2 + more.H2
    found = Solved(log_det, 0.5 * (H + H.T), log1, log2, H1, H2, x)
    return found if np.isfinite(log_det) and np.isfinite(H).all() else None


def _of_bars(model: Model, x: np.ndarray, sums: Sums, c: np.ndarray) -> Solved:
    """What the bars add to ``Solved``."""
    k, rho, owner, n = len(x), model.correlation.start, sums.owner, sums.copies
    G, G1, G2 = np.tensordot(c, sums.G, 1)
    C, C1, C2 = np.tensordot(c, sums.C, 1)
    Psi, slope, bend = _psi(model, x)
    eye = np.eye(len(Psi))
    U = np.linalg.inv(eye + G @ Psi)
    N, E, Ut = Psi @ U, U @ G, U.swapaxes(1, 2)
    log1, log2 = np.zeros(k), np.zeros((k, k))
    H1, H2 = np.zeros((k, *sums.W.shape[1:])), np.zeros((k, k, *sums.W.shape[1:]))
    sign, logs = np.linalg.slogdet(eye + Psi @ G)
    log_det = float(n @ np.where(sign > 0, logs, np.nan))

    def explained(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
        """−Σ leftᵀ·middle·right over the roots."""
        inner = middle[owner] @ right
        return -left.reshape(-1, left.shape[2]).T @ inner.reshape(-1, inner.shape[2])

    def both(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
        out = explained(left, middle, right)
        return out + out.T

    H = explained(C, N, C)
    log1[rho], H1[rho] = n @ _dot(N, G1), both(C1, N, C) + explained(C, -(N @ G1 @ N), C)
    log2[rho, rho] = n @ (_dot(N, G2) - _dot(N @ G1 @ N, G1))
    turned = 2.0 * N @ G1 @ N @ G1 @ N - N @ G2 @ N
    H2[rho, rho] = (
        both(C2, N, C) + 2.0 * explained(C1, N, C1) + 2.0 * both(C1, -(N @ G1 @ N), C) + explained(C, turned, C)
    )
    for a in range(model.n_theta):
        moved = Ut @ slope[a] @ U
        log1[a], H1[a] = n @ _dot(E, slope[a]), explained(C, moved, C)
        log2[a, rho] = log2[rho, a] = n @ _dot(U @ G1 @ Ut, slope[a])
        across = moved @ G1 @ N
        H2[a, rho] = H2[rho, a] = both(C1, moved, C) - explained(C, across + across.swapaxes(1, 2), C)
        for b in range(a + 1):
            log2[a, b] = log2[b, a] = n @ (_dot(E, bend[a, b]) - _dot(E @ slope[b] @ E, slope[a]))
            twice = Ut @ slope[b] @ E @ slope[a] @ U
            H2[a, b] = H2[b, a] = explained(C, Ut @ bend[a, b] @ U - twice - twice.swapaxes(1, 2), C)
    return Solved(log_det, H, log1, log2, H1, H2, x)


def _dot(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Σ_ij A_ij B_ij (P,) of A (P, q, q) and symmetric B (P, q, q) or (q, q)."""
    return (A * B).sum((1, 2))


def _psi(model: Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ψ (q, q) of all bars, ∂Ψ (kθ, q, q) and ∂²Ψ (kθ, kθ, q, q)."""
    k, sizes = model.n_theta, [b.size for b in model.bars]
    ends = np.cumsum(sizes)
    q = int(ends[-1])
    first, second, parts = np.zeros((k, q, q)), np.zeros((k, k, q, q)), []
    for here, block, end in zip(model.theta, model.bars, ends, strict=True):
        own = slice(int(end) - block.size, int(end))
        L = covariance.factor(x[here], (block,))
        parts.append(L @ L.T)
        first[here, own, own], second[here, here, own, own] = steps(x[here], block)
    return scipy.linalg.block_diag(*parts), first, second


def record(solved: Solved, A: np.ndarray, Q: float) -> tuple[Record, np.ndarray]:
    """``Record`` in the whitened columns [X y]A, second derivatives of V counted in it, and X_a (k, p, p)."""
    p, k = len(A) - 1, len(solved.log_det1)
    H1, H2 = A.T @ solved.H1 @ A, A.T @ solved.H2 @ A
    X_a = -H1[:, :p, :p]
    found = Record(
        M=np.eye(p),
        Xr=np.zeros(p),
        Q=Q,
        trace=solved.log_det1,
        XB=-H1[:, :p, p],
        B=-H1[:, p, p],
        trace2=-solved.log_det2,
        BB=0.5 * H2[:, :, p, p],
        own=np.trace(X_a, axis1=1, axis2=2),
        F=0.5 * np.trace(H2[:, :, :p, :p], axis1=2, axis2=3),
        products=X_a.reshape(k, p * p) @ X_a.swapaxes(1, 2).reshape(k, p * p).T,
        bend=np.zeros((k, k)),
    )
    return found, X_a
