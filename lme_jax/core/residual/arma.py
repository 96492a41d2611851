"""ARMA(p, q) autocorrelations with two derivatives.

φ and θ come from partial autocorrelations sin ψ of p + q angles, so that the process is stationary and invertible;
signs as in nlme: x_t = Σ φ_i x_{t−i} + e_t + Σ θ_j e_{t−j}.
"""

import functools

import numpy as np

from ..jets import Jet, elementwise, joined
from .families import Family, Moments, Natural, Options, bend_of_lags, blunter_angles, lag_sums, of_lags, one, variance


def orders(options: Options) -> tuple[int, int]:
    """(p, q)."""
    return int(options["p"]), int(options["q"])


def _coefficients(partial: Jet) -> Jet | None:
    """(m,) of the autoregression with these partial autocorrelations (Durbin–Levinson); None of none."""
    a: Jet | None = None
    for k in range(len(partial.value)):
        pi = partial[k : k + 1]
        a = pi if a is None else joined(a - pi * a[::-1], pi)
    return a


def coefficients(angles: np.ndarray, options: Options) -> tuple[Jet | None, Jet | None]:
    """φ (p,) and θ (q,)."""
    p, _ = orders(options)
    partial = elementwise(np.sin(angles), np.cos(angles), -np.sin(angles))
    ar, ma = _coefficients(partial[:p]), _coefficients(partial[p:])
    return ar, None if ma is None else Jet(-ma.value, -ma.first, -ma.second)


def _constant(value: float, like: Jet) -> Jet:
    n = like.first.shape[0]
    return Jet(np.array([value]), np.zeros((n, 1)), np.zeros((n, n, 1)))


def autocorrelations(angles: np.ndarray, T: int, options: Options) -> Jet:
    """Lags 0 … T − 1; one evaluation of a deviance asks for them many times."""
    return _autocorrelations(tuple(angles.tolist()), T, *orders(options))


@functools.lru_cache(maxsize=8)
def _autocorrelations(given: tuple[float, ...], T: int, p: int, q: int) -> Jet:
    angles, options = np.array(given), {"p": p, "q": q}
    ar, ma = coefficients(angles, options)
    some = ar if ar is not None else ma
    assert some is not None
    one, zero = _constant(1.0, some), _constant(0.0, some)
    phi = [] if ar is None else [ar[i : i + 1] for i in range(p)]
    theta = [one, *([] if ma is None else [ma[j : j + 1] for j in range(q)])]
    gamma = _autocovariances(phi, theta, zero, max(p, q))
    while len(gamma) < T:
        gamma.append(_sum([phi[i] * gamma[-1 - i] for i in range(p)], zero))
    inverse = _reciprocal(gamma[0])
    out = one
    for g in gamma[1:T]:
        out = joined(out, g * inverse)
    return out


def _sum(terms: list[Jet], zero: Jet) -> Jet:
    for term in terms:
        zero = zero + term
    return zero


def _reciprocal(x: Jet) -> Jet:
    v = x.value
    first = -x.first / v**2
    return Jet(1.0 / v, first, -x.second / v**2 + 2.0 * x.first[:, None] * x.first[None] / v**3)


def _autocovariances(phi: list[Jet], theta: list[Jet], zero: Jet, m: int) -> list[Jet]:
    """γ_0 … γ_m from the Yule–Walker equations γ_k − Σ φ_i γ_|k−i| = Σ_{j ≥ k} θ_j ψ_{j−k}."""
    p, q = len(phi), len(theta) - 1
    psi = [theta[0]]
    for k in range(1, q + 1):
        psi.append(_sum([phi[i - 1] * psi[k - i] for i in range(1, min(k, p) + 1)], theta[k]))
    right = [_sum([theta[j] * psi[j - k] for j in range(k, q + 1)], zero) for k in range(m + 1)]
    n = zero.first.shape[0]
    A, A1, A2 = np.eye(m + 1), np.zeros((n, m + 1, m + 1)), np.zeros((n, n, m + 1, m + 1))
    for k in range(m + 1):
        for i in range(1, p + 1):
            A[k, abs(k - i)] -= phi[i - 1].value[0]
            A1[:, k, abs(k - i)] -= phi[i - 1].first[:, 0]
            A2[:, :, k, abs(k - i)] -= phi[i - 1].second[:, :, 0]
    return _solved(A, A1, A2, right)


def _solved(A: np.ndarray, A1: np.ndarray, A2: np.ndarray, right: list[Jet]) -> list[Jet]:
    """x with Ax = b, and its derivatives."""
    b = np.array([r.value[0] for r in right])
    b1 = np.stack([r.first[:, 0] for r in right], 1)
    b2 = np.stack([r.second[:, :, 0] for r in right], 2)
    inverse = np.linalg.inv(A)
    x = inverse @ b
    x1 = (b1 - A1 @ x) @ inverse.T
    across = np.einsum("aij,bj->abi", A1, x1)
    x2 = (b2 - A2 @ x - across - across.swapaxes(0, 1)) @ inverse.T
    return [Jet(x[i : i + 1], x1[:, i : i + 1], x2[:, :, i : i + 1]) for i in range(len(x))]


def _starts(m: Moments, T: int, options: Options) -> list[np.ndarray]:
    p, q = orders(options)
    seen = lag_sums(m.pairs)
    r = lag_sums(m.R * m.pairs) / np.maximum(seen, 1e-300)
    first = float(np.clip(r[1], -0.9, 0.9)) if T > 1 and seen[1] else 0.1
    moving = np.zeros(p + q)
    if p:
        moving[0] = np.arcsin(first)
        if q and T > 2 and abs(r[1]) > 0.05:
            moving[0] = np.arcsin(np.clip(r[2] / r[1], -0.9, 0.9))
            moving[p] = 0.1
    else:
        moving[0] = -np.arcsin(first)
    return [moving, *([np.full(p + q, 0.3), np.full(p + q, -0.3)] if p + q > 1 else [])]


def _natural(rho: np.ndarray, T: int, options: Options) -> list[Natural]:
    ar, ma = coefficients(rho, options)
    out = []
    for kind, jet in (("phi", ar), ("theta", ma)):
        if jet is not None:
            out += [Natural(kind, (k + 1,), jet[k : k + 1]) for k in range(len(jet.value))]
    return out


ARMA = Family(
    size=lambda T, options: sum(orders(options)),
    first=lambda rho, T, options: of_lags(autocorrelations(rho, T, options), T),
    bend=lambda rho, T, options, S: bend_of_lags(autocorrelations(rho, T, options), S),
    starts=_starts,
    edges=lambda rho, T, options: np.abs(np.cos(rho)),
    blunter=blunter_angles,
    natural=_natural,
    linear=lambda rho, T, options: [variance(one(len(rho)), 0), *_natural(rho, T, options)],
    options={"p": 0, "q": 0},
)
