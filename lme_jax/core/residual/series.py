"""log|V|, H and all that moves them at one x, of chains under the levels of one factor.

Of a level let G = ZᵀR⁻¹Z, C = ZᵀR⁻¹W, W = [X y]; U = Λ(I + ΛᵀGΛ)⁻¹Λᵀ, B = UC, D = C − GB = ZᵀV⁻¹W, K = I − UG and
E = KᵀG = ZᵀV⁻¹Z, all of which exist where Ψ = ΛΛᵀ is singular. With dU = −U dG U + K dΨ Kᵀ, summed over levels,
    H = WᵀR⁻¹W − CᵀB,                                      log|V| = log|R| + log|I + ΛᵀGΛ|,
a of R, D_a = C_a − G_aB:
    H_a = W_a − D_aᵀB − BᵀC_a,                             log|V|_a = log|R|_a + tr UG_a,
    H_ab = W_ab − D_abᵀB − BᵀC_ab − D_aᵀUD_b − D_bᵀUD_a,    log|V|_ab = log|R|_ab + tr UG_ab − tr UG_aUG_b,
a of Ψ, Y_a = Ψ_aD:
    H_a = −Y_aᵀD,                                          log|V|_a = tr EΨ_a,
    H_ab = −DᵀΨ_abD + Y_aᵀEY_b + Y_bᵀEY_a,                  log|V|_ab = tr EΨ_ab − tr EΨ_aEΨ_b,
a of R and b of Ψ:
    H_ab = −D_aᵀKY_b − (KY_b)ᵀD_a,                         log|V|_ab = tr KᵀG_aKΨ_b.
"""

from typing import NamedTuple

import numpy as np

from .. import covariance, linalg
from ..criterion import whitening
from ..likelihood import Record
from . import chains, classes, markov
from .chains import Chain, Mixed
from .classes import Sets
from .model import Model, steps
from .record import Moved


class Series(NamedTuple):
    """Rows as a chain, and their sums by class where these are few."""

    chain: Chain
    sets: Sets | None

    @property
    def counts(self) -> np.ndarray:
        """(P,) levels whose log-determinant an entry stands for."""
        return np.ones(self.chain.n_levels) if self.sets is None else self.sets.counts


class SolvedSeries(NamedTuple):
    """log|V| (), H (w, w), where, and the sums they came from, with their derivatives if rows had to be looked at."""

    log_det: float
    H: np.ndarray
    x: np.ndarray
    mixed: Mixed


class _Level(NamedTuple):
    """G, U, K, E (q, q, L) and C, B, D (w, q, L) of every level."""

    G: np.ndarray
    U: np.ndarray
    K: np.ndarray
    E: np.ndarray
    C: np.ndarray
    B: np.ndarray
    D: np.ndarray


def mixed(model: Model, x: np.ndarray, series: Series, derivatives: bool) -> Mixed:
    """``Mixed`` from the cheaper of both."""
    if series.sets is None:
        return chains.mixed(model, x, series.chain, derivatives)
    return classes.mixed(model, x, series.sets, derivatives)


def solve(model: Model, x: np.ndarray, series: Series) -> SolvedSeries | None:
    """``SolvedSeries`` at x; None where V is not positive definite or not finite."""
    m = mixed(model, x, series, derivatives=series.sets is None)
    log_det, H = float(m.log_det[0]), m.WW[0]
    if len(series.chain.Z):
        half, log_dets, C = _root(model, x, m, series)
        E = _act(half, C)
        log_det, H = log_det + float(log_dets @ series.counts), H - _gram(E, E)
    H = 0.5 * (H + H.T)
    return SolvedSeries(log_det, H, x, m) if np.isfinite(H).all() and np.isfinite(log_det) else None


def _root(model: Model, x: np.ndarray, m: Mixed, series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K⁻¹Λᵀ (q, q, L) with U = its square, log|I + ΛᵀGΛ| (L,), and C."""
    G, C = _split(m.M[0], len(series.chain.Z))
    root = _lambda(model, x)[:, :, None]
    inner = linalg.matmul(root.swapaxes(0, 1), linalg.matmul(G, root)) + np.eye(len(G))[:, :, None]
    factor = linalg.cholesky(inner)
    half = linalg.solve_lower(factor, np.broadcast_to(root.swapaxes(0, 1), G.shape))
    return half, linalg.log_det(factor), C


def _lambda(model: Model, x: np.ndarray) -> np.ndarray:
    """Λ (q, q) of all bars."""
    out = np.zeros((sum(b.size for b in model.bars),) * 2)
    for at, here, block in _bars(model):
        out[at, at] = covariance.factor(x[here], (block,))
    return out


def _bars(model: Model) -> list[tuple[slice, slice, covariance.Block]]:
    """Where the effects and the parameters of every bar stand."""
    ends = np.cumsum([b.size for b in model.bars])
    return [(slice(int(e) - b.size, int(e)), here, b) for e, b, here in zip(ends, model.bars, model.theta, strict=True)]


def _psi_steps(model: Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """∂Ψ (kθ, q, q) and ∂²Ψ (kθ, kθ, q, q) of all bars."""
    q, k = sum(b.size for b in model.bars), model.n_theta
    first, second = np.zeros((k, q, q)), np.zeros((k, k, q, q))
    for at, here, block in _bars(model):
        first[here, at, at], second[here, here, at, at] = steps(x[here], block)
    return first, second


def _split(M: np.ndarray, q: int) -> tuple[np.ndarray, np.ndarray]:
    """G (…, q, q, L) and C (…, w, q, L) of M (…, F, L)."""
    i, j = linalg.tril(q)
    where = np.zeros((q, q), int)
    where[i, j] = where[j, i] = np.arange(len(i))
    C = M[..., len(i) :, :]
    return M[..., where, :], C.reshape(*M.shape[:-2], C.shape[-2] // q, q, M.shape[-1])


def _act(A: np.ndarray, X: np.ndarray) -> np.ndarray:
    """AX (…, w, q, L) for A (q, q, L) and X (…, w, q, L)."""
    total = A[:, 0] * X[..., 0, None, :]
    for j in range(1, A.shape[1]):
        total += A[:, j] * X[..., j, None, :]
    return total


def _gram(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """(a, b) Σ over effects and levels of X (a, q, L) and Y (b, q, L)."""
    return X.reshape(len(X), -1) @ Y.reshape(len(Y), -1).copy().T


# ---------------------------------------------------------------- derivatives


class _Jets(NamedTuple):
    """H (k, w, w) and log|V| (k,) moved once, and twice (k, k, …)."""

    H1: np.ndarray
    H2: np.ndarray
    log_det1: np.ndarray
    log_det2: np.ndarray


def moved(model: Model, solved: SolvedSeries, series: Series, R: np.ndarray, second: bool = False) -> Moved:
    """``record.Moved`` at the point of ``solved``; R the Cholesky factor of H.

    Notes
    -----
    What V_ab adds stands with V_aV⁻¹V_b, whose sums alone R⁻¹ does not tell: trace2, BB, F hold the second derivatives
    of log|V| and H, and ``bend`` and ``bent`` are 0. All second derivatives of ℓ and Cov β̂ are as they should be; the
    expected information is not to be had from it.
    """
    j = _whitened(_jets(model, solved, series), whitening(R))
    p, k = len(R) - 1, len(solved.x)
    X_a, F = -j.H1[:, :p, :p], 0.5 * j.H2[:, :, :p, :p]
    record = Record(
        M=np.eye(p),
        Xr=np.zeros(p),
        Q=float(R[-1, -1] ** 2),
        trace=j.log_det1,
        XB=-j.H1[:, :p, p],
        B=-j.H1[:, p, p],
        trace2=-j.log_det2,
        BB=0.5 * j.H2[:, :, p, p],
        own=np.trace(X_a, axis1=1, axis2=2),
        F=np.trace(F, axis1=2, axis2=3),
        products=X_a.reshape(k, p * p) @ X_a.swapaxes(1, 2).reshape(k, p * p).T,
        bend=np.zeros((k, k)),
    )
    if not second:
        return Moved(record, X_a, None, None)
    return Moved(record, X_a, F.swapaxes(1, 2).copy(), np.zeros((k, k, p, p)))


def _whitened(j: _Jets, A: np.ndarray) -> _Jets:
    return j._replace(H1=A.T @ j.H1 @ A, H2=A.T @ j.H2 @ A)


def _jets(model: Model, solved: SolvedSeries, series: Series) -> _Jets:
    x, k, t = solved.x, model.size, model.n_theta
    m = solved.mixed if series.sets is None else mixed(model, x, series, True)
    W1, W2 = markov.unpacked(m.WW, k - t)
    own1, own2 = markov.unpacked(m.log_det, k - t)
    w = m.WW.shape[1]
    out = _Jets(np.zeros((k, w, w)), np.zeros((k, k, w, w)), np.zeros(k), np.zeros((k, k)))
    out.H1[t:], out.H2[t:, t:], out.log_det1[t:], out.log_det2[t:, t:] = W1, W2, own1, own2
    if not len(series.chain.Z):
        return out
    half, _, C = _root(model, x, m, series)
    G = _split(m.M[0], len(half))[0]
    level = _level(half, G, C)
    steps, bends = _psi_steps(model, x)
    Y = np.stack([_times(step, level.D) for step in steps])
    _add_psi(out, level, Y, steps, bends, series.counts)
    _add_rho(out, level, Y, steps, m, series.counts)
    return out


def _level(half: np.ndarray, G: np.ndarray, C: np.ndarray) -> _Level:
    U = linalg.matmul(half.swapaxes(0, 1), half)
    GU = linalg.matmul(G, U)
    B = _act(U, C)
    K = np.eye(len(G))[:, :, None] - GU.swapaxes(0, 1)
    return _Level(G, U, K, G - linalg.matmul(GU, G), C, B, C - _act(G, B))


def _times(A: np.ndarray, X: np.ndarray) -> np.ndarray:
    """AX for A (q, q)."""
    return _act(A[:, :, None], X)


def _traces(A: np.ndarray, B: np.ndarray, count: np.ndarray) -> float:
    """Σ n tr AB over the levels."""
    return float((A * B.swapaxes(0, 1)).sum((0, 1)) @ count)


def _both(A: np.ndarray) -> np.ndarray:
    """A + Aᵀ."""
    return A + A.swapaxes(-1, -2)


def _add_psi(out: _Jets, v: _Level, Y: np.ndarray, steps: np.ndarray, bends: np.ndarray, count: np.ndarray) -> None:
    k, w, q = Y.shape[:3]
    D, E = v.D.reshape(w * q, -1), v.E.reshape(q * q, -1)
    DD = (D @ D.copy().T).reshape(w, q, w, q)
    EY = _act(v.E, Y)
    across = _gram(Y.reshape(k * w, q, -1), EY.reshape(k * w, q, -1)).reshape(k, w, k, w).transpose(0, 2, 1, 3)
    sum_E, EE = (E @ count).reshape(q, q), ((E * count) @ E.T).reshape(q, q, q, q)
    out.H1[:k] = -np.einsum("iajb,nab->nij", DD, steps)
    out.H2[:k, :k] = _both(across) - np.einsum("iajb,mnab->mnij", DD, bends)
    out.log_det1[:k] = np.tensordot(steps, sum_E, 2)
    out.log_det2[:k, :k] = np.tensordot(bends, sum_E, 2)
    out.log_det2[:k, :k] -= np.einsum("abcd,mbc,nda->mn", EE, steps, steps, optimize=True)


def _add_rho(out: _Jets, v: _Level, Y: np.ndarray, steps: np.ndarray, m: Mixed, count: np.ndarray) -> None:
    t, k = len(steps), len(out.log_det1)
    M1, M2 = markov.unpacked(m.M, k - t)
    G1, C1 = _split(M1, len(v.G))
    moves, UG = [], []
    KY = _act(v.K, Y)
    for a in range(k - t):
        D_a = C1[a] - _act(G1[a], v.B)
        moves.append(D_a)
        UG.append(linalg.matmul(v.U, G1[a]))
        out.H1[t + a] -= _gram(D_a, v.B) + _gram(v.B, C1[a])
        out.log_det1[t + a] += float(np.trace(UG[a]) @ count)
        middle = linalg.matmul(v.K.swapaxes(0, 1), linalg.matmul(G1[a], v.K)) @ count
        for b in range(t):
            out.H2[t + a, b] = out.H2[b, t + a] = -_both(_gram(D_a, KY[b]))
            out.log_det2[t + a, b] = out.log_det2[b, t + a] = float((middle * steps[b]).sum())
    for a in range(k - t):
        UD = _act(v.U, moves[a])
        for b in range(a + 1):
            G2, C2 = _split(M2[a, b], len(v.G))
            D_ab = C2 - _act(G2, v.B)
            H = out.H2[t + a, t + b] - _gram(D_ab, v.B) - _gram(v.B, C2) - _both(_gram(UD, moves[b]))
            out.H2[t + a, t + b] = out.H2[t + b, t + a] = H
            move = _traces(v.U, G2, count) - _traces(UG[a], UG[b], count)
            out.log_det2[t + a, t + b] += move
            if a != b:
                out.log_det2[t + b, t + a] += move
