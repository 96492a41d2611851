"""The front doors: ``lmer`` for formulas with bars, ``MixedLM`` and ``mixedlm`` for statsmodels habits."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from .core.fit import Fit, fit
from .core.optimize import NewtonOptions
from .core.types import Status
from .data import ModelData
from .errors import ConvergenceError, ConvergenceWarning, SingularFitWarning
from .formula import design_from_arrays, design_from_formula, design_from_statsmodels
from .results import MixedLMResults


def lmer(
    formula: str,
    data: Any,
    *,
    reml: bool = True,
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    missing: str = "drop",
    subset: Any = None,
    structures: Mapping[str, str] | None = None,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
) -> MixedLMResults:
    """Fit a linear mixed model written the way R's lme4 writes it.

    Parameters
    ----------
    formula : str
        Such as ``"Reaction ~ Days + (Days | Subject)"``. Bars: ``(1|g)``, ``(x|g)``, ``(0+x|g)``, ``(x||g)``,
        several on one factor; R's contrasts, ``I()``, ``poly()``, ``:``, ``*`` mean what they mean in R.
    data : DataFrame or mapping of columns
        Never changed.
    reml : bool
        Restricted (default) or ordinary maximum likelihood.
    weights : column name or (n,), optional
        Prior weights w > 0: Var(ε_i) = σ²/w_i.
    offset : column name or (n,), optional
        Known part of the mean, response units.
    contrasts : mapping, optional
        Column → "treatment", "sum", "poly", "helmert" or a matrix.
    missing : {"drop", "raise"}
        Leave rows with missing or infinite values out (counted, with a warning), or stop and name them.
    subset : mask or query string, optional
    structures : mapping, optional
        Bar or factor → "unstructured", "diagonal", "identity", "compound_symmetry" or "ar1".
    start : (k,), optional
        θ to start from.
    options : NewtonOptions

    Returns
    -------
    MixedLMResults

    Raises
    ------
    FormulaError, DataError
        When formula or data cannot give a model; the message says what, where and what to do.
    ConvergenceError
        When the deviance is not finite.

    References
    ----------
    Bates, Mächler, Bolker & Walker (2015), J. Stat. Softw. 67(1).
    """
    design = design_from_formula(
        formula,
        data,
        weights=weights,
        offset=offset,
        contrasts=contrasts,
        missing=missing,
        subset=subset,
        structures=structures,
        context=_callers_names(2),
    )
    return _fit(ModelData.from_design(design, factor_in_names=True), reml, start, options)


def _callers_names(depth: int) -> dict[str, Any]:
    """The variables that the person's own line sees: formulas may call their functions."""
    frame = sys._getframe(depth)
    return {**frame.f_globals, **frame.f_locals}


def _fit(data: ModelData, reml: bool, start: Any, options: NewtonOptions) -> MixedLMResults:
    result = fit(data.compressed, reml=reml, start=start, options=options)
    _report(result, data)
    return MixedLMResults(data, result, reml=reml)


def _report(result: Fit, data: ModelData) -> None:
    """Turn a status into the warning or the error that a person should see."""
    status = Status(int(result.status))
    if status is Status.NOT_FINITE:
        raise ConvergenceError(
            f"the deviance of {data.endog_name!r} ({data.n_rows} rows, {len(result.beta)} fixed effects) is not "
            "finite: the model leaves no residual variation. Check for a fixed effect that copies the response."
        )
    if status is Status.SINGULAR:
        warnings.warn(
            "the fit is singular: a variance is zero or a correlation is ±1 (see .varcorr). It is a valid "
            "optimum; a simpler random part would describe these data as well.",
            SingularFitWarning,
            stacklevel=4,
        )
    elif not status.is_optimum:
        warnings.warn(
            f"the optimiser {status.text}: {int(result.iterations)} evaluations, ½gᵀH⁻¹g = "
            f"{float(result.decrease):.1e} deviance units. Try another start=, or options=NewtonOptions(max_iter=…).",
            ConvergenceWarning,
            stacklevel=4,
        )


class MixedLM:
    """Linear mixed model from arrays: a drop-in for statsmodels' ``MixedLM``.

    Parameters
    ----------
    endog : (n,) response.
    exog : (n, p) fixed-effects design.
    groups : (n,) labels of the groups.
    exog_re : (n, q), optional
        Random-effects design; a random intercept if None.
    missing : {"none", "drop", "raise"}
        "none" and "raise" refuse missing values, "drop" leaves their rows out.
    """

    def __init__(
        self, endog: Any, exog: Any, groups: Any, exog_re: Any = None, *, weights: Any = None, missing: str = "none"
    ) -> None:
        design = design_from_arrays(endog, exog, groups, exog_re, weights=weights, missing=missing)
        self._data = ModelData.from_design(design, factor_in_names=False)

    @classmethod
    def from_formula(
        cls,
        formula: str,
        data: Any,
        re_formula: str | None = None,
        vc_formula: Mapping[str, str] | None = None,
        subset: Any = None,
        missing: str = "none",
        *,
        groups: Any,
    ) -> "MixedLM":
        """A model from a statsmodels formula; see ``mixedlm``."""
        return cls._from_formula(formula, data, re_formula, vc_formula, subset, missing, groups, _callers_names(2))

    @classmethod
    def _from_formula(
        cls,
        formula: str,
        data: Any,
        re_formula: str | None,
        vc_formula: Mapping[str, str] | None,
        subset: Any,
        missing: str,
        groups: Any,
        context: Mapping[str, Any],
    ) -> "MixedLM":
        design = design_from_statsmodels(
            formula,
            data,
            groups,
            re_formula=re_formula,
            vc_formula=vc_formula,
            subset=subset,
            missing=missing,
            context=context,
        )
        model = cls.__new__(cls)
        model._data = ModelData.from_design(design, factor_in_names=False)
        return model

    @property
    def endog(self) -> np.ndarray:
        """(n,) the response that is fitted."""
        return self._data.y

    @property
    def exog(self) -> np.ndarray:
        """(n, p) the fixed-effects design that is fitted."""
        return self._data.X

    @property
    def n_groups(self) -> int:
        return len(self._data.factors[0].levels)

    def fit(
        self, *, reml: bool = True, start: Any = None, options: NewtonOptions = NewtonOptions()
    ) -> MixedLMResults:
        """Fit by REML (default) or ML; the model and earlier results stay as they are."""
        return _fit(self._data, reml, start, options)


def mixedlm(
    formula: str,
    data: Any,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    subset: Any = None,
    missing: str = "none",
    *,
    groups: Any,
) -> MixedLM:
    """A mixed model from a statsmodels formula: a drop-in for ``smf.mixedlm``; call ``.fit()`` on it.

    Parameters
    ----------
    formula : str
        Fixed effects, ``"Weight ~ Time"``.
    data : DataFrame
        Never changed.
    re_formula : str, optional
        Random effects within groups, ``"~Time"``; a random intercept if None.
    vc_formula : mapping, optional
        Name → formula of independent variance components.
    subset : mask or query string, optional
        Rows to use (statsmodels ignores this argument).
    missing : {"none", "drop", "raise"}
    groups : column name or (n,) labels

    Returns
    -------
    MixedLM
    """
    return MixedLM._from_formula(
        formula, data, re_formula, vc_formula, subset, missing, groups, _callers_names(2)
    )
