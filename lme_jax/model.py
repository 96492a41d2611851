"""``lmer``: the front door for formulas with bars."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from .core.optimize import NewtonOptions
from .core.programs import Backend
from .data import ModelData
from .fitting import with_backend
from .formula import design_from_formula
from .formula.terms import update_formula
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
    start : (k,), optional
        θ to start from.
    options : NewtonOptions
    backend : {"numpy", "jax"}, optional
        What computes: NumPy at once (default), or a compiled program; ``.backend`` of the result says which it was.

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
    arguments = dict(
        weights=weights,
        offset=offset,
        contrasts=contrasts,
        missing=missing,
        subset=subset,
        structures=structures,
        memberships=memberships,
        relatedness=relatedness,
    )
    design = design_from_formula(formula, data, **arguments, context=namespace(1))
    # A shallow copy: columns that the person replaces or adds later do not reach an update.
    kept = data.copy(deep=False) if isinstance(data, pd.DataFrame) else data
    options = with_backend(options, backend)
    arguments |= dict(formula=formula, data=kept, reml=reml, options=options)
    again = partial(_fit_again, arguments, design.state.context)  # type: ignore[attr-defined]
    return fit_model(ModelData.from_design(design, factor_in_names=True), reml, start, options, again)


def _fit_again(
    arguments: Mapping[str, Any], context: Mapping[str, Any], changes: Mapping[str, Any], names: Mapping[str, Any]
) -> MixedLMResults:
    """Fit with some arguments of the first call changed; ``names`` are what the caller's line sees."""
    unknown = set(changes) - set(arguments) - {"start"}
    if unknown:
        raise TypeError(f"update() got {sorted(unknown)}; it takes {sorted(arguments)}")
    old = {**arguments}
    new = {**old, **changes, "start": changes.get("start")}
    if "formula" in changes:
        new["formula"] = update_formula(old["formula"], changes["formula"])
    reml, options, start = new.pop("reml"), new.pop("options"), new.pop("start")
    design = design_from_formula(new.pop("formula"), new.pop("data"), **new, context={**names, **context})
    kept = {**old, **changes, "formula": design.formula, "reml": reml}
    kept.pop("start", None)
    again = partial(_fit_again, kept, design.state.context)  # type: ignore[attr-defined]
    return fit_model(ModelData.from_design(design, factor_in_names=True), reml, start, options, again)
