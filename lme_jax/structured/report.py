"""The summary of a model with structured residuals."""

from typing import Any

import numpy as np
import pandas as pd

from ..inference.wald import check_alpha
from ..report import beside_criterion, components_table
from ..summary import Summary
from .data import StructuredData

# Visits up to which a summary shows the whole matrix.
SHOWN_VISITS = 12


def summary_of(result: Any, data: StructuredData, title: str | None, alpha: float, ddf: str) -> Summary:
    """Facts, coefficients, parameters of the residuals, their matrix, random effects."""
    parts = [
        ("", facts(result, data)),
        coefficients(result, alpha, ddf),
        (f"Residual structure {result.structure}", _parameters(result, alpha)),
        *matrices(result),
    ]
    if data.terms:
        parts.append(("Random effects", components_table(result.varcorr.iloc[:-1])))
    captions, tables = zip(*parts, strict=True)
    name = "Linear mixed model fit" if data.terms else "Generalised least squares fit"
    return Summary(title or f"{name}, structured residuals", list(tables), tuple(captions), tuple(notes(result, data)))


def facts(result: Any, data: StructuredData) -> pd.DataFrame:
    """Criterion, sizes and how the fit ended, two facts a row."""
    sizes = result.subject_sizes
    name = data.term.subject_name or "all rows"
    visits = f"{data.term.clock_name}, {len(result.visits)} visits" if result.visits else data.term.clock_name
    right = [
        ("Observations:", result.nobs),
        ("Subjects:", f"{name} {result.n_subjects}"),
        ("Rows per subject:", f"{sizes.min()} to {sizes.max()}, mean {sizes.mean():.1f}"),
        ("Clock:", visits if data.term.spelling.correlation is not None else "none"),
        ("Covariance parameters:", result.k_cov),
        ("Residual SD:", result.sigma),
    ]
    by_subjects = ("BIC by subjects:", result.information_criteria("sas")["BIC"])
    return beside_criterion(result, data, [by_subjects], right)


def coefficients(result: Any, alpha: float, ddf: str) -> tuple[str, pd.DataFrame]:
    """Caption and table of the fixed effects."""
    letter = "z" if ddf == "normal" else "t"
    limits = [f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"]
    columns = ["Coef.", "Std.Err.", "df", letter, f"P>|{letter}|", *limits]
    table = result.coefficients(ddf, 1.0 - check_alpha(alpha)).set_axis(columns, axis=1)
    kind = "z tests" if ddf == "normal" else f"t tests, degrees of freedom: {ddf.title()}"
    kind += "" if result._vcov is None else f"; cluster-robust covariance {result._vcov}"
    return f"Fixed effects ({kind})", table.drop(columns=["df"] if ddf == "normal" else [])


def _parameters(result: Any, alpha: float) -> pd.DataFrame:
    found = result.residual_intervals(alpha)
    limits = [f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"]
    keep = ["parameter", "estimate", "se", "lower", "upper"]
    out = found[keep].set_axis(["Parameter", "Estimate", "Std.Err.", *limits], axis=1)
    if (found.group != "").any():
        out.insert(0, "Group", found.group)
    out.index = pd.Index([str(term) for term in found.term])
    return out


def matrices(result: Any) -> list[tuple[str, pd.DataFrame]]:
    """Standard deviations and correlations of the visits, by arm; of a typical subject where visits do not say all."""
    size = len(result.visits) if result._by_visit else int(result.subject_sizes.max())
    if result._data.term.spelling.correlation is None or not 2 <= size <= SHOWN_VISITS:
        return []
    out = []
    for arm, matrix in result._shown_covariances.items():
        of = f", {result._data.term.arm_name} {arm}" if arm is not None else ""
        of += "" if result._by_visit else f", {result._data.term.subject_name} {result.typical_subject}"
        out.append((f"Residual SD and correlations{of}", _sd_and_correlations(matrix)))
    return out


def _sd_and_correlations(matrix: pd.DataFrame) -> pd.DataFrame:
    sd = np.sqrt(np.diag(matrix))
    R = np.where(np.tri(len(sd), k=-1, dtype=bool), matrix / np.outer(sd, sd), np.nan)
    names = [str(name) for name in matrix.columns]
    shown = pd.DataFrame(R[:, :-1], index=names, columns=names[:-1])
    shown.insert(0, "SD", sd)
    return shown


def notes(result: Any, data: StructuredData) -> list[str]:
    """How the search ended, what the criteria count, and what was left out."""
    iterations, left = int(result.fit.iterations), float(result.fit.decrease)
    out = [f"{result.status_text[:1].upper()}{result.status_text[1:]}; {iterations} evaluations;"]
    out.append(f"½gᵀH⁻¹g = {left:.1e} deviance units remain.")
    out.append(
        f"AIC and BIC count {result.n_params} parameters and n = {result.nobs} rows; BIC by subjects counts "
        f"{result.k_cov if result.reml else result.n_params} and n = {result.n_subjects}."
    )
    if data.n_dropped:
        out.append(f"{data.n_dropped} rows with missing values were left out.")
    if data.dropped_columns:
        out.append(f"Dropped because other columns determine them: {', '.join(data.dropped_columns)}.")
    return out
