"""MixedLMResults: labels on a Fit. Nothing is computed before it is asked for, nothing changes after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from .core.covariance import smallest_root
from .core.effects import random_effects
from .core.henderson import MixedModelEquations
from .core.optimize import NewtonOptions
from .core.records import RandomEffects
from .core.structures import entry
from .data import Factor, ModelData
from .diagnostics import Diagnostics
from .errors import DataError, UnsupportedError
from .fitting import fit_data, fit_without_lost_columns, read_options, read_reml, read_start, settle
from .formula.values import namespace
from .inference.degrees import read_method
from .inference.prediction import (
    Prediction,
    RandomChoice,
    predict_mean,
    prediction_of_rows,
    prediction_of_table,
    prediction_rows,
    prediction_table,
    related_effects,
)
from .inference.quantities import readings
from .inference.simulation import response_for, simulate_responses
from .inference.wald import check_alpha, covariance_standard_errors
from .lazy import handed_out
from .many.bootstrap import Bootstrap, Kind, bootstrap
from .many.responses import MEMORY_LIMIT, BatchOptions, Responses, fit_observed, fit_responses, read_responses
from .many.results import ManyFits
from .many.views import ResponseViews
from .report import components_table, facts_table, structures_table
from .summary import Summary

Refitter = Callable[[Mapping[str, Any], Mapping[str, Any]], "MixedLMResults"]


class MixedLMResults(Diagnostics):
    """A fitted linear mixed model.

    Results are immutable: refitting the model, or changing the data frame it came from, leaves them as
    they were. Variances are in response units², standard deviations in response units.

    Parameters are those of ``Estimates``.
    """

    # ------------------------------------------------------------ variance components

    @handed_out
    def theta(self) -> pd.Series:
        """Relative covariance parameters (k,), dimensionless: the packed factor L per term."""
        return pd.Series(self.fit.theta, index=self._data.theta_names, name="theta")

    @cached_property
    def _covariance(self) -> np.ndarray:
        """Ψ (q, q) of all random effects."""
        L = np.asarray(self.fit.relative_factor)
        return self.scale * (L @ L.T)

    @cached_property
    def _term_covariances(self) -> list[np.ndarray]:
        """Ψ (q, q) of each random term, in formula order."""
        return [self._covariance[columns, columns] for columns in self._data.term_slices]

    @handed_out
    def factor_cov(self) -> Mapping[str, pd.DataFrame]:
        """Ψ of all the effects of each grouping factor, response units²."""
        return {
            factor.name: pd.DataFrame(self._covariance[part, part], index=factor.columns, columns=factor.columns)
            for factor, part in zip(self._data.factors, self._data.factor_slices, strict=True)
        }

    @handed_out
    def cov_re(self) -> pd.DataFrame:
        """Ψ, the covariance of the random effects (block diagonal over the terms), response units²."""
        names = [c for term in self._data.terms for c in term.columns]
        return pd.DataFrame(self._covariance, index=names, columns=names)

    @property
    def cov_re_unscaled(self) -> pd.DataFrame:
        """Ψ/σ̂² = LLᵀ."""
        return self.cov_re / self.scale

    @handed_out
    def varcorr(self) -> pd.DataFrame:
        """lme4's ``as.data.frame(VarCorr(fit))``: columns grp, var1, var2, vcov, sdcor.

        A row per variance (sdcor is the standard deviation) and per covariance that the structure allows
        (sdcor is the correlation, NaN where a variance is zero), then the residual.
        """
        rows: list[tuple[str, str | None, str | None, float, float]] = []
        for label, term, Psi in zip(self._data.term_labels, self._data.terms, self._term_covariances, strict=True):
            sd = np.sqrt(np.diag(Psi))
            rows += [(label, c, None, Psi[i, i], sd[i]) for i, c in enumerate(term.columns)]
            if entry(term.block).uncorrelated:
                continue
            for j, first in enumerate(term.columns):
                for i in range(j + 1, len(term.columns)):
                    product = sd[i] * sd[j]
                    correlation = Psi[i, j] / product if product > 0 else np.nan
                    rows.append((label, first, term.columns[i], Psi[i, j], correlation))
        rows.append(("Residual", None, None, self.scale, self.sigma))
        return pd.DataFrame(rows, columns=["grp", "var1", "var2", "vcov", "sdcor"])

    @handed_out
    def bse_re(self) -> pd.Series:
        """Standard errors of the (co)variances of the random effects (k,), response units².

        By the delta method from the deviance's Hessian, so they scale as variances do (statsmodels
        multiplies profile-scale ones by √σ²). NaN at a singular fit, where no normal approximation holds.
        """
        dof = self.nobs - (len(self.fit.beta) if self.reml else 0)
        errors = covariance_standard_errors(self.fit, self._data.template, dof)
        rows, columns = self._data.covariance_positions
        return pd.Series(errors[rows, columns], index=self._data.covariance_names, name="bse_re")

    @handed_out
    def covariance_parameters(self) -> pd.DataFrame:
        """The parameters of each term's covariance as people read them: columns grp, parameter, estimate, se, note.

        Standard deviations in response units, correlations, the range of an exponential structure, loadings of a
        reduced rank, then the residual standard deviation. Standard errors are by the delta method from the
        deviance's Hessian; where they are NaN, as in a singular fit, ``note`` says why.
        """
        dof = self.nobs - (len(self.fit.beta) if self.reml else 0)
        terms = zip(self._data.term_labels, self._data.terms, strict=True)
        lines = readings(self.fit, [(label, term.block, term.columns) for label, term in terms], dof)
        return pd.DataFrame(lines, columns=["grp", "parameter", "estimate", "se", "note"])

    # ------------------------------------------------------------ random effects

    @cached_property
    def _random_effects(self) -> tuple[RandomEffects, ...]:
        if all(factor.by_code for factor in self._data.factors):
            return random_effects(self.fit, self._data.compressed)
        return related_effects(self._data, self.fit, self._equations)

    @cached_property
    def _equations(self) -> MixedModelEquations:
        """Henderson's equations at the estimates, for prediction errors."""
        return self._data.equations(self.fit)

    @cached_property
    def _blups(self) -> list[np.ndarray]:
        """BLUPs (levels, q) per factor, without padding."""
        pairs = zip(self._data.factors, self._random_effects, strict=True)
        return [np.asarray(effects.b)[: len(factor.levels)] for factor, effects in pairs]

    @handed_out
    def ranef(self) -> Mapping[str, pd.DataFrame]:
        """BLUPs per grouping factor: a DataFrame (levels × effects)."""
        return {
            factor.name: pd.DataFrame(
                effects.b[: len(factor.levels)],
                index=pd.Index(factor.levels, name=factor.name),
                columns=factor.columns,
            )
            for factor, effects in zip(self._data.factors, self._random_effects, strict=True)
        }

    @handed_out
    def ranef_cov(self) -> Mapping[str, np.ndarray]:
        """Var(b | y) with β, θ fixed (lme4's condVar) per factor, (levels, q, q) in the order of ``ranef``."""
        return {
            factor.name: effects.conditional_cov[: len(factor.levels)]
            for factor, effects in zip(self._data.factors, self._random_effects, strict=True)
        }

    @cached_property
    def random_effects(self) -> dict[Any, pd.Series]:
        """BLUPs of the first grouping factor, group by group: group → Series of its effects."""
        frame = self.ranef[self._factor.name]
        rows = zip(frame.index, frame.to_numpy(), strict=True)
        return {group: pd.Series(row, index=frame.columns) for group, row in rows}

    @cached_property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Var(b | y) of the first grouping factor with β, θ fixed: group → DataFrame (q, q)."""
        columns = list(self._factor.columns)
        covs = zip(self._factor.levels, self.ranef_cov[self._factor.name], strict=True)
        return {group: pd.DataFrame(cov, index=columns, columns=columns) for group, cov in covs}

    @handed_out
    def fittedvalues(self) -> pd.Series:
        """Xβ̂ + Zb̂ + offset, for the rows that were fitted."""
        values = self._data.X @ self.fit.beta + self._data.offset
        for factor, b in zip(self._data.factors, self._blups, strict=True):
            rows = b[factor.codes] if factor.membership is None else factor.membership @ b
            values += np.einsum("nq,nq->n", factor.Z, rows)
        return pd.Series(values, index=self._data.index, name="fittedvalues")

    @handed_out
    def resid(self) -> pd.Series:
        """y − fittedvalues, response units."""
        return (self._data.y - self.fittedvalues).rename("resid")

    # ------------------------------------------------------------ prediction, simulation, refits

    def predict(
        self,
        newdata: Any = None,
        *,
        random_effects: RandomChoice = True,
        allow_new_levels: bool = False,
        offset: Any = None,
        memberships: Mapping[str, Any] | None = None,
    ) -> pd.Series:
        """Predicted means, response units.

        Parameters
        ----------
        newdata : DataFrame or mapping of columns, optional
            The rows that were fitted if None. A missing value gives NaN in its row.
        random_effects : bool, or names of grouping factors or of terms ("g", "g.1")
            Which BLUPs to add to the fixed effects; a factor's name stands for all its terms.
        allow_new_levels : bool
            Give levels without training data effects of 0 instead of raising.
        offset : (n,), optional
            Added to the offset that formula and columns give.
        memberships : mapping, optional
            Factor → weights (n, m) of the new rows, for factors that were fitted so.

        Raises
        ------
        DataError
            For new levels, naming the factor and the levels.
        """
        choice = dict(allow_new_levels=allow_new_levels, offset=offset, memberships=memberships)
        rows = prediction_rows(self._data, newdata, random_effects, **choice)
        values = predict_mean(self._data, self.fit, self._blups, rows)
        return pd.Series(values, index=rows.labels, name="predicted")

    def prediction(
        self,
        newdata: Any = None,
        *,
        random_effects: RandomChoice = True,
        level: float = 0.95,
        allow_new_levels: bool = False,
        offset: Any = None,
        weights: Any = None,
        memberships: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predicted means with standard errors, confidence and prediction intervals.

        Parameters
        ----------
        newdata, random_effects, allow_new_levels, offset, memberships : as in ``predict``.
        level : coverage of the normal-theory intervals.
        weights : column name or (n,), optional
            Prior weights of new rows (1 if None); fitted rows have their own.

        Returns
        -------
        DataFrame
            ``mean``; ``se``, the root prediction-error variance of xᵀβ̂ + zᵀb̂ (Henderson's joint covariance
            of β̂ and b̂ − b; the covariance parameters are held at their estimates); ``ci_lower``,
            ``ci_upper`` for the mean; ``pi_lower``, ``pi_upper`` for a new response, which add σ̂²/w and the
            variance of random effects that are left out or belong to new levels.

        Notes
        -----
        One sparse factor of the mixed-model equations and one solve per row, up to O(K²) each for K crossed
        effects: meant for moderate numbers of rows.

        References
        ----------
        Henderson (1975), Biometrics 31(2).
        """
        choice = dict(allow_new_levels=allow_new_levels, offset=offset, memberships=memberships, weights=weights)
        rows = prediction_rows(self._data, newdata, random_effects, left_out=True, **choice)
        return prediction_table(self._data, self.fit, self._blups, rows, level, self._equations)

    def get_prediction(
        self, exog: Any = None, transform: bool = True, *, random_effects: bool = False, **options: Any
    ) -> Prediction:
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
            return prediction_of_table(table, level, self._reference)
        if random_effects:
            raise UnsupportedError("random_effects=True needs a formula model and a DataFrame of new rows")
        return prediction_of_rows(exog, self.fit, self._reference)

    def simulate(
        self, n: int = 1, *, seed: int | np.random.Generator, random_effects: Literal["new", "conditional"] = "new"
    ) -> pd.DataFrame:
        """Simulated responses of the fitted rows, (n_rows, n): parametric bootstrap at the estimates.

        Parameters
        ----------
        n : number of responses.
        seed : of NumPy's default generator, or a generator.
        random_effects : "new" draws them from N(0, Ψ) each time; "conditional" keeps the BLUPs.
        """
        if random_effects not in ("new", "conditional"):
            raise DataError(f"random_effects={random_effects!r} is unknown; use 'new' or 'conditional'.")
        b = self._blups if random_effects == "conditional" else None
        return pd.DataFrame(simulate_responses(self._data, self.fit, b, n, seed), index=self._data.index)

    def refit(self, new_y: Any, *, start: Any = None) -> MixedLMResults:
        """Fit the same design to another response (n_rows,), such as a column of ``simulate``.

        A Series with other labels than the fitted rows is aligned to them. This result stays as it is.
        """
        y = response_for(self._data, new_y)
        return fit_model(self._data.with_response(y), self.reml, start, self._options)

    def refit_many(
        self,
        Y: Any,
        *,
        mask: Any = None,
        start: Any = None,
        memory_limit: int = MEMORY_LIMIT,
        progress: bool = True,
    ) -> ManyFits:
        """Fit the same design to many responses Y (n_rows, R), such as all of ``simulate``.

        NaN marks a missing value, ``mask`` (n_rows, R) is True where a response was observed; see ``fit_many``.
        Of designs with several grouping factors and many effects, and where rows are missing, each response is a fit of
        its own, over the cores.
        """
        responses = read_responses(Y, self.nobs, mask, self._data.index)
        settings = BatchOptions(progress, memory_limit, self._options)
        return refit_responses(self._data, responses, self.reml, start, settings)

    def bootstrap(
        self,
        n: int = 1000,
        *,
        seed: int,
        kind: Kind = "parametric",
        factor: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
        progress: bool = True,
    ) -> Bootstrap:
        """Fit n bootstrap samples; the result gives standard errors, bias and intervals.

        Parameters
        ----------
        n : number of samples.
        seed : int
            The same seed gives the same samples, however the work is cut.
        kind : {"parametric", "residual", "cases"}
            New effects and errors from the fitted normal model; resampled BLUPs and residuals, inflated to the
            estimated (co)variances (Carpenter, Goldstein & Rasbash 2003); whole groups with replacement.
        factor : str, optional
            Of several grouping factors the one whose levels "cases" draws, and BCa intervals leave out, with the levels
            inside them; factors that cross it keep their levels. None is the outermost of a nested chain.
        memory_limit : bytes of working memory.
        progress : show a bar for what takes more than two seconds.

        References
        ----------
        McCullagh (2000), Bernoulli 6, 285–301, why crossed factors cannot be drawn all at once.
        Efron & Tibshirani (1993); Carpenter, Goldstein & Rasbash (2003), JRSS C 52, 431–443.
        """
        settings = BatchOptions(progress, memory_limit, self._options)
        return bootstrap(self._data, self.fit, self._blups, n, seed, kind, self.reml, settings, factor)

    def update(
        self, formula: str | None = None, data: Any = None, *, reml: bool | None = None, **changes: Any
    ) -> MixedLMResults:
        """Fit again with some arguments of ``lmer`` changed.

        Parameters
        ----------
        formula : str, optional
            Where ``.`` stands for the old side: ``". ~ . + x - z"``, ``". ~ . - (1 | g)"``.
        data : DataFrame, optional
            The data of the first fit if None.
        reml : bool, optional
        **changes
            Any other argument of ``lmer``; ``weights=None`` takes the weights away.

        Returns
        -------
        MixedLMResults
            New; this result stays as it is. ``start`` is not carried over.
        """
        if self._again is None:
            raise UnsupportedError("update() needs a model that lmer() fitted; call the constructor again instead.")
        if formula is not None and not isinstance(formula, str):
            raise DataError(f"update(formula={formula!r}): give text such as '. ~ . + x'")
        given = {"formula": formula, "data": data, "reml": reml}
        return self._again({**{k: v for k, v in given.items() if v is not None}, **changes}, namespace(1))

    # ------------------------------------------------------------ singularity

    def is_singular(self, tol: float = 1e-4) -> bool:
        """Whether a relative standard deviation that the fit was free to choose is below ``tol`` (as lme4)."""
        return bool(smallest_root(np.asarray(self.fit.theta), self._data.template) < tol)

    def re_pca(self) -> dict[str, pd.DataFrame]:
        """Principal components of each factor's random effects (lme4's ``rePCA``).

        Returns
        -------
        dict of DataFrame
            A row per component: ``sd`` relative to σ̂, ``proportion`` and ``cumulative`` of the variance, then
            the loadings on the effects. At a singular fit the rows with ``sd`` 0 are the directions in which
            the random effects do not vary.
        """
        L = np.asarray(self.fit.relative_factor)
        out = {}
        for factor, span in zip(self._data.factors, self._data.factor_slices, strict=True):
            directions, sd, _ = np.linalg.svd(L[span, span])
            directions = directions * np.where(directions[np.abs(directions).argmax(0), range(len(sd))] < 0, -1, 1)
            share = sd**2 / max(float((sd**2).sum()), np.finfo(float).tiny)
            table = pd.DataFrame({"sd": sd, "proportion": share, "cumulative": share.cumsum()})
            loadings = pd.DataFrame(directions.T, columns=list(factor.columns))
            table = pd.concat([table, loadings], axis=1)
            table.index = pd.Index([f"PC{i + 1}" for i in range(len(sd))])
            out[factor.name] = table
        return out

    # ------------------------------------------------------------ report

    def plot(self, figure: Any = None) -> Any:
        """Four pictures of residuals and random effects, a matplotlib Figure; ``lme_jax.plots`` has them singly."""
        from .plots import overview

        return overview(self, figure)

    def report(self, path: Any = None, *, title: str | None = None, ddf: str | None = None) -> str:
        """The fit as one self-contained HTML page, written to ``path`` if one is given; see ``lme_jax.page.report``."""
        from .page import report

        return report(self, path, title=title, ddf=ddf)

    def summary(self, title: str | None = None, alpha: float = 0.05, ddf: str | None = None) -> Summary:
        """Criterion, estimates with standard errors, variance components, and how the fit ended.

        ``ddf``: the degrees of freedom of the t tests, see ``coefficients``.
        """
        ddf = self.default_ddf if ddf is None else read_method(ddf)
        tables = [facts_table(self, self._data), self._estimates(alpha, ddf), components_table(self.varcorr)]
        steps = int(self.fit.iterations)
        notes = [f"The optimiser {self.status.text} after {steps} evaluation{'' if steps == 1 else 's'};"]
        notes.append(f"½gᵀH⁻¹g = {float(self.fit.decrease):.1e} deviance units remain.")
        if self._data.n_dropped:
            notes.append(f"{self._data.n_dropped} rows with missing values were left out.")
        if self._data.dropped_columns:
            notes.append(f"Dropped because other columns determine them: {', '.join(self._data.dropped_columns)}.")
        if self.singular and ddf == "satterthwaite":
            notes.append("Degrees of freedom take what is estimated at its bound, a variance of zero, as known.")
        kind = "z tests" if ddf == "normal" else f"t tests, degrees of freedom: {ddf.title()}"
        captions = ["", f"Estimates ({kind}; fixed effects by GLS)", "Random effects"]
        if any(not (e.free or e.uncorrelated) for e in (entry(term.block) for term in self._data.terms)):
            tables.append(structures_table(self.covariance_parameters))
            captions.append("Covariance structures")
        return Summary(title or "Linear mixed model fit", tables, tuple(captions), tuple(notes))

    def _estimates(self, alpha: float, ddf: str) -> pd.DataFrame:
        table = self.coefficients(ddf, 1.0 - check_alpha(alpha))
        letter = "z" if ddf == "normal" else "t"
        limits = [f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"]
        columns = ["Coef.", "Std.Err.", "df", letter, f"P>|{letter}|", *limits]
        fixed = table.set_axis(columns, axis=1).drop(columns=["df"] if ddf == "normal" else [])
        columns = list(fixed.columns)
        values = self._covariance[self._data.covariance_positions]
        components = pd.DataFrame({"Coef.": values}, index=list(self._data.covariance_names))
        components = components.iloc[self._shown_order].assign(**{"Std.Err.": self.bse_re.to_numpy()})
        return pd.concat([fixed, components]).reindex(columns=columns)

    @property
    def _shown_order(self) -> Any:
        """The order of the (co)variances in ``bse_re`` and the summary."""
        return slice(None)

    # ------------------------------------------------------------ keeping

    def _keep_before_removal(self) -> None:
        super()._keep_before_removal()
        for name in ("bse_re", "_blups", "ranef", "ranef_cov"):
            getattr(self, name)
        self.summary()

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().as_html()

    @property
    def _factor(self) -> Factor:
        return self._data.factors[0]


def fit_model(
    data: ModelData, reml: bool, start: Any, options: NewtonOptions, again: Refitter | None = None
) -> MixedLMResults:
    """Fit compressed data and tell the person how it ended; ``again`` serves ``update``."""
    found = fit_data(data, reml, start, options)
    return MixedLMResults(data, found, reml=reml, options=options, again=again)


# ---------------------------------------------------------------- many fits


def refit_responses(data: ModelData, responses: Responses, reml: bool, start: Any, settings: BatchOptions) -> ManyFits:
    """Fit all the responses and label them; warns once of those that did not reach an optimum."""
    reml, newton = read_reml(reml), read_options(settings.newton)
    views = ResponseViews(make=MixedLMResults, reml=reml, options=newton, design=data, responses=responses)
    how: dict[str, Any] = dict(reml=reml, start=read_start(start, data.theta_names), options=settings)
    lanes = fit_responses(data, responses, **how)
    kept = fit_without_lost_columns(
        lanes.fit,
        lanes.identified,
        lanes.spread,
        views.data,
        lambda some, keep: fit_observed(data.columns(keep), responses, some, **how),
    )
    views = dataclasses.replace(views, kept=kept)
    fit = settle(lanes.fit, lanes.identified, lanes.spread, views.data)
    many = ManyFits(fit, data, responses.names, reml=reml, n_obs=lanes.n_obs, views=views)
    many.warn_of_failures()
    return many
