"""Models compared: likelihood ratios by a common criterion, information criteria, random effects left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .core.conditional import conditional
from .core.records import Fit
from .data import ModelData
from .errors import DataError, SingularFitWarning, UnsupportedError
from .fitting import fit_data
from .formula import RandomTerm
from .inference.chi_bar import ZERO, Mixture, chi2
from .inference.exact_ratio import null_ratios, share
from .inference.likelihood_ratio import (
    LinearFit,
    deviances_without_random_effects,
    linear_model,
    without_random_effects,
)
from .inference.reduction import boundary_law, natural_parameters, parameter_keys, reductions
from .inference.simulation import simulate_responses
from .keeping import has_rows


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    Attributes
    ----------
    table : DataFrame
        A row per model, the smallest first: n_params, deviance (−2ℓ), aic, aicc, bic, weight (Akaike's), and against
        the row before: chisq, df, p, law.
    notes : what was done to make them comparable, and what the p-values rest on.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join([self.table.to_string(float_format=lambda v: f"{v:.6g}", na_rep=""), *self.notes])

    def _repr_html_(self) -> str:
        return self.table.to_html(na_rep="") + "".join(f"<p>{note}</p>" for note in self.notes)


@dataclass(frozen=True)
class Candidate:
    """A model by the criterion of a comparison; ``fit`` and ``data`` are None without random effects."""

    name: str
    deviance: float
    n_params: int
    sigma: float
    columns: np.ndarray | None
    data: ModelData | None
    fit: Fit | None
    source: Any = None


# ---------------------------------------------------------------- information


def information(deviance: float, n_params: int, n_rows: int) -> dict[str, float]:
    """AIC, AICc (Hurvich & Tsai 1989) and BIC, n the number of rows."""
    aic, room = deviance + 2.0 * n_params, n_rows - n_params - 1
    aicc = aic + 2.0 * n_params * (n_params + 1) / room if room > 0 else np.nan
    return {"aic": aic, "aicc": aicc, "bic": deviance + np.log(n_rows) * n_params}


def akaike_weights(aic: np.ndarray) -> np.ndarray:
    """exp(−½Δ) as shares."""
    relative = np.exp(-0.5 * (aic - aic.min()))
    return relative / relative.sum()


# ---------------------------------------------------------------- compare


def compare(
    results: Sequence[Any],
    names: Sequence[str] | None = None,
    *,
    conditional: bool = False,
    bootstrap: int = 0,
    seed: int | None = None,
) -> Comparison:
    """Compare fits of the same rows; see ``Estimates.compare``."""
    check_draws(bootstrap, seed, "bootstrap")
    names = [f"m{i}" for i in range(len(results))] if names is None else list(names)
    if len(names) != len(results) or len(results) < 2:
        raise DataError(f"compare() takes two models or more, and a name for each: {len(results)}, {len(names)} names")
    whole = [r for r in results if hasattr(r, "_data")]
    first = whole[0]
    results = [r if hasattr(r, "_data") or isinstance(r, LinearFit) else _linear(r, first) for r in results]
    for other in whole[1:]:
        first._check_same_rows(other)
    sizes = {len(r.beta) for r in results if isinstance(r, LinearFit)} | {r.k_fe for r in whole}
    reml = all(r.reml for r in results) and len(sizes) == len({tuple(r._exog_names) for r in whole}) == 1
    refitted = [name for name, r in zip(names, results, strict=True) if r.reml and not reml]
    models = [_candidate(name, r, reml) for name, r in zip(names, results, strict=True)]
    models.sort(key=lambda m: m.n_params)
    if bootstrap and refitted and not all(r.reml == reml for r in results):
        raise DataError("bootstrap= simulates from the fits given: give ML fits (reml=False), as fixed effects differ")
    notes = [f"Deviances are {'REML criteria' if reml else '−2 log L'}."]
    if refitted:
        notes.append(f"Refitted by maximum likelihood, as their fixed effects differ: {', '.join(refitted)}.")
    table = _table(models, first.nobs, reml, notes)
    if conditional:
        table["caic"] = [_conditional_aic(model, reml) for model in models]
    if bootstrap:
        drawn = _bootstrapped(models, table, bootstrap, seed, reml)
        table[["p_bootstrap", "mc_error"]] = drawn
        notes.append(
            f"p_bootstrap: {bootstrap} responses simulated under the smaller model, seed {seed}, both refitted."
        )
    return Comparison(table, tuple(notes))


def _linear(given: Any, first: Any) -> LinearFit:
    """Least squares of another package, by maximum likelihood; its fixed effects may be other ones."""
    model = getattr(given, "model", None)
    if not (hasattr(model, "endog") and hasattr(model, "exog") and hasattr(given, "llf")):
        raise DataError(f"compare() takes results of other models, mixed or linear, not {type(given).__name__}")
    return linear_model(given, first._data, False)


def _candidate(name: str, result: Any, reml: bool) -> Candidate:
    if isinstance(result, LinearFit):
        if result.reml != reml and result.data is not None:
            result = without_random_effects(result.data, reml)
        columns = None if result.data is None else result.data.X
        return Candidate(name, result.deviance, result.n_params, result.sigma, columns, None, None, result)
    fit = result.fit if result.reml == reml else result._refitted_by_ml()
    data = result._data
    columns = data.X if has_rows(data) else None
    return Candidate(name, float(fit.deviance), result.n_params, float(fit.sigma), columns, data, fit, result)


def _conditional_aic(model: Candidate, reml: bool) -> float:
    if model.data is None or model.fit is None:
        # Least squares: AIC, with the σ̂ of the criterion.
        data, rank = model.source.data, model.n_params - 1
        if data is None:
            return model.deviance + 2.0 * model.n_params
        n, weights = data.n_rows, data.design.weights
        shift = 0.0 if weights is None else float(np.log(weights).sum())
        return n * np.log(2.0 * np.pi * model.sigma**2) - shift + n - (rank if reml else 0) + 2.0 * (rank + 1)
    return conditional_aic(model.fit, model.data, reml)["caic"]


def conditional_aic(fit: Fit, data: ModelData, reml: bool) -> dict[str, float]:
    """caic, loglik, df and trace; see ``Estimates.conditional_aic``."""
    found = conditional(fit, data.compressed, reml=reml)
    return {
        "caic": 2.0 * (found.df + 1.0 - found.loglik),
        "loglik": found.loglik,
        "df": found.df + 1.0,
        "trace": found.trace,
    }


def check_draws(n: Any, seed: Any, what: str) -> None:
    """Refuse a number of draws that is none, or a missing seed."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise DataError(f"{what}={n!r}: give a whole number of draws")
    if n and seed is None:
        raise DataError(f"{what}={n} needs seed=, so that the p-values can be had again")


def _bootstrapped(models: list[Candidate], table: pd.DataFrame, n: int, seed: int | None, reml: bool) -> np.ndarray:
    """(models, 2): p-values of the ratios beside the row before, by simulation, and their Monte-Carlo errors."""
    out = np.full((len(models), 2), np.nan)
    for i in range(1, len(models)):
        smaller, larger = models[i - 1], models[i]
        if not np.isfinite(table["chisq"].iloc[i]):
            continue
        Y = _simulated(smaller, n, seed)
        ratios = _deviances(smaller, Y, reml) - _deviances(larger, Y, reml)
        ratios = ratios[np.isfinite(ratios)]
        out[i] = share(ratios, float(table["chisq"].iloc[i]), ZERO)
    return out


def _simulated(model: Candidate, n: int, seed: int | None) -> np.ndarray:
    if model.data is not None and model.fit is not None:
        return simulate_responses(model.data, model.fit, None, n, seed)  # type: ignore[arg-type]
    data = model.source.data
    if data is None:
        raise DataError(f"bootstrap= cannot simulate from {model.name}: give without_random_effects() of a fit instead")
    root = 1.0 if data.design.weights is None else np.sqrt(data.design.weights)[:, None]
    noise = np.random.default_rng(seed).standard_normal((data.n_rows, n)) * model.sigma / root
    return (data.X @ model.source.beta + data.offset)[:, None] + noise


def _deviances(model: Candidate, Y: np.ndarray, reml: bool) -> np.ndarray:
    if model.data is None:
        return deviances_without_random_effects(Y, model.source.data, reml)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(model.source.refit_many(Y, progress=False).fit.deviance)


def _table(models: list[Candidate], n_rows: int, reml: bool, notes: list[str]) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for i, model in enumerate(models):
        line: dict[str, Any] = {"n_params": model.n_params, "deviance": model.deviance}
        line |= information(model.deviance, model.n_params, n_rows)
        if i:
            line |= ratio(models[i - 1], model, reml, notes)
        lines.append(line)
    table = pd.DataFrame(lines, index=[m.name for m in models])
    table.insert(5, "weight", akaike_weights(table["aic"].to_numpy()))
    return table


def ratio(smaller: Candidate, larger: Candidate, reml: bool, notes: list[str]) -> dict[str, Any]:
    """chisq, df, p and the law behind it; nothing where the larger model has no parameter more, or is no larger one."""
    df = larger.n_params - smaller.n_params
    if df <= 0:
        return {}
    if not _within(smaller.columns, larger.columns):
        notes.append(f"{smaller.name} is not nested in {larger.name}: its fixed effects are no part of the other's.")
        return {}
    if not _random_within(smaller.data, larger.data):
        notes.append(f"{smaller.name} is not nested in {larger.name}: its random effects are no part of the other's.")
        return {}
    statistic = smaller.deviance - larger.deviance
    law, words = _law(smaller, larger, reml, df)
    return {"chisq": max(statistic, 0.0), "df": df, "p": law.pvalue(statistic), "law": words or str(law)}


def _within(small: np.ndarray | None, large: np.ndarray | None) -> bool:
    """Whether the columns of one design are combinations of another's; yes where the rows are not known."""
    if small is None or large is None or (small.shape == large.shape and np.array_equal(small, large)):
        return True
    size = np.sqrt((large**2).sum(0))
    basis = np.linalg.qr(large / np.where(size > 0, size, 1.0))[0]
    rest = small - basis @ (basis.T @ small)
    return bool(((rest**2).sum(0) <= 1e-14 * (small**2).sum(0)).all())


def _random_within(small: ModelData | None, large: ModelData | None) -> bool:
    """Whether the random effects of one model are among another's; yes where their structures do not say."""
    if small is None or large is None:
        return small is None
    keys = parameter_keys(small), parameter_keys(large)
    return keys[0] is None or keys[1] is None or set(keys[0]) <= set(keys[1])


def _law(smaller: Candidate, larger: Candidate, reml: bool, df: int) -> tuple[Mixture, str]:
    if larger.data is None or larger.fit is None:
        return chi2(df), ""
    psi = None
    if smaller.data is not None and smaller.fit is not None:
        psi = natural_parameters(smaller.fit, smaller.data)
    return boundary_law(larger.data, smaller.data, psi, smaller.sigma, reml, df)


# ---------------------------------------------------------------- random effects one by one


def random_anova(result: Any, simulate: int = 0, seed: int | None = None) -> pd.DataFrame:
    """Likelihood ratios of the model without each of its random effects; see ``Estimates.ranova``."""
    check_draws(simulate, seed, "simulate")
    if not has_rows(result._data):
        raise DataError("ranova() reads the rows, which remove_data() took away")
    if result._held.any():
        raise UnsupportedError("ranova() takes fits whose covariance parameters were all estimated")
    full = _candidate("full", result, result.reml)
    lines = {"none": {"n_params": full.n_params, "deviance": full.deviance, "aic": result.aic}}
    for name, left_out, data in reductions(result._data):
        small = _reduced(name, data, result)
        found = information(small.deviance, small.n_params, result.nobs)
        line: dict[str, Any] = {"n_params": small.n_params, "deviance": small.deviance, "aic": found["aic"]}
        line |= ratio(small, full, result.reml, [])
        if simulate:
            line |= _exact(left_out, result, line["chisq"], simulate, seed)
        lines[name] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _reduced(name: str, data: ModelData | None, result: Any) -> Candidate:
    if data is None:
        alone = without_random_effects(result._data, result.reml)
        return Candidate(name, alone.deviance, alone.n_params, alone.sigma, None, None, None)
    fit = quietly(data, result.reml, result._options)
    n_params = len(fit.beta) + len(fit.theta) + 1
    return Candidate(name, float(fit.deviance), n_params, float(fit.sigma), data.X, data, fit)


def _exact(term: RandomTerm | None, result: Any, statistic: float, n: int, seed: int | None) -> dict[str, float]:
    """p_simulated and mc_error of a term with one effect per level that was left out whole."""
    if term is None or len(term.columns) > 1 or term.membership is not None or term.root is not None:
        return {}
    data = result._data
    draws = null_ratios(data.X, term.Z[:, 0], term.codes, data.design.weights, n, seed, result.reml)  # type: ignore[arg-type]
    found = share(draws, statistic, ZERO)
    return {"p_simulated": found.p, "mc_error": found.error}


def quietly(data: ModelData, reml: bool, options: Any) -> Fit:
    """A fit whose singularity is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularFitWarning)
        return fit_data(data, reml, None, options)
