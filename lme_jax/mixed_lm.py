"""``MixedLM`` and ``mixedlm``: statsmodels' names and habits."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .core.optimize import NewtonOptions
from .data import ModelData
from .formula import design_from_arrays, design_from_statsmodels
from .model import callers_names, fit_model
from .results import MixedLMResults


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
        return cls._from_formula(formula, data, re_formula, vc_formula, subset, missing, groups, callers_names(2))

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

    def fit(self, *, reml: bool = True, start: Any = None, options: NewtonOptions = NewtonOptions()) -> MixedLMResults:
        """Fit by REML (default) or ML; the model and earlier results stay as they are."""
        return fit_model(self._data, reml, start, options)


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
    return MixedLM._from_formula(formula, data, re_formula, vc_formula, subset, missing, groups, callers_names(2))
