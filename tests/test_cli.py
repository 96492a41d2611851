"""``lme`` on files: what a person types, what comes back, and what is said when it cannot be done."""

import io
import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import lme_jax as lme
from lme_jax.cli.commands import cli

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """sleepstudy as .csv and .parquet; its first rows; Dyestuff2, whose fit is singular."""
    folder = tmp_path_factory.mktemp("cli")
    sleep = lme.datasets.load("sleepstudy").astype({"Subject": str})
    sleep.to_csv(folder / "sleep.csv", index=False)
    sleep.to_parquet(folder / "sleep.parquet")
    sleep.head(12).drop(columns="Reaction").to_csv(folder / "new.tsv", sep="\t", index=False)
    lme.datasets.load("Oats").to_csv(folder / "oats.csv", index=False)
    (folder / "nowhere.xyz").write_text("a,b\n1,2\n")
    return folder


@pytest.fixture(scope="module")
def fit():
    return lme.lmer(FORMULA, lme.datasets.load("sleepstudy"))


def run(*arguments, code=0, **options):
    done = CliRunner().invoke(cli, [str(a) for a in arguments], **options)
    assert done.exit_code == code, done.output
    return done


def table(text):
    return pd.read_csv(io.StringIO(text), index_col=0)


def test_fit_as_text_json_csv_and_html(files, fit):
    assert (
        run("fit", FORMULA, files / "sleep.csv", "--factor", "Subject").stdout.rstrip("\n") == fit.summary().as_text()
    )
    found = json.loads(run("fit", FORMULA, files / "sleep.parquet", "--json", "--ddf", "kenward-roger").stdout)
    assert found["criterion"]["deviance"] == pytest.approx(fit.deviance, abs=1e-9) and found["status"] == "CONVERGED"
    assert [row["term"] for row in found["coefficients"]] == list(fit.fe_params.index)
    assert found["coefficients"][1]["df"] == pytest.approx(17.0)
    by_csv = table(run("fit", FORMULA, files / "sleep.csv", "--csv", "--ml").stdout)
    by_ml = fit.update(reml=False)
    np.testing.assert_allclose(by_csv["estimate"], by_ml.fe_params, rtol=1e-9)
    assert "<table" in run("fit", FORMULA, files / "sleep.csv", "--html").stdout


def test_standard_input_output_files_and_warnings_apart(files, tmp_path):
    text = (files / "sleep.csv").read_text().replace("249.56", "NA", 1)
    done = run("fit", FORMULA, "-", "--json", input=text)
    assert json.loads(done.stdout)["n"] == 179 and "warning: Left out 1 of 180 rows" in done.stderr
    run("fit", FORMULA, files / "sleep.csv", "--csv", "-o", tmp_path / "out.csv")
    assert table((tmp_path / "out.csv").read_text()).shape[0] == 2


def test_anova_means_comparisons(files):
    oats = lme.datasets.load("Oats")
    formula = "yield ~ factor(nitro) * Variety + (1 | Block/Variety)"
    model = lme.lmer(formula, oats)
    found = table(run("anova", formula, files / "oats.csv", "--csv", "--ddf", "kenward-roger").stdout)
    np.testing.assert_allclose(found, model.anova(ddf="kenward-roger"), rtol=1e-9)
    done = run("emmeans", formula, files / "oats.csv", "Variety", "--contrast", "pairwise", "--csv")
    assert done.stdout.count("\n") == 4 and "Golden Rain - Marvellous" in done.stdout
    small = "yield ~ Variety + (1 | Block/Variety)"
    done = run("compare", files / "oats.csv", small, formula, "--csv")
    assert list(table(done.stdout).index) == [small, formula] and "maximum likelihood" in done.stderr


def test_predictions_simulations_and_bootstrap(files, fit):
    found = table(
        run("predict", FORMULA, files / "sleep.csv", "--new", files / "new.tsv").stdout.replace("predicted", "n\n", 0)
    )
    assert len(found) == 12
    limits = pd.read_csv(io.StringIO(run("predict", FORMULA, files / "sleep.csv", "--level", "0.9").stdout))
    np.testing.assert_allclose(limits["mean"], fit.fittedvalues, rtol=1e-6)
    population = pd.read_csv(io.StringIO(run("predict", FORMULA, files / "sleep.csv", "--population").stdout))
    np.testing.assert_allclose(population.predicted, fit._data.X @ fit.fe_params, rtol=1e-9)
    simulated = pd.read_csv(io.StringIO(run("simulate", FORMULA, files / "sleep.csv", "-n", 3, "--seed", 1).stdout))
    np.testing.assert_allclose(simulated, fit.simulate(3, seed=1), rtol=1e-9)
    boot = table(run("bootstrap", FORMULA, files / "sleep.csv", "-n", 50, "--seed", 1, "--csv").stdout)
    np.testing.assert_allclose(boot, fit.bootstrap(50, seed=1, progress=False).intervals(), rtol=1e-6)


def test_residual_structures(files):
    sleep = lme.datasets.load("sleepstudy")
    fit = lme.gls("Reaction ~ Days", sleep, residual="ar1(Days | Subject)")
    asked = ("Reaction ~ Days", files / "sleep.csv", "--residual", "ar1(Days | Subject)")
    told = json.loads(run("fit", *asked, "--json").stdout)
    assert [row["estimate"] for row in told["residual"]] == pytest.approx(list(fit.residual_params.estimate))
    assert "Kenward-Roger" in run("fit", *asked, "--ddf", "kr").stdout
    assert list(table(run("bootstrap", *asked, "--seed", 1, "-n", 40, "--csv").stdout).index) == list(
        fit.bootstrap(40, seed=1, progress=False).intervals().index
    )
    run("bootstrap", *asked, "--seed", 1, "--kind", "cases", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("fit", "Reaction ~ Dys + (1 | Subject)", "sleep.csv"), 1, "did you mean 'Days'"),
        (("fit", FORMULA, "absent.csv"), 2, "there is no file"),
        (("fit", FORMULA, "nowhere.xyz"), 2, "what kind of file"),
        (("fit", FORMULA, "sleep.csv", "--factor", "Subjct"), 2, "--factor names"),
        (("fit", FORMULA, "sleep.csv", "--ddf", "foo"), 1, "'foo'"),
        (("fit", "Reaction ~ os.system('ls') + (1 | Subject)", "sleep.csv"), 1, "os"),
        (("fit", "Reaction ~ json.dumps(Days) + (1 | Subject)", "sleep.csv"), 1, "json"),
        (("fit", FORMULA, "sleep.csv", "--subset", "json.dumps(Days) > 1"), 1, "without a context"),
        (("compare", "sleep.csv", FORMULA), 2, "two formulas"),
        (("simulate", FORMULA, "sleep.csv"), 2, "--seed"),
    ],
)
def test_what_cannot_be_done_is_said_with_an_exit_code(files, arguments, code, said):
    given = [files / a if str(a).endswith((".csv", ".xyz")) else a for a in arguments]
    assert said in run(*given, code=code).stderr


def test_the_module_runs_and_help_teaches():
    done = subprocess.run([sys.executable, "-m", "lme_jax", "--help"], capture_output=True, text=True, check=True)
    assert 'lme fit "Reaction ~ Days' in done.stdout and "Exit codes" in done.stdout


class _Page(HTMLParser):
    """Which elements a page has, and what is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.counts, self.attributes = {}, []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes.append((tag, dict(attrs)))


def test_the_report_is_one_accessible_page_with_the_numbers_of_the_fit(files, fit, tmp_path):
    run("report", FORMULA, files / "sleep.csv", "-o", tmp_path / "r.html", "--title", "Sleep <&> reaction")
    text = (tmp_path / "r.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.counts["h1"] == 1 and page.counts["svg"] == 1 and "Sleep &lt;&amp;&gt; reaction" in text
    html, svg = (next(a for tag, a in page.attributes if tag == name) for name in ("html", "svg"))
    assert html["lang"] == "en" and svg["role"] == "img" and "normal quantile plot" in svg["aria-label"].lower()
    assert all("scope" in a for tag, a in page.attributes if tag == "th")
    assert not [a for tag, a in page.attributes if tag in ("script", "link", "img", "iframe")]
    links = {a["href"][1:] for tag, a in page.attributes if tag == "a"}
    assert links == {a["id"] for tag, a in page.attributes if tag == "h2"}
    for value in (fit.fe_params["Days"], fit.deviance, fit.sigma, fit.coefficients().loc["Days", "se"]):
        assert f"{value:.4f}" in text
    assert fit.report() == fit.report()
