"""What people read of a fit: natural parameters with standard errors, and Cov β̂ to second order in them."""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from ...errors import DataError
from .. import covariance, fixed_effects, likelihood
from ..blocks import Block
from ..criterion import whitening
from ..fixed_effects import Jets
from ..jets import Jet
from . import objective
from .data import BlockData
from .families import Natural, compose, jet, one, padded
from .fit import ResidualFit
from .model import steps
from .record import Wanted
from .registry import VARIANCES
from .terms import Parameter

# How near its edge a correlation, a nugget or φ counts as standing on it.
EDGE = 1e-6
# Relative singular values of the natural parameters' Jacobian that are zeros: a variance or an L_jj at 0.
SINGULAR = 1e-7


class _Read(NamedTuple):
    """A natural parameter with its jet in (params, σ²), r = k + 1 of them."""

    natural: Natural
    term: int
    group: int
    value: Jet


def _at(data: BlockData, fitted: ResidualFit, place: slice, n: Natural, scale: int | None = None) -> Jet:
    """The jet of ``n``, whose own parameters stand at ``place``, in (params, σ²)."""
    k, s = data.model.size, float(fitted.sigma) ** 2
    out = padded(n.value, place.start, k - place.stop + 1)
    half = 0.5 * n.power
    last = jet(s, np.eye(k + 1)[k], np.zeros((k + 1, k + 1)))
    if n.power:
        out = out * compose(last, s**half, half * s ** (half - 1.0), half * (half - 1.0) * s ** (half - 2.0))
    if n.power and scale is not None:
        c = float(fitted.params[scale])
        size = np.exp(n.power * c)
        own = jet(c, np.eye(k + 1)[scale], np.zeros((k + 1, k + 1)))
        out = out * compose(own, size, n.power * size, n.power**2 * size)
    return out


def _of_arms(data: BlockData, fitted: ResidualFit, linear: bool) -> list[_Read]:
    model, out = data.model, []
    for a in range(model.n_groups):
        scale, mine = model.arm(a)
        rho = fitted.params[mine]
        find = model.family.linear if linear else model.family.natural
        found = find(rho, model.n_visits, model.settings)
        if not linear and not any(n.kind == "sd" for n in found):
            kind = "sigma" if model.n_groups == 1 else "sd"
            found = [Natural(kind, (), one(len(rho)), "log", 0.0, power=1), *found]
        group = a if model.n_groups > 1 else -1
        out += [_Read(n, -1, group, _at(data, fitted, mine, n, scale)) for n in found]
    return out


def _of_variances(data: BlockData, fitted: ResidualFit, linear: bool) -> list[_Read]:
    out = []
    for j, ((word, S), here) in enumerate(zip(data.model.variances, data.model.delta, strict=True)):
        entry, delta = VARIANCES[word], fitted.params[here]
        own = entry.natural(delta, S)
        if linear and entry.linear is not None:
            own = [(n.place[0], n) for n in entry.linear(delta, S)]
        out += [_Read(n, j, stratum, _at(data, fitted, here, n)) for stratum, n in own]
        if not linear and word == "ident":
            out += _stratum_sds(data, fitted, j, here, S)
    return out


def _stratum_sds(data: BlockData, fitted: ResidualFit, j: int, here: slice, S: int) -> list[_Read]:
    """σ times the ratio, by stratum."""
    base = Natural("sd", (), one(here.stop - here.start), "log", 0.0, power=1)
    ratios = VARIANCES["ident"].natural(fitted.params[here], S)
    sds = [(0, base), *((s, base._replace(value=n.value)) for s, n in ratios)]
    return [_Read(n, j, s, _at(data, fitted, here, n)) for s, n in sds]


def readings(fitted: ResidualFit, data: BlockData) -> list[_Read]:
    """What people read, with jets in (params, σ²), at a fit or at any params and sigma that it holds."""
    return [*_of_arms(data, fitted, False), *_of_variances(data, fitted, False)]


def parameters(fitted: ResidualFit, data: BlockData, *, reml: bool = True) -> list[Parameter]:
    """The residual structure as people read it, by the delta method from the exact Hessian.

    Notes
    -----
    Standard errors are NaN where the Hessian is not positive definite, and on an edge.
    """
    V = joint_covariance(fitted, data, reml=reml)
    out = []
    for read in readings(fitted, data):
        n, value, slope = read.natural, float(read.value.value[0]), read.value.first[:, 0]
        variance = float(slope @ V @ slope)
        on_edge = bool(value > n.high - EDGE or (np.isfinite(n.low) and n.low != 0.0 and value < n.low + EDGE))
        on_edge |= n.transform == "logit" and n.low == 0.0 and value < EDGE
        se = np.nan if on_edge or not variance >= 0.0 else float(np.sqrt(variance))
        out.append(
            Parameter(n.kind, read.term, read.group, n.place, value, se, n.transform, n.low, n.high, slope, on_edge)
        )
    return out


def joint_covariance(fitted: ResidualFit, data: BlockData, *, reml: bool = True) -> np.ndarray:
    """(k + 1, k + 1) asymptotic covariance of (params, σ²) from the exact Hessian; NaN where that is not definite.

    σ² was profiled out: log σ² has the information N/2 beside the params and moves with them by ``log_scale_slope``.
    """
    k, s = data.model.size, float(fitted.sigma) ** 2
    N = float(data.n_rows) - (data.n_fixed if reml else 0)
    own = np.full((k, k), np.nan)
    if np.isfinite(fitted.hessian).all() and (k == 0 or np.linalg.eigvalsh(fitted.hessian)[0] > 0):
        own = 2.0 * np.linalg.inv(fitted.hessian)
    across = own @ fitted.log_scale_slope
    out = np.empty((k + 1, k + 1))
    out[:k, :k], out[:k, k], out[k, :k] = own, s * across, s * across
    out[k, k] = s * s * (2.0 / N + fitted.log_scale_slope @ across)
    return out


def interval(p: Parameter, quantile: float) -> tuple[float, float]:
    """Limits symmetric on the scale of ``p.transform``, as nlme's ``intervals`` has them."""
    if not np.isfinite(p.se):
        return np.nan, np.nan
    v, lo, hi = p.estimate, p.lower_bound, p.upper_bound
    if p.transform == "identity":
        return v - quantile * p.se, v + quantile * p.se
    if p.transform == "log":
        return v * np.exp(-quantile * p.se / v), v * np.exp(quantile * p.se / v)
    if p.transform == "atanh":
        middle, step = np.arctanh(v), quantile * p.se / (1.0 - v * v)
        return float(np.tanh(middle - step)), float(np.tanh(middle + step))
    share = (v - lo) / (hi - lo)
    middle, step = np.log(share / (1.0 - share)), quantile * p.se / (hi - lo) / (share * (1.0 - share))
    ends = [lo + (hi - lo) / (1.0 + np.exp(-(middle + sign * step))) for sign in (-1.0, 1.0)]
    return float(ends[0]), float(ends[1])


# ---------------------------------------------------------------- Cov β̂


def jets(fitted: ResidualFit, data: BlockData, *, reml: bool = True, second: bool = True, natural: bool = True) -> Jets:
    """Cov β̂ to second order in the covariance parameters at a fit.

    Parameters
    ----------
    second : second derivatives too, k²p² numbers, for Kenward and Roger's correction.
    natural : in the parameters that SAS estimates (variances and covariances where V is linear in them, else variances,
        correlations, ranges …), r = k + 1; parameters at 0 are left out. Else in (params, σ²).

    Notes
    -----
    A chain's sums do not tell V_aV⁻¹V_b from V_ab: ``expected`` and ``bend`` come from its blocks, and are NaN where
    these are too many or too large.
    """
    data = data.as_blocks
    p, unit = data.n_fixed, data.unit
    at = objective.point(fitted.params * unit, data, reml)
    if at is None:
        raise DataError("V is not positive definite at these parameters")
    m = objective.moved(at, data, Wanted(reml, slopes=True, second=second))
    scale = np.append(unit, data.basis.map[p, p] ** 2)
    full = np.concatenate([np.ones(p), scale])
    hessian = objective.whole(at, m, reml).hessian * np.outer(full, full)
    of_fixed = (m.record.own, m.record.F, m.record.products) if reml and p else None
    expected = fixed_effects.expected_information(m.record.trace, m.record.trace2, of_fixed, at.N, m.record.Q / at.N)
    expected = expected * np.outer(scale, scale)
    back = data.basis.map[:p, :p] @ whitening(at.R)[:p, :p]
    F = None if m.F is None else m.F * unit[:, None, None, None] * unit[:, None]
    bent = None if m.bent is None else m.bent * np.outer(unit, unit)[:, :, None, None]
    X_a = m.X_a * unit[:, None, None]
    sigma2 = float(fitted.sigma) ** 2
    own = fixed_effects.of_products(m.record.M, X_a, F, bent, back, sigma2)
    own = own._replace(information=likelihood.without_beta(-hessian, p), expected=expected)
    if data.series is not None:
        untold = None if own.bend is None else np.full_like(own.bend, np.nan)
        own = own._replace(expected=np.full_like(expected, np.nan), bend=untold)
    return transformed(own, *natural_map(fitted, data)) if natural else own


def natural_map(fitted: ResidualFit, data: BlockData) -> tuple[np.ndarray, np.ndarray]:
    """J (r, r) and ∂²ω (r, r, r) of SAS's parameters in (params, σ²)."""
    first, second = [], []
    for here, block in zip(data.model.theta, data.model.bars, strict=True):
        J, J2 = _of_bar(data, fitted, here, block)
        first.append(J)
        second.append(J2)
    for read in [*_of_arms(data, fitted, True), *_of_variances(data, fitted, True)]:
        first.append(read.value.first[:, 0][None])
        second.append(read.value.second[:, :, 0][None])
    return np.concatenate(first), np.concatenate(second)


def _of_bar(data: BlockData, fitted: ResidualFit, here: slice, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Of the (co)variances σ²Ψ of a bar, or of its θ where Ψ is not linear in such."""
    k, s = data.model.size, float(fitted.sigma) ** 2
    n = here.stop - here.start
    J, J2 = np.zeros((n, k + 1)), np.zeros((n, k + 1, k + 1))
    try:
        E = covariance.linear_basis((block,))
    except NotImplementedError:
        J[:, here] = np.eye(n)
        return J, J2
    read = np.linalg.pinv(E.reshape(n, -1).T)
    theta = fitted.params[here]
    L = covariance.factor(theta, (block,))
    slope, bend = steps(theta, block)
    omega = read @ (L @ L.T).ravel()
    J[:, here] = s * read @ slope.reshape(n, -1).T
    J[:, k] = omega
    J2[:, here, here] = s * np.moveaxis(bend.reshape(n, n, -1) @ read.T, 2, 0)
    J2[:, here, k] = J2[:, k, here] = J[:, here] / s
    return J, J2


def transformed(own: Jets, J: np.ndarray, J2: np.ndarray) -> Jets:
    """The jets in other parameters ω with J = ∂ω (r, r) and ∂²ω (r, r, r) in the old ones.

    Where J is singular, a parameter at 0, that one is held there and as many of ω are left.
    """
    kept, chosen = _regular(J)
    J, J2 = J[np.ix_(chosen, kept)], J2[np.ix_(chosen, kept, kept)]
    Z = np.linalg.inv(J)
    slope, pair = own.slope[kept], np.ix_(kept, kept)
    turned = np.tensordot(J2, np.tensordot(Z, slope, (0, 0)), (0, 0))

    def second(of: np.ndarray | None) -> np.ndarray | None:
        if of is None:
            return None
        half = np.tensordot(Z, of[pair] - turned, (0, 0))
        return np.swapaxes(np.tensordot(Z, half, (0, 1)), 0, 1)

    return Jets(
        own.cov,
        np.tensordot(Z, slope, (0, 0)),
        second(own.curve),
        Z.T @ own.information[pair] @ Z,
        Z.T @ own.expected[pair] @ Z,
        second(own.bend),
    )


def _regular(J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of J that are not zero, and as many rows that are independent in them."""
    size = np.sqrt((J**2).sum(1, keepdims=True))
    scaled = J / np.where(size > 0, size, 1.0)
    width = np.sqrt((scaled**2).sum(0))
    kept = np.flatnonzero(width > SINGULAR * width.max())
    if len(kept) == len(J):
        return kept, np.arange(len(J))
    order = scipy.linalg.qr(scaled[:, kept].T, mode="r", pivoting=True)[1]
    return kept, np.sort(order[: len(kept)])
