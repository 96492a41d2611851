"""Columns and names of formulas against R's model.matrix; tests/reference/formulas.R makes the numbers."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lme_jax.errors import DroppedRowsWarning, LmeJaxWarning, RankWarning
from lme_jax.formula import design_from_formula, design_new_data

REFERENCE = json.loads((Path(__file__).parent / "reference" / "formulas.json").read_text(encoding="utf-8"))
# New rows have fewer of them than the data, or R computes the summary anew where lme_jax remembers it.
NOT_REPEATED = {"seq(1, 24)", "x == max(x)", "rev(x)", "cut(x, 3, labels = FALSE)", "I(x + poly(z, 2))"}


def frame(part):
    table = pd.DataFrame(REFERENCE[part])
    levels = {"f": list("abc"), "g": list("uv"), "o": ["lo", "mid", "hi"]}
    for name, known in levels.items():
        table[name] = pd.Categorical(table[name], known, ordered=name == "o")
    table["day"] = pd.to_datetime(table.day)
    return table.assign(s=np.resize(list("pqrst"), len(table)))


@pytest.mark.parametrize("side", REFERENCE["matrices"])
def test_columns_names_and_new_rows_are_those_of_r(side):
    expected = REFERENCE["matrices"][side]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LmeJaxWarning)
        design = design_from_formula(f"y ~ (1 | s) + ({side})", frame("data"))
        new = design_new_data(design, frame("new"), random=False).X if side not in NOT_REPEATED else None
    # R keeps the cells and levels that no row has, as columns of zeros.
    present = [j for j, column in enumerate(expected["values"]) if any(column)]
    names = [expected["names"][j] for j in present]
    assert [n for n in names if n not in design.dropped_columns] == list(design.exog_names)
    assert set(design.dropped_columns) <= set(expected["names"])
    kept = [expected["names"].index(n) for n in design.exog_names]
    np.testing.assert_allclose(design.X.T, np.array(expected["values"])[kept], rtol=1e-11, atol=1e-12)
    if new is not None and "new" in expected:
        r = np.array(expected["new"], dtype=float)[kept]
        np.testing.assert_allclose(new.T, r, rtol=1e-9, atol=1e-10)


def test_x_and_y_swapped_in_a_term_and_a_dropped_response():
    data = frame("data")
    with pytest.warns(LmeJaxWarning, match="response y stood on the right-hand side too"):
        design = design_from_formula("y ~ x * y + (1 | s)", data)
    assert design.exog_names == ("(Intercept)", "x", "y:x")


def test_a_warning_points_at_the_callers_line():
    data = frame("data")
    data.loc[0, "x"] = np.nan
    with pytest.warns(DroppedRowsWarning) as caught:
        design_from_formula("y ~ x + (1 | s)", data)
    assert caught[0].filename == __file__
    with pytest.warns(RankWarning) as caught:
        design_from_formula("y ~ z + I(2 * z) + (1 | s)", data)
    assert caught[0].filename == __file__
