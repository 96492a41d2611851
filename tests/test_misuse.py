"""What is asked in a wrong way is answered in words, never by a number for something else."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from click.testing import CliRunner

import lme_jax as lme
from lme_jax.cli.commands import cli
from lme_jax.errors import DataError, UnsupportedError


@pytest.fixture(scope="module")
def sleep():
    return lme.datasets.load("sleepstudy")


@pytest.fixture(scope="module")
def fit(sleep):
    return lme.lmer("Reaction ~ Days + (Days | Subject)", sleep)


@pytest.fixture(scope="module")
def oats():
    return lme.lmer("yield ~ Variety * factor(nitro) + (1 | Block/Variety)", lme.datasets.load("Oats"))


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: m.emmeans("Variety", at={"nitro": []}), "give 'nitro' at least one value"),
        (lambda m: m.emmeans("Variety", at=[1]), "give a mapping of variables to values"),
        (lambda m: m.emmeans("Variety", ddf=0), "degrees of freedom must be > 0"),
        (
            lambda m: m.emmeans("pairwise ~ Variety"),
            "name the variables of the means, 'Variety', then take .contrast()",
        ),
        (lambda m: m.emmeans("Variety").contrast({"a": [1, np.nan, 0]}), "a needs finite coefficients"),
        (lambda m: m.emmeans("Variety").contrast([[1, -1, 0], [0, 0, 0]]), "c2 needs finite coefficients, not all of"),
        (lambda m: m.emmeans("Variety").test("a"), "null='a' must be a finite number"),
        (lambda m: m.emmeans("Variety").letters(alpha=5), "alpha=5 must lie between 0 and 1"),
        (lambda m: m.test("factor(nitro)0.2:VarietyVictory = 0"), r"parameters \(Intercept\), VarietyMarvellous, "),
        (lambda m: m.test(np.full((1, 12), np.nan)), "not finite"),
        (lambda m: m.test(np.eye(12)[0], rhs=[1, 2]), "rhs has shape"),
        (lambda m: m.anova(m), "compare"),
    ],
)
def test_means_and_tests(oats, ask, words):
    with pytest.raises(DataError, match=words):
        ask(oats)


def test_what_is_read_all_the_same(sleep, fit):
    assert fit.test("Days == 10").pvalue == fit.test("Days = 10").pvalue
    odd = lme.lmer("Reaction ~ `the day` + (1 | Subject)", sleep.rename(columns={"Days": "the day"}))
    assert odd.emmeans("`the day`").table.equals(odd.emmeans("the day").table)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(seed=None), "seed=None: give a whole number"),
        (dict(seed=1, sizes=[]), "give numbers of levels of 'Subject'"),
        (dict(seed=1, effect=np.nan), "nan for Days is no finite number"),
        (dict(seed=1, effect={"Days": "x"}), "'x' for Days is no finite number"),
    ],
)
def test_power(fit, arguments, words):
    with pytest.raises(DataError, match=words):
        lme.power(fit, "Days", 10, **arguments)


def test_residual_structures_are_not_dropped_on_the_way(sleep):
    """Batches and designs fit independent residuals only: they refuse others, instead of leaving them out."""
    asked = dict(residual="ar1(Days | Subject)")
    with pytest.raises(UnsupportedError, match="residual= and variance= are for single fits"):
        lme.lmer_many("~ Days + (1 | Subject)", sleep, sleep[["Reaction"]], **asked)
    with pytest.raises(UnsupportedError, match="single fits"):
        lme.lmer_many("Reaction ~ Days + (1 | Subject)", sleep, by="Subject", variance="exp(Days)")
    with pytest.raises(UnsupportedError, match="single fits"):
        lme.design("~ Days + (1 | Subject)", sleep, beta=[1, 1], cov=1.0, sigma=1.0, **asked)


def test_what_a_likelihood_ratio_leaves_out_is_named(sleep):
    asked = dict(residual="ar1(Days | Subject)")
    both = lme.lmer("Reaction ~ Days + (1 | Subject)", sleep, **asked)
    with pytest.raises(UnsupportedError, match="fit the smaller one, gls"):
        both.compare_lr_test()
    with pytest.raises(UnsupportedError, match="residual_intervals"):
        both.conf_int(method="profile")
    serial = lme.gls("Reaction ~ Days", sleep, **asked)
    assert both.compare_lr_test(serial).df == 1
    assert serial.compare_lr_test().df == 1


def test_known_models_show_what_they_are(sleep):
    shown = repr(lme.design("~ Days + (1 | Subject)", sleep, beta=[250, 10], cov=600.0, sigma=25.0))
    assert shown.startswith("Model with given parameters: 180 rows, levels: 18 of Subject\n") and len(shown) < 300


def test_augment_wants_the_rows_of_the_fit(sleep, fit):
    with pytest.raises(DataError, match="these 3 rows are not those of the fit"):
        fit.augment(sleep.head(3))
    repeated = sleep.set_index(np.arange(180) % 10)
    again = lme.lmer("Reaction ~ Days + (Days | Subject)", repeated)
    np.testing.assert_array_equal(again.augment(repeated)[".fitted"], again.fittedvalues)
    assert len(again.augment(repeated)) == 180
    with pytest.raises(DataError, match="must be unique"):
        again.augment(repeated.iloc[:-1])


def test_functions_that_are_profiled(fit):
    with pytest.raises(DataError, match="needs seed="):
        fit.conf_int(method="bootstrap", n=10)
    for function, words in [
        (lambda psi, s2: psi["Subject"], "must return one number"),
        (lambda psi, s2: "x", "must return one number"),
        (lambda psi, s2: 1.0, "does not change with any parameter"),
    ]:
        with pytest.raises(DataError, match=words):
            fit.profile_ci({"f": function})


def test_pictures(sleep, fit):
    linear = lme.gls("Reaction ~ Days", sleep, residual="ar1(Days | Subject)")
    for draw, words in [
        (lambda: lme.plots.means(fit), "results of emmeans"),
        (lambda: lme.plots.power(fit), "results of power"),
        (lambda: lme.plots.acf(fit), "results of mmrm, gls"),
        (lambda: lme.plots.caterpillar(linear), "no random effects"),
        (lambda: lme.plots.groups(linear, "Days"), "no grouping factor"),
        (lambda: lme.plots.forest([fit, fit]), "several models need names"),
    ]:
        with pytest.raises(DataError, match=words):
            draw()


def test_command_line(sleep, tmp_path):
    table, semicolons = str(tmp_path / "s.csv"), str(tmp_path / "semicolons.csv")
    sleep.to_csv(table, index=False)
    sleep.to_csv(semicolons, index=False, sep=";")
    formula, nowhere = "Reaction ~ Days + (1 | Subject)", str(tmp_path / "no" / "x")
    for arguments, code, words in [
        (["fit", formula, semicolons], 2, "its values seem to be separated by ';'"),
        (["report", formula, table, "-o", nowhere], 1, "cannot be written: No such file"),
        (["anova", formula, table, "-o", nowhere], 1, "cannot be written: No such file"),
        (["emmeans", formula, table, "Days", "--adjust", "holm"], 2, "--adjust is of the p-values of --contrast"),
    ]:
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == code and words in done.output, done.output
