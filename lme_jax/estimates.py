"""``Estimates``: a Fit with its criterion, fixed effects and tests, and how it is kept."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from .core.optimize import NewtonOptions
from .core.records import Fit
from .core.types import Status
from .data import ModelData
from .derived import Derived
from .errors import DataError
from .fitting import read_only
from .inference.hypotheses import TTest, WaldTest, hypotheses, reference_distribution, t_test, wald_test
from .inference.likelihood_ratio import (
    LikelihoodRatio,
    LinearFit,
    check_same_response,
    likelihood_ratio,
    linear_model,
    without_random_effects,
)
from .inference.terms import fixed_terms
from .inference.wald import chosen_covariance, wald_table
from .keeping import has_rows, packed_state, unpacked_state, without_rows
from .lazy import handed_out
from .tested import Tested


class Estimates(Tested, Derived):
    """The part of every result that needs no random effects; see ``MixedLMResults``.

    Parameters
    ----------
    data : ModelData
        What was fitted.
    fit : Fit
        The arrays of the optimum.
    reml : bool
        The criterion.
    options : NewtonOptions
        Of the search, for refits.
    again : function, optional
        Fits with changed arguments, for ``update``.
    held : (k,) bool, optional
        Which entries of θ were not estimated.
    use_t : bool
        Whether tests refer to t and F with ``df_resid`` degrees of freedom instead of the normal and χ².
    """

    def __init__(
        self,
        data: ModelData,
        fit: Fit,
        *,
        reml: bool,
        options: NewtonOptions = NewtonOptions(),
        again: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None,
        held: np.ndarray | None = None,
        use_t: bool = False,
    ) -> None:
        self._data = data
        self._fit = read_only(fit)
        self._reml = bool(reml)
        self._options = options
        self._again = again
        self._held = np.zeros(len(fit.theta), bool) if held is None else held
        self._use_t = bool(use_t)

    @property
    def fit(self) -> Fit:
        """The arrays of the optimum, read-only."""
        return self._fit

    @property
    def reml(self) -> bool:
        """Whether the criterion is REML."""
        return self._reml

    @property
    def use_t(self) -> bool:
        """Whether tests refer to t and F with ``df_resid`` degrees of freedom instead of the normal and χ²."""
        return self._use_t

    # ------------------------------------------------------------ criterion

    @property
    def method(self) -> str:
        return "REML" if self.reml else "ML"

    @property
    def deviance(self) -> float:
        """−2 log L, or the REML criterion."""
        return float(self.fit.deviance)

    @property
    def llf(self) -> float:
        """Log-likelihood (restricted under REML) at the estimates."""
        return -0.5 * self.deviance

    @property
    def nobs(self) -> int:
        return self._data.n_rows

    @property
    def k_fe(self) -> int:
        """Number of fixed effects."""
        return len(self.fit.beta)

    @property
    def df_resid(self) -> int:
        """Rows less fixed effects."""
        return self.nobs - self.k_fe

    @property
    def n_params(self) -> int:
        """Fixed effects, covariance parameters and σ that were estimated; held ones do not count."""
        return self.k_fe + int((~self._held).sum()) + 1

    @property
    def aic(self) -> float:
        """−2 ℓ + 2·(p + k + 1), with the restricted ℓ under REML (lme4's convention; statsmodels gives NaN)."""
        return self.deviance + 2.0 * self.n_params

    @property
    def bic(self) -> float:
        """−2 ℓ + log(n)·(p + k + 1), n the number of rows, with the restricted ℓ under REML (as lme4)."""
        return self.deviance + np.log(self.nobs) * self.n_params

    @property
    def status(self) -> Status:
        return Status(int(self.fit.status))

    @property
    def backend(self) -> str:
        """What computed the fit: "numpy", or "jax" for a compiled program."""
        return "jax" if bool(self.fit.compiled) else "numpy"

    @property
    def n_optima(self) -> int:
        """How many distinct optima the searches of this fit ended in; the best is reported."""
        return int(self.fit.optima)

    @property
    def converged(self) -> bool:
        return self.status.is_optimum

    @property
    def singular(self) -> bool:
        """Whether a variance is estimated as zero or a correlation as ±1."""
        return self.status is Status.SINGULAR

    @property
    def scale(self) -> float:
        """Residual variance σ̂²."""
        return float(self.fit.sigma) ** 2

    @property
    def sigma(self) -> float:
        """Residual standard deviation σ̂."""
        return float(self.fit.sigma)

    # ------------------------------------------------------------ fixed effects

    @handed_out
    def fe_params(self) -> pd.Series:
        """Fixed effects β̂ (p,)."""
        return pd.Series(self.fit.beta, index=self._exog_names, name="fe_params")

    @handed_out
    def cov_fe(self) -> pd.DataFrame:
        """Cov β̂ = σ̂²(XᵀV⁻¹X)⁻¹ (p, p): generalised least squares, as lme4, nlme and SAS report it."""
        cov = self.scale * np.asarray(self.fit.unscaled_cov)
        return pd.DataFrame(cov, index=self._exog_names, columns=self._exog_names)

    @handed_out
    def bse_fe(self) -> pd.Series:
        """Standard errors of the fixed effects (p,), √diag ``cov_fe``."""
        return pd.Series(np.sqrt(np.diag(self.cov_fe)), index=self._exog_names, name="bse_fe")

    @property
    def param_names(self) -> list[str]:
        return list(self._exog_names)

    @property
    def params(self) -> pd.Series:
        """The fixed effects, as ``fe_params``.

        ``bse``, ``tvalues``, ``pvalues``, ``cov_params`` and ``conf_int`` are theirs too.
        """
        return self.fe_params.rename("params")

    @property
    def bse(self) -> pd.Series:
        """Standard errors of the fixed effects by generalised least squares, ``bse_fe``."""
        return self.bse_fe.rename("bse")

    @property
    def tvalues(self) -> pd.Series:
        """Estimate over standard error of the fixed effects."""
        return (self.fe_params / self.bse_fe).rename("tvalues")

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided normal p-values of the fixed effects."""
        table = wald_table(self.fe_params.to_numpy(), self.bse_fe.to_numpy())
        return pd.Series(table.p_value, index=self._exog_names, name="pvalues")

    def cov_params(self, r_matrix: Any = None, column: Any = None, scale: Any = None) -> Any:
        """Covariance of the fixed effects, of some of them (``column``), or of linear combinations R.

        ``scale`` stands in for σ̂².
        """
        cov = self.cov_fe if scale is None else self.cov_fe / self.scale * scale
        return chosen_covariance(cov, r_matrix, column)

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Normal-theory confidence limits of the fixed effects, (p, 2)."""
        table = wald_table(self.fe_params.to_numpy(), self.bse_fe.to_numpy(), alpha)
        return pd.DataFrame({0: table.lower, 1: table.upper}, index=self._exog_names)

    # ------------------------------------------------------------ tests

    def t_test(self, r_matrix: Any, use_t: bool | None = None) -> TTest:
        """z (or t) tests of linear combinations of the fixed effects, by generalised least squares.

        Parameters
        ----------
        r_matrix : (m, k_fe) or (k_fe,) array, a pair (r, c), or text such as ``"x1 - x2 = 0, x3"``
        use_t : bool, optional
            t with ``df_resid`` degrees of freedom; the results' ``use_t`` if None.
        """
        r, c = hypotheses(r_matrix, self._exog_names)
        if r.shape[1] != self.k_fe:
            raise DataError(f"r_matrix for t_test should have {self.k_fe} columns, one per fixed effect: {r.shape[1]}")
        names = self._exog_names if np.array_equal(r, np.eye(self.k_fe)) else None
        return t_test(r, c, np.asarray(self.fe_params), np.asarray(self.cov_fe), self._df(use_t), names)

    def _df(self, use_t: bool | None) -> float:
        return float(self.df_resid) if (self.use_t if use_t is None else use_t) else np.inf

    @property
    def _reference(self) -> Any:
        return reference_distribution(self._df(None))

    def wald_test(self, r_matrix: Any, use_f: bool | None = None) -> WaldTest:
        """Joint χ² (or F) test of Rb = c, b the fixed effects with their GLS covariance; R as in ``t_test``."""
        r, c = hypotheses(r_matrix, self._exog_names)
        if r.shape[1] != self.k_fe:
            raise DataError(f"r_matrix has {r.shape[1]} columns; give {self.k_fe}, one per fixed effect")
        return wald_test(r, c, np.asarray(self.fe_params), np.asarray(self.cov_fe), self._df(use_f))

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

    def compare_lr_test(self, restricted: Any = None, *, boundary: bool = True) -> LikelihoodRatio:
        """Likelihood-ratio test against a nested model: (statistic, p-value, difference in parameters).

        Parameters
        ----------
        restricted : optional
            The result of the smaller model, same rows and criterion; under REML, same fixed effects. It may have no
            random effects: what ``without_random_effects`` gives, or statsmodels' results of OLS or WLS, whose
            likelihood is computed by this result's criterion. None: the same fixed effects without random effects.
        boundary : bool
            Whether variances of the larger model that the smaller fixes at zero count as on the boundary: the
            reference is then the mixture of χ² of Self & Liang (1987) for uncorrelated boundary parameters
            (½χ²₍df−1₎ + ½χ²₍df₎ for one variance). Without it χ²_df, which is conservative.

        Notes
        -----
        Simulation under the smaller model (``refit_many(small.simulate(…))``) needs no such approximation.
        """
        small = self._as_smaller(restricted)
        df = self.n_params - small.n_params
        if df <= 0:
            raise DataError(f"the restricted model has {-df} parameters more: call compare_lr_test on the larger model")
        extra = self._n_variances - (small._n_variances if isinstance(small, Estimates) else 0) if boundary else 0
        return likelihood_ratio(2.0 * (self.llf - small.llf), df, min(max(extra, 0), df))

    def _as_smaller(self, restricted: Any) -> Estimates | LinearFit:
        if restricted is None:
            return self.without_random_effects()
        if not isinstance(restricted, Estimates | LinearFit):
            model = getattr(restricted, "model", None)
            if not (hasattr(model, "endog") and hasattr(model, "exog") and hasattr(restricted, "llf")):
                kind = type(restricted).__name__
                raise DataError(f"compare_lr_test takes the result of another model, mixed or linear, not {kind}")
            return linear_model(restricted, self._data, self.reml)
        if self.reml != restricted.reml:
            raise DataError("compare_lr_test needs two fits by the same criterion: both REML, or both ML (reml=False)")
        if isinstance(restricted, Estimates):
            self._check_comparable(restricted)
        return restricted

    def _check_same_rows(self, other: Estimates) -> None:
        if self.nobs != other.nobs:
            raise DataError(f"compare_lr_test needs two fits of the same rows: here are {self.nobs} and {other.nobs}")
        if has_rows(self._data) and has_rows(other._data):
            check_same_response(other._data.y, self._data.y)
        elif self._data.endog_name != other._data.endog_name:
            names = f"{self._data.endog_name!r} and {other._data.endog_name!r}"
            raise DataError(f"the two fits have different responses, {names}: their likelihoods cannot be compared")

    def _check_comparable(self, other: Estimates) -> None:
        self._check_same_rows(other)
        if self.reml and tuple(self._exog_names) != tuple(other._exog_names):
            raise DataError(
                "under REML models with different fixed effects cannot be compared: fit both with reml=False, such as "
                "fit.update(reml=False)"
            )

    def without_random_effects(self) -> LinearFit:
        """The same fixed effects without random effects, by least squares and this result's criterion."""
        return without_random_effects(self._data, self.reml)

    @property
    def _n_variances(self) -> int:
        """How many variances of random effects were estimated."""
        variances = np.array([not str(name).endswith(" Cov") for name in self._data.covariance_names], bool)
        return int((variances & ~self._held).sum())

    # ------------------------------------------------------------ keeping

    def __getstate__(self) -> dict[str, Any]:
        return packed_state(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(unpacked_state(state))
        self._fit = read_only(self._fit, copy=False)

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
        for name in ("fittedvalues", "resid", "_equations"):
            self.__dict__.pop(name, None)
        self._data = without_rows(self._data)

    def _keep_before_removal(self) -> None:
        """Compute what needs the rows now and is to stay."""
        _ = self.cov_fe

    # ------------------------------------------------------------ shorthands

    @property
    def model(self) -> Any:
        """Names, where other packages look for them (statsmodels' ``summary_col``); there is no model object."""
        names = list(self._exog_names)
        data = SimpleNamespace(xnames=names, ynames=self._data.endog_name, param_names=names, frame=None)
        return SimpleNamespace(endog_names=self._data.endog_name, exog_names=names, data=data)

    @property
    def _exog_names(self) -> tuple[str, ...]:
        return self._data.exog_names
