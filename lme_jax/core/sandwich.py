"""Cluster-robust covariance of β̂ by generalised least squares, from independent clusters; arrays in, arrays out.

Of cluster i with V_i (any common scale), X_i and residuals e_i, M = (Σ X_iᵀV_i⁻¹X_i)⁻¹ and an adjustment A_i,
    Cov = M (Σ s_is_iᵀ) M,   s_i = X_iᵀV_i⁻¹A_ie_i.
CR0 has A = I, CR1 and CR1S a common factor, CR3 A = (I − X_iMX_iᵀV_i⁻¹)⁻¹, nearly the jackknife, and CR2 the symmetric
A with A(V_i − X_iMX_iᵀ)A = V_i, which makes Cov unbiased where V is right. Were it, e would have covariance
V − XMXᵀ, so that of the s_i only U_i = A_iᵀV_i⁻¹X_iM matters, through U_iᵀV_iU_i and X_iᵀU_i: both p × p.

Units of V cancel. Clusters run on the first axis. The same functions serve any model with independent blocks.

References: Bell & McCaffrey (2002), Survey Methodology 28; Pustejovsky & Tipton (2018), J. Bus. Econ. Stat. 36.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ..errors import DataError

Kind = Literal["CR0", "CR1", "CR1S", "CR2", "CR3"]
# Eigenvalues of what a cluster leaves of V that count as zero, relative to the largest: it determines a coefficient.
ZERO = 1e-9


class Batch(NamedTuple):
    """Clusters of one size r.

    Attributes
    ----------
    number : (m,) which clusters; V : (m, r, r); X : (m, r, p); e : (m, r).
    """

    number: np.ndarray
    V: np.ndarray
    X: np.ndarray
    e: np.ndarray


class Scores(NamedTuple):
    """Of every cluster s (G, p), UᵀVU (G, p, p) and XᵀU (G, p, p); M (p, p).

    ``factor`` multiplies the covariance, CR1's and CR1S's common factor.
    """

    s: np.ndarray
    UVU: np.ndarray
    XU: np.ndarray
    M: np.ndarray
    factor: float

    @property
    def n_clusters(self) -> int:
        return len(self.s)


def check_kind(kind: str) -> None:
    """Refuse what is no type."""
    if kind not in get_args(Kind):
        raise DataError(f"type={kind!r} is unknown; use one of {', '.join(get_args(Kind))}")


def by_size(blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[Batch]:
    """Clusters given one by one, each (V (r, r), X (r, p), e (r,)), as batches of one size; numbered as they come."""
    sizes: dict[int, list[tuple[int, Any, Any, Any]]] = {}
    for number, (V, X, e) in enumerate(blocks):
        sizes.setdefault(len(e), []).append((number, V, X, e))
    return [Batch(*map(np.array, zip(*same, strict=True))) for same in sizes.values()]


def scores(batches: Iterable[Batch], M: np.ndarray, n_clusters: int, n_rows: int, kind: Kind) -> Scores:
    """What all that follows is made from; M (p, p) in the units of V."""
    if kind != "CR2":
        return scores_of_products(*products(batches, len(M), n_clusters), M, n_rows, kind)
    _check_clusters(n_clusters)
    p = len(M)
    s, UVU, XU = np.zeros((n_clusters, p)), np.zeros((n_clusters, p, p)), np.zeros((n_clusters, p, p))
    for batch in batches:
        own = batch.number
        s[own], UVU[own], XU[own] = _halved(batch, M)
    return Scores(s, UVU, XU, M, 1.0)


def scores_of_products(T: np.ndarray, Xe: np.ndarray, M: np.ndarray, n_rows: int, kind: Kind) -> Scores:
    """The same of all types but CR2, from T = XᵀV⁻¹X (G, p, p) and XᵀV⁻¹e (G, p) alone."""
    check_kind(kind)
    _check_clusters(len(T))
    factor = _factor(kind, len(T), n_rows, len(M))
    if kind != "CR3":
        TM = T @ M
        return Scores(Xe, M @ TM, TM, M, factor)
    rest = np.eye(len(M)) - M @ T
    _check_leverage(rest)
    KM = np.linalg.solve(rest, np.broadcast_to(M, rest.shape))
    TKM = T @ KM
    left = np.linalg.solve(np.swapaxes(rest, 1, 2), Xe[:, :, None])[:, :, 0]
    return Scores(left, np.swapaxes(KM, 1, 2) @ TKM, TKM, M, factor)


def products(batches: Iterable[Batch], p: int, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """XᵀV⁻¹X (G, p, p) and XᵀV⁻¹e (G, p)."""
    T, Xe = np.zeros((n_clusters, p, p)), np.zeros((n_clusters, p))
    for number, V, X, e in batches:
        both = np.swapaxes(X, 1, 2) @ np.linalg.solve(V, np.concatenate([X, e[:, :, None]], axis=2))
        T[number], Xe[number] = both[:, :, :-1], both[:, :, -1]
    return T, Xe


def _check_clusters(n: int) -> None:
    if n < 2:
        raise DataError("a cluster-robust covariance needs two clusters or more")


def _factor(kind: Kind, m: int, n: int, p: int) -> float:
    if kind == "CR1":
        return m / (m - 1.0)
    return m * (n - 1.0) / ((m - 1.0) * (n - p)) if kind == "CR1S" else 1.0


def _halved(batch: Batch, M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CR2's s (m, p), UᵀVU and XᵀU (m, p, p)."""
    _, V, X, e = batch
    AWX = _halfway(V, X, M) @ np.linalg.solve(V, X)
    U = AWX @ M
    return np.einsum("mrp,mr->mp", AWX, e), np.swapaxes(U, 1, 2) @ V @ U, np.swapaxes(X, 1, 2) @ U


def _halfway(V: np.ndarray, X: np.ndarray, M: np.ndarray) -> np.ndarray:
    """The symmetric A (m, r, r) with A(V − XMXᵀ)A = V; on directions that X leaves nothing of, zero."""
    C = np.linalg.cholesky(V)
    CX = np.swapaxes(C, 1, 2) @ X
    inner = np.swapaxes(C, 1, 2) @ C
    values, vectors = np.linalg.eigh(inner @ inner - CX @ M @ np.swapaxes(CX, 1, 2))
    left = values > ZERO * values[:, -1:]
    root = np.where(left, 1.0 / np.sqrt(np.where(left, values, 1.0)), 0.0)
    half = C @ vectors
    return (half * root[:, None, :]) @ np.swapaxes(half, 1, 2)


def _check_leverage(rest: np.ndarray) -> None:
    if len(rest[0]) and (least := np.linalg.svd(rest, compute_uv=False)[:, -1]).min() < ZERO:
        raise DataError(
            f"cluster number {least.argmin()} determines a fixed effect by itself, so that CR3 is not defined: take "
            "type='CR2'"
        )


def covariance(found: Scores) -> np.ndarray:
    """Cov β̂ (p, p)."""
    weighted = found.s @ found.M
    return found.factor * (weighted.T @ weighted)


def satterthwaite(found: Scores, L: np.ndarray) -> np.ndarray:
    """Degrees of freedom (m,) of the variances of Lβ̂, L (m, p): 2 E²/Var were V right."""
    return np.array([_wishart(found, row[None]) for row in L])


def hotelling(found: Scores, L: np.ndarray) -> float:
    """Degrees of freedom η of the Wishart that LCovLᵀ is nearest to (HTZ), L (q, p)."""
    return _wishart(found, L)


def _wishart(found: Scores, L: np.ndarray) -> float:
    """q(q+1)/Σ Var D_st with D = Ω^{-½}LCovLᵀΩ^{-½}, Ω its expectation.

    With P_cd = δ_cd U_cᵀVU_c − N_cᵀN_d, N = M^{½}XᵀU, the sum is Σ_cd (tr P_cd)² + tr P_cdP_cd.
    """
    q = len(L)
    root = np.linalg.cholesky(found.M)
    own, across = L @ found.UVU @ L.T, root.T @ (found.XU @ L.T)
    expected = (own - np.swapaxes(across, 1, 2) @ across).sum(0)
    values, vectors = np.linalg.eigh(expected)
    if not values[0] > ZERO * values[-1]:
        raise DataError(f"the {q} hypotheses are not independent, or too few clusters tell of them")
    whiten = vectors / np.sqrt(values)
    own, N = whiten.T @ own @ whiten, across @ whiten
    joint = np.einsum("cas,cbt->asbt", N, N, optimize=True)
    inner = np.swapaxes(N, 1, 2) @ N
    total = (joint**2).sum() + np.einsum("asbt,atbs->", joint, joint)
    for P, sign in ((own - inner, 1.0), (inner, -1.0)):
        total += sign * ((np.trace(P, axis1=1, axis2=2) ** 2).sum() + np.einsum("cst,cts->", P, P))
    return float(q * (q + 1.0) / total)
