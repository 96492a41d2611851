"""The commands of ``lme``."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import pandas as pd

import lme_jax as lme
from lme_jax.model import lmer_of_text

from .reading import read_table
from .writing import plain, render, write

NOT_CONVERGED = 3

HELP = """Linear mixed-effects models of files.

FORMULA is written as in R's lme4, in quotes: a response, fixed effects, and bars for effects of groups.

\b
  lme fit "Reaction ~ Days + (Days | Subject)" sleep.csv
  lme anova "yield ~ nitro * Variety + (1 | Block/Variety)" oats.csv --ddf kenward-roger
  lme emmeans "yield ~ nitro * Variety + (1 | Block/Variety)" oats.csv Variety --contrast pairwise
  lme compare sleep.csv "Reaction ~ Days + (1 | Subject)" "Reaction ~ Days + (Days | Subject)"
  lme predict "Reaction ~ Days + (Days | Subject)" sleep.csv --new visits.csv > predicted.csv
  cat sleep.csv | lme fit "Reaction ~ Days + (1 | Subject)" - --json

DATA is a .csv, .tsv, .parquet or .feather file, or - for CSV from standard input. Columns of text are factors;
numbers that are labels are named by --factor. Results go to standard output, warnings and progress to standard
error. Formulas may call the functions that help(lme_jax.formula) lists, and no others.

\b
Exit codes: 0 done; 1 the model cannot be fitted; 2 the command is wrong; 3 fitted, but not converged.
"""


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(lme.__version__, prog_name="lme")
def cli() -> None:
    pass


# ---------------------------------------------------------------- what commands share


def _options(*options: Any) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


of_data = _options(
    click.option(
        "--factor",
        "factors",
        multiple=True,
        metavar="COLUMN",
        help="A column of numbers that are labels; may be repeated.",
    ),
    click.option(
        "--format", "kind", metavar="KIND", help="Read DATA as csv, tsv, txt, parquet or feather, whatever its name."
    ),
)
of_model = _options(
    click.option("--ml", is_flag=True, help="Maximum likelihood instead of REML."),
    click.option("--weights", metavar="COLUMN", help="Prior weights: the residual variance is σ²/weight."),
    click.option("--offset", metavar="COLUMN", help="A known part of the mean."),
    click.option(
        "--residual", metavar="TERM", help='Correlation of residuals, such as "us(visit | id)"; no bar needed.'
    ),
    click.option("--variance", metavar="TERM", help='Variance of residuals, such as "ident(sex)".'),
    click.option("--subset", metavar="QUERY", help="Rows to use, such as \"age > 40 and sex == 'f'\"."),
    of_data,
)
of_tables = _options(
    click.option("--json", "form", flag_value="json", help="Results as JSON."),
    click.option("--csv", "form", flag_value="csv", help="Results as CSV."),
    click.option("--html", "form", flag_value="html", help="Results as HTML."),
    click.option("--text", "form", flag_value="text", default="text", hidden=True),
    click.option("-o", "--output", metavar="FILE", help="Write there instead of to standard output."),
)
ddf_option = click.option(
    "--ddf", metavar="METHOD", help="Degrees of freedom: satterthwaite (default under REML), kenward-roger, normal …"
)


@contextmanager
def _said() -> Iterator[None]:
    """Warnings in one line each, errors of the package as messages, on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", lme.errors.LmeJaxWarning)
        warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
        try:
            yield
        except lme.errors.LmeJaxError as error:
            raise click.ClickException(str(error)) from error


def _fitted(formula: str, data: str, *, ml: bool, kind: str | None, factors: tuple[str, ...], **arguments: Any) -> Any:
    frame = read_table(data, kind, factors)
    given = {name: value for name, value in arguments.items() if value is not None}
    return lmer_of_text(formula, frame, reml=not ml, **given)


def _end(fit: Any) -> None:
    """The exit code of a fit."""
    if not fit.converged:
        sys.exit(NOT_CONVERGED)


# ---------------------------------------------------------------- commands


@cli.command()
@click.argument("formula")
@click.argument("data")
@of_model
@of_tables
@ddf_option
def fit(formula: str, data: str, form: str, output: str | None, ddf: str | None, **model: Any) -> None:
    """Fit a model and print its summary."""
    with _said():
        fitted = _fitted(formula, data, **model)
        chosen = {} if ddf is None else {"ddf": ddf}
        if form == "json":
            text = json.dumps(plain(_everything(fitted, chosen)), indent=1, ensure_ascii=False)
        elif form == "csv":
            text = render(fitted.coefficients(**chosen), "csv")
        else:
            summary = fitted.summary(**chosen)
            text = summary.as_html() if form == "html" else summary.as_text()
    write(text, output)
    _end(fitted)


def _everything(fitted: Any, chosen: dict[str, str]) -> dict[str, Any]:
    structured = isinstance(fitted, lme.StructuredResults)
    return {
        "criterion": {
            "method": fitted.method,
            "deviance": fitted.deviance,
            "loglik": fitted.llf,
            "aic": fitted.aic,
            "bic": fitted.bic,
        },
        "n": fitted.nobs,
        "status": fitted.status.name,
        "converged": fitted.converged,
        "singular": fitted.singular,
        "sigma": fitted.sigma,
        "coefficients": fitted.coefficients(**chosen),
        "covariance": fitted.varcorr,
        **({"residual": fitted.residual_params} if structured else {}),
    }


@cli.command()
@click.argument("formula")
@click.argument("data")
@click.option("--type", "kind_of_test", default="III", show_default=True, help="I, II or III.")
@of_model
@of_tables
@ddf_option
def anova(
    formula: str, data: str, kind_of_test: str, form: str, output: str | None, ddf: str | None, **model: Any
) -> None:
    """Test every term of the fixed effects."""
    with _said():
        fitted = _fitted(formula, data, **model)
        table = fitted.anova(type=kind_of_test, **({} if ddf is None else {"ddf": ddf}))
    write(render(table, form), output)  # type: ignore[arg-type]
    _end(fitted)


@cli.command()
@click.argument("formula")
@click.argument("data")
@click.argument("factors_of_means", metavar="FACTOR...", nargs=-1, required=True)
@click.option(
    "--by", multiple=True, metavar="FACTOR", help="Means, and contrasts, within each level of it; may be repeated."
)
@click.option("--contrast", metavar="KIND", help="pairwise, trt.vs.ctrl, consec, poly or eff.")
@click.option("--adjust", metavar="METHOD", help="tukey, sidak, bonferroni, holm, fdr, mvt or none.")
@of_model
@of_tables
@ddf_option
def emmeans(
    formula: str,
    data: str,
    factors_of_means: tuple[str, ...],
    by: tuple[str, ...],
    contrast: str | None,
    adjust: str | None,
    form: str,
    output: str | None,
    ddf: str | None,
    **model: Any,
) -> None:
    """Marginal means of factors, and their contrasts."""
    if adjust is not None and contrast is None:
        raise click.UsageError("--adjust is of the p-values of --contrast")
    with _said():
        fitted = _fitted(formula, data, **model)
        means = fitted.emmeans(list(factors_of_means), by=list(by) or None, **({} if ddf is None else {"ddf": ddf}))
        if contrast is not None:
            means = means.contrast(contrast, **({} if adjust is None else {"adjust": adjust}))
        table = means.table
    write(render(table, form), output)  # type: ignore[arg-type]
    _end(fitted)


@cli.command()
@click.argument("data")
@click.argument("formulas", metavar="FORMULA FORMULA...", nargs=-1, required=True)
@of_model
@of_tables
def compare(data: str, formulas: tuple[str, ...], form: str, output: str | None, **model: Any) -> None:
    """Compare models of the same rows: likelihood ratios, AIC, BIC."""
    if len(formulas) < 2:
        raise click.UsageError("give two formulas or more")
    if data == "-":
        raise click.UsageError("compare reads its data more than once: give a file")
    with _said():
        fits = [_fitted(formula, data, **model) for formula in formulas]
        found = fits[0].compare(*fits[1:], names=list(formulas))
        for note in found.notes:
            click.echo(note, err=True)
    write(render(found.table, form), output)  # type: ignore[arg-type]


@cli.command()
@click.argument("formula")
@click.argument("data")
@click.option("--new", metavar="FILE", help="Rows to predict; those of DATA if not given.")
@click.option("--population", is_flag=True, help="Fixed effects alone, whatever the group.")
@click.option("--level", type=float, help="Limits that hold a new observation with this probability, such as 0.95.")
@of_model
@of_tables
def predict(
    formula: str,
    data: str,
    new: str | None,
    population: bool,
    level: float | None,
    form: str,
    output: str | None,
    **model: Any,
) -> None:
    """Predict rows; CSV unless --json or --html is given."""
    with _said():
        fitted = _fitted(formula, data, **model)
        rows = None if new is None else read_table(new, None, model["factors"])
        table = _predicted(fitted, rows, population, level)
    write(render(table, "csv" if form == "text" else form), output)  # type: ignore[arg-type]
    _end(fitted)


def _predicted(fitted: Any, rows: Any, population: bool, level: float | None) -> pd.DataFrame:
    which = {"random_effects": not population}
    if level is None:
        return pd.DataFrame({"predicted": fitted.predict(rows, allow_new_levels=True, **which)})
    return fitted.prediction(rows, level=level, allow_new_levels=True, **which)


@cli.command()
@click.argument("formula")
@click.argument("data")
@click.option("-n", "--number", default=1, show_default=True, help="How many responses.")
@click.option("--seed", type=int, required=True, help="The same seed gives the same numbers.")
@of_model
@of_tables
def simulate(formula: str, data: str, number: int, seed: int, form: str, output: str | None, **model: Any) -> None:
    """Simulate responses of the rows from the fitted model, a column each."""
    with _said():
        fitted = _fitted(formula, data, **model)
        table = fitted.simulate(number, seed=seed).rename(columns="sim_{}".format)
    write(render(table, "csv" if form == "text" else form), output)  # type: ignore[arg-type]


@cli.command()
@click.argument("formula")
@click.argument("data")
@click.option("-n", "--number", default=1000, show_default=True, help="How many samples.")
@click.option("--seed", type=int, required=True, help="The same seed gives the same numbers.")
@click.option(
    "--kind", "sampled", type=click.Choice(["parametric", "residual", "cases"]), default="parametric", show_default=True
)
@click.option("--method", type=click.Choice(["percentile", "basic", "bca"]), default="percentile", show_default=True)
@of_model
@of_tables
def bootstrap(
    formula: str,
    data: str,
    number: int,
    seed: int,
    sampled: str,
    method: str,
    form: str,
    output: str | None,
    **model: Any,
) -> None:
    """Bootstrap confidence limits of all parameters."""
    with _said():
        fitted = _fitted(formula, data, **model)
        structured = isinstance(fitted, lme.StructuredResults)
        if structured and sampled != "parametric":
            raise click.UsageError("residual structures have the parametric bootstrap only")
        kind = {} if structured else {"kind": sampled}
        table = fitted.bootstrap(number, seed=seed, **kind).intervals(method=method)
    write(render(table, form), output)  # type: ignore[arg-type]


@cli.command()
@click.argument("formula")
@click.argument("data")
@click.option("-o", "--output", metavar="FILE", default="report.html", show_default=True, help="The page.")
@click.option("--title", help="Its heading.")
@of_model
@ddf_option
def report(formula: str, data: str, output: str, title: str | None, ddf: str | None, **model: Any) -> None:
    """Write a page about the fit: the model in words, tables, pictures, a paragraph for the methods section."""
    with _said():
        fitted = _fitted(formula, data, **model)
        try:
            fitted.report(output, title=title, ddf=ddf)
        except OSError as error:
            raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {output}", err=True)
    _end(fitted)


def main() -> None:
    """What ``lme`` runs."""
    cli(prog_name="lme")
