"""statsmodels' `mixedlm` arguments to a Design, with the coding and the column names of statsmodels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lme_jax.formula.design import Design
from lme_jax.formula.values import namespace


def design_from_statsmodels(
    formula: str,
    data: Any,
    groups: Any,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    *,
    weights: Any = None,
    offset: Any = None,
    subset: Any = None,
    missing: str = "none",
    context: Mapping[str, Any] | int | None = None,
) -> Design:
    """Turn the arguments of ``statsmodels.formula.api.mixedlm`` into arrays.

    Parameters
    ----------
    formula : str
        Fixed effects, such as ``"Weight ~ Time + C(Litter)"``, in Python syntax: ``I(x**2)``, ``np.log(x)``.
    data : DataFrame or dict of arrays
        Not changed.
    groups : str or (n,) array
        Column name, or one label per row.
    re_formula : str, optional
        Correlated effects of a group. Default: an intercept, or nothing if `vc_formula` is given.
    vc_formula : dict, optional
        Name -> formula of effects that share one variance: ``"0 + C(a)"`` (cells within a group),
        ``"0 + C(a):z"`` (a slope per cell) or numeric columns such as ``"0 + x"``.
    weights, offset : str or (n,) array, optional
    subset : mask or str, optional
    missing : {"none", "drop", "raise"}
        "none" and "raise" both refuse rows with missing values.
    context : mapping or int, optional
        Functions and arrays that the formulas may use beyond the columns. A number takes them from the caller
        that many frames up: 1 for the caller of this function, 2 for the caller's caller. None: no code but
        formulaic's own transforms and NumPy's elementwise functions.

    Returns
    -------
    Design
        Terms: first the `re_formula` term, whose intercept bears the name of the groups' column ("Group" for
        an array) as in statsmodels; then one term of structure "identity" per component, in sorted order of
        their names. A component of cells has the factor label "groups:name" and the one column `name`. Where
        all rows are one group, cells are crossed factors, with the label `name`.

    Raises
    ------
    FormulaError, DataError, UnsupportedError

    Notes
    -----
    Names and order of the columns are statsmodels' own (intercept, categorical terms, then numeric ones).
    Groups are sorted even if the column is an ordered Categorical, as statsmodels does.
    """
    names = namespace(context)
    from lme_jax.formula.statsmodels_design import build  # brings formulaic, which is slow to import

    return build(
        formula,
        data,
        groups,
        re_formula,
        vc_formula,
        weights=weights,
        offset=offset,
        subset=subset,
        missing=missing,
        context=names,
        restricted=context is None,
    )
