"""Formulas and data frames to a labelled `Design`; the only part of lme_jax that knows formulaic.

What a formula of ``lmer`` may hold, with the values and the column names of R's ``model.matrix``:

Terms
    ``+``, ``-``, ``:``, ``*``, ``/``, ``^``, ``%in%``, ``.`` (the other columns), ``0``, ``1``, ``offset(z)``, bars
    ``(x | g)``, ``(x || g)``, and covariance structures around a bar (``docs/structures.md``): ``us()``, ``diag()``,
    ``homdiag()``, ``cs()``, ``homcs()``, ``ar1()``, ``hetar1()``, ``toep()``, ``homtoep()``, ``ou(t | g)``,
    ``rr(…, d = 2)``, ``fixed(…, M)``, some with ``hom = TRUE``. Parentheses count in subtractions. Comments after
    ``#``; a trailing ``;`` is read over. Odd names stand in backticks or in ``Q("odd name")``.
Arithmetic and conditions, in ``I(...)``, in calls, in ``weights="..."`` and ``offset="..."``
    ``+ - * / ^ ** %% %/%``, ``== != < > <= >=``, ``! & |``, ``%in% c("a", "b")``, ``a:b`` and ``seq(from, to, by)``
    of numbers, ``c(3, 6)`` or ``[3, 6]``; ``TRUE``, ``FALSE``, ``pi``, ``Inf``, ``NULL``.
Row by row
    ``log(x, base)``, ``log2``, ``log10``, ``log1p``, ``exp``, ``expm1``, ``sqrt``, ``abs``, ``sign``, ``floor``,
    ``ceiling``, ``trunc``, ``round(x, digits)``, ``sin``, ``cos``, ``tan``, ``asin``, ``acos``, ``atan``, ``sinh``,
    ``cosh``, ``tanh``, ``plogis``, ``qlogis``, ``pmin``, ``pmax``, ``ifelse``, ``is.na``, ``rev``, ``as.numeric``,
    ``as.integer``, ``as.character``, ``paste``, ``paste0``.
Remembered from the fit, so that a prediction for new rows repeats it
    ``scale``, ``center``, ``poly(x, degree, raw)``, ``bs`` and ``ns`` with ``df``, ``knots``, ``degree`` (bs),
    ``intercept``, ``Boundary.knots``; formulaic's ``cr`` and ``cc``; the summaries ``mean``, ``median``, ``sd``,
    ``var``, ``min``, ``max``, ``sum``, ``length``, ``quantile``. R computes summaries anew in ``predict``, where
    ``I(x - mean(x))`` of one row is 0; here the mean is that of the fit. Missing values are left out of them.
Factors
    ``factor(x, levels, labels, ordered)``, ``as.factor``, ``ordered``, ``as.ordered``, ``C(f, sum)``,
    ``relevel(f, ref)``, ``interaction(f, g, sep)``, ``cut(x, breaks, labels, right, include.lowest, dig.lab)``.
    A Categorical is R's factor, other text R's character: ``as.numeric`` of a factor gives its codes 1, 2, …, of
    text the numbers read from it.
Dates and times
    As grouping factors as they are; otherwise ``as.numeric(when)``, days since 1970-01-01 with fractions, or
    ``I(when - min(when))``.
The caller's own
    Functions, numbers and arrays that the calling line sees: ``half(x)``, ``np.sinc(x)``, ``I(x > limit)``. A
    function defined in the calling module comes before a listed one of its name. Python's internals
    (``__builtins__``, private attributes) are closed to every formula, and with ``context=None`` (see
    ``design_from_formula``) a formula can call nothing but this list and NumPy's elementwise functions.
"""

from lme_jax.formula.arrays import design_from_arrays
from lme_jax.formula.design import Design, NewDesign, RandomTerm, design_new_data
from lme_jax.formula.lme4 import design_from_formula
from lme_jax.formula.rank import drop_dependent_columns
from lme_jax.formula.statsmodels import design_from_statsmodels

__all__ = [
    "Design",
    "NewDesign",
    "RandomTerm",
    "design_from_arrays",
    "design_from_formula",
    "design_from_statsmodels",
    "design_new_data",
    "drop_dependent_columns",
]
