"""Formulas and data frames to a labelled `Design`; the only part of lme_jax that knows formulaic."""

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
