"""StructuredResults: labels on a fit with correlated or unequal residuals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd

from ..core import covariance
from ..core.fixed_effects import Jets
from ..core.optimize import NewtonOptions
from ..core.records import Fit, RandomEffects
from ..core.residual import fit as core
from ..core.residual import inference
from ..core.residual import rows as by_rows
from ..core.residual.fit import ResidualFit
from ..core.residual.stacks import Rows
from ..core.residual.terms import Parameter
from ..core.types import Status
from ..errors import DataError, UnsupportedError
from ..fitting import read_options, read_reml
from ..formula.values import as_frame
from ..inference.degrees import Reference, between_within
from ..inference.prediction import PredictionRows, RandomChoice, interval_table, prediction_rows
from ..inference.quantities import readings
from ..inference.robust import RobustEstimates
from ..inference.simulation import response_for
from ..inference.wald import covariance_standard_errors
from ..keeping import has_rows
from ..lazy import handed_out
from ..results import MixedLMResults
from ..summary import Summary
from .comparison import StructureComparison, compare_structures
from .data import StructuredData, new_rows, without_residual_rows
from .degrees import KENWARD_ROGER, kenward_roger_observed, read_ddf
from .diagnostics import autocorrelation, semivariogram
from .outcome import read_start, status_text, tell
from .parameters import parameter_table
from .report import summary_of
from .robust import read_vcov, reference, robust

ResidualType = Literal["response", "pearson", "normalized"]
RESIDUALS = ("response", "pearson", "normalized")


class StructuredResults(MixedLMResults):
    """A fitted model whose residuals are correlated within subjects, or of unequal variance.

    Everything of ``MixedLMResults`` that does not assume independent residuals is here too: estimates, tests,
    random effects, ``update``. Residuals ε_i ~ N(0, σ²R_i): ``scale`` is σ², the residual variance where all relative
    standard deviations are 1 (of the first visit, stratum or arm).

    Parameters
    ----------
    data : StructuredData
    found : ResidualFit
    reml, options, again : as of ``Estimates``.
    ddf : str, optional
        The degrees of freedom of tests where none are named.
    vcov : str, optional
        Type of a cluster-robust Cov β̂ for all tests; the model's own if None.
    """

    _data: StructuredData

    def __init__(
        self,
        data: StructuredData,
        found: ResidualFit,
        *,
        reml: bool,
        options: NewtonOptions = NewtonOptions(),
        again: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None,
        ddf: str | None = None,
        vcov: Any = None,
    ) -> None:
        super().__init__(data, as_fit(found, data), reml=reml, options=options, again=again)
        self._found = found
        self._ddf = ddf
        self._vcov = vcov

    # ------------------------------------------------------------ tests

    @property
    def default_ddf(self) -> Any:
        """The degrees of freedom of tests where none are named: what ``mmrm`` was asked for, else as everywhere."""
        return super().default_ddf if self._ddf is None else self._ddf

    def _new_jets(self, natural: bool) -> Jets:
        return inference.jets(self._found, self._data.blocks, reml=self.reml, second=natural, natural=natural)

    def _reference_of(self, ddf: str | None) -> Reference:
        """Also ``"kenward-roger-linear"``, without the second derivatives of V (SAS's ddfm=kr(linear)).

        Kenward and Roger's take the observed information of the parameters that SAS estimates, as SAS and mmrm do.
        """
        ddf = read_ddf(self.default_ddf if ddf is None else ddf)
        if self._vcov is not None:
            return self._robust_reference(ddf)
        if ddf not in KENWARD_ROGER:
            return super()._reference_of(ddf)
        if not self.reml:
            raise DataError("Kenward and Roger's degrees of freedom are those of a REML fit: fit with reml=True")
        return kenward_roger_observed(self._jets(True), ddf)

    def _robust_reference(self, ddf: str) -> Reference:
        """What tests refer to where ``mmrm`` was asked for a robust covariance."""
        if ddf in KENWARD_ROGER:
            raise DataError(
                f"ddf={ddf!r} adjusts the model's own covariance: with vcov={self._vcov!r} use 'satterthwaite'"
            )
        alike = {"normal": np.inf, "residual": float(self.df_resid)}
        if ddf == "satterthwaite":
            return reference(self._robust, ddf, None)
        df = np.full(self.k_fe, alike[ddf]) if ddf in alike else self._degrees_of_design(ddf)
        return reference(self._robust, ddf, df)

    @cached_property
    def _robust(self) -> RobustEstimates:
        return robust(self._data, self._found, None, self._vcov)

    @handed_out
    def cov_fe(self) -> pd.DataFrame:
        """Cov β̂ (p, p): σ̂²(XᵀV⁻¹X)⁻¹, or the robust covariance that ``mmrm(vcov=)`` was asked for."""
        cov = self.scale * np.asarray(self.fit.unscaled_cov) if self._vcov is None else self._robust.cov.to_numpy()
        return pd.DataFrame(cov, index=self._exog_names, columns=self._exog_names)

    def robust(self, cluster: Any = None, type: Any = "CR2") -> RobustEstimates:
        """Fixed effects with a cluster-robust covariance, valid where the model's own is wrong.

        Parameters
        ----------
        cluster : name of the subject or of a grouping factor, or labels of the fitted rows (n,), optional
            Clusters hold whole subjects and levels. None: sets of rows that share subjects or levels, without random
            effects the subjects.
        type : as of ``MixedLMResults.robust``.
        """
        return robust(self._data, self._found, cluster, type)

    def _degrees_of_design(self, method: str) -> np.ndarray:
        if self._data.terms or method != "between-within":
            return super()._degrees_of_design(method)
        return between_within(self._data.X, self._data.term.rows.subject)

    # ------------------------------------------------------------ the residual structure

    @property
    def structure(self) -> str:
        """The residual structure as it was spelled."""
        return self._data.term.spelling.text

    @property
    def visits(self) -> tuple[Any, ...]:
        """Labels of the visits, in the order of the clock; empty for structures of distances."""
        return self._data.term.visits

    @property
    def subjects(self) -> np.ndarray:
        """Labels of the subjects."""
        return self._data.term.subjects.copy()

    @property
    def n_subjects(self) -> int:
        return len(self._data.term.subjects)

    @property
    def k_cov(self) -> int:
        """Number of covariance parameters, σ among them."""
        return len(self._found.params) + 1

    @cached_property
    def status_text(self) -> str:
        """How the search ended, with the names of what stands on a boundary or is hardly told by the data."""
        return status_text(self._found, self._parameters, self._data)

    @cached_property
    def _parameters(self) -> list[Parameter]:
        return inference.parameters(self._found, self._data.blocks, reml=self.reml)

    @handed_out
    def residual_params(self) -> pd.DataFrame:
        """The parameters of the residual structure as people read them, with intervals of 95 %.

        Columns term, group (arm or stratum), parameter, estimate, se, lower, upper, note. Standard errors are by the
        delta method from the exact Hessian of the deviance; intervals are symmetric on the scale that nlme's
        ``intervals`` uses: log of standard deviations and ranges, Fisher's z or logit of correlations.
        """
        return parameter_table(self._parameters, self._data.term, 0.05)

    def residual_intervals(self, alpha: float = 0.05) -> pd.DataFrame:
        """``residual_params`` with intervals of another level, 1 − alpha."""
        return parameter_table(self._parameters, self._data.term, alpha)

    def residual_cov(self, subject: Any = None, *, correlation: bool = False) -> Any:
        """Covariance of the residuals, response units²: nlme's ``getVarCov``, SAS's R.

        Parameters
        ----------
        subject : label, optional
            The subject whose rows it is for, in the order of its clock. None: the matrix of all visits where the
            structure is by visit alone, a dict of them by arm where arms have their own; else that of the subject with
            the most rows.
        correlation : bool
            Correlations instead.

        Returns
        -------
        DataFrame, or dict of arm → DataFrame
        """
        found = dict(self._shown_covariances) if subject is None else {None: self._covariance_of(subject)[0]}
        if correlation:
            found = {arm: _correlations(matrix) for arm, matrix in found.items()}
        return found[None].copy() if None in found else {arm: matrix.copy() for arm, matrix in found.items()}

    def marginal_cov(self, subject: Any = None) -> pd.DataFrame:
        """Covariance of the responses of a subject, random effects among it, response units²: SAS's V.

        None is the subject with the most rows.
        """
        return self._covariance_of(self.typical_subject if subject is None else subject)[1]

    def _covariance_of(self, subject: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        """R and V of a subject."""
        rows = self._rows_of(subject)
        R, V = by_rows.residual_covariance(self._found, self._data.blocks, rows)
        return self._labelled(R, self._clock[rows]), self._labelled(V, self._clock[rows])

    @property
    def _by_visit(self) -> bool:
        """Whether the covariance of a row pair depends on its visits (and arm) alone."""
        return bool(self.visits) and not self._data.term.rows.variances

    @cached_property
    def _shown_covariances(self) -> dict[Any, pd.DataFrame]:
        """R of all visits by arm (None: of everyone), or of the typical subject."""
        if not self._by_visit:
            return {None: self._covariance_of(self.typical_subject)[0]}
        matrices = [self._labelled(M, self.visits) for M in by_rows.visit_covariances(self._found, self._data.blocks)]
        return dict(zip(self._data.term.arms or (None,), matrices, strict=True))

    @cached_property
    def subject_sizes(self) -> pd.Series:
        """Rows of each subject."""
        sizes = np.bincount(self._data.term.rows.subject, minlength=self.n_subjects)
        return pd.Series(sizes, index=pd.Index(self._data.term.subjects, name=self._data.term.subject_name))

    @property
    def typical_subject(self) -> Any:
        """The first subject that has the most rows."""
        return self._data.term.subjects[int(np.argmax(self.subject_sizes.to_numpy()))]

    @cached_property
    def _clock(self) -> pd.Index:
        """Label of every row within its subject: its visit, or its coordinates."""
        clock = self._data.term.rows.clock
        if self.visits:
            return pd.Index(np.array(self.visits, dtype=object))[clock].infer_objects()
        return pd.Index(clock) if clock.ndim == 1 else pd.MultiIndex.from_arrays(list(clock.T))

    def _labelled(self, matrix: np.ndarray, labels: Any) -> pd.DataFrame:
        labels = pd.Index(labels, name=self._data.term.clock_name or None)
        return pd.DataFrame(matrix, index=labels, columns=labels)

    def _rows_of(self, subject: Any) -> np.ndarray:
        """Positions of a subject's rows, in the order of its clock."""
        term = self._data.term
        if not has_rows(self._data):
            raise DataError("remove_data() took away the rows that this covariance is of: ask for it before")
        at = pd.Index(term.subjects).get_indexer(pd.Index([subject]))[0] if subject is not None else 0
        if at < 0 or (subject is None and len(term.subjects) > 1):
            near = ", ".join(map(repr, term.subjects[:5].tolist()))
            raise DataError(f"there is no {term.subject_name or 'subject'} {subject!r}; there are {near}, …")
        rows = np.flatnonzero(term.rows.subject == at)
        clock = term.rows.clock[rows]
        return rows[np.argsort(clock, kind="stable")] if clock.ndim == 1 else rows

    # ------------------------------------------------------------ criteria

    def information_criteria(self, counting: Literal["lme4", "sas"] = "lme4") -> pd.Series:
        """AIC, AICC and BIC by one of two ways of counting.

        Parameters
        ----------
        counting : {"lme4", "sas"}
            "lme4" (as ``aic``, ``bic``): all parameters, n rows. "sas" (PROC MIXED, R's mmrm): under REML covariance
            parameters only; the n of AICC is rows less fixed effects, that of BIC the number of subjects.
        """
        if counting not in ("lme4", "sas"):
            raise DataError(f"counting={counting!r} is unknown; use 'lme4' or 'sas'")
        sas = counting == "sas"
        k = self.k_cov if sas and self.reml else self.n_params
        n = self.nobs - (self.k_fe if sas and self.reml else 0)
        n = max(n, k + 2)
        groups = self.n_subjects if sas else self.nobs
        values = {
            "AIC": self.deviance + 2.0 * k,
            "AICC": self.deviance + 2.0 * k * n / (n - k - 1.0),
            "BIC": self.deviance + k * np.log(groups),
        }
        return pd.Series(values, name=counting)

    # ------------------------------------------------------------ random effects

    @property
    def _n_variances(self) -> int:
        return sum(not str(name).endswith(" Cov") for name in self._data.covariance_names)

    @property
    def _n_theta(self) -> int:
        return sum(block.n_theta for block in self._data.template)

    @cached_property
    def _bars(self) -> tuple[Fit, float]:
        """The fit as a function of the bars' θ alone, the residual's parameters profiled out, and its N.

        With H = [[A, B], [Bᵀ, C]] and slope (g, h) of log σ̂² the profile has A − BC⁻¹Bᵀ, g − BC⁻¹h and
        2/N' = 2/N + 2hᵀC⁻¹h, so that the covariance of (θ, log σ̂²) is what it is in the whole.
        """
        k, fit, dof = self._n_theta, self.fit, float(self.nobs - (self.k_fe if self.reml else 0))
        H, slope = np.asarray(fit.hessian), np.asarray(fit.log_scale_slope)
        if k == len(H):
            return fit, dof
        try:
            inner = np.linalg.solve(H[k:, k:], np.column_stack([H[k:, :k], slope[k:]]))
        except np.linalg.LinAlgError:
            inner = np.full((len(H) - k, k + 1), np.nan)
        profiled = dataclasses.replace(
            fit,
            theta=fit.theta[:k],
            gradient=fit.gradient[:k],
            hessian=H[:k, :k] - H[:k, k:] @ inner[:, :k],
            log_scale_slope=slope[:k] - H[:k, k:] @ inner[:, k],
        )
        return profiled, 1.0 / (1.0 / dof + float(slope[k:] @ inner[:, k]))

    @handed_out
    def theta(self) -> pd.Series:
        """Relative covariance parameters of the random effects (k,), dimensionless."""
        return pd.Series(self.fit.theta[: self._n_theta], index=self._data.theta_names, name="theta")

    @handed_out
    def bse_re(self) -> pd.Series:
        """Standard errors of the (co)variances of the random effects (k,), response units²."""
        if not self._data.terms:
            return pd.Series([], dtype=float, name="bse_re")
        errors = covariance_standard_errors(self._bars[0], self._data.template, self._bars[1])
        rows, columns = self._data.covariance_positions
        return pd.Series(errors[rows, columns], index=self._data.covariance_names, name="bse_re")

    @handed_out
    def covariance_parameters(self) -> pd.DataFrame:
        """Of the random effects' covariances as people read them: columns grp, parameter, estimate, se, note.

        Those of the residuals are in ``residual_params``.
        """
        terms = zip(self._data.term_labels, self._data.terms, strict=True)
        blocks = [(label, term.block, term.columns) for label, term in terms]
        lines = readings(self._bars[0], blocks, self._bars[1])[:-1] if blocks else []
        return pd.DataFrame(lines, columns=["grp", "parameter", "estimate", "se", "note"])

    @cached_property
    def _random_effects(self) -> tuple[RandomEffects, ...]:
        """Of every factor, its terms side by side; (co)variances between different terms are not computed: NaN."""
        terms = iter(by_rows.random_effects(self._found, self._data.blocks))
        return tuple(_side_by_side([next(terms) for _ in factor.template]) for factor in self._data.factors)

    @property
    def _factor(self) -> Any:
        if not self._data.factors:
            raise DataError("this model has no random effects: its residuals are in .resid and .residuals()")
        return super()._factor

    def is_singular(self, tol: float = 1e-4) -> bool:
        """Whether the fit ended as singular, or a relative standard deviation of random effects is below ``tol``."""
        if self.status is Status.SINGULAR:
            return True
        if not self._data.terms:
            return False
        return bool(covariance.smallest_root(self.fit.theta[: self._n_theta], self._data.template) < tol)

    # ------------------------------------------------------------ residuals

    def residuals(self, type: ResidualType = "response", *, random_effects: bool = True) -> pd.Series:
        """Residuals of the rows that were fitted.

        Parameters
        ----------
        type : {"response", "pearson", "normalized"}
            y − fitted; that over the standard deviation of each residual; that with the correlations taken away too,
            L⁻¹r with LLᵀ the covariance of a subject's residuals, L lower triangular in the order of the clock
            (SAS's ScaledResid, nlme's and mmrm's "normalized"): independent N(0, 1) if the model is right.
        random_effects : bool
            Whether the fitted values hold the BLUPs.
        """
        if type not in RESIDUALS:
            raise DataError(f"type={type!r} is unknown; use {', '.join(map(repr, RESIDUALS))}")
        r = (self.resid if random_effects else self._marginal_residuals).to_numpy()
        if type == "pearson":
            r = r / by_rows.residual_sd(self._found, self._data.blocks)
        elif type == "normalized":
            r = by_rows.normalized(self._found, self._data.blocks, r)
        return pd.Series(r, index=self._data.index, name=f"{type} residual")

    @property
    def _marginal_residuals(self) -> pd.Series:
        values = self._data.y - self._data.offset - self._data.X @ self.fit.beta
        return pd.Series(values, index=self._data.index)

    def acf(
        self, max_lag: int | None = None, type: ResidualType = "normalized", *, alpha: float = 0.05
    ) -> pd.DataFrame:
        """Empirical autocorrelation of the residuals within subjects: columns lag, acf, pairs, limit.

        Lags count visits, or rows in the order of time for structures of distances. ``limit`` is where an
        autocorrelation of independent residuals lies with probability 1 − alpha. ``type`` as of ``residuals``.
        """
        rows = self._data.term.rows
        r = self.residuals(type).to_numpy()
        return autocorrelation(r, rows.subject, self._steps, max_lag, alpha)

    @property
    def _steps(self) -> np.ndarray:
        """(n,) whole-numbered clock of each row within its subject."""
        rows = self._data.term.rows
        if self.visits:
            return rows.clock
        order = np.lexsort((*rows.clock.reshape(self.nobs, -1).T[::-1], rows.subject))
        sizes = np.bincount(rows.subject)
        place = np.arange(self.nobs) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        out = np.empty(self.nobs, int)
        out[order] = place
        return out

    def variogram(self, type: ResidualType = "pearson", *, bins: int = 20) -> pd.DataFrame:
        """Semivariogram of the residuals within subjects: columns distance, semivariance, pairs.

        Distances are those of the structure's clock or coordinates. Classes hold equally many pairs; where no more
        than ``bins`` distances occur, each is one.
        """
        spelled, rows = self._data.term.spelling.correlation, self._data.term.rows
        metric = "euclidean" if spelled is None else dict(spelled.options).get("metric", "euclidean")
        return semivariogram(self.residuals(type).to_numpy(), rows.subject, np.asarray(rows.clock, float), bins, metric)

    # ------------------------------------------------------------ prediction, simulation, refits

    def predict(  # type: ignore[override]
        self,
        newdata: Any = None,
        *,
        random_effects: RandomChoice = True,
        conditional: bool = False,
        allow_new_levels: bool = False,
        offset: Any = None,
    ) -> pd.Series:
        """Predicted means, response units.

        Parameters
        ----------
        newdata : DataFrame or mapping of columns, optional
            The rows that were fitted if None. A missing value gives NaN in its row.
        random_effects, allow_new_levels, offset : as of ``MixedLMResults.predict``.
        conditional : bool
            Given all that was observed of the row's subject: the correlations with its residuals count beside the
            random effects (E[y_new | y]), as in mmrm's ``predict(conditional = TRUE)``. A row that was fitted is
            predicted by its own response. New subjects get their mean.
        """
        if not conditional:
            choice: dict[str, Any] = dict(random_effects=random_effects, allow_new_levels=allow_new_levels)
            return super().predict(newdata, offset=offset, **choice)
        if random_effects is not True:
            raise DataError("conditional=True conditions on all observations of a subject: leave random_effects=True")
        if newdata is None:
            return pd.Series(self._data.y, index=self._data.index, name="predicted")
        rows, new, missing = self._new_rows(newdata, allow_new_levels, offset)
        mean = by_rows.predict(self._found, self._data.blocks, rows.X, new).mean + rows.offset
        return pd.Series(np.where(missing, np.nan, mean), index=rows.labels, name="predicted")

    def _new_rows(self, newdata: Any, allow_new_levels: bool, offset: Any) -> tuple[PredictionRows, Rows, np.ndarray]:
        """Rows (the fitted ones if None) as X and as the covariance see them, and which lack a value."""
        if newdata is None:
            rows = prediction_rows(self._data, None, True)
            return rows, self._data.blocks.rows, rows.missing
        frame = as_frame(newdata)
        rows = prediction_rows(self._data, frame, True, allow_new_levels=allow_new_levels, offset=offset)
        state: Any = self._data.design.state
        new, missing = new_rows(self._data, frame, state.rebuild_residual(frame))
        for part in rows.factors:
            missing |= part.missing
        return rows, new, missing | rows.missing

    def prediction(  # type: ignore[override]
        self,
        newdata: Any = None,
        *,
        random_effects: bool = False,
        conditional: bool = False,
        level: float = 0.95,
        allow_new_levels: bool = False,
        offset: Any = None,
    ) -> pd.DataFrame:
        """Predicted means with standard errors, confidence and prediction intervals.

        Parameters
        ----------
        newdata : DataFrame or mapping of columns, optional
            The rows that were fitted if None.
        random_effects : bool
            BLUPs alone have no intervals here: leave it False, and use ``conditional``.
        conditional : bool
            Given all that was observed of the row's subject, as in ``predict``.
        level, allow_new_levels, offset : as of ``MixedLMResults.prediction``.

        Returns
        -------
        DataFrame
            ``mean``; ``se``, its error through β̂ (the covariance parameters held at their estimates); ``ci_lower``,
            ``ci_upper``; ``pi_lower``, ``pi_upper`` for a new response, which add its variance, given what was observed
            or of the population.
        """
        if random_effects and self._data.terms:
            raise UnsupportedError(
                "random_effects=True has no intervals beside a residual structure: conditional=True has"
            )
        if not 0.0 < level < 1.0:
            raise DataError(f"level={level} is not a probability: pass a number between 0 and 1, such as 0.95.")
        rows, new, missing = self._new_rows(newdata, allow_new_levels or not conditional, offset)
        if not conditional:
            nobody = [np.full(len(codes), -1) for codes in (new.subject, *new.codes)]
            new = new._replace(subject=nobody[0], codes=tuple(nobody[1:]))
        weights = self._data.design.weights if newdata is None else None
        found = by_rows.predict(self._found, self._data.blocks, rows.X, new, weights)
        table = interval_table(found.mean + rows.offset, found.error, found.variance - found.error, level)
        return pd.DataFrame(np.where(missing[:, None], np.nan, table), index=rows.labels, columns=table.columns)

    def simulate(
        self, n: int = 1, *, seed: int | np.random.Generator, random_effects: Literal["new", "conditional"] = "new"
    ) -> pd.DataFrame:
        """Simulated responses of the fitted rows, (n_rows, n), with the fitted correlations: parametric bootstrap.

        Parameters as of ``MixedLMResults.simulate``.
        """
        if random_effects not in ("new", "conditional"):
            raise DataError(f"random_effects={random_effects!r} is unknown; use 'new' or 'conditional'.")
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise DataError(f"n={n!r}: simulate a whole number of responses, 1 or more")
        rng = np.random.default_rng(seed)
        new = random_effects == "new"
        mean = self.fittedvalues.to_numpy() if not new else self._data.X @ self.fit.beta + self._data.offset
        z = rng.standard_normal((self.nobs, n))
        noise = by_rows.correlated(self._found, self._data.blocks, z, given_effects=not new)
        return pd.DataFrame(mean[:, None] + noise, index=self._data.index)

    def refit(self, new_y: Any, *, start: Any = None) -> StructuredResults:
        """Fit the same design to another response (n_rows,), such as a column of ``simulate``."""
        data = self._data.with_response(response_for(self._data, new_y))
        assert isinstance(data, StructuredData)
        return fit_structured(data, self.reml, start, self._options, ddf=self._ddf, vcov=self._vcov or "asymptotic")

    def compare_structures(self, structures: Sequence[str]) -> StructureComparison:
        """Fit other residual structures to the same rows and rank them by AIC and BIC.

        Parameters
        ----------
        structures : words, such as ``["us", "toeph", "ar1h", "cs"]``, which take this model's visit and subject, or
            whole spellings, ``"car1(time | id)"``.
        """
        return compare_structures(self, structures)

    def refit_many(self, Y: Any, **options: Any) -> NoReturn:
        """Not there for structured residuals: refit column by column with ``refit``."""
        raise UnsupportedError("refit_many needs independent residuals: use [fit.refit(Y[c]) for c in Y]")

    def bootstrap(self, n: int = 1000, **options: Any) -> NoReturn:
        """Not there for structured residuals: ``simulate`` and ``refit``."""
        raise UnsupportedError("bootstrap needs independent residuals: refit the columns of simulate(n, seed=…)")

    def profile_re(self, *arguments: Any, **options: Any) -> NoReturn:
        """Not there yet for structured residuals."""
        raise UnsupportedError("profile_re needs independent residuals; standard errors are in .residual_params")

    # ------------------------------------------------------------ report

    def summary(self, title: str | None = None, alpha: float = 0.05, ddf: str | None = None) -> Summary:
        """Criterion, estimates, the residual structure with its matrix, random effects, and how the fit ended.

        ``ddf``: the degrees of freedom of the t tests, see ``coefficients``.
        """
        return summary_of(self, self._data, title, alpha, read_ddf(self.default_ddf if ddf is None else ddf))

    # ------------------------------------------------------------ keeping

    def _keep_before_removal(self) -> None:
        _ = self.subject_sizes, self._shown_covariances, self.status_text, self._bars
        super()._keep_before_removal()

    def remove_data(self) -> None:
        """Forget the rows; see ``Estimates.remove_data``. Conditional predictions go too."""
        super().remove_data()
        self._data = without_residual_rows(self._data)


def fit_structured(
    data: StructuredData,
    reml: Any,
    start: Any,
    options: Any,
    again: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = None,
    ddf: Any = None,
    vcov: Any = "asymptotic",
) -> StructuredResults:
    """The fit with labels on it, after the warning or the error that its status calls for."""
    reml, options = read_reml(reml), read_options(options)
    inferred: dict[str, Any] = {"ddf": None if ddf is None else read_ddf(ddf), "vcov": read_vcov(vcov)}
    if options.backend not in (None, "numpy"):
        raise UnsupportedError("models with residual structures are fitted in NumPy: leave out backend=")
    start = read_start(start, data.blocks.model.size)
    with np.errstate(all="ignore"):
        found = core.fit(data.blocks, reml=reml, start=start, options=options)
    result = StructuredResults(data, found, reml=reml, options=options, again=again, **inferred)
    tell(result, data, found)
    return result


def as_fit(found: ResidualFit, data: StructuredData) -> Fit:
    """The arrays in the record of every fit; its θ holds all the covariance parameters."""
    k = sum(block.n_theta for block in data.template)
    return Fit(
        theta=found.params,
        relative_factor=covariance.factor(found.params[:k], data.template) if k else np.zeros((0, 0)),
        beta=found.beta,
        sigma=np.float64(found.sigma),
        unscaled_cov=found.unscaled_cov,
        deviance=np.float64(found.deviance),
        gradient=found.gradient,
        hessian=found.hessian,
        log_scale_slope=found.log_scale_slope,
        decrease=np.float64(found.decrease),
        iterations=np.int32(found.n_iter),
        status=np.int32(found.status),
        optima=np.int32(found.optima),
        compiled=np.bool_(False),
    )


def _side_by_side(terms: Sequence[RandomEffects]) -> RandomEffects:
    """The effects of several terms of one factor; NaN between them."""
    if len(terms) == 1:
        return terms[0]
    b = np.concatenate([t.b for t in terms], axis=1)
    covs = np.full((2, len(b), b.shape[1], b.shape[1]), np.nan)
    at = 0
    for t in terms:
        own = slice(at, at + t.b.shape[1])
        covs[0, :, own, own], covs[1, :, own, own] = t.conditional_cov, t.prediction_cov
        at = own.stop
    return RandomEffects(b, *covs)


def _correlations(matrix: pd.DataFrame) -> pd.DataFrame:
    sd = pd.Series(np.sqrt(np.diag(matrix)), index=matrix.index)
    return matrix.div(sd, axis=0).div(sd, axis=1)
