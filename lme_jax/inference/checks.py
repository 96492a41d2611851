"""``check``: what looks wrong with a fit, in words, each with its figure, and what can be done."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # scipy.stats loads at its first use

from ..core.records import RandomEffects
from ..data import Factor, ModelData
from .influence import Influence

# Rows from which a test finds what does not matter: what is told of must also be large.
SKEWED, HEAVY, CORRELATED, INFLATED, INFLUENTIAL, FEW, ROWS = 1.0, 2.0, 0.2, 10.0, 0.5, 5, 3
LEVEL = 0.01


class Finding(NamedTuple):
    """One aspect of a fit: whether it looks right, and what was seen, in words."""

    aspect: str
    ok: bool
    text: str


class Check(tuple[Finding, ...]):
    """All findings; shown as text, what looks wrong first."""

    @property
    def ok(self) -> bool:
        """Whether nothing looks wrong."""
        return all(finding.ok for finding in self)

    @property
    def problems(self) -> list[str]:
        return [finding.text for finding in self if not finding.ok]

    def frame(self) -> pd.DataFrame:
        """A row per aspect."""
        return pd.DataFrame(list(self), columns=list(Finding._fields))

    def __repr__(self) -> str:
        ordered = sorted(self, key=lambda finding: finding.ok)
        return "\n".join(f"{'ok' if f.ok else '!!'}  {f.aspect}: {f.text}" for f in ordered)


def distances(factor: Factor, effects: RandomEffects, covariance: np.ndarray) -> pd.DataFrame:
    """Mahalanobis distances b̂ᵀVar(b̂)⁻¹b̂ of a factor's BLUPs, χ² of ``df`` where the model is right.

    Var(b̂) = Ψ − Var(b̂ − b); directions in which the effects do not vary are left out.
    """
    b = np.asarray(effects.b)[: len(factor.levels)]
    spread = covariance - np.asarray(effects.prediction_cov)[: len(b)]
    values, vectors = np.linalg.eigh(0.5 * (spread + np.swapaxes(spread, 1, 2)))
    kept = values > 1e-8 * max(float(np.trace(covariance)), np.finfo(float).tiny)
    white = np.einsum("gij,gi->gj", vectors, b) * np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    d2, df = (white**2).sum(1), kept.sum(1)
    with np.errstate(invalid="ignore"):
        p = np.where(df > 0, scipy.special.chdtrc(np.maximum(df, 1), d2), np.nan)
    index = pd.Index(factor.levels, name=factor.name)
    return pd.DataFrame({"distance2": d2, "df": df, "p": p}, index=index)


def of_residuals(studentized: np.ndarray, fitted: np.ndarray, labels: pd.Index) -> Iterator[Finding]:
    """Shape, spread and outliers of the residuals; those of rows with leverage one say nothing."""
    told = np.isfinite(studentized)
    r, fitted, labels = studentized[told], fitted[told], labels[told]
    yield _of_shape(r)
    if np.ptp(fitted) > 1e-9 * np.abs(fitted).max(initial=0.0):
        yield _of_spread(r, fitted)
    bound = float(scipy.special.ndtri(1.0 - 0.5 * LEVEL / len(r)))
    far = np.flatnonzero(np.abs(r) > bound)
    text = f"none beyond ±{bound:.2f}"
    if len(far):
        text = f"{len(far)} beyond ±{bound:.2f}: rows {_some(labels[far[np.argsort(-np.abs(r[far]))]])}"
    yield Finding("outlying rows", not len(far), text)


def _of_shape(r: np.ndarray) -> Finding:
    n, skew, kurtosis = len(r), float(scipy.stats.skew(r)), float(scipy.stats.kurtosis(r))
    z = max(abs(skew) / np.sqrt(6.0 / n), abs(kurtosis) / np.sqrt(24.0 / n))
    wrong = z > scipy.special.ndtri(1.0 - 0.5 * LEVEL) and (abs(skew) > SKEWED or kurtosis > HEAVY)
    advice = ": estimates stay unbiased, but tests and prediction intervals suffer; transform the response or bootstrap"
    text = f"skewness {skew:.2f}, excess kurtosis {kurtosis:.2f}"
    return Finding("shape of the residuals", not wrong, text + (advice if wrong else ""))


def _of_spread(r: np.ndarray, fitted: np.ndarray) -> Finding:
    rho, p = scipy.stats.spearmanr(np.abs(r), fitted)
    wrong, way = bool(p < LEVEL and abs(rho) > CORRELATED), "up" if rho > 0 else "down"
    text = f"their size goes {way} with the fitted values" if wrong else "no trend in their size"
    advice = "; let the variance depend on them, transform the response, or use robust()" if wrong else ""
    return Finding("spread of the residuals", not wrong, f"{text} (rank correlation {rho:.2f}){advice}")


def of_order(scaled: np.ndarray, factor: Factor) -> Iterator[Finding]:
    """Whether successive rows of a level are alike."""
    if not factor.by_code:
        return
    order = np.argsort(factor.codes, kind="stable")
    r, same = scaled[order], np.diff(factor.codes[order]) == 0
    pairs = int(same.sum())
    # Residuals of m rows about their mean correlate by −1/(m − 1): nothing is told of pairs of rows.
    if pairs < 20 or float((r**2).sum()) == 0.0:
        return
    rho = float((r[1:] * r[:-1])[same].mean() / (r**2).mean())
    wrong = rho > CORRELATED and rho * np.sqrt(pairs) > scipy.special.ndtri(1.0 - LEVEL)
    text = f"successive rows of a {factor.name} correlate by {rho:.2f}"
    advice = ": if their order is that of time, give the residuals a correlation such as ar1" if wrong else ""
    yield Finding("order of the rows", not wrong, text + advice)


def of_effects(factor: Factor, table: pd.DataFrame) -> Iterator[Finding]:
    """Number of levels and outlying ones."""
    n = len(factor.levels)
    advice = f": variances from fewer than {FEW} are hardly known; a fixed effect may serve" if n < FEW else ""
    yield Finding(f"levels of {factor.name}", n >= FEW, f"{n} levels{advice}")
    if not (table["df"] > 0).any():
        return
    far = table[table["p"] < LEVEL / n].sort_values("p")
    text = f"{len(far)} of {n} far from the rest: {_some(far.index)}" if len(far) else "no level is far out"
    yield Finding(f"effects of {factor.name}", not len(far), text)


def of_influence(found: Influence, what: str) -> Iterator[Finding]:
    """Levels that move the fixed effects."""
    cooks = found.cooks.dropna().sort_values(ascending=False)
    lost = int(found.cooks.isna().sum())
    if len(cooks):
        far = cooks[cooks > INFLUENTIAL]
        text = f"largest Cook's distance {cooks.iloc[0]:.2f}, of {cooks.index[0]}"
        advice = f"; without {_some(far.index)} the fixed effects differ: see influence()" if len(far) else ""
        yield Finding(f"influence of a {what}", not len(far), text + advice)
    if lost:
        text = f"{lost} determine a fixed effect, or the fit, by themselves"
        yield Finding(f"{what}s that nothing can replace", False, text)


def of_columns(inflation: pd.DataFrame) -> Iterator[Finding]:
    """Collinear terms."""
    if len(inflation) < 2:
        return
    far = inflation[inflation["per_df"] ** 2 > INFLATED]
    worst = inflation["per_df"].idxmax()
    text = f"largest variance inflation {inflation['per_df'].max() ** 2:.1f}, of {worst}"
    advice = f": {_some(far.index)} say nearly the same; centre covariates of interactions" if len(far) else ""
    yield Finding("collinear terms", not len(far), text + advice)


def of_search(status: str, converged: bool, singular: bool, decrease: float, optima: int) -> Iterator[Finding]:
    """How the fit ended."""
    text = f"the optimiser {status}; {decrease:.1e} deviance units remain"
    yield Finding("convergence", converged, text)
    advice = (
        "a variance is zero or a correlation ±1: the data do not support that many random effects (see re_pca())"
        if singular
        else "no variance is zero, no correlation ±1"
    )
    yield Finding("singularity", not singular, advice)
    if optima > 1:
        yield Finding("several optima", False, f"{optima} were found, and the best is reported: look at its profiles")


def _some(names: pd.Index, most: int = 5) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def of_data(data: ModelData) -> Iterator[Finding]:
    """Whether there are rows enough."""
    effects = data.X.shape[1] + len(data.theta_names) + 1
    ratio = data.n_rows / effects
    few = ratio < ROWS
    advice = f", fewer than {ROWS} each: estimates and tests lean on the model alone" if few else ""
    yield Finding("number of rows", not few, f"{data.n_rows} rows for {effects} parameters{advice}")
