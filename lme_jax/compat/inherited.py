"""``StatsmodelsResults``: statsmodels' tests, predictions and keeping, added to every fitted model."""

import dataclasses
import pickle
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy  # its submodules load at their first use

from ..core.components import Components, root_map, root_of
from ..data import ModelData
from ..errors import DataError, UnsupportedError
from ..inference.contrasts import TTest, WaldTest, hypotheses, reference_distribution, t_test, wald_test
from ..inference.terms import fixed_terms
from ..inference.wald import check_alpha
from .layout import Layout
from .params import MixedLMParams

if TYPE_CHECKING:
    from ..core.records import Fit


class StatsmodelsResults:
    """Mixin over (``_data``, ``fit``, ``reml``); everything is computed when first asked for."""

    _data: ModelData
    use_t: bool = False
    freepat: MixedLMParams | None = None
    hist: list[dict[str, Any]] | None = None
    cov_pen: Any = None
    fe_pen: Any = None

    if TYPE_CHECKING:

        @property
        def fit(self) -> "Fit": ...

        @property
        def reml(self) -> bool: ...

        @property
        def params(self) -> Any: ...

        @property
        def param_names(self) -> list[str]: ...

        def cov_params(self, r_matrix: Any = None, column: Any = None, scale: Any = None) -> Any: ...

        @property
        def nobs(self) -> Any: ...

        @property
        def llf(self) -> Any: ...

        @property
        def scale(self) -> Any: ...

        @property
        def n_params(self) -> Any: ...

        @property
        def fe_params(self) -> Any: ...

        @property
        def bse_fe(self) -> Any: ...

        @property
        def bse_re(self) -> Any: ...

        @property
        def cov_fe(self) -> Any: ...

        @property
        def cov_re(self) -> Any: ...

        @property
        def _random_effects(self) -> Any: ...

        summary: Any
        prediction: Any

    # ------------------------------------------------------------ layout

    @property
    def _layout(self) -> Layout:
        return self._own_layout

    @cached_property
    def _own_layout(self) -> Layout:
        return Layout(self._data)

    @cached_property
    def _omega(self) -> np.ndarray:
        """Packed Cov(b)/σ²."""
        L = np.asarray(self.fit.relative_factor)
        return self._layout.omega(L @ L.T)

    @cached_property
    def _free(self) -> np.ndarray:
        """(K,) which packed parameters were estimated."""
        p = len(self.fit.beta)
        if self.freepat is None:
            return np.ones(p + len(self.fit.theta), dtype=bool)
        return np.concatenate([np.ones(p, bool), self.freepat.get_packed(use_sqrt=False) != 0])

    @property
    def k_fe(self) -> int:
        return len(self.fit.beta)

    @property
    def k_re(self) -> int:
        first = self._layout.data.design.terms[0]
        return 0 if first.structure == "identity" else len(first.columns)

    @property
    def k_re2(self) -> int:
        return self.k_re * (self.k_re + 1) // 2

    @property
    def k_vc(self) -> int:
        return len(self._omega) - self.k_re2

    @property
    def df_resid(self) -> int:
        """Rows less fixed effects."""
        return self.nobs - self.k_fe

    @property
    def df_modelwc(self) -> int:
        """Number of ``params``."""
        return len(self.params)

    @property
    def _reference(self) -> Any:
        return reference_distribution(self.df_resid if self.use_t else np.inf)

    # ------------------------------------------------------------ tests

    def t_test(self, r_matrix: Any, use_t: bool | None = None) -> TTest:
        """z (or t) tests of linear combinations of the fixed effects, by generalised least squares.

        Parameters
        ----------
        r_matrix : (m, k_fe) or (k_fe,) array, a pair (r, c), or text such as ``"x1 - x2 = 0, x3"``
        use_t : bool, optional
            t with ``df_resid`` degrees of freedom; the results' ``use_t`` if None.
        """
        r, c = hypotheses(r_matrix, self._data.exog_names)
        if r.shape[1] != self.k_fe:
            raise DataError(f"r_matrix for t_test should have {self.k_fe} columns, one per fixed effect: {r.shape[1]}")
        names = self._data.exog_names if np.array_equal(r, np.eye(self.k_fe)) else None
        return t_test(r, c, np.asarray(self.fe_params), np.asarray(self.cov_fe), self._df(use_t), names)

    def _df(self, use_t: bool | None) -> float:
        return float(self.df_resid) if (self.use_t if use_t is None else use_t) else np.inf

    def wald_test(self, r_matrix: Any, use_f: bool | None = None) -> WaldTest:
        """Joint χ² (or F) test of Rb = c.

        Text and arrays with k_fe columns concern the fixed effects and use their GLS covariance; arrays with
        K columns, and text that names a covariance parameter, concern ``params`` and use ``cov_params()``.
        """
        fixed = self._data.exog_names
        r, c = self._on_fixed_or_all(r_matrix)
        df = self._df(use_f)
        if r.shape[1] == len(fixed):
            return wald_test(r, c, np.asarray(self.fe_params), np.asarray(self.cov_fe), df)
        if r.shape[1] != len(self.params):
            raise DataError(
                f"r_matrix has {r.shape[1]} columns; give {self.k_fe} for the fixed effects or {len(self.params)} "
                "for all parameters"
            )
        return wald_test(r, c, np.asarray(self.params), np.asarray(self.cov_params()), df)

    def _on_fixed_or_all(self, given: Any) -> tuple[np.ndarray, np.ndarray]:
        text = isinstance(given, str) or (isinstance(given, (list, tuple)) and given and isinstance(given[0], str))
        if not text:
            return hypotheses(given, self.param_names)
        r, c = hypotheses(given, self.param_names)
        return (r[:, : self.k_fe], c) if not r[:, self.k_fe :].any() else (r, c)

    def f_test(self, r_matrix: Any) -> WaldTest:
        """As ``wald_test``, with F(m, ``df_resid``)."""
        return self.wald_test(r_matrix, use_f=True)

    def wald_test_terms(self) -> pd.DataFrame:
        """A joint test of each term of the formula (of each column, for arrays): statistic, pvalue, df."""
        rows = {}
        for name, columns in fixed_terms(self._data.design).items():
            test = self.wald_test(np.eye(self.k_fe)[columns])
            rows[name] = {"statistic": test.statistic, "pvalue": test.pvalue, "df_constraint": test.df_num}
        return pd.DataFrame.from_dict(rows, orient="index")

    def compare_lr_test(self, restricted: "StatsmodelsResults", *, boundary: bool = True) -> tuple[float, float, int]:
        """Likelihood-ratio test against a nested model: (statistic, p-value, difference in parameters).

        Parameters
        ----------
        restricted : results of the smaller model, same rows and criterion; under REML, same fixed effects.
        boundary : bool
            Whether variances of the larger model that the smaller fixes at zero count as on the boundary: the
            reference is then the mixture of χ² of Self & Liang (1987) for uncorrelated boundary parameters
            (½χ²₍df−1₎ + ½χ²₍df₎ for one variance). Without it χ²_df, which is conservative.
        """
        if not isinstance(restricted, StatsmodelsResults):
            raise DataError(f"compare_lr_test takes the result of another mixed model, not {type(restricted).__name__}")
        if self.reml != restricted.reml or self.nobs != restricted.nobs:
            raise DataError("compare_lr_test needs two fits of the same rows by the same criterion (ML or REML)")
        if self.reml and tuple(self._data.exog_names) != tuple(restricted._data.exog_names):
            raise DataError("under REML models with different fixed effects cannot be compared: fit with reml=False")
        df = self._n_free - restricted._n_free
        if df <= 0:
            raise DataError(f"the restricted model has {-df} parameters more: call compare_lr_test on the larger model")
        statistic = max(0.0, 2.0 * (self.llf - restricted.llf))
        extra = self._n_variances - restricted._n_variances if boundary else 0
        extra = min(max(extra, 0), df)
        weights = scipy.stats.binom(extra, 0.5).pmf(np.arange(extra + 1))
        dofs = df - extra + np.arange(extra + 1)
        tails = [scipy.stats.chi2.sf(statistic, d) if d else float(statistic <= 0) for d in dofs]
        return statistic, float(weights @ tails), int(df)

    @property
    def _n_free(self) -> int:
        return int(self._free.sum())

    @property
    def _n_variances(self) -> int:
        variances = np.array([not str(name).endswith(" Cov") for name in self._layout.names], dtype=bool)
        return int((variances & self._free[self.k_fe :]).sum())

    # ------------------------------------------------------------ profile likelihood

    def profile_re(
        self,
        re_ix: int | str,
        vtype: str,
        num_low: int = 5,
        dist_low: float = 1.0,
        num_high: int = 5,
        dist_high: float = 1.0,
        **fit_kwargs: Any,
    ) -> np.ndarray:
        """Profile likelihood of one variance, (num_low + num_high + 1, 2): variance (response units²), ℓ.

        Parameters
        ----------
        re_ix : index of the random effect (``vtype="re"``) or name of the component (``"vc"``).
        num_low, num_high : points below and above the estimate.
        dist_low, dist_high : distances of the farthest points, response units²; cut at zero.

        Notes
        -----
        The variance itself is held; statsmodels holds its ratio to σ², which is another curve.
        """
        if vtype not in ("re", "vc"):
            raise DataError(f"vtype must be 're' or 'vc', not {vtype!r}")
        place, term_effect = self._variance_place(re_ix, vtype)
        model = self._layout.components
        center = self.scale * self._omega[place]
        low = np.linspace(max(center - dist_low, 0.0), center, num_low + 1)
        high = np.linspace(center, center + dist_high, num_high + 1)[1:]
        profile = _VarianceProfile(model, self.reml, place, term_effect, self._free[self.k_fe :])
        start = profile.pack(self._omega, self.scale)
        out = {num_low: (center, self.llf)}
        grid = np.concatenate([low, high])
        for steps in (range(num_low - 1, -1, -1), range(num_low + 1, len(grid))):
            x = start
            for i in steps:
                x, value = profile.maximise(grid[i], x)
                out[i] = (grid[i], value)
        return np.array([out[i] for i in range(len(grid))])

    def _variance_place(self, re_ix: int | str, vtype: str) -> tuple[int, int]:
        if vtype == "re":
            if not isinstance(re_ix, (int, np.integer)) or not 0 <= re_ix < self.k_re:
                raise DataError(f"re_ix={re_ix!r}: there are {self.k_re} correlated random effects, counted from 0")
            free = self._layout.template[0].structure == "unstructured"
            return (int(re_ix) * (int(re_ix) + 3) // 2 if free else int(re_ix)), int(re_ix)
        names = [n.removesuffix(" Var") for n in self._layout.names[self.k_re2 :]]
        if re_ix not in names:
            raise DataError(f"there is no variance component {re_ix!r}; there are {names}")
        return self.k_re2 + names.index(str(re_ix)), -1

    # ------------------------------------------------------------ predictions

    def get_prediction(
        self, exog: Any = None, transform: bool = True, *, random_effects: bool = False, **options: Any
    ) -> "Prediction":
        """Predictions with standard errors, confidence and prediction intervals.

        Parameters
        ----------
        exog : DataFrame (formula models) or (n, p) array, optional
            New rows; the fitted ones if None.
        transform : bool
            Whether ``exog`` goes through the formula.
        random_effects : bool
            Add the BLUPs. The standard error is then that of x'β̂ + z'b̂ (Henderson).
        **options : passed to ``prediction`` (weights, offset, allow_new_levels); the intervals have a level of their
            own, ``conf_int(alpha=)``.

        Notes
        -----
        Intervals of new observations add σ² and the variance of random effects that are left out; arrays do
        not say what those are, so there they are NaN.
        """
        if exog is None or (transform and isinstance(exog, (pd.DataFrame, Mapping))):
            level = options.pop("level", 0.95)
            table = self.prediction(exog, random_effects=random_effects, level=level, **options)
            half = scipy.special.ndtri(0.5 + level / 2.0)
            se_obs = (table["pi_upper"] - table["mean"]).to_numpy() / half
            return Prediction(table["mean"].to_numpy(), table["se"].to_numpy(), se_obs, self._reference, table.index)
        if random_effects:
            raise UnsupportedError("random_effects=True needs a formula model and a DataFrame of new rows")
        X = self._array_rows(exog)
        se = np.sqrt(np.einsum("ni,ij,nj->n", X, np.asarray(self.cov_fe), X))
        return Prediction(X @ np.asarray(self.fit.beta), se, np.full(len(X), np.nan), self._reference, None)

    def _array_rows(self, exog: Any) -> np.ndarray:
        X = np.atleast_2d(np.asarray(exog, float))
        if X.shape[1] != self.k_fe:
            raise DataError(f"exog has {X.shape[1]} columns; the model has {self.k_fe} fixed effects")
        return X

    # ------------------------------------------------------------ keeping

    def __getstate__(self) -> dict[str, Any]:
        # A sparse factorisation cannot be pickled; it is made again when asked for.
        return {name: value for name, value in self.__dict__.items() if name != "_equations"}

    def save(self, fname: Any, remove_data: bool = False) -> None:
        """Pickle to a file; ``remove_data`` leaves the rows out of it."""
        if remove_data:
            self.remove_data()
        Path(fname).write_bytes(pickle.dumps(self))

    @classmethod
    def load(cls, fname: Any) -> Any:
        """Results saved by ``save``. Only open files that you trust: this is pickle."""
        return pickle.loads(Path(fname).read_bytes())

    def remove_data(self) -> None:
        """Forget the rows: estimates, standard errors, tests, BLUPs, the summary and ``predict`` of new rows stay.

        Residuals, fitted values, ``prediction``, refits and everything else that reads the rows go.
        """
        self._keep_before_removal()
        for name in ("fittedvalues", "resid", "_own_layout", "_equations"):
            self.__dict__.pop(name, None)
        self._data = without_rows(self._data)

    def _keep_before_removal(self) -> None:
        """Compute what needs the rows now and is to stay."""
        for name in ("bse_re", "cov_fe", "_omega", "_blups", "ranef", "ranef_cov"):
            getattr(self, name)
        self.summary()


class _NoRows:
    """Stands for rows that were removed: knows how many there were, and says so if they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def _gone(self, *args: Any, **kwargs: Any) -> Any:
        raise DataError("the rows were removed by remove_data(): this result needs them")

    __array__ = __matmul__ = __getitem__ = __sub__ = __add__ = __iter__ = _gone

    @property
    def shape(self) -> Any:
        return self._gone()


def without_rows(data: ModelData) -> ModelData:
    """The labels and sizes of the data, without their rows."""
    gone: Any = _NoRows(data.n_rows)
    thin = {id(t): dataclasses.replace(t, codes=gone, Z=gone) for t in data.design.terms}
    design = dataclasses.replace(
        data.design,
        y=gone,
        X=gone,
        weights=None if data.design.weights is None else gone,
        offset=None if data.design.offset is None else gone,
        index=pd.RangeIndex(0),
        terms=tuple(thin[id(t)] for t in data.design.terms),
    )
    factors = []
    for factor in data.factors:
        new = dataclasses.replace(factor, codes=gone, Z=gone)
        new.__dict__["sizes"] = factor.sizes
        factors.append(new)
    terms = tuple(thin[id(t)] for t in data.terms)
    kept = dataclasses.replace(data, design=design, terms=terms, factors=tuple(factors))
    kept.__dict__["compressed"] = gone
    return kept


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted means with uncertainty.

    Attributes
    ----------
    predicted_mean, se_mean, se_obs : (n,), response units.
    """

    predicted_mean: np.ndarray
    se_mean: np.ndarray
    se_obs: np.ndarray
    distribution: Any
    index: pd.Index | None

    def conf_int(self, obs: bool = False, alpha: float = 0.05) -> np.ndarray:
        """(n, 2) limits of the mean, or with ``obs`` of a new observation."""
        half = self.distribution.ppf(1.0 - check_alpha(alpha) / 2.0) * (self.se_obs if obs else self.se_mean)
        return np.column_stack([self.predicted_mean - half, self.predicted_mean + half])

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        mean, obs = self.conf_int(alpha=alpha), self.conf_int(obs=True, alpha=alpha)
        columns = {
            "mean": self.predicted_mean,
            "mean_se": self.se_mean,
            "mean_ci_lower": mean[:, 0],
            "mean_ci_upper": mean[:, 1],
            "obs_ci_lower": obs[:, 0],
            "obs_ci_upper": obs[:, 1],
        }
        return pd.DataFrame(columns, index=self.index)


class _VarianceProfile:
    """Maximises ℓ over everything but one variance, held at given values.

    The coordinates are log σ² and the roots of Cov(b)/σ² with the held effect moved to the front of its
    block, where its variance is the square of one root.
    """

    def __init__(self, model: Components, reml: bool, place: int, effect: int, free: np.ndarray) -> None:
        self.model, self.reml = model, reml
        k = model.n_omega
        self.order = np.arange(k)
        self.held = place
        block = model.template[0]
        if effect >= 0 and block.structure == "unstructured":
            moved = [effect, *(i for i in range(block.size) if i != effect)]
            pair = np.zeros((block.size, block.size), int)
            rows, columns = np.tril_indices(block.size)
            pair[rows, columns] = pair[columns, rows] = np.arange(block.n_theta)
            self.order[: block.n_theta] = [pair[moved[i], moved[j]] for i, j in zip(rows, columns, strict=True)]
            self.held = 0
        self.open = free[self.order].copy()
        self.open[self.held] = False

    def pack(self, omega: np.ndarray, sigma2: float) -> np.ndarray:
        theta = root_of(omega[self.order], self.model.template)
        return np.append(np.log(sigma2), theta[self.open])

    def _omega(self, variance: float, x: np.ndarray) -> np.ndarray:
        theta = np.zeros(len(self.order))
        theta[self.open] = x[1:]
        theta[self.held] = np.sqrt(variance / np.exp(x[0]))
        omega = np.empty(len(theta))
        omega[self.order] = root_map(theta, self.model.template)[0]
        return omega

    def loglike(self, variance: float, x: np.ndarray) -> float:
        """ℓ with σ² = exp(x₀) given rather than profiled out."""
        omega, dof = self._omega(variance, x), self.model.dof(self.reml)
        ratio = self.model.scale(self.model.gls(omega), omega, self.reml) / np.exp(x[0])
        return self.model.loglike(None, omega, self.reml) - 0.5 * dof * (ratio - 1.0 - np.log(ratio))

    def maximise(self, variance: float, x: np.ndarray) -> tuple[np.ndarray, float]:
        def negative(x: np.ndarray) -> float:
            value = self.loglike(variance, x)
            return -value if np.isfinite(value) else np.inf

        found = scipy.optimize.minimize(negative, x, method="BFGS", jac="3-point", options={"gtol": 1e-4})
        return found.x, -float(found.fun)
