"""Data of any kind: polars, Arrow, DuckDB, plain dicts, nullable and Arrow-backed pandas give the fit of pandas."""

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import lme_jax as lme

FORMULA = "`réponse (ms)` ~ Days * sex + (Days | Subject)"


def plain():
    """sleepstudy with an odd name, text groups, a category whose order is not the alphabet's, a missing value."""
    d = lme.datasets.load("sleepstudy").rename(columns={"Reaction": "réponse (ms)"})
    sex = np.where(np.arange(len(d)) % 7 < 3, "m", "f")
    d = d.assign(Subject=d.Subject.astype(str), Days=d.Days.astype(float), sex=pd.Categorical(sex, ["m", "f"]))
    d.loc[5, "Days"] = np.nan
    return d


def in_polars():
    return pl.from_pandas(plain(), nan_to_null=True).with_columns(pl.col("sex").cast(pl.Enum(["m", "f"])))


def in_duckdb():
    rows = in_polars().to_arrow()
    return duckdb.from_arrow(rows.set_column(3, "sex", pa.compute.cast(rows["sex"], pa.string())))


KINDS = {
    "polars": in_polars,
    "polars, lazy": lambda: in_polars().lazy(),
    "polars, text as categories": lambda: in_polars().with_columns(pl.col("Subject").cast(pl.Categorical)),
    "Arrow": lambda: pa.Table.from_pandas(plain()),
    "DuckDB": in_duckdb,
    "dict": lambda: {name: list(column) for name, column in plain().items()},
    "nullable": lambda: plain().convert_dtypes(),
    "Arrow-backed": lambda: plain().convert_dtypes(dtype_backend="pyarrow"),
}


@pytest.fixture(scope="module")
def expected():
    with pytest.warns(lme.errors.DroppedRowsWarning):
        return lme.lmer(FORMULA, plain())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_frame_gives_the_same_fit_and_predictions(kind, expected):
    data = KINDS[kind]()
    with pytest.warns(lme.errors.DroppedRowsWarning):
        fit = lme.lmer(FORMULA, data)
    if kind in ("DuckDB", "dict"):
        # Text has no order of its own: "f" comes before "m".
        assert list(fit.fe_params.index) == ["(Intercept)", "Days", "sexm", "Days:sexm"]
        assert fit.fe_params["sexm"] == pytest.approx(-expected.fe_params["sexf"], rel=1e-8)
    else:
        pd.testing.assert_series_equal(fit.fe_params, expected.fe_params, rtol=1e-9)
    assert fit.deviance == pytest.approx(expected.deviance, abs=1e-8)
    again = KINDS[kind]()
    np.testing.assert_allclose(np.asarray(fit.predict(again)), np.asarray(expected.predict(plain())), rtol=1e-9)


def test_columns_of_polars_as_weights_offset_and_responses():
    data, rng = in_polars().fill_null(1.0), np.random.default_rng(0)
    w, o = rng.uniform(0.5, 2.0, len(data)), rng.normal(size=len(data))
    by_array = lme.lmer(FORMULA, data, weights=w, offset=o)
    by_series = lme.lmer(FORMULA, data, weights=pl.Series(w), offset=pl.Series(o))
    assert by_series.deviance == by_array.deviance
    Y = pl.DataFrame({"a": data["réponse (ms)"], "b": rng.normal(size=len(data))})
    many = lme.lmer_many("~ Days + (Days | Subject)", data, Y)
    assert list(many.names) == ["a", "b"]


def test_an_enum_of_polars_is_an_unordered_factor_in_its_own_order():
    fit = lme.lmer("`réponse (ms)` ~ sex + (1 | Subject)", in_polars())
    assert list(fit.fe_params.index) == ["(Intercept)", "sexf"]


def test_what_is_no_frame_is_said_to_be_none():
    with pytest.raises(lme.errors.DataError, match="DataFrame or a dict"):
        lme.lmer("y ~ x + (1 | g)", 3.0)
