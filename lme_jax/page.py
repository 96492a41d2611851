"""A fit as one self-contained HTML page: model in words and mathematics, tables, pictures, what to write about it."""

from __future__ import annotations

import html
import io
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import plots
from .report import components_table
from .summary import cell

STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --quiet: #555; --rule: #d9d9d9; --accent: #0b5394; }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: #fff; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { margin-top: 2.2rem; font-size: 1.25rem; border-bottom: 1px solid var(--rule); }
nav ul { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; } a { color: var(--accent); }
code, pre { font: .92em ui-monospace, monospace; } pre, .wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; }
th[scope=row], thead th:first-child { text-align: left; font-weight: 600; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
figcaption, footer { color: var(--quiet); font-size: .92rem; }
.said { border-left: 4px solid var(--accent); padding: .3rem 1rem; background: #f3f7fb; }
@media print { nav { display: none; } main { max-width: none; padding: 0; } h2, figure, table { break-inside: avoid; } }
"""
REFERENCES = {
    "satterthwaite": "Kuznetsova, A., Brockhoff, P. B., & Christensen, R. H. B. (2017). lmerTest package: tests in "
    "linear mixed effects models. Journal of Statistical Software, 82(13).",
    "kenward-roger": "Kenward, M. G., & Roger, J. H. (1997). Small sample inference for fixed effects from "
    "restricted maximum likelihood. Biometrics, 53, 983–997.",
}
COLUMNS = {
    "estimate": "Estimate",
    "se": "Std. error",
    "statistic": "t",
    "lower": "Lower",
    "upper": "Upper",
    "sum_sq": "Sum of squares",
    "mean_sq": "Mean square",
    "num_df": "df",
    "den_df": "Denominator df",
}
TESTS = {
    "normal": "z tests",
    "satterthwaite": "t tests with Satterthwaite's degrees of freedom",
    "kenward-roger": "t tests with Kenward and Roger's adjustment",
}
MODELS = (
    "Bates, D., Mächler, M., Bolker, B., & Walker, S. (2015). Fitting linear mixed-effects models using lme4. Journal "
    "of Statistical Software, 67(1)."
)


def report(result: Any, path: Any = None, *, title: str | None = None, ddf: str | None = None) -> str:
    """The page of a fit, as text; also written to ``path`` if one is given.

    Parameters
    ----------
    title : heading; names the response if None.
    ddf : degrees of freedom of the tests, as ``coefficients`` takes them.

    Notes
    -----
    Nothing is loaded from elsewhere: the pictures are inside. They need matplotlib.
    """
    method = result.default_ddf if ddf is None else str(ddf).lower()
    title = f"Linear mixed model of {result._data.endog_name}" if title is None else title
    sections: list[tuple[str, Callable[[], str]]] = [
        ("The model", lambda: _model(result)),
        ("The data", lambda: _data(result)),
        ("Fixed effects", lambda: _fixed(result, method)),
        ("Random effects", lambda: _table(components_table(result.varcorr), "Variance components, response units")),
        ("Pictures", lambda: _pictures(result)),
        ("How the fit ended", lambda: _outcome(result)),
        ("For a methods section", lambda: _methods(result, method)),
    ]
    links = "".join(f'<li><a href="#s{i}">{name}</a></li>' for i, (name, _) in enumerate(sections))
    body = "".join(
        f'<section aria-labelledby="s{i}"><h2 id="s{i}">{name}</h2>{make()}</section>'
        for i, (name, make) in enumerate(sections)
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(title)}</title><style>{STYLE}</style></head><body><main><h1>{_e(title)}</h1>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>{body}'
        f"<footer><p>{_e(_versions())}</p></footer></main></body></html>\n"
    )
    if path is not None:
        Path(path).write_text(page, encoding="utf-8")
    return page


def _e(text: Any) -> str:
    return html.escape(str(text))


def _table(table: pd.DataFrame, caption: str) -> str:
    """A table whose rows and columns have headers that a reader of the screen can name."""
    head = "".join(f'<th scope="col">{_e(c)}</th>' for c in ["", *table.columns])
    rows = "".join(
        f'<tr><th scope="row">{_e(name)}</th>' + "".join(f"<td>{_e(cell(v))}</td>" for v in row) + "</tr>"
        for name, row in zip(table.index, table.itertuples(index=False), strict=True)
    )
    label = f'class="wide" tabindex="0" role="region" aria-label="{_e(caption)}"'
    table_ = f"<caption>{_e(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<div {label}><table>{table_}</table></div>"


# ---------------------------------------------------------------- sections


def _model(result: Any) -> str:
    data = result._data
    formula = getattr(data.design, "formula", None)
    spelled = f"<pre><code>{_e(formula)}</code></pre>" if formula else ""
    terms = [_bar(label, term) for label, term in zip(data.term_labels, data.terms, strict=True)]
    words = (
        f"<p><b>{_e(data.endog_name)}</b> is modelled by {result.k_fe} fixed effects and, for every level of "
        f"{_e(' and of '.join(f.name for f in data.factors))}, effects that vary at random: {'; '.join(terms)}. "
        f"Random effects are normal with mean zero, independent between levels; residuals are normal with one variance"
        f"{', divided by the weight of the row' if data.design.weights is not None else ''}.</p>"
    )
    symbols = (
        "<p><i>y</i> = <i>Xβ</i> + <i>Zb</i> + <i>ε</i>, &nbsp; <i>b</i> ~ N(0, <i>Ψ</i>), &nbsp; "
        "<i>ε</i> ~ N(0, <i>σ</i>²)</p>"
    )
    how = "restricted maximum likelihood (REML)" if result.reml else "maximum likelihood"
    return f"{spelled}{words}{symbols}<p>The variances are estimated by {how}.</p>"


def _bar(label: str, term: Any) -> str:
    effects = ", ".join(str(c) for c in term.columns)
    return f"{_e(effects)} by {_e(label)}"


def _data(result: Any) -> str:
    data = result._data
    rows = {
        f.name: [len(f.levels), int(f.sizes.min()), f"{np.median(f.sizes):g}", int(f.sizes.max())] for f in data.factors
    }
    sizes = pd.DataFrame.from_dict(rows, orient="index", columns=["Levels", "Fewest rows", "Median", "Most rows"])
    dropped = (
        f" {data.n_dropped} rows with missing values were left out." if data.n_dropped else " No row was left out."
    )
    lost = ", ".join(map(str, data.dropped_columns))
    lost = f" Columns {lost} are combinations of others and were left out." if lost else ""
    return f"<p>{result.nobs} rows.{dropped}{_e(lost)}</p>" + _table(sizes, "Grouping factors")


def _fixed(result: Any, method: str) -> str:
    table = result.coefficients(ddf=method).rename(columns=COLUMNS)
    out = _table(table, f"Estimates with 95 % limits; degrees of freedom: {method}")
    if result.k_fe < 2:
        return out
    return out + _table(result.anova(ddf=method).rename(columns=COLUMNS), "Tests of the terms, type III")


def _pictures(result: Any) -> str:
    figure = plots.overview(result)
    alt = " ".join(plots.alt_text(ax) for ax in figure.axes)
    buffer = io.StringIO()
    # The same fit gives the same page: matplotlib would number clip paths at random.
    with plots.style.pyplot().rc_context({"svg.hashsalt": "lme_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plots.style.pyplot().close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{_e(alt)}"', 1)
    caption = (
        "Above: residuals should scatter evenly about zero, whatever the fitted value. Below: points should follow the "
        "line, within the band."
    )
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _outcome(result: Any) -> str:
    n = int(result.fit.iterations)
    said = [f"The optimiser {result.status.text} after {n} evaluation{'s' * (n != 1)}."]
    if result.singular:
        said.append(
            "The fit is singular: a variance is estimated as zero, or a correlation as ±1. The fixed effects are right "
            "for this model; the data tell too little for all of its random effects, so consider a simpler one."
        )
    check = getattr(result, "check", None)
    said += [str(line) for line in check()] if callable(check) else []
    facts = pd.DataFrame(
        {"": [result.deviance, result.aic, result.bic, result.sigma]},
        index=["REML criterion" if result.reml else "−2 log L", "AIC", "BIC", "Residual SD"],
    )
    return "".join(f'<p class="said">{_e(line)}</p>' for line in said) + _table(facts, "Criteria")


def _methods(result: Any, method: str) -> str:
    data = result._data
    factors = " and ".join(f"{f.name} ({len(f.levels)} levels)" for f in data.factors)
    how = "REML" if result.reml else "maximum likelihood"
    text = (
        f"{data.endog_name} was analysed with a linear mixed-effects model fitted by {how} (lme_jax "
        f"{metadata.version('lme-jax')}), with random effects of {factors}, on {result.nobs} observations. Fixed "
        f"effects were tested by {TESTS.get(method, f't tests with {method} degrees of freedom')}."
    )
    cited = [MODELS, *([REFERENCES[method]] if method in REFERENCES else [])]
    return f"<p>{_e(text)}</p><ul>{''.join(f'<li>{_e(c)}</li>' for c in cited)}</ul>"


def _versions() -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("lme-jax", "numpy", "scipy", "pandas"))
    return f"Made with {packages}, Python {platform.python_version()} on {sys.platform}."
