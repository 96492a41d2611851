"""The language of residual structures: what is understood, what is refused in which words, the codes that it gives."""

import numpy as np
import pandas as pd
import pytest

import lme_jax as lme
from lme_jax import datasets
from lme_jax.errors import DataError, DroppedRowsWarning, FormulaError, LmeJaxWarning
from lme_jax.formula import design_from_formula
from lme_jax.formula.residual_words import parse_correlation, parse_variance
from lme_jax.formula.terms import split_residual


@pytest.fixture(scope="module")
def orthodont() -> pd.DataFrame:
    return datasets.load("Orthodont")


def term(data, residual=None, variance=None, formula="distance ~ age"):
    return design_from_formula(formula, data, residual=residual, variance=variance, bars=False).residual


@pytest.mark.parametrize(
    ("text", "word", "clock", "group", "subject", "options"),
    [
        ("ar1(visit | id)", "ar1", ["visit"], "None", ["id"], {}),
        ("us(AVISIT | ARMCD / USUBJID)", "us", ["AVISIT"], "ARMCD", ["USUBJID"], {}),
        ("sp_exp(x1, x2 | id, nugget=True)", "sp_exp", ["x1", "x2"], "None", ["id"], {"nugget": True}),
        ('sp_gau(x | id, metric = "manhattan")', "sp_gau", ["x"], "None", ["id"], {"metric": "manhattan"}),
        ("arma(t | g, p=1, q=2)", "arma", ["t"], "None", ["g"], {"p": 1, "q": 2}),
        ("us(`my visit` | arm / site:`the id`)", "us", ["`my visit`"], "arm", ["site", "`the id`"], {}),
        ("ar1(0 + visit | id)", "ar1", ["visit"], "None", ["id"], {}),
        ("cs(1 | id)", "cs", [], "None", ["id"], {}),
        ("sp_exp(x, y)", "sp_exp", ["x", "y"], "None", [], {}),
        ("car1(as.numeric(day) | id)", "car1", ["as.numeric(day)"], "None", ["id"], {}),
    ],
)
def test_correlations_read(text, word, clock, group, subject, options):
    found = parse_correlation(text)
    assert (found.word, [*map(str, found.clock)], str(found.group)) == (word, clock, group)
    assert ([*map(str, found.subject)], dict(found.options)) == (subject, options)
    assert parse_correlation(found.text).word == word


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("corAR1(form = ~ visit | id)", "the word here is ar1"),
        ("corSymm(form = ~ 1 | id)", "the word here is us"),
        ("AR(1)", "the word here is ar1"),
        ("TYPE=UN", "write 'us"),
        ("SP(EXP)(x)", "write 'sp_exp"),
        ("hetar1(v | id)", "the word here is ar1h"),
        ("ou(t | id)", "the word here is car1"),
        ("corSpher(form = ~x)", "kinks"),
        ("ar2(v | id)", "did you mean ar1"),
        ("ar1", "write residual="),
        ("ident(sex)", "variance='ident"),
        ("ar1(v | id) * ident(sex)", "variance="),
        ("ar1(v, w | id)", "one variable"),
        ("ar1(v || id)", r"\|\|"),
        ("ar1(v | id, nugget = TRUE)", "takes no options"),
        ("sp_exp(x + y | id)", "commas"),
        ("sp_exp(x | id, nugget = 2)", "TRUE or FALSE"),
        ("arma(v | id)", "orders"),
        ("arma(v | id, p = 1.5)", "whole number"),
        ("us(v | a / b / id)", "one group"),
    ],
)
def test_correlations_refused_in_words(text, says):
    with pytest.raises(FormulaError, match=says):
        parse_correlation(text)


def test_variances_read_and_refused():
    ident, power = parse_variance("ident(1 | sex:arm) * power(log(age) | sex)")
    assert (ident.word, [*map(str, ident.strata)], ident.covariate) == ("ident", ["sex", "arm"], None)
    assert (power.word, [*map(str, power.strata)], str(power.covariate)) == ("power", ["sex"], "log(age)")
    for text, says in [
        ("varPower(form = ~age)", "power"),
        ("~ age", "ident"),
        ("age", "no variance function"),
        ("power(a, b)", "one variable"),
        ("ident(sex) + power(age)", "joins several"),
    ]:
        with pytest.raises(FormulaError, match=says):
            parse_variance(text)


def test_formulas_of_mmrm_are_taken_apart():
    assert split_residual("y ~ a * v + us(v | arm / id)") == ("y ~ a * v", "us(v | arm/id)")
    assert split_residual("y ~ us(v | id)") == ("y ~ 1", "us(v | id)")
    assert split_residual("log(y) ~ x + sp_exp(a, b | id) - 1") == ("log(y) ~ x - 1", "sp_exp(a, b | id)")
    assert split_residual("y ~ x + (1 | g)") == ("y ~ x + (1 | g)", None)
    with pytest.raises(FormulaError, match="one residual structure"):
        split_residual("y ~ us(v | id) + ar1(v | id)")


def test_visits_of_numbers(orthodont):
    by_value = term(orthodont, "us(age | Subject)")
    assert by_value.visits == (8, 10, 12, 14)
    np.testing.assert_array_equal(by_value.rows.clock[:5], [0, 1, 2, 3, 0])
    counted = term(orthodont, "ar1(age | Subject)")
    np.testing.assert_array_equal(counted.rows.clock[:4], [0, 2, 4, 6])
    assert term(orthodont, "toep(age | Subject)").visits == (8, 10, 12, 14)
    assert term(orthodont, "car1(age | Subject)").visits == ()
    with pytest.raises(DataError, match=r"car1\(half \| Subject\)"):
        term(orthodont.assign(half=orthodont.age / 4), "ar1(half | Subject)")
    uneven = orthodont.assign(t=orthodont.age.replace(14, 20))
    with pytest.raises(DataError, match="not equally spaced"):
        term(uneven, "toep(t | Subject)")
    assert term(uneven, "adh(t | Subject)").visits == (8, 10, 12, 20)
    assert term(uneven, "toep(factor(t) | Subject)").visits == (8.0, 10.0, 12.0, 20.0)


def test_levels_without_rows_keep_lags_or_go_where_they_change_nothing(orthodont):
    data = orthodont.assign(v=pd.Categorical(orthodont.age.astype(int), [6, 8, 9, 10, 12, 14, 16]))
    assert term(data, "ar1(v | Subject)").visits == (8, 9, 10, 12, 14)
    assert term(data, "us(v | Subject)").visits == (8, 10, 12, 14)
    with pytest.raises(DataError, match="'9' of v has no rows"):
        term(data, "toeph(v | Subject)")
    text = orthodont.assign(v="week " + orthodont.age.astype(int).astype(str))
    assert term(text, "us(v | Subject)").visits[0] == "week 10"
    with pytest.raises(DataError, match="Categorical"):
        term(text, "ar1(v | Subject)")


def test_subjects_arms_and_strata(orthodont):
    found = term(orthodont, "us(age | Sex / Subject)", "ident(Sex) * power(age | Sex)")
    assert (found.arms, found.arm_name, found.subject_name) == (("Male", "Female"), "Sex", "Subject")
    assert [v.levels for v in found.rows.variances] == [("Male", "Female")] * 2
    assert [len(term(orthodont, f"cs(1 | {s})").subjects) for s in ("Subject", "Sex:Subject")] == [27, 27]
    with pytest.raises(DataError, match=r"two rows of Sex .Male. have the same age, 8 \(rows used 0 and 4"):
        term(orthodont, "us(age | Sex)")
    with pytest.raises(DataError, match=r"has rows in age 8\.0 and 10\.0"):
        term(orthodont, "us(age | age / Subject)")
    with pytest.raises(DataError, match="did you mean 'age'"):
        term(orthodont, "us(agee | Subject)")
    with pytest.raises(DataError, match="same age, distance"):
        term(pd.concat([orthodont, orthodont[:1]]), "sp_exp(age, distance | Subject)")


def test_rows_with_missing_clock_or_stratum_go_with_the_others(orthodont):
    data = orthodont.assign(v=orthodont.age.where(orthodont.age != 10), s=orthodont.Sex.where(orthodont.age != 8))
    with pytest.warns(DroppedRowsWarning, match=r"54 of 108 rows: missing values in s \(27\); missing values in v"):
        found = term(data, "us(v | Subject)", "ident(s)")
    assert found.visits == (12, 14)
    assert len(found.rows.clock) == len(found.rows.variances[0].codes) == 54


def test_row_order_counts_rows_whose_response_is_missing(orthodont):
    """The first subject lacks its second measurement: its lags stay those of the data."""
    data = orthodont.assign(distance=orthodont.distance.where(orthodont.index != 1))
    with pytest.warns(DroppedRowsWarning):
        found = term(data, "ar1(1 | Subject)")
    np.testing.assert_array_equal(found.rows.clock[:4], [0, 2, 3, 0])
    with pytest.warns(LmeJaxWarning, match="3 to 4 rows"):
        term(orthodont.drop(index=1), "ar1(1 | Subject)")


def test_new_rows_find_their_codes(orthodont):
    design = design_from_formula(
        "distance ~ age", orthodont, residual="us(age | Sex / Subject)", variance="power(age | Sex)", bars=False
    )
    new = orthodont.iloc[[5, 0]].assign(Subject=["nobody", "M01"])
    rows = design.state.rebuild_residual(new)
    at = int(np.flatnonzero(design.residual.subjects == "M01")[0])
    np.testing.assert_array_equal(rows.subject, [-1, at])
    np.testing.assert_array_equal(rows.clock, [1, 0])
    np.testing.assert_array_equal(rows.arm, [0, 0])
    np.testing.assert_array_equal(rows.variances[0].covariate, [10.0, 8.0])
    with pytest.raises(DataError, match=r"age 11\.0 is new"):
        design.state.rebuild_residual(new.assign(age=11.0))


def test_formulas_with_and_without_bars(orthodont):
    with pytest.raises(FormulaError, match="no random-effects term"):
        design_from_formula("distance ~ age", orthodont)
    with pytest.raises(FormulaError, match="lmer"):
        term(orthodont, "ar1(age | Subject)", formula="distance ~ age + (1 | Subject)")
    dot = design_from_formula("distance ~ .", orthodont, residual="us(age | Subject)", bars=False)
    assert dot.exog_names == ("(Intercept)", "age", "SexFemale")


def test_visit_and_subject_the_wrong_way_round_are_recognised():
    data = lme.datasets.load("Orthodont")
    data["visit"] = data.age.astype(int).astype("category")
    with pytest.raises(DataError, match="wrong way round"):
        lme.mmrm("distance ~ Sex + us(Subject | visit)", data)
