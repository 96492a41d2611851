"""``Diagnostics``: what a result says about how far its fit, and its assumptions, can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from .core.deletion import RowTerms
from .core.henderson import MixedModelEquations
from .core.records import RandomEffects
from .core.sandwich import Kind
from .data import Factor
from .errors import DataError
from .inference import checks, explained, influence
from .inference.checks import Check, Finding
from .inference.influence import Influence
from .inference.robust import RobustEstimates, outermost, robust
from .many.bootstrap import Jackknife
from .many.responses import BatchOptions
from .profiles import Profiles

Residuals = Literal["response", "pearson", "scaled", "normalized", "marginal", "conditional", "studentized"]


class Diagnostics(Profiles):
    """Robust errors, residuals, influence and R² of a result; see ``MixedLMResults``."""

    fittedvalues: Any
    resid: Any

    if TYPE_CHECKING:  # of the result

        @cached_property
        def _equations(self) -> MixedModelEquations: ...
        @cached_property
        def _random_effects(self) -> tuple[RandomEffects, ...]: ...
        @cached_property
        def _covariance(self) -> np.ndarray: ...

    def robust(self, cluster: Any = None, type: Kind = "CR2") -> RobustEstimates:
        """Fixed effects with a cluster-robust covariance, valid where the covariance of the model is wrong.

        Parameters
        ----------
        cluster : grouping factor by name, or labels of the fitted rows (n,)
            Rows of two clusters share no random effect; None is the factor whose levels contain those of all others.
        type : {"CR2", "CR0", "CR1", "CR1S", "CR3"}
            Bell & McCaffrey's, unbiased where the model is right; without correction; times m/(m − 1) of m clusters;
            as Stata; nearly the jackknife.

        Returns
        -------
        RobustEstimates
            ``cov``, ``coefficients`` (with Satterthwaite's degrees of freedom), ``table(R)``, ``test(R)`` (HTZ).

        Notes
        -----
        clubSandwich's figures. O(rows), and for CR2 a decomposition per cluster of order effects + p, or its rows if
        these are fewer or have prior weights.

        References
        ----------
        Bell & McCaffrey (2002), Survey Methodology 28; Pustejovsky & Tipton (2018), J. Bus. Econ. Stat. 36.
        """
        return robust(self._whole, self.fit, cluster, type)

    # ------------------------------------------------------------ rows

    @cached_property
    def _row_terms(self) -> RowTerms:
        return influence.row_terms(self._whole, self._equations)

    def residuals(self, type: Residuals = "response") -> pd.Series:
        """Residuals of the fitted rows.

        Parameters
        ----------
        type : {"response", "pearson", "scaled", "normalized", "marginal", "conditional", "studentized"}
            y − fitted, response units ("conditional" is another name); times √w; times √w/σ̂ ("normalized" too, since
            the residuals are independent); y − offset − Xβ̂; scaled and over √(1 − leverage), as lme4's ``rstudent``.
        """
        if type not in get_args(Residuals):
            raise DataError(f"type={type!r} is unknown; use one of {', '.join(get_args(Residuals))}")
        conditional = self.resid.to_numpy()
        values = influence.residuals(self._whole, self.fit, conditional, type, lambda: self._row_terms.leverage)
        return pd.Series(values, index=self._data.index, name=f"resid_{type}")

    def hatvalues(self) -> pd.Series:
        """Leverage (n,): how far a response moves its own fitted value, θ kept. Its sum counts effective parameters."""
        return pd.Series(self._row_terms.leverage, index=self._data.index, name="hatvalues")

    def cooks_distance(self) -> pd.Series:
        """lme4's Cook's distances (n,) of the rows, from conditional residuals and leverages; see ``influence`` too."""
        scaled, leverage = self.residuals("scaled").to_numpy(), self._row_terms.leverage
        values = influence.cooks_of_leverage(scaled, leverage, self.k_fe)
        return pd.Series(values, index=self._data.index, name="cooks_distance")

    # ------------------------------------------------------------ deletion

    def influence(self, by: str | None = None, *, refit: bool = True, progress: bool = True) -> Influence:
        """What the fit would be without each row, or without each level of a grouping factor.

        Parameters
        ----------
        by : a grouping factor; None is the rows, for which θ is kept.
        refit : whether the model is fitted again without each level; else θ is kept, which costs next to nothing where
            no random effect is shared by two levels, and one evaluation per level elsewhere.
        progress : show a bar for what takes more than two seconds.

        Returns
        -------
        Influence
            ``cooks``, ``dfbeta``, ``dfbetas``, ``covratio``, ``estimates``, ``sigma_deleted``, ``table``.

        Notes
        -----
        lme4's distances of a group are (J − p)/J times ``cooks``, J groups.
        """
        if by is None:
            return influence.of_rows(self._whole, self.fit, self._row_terms, self.resid.to_numpy(), self.reml)
        factor = self._grouping(by)
        if not refit:
            apart = all(other.is_inside(factor) for other in self._whole.factors)
            kept = influence.of_levels if apart else influence.of_crossed_levels
            return kept(self._whole, self.fit, factor, self.reml)
        lanes = Jackknife(self._whole, self.fit, self.reml, BatchOptions(progress, newton=self._options), by)()
        return influence.of_refits(self._whole, self.fit, factor, lanes.fit, np.asarray(lanes.converged))

    def _grouping(self, name: str) -> Factor:
        names = [factor.name for factor in self._whole.factors]
        if name not in names:
            raise DataError(f"by={name!r} is no grouping factor of the model: give one of {', '.join(names)}")
        return self._data.factors[names.index(name)]

    # ------------------------------------------------------------ variance

    def mahalanobis(self) -> dict[str, pd.DataFrame]:
        """Per grouping factor squared Mahalanobis distances of the BLUPs, their degrees of freedom and χ² p-values."""
        parts = zip(self._spans, self._random_effects, strict=True)
        return {f.name: checks.distances(f, effects, self._covariance[at, at]) for (f, at), effects in parts}

    @property
    def _spans(self) -> list[tuple[Factor, slice]]:
        """Every grouping factor with the place of its effects."""
        return list(zip(self._whole.factors, self._whole.factor_slices, strict=True))

    def variance_partition(self, *, by_term: bool = False) -> pd.DataFrame:
        """Variance, and its share, of the fixed part, of every random term (mean over the rows) and of the residual.

        Parameters
        ----------
        by_term : give every fixed term its covariance with the fixed part, which adds up to the variance of that.
        """
        found = explained.shares(self._whole, self.fit)
        fixed = explained.fixed_shares(self._whole, self.fit) if by_term else {"fixed": found.fixed}
        rows = {**fixed, **found.random, "residual": found.residual}
        variance = pd.Series(rows, name="variance")
        return pd.DataFrame({"variance": variance, "share": variance / found.total})

    def r2(self) -> pd.Series:
        """Nakagawa & Schielzeth's R², with Johnson's mean variance for random slopes: ``marginal``, ``conditional``."""
        found = explained.shares(self._whole, self.fit)
        values = [found.fixed / found.total, 1.0 - found.residual / found.total]
        return pd.Series(values, index=["marginal", "conditional"], name="r2")

    def icc(self, by: str | None = None, *, level: float | None = None) -> pd.Series:
        """Intraclass correlation, ``adjusted`` and ``unadjusted``.

        The share of the random effects in the variance that the fixed effects leave, and in all variance.

        Parameters
        ----------
        by : a grouping factor, whose share alone is meant (its repeatability); None is all of them.
        level : give profile-likelihood limits ``lower`` and ``upper`` of ``adjusted`` too.
        """
        if by is not None:
            self._grouping(by)
        found = explained.shares(self._whole, self.fit)
        functions = explained.icc_functions(self._whole, by)
        ((name, (share, _, _)),) = functions.items()
        adjusted = share({f.name: self._covariance[at, at] for f, at in self._spans}, self.scale)
        values: dict[str, Any] = {"adjusted": adjusted, "unadjusted": adjusted * (1.0 - found.fixed / found.total)}
        if level is not None:
            line = self.profile_ci(functions, level).loc[name]
            values |= {"lower": line["lower"], "upper": line["upper"]}
        return pd.Series(values, name="icc")

    def repeatability(self, level: float = 0.95) -> pd.DataFrame:
        """The adjusted ICC of every grouping factor by itself with profile-likelihood limits."""
        rows = {factor.name: self.icc(factor.name, level=level) for factor in self._whole.factors}
        return pd.DataFrame.from_dict(rows, orient="index")[["adjusted", "lower", "upper"]].rename(
            columns={"adjusted": "estimate"}
        )

    def design_effect(self) -> pd.DataFrame:
        """Per grouping factor ``icc``, ``size`` (Σm²/n), Kish's ``design_effect`` and the ``effective_n`` of a mean."""
        return explained.design_effects(self._whole, self.fit)

    def vif(self) -> pd.DataFrame:
        """Generalised variance inflation factors of the terms: ``gvif``, ``df``, ``per_df`` = gvif^(1/(2·df))."""
        return explained.inflation(self._whole, self.fit)

    # ------------------------------------------------------------ in words

    def check(self) -> Check:
        """What looks wrong with the fit, in words: printing it is reading it.

        Looks at the search, the shape and the spread of the residuals, outlying rows and levels, the order of the rows,
        influential levels, collinear terms and the numbers of rows and levels. What is told of is both larger than
        chance has it and large enough to matter.
        """
        return Check(self._findings())

    def _findings(self) -> Iterator[Finding]:
        decrease = float(self.fit.decrease)
        yield from checks.of_search(self.status.text, self.converged, self.singular, decrease, self.n_optima)
        yield from checks.of_data(self._whole)
        studentized = self.residuals("studentized").to_numpy()
        yield from checks.of_residuals(studentized, self.fittedvalues.to_numpy(), self._data.index)
        inner = max(self._data.factors, key=lambda factor: len(factor.levels))
        yield from checks.of_order(self.residuals("scaled").to_numpy(), inner)
        for factor, table in zip(self._data.factors, self.mahalanobis().values(), strict=True):
            yield from checks.of_effects(factor, table)
        try:
            top = outermost(self._whole)
        except DataError:
            yield from checks.of_influence(self.influence(), "row")
        else:
            yield from checks.of_influence(self.influence(top.name, refit=False), top.name)
        yield from checks.of_columns(self.vif())
