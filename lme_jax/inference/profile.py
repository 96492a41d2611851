"""Profile likelihood of a variance: ℓ at its best over everything else."""

from typing import Literal, NamedTuple

import numpy as np
import scipy  # scipy.optimize loads at its first use

from ..core import covariance
from ..core.fit import ModelStatistics, fit_at
from ..core.moments import GroupData
from ..core.records import Fit
from ..core.structures import entry
from ..data import ModelData
from ..errors import DataError, UnsupportedError


class Slopes(NamedTuple):
    """At any θ: the profiled deviance and log σ̂², and their gradients (k,) in θ as it was given."""

    deviance: float
    gradient: np.ndarray
    log_scale: float
    log_scale_gradient: np.ndarray


def slopes(theta: np.ndarray, data: ModelStatistics, reml: bool) -> Slopes:
    """Evaluate at θ (k,) of any sign; the deviance is +∞ where it is not finite."""
    there = fit_at(theta, data, reml=reml)
    if not np.isfinite(there.deviance):
        return Slopes(np.inf, np.zeros(len(theta)), 0.0, np.zeros(len(theta)))
    # A Fit has derivatives in the canonical θ.
    sign = covariance.canonical(np.asarray(theta, float), data.template)[1]
    gradients = sign * np.asarray(there.gradient), sign * np.asarray(there.log_scale_slope)
    return Slopes(float(there.deviance), gradients[0], 2.0 * float(np.log(there.sigma)), gradients[1])


def curvature(theta: np.ndarray, data: ModelStatistics, reml: bool) -> np.ndarray:
    """Hessian (k, k) of the profiled deviance in θ as it was given."""
    sign = covariance.canonical(np.asarray(theta, float), data.template)[1]
    return np.asarray(fit_at(theta, data, reml=reml).hessian) * np.outer(sign, sign)


class HeldVariance(NamedTuple):
    """Variance number i of Ψ = σ²LLᵀ as a function of θ: Ψ_ii = σ²·wᵀMw with w the entries ``own`` of θ.

    Attributes
    ----------
    own : (m,) positions in θ of what makes up row i of L.
    metric : (m, m) M; its inner products are those of the row.
    """

    own: np.ndarray
    metric: np.ndarray

    @classmethod
    def of(cls, data: ModelData, fitted: Fit, effect: int) -> "HeldVariance":
        """Of the effect at this place among all effects."""
        rows = np.array([covariance.factor(e, data.template)[effect] for e in np.eye(len(fitted.theta))])
        own = np.flatnonzero(rows.any(1))
        held = cls(own, rows[own] @ rows[own].T)
        row = np.asarray(fitted.relative_factor)[effect]
        if not np.isclose(held.norm(np.asarray(fitted.theta)[own]) ** 2, row @ row, rtol=1e-8, atol=1e-12):
            raise UnsupportedError("variances of this covariance structure have no profile likelihood here")
        return held

    def norm(self, w: np.ndarray) -> float:
        """√(wᵀMw)."""
        return float(np.sqrt(w @ self.metric @ w))


def theta_units(data: ModelData) -> np.ndarray:
    """(k,) factors that make θ dimensionless in conditioned units of Z."""
    compressed = data.compressed
    basis = compressed.moments.basis if isinstance(compressed, GroupData) else compressed.basis
    return covariance.theta_scale(data.template, np.asarray(basis.z_scale))


class _Curve(NamedTuple):
    """−2ℓ as a function of x = (log σ², the free entries of θ in conditioned units), Ψ_ii held.

    Of the entries of θ that make up row i of L only the direction counts: σ² and Ψ_ii fix their length.
    """

    statistics: ModelStatistics
    reml: bool
    dof: int
    held: HeldVariance
    theta: np.ndarray
    free: np.ndarray
    unit: np.ndarray

    def start(self, log_scale: float) -> np.ndarray:
        return np.append(log_scale, (self.theta * self.unit)[self.free])

    def at(self, x: np.ndarray, variance: float) -> tuple[float, np.ndarray]:
        """−2ℓ and its gradient in x at Ψ_ii = ``variance``.

        With r = σ̂²(θ)/σ² it is D(θ) + N(r − 1 − log r), D the deviance that is profiled over σ² too.
        """
        theta, own = self.theta.copy(), self.held.own
        theta[self.free] = x[1:] / self.unit[self.free]
        w, norm = theta[own], max(self.held.norm(theta[own]), np.finfo(float).tiny)
        length = np.sqrt(variance * np.exp(-x[0]))
        theta[own] = length * w / norm
        there = slopes(theta, self.statistics, self.reml)
        ratio = np.exp(there.log_scale - x[0])
        value = there.deviance + self.dof * (ratio - 1.0 - (there.log_scale - x[0]))
        gradient = there.gradient + self.dof * (ratio - 1.0) * there.log_scale_gradient
        along = gradient[own] @ theta[own]
        gradient[own] = (length * gradient[own] - along * (self.held.metric @ w) / norm) / norm
        by_scale = self.dof * (1.0 - ratio) - 0.5 * along
        if not np.isfinite(value):
            return np.inf, np.zeros(len(x))
        return value, np.append(by_scale, (gradient / self.unit)[self.free])


def profile_likelihood(
    data: ModelData, fitted: Fit, reml: bool, effect: int, variances: np.ndarray, held: np.ndarray | None = None
) -> np.ndarray:
    """ℓ (m,) with Ψ_ii, i the ``effect``, held at each of ``variances`` (m,), which ascend.

    Parameters
    ----------
    held : (k,) which θ were not estimated, and are not here.

    Notes
    -----
    Each search starts where its neighbour nearer to the estimate ended.
    """
    k = len(fitted.theta)
    free = np.ones(k, bool) if held is None else ~held
    place = HeldVariance.of(data, fitted, effect)
    theta = np.array(fitted.theta)
    if not theta[place.own].any():
        theta[place.own] = 1.0 / theta_units(data)[place.own]
    dof = data.n_rows - (len(fitted.beta) if reml else 0)
    curve = _Curve(data.compressed, reml, dof, place, theta, free, theta_units(data))
    start = curve.start(2.0 * float(np.log(fitted.sigma)))
    row = np.asarray(fitted.relative_factor)[effect]
    middle = int(np.searchsorted(variances, float(fitted.sigma) ** 2 * (row @ row)))
    out = np.empty(len(variances))
    for steps in (range(middle - 1, -1, -1), range(middle, len(variances))):
        x = start
        for i in steps:
            x, out[i] = _maximise(curve, x, float(variances[i]))
    return out


def _maximise(curve: _Curve, x: np.ndarray, variance: float) -> tuple[np.ndarray, float]:
    found = scipy.optimize.minimize(curve.at, x, (variance,), method="BFGS", jac=True, options={"gtol": 1e-5})
    return found.x, -0.5 * float(found.fun)


def find_variance(data: ModelData, which: int | str, kind: Literal["re", "vc"]) -> int:
    """The place among all effects of a variance.

    Parameters
    ----------
    which : of kind "re" the number of an effect of the formula's first term, of kind "vc" the name of a variance,
        with or without " Var".
    """
    if kind == "re":
        place = [term is data.design.terms[0] for term in data.terms].index(True)
        first = data.term_slices[place]
        known = entry(data.terms[place].block)
        n = 0 if known.homogeneous and known.uncorrelated else first.stop - first.start
        if not isinstance(which, (int, np.integer)) or not 0 <= which < n:
            raise DataError(f"re_ix={which!r}: there are {n} correlated random effects, counted from 0")
        return first.start + int(which)
    if kind != "vc":
        raise DataError(f"vtype must be 're' or 'vc', not {kind!r}")
    rows, columns = data.covariance_positions
    names = {
        str(name).removesuffix(" Var"): int(i)
        for name, i, j in zip(data.covariance_names, rows, columns, strict=True)
        if i == j
    }
    if str(which).removesuffix(" Var") not in names:
        raise DataError(f"there is no variance component {which!r}; there are {list(names)}")
    return names[str(which).removesuffix(" Var")]
