"""``ResidualStructure``: what a fit says of the covariance of its residuals, its tests and its random effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.special

from ..core import covariance
from ..core.fixed_effects import Jets
from ..core.optimize import NewtonOptions
from ..core.records import Fit, RandomEffects
from ..core.residual import inference
from ..core.residual import rows as by_rows
from ..core.residual.fit import ResidualFit
from ..core.residual.profiles import limits
from ..core.residual.terms import Parameter
from ..core.types import Status
from ..errors import DataError
from ..inference.degrees import Reference, between_within, by_column
from ..inference.quantities import readings
from ..inference.robust import RobustEstimates
from ..inference.wald import check_alpha, covariance_standard_errors
from ..keeping import has_rows
from ..lazy import handed_out
from ..results import MixedLMResults
from .data import StructuredData
from .degrees import KENWARD_ROGER, kenward_roger_observed, read_ddf
from .outcome import status_text
from .parameters import parameter_table
from .robust import robust


class ResidualStructure(MixedLMResults):
    """The covariance of a model with structured residuals, its tests and random effects; see ``StructuredResults``."""

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
            return self._robust.reference
        df = np.full(self.k_fe, alike[ddf]) if ddf in alike else self._degrees_of_design(ddf)
        return by_column(ddf, self._robust.cov.to_numpy(), df)

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

    def residual_intervals(
        self, alpha: float = 0.05, method: Literal["transformed", "profile"] = "transformed"
    ) -> pd.DataFrame:
        """``residual_params`` with intervals of another level, 1 − alpha, or by another method.

        Parameters
        ----------
        method : {"transformed", "profile"}
            Symmetric on the scale of ``residual_params``; or where −2 log L (the REML criterion), all other parameters
            at their best, has risen by the quantile of χ²₁: by root finding, nothing is interpolated.

        References
        ----------
        Venzon & Moolgavkar (1988), Appl. Stat. 37, 87–94.
        """
        if method not in ("transformed", "profile"):
            raise DataError(f"method={method!r} is unknown; use 'transformed' or 'profile'")
        if method == "transformed":
            return parameter_table(self._parameters, self._data.term, alpha)
        rise = float(scipy.special.ndtri(1.0 - check_alpha(alpha) / 2.0)) ** 2
        found = limits(self._found, self._data.blocks, reml=self.reml, rise=rise)
        return parameter_table(self._parameters, self._data.term, alpha, found)

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
