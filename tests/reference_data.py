"""Reference fits and their data, made with R; tests/reference/README.md says how."""

import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent / "reference"

_DTYPES = {"numeric": "float64", "integer": "float64", "factor": "str"}


def lmer_entries() -> list[dict[str, Any]]:
    """Every lmer fit: id, dataset, formula, method, estimates; see tests/reference/README.md."""
    return list(_read("lmer.json").values())


def lmer_entry(name: str) -> dict[str, Any]:
    """One lmer fit by its id."""
    return _read("lmer.json")[name]


def inference_entries(part: str) -> dict[str, Any]:
    """One part ("satterthwaite", "kenward_roger", …) by the id of the fit, for the fits that have it."""
    return {key: entry[part] for key, entry in _read("lmer_inference.json").items() if part in entry}


def structured_entries() -> dict[str, dict[str, Any]]:
    """Fits of nlme and glmmTMB with structured random effects, by id."""
    return _read("structured.json")


def comparisons() -> dict[str, dict[str, Any]]:
    """Likelihood-ratio tests (``lrt_…``) and pbkrtest's comparisons (``modcomp_…``), by id."""
    return _read("lrt.json")


def load_frame(name: str) -> pd.DataFrame:
    """A fresh copy of a data set: numbers as float64, factors as Categoricals in R's level order."""
    return _frame(name).copy()


@functools.cache
def _frame(name: str) -> pd.DataFrame:
    columns: dict[str, dict[str, Any]] = _read("datasets.json")[name]["columns"]
    frame = pd.read_csv(
        HERE / "data" / f"{name}.csv.gz",
        dtype={c: _DTYPES[spec["type"]] for c, spec in columns.items()},
        keep_default_na=False,
        na_values=[""],
    )
    for column, spec in columns.items():
        if spec["type"] == "factor":
            levels = spec["levels"] or sorted(frame[column].dropna().unique())
            frame[column] = pd.Categorical(frame[column], categories=levels, ordered=spec["ordered"])
    return frame


def as_frame(table: dict[str, Any]) -> pd.DataFrame:
    """An R table (``rows``, ``cols``, ``values``) as a DataFrame."""
    return pd.DataFrame(table["values"], index=table["rows"], columns=table["cols"])


@functools.cache
def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return content
