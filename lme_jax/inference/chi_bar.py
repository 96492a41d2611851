"""Mixtures of χ², the laws of likelihood ratios whose parameters lie on a boundary.

Estimates of r variances that are zero behave like the point of the orthant nearest to N(0, V), V their asymptotic
covariance; χ²_j has the probability that j of its coordinates are positive.

References: Kudô (1963), Biometrika 50, 403–418; Self & Liang (1987), JASA 82, 605–610; Shapiro (1988), Int. Stat. Rev.
56, 49–62; Stram & Lee (1994), Biometrics 50, 1171–1177.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy  # scipy.stats loads at its first use
import scipy.special

# Statistics below this are zero and rounding: all the mass at zero is at or above them.
ZERO = 1e-8
# Of a quadrature over directions, each way.
POINTS = 200


class Mixture(NamedTuple):
    """Σ weights_j χ²(dofs_j); zero degrees of freedom are the point zero."""

    dofs: tuple[int, ...]
    weights: tuple[float, ...]

    def pvalue(self, statistic: float) -> float:
        """P(T ≥ statistic)."""
        if statistic <= ZERO:
            return 1.0
        tails = [scipy.special.chdtrc(d, statistic) if d else 0.0 for d in self.dofs]
        return float(np.dot(self.weights, tails))

    def __str__(self) -> str:
        parts = zip(self.weights, self.dofs, strict=True)
        return " + ".join(f"chi2({d})" if w == 1.0 else f"{w:.3g} chi2({d})" for w, d in parts)


def chi2(df: int) -> Mixture:
    """χ² itself."""
    return Mixture((df,), (1.0,))


def mixture(cov: np.ndarray, free: int) -> Mixture:
    """Of r variances on the boundary, cov (r, r) the covariance of their estimates, and ``free`` other parameters."""
    weights = orthant_weights(cov)
    return Mixture(tuple(free + j for j in range(len(weights))), tuple(weights))


def binomial(r: int, free: int) -> Mixture:
    """``mixture`` of uncorrelated estimates."""
    return mixture(np.eye(r), free)


def correlated_pair(cov: np.ndarray, free: int) -> Mixture:
    """Of two new effects with a free correlation: cov (3, 3) of their variance, covariance, variance.

    Ψ near zero lies in the cone of semidefinite matrices. With v₃ and v₀ the probabilities of N(0, cov) in the cone and
    in its polar, the weights are v₀, ½ − v₃, ½ − v₀, v₃: those of even and of odd dimension add up to a half each.
    """
    # The cone stays itself in other units of the effects: variances of one size keep the quadrature accurate.
    unit = np.sqrt(np.diag(cov))[[0, 2]]
    scale = np.array([unit[0], np.sqrt(unit[0] * unit[1]), unit[1]])
    cov = cov / np.outer(scale, scale)
    v3 = _semidefinite_probability(cov)
    # The polar in the metric cov⁻¹: where cov⁻¹z is negative semidefinite, its covariance halved.
    halved = np.diag([1.0, 0.5, 1.0])
    v0 = _semidefinite_probability(halved @ np.linalg.inv(cov) @ halved)
    return Mixture((free, free + 1, free + 2, free + 3), (v0, 0.5 - v3, 0.5 - v0, v3))


def _semidefinite_probability(cov: np.ndarray) -> float:
    """P([[a, c], [c, b]] is positive semidefinite) for (a, c, b) ~ N(0, cov), by quadrature over directions.

    In x = ((a + b)/2, (a − b)/2, c) it is the circular cone x₀ ≥ |(x₁, x₂)|.
    """
    turn = np.array([[0.5, 0.0, 0.5], [0.5, 0.0, -0.5], [0.0, 1.0, 0.0]])
    covariance = turn @ cov @ turn.T
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    low = np.sqrt(0.5)
    height = low + (1.0 - low) * (nodes + 1.0) / 2.0
    angle = 2.0 * np.pi * np.arange(POINTS) / POINTS
    radius = np.sqrt(1.0 - height**2)[:, None]
    u = np.stack([np.broadcast_to(height[:, None], (POINTS, POINTS)), radius * np.cos(angle), radius * np.sin(angle)])
    density = np.einsum("iab,ij,jab->ab", u, np.linalg.inv(covariance), u) ** -1.5
    total = weights @ density.mean(1) * (1.0 - low) / 4.0
    return float(total / np.sqrt(np.linalg.det(covariance)))


def orthant_weights(cov: np.ndarray) -> list[float]:
    """P(j coordinates of the projection of N(0, cov) on the orthant, in the metric cov⁻¹, are positive), j = 0 … r."""
    r = len(cov)
    weights = [0.0] * (r + 1)
    for j in range(r + 1):
        for chosen in itertools.combinations(range(r), j):
            rest = [i for i in range(r) if i not in chosen]
            across = cov[np.ix_(chosen, rest)]
            inner = np.linalg.inv(cov[np.ix_(rest, rest)])
            given = cov[np.ix_(chosen, chosen)] - across @ inner @ across.T
            weights[j] += orthant_probability(inner) * orthant_probability(given)
    return weights


def orthant_probability(cov: np.ndarray) -> float:
    """P(N(0, cov) > 0 in all coordinates): closed forms to three, from there by seeded quadrature."""
    r = len(cov)
    sd = np.sqrt(np.diag(cov))
    correlations = np.clip(cov / np.outer(sd, sd), -1.0, 1.0)
    if r <= 3:
        angles = np.arcsin(correlations[np.triu_indices(r, 1)]).sum()
        return float(2.0**-r + angles / (4.0 * np.pi if r == 3 else 2.0 * np.pi))
    law = scipy.stats.multivariate_normal(np.zeros(r), correlations, allow_singular=True, seed=0, maxpts=200_000)
    return float(law.cdf(np.zeros(r)))
