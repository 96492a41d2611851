"""The packaged data sets: complete, typed as R types them, and the same numbers as the reference data."""

import numpy as np
import pandas as pd
import pytest
import reference_data

from lme_jax import datasets
from lme_jax.errors import DataError

ALL = datasets.names()


def test_names():
    expected = "cake dietox Dyestuff Dyestuff2 Machines Oats Orthodont Oxboys Pastes Penicillin Sitka sleepstudy"
    assert expected.split() == ALL


@pytest.mark.parametrize("name", ALL)
def test_frame_matches_its_description(name):
    frame = datasets.load(name)
    overview = datasets.describe().loc[name]
    assert frame.shape == (overview["rows"], overview["columns"])
    assert frame.attrs["source"] == overview["source"] != ""
    columns = datasets.describe(name)
    assert list(columns.index) == list(frame.columns)
    for column, row in columns.iterrows():
        series = frame[column]
        if row["type"] == "factor":
            assert isinstance(series.dtype, pd.CategoricalDtype)
            # Every level occurs, and no value fell outside the levels.
            assert series.notna().all()
            assert series.nunique() == row["levels"] == len(series.cat.categories)
        else:
            assert series.dtype == {"float": np.float64, "integer": np.int64}[row["type"]]


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("dietox", "Sitka")])
def test_same_data_as_the_reference_fits(name):
    packaged = datasets.load(name)
    reference = reference_data.load_frame(name)[list(packaged.columns)]
    for column in packaged:
        if packaged[column].dtype == "category":
            assert list(packaged[column]) == list(reference[column])
            assert list(packaged[column].cat.categories) == list(reference[column].cat.categories)
            assert packaged[column].cat.ordered == reference[column].cat.ordered
        else:
            np.testing.assert_array_equal(packaged[column].to_numpy(float), reference[column].to_numpy(float))


def test_sleepstudy_has_only_the_original_columns():
    assert list(datasets.load("sleepstudy").columns) == ["Reaction", "Days", "Subject"]


def test_level_order_is_rs_not_alphabetical():
    assert list(datasets.load("Machines")["Worker"].cat.categories) == ["6", "2", "4", "1", "3", "5"]
    assert list(datasets.load("Oats")["Block"].cat.categories) == ["VI", "V", "III", "IV", "II", "I"]


def test_ordered_flag_is_kept():
    cake = datasets.load("cake")
    assert cake["temperature"].cat.ordered
    assert not cake["recipe"].cat.ordered


def test_dietox_numbers():
    pigs = datasets.load("dietox")
    assert pigs["Pig"].nunique() == 72
    assert pigs["Feed"].isna().sum() == 72  # nothing eaten yet at the first weighing
    assert not pigs.drop(columns="Feed").isna().any().any()
    assert pigs.loc[0, "Weight"] == 26.5


def test_sitka_numbers():
    trees = datasets.load("Sitka")
    assert trees["tree"].nunique() == 79
    assert (trees.groupby("tree").size() == 5).all()
    assert sorted(trees["Time"].unique()) == [152, 174, 201, 227, 258]
    # 54 trees in ozone, 25 controls, as in help(Sitka) of R's MASS; the mean is R's mean(Sitka$size).
    assert trees.drop_duplicates("tree")["treat"].value_counts().to_dict() == {"ozone": 54, "control": 25}
    assert trees["size"].mean() == pytest.approx(4.84078481012658, abs=1e-12)


def test_load_gives_a_fresh_copy():
    first = datasets.load("sleepstudy")
    first["Reaction"] = 0.0
    first.attrs["source"] = "changed"
    second = datasets.load("sleepstudy")
    assert second["Reaction"].iloc[0] == 249.56
    assert second.attrs["source"] != "changed"


@pytest.mark.parametrize("spelling", ["SLEEPSTUDY", "Sleepstudy", "sleepstudy"])
def test_case_does_not_matter(spelling):
    assert len(datasets.load(spelling)) == 180


@pytest.mark.parametrize("name", ["sleepstudies", "", None, 3])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(DataError, match=r"no packaged data set .*cake, dietox, Dyestuff.*sleepstudy"):
        datasets.load(name)
    if name is not None:
        with pytest.raises(DataError):
            datasets.describe(name)
