"""Power by simulation: responses from a known model, fitted as lanes, tested in the lanes."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.special as special

from ..core.fit import fit_at
from ..core.parameterizations import convert
from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..errors import DataError, LmeJaxWarning, UnsupportedError
from ..fitting import read_reml
from ..formula import design_from_formula
from ..formula.values import as_frame, namespace
from ..inference.hypotheses import hypotheses
from ..inference.lane_degrees import lane_tests
from ..inference.linear_tests import f_pvalue
from ..inference.simulation import simulate_responses
from ..inference.terms import fixed_terms
from ..keeping import has_rows
from .cases import Cases
from .responses import BatchOptions, fit_responses, read_responses

Method = Literal["satterthwaite", "z", "lrt"]
WORDS = {
    "satterthwaite": "t or F with Satterthwaite's degrees of freedom",
    "z": "z or χ² of Wald, without degrees of freedom",
    "lrt": "likelihood-ratio χ² of fits by ML",
}
# Numbers of simulated responses that are held at once.
HELD = 1 << 23


@dataclass(frozen=True)
class KnownModel:
    """A model whose parameters are known: simulated, and asked for its power, without a fit.

    Attributes
    ----------
    data : the design; its response is a placeholder.
    fit : the parameters, as arrays of a fit. reml : how its simulated responses are fitted.
    """

    _data: ModelData
    fit: Fit
    reml: bool

    def simulate(self, n: int = 1, *, seed: int | np.random.Generator) -> pd.DataFrame:
        """Responses of the rows, (n_rows, n)."""
        return pd.DataFrame(simulate_responses(self._data, self.fit, None, n, seed), index=self._data.index)

    @property
    def fe_params(self) -> pd.Series:
        """The fixed effects β (p,)."""
        return pd.Series(self.fit.beta, index=list(self._data.exog_names), name="fe_params")

    @property
    def cov_fe(self) -> pd.DataFrame:
        """What Cov β̂ = σ²(XᵀV⁻¹X)⁻¹ will be if the covariance parameters are estimated as they are."""
        names = list(self._data.exog_names)
        return pd.DataFrame(float(self.fit.sigma) ** 2 * self.fit.unscaled_cov, index=names, columns=names)

    def __repr__(self) -> str:
        levels = ", ".join(f"{len(factor.levels)} of {factor.name}" for factor in self._data.factors)
        errors = np.sqrt(np.diag(self.cov_fe))
        table = pd.DataFrame({"value": self.fe_params, "se when estimated": errors})
        return f"Model with given parameters: {self._data.n_rows} rows, levels: {levels}\n\n{table.to_string()}"


def design(
    formula: str,
    frame: Any,
    *,
    beta: Any,
    cov: Any,
    sigma: float,
    reml: bool = True,
    **arguments: Any,
) -> KnownModel:
    """A model with given parameters, before there are data: for ``power`` and ``simulate``.

    Parameters
    ----------
    formula : as of ``lmer``, with or without a response: ``"~ treatment * time + (time | subject)"``.
    frame : DataFrame or mapping of columns
        The planned rows; the response need not be there.
    beta : (p,), or mapping from the names of the fixed effects to values
        In the columns that the formula makes; a mapping may leave out those that are zero.
    cov : (q, q), number, or mapping from grouping factors (terms) to such
        Covariances of the random effects, response units²; a vector is a diagonal.
    sigma : residual standard deviation, response units.
    **arguments : what else ``lmer`` takes: weights, offset, contrasts, structures …
    """
    rows = as_frame(frame)
    text = formula if not formula.strip().startswith("~") else f"y {formula.strip()}"
    response = text.split("~", 1)[0].strip()
    # A response to build a design with: the checks of a real one need it to vary.
    rows = rows.assign(**{response: np.linspace(-1.0, 1.0, len(rows)) ** 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error", LmeJaxWarning)
        built = design_from_formula(text, rows, context=namespace(1), **arguments)
    data = ModelData.from_design(built, factor_in_names=True)
    sigma = _positive(sigma, "sigma")
    values = _beta(beta, data.exog_names)
    omega = _covariance(cov, data)
    params = np.concatenate([values, omega[data.covariance_positions], [sigma**2]])
    theta = convert(params, "natural", "sqrt", n_fixed=len(values), template=data.template)[len(values) : -1]
    at = fit_at(theta, data.compressed, reml=read_reml(reml))
    return KnownModel(data, dataclasses.replace(at, beta=values, sigma=np.float64(sigma)), bool(reml))


def _positive(value: Any, name: str) -> float:
    if not isinstance(value, (int, float, np.number)) or not 0.0 < value < np.inf:
        raise DataError(f"{name}={value!r} must be a number > 0")
    return float(value)


def _beta(given: Any, names: Sequence[str]) -> np.ndarray:
    if isinstance(given, (Mapping, pd.Series)):
        unknown = [name for name in dict(given) if name not in names]
        if unknown:
            raise DataError(f"beta names {unknown}; the fixed effects are {', '.join(names)}")
        return np.array([float(given.get(name, 0.0)) for name in names])
    values = np.atleast_1d(np.asarray(given, float))
    if values.shape != (len(names),) or not np.isfinite(values).all():
        raise DataError(f"beta needs {len(names)} finite numbers, for {', '.join(names)}: its shape is {values.shape}")
    return values


def _covariance(given: Any, data: ModelData) -> np.ndarray:
    """Ψ (q, q) of all the random effects, block by block."""
    labels = data.term_labels
    named = dict(given) if isinstance(given, Mapping) else {labels[0]: given}
    if set(named) != set(labels):
        given = f"a mapping {{{', '.join(f'{label!r}: …' for label in labels)}}}"
        raise DataError(f"cov needs the covariance of the effects of each of {', '.join(labels)}: {given}, not {named}")
    out = np.zeros((data.term_slices[-1].stop,) * 2)
    for label, term, span in zip(labels, data.terms, data.term_slices, strict=True):
        own = np.asarray(named[label], float)
        q = len(term.columns)
        own = own.reshape(1, 1) if own.size == 1 else np.diag(own) if own.ndim == 1 else own
        if own.shape != (q, q) or not np.allclose(own, own.T):
            raise DataError(f"cov[{label!r}] must be a symmetric ({q}, {q}) matrix, of {', '.join(term.columns)}")
        if np.linalg.eigvalsh(own).min() < -1e-10 * np.abs(own).max(initial=1e-300):
            raise DataError(f"cov[{label!r}] has a negative eigenvalue: it is no covariance")
        out[span, span] = own
    return out


# ---------------------------------------------------------------- what is tested


class Hypothesis(NamedTuple):
    """Lβ = null, L (m, p), with its name."""

    L: np.ndarray
    null: np.ndarray
    name: str

    @property
    def columns(self) -> np.ndarray | None:
        """Positions of the coefficients that are zero under it, if it says that."""
        single = (np.count_nonzero(self.L, axis=1) == 1).all() and not self.null.any()
        return np.flatnonzero(self.L.any(axis=0)) if single else None


def _hypothesis(test: Any, data: ModelData) -> Hypothesis:
    names, terms = list(data.exog_names), fixed_terms(data.design)
    if isinstance(test, str) and test in names:
        return Hypothesis(np.eye(len(names))[[names.index(test)]], np.zeros(1), test)
    if isinstance(test, str) and test in terms:
        return Hypothesis(np.eye(len(names))[terms[test]], np.zeros(len(terms[test])), test)
    L, null = hypotheses(test, names)
    if L.shape[1] != len(names):
        raise DataError(f"test has {L.shape[1]} columns; give {len(names)}, one for each of {', '.join(names)}")
    return Hypothesis(L, np.asarray(null, float), test if isinstance(test, str) else f"{len(L)} hypotheses")


def _effect(beta: np.ndarray, effect: Any, asked: Hypothesis, names: Sequence[str]) -> np.ndarray:
    """β with the effect that is looked for."""
    if effect is None:
        return beta
    if not isinstance(effect, Mapping):
        columns = asked.columns
        if columns is None or len(columns) != 1:
            raise DataError("effect= as one number needs a test of one coefficient: give a mapping of names to values")
        effect = {names[int(columns[0])]: effect}
    unknown = [name for name in effect if name not in names]
    if unknown:
        raise DataError(f"effect names {unknown}; the fixed effects are {', '.join(names)}")
    out = np.array(beta)
    for name, value in effect.items():
        if not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
            raise DataError(f"effect: {value!r} for {name} is no finite number")
        out[names.index(name)] = float(value)
    return out


# ---------------------------------------------------------------- the curve


@dataclass(frozen=True)
class PowerCurve:
    """How often a test rejects, by the number of levels.

    Attributes
    ----------
    table : DataFrame
        ``size`` (levels), ``n_rows``, ``n_sim``, ``failed`` (fits without an optimum, which count as not rejecting),
        ``power``, ``lower``, ``upper`` (Clopper & Pearson); with ``type1=True`` also ``type1``, ``type1_lower``,
        ``type1_upper``, of responses without the effect.
    note : what was tested and how, in words.
    """

    table: pd.DataFrame
    note: str

    def __repr__(self) -> str:
        return f"{self.table.to_string(index=False, float_format='{:.4g}'.format)}\n\n{self.note}"

    def _repr_html_(self) -> str:
        return f"{self.table.to_html(index=False, float_format='{:.4g}'.format)}<p>{self.note}</p>"


def clopper_pearson(successes: Any, n: Any, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Exact limits of a binomial probability."""
    x, n, half = np.asarray(successes, float), np.asarray(n, float), (1.0 - level) / 2.0
    with np.errstate(invalid="ignore"):
        low = np.where(x > 0, special.betaincinv(np.maximum(x, 0.5), n - x + 1.0, half), 0.0)
        high = np.where(x < n, special.betaincinv(x + 1.0, np.maximum(n - x, 0.5), 1.0 - half), 1.0)
    return low, high


def power(
    fit: Any,
    test: Any,
    n_sim: int = 1000,
    *,
    along: str | None = None,
    sizes: Sequence[int] | None = None,
    effect: Any = None,
    method: Method = "satterthwaite",
    alpha: float = 0.05,
    level: float = 0.95,
    type1: bool = False,
    seed: int,
    progress: bool = True,
) -> PowerCurve:
    """Power of a test of fixed effects by simulation, for several numbers of levels.

    Parameters
    ----------
    fit : MixedLMResults, or what ``design`` returns
        Its estimates are the truth that responses are drawn from; its criterion is that of the fits.
    test : name of a fixed effect or of a term, text such as ``"x1 - x2"``, or L (m, p)
    n_sim : simulations of each size.
    along : grouping factor whose levels are added or left out, with their rows; the first if None.
    sizes : numbers of its levels. Levels are taken in turn, again from the first when they have all been taken, as new
        levels with the same rows; factors inside it have new levels too, factors that cross it keep theirs.
    effect : number or mapping of names to values, optional
        The fixed effects that are looked for, instead of the estimates, which are too large after a search for
        significance.
    method : {"satterthwaite", "z", "lrt"}
    alpha : level of the test; level : of the intervals.
    type1 : also simulate without the effect: how often the test then rejects.
    seed : the same seed gives the same numbers, for each size on its own.
    progress : a bar over the sizes.

    Returns
    -------
    PowerCurve

    References
    ----------
    Green & MacLeod (2016), Methods Ecol. Evol. 7, 493–498 (simr); Clopper & Pearson (1934), Biometrika 26, 404–413.
    """
    from tqdm.auto import tqdm

    data = _data_of(fit)
    _check_numbers(n_sim, alpha, level, method)
    _check_seed(seed)
    asked, names = _hypothesis(test, data), list(data.exog_names)
    truth = dataclasses.replace(fit.fit, beta=_effect(np.asarray(fit.fit.beta, float), effect, asked, names))
    if method == "lrt" and asked.columns is None:
        raise DataError("method='lrt' needs a test that coefficients are zero: name effects or a term")
    rejected = [truth]
    if type1:
        rejected.append(dataclasses.replace(truth, beta=_without(truth.beta, asked)))
    lines = []
    for size, own in tqdm(list(_designs(data, along, sizes)), disable=not progress, delay=2.0, desc="power"):
        line: dict[str, Any] = {"size": size, "n_rows": own.n_rows, "n_sim": n_sim}
        for name, model, stream in zip(("power", "type1"), rejected, (0, 1), strict=False):
            rng = np.random.default_rng([seed, stream, size])
            p = _simulated(own, model, asked, n_sim, method, fit.reml, rng)
            low, high = clopper_pearson((p < alpha).sum(), n_sim, level)
            prefix = "" if name == "power" else "type1_"
            line |= {} if prefix else {"failed": int(np.isnan(p).sum())}
            line |= {name: float((p < alpha).mean()), f"{prefix}lower": float(low), f"{prefix}upper": float(high)}
        lines.append(line)
    note = f"{asked.name}: {WORDS[method]}, at {alpha:g}; {n_sim} simulations each, {100 * level:g} % intervals."
    return PowerCurve(pd.DataFrame(lines), note)


def _data_of(fit: Any) -> ModelData:
    """The design of a model whose residuals are independent."""
    data = getattr(fit, "_data", None)
    if not isinstance(data, ModelData):
        raise DataError(f"power takes a result of lmer or mixedlm, or what design() returns, not {type(fit).__name__}")
    if type(data) is not ModelData:
        raise UnsupportedError("power draws independent residuals: it cannot simulate correlated or unequal ones yet")
    if not has_rows(data):
        raise DataError("power reads the rows, which remove_data() took away")
    return data


def _check_numbers(n_sim: Any, alpha: Any, level: Any, method: Any) -> None:
    if not isinstance(n_sim, (int, np.integer)) or n_sim < 1:
        raise DataError(f"n_sim={n_sim!r}: give a whole number of simulations, 1 or more")
    for name, value in (("alpha", alpha), ("level", level)):
        if not isinstance(value, (int, float, np.number)) or not 0.0 < value < 1.0:
            raise DataError(f"{name}={value!r} must lie between 0 and 1")
    if method not in WORDS:
        raise DataError(f"method={method!r} is unknown; use {', '.join(map(repr, WORDS))}")


def _check_seed(seed: Any) -> None:
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise DataError(f"seed={seed!r}: give a whole number, 0 or more, so that the numbers can be had again")


def _without(beta: np.ndarray, asked: Hypothesis) -> np.ndarray:
    """The nearest β for which the hypothesis holds."""
    L = asked.L
    return beta - L.T @ np.linalg.solve(L @ L.T, L @ beta - asked.null)


def _designs(data: ModelData, along: str | None, sizes: Sequence[int] | None) -> Iterator[tuple[int, ModelData]]:
    """The design at every size: levels in turn, with all their rows."""
    name = data.factors[0].name if along is None else along
    cases = Cases(data, name)
    m = cases.n_levels
    wanted = [m] if sizes is None else list(np.atleast_1d(np.asarray(sizes, object)))
    if not wanted:
        raise DataError(f"sizes={sizes!r}: give numbers of levels of {name!r}, 2 or more each")
    for size in wanted:
        if not isinstance(size, (int, np.integer)) or size < 2:
            raise DataError(f"sizes={sizes!r}: give numbers of levels of {name!r}, 2 or more each")
        times = np.full(m, size // m) + (np.arange(m) < size % m)
        yield int(size), data if size == m else cases.sample(times)


def _simulated(
    data: ModelData, truth: Fit, asked: Hypothesis, n: int, method: str, reml: bool, rng: np.random.Generator
) -> np.ndarray:
    """p-values (n,) of responses drawn from ``truth``; NaN where a search found no optimum."""
    block = max(1, min(n, HELD // data.n_rows))
    parts = []
    for first in range(0, n, block):
        Y = simulate_responses(data, truth, None, min(block, n - first), rng)
        parts.append(_tested(data, Y, asked, method, reml))
    return np.concatenate(parts)


def _tested(data: ModelData, Y: np.ndarray, asked: Hypothesis, method: str, reml: bool) -> np.ndarray:
    reml = reml and method != "lrt"
    found, good = _lanes(data, Y, reml)
    p = np.full(Y.shape[1], np.nan)
    if method == "lrt":
        columns = asked.columns
        assert columns is not None
        smaller = data.columns(np.setdiff1d(np.arange(data.X.shape[1]), columns))
        small, also = _lanes(smaller, Y, reml)
        good &= also
        p[good] = special.chdtrc(len(columns), np.maximum(small.deviance - found.deviance, 0.0)[good])
        return p
    some = Fit(**{name: np.asarray(getattr(found, name))[good] for name in vars(found)})
    if method == "satterthwaite":
        dof = data.n_rows - (len(asked.L[0]) if reml else 0)
        p[good] = lane_tests(some, data, asked.L, asked.null, float(dof))
        return p
    gap = some.beta @ asked.L.T - asked.null
    cov = some.sigma[:, None, None] ** 2 * (asked.L @ some.unscaled_cov @ asked.L.T)
    ratio = np.einsum("ri,ri->r", gap, np.linalg.solve(cov, gap[:, :, None])[:, :, 0]) / len(asked.L)
    p[good] = f_pvalue(ratio, len(asked.L), np.inf)
    return p


def _lanes(data: ModelData, Y: np.ndarray, reml: bool) -> tuple[Fit, np.ndarray]:
    """Fits of the responses, and which of them are optima."""
    lanes = fit_responses(data, read_responses(Y, data.n_rows, None), reml=reml, options=BatchOptions(progress=False))
    status = np.asarray(lanes.fit.status)
    return lanes.fit, np.isin(status, [s for s in Status if s.is_optimum]) & lanes.identified
