"""``gls`` and ``mmrm``: models of repeated measures without random effects."""

from collections.abc import Mapping
from typing import Any

from .core.optimize import NewtonOptions
from .errors import FormulaError
from .formula.terms import split_residual
from .formula.values import namespace
from .model import fit_formula
from .structured.degrees import read_ddf
from .structured.results import StructuredResults


def gls(
    formula: str,
    data: Any,
    *,
    residual: str | None = None,
    variance: str | None = None,
    reml: bool = True,
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    missing: str = "drop",
    subset: Any = None,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
) -> StructuredResults:
    """Generalised least squares: a linear model with correlated or unequal residuals, as nlme's ``gls``.

    Parameters
    ----------
    formula : str
        Fixed effects, ``"distance ~ age * Sex"``.
    data : DataFrame or mapping of columns
        Never changed.
    residual : str, optional
        Correlation structure within subjects, ``"ar1(visit | id)"``, ``"sp_exp(x1, x2 | id, nugget=True)"``
        (``docs/residual.md``).
    variance : str, optional
        Variance function, ``"ident(sex)"``, ``"power(age)"``, or several joined by ``*``.
    reml, weights, offset, contrasts, missing, subset, start, options
        As of ``lmer``.

    Returns
    -------
    StructuredResults
    """
    if residual is None and variance is None:
        formula, residual = split_residual(formula)
    if residual is None and variance is None:
        raise FormulaError(
            "gls needs a residual= structure such as 'ar1(visit | id)', or a variance= function such as 'ident(sex)'; "
            "with neither it is a linear model of independent residuals."
        )
    arguments = _arguments(formula, data, residual, variance, weights, offset, contrasts, missing, subset)
    return fit_formula(arguments, reml, start, options, namespace(1))  # type: ignore[return-value]


def mmrm(
    formula: str,
    data: Any,
    *,
    reml: bool = True,
    ddf: str = "satterthwaite",
    vcov: str = "asymptotic",
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    missing: str = "drop",
    subset: Any = None,
    variance: str | None = None,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
) -> StructuredResults:
    """Mixed model for repeated measures, spelled as R's ``mmrm`` does.

    Parameters
    ----------
    formula : str
        Fixed effects and one residual structure, ``"FEV1 ~ RACE + ARMCD * AVISIT + us(AVISIT | USUBJID)"``:
        ``us``, ``toep(h)``, ``ar1(h)``, ``ad(h)``, ``cs(h)``, ``sp_exp(x, y | id)`` …; ``us(AVISIT | ARMCD / USUBJID)``
        has a matrix for every arm.
    data : DataFrame or mapping of columns
        Never changed. The order of the visits is that of a Categorical's levels; rows without a response are left out.
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
        Degrees of freedom of tests and limits where none are named later: ``fit.coefficients(ddf=…)``.
    vcov : {"asymptotic", "CR0", "CR1", "CR1S", "CR2", "CR3"}
        Cov β̂ of all tests and limits: the model's own, or a cluster-robust one by subjects.
    weights : column name, expression or (n,), optional
        Covariances are divided by √(w_i w_j), as SAS's WEIGHT.
    reml, offset, contrasts, missing, subset, start, options
        As of ``lmer``.
    variance : str, optional
        Variance function beside the structure, as of ``gls``.

    Returns
    -------
    StructuredResults
    """
    formula, residual = split_residual(formula)
    if residual is None:
        raise FormulaError(
            f"The formula {formula!r} names no residual structure: add one, such as us(visit | id), of the visit and "
            "the subject."
        )
    arguments = _arguments(formula, data, residual, variance, weights, offset, contrasts, missing, subset)
    return fit_formula({**arguments, "ddf": read_ddf(ddf), "vcov": vcov}, reml, start, options, namespace(1))  # type: ignore[return-value]


def _arguments(
    formula: str,
    data: Any,
    residual: str | None,
    variance: str | None,
    weights: Any,
    offset: Any,
    contrasts: Any,
    missing: str,
    subset: Any,
) -> dict[str, Any]:
    return dict(
        formula=formula,
        data=data,
        residual=residual,
        variance=variance,
        weights=weights,
        offset=offset,
        contrasts=contrasts,
        missing=missing,
        subset=subset,
        bars=False,
    )
