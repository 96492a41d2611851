"""Several residual structures on the same rows, ranked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, LmeJaxError
from ..formula.residual_words import CorrelationSpelling


@dataclass(frozen=True)
class StructureComparison:
    """Fits of one model with different residual structures.

    Attributes
    ----------
    table : DataFrame
        A row per structure, the best AIC first: k (covariance parameters), deviance, aic, bic, bic_subjects (SAS's and
        mmrm's: covariance parameters only under REML, the number of subjects), delta_aic, note.
    fits : structure → result, of those that could be fitted.
    """

    table: pd.DataFrame
    fits: Mapping[str, Any]

    @property
    def best(self) -> Any:
        """The result with the lowest AIC."""
        fitted = [name for name in self.table.index if name in self.fits]
        if not fitted:
            raise DataError("none of the structures could be fitted; the table's notes say why")
        return self.fits[fitted[0]]

    def __repr__(self) -> str:
        return self.table.to_string(float_format="{:.3f}".format, na_rep="")

    def _repr_html_(self) -> str:
        return str(self.table.to_html(float_format="{:.3f}".format, na_rep=""))


def compare_structures(result: Any, structures: Sequence[str]) -> StructureComparison:
    """Fit each structure by ``result.update`` and rank them."""
    if isinstance(structures, str) or not len(structures):
        raise DataError("compare_structures takes a list of structures, such as ['us', 'toeph', 'cs']")
    spelled = result._data.term.spelling.correlation
    fits: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in structures:
        try:
            found = fits[name] = result.update(residual=respelled(name, spelled))
            rows[name] = _row(found)
        except LmeJaxError as error:
            rows[name] = {"note": str(error)}
    columns = ["k", "deviance", "aic", "bic", "bic_subjects", "note"]
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
    table.insert(5, "delta_aic", table.aic - table.aic.min())
    table["k"] = table["k"].astype("Int64")
    return StructureComparison(table.iloc[np.argsort(table.aic.to_numpy(), kind="stable")], fits)


def _row(found: Any) -> dict[str, Any]:
    note = "" if found.status.name == "CONVERGED" else found.status.text
    subjects = found.information_criteria("sas")["BIC"]
    values = {"k": found.k_cov, "deviance": found.deviance, "aic": found.aic, "bic": found.bic}
    return {**values, "bic_subjects": subjects, "note": note}


def respelled(name: Any, spelled: CorrelationSpelling | None) -> str:
    """A bare word with the variables of a spelling; whole spellings as they are."""
    if not isinstance(name, str) or "(" in name:
        return name
    if spelled is None:
        raise DataError(f"{name!r}: the model has no visit and subject to take; write {name}(visit | id)")
    inside = re.sub(r",\s*(nugget|metric|p|q)\s*=[^,)]*", "", spelled.text[len(spelled.word) :])
    options = {"arma": ", p = 1, q = 1)"}.get(name, ")")
    return f"{name}{inside[:-1]}{options}"
