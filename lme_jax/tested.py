"""``Tested``: the part of every result that tests its fixed effects with denominator degrees of freedom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from .comparison import Comparison, compare, conditional_aic, dropped_terms, quietly, random_anova
from .core.fixed_effects import Jets, first_jets, jets
from .core.optimize import NewtonOptions
from .core.records import Fit
from .data import ModelData, NoRows
from .errors import DataError, UnsupportedError
from .inference import degrees
from .inference.degrees import Reference
from .inference.hypotheses import hypotheses
from .inference.linear_tests import joint_test, row_tests
from .inference.term_hypotheses import hypotheses as term_hypotheses
from .inference.term_hypotheses import read_type, structure
from .keeping import has_rows

Statistic = Literal["F", "chisq"]


@dataclass(frozen=True)
class HypothesisTest:
    """The test of Lβ = c.

    Attributes
    ----------
    table : each row alone: estimate, se, df, statistic, p, lower, upper.
    statistic : F of all rows together, times ``scale`` (Kenward & Roger's factor; 1 otherwise); χ²/df_num if df_denom
        is infinite.
    df_num : rank of L; df_denom; pvalue; method : of the degrees of freedom.
    """

    table: pd.DataFrame
    statistic: float
    df_num: int
    df_denom: float
    pvalue: float
    scale: float
    method: str

    def __repr__(self) -> str:
        head = f"F({self.df_num}, {self.df_denom:.6g}) = {self.statistic:.6g}, p = {self.pvalue:.4g}"
        if np.isinf(self.df_denom):
            head = f"chi2({self.df_num}) = {self.df_num * self.statistic:.6g}, p = {self.pvalue:.4g}"
        return f"{head} ({self.method})\n{self.table.to_string()}"


class Tested:
    """Coefficients, tests and analysis of variance; see ``Estimates``."""

    if TYPE_CHECKING:
        _data: ModelData
        _held: np.ndarray
        _options: NewtonOptions

        @property
        def fit(self) -> Fit: ...
        @property
        def reml(self) -> bool: ...
        @property
        def scale(self) -> float: ...
        @property
        def nobs(self) -> int: ...
        @property
        def singular(self) -> bool: ...
        @property
        def _exog_names(self) -> tuple[str, ...]: ...

    # ------------------------------------------------------------ degrees of freedom

    def _jets(self, natural: bool) -> Jets:
        """Cov β̂ and its derivatives in the parameters that were estimated; kept."""
        kept: dict[bool, Jets] = self.__dict__.setdefault("_kept_jets", {})
        if natural not in kept:
            if isinstance(self._data.__dict__.get("compressed"), NoRows):
                raise DataError("remove_data() took away what these degrees of freedom need: ask for them before it")
            kept[natural] = self._new_jets(natural)
        return kept[natural]

    def _new_jets(self, natural: bool) -> Jets:
        held = self._held.any()
        if natural:
            found = jets(self.fit, self._data.compressed, reml=self.reml, second=True, natural=not held)
        else:
            found = first_jets(self.fit, self._data.compressed, reml=self.reml)
        return degrees.of_parameters(found, np.append(~self._held, True)) if held else found

    @property
    def default_ddf(self) -> degrees.Method:
        """Satterthwaite's under REML, where estimates of variances allow for the fixed effects, else none."""
        return "satterthwaite" if self.reml else "normal"

    def _reference_of(self, ddf: str | None) -> Reference:
        """What tests refer to, by the name of a method."""
        method = self.default_ddf if ddf is None else degrees.read_method(ddf)
        cov = self.scale * np.asarray(self.fit.unscaled_cov)
        if method == "satterthwaite":
            return degrees.satterthwaite(self._jets(False))
        if method == "kenward-roger":
            if not self.reml:
                raise DataError("Kenward and Roger's degrees of freedom are those of a REML fit: fit with reml=True")
            return degrees.kenward_roger(self._jets(True))
        if method == "residual":
            return degrees.residual(cov, self.nobs)
        if method == "normal":
            return degrees.normal(cov)
        return degrees.by_column(method, cov, self._degrees_of_design(method))

    def _degrees_of_design(self, method: str) -> np.ndarray:
        """(p,) degrees of freedom that the design alone determines."""
        factors = sorted(self._data.factors, key=lambda f: len(f.levels))
        if not all(f.by_code for f in factors):
            raise UnsupportedError(f"ddf={method!r} needs grouping factors with one level per row, independent ones")
        chain = [np.asarray(f.codes) for f in factors]
        for outer, inner in itertools.pairwise(chain):
            pairs = len(np.unique(outer.astype(np.int64) * (int(inner.max()) + 1) + inner))
            if pairs > len(np.unique(inner)):
                raise UnsupportedError(f"ddf={method!r} needs nested grouping factors: use 'satterthwaite'")
        if method == "between-within":
            return degrees.between_within(self._data.X, chain[0])
        return degrees.containment(self._data.X, chain)

    # ------------------------------------------------------------ tests

    def coefficients(self, ddf: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """The fixed effects: columns estimate, se, df, statistic, p, lower, upper.

        Parameters
        ----------
        ddf : {"satterthwaite", "kenward-roger", "containment", "between-within", "residual", "normal"}, optional
            How many degrees of freedom the t tests have, infinite ones for the normal. None: Satterthwaite's under
            REML, the normal under ML. "kenward-roger" brings standard errors of its own.
        level : coverage of the limits.

        Notes
        -----
        Where a variance is estimated as zero, or a correlation as ±1, Satterthwaite's count it as known; Kenward and
        Roger's, from the expected information of the (co)variances, as estimated.

        References
        ----------
        See ``inference.degrees``.
        """
        L = np.eye(len(self._exog_names))
        table = row_tests(L, np.zeros(len(L)), np.asarray(self.fit.beta), self._reference_of(ddf), level)
        return pd.DataFrame(table._asdict(), index=pd.Index(self._exog_names))

    def test(self, L: Any, rhs: Any = None, ddf: str | None = None, level: float = 0.95) -> HypothesisTest:
        """The test of Lβ = rhs, all rows together (F) and each alone (t).

        Parameters
        ----------
        L : (m, p) or (p,) array, a pair (L, rhs), or text such as ``"x1 - x2 = 0, x3"``
        rhs : number or (m,), optional
            Zero if None, and not given in the text.
        ddf, level : as in ``coefficients``.

        Notes
        -----
        Satterthwaite's of several rows are lmerTest's (Fai & Cornelius 1996); they depend on the rows, not only on
        what the rows say together. F does not.
        """
        rows, c = hypotheses(L, self._exog_names)
        if rows.shape[1] != len(self._exog_names):
            raise DataError(f"L has {rows.shape[1]} columns; give {len(self._exog_names)}, one per fixed effect")
        if not np.isfinite(rows).all():
            raise DataError("L holds values that are not finite")
        if rhs is not None:
            if np.shape(rhs) not in ((), (1,), c.shape):
                raise DataError(f"rhs has shape {np.shape(rhs)}: give one number, or one for each of {len(c)} rows")
            c = np.broadcast_to(np.asarray(rhs, float), c.shape)
        reference, beta = self._reference_of(ddf), np.asarray(self.fit.beta)
        own = row_tests(rows, c, beta, reference, level)
        table = pd.DataFrame(own._asdict(), index=pd.Index([f"c{i}" for i in range(len(rows))]))
        value, q, df, p, scale = joint_test(rows, c, beta, reference)
        return HypothesisTest(table, value, q, df, p, scale, reference.method)

    def anova(self, type: Any = 3, ddf: str | None = None, test: Statistic = "F") -> pd.DataFrame:
        """Analysis of variance: a test of each term of the fixed effects.

        Parameters
        ----------
        type : 1, 2, 3 or "I", "II", "III"
            Each term after those before it; after all that do not contain it; as SAS's type III, which equals that of
            sum-to-zero contrasts. None depends on the contrasts in use.
        ddf : as in ``coefficients``.
        test : {"F", "chisq"}
            "chisq" is Wald's, without degrees of freedom.

        Returns
        -------
        DataFrame
            A row per term: sum_sq, mean_sq, num_df, den_df, F, p; or chisq, df, p.

        References
        ----------
        Kuznetsova, Brockhoff & Christensen (2017), J. Stat. Softw. 82(13).
        """
        design = self._data.design
        if self._data.sums is not None:
            design = replace(design, X=self._data.few_rows[:, :-1])
        elif not has_rows(self._data):
            raise DataError("anova() reads the rows, which remove_data() took away")
        return self._term_table(term_hypotheses(design, read_type(type)), ddf, test)

    def drop1(self, ddf: str | None = None, test: Literal["F", "chisq", "lrt"] = "F") -> pd.DataFrame:
        """A test of each term that no other contains; columns as of ``anova``.

        ``test="lrt"``: likelihood ratios of refits by maximum likelihood without the term's columns, as lme4's
        ``drop1``: n_params, aic, chisq, df, p, the first row ("none") the model itself.
        """
        found = structure(self._data.design)
        columns = {t: c for t, c in found.columns.items() if not found.contained_in[t]}
        if test == "lrt":
            if ddf is not None:
                raise DataError("test='lrt' has no denominator degrees of freedom: leave ddf= out, or use test='F'")
            return dropped_terms(self, columns)
        return self._term_table({t: np.eye(len(self._exog_names))[c] for t, c in columns.items()}, ddf, test)

    # ------------------------------------------------------------ models

    def compare(
        self,
        *others: Any,
        names: Sequence[str] | None = None,
        conditional: bool = False,
        bootstrap: int = 0,
        seed: int | None = None,
    ) -> Comparison:
        """Information criteria of models of the same rows, and likelihood ratios of neighbours in size.

        Parameters
        ----------
        others : results, or what ``without_random_effects()`` gives.
        names : of all models, this one first; m0, m1, … if None.
        conditional : add ``caic``, see ``conditional_aic``.
        bootstrap, seed : so many responses are simulated under the smaller of two models and both refitted to them, as
            lanes; adds ``p_bootstrap`` and its Monte-Carlo error. Needs fits by the criterion that is compared.

        Returns
        -------
        Comparison
            ``table``, the smallest model first, and ``notes``.

        Notes
        -----
        Where fixed effects differ, REML criteria do not compare: all are refitted by maximum likelihood, and ``notes``
        say so. Variances that are zero in the smaller model make the law of the ratio a mixture of χ², its weights from
        the information at the smaller model's estimates; where three or more correlated effects are new ``law`` is "at
        most χ²", which is conservative.

        References
        ----------
        Self & Liang (1987), JASA 82, 605–610; Stram & Lee (1994), Biometrics 50, 1171–1177; Burnham & Anderson (2002),
        for the weights.
        """
        return compare([self, *others], names, conditional=conditional, bootstrap=bootstrap, seed=seed)

    def conditional_aic(self) -> dict[str, float]:
        """AIC for predictions in the same groups: caic = 2(df − loglik), with loglik, df and trace.

        ``loglik`` is that of y given the predicted random effects; ``trace`` that of ∂ŷ/∂y with the covariance
        parameters known (Vaida & Blanchard 2005), ``df`` with their estimation and one for σ (Greven & Kneib 2010).
        Parameters at a bound stay there.

        References
        ----------
        Vaida & Blanchard (2005), Biometrika 92, 351–370; Greven & Kneib (2010), Biometrika 97, 773–789.
        """
        if not has_rows(self._data):
            raise DataError("conditional_aic() reads the rows, which are not there")
        return conditional_aic(self.fit, self._data, self.reml)

    def ranova(self, *, simulate: int = 0, seed: int | None = None) -> pd.DataFrame:
        """Likelihood ratios of the model without each of its random effects, by this fit's criterion.

        Parameters
        ----------
        simulate, seed : so many draws of the exact finite-sample law of the ratio (Crainiceanu & Ruppert 2004), for
            what has one effect per level and is uncorrelated with the rest; adds ``p_simulated`` and its Monte-Carlo
            error. Exact for the only variance of a model; of several, as if the others were not there (as RLRsim).

        Returns
        -------
        DataFrame
            The model itself ("none"), then a row per reduced one: n_params, deviance, aic, chisq, df, p, law.

        Notes
        -----
        Reduced as by lmerTest: ``(x | g)`` to ``(1 | g)``, ``(1 | g)`` to nothing. lmerTest's p-values are those of
        χ²(df), up to twice these, as if variances could be negative.
        """
        return random_anova(self, simulate, seed)

    def _refitted_by_ml(self) -> Fit:
        if self._held.any():
            raise UnsupportedError("a fit with parameters that were held is not refitted by ML: fit it so yourself")
        if not has_rows(self._data):
            raise DataError("a refit by maximum likelihood reads the rows, which are not there: fit with reml=False")
        return quietly(self._data, False, self._options)

    def _term_table(self, terms: dict[str, np.ndarray], ddf: str | None, test: Statistic) -> pd.DataFrame:
        if test not in ("F", "chisq"):
            raise DataError(f"test={test!r} is unknown; use 'F' or 'chisq'")
        if test == "chisq" and ddf is not None:
            raise DataError("test='chisq' has no denominator degrees of freedom: leave ddf= out, or use test='F'")
        reference = self._reference_of("normal" if test == "chisq" else ddf)
        beta, lines = np.asarray(self.fit.beta), {}
        for name, L in terms.items():
            value, q, df, p, _ = joint_test(L, np.zeros(len(L)), beta, reference)
            if test == "chisq":
                lines[name] = {"chisq": q * value, "df": q, "p": p}
                continue
            mean = value * self.scale
            lines[name] = {"sum_sq": q * mean, "mean_sq": mean, "num_df": q, "den_df": df, "F": value, "p": p}
        return pd.DataFrame.from_dict(lines, orient="index")
