"""R⁻¹ of correlations that look back by one row, entry by entry, with two derivatives.

With φ_t the correlation of row t with the row of its subject before it, u_t = exp η_t their standard deviations,
    R⁻¹ = Σ_t u_t⁻²(1 + κ_t + κ_{t+1}) e_te_tᵀ − Σ_t (u_tu_{t−1})⁻¹ω_t (e_te_{t−1}ᵀ + e_{t−1}e_tᵀ),
    log|R| = Σ_t 2η_t + Σ_t log(1 − φ_t²),   κ = φ²/(1 − φ²),   ω = φ/(1 − φ²).
Where η = 0 the sums over links are of differences d_t = e_t − e_{t−1}, which lose nothing as φ → 1:
    R⁻¹ = Σ_t e_te_tᵀ + Σ_t λ_t(e_te_tᵀ + e_{t−1}e_{t−1}ᵀ) + Σ_t ω_t d_td_tᵀ,   λ = κ − ω = −φ/(1 + φ).
φ_t = ρ^gap of AR(1), exp(−gap/range) of CAR(1). The first row of a subject has φ = 0. Derivatives are in the parameters
of the residuals alone, x[n_theta:]; jets of no parameters are the values.
"""

from typing import NamedTuple

import numpy as np

from ..jets import Jet
from .model import Model, log_sd
from .stacks import Rows

# Structures whose rows depend on the row before alone; by distance only in one coordinate.
WORDS = ("ident", "ar1", "ar1h", "car1", "sp_exp")


def applies(model: Model, rows: Rows) -> bool:
    """Whether R⁻¹ is tridiagonal."""
    one = rows.clock.ndim == 1 or rows.clock.shape[1] == 1
    return model.word in WORDS and one and not model.settings.get("nugget")


class Links(NamedTuple):
    """Rows that have one before: their distance from it and their arm, (m,)."""

    gap: np.ndarray
    arm: np.ndarray


def size(model: Model) -> int:
    """Number of parameters of the residuals."""
    return model.size - model.n_theta


def homoscedastic(model: Model) -> bool:
    """Whether η = 0 everywhere."""
    return model.n_groups == 1 and not model.variances and not model.family.heterogeneous


def log_sds(model: Model, x: np.ndarray, at: Rows, derivatives: bool) -> Jet:
    """η of rows (m,)."""
    m, k = len(at.subject), size(model) if derivatives else 0
    value, first, second = np.zeros(m), np.zeros((k, m)), np.zeros((k, k, m))
    eta, eta1, eta2 = log_sd(model, x, at, at.subject.shape)
    value += eta
    if k and len(eta1):
        first[-len(eta1) :] = eta1
    if k and eta2 is not None:
        second[-len(eta1) :, -len(eta1) :] = eta2
    for a in range(model.n_groups):
        scale, mine = model.arm(a)
        inside = at.group == a
        if scale is not None:
            value += x[scale] * inside
            if k:
                first[scale - model.n_theta] += inside
        if model.family.heterogeneous:
            _add_visits(value, first, x, mine, at.clock, inside, model)
    return Jet(value, first, second)


def _add_visits(
    value: np.ndarray,
    first: np.ndarray,
    x: np.ndarray,
    mine: slice,
    visit: np.ndarray,
    inside: np.ndarray,
    model: Model,
) -> None:
    """A log standard deviation for every visit but the first."""
    T = model.n_visits
    value += np.concatenate([[0.0], x[mine][: T - 1]])[visit] * inside
    if len(first):
        at = np.flatnonzero(inside & (visit > 0))
        first[mine.start - model.n_theta + visit[at] - 1, at] += 1.0


def correlations(model: Model, x: np.ndarray, links: Links, derivatives: bool) -> tuple[Jet, np.ndarray]:
    """φ of links (m,) and 1 − φ²."""
    m, k = len(links.gap), size(model) if derivatives else 0
    first, second = np.zeros((k, m)), np.zeros((k, k, m))
    value, rest = np.zeros(m), np.ones(m)
    if model.word == "ident":
        return Jet(value, first, second), rest
    for a in range(model.n_groups):
        at = model.arm(a)[1].stop - 1
        inside = links.arm == a if model.n_groups > 1 else slice(None)
        find = _by_distance if model.family.distance else _by_lag
        value[inside], rest[inside], slope, bend = find(x[at], links.gap[inside])
        if k:
            first[at - model.n_theta, inside] = slope
            second[at - model.n_theta, at - model.n_theta, inside] = bend
    return Jet(value, first, second), rest


def _by_distance(log_range: float, gap: np.ndarray) -> tuple[np.ndarray, ...]:
    v = gap * np.exp(-log_range)
    phi = np.exp(-v)
    slope = v * phi
    return phi, -np.expm1(-2.0 * v), slope, (v - 1.0) * slope


def _by_lag(angle: float, gap: np.ndarray) -> tuple[np.ndarray, ...]:
    r, c = np.sin(angle), np.cos(angle)
    phi, before = r**gap, gap * r ** (gap - 1)
    with np.errstate(divide="ignore"):
        rest = -np.expm1(gap * np.log1p(-(c**2)))
    twice = gap * (gap - 1) * r ** np.maximum(gap - 2, 0)
    return phi, rest, before * c, twice * c**2 - before * r


class Entries(NamedTuple):
    """κ, or λ where η = 0, ω and log(1 − φ²) of links (m,)."""

    kappa: Jet
    omega: Jet
    log_rest: Jet


def entries(model: Model, x: np.ndarray, links: Links, derivatives: bool) -> Entries:
    """``Entries`` at x."""
    phi, rest = correlations(model, x, links, derivatives)
    f, g = phi.value, 1.0 / rest
    square = f * f
    apart = homoscedastic(model)
    kappa, omega, log_rest = -f / (1.0 + f) if apart else square * g, f * g, np.log(rest)
    if not derivatives:
        return Entries(*(Jet(v, phi.first, phi.second) for v in (kappa, omega, log_rest)))
    across, gg = phi.first[:, None] * phi.first[None], g * g
    steep, ggg = (1.0 + square) * gg, gg * g
    slope, bend = 2.0 * f * gg, (2.0 + 6.0 * square) * ggg
    if apart:
        slope, bend = -1.0 / (1.0 + f) ** 2, 2.0 / (1.0 + f) ** 3
    return Entries(
        _composed(phi, across, kappa, slope, bend),
        _composed(phi, across, omega, steep, f * (6.0 + 2.0 * square) * ggg),
        _composed(phi, across, log_rest, -2.0 * omega, -2.0 * steep),
    )


def _composed(x: Jet, across: np.ndarray, f: np.ndarray, slope: np.ndarray, bend: np.ndarray) -> Jet:
    """g(x), g = f with two derivatives; ``across`` ∂x∂xᵀ."""
    return Jet(f, slope * x.first, slope * x.second + bend * across)


def shrunk(factor: Jet | None, sum_of_logs: Jet) -> Jet:
    """factor · exp(−η): factor None is 1."""
    f = np.exp(-sum_of_logs.value)
    out = _composed(sum_of_logs, sum_of_logs.first[:, None] * sum_of_logs.first[None], f, -f, f)
    return out if factor is None else factor * out


def packed(x: Jet) -> np.ndarray:
    """(J, m) the value, the first derivatives and the lower triangle of the second ones."""
    i, j = np.tril_indices(len(x.first))
    return np.concatenate([x.value[None], x.first, x.second[i, j]])


def unpacked(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """First (k, …) and second (k, k, …) derivatives of ``packed`` arrays (J, …)."""
    i, j = np.tril_indices(k)
    second = np.empty((k, k, *values.shape[1:]))
    second[i, j] = second[j, i] = values[1 + k :]
    return values[1 : 1 + k], second
