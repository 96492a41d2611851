"""How ``MixedLM.fit`` goes from its arguments to a Fit: starts, masks of held parameters, one method after another."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.fit import fit as core_fit
from ..core.optimize import NewtonOptions
from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..errors import DataError, UnsupportedError
from ..fitting import read_start
from .layout import PackedLayout
from .likelihood import Likelihood
from .optimisers import default_start, judged_fit, newton_held, penalised, search
from .params import MixedLMParams


def searched(
    layout: PackedLayout,
    reml: bool,
    theta: np.ndarray | None,
    mask: np.ndarray,
    methods: Sequence[str],
    settings: Mapping[str, Any],
    options: NewtonOptions,
    hist: list[dict[str, Any]],
) -> Fit:
    """Try the methods in turn until one ends in an optimum; a record of each goes into ``hist``."""
    data = layout.data
    for method in methods:
        if method == "newton" and mask.all():
            found = core_fit(data.compressed, reml=reml, start=theta, options=options)
            record: dict[str, Any] = {"method": "newton", "evaluations": int(found.iterations)}
        elif method == "newton":
            theta = newton_held(data, reml, np.asarray(theta), mask, float(settings.get("gtol", 1e-7)))
            found = judged_fit(data, reml, theta, mask, 0)
            record = {"method": "newton", "evaluations": 0}
        else:
            theta = default_start(data) if theta is None else theta
            theta, record = search(data, reml, theta, mask, method, settings)
            found = judged_fit(data, reml, theta, mask, record["evaluations"])
        status = Status(int(found.status))
        record |= {
            "converged": status.is_optimum,
            "fopt": float(found.deviance),
            "gopt": np.asarray(found.gradient),
            "params": np.asarray(found.theta),
        }
        hist.append(record)
        if status.is_optimum:
            break
    return found


def penalised_fit(
    layout: PackedLayout,
    reml: bool,
    theta: np.ndarray,
    fe_pen: Any,
    cov_pen: Any,
    settings: Mapping[str, Any],
    method: str,
) -> Fit:
    """The maximum of ℓ less penalties on β and Cov(b)/σ²; its Hessian is that of the deviance alone."""
    start = core_fit(layout.data.compressed, reml=reml)
    if Status(int(start.status)) is Status.CONVERGED:
        theta = np.asarray(start.theta)
    beta, theta = penalised(layout, reml, theta, fe_pen, cov_pen, settings, method)
    found = judged_fit(layout.data, reml, theta, np.zeros(len(theta), bool), 0)
    curvature = judged_fit(layout.data, reml, theta, np.ones(len(theta), bool), 0).hessian
    found = dataclasses.replace(found, hessian=curvature)
    return _with_beta(found, beta, reml, layout)


def _with_beta(found: Fit, beta: np.ndarray, reml: bool, layout: PackedLayout) -> Fit:
    """The same covariance with another β: σ² and ℓ are those of that β."""
    L = np.asarray(found.relative_factor)
    omega = layout.omega(L @ L.T)
    sigma = np.float64(np.sqrt(layout.sigma2(beta, omega, reml)))
    deviance = np.float64(-2.0 * layout.loglike(beta, omega, reml))
    return dataclasses.replace(found, beta=beta, sigma=sigma, deviance=deviance)


# ---------------------------------------------------------------- starts and masks


def start_of(model: Likelihood, start_params: Any, theta: Any, data: ModelData) -> np.ndarray | None:
    """θ in the order of ``data`` (some terms of which may be diagonal)."""
    if theta is not None:
        return read_start(theta, data.theta_names)
    if start_params is None:
        return None
    packed = model._unpack(start_params).get_packed(use_sqrt=True)
    if data is model._data:
        return model._layout.unpack_theta(packed)
    rows, columns = np.tril_indices(model.k_re)
    on_diagonal = np.concatenate([rows == columns, np.ones(model.k_vc, bool)])
    return PackedLayout(data).unpack_theta(packed[on_diagonal])


def free_entries(model: Likelihood, free: MixedLMParams) -> np.ndarray:
    """(k,) which θ, in the data's order, a mask leaves free."""
    return model._layout.unpack_theta(_checked_mask(model, free)).astype(bool)


def _checked_mask(model: Likelihood, free: MixedLMParams) -> np.ndarray:
    packed, k = free.get_packed(use_sqrt=False), model.k_re2 + model.k_vc
    if len(packed) != k:
        raise DataError(f"free has {len(packed)} covariance parameters; the model has {k}")
    if not np.isin(packed, (0, 1)).all():
        raise DataError("free must hold ones (estimated) and zeros (held) only")
    if len(free.fe_params) and not np.all(free.fe_params == 1):
        raise UnsupportedError("fixed effects cannot be held by free=: subtract X_j·β_j from endog instead")
    return packed


def means_independent(model: Likelihood, free: MixedLMParams, start_params: Any) -> bool:
    """Whether the mask leaves out all covariances and nothing else."""
    packed = _checked_mask(model, free)
    if not model.k_re or not np.array_equal(free.cov_re, np.eye(model.k_re)) or not packed[model.k_re2 :].all():
        return False
    start = None if start_params is None else model._unpack(start_params).cov_re
    return start is None or not (start - np.diag(np.diag(start))).any()
