"""StructuredResults: labels on a fit with correlated or unequal residuals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd

from ..core.residual import fit as core
from ..core.residual import rows as by_rows
from ..core.residual.stacks import Rows
from ..diagnostics import Residuals
from ..errors import DataError, UnsupportedError
from ..fitting import read_options, read_reml
from ..formula.values import as_frame
from ..inference.likelihood_ratio import LinearFit
from ..inference.prediction import PredictionRows, RandomChoice, interval_table, prediction_rows
from ..inference.simulation import response_for
from ..summary import Summary
from .comparison import StructureComparison, compare_structures
from .data import WITHOUT, StructuredData, new_rows, without_residual_rows
from .degrees import read_ddf
from .diagnostics import autocorrelation, semivariogram
from .many import ManyStructured, read_many, refits
from .outcome import read_start, tell
from .report import summary_of
from .robust import read_vcov
from .structure import ResidualStructure

RESIDUALS = ("response", "conditional", "marginal", "pearson", "normalized")


class StructuredResults(ResidualStructure):
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

    # ------------------------------------------------------------ residuals

    def residuals(self, type: Residuals = "response", *, random_effects: bool = True) -> pd.Series:
        """Residuals of the rows that were fitted.

        Parameters
        ----------
        type : {"response", "conditional", "marginal", "pearson", "normalized"}
            y − fitted ("conditional" is another name); y − offset − Xβ̂; y − fitted over the standard deviation of each
            residual; that with the correlations taken away too, L⁻¹r with LLᵀ the covariance of a subject's residuals,
            L lower triangular in the order of the clock (SAS's ScaledResid, nlme's and mmrm's "normalized"):
            independent N(0, 1) if the model is right.
        random_effects : bool
            Whether the fitted values hold the BLUPs ("marginal": they do not).
        """
        if type not in RESIDUALS:
            raise DataError(f"type={type!r} is unknown; use {', '.join(map(repr, RESIDUALS))}")
        given = random_effects and type != "marginal"
        r = (self.resid if given else self._marginal_residuals).to_numpy()
        if type == "pearson":
            r = r / by_rows.residual_sd(self._found, self._data.blocks)
        elif type == "normalized":
            r = by_rows.normalized(self._found, self._data.blocks, r)
        return pd.Series(r, index=self._data.index, name=f"{type} residual")

    @property
    def _marginal_residuals(self) -> pd.Series:
        values = self._data.y - self._data.offset - self._data.X @ self.fit.beta
        return pd.Series(values, index=self._data.index)

    def acf(self, max_lag: int | None = None, type: Residuals = "normalized", *, alpha: float = 0.05) -> pd.DataFrame:
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

    def variogram(self, type: Residuals = "pearson", *, bins: int = 20) -> pd.DataFrame:
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

    def _refused(self, *arguments: Any, **options: Any) -> NoReturn:
        """Not there for structured residuals: its formula takes them as independent and of one variance."""
        raise UnsupportedError(WITHOUT)

    def profile_ci(self, *arguments: Any, **options: Any) -> NoReturn:
        """Not there for structured residuals: ``residual_intervals(method="profile")``."""
        raise UnsupportedError("profile limits beside a residual structure are residual_intervals(method='profile')")

    profile = profile_ci

    def compare(self, *others: Any, **options: Any) -> NoReturn:
        """Not there for structured residuals: ``compare_lr_test`` of two, ``compare_structures`` of many."""
        raise UnsupportedError("models with residual structures are compared by compare_lr_test and compare_structures")

    def without_random_effects(self) -> LinearFit:
        """The fixed effects with independent residuals of one variance, of a model without random effects."""
        if self._data.terms:
            raise UnsupportedError(
                "this model has random effects and a residual structure, which would go too: fit the smaller one, "
                "gls(formula, data, residual=…), and compare_lr_test with it"
            )
        return super().without_random_effects()

    def _bootstrapped(self, *arguments: Any) -> NoReturn:
        raise UnsupportedError("of structured residuals bootstrap(n, seed=…).intervals() has the limits")

    # What would give numbers of another model.
    hatvalues = property(_refused)
    cooks_distance = influence = check = ranova = _refused
    variance_partition = r2 = icc = repeatability = design_effect = report = conditional_aic = _refused

    def refit_many(self, Y: Any, *, start: Any = None, progress: bool = True) -> ManyStructured:  # type: ignore[override]
        """Fit the same design to many responses Y (n_rows, R), such as all of ``simulate``.

        One covariance by visit, or one an arm, is fitted to all of them at once; others one after the other.

        Parameters
        ----------
        Y : DataFrame or array; no missing values.
        start : of every search; None is each response's own.
        progress : show a bar for what takes more than two seconds.
        """
        frame = read_many(Y, self.nobs, self._data.index)
        return refits(self, frame, read_start(start, self._data.blocks.model.size), progress)

    def _like(self, found: core.ResidualFit) -> StructuredResults:
        """A fit of another response of the same design, for its estimates."""
        return StructuredResults(self._data, found, reml=self.reml, options=self._options)

    def bootstrap(self, n: int = 1000, *, seed: int, progress: bool = True) -> ManyStructured:  # type: ignore[override]
        """Parametric bootstrap: n responses drawn from the fitted model and fitted again.

        The result has ``estimates``, ``standard_errors()``, ``bias()`` and percentile ``intervals()`` of the fixed
        effects and of every parameter of the covariance.
        """
        return self.refit_many(self.simulate(n, seed=seed), progress=progress)

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
        _ = self.subject_sizes, self.status_text, self._bars
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
