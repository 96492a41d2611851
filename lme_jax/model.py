"""``lmer``: the front door for formulas with bars."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from .core.optimize import NewtonOptions
from .core.programs import Backend
from .data import ModelData
from .errors import FormulaError
from .fitting import with_backend
from .formula import Design, design_from_formula
from .formula.terms import split_residual, update_formula
from .formula.values import namespace
from .results import MixedLMResults, fit_model


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
    structures: Mapping[str, Any] | None = None,
    memberships: Mapping[str, Any] | None = None,
    relatedness: Mapping[str, Any] | None = None,
    residual: str | None = None,
    variance: str | None = None,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
    backend: Backend | None = None,
) -> MixedLMResults:
    """Fit a linear mixed model written the way R's lme4 writes it.

    Parameters
    ----------
    formula : str
        Such as ``"Reaction ~ Days + (Days | Subject)"``. Bars: ``(1|g)``, ``(x|g)``, ``(0+x|g)``, ``(x||g)``,
        several on one factor; R's contrasts, ``I()``, ``poly()``, ``:``, ``*`` mean what they mean in R.
        ``help(lme_jax.formula)`` lists all operators and functions.
    data : DataFrame or mapping of columns
        Never changed.
    reml : bool
        Restricted (default) or ordinary maximum likelihood.
    weights : column name, expression such as ``"1 / se^2"`` or (n,), optional
        Prior weights w > 0: Var(ε_i) = σ²/w_i.
    offset : column name, expression such as ``"log(exposure)"`` or (n,), optional
        Known part of the mean, response units.
    contrasts : mapping, optional
        Column → "treatment", "sum", "poly", "helmert" or a matrix.
    missing : {"drop", "raise"}
        Leave rows with missing or infinite values out (counted, with a warning), or stop and name them.
    subset : mask or query string, optional
    structures : mapping, optional
        Bar or factor → the name of a covariance structure, or (name, what it needs), for terms whose formula names
        none: "unstructured", "diagonal", "toeplitz", ("reduced_rank", 2) … (``docs/structures.md``).
    memberships : mapping, optional
        Factor → weights (n, m) of its m levels in each row, where rows belong to several levels: a DataFrame
        whose columns name the levels, or an array, dense or scipy sparse. The factor need not be a column.
    relatedness : mapping, optional
        Factor → K (m, m), such as a kinship matrix: Cov(b) = K ⊗ Ψ. A DataFrame labelled by level, which may
        hold levels without rows (their effects are predicted too), or an array in the order of the levels.
    residual : str, optional
        Correlation of the residuals within subjects: ``"ar1(visit | id)"``, ``"car1(time | id)"`` …
        (``docs/residual.md``).
    variance : str, optional
        Variance function of the residuals: ``"ident(sex)"``, ``"power(age)"`` …, or several joined by ``*``. With
        either the formula needs no bars.
    start : (k,), optional
        θ to start from.
    options : NewtonOptions
    backend : {"numpy", "jax"}, optional
        What computes: NumPy at once (default), or a compiled program; ``.backend`` of the result says which it was.

    Returns
    -------
    MixedLMResults
        With ``residual`` or ``variance`` a ``StructuredResults``.

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
    arguments = dict(
        formula=formula,
        data=data,
        weights=weights,
        offset=offset,
        contrasts=contrasts,
        missing=missing,
        subset=subset,
        structures=structures,
        memberships=memberships,
        relatedness=relatedness,
        residual=residual,
        variance=variance,
        bars=bars_with(residual, variance),
    )
    return fit_formula(arguments, reml, start, with_backend(options, backend), namespace(1))


def bars_with(residual: Any, variance: Any) -> bool | None:
    """Whether a formula must have bars: None, it may, where residuals have a structure."""
    return None if residual is not None or variance is not None else True


def lmer_of_text(formula: str, data: Any, *, reml: bool = True, **arguments: Any) -> MixedLMResults:
    """``lmer`` of a formula that someone else wrote: it may call the listed functions and reach nothing else.

    ``arguments`` are weights, offset, subset, residual and variance, as text.
    """
    given = {"residual": None, "variance": None, **arguments, "formula": formula, "data": data}
    given["bars"] = bars_with(given["residual"], given["variance"])
    return fit_formula(given, reml, None, NewtonOptions(), None)


def fit_formula(
    arguments: Mapping[str, Any], reml: Any, start: Any, options: Any, context: Mapping[str, Any] | None
) -> MixedLMResults:
    """Fit what ``design_from_formula`` makes of its arguments.

    ``context`` is what the caller's line sees; None restricts formulas to the listed functions.
    """
    design = design_from_formula(**_of_design(arguments), context=context)
    data = arguments["data"]
    # A shallow copy: columns that the person replaces or adds later do not reach an update.
    kept = {**arguments, "data": data.copy(deep=False) if isinstance(data, pd.DataFrame) else data}
    return _fitted(design, {**kept, "reml": reml, "options": options}, start)


# What an update keeps that is no argument of the design.
_NOT_OF_DESIGN = ("reml", "options", "ddf", "vcov")


def _fitted(design: Design, kept: Mapping[str, Any], start: Any) -> MixedLMResults:
    """Fit a design by the engine that its residuals need; ``kept`` are the arguments of an update."""
    again = partial(_fit_again, kept, design.state.context)  # type: ignore[attr-defined]
    how = kept["reml"], start, kept["options"], again
    if design.residual is None:
        return fit_model(ModelData.from_design(design, factor_in_names=True), *how)
    from .structured.data import StructuredData
    from .structured.results import fit_structured

    data = StructuredData.from_design(design, factor_in_names=True)
    assert isinstance(data, StructuredData)
    return fit_structured(data, *how, ddf=kept.get("ddf"), vcov=kept.get("vcov", "asymptotic"))


def _fit_again(
    arguments: Mapping[str, Any], context: Mapping[str, Any], changes: Mapping[str, Any], names: Mapping[str, Any]
) -> MixedLMResults:
    """Fit with some arguments of the first call changed; ``names`` are what the caller's line sees."""
    unknown = (set(changes) - set(arguments) - {"start"}) | ({"bars"} & set(changes))
    if unknown:
        raise TypeError(f"update() got {sorted(unknown)}; it takes {sorted(set(arguments) - {'bars'})}")
    kept = {**arguments, **changes}
    start = kept.pop("start", None)
    if "formula" in changes:
        kept |= _new_formula(arguments, changes["formula"])
    plain = kept["residual"] is None and kept["variance"] is None
    if plain and kept["bars"] is False:
        raise FormulaError("without residual= and variance= this would be a linear model of independent residuals")
    if kept["bars"] is not False:
        kept["bars"] = True if plain else None
    design = design_from_formula(**_of_design(kept), context={**names, **context})
    return _fitted(design, {**kept, "formula": design.formula}, start)


def _of_design(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in _NOT_OF_DESIGN}


def _new_formula(arguments: Mapping[str, Any], change: str) -> dict[str, Any]:
    """The formula that a change makes; of models without random effects it may name a residual structure."""
    residual = None
    if arguments["bars"] is False:
        change, residual = split_residual(change)
    formula = update_formula(arguments["formula"], change)
    return {"formula": formula} if residual is None else {"formula": formula, "residual": residual}
