"""Small teaching data sets, so that every example runs without a download.

>>> from lme_jax import datasets
>>> sleepstudy = datasets.load("sleepstudy")
"""

import functools
import json
from importlib import resources
from typing import Any

import pandas as pd

from ..errors import DataError

__all__ = ["describe", "load", "names"]

_DTYPES = {"float": "float64", "integer": "int64", "factor": "str"}


def names() -> list[str]:
    """Names of the packaged data sets."""
    return list(_catalogue())


def load(name: str) -> pd.DataFrame:
    """Read one data set.

    Parameters
    ----------
    name : str
        One of ``names()``; upper and lower case are the same.

    Returns
    -------
    DataFrame
        A fresh copy at each call. Factors are Categoricals with R's level order and ordered flag;
        ``.attrs["source"]`` says where the measurements come from.

    Raises
    ------
    DataError
        When there is no such data set.
    """
    name = _canonical(name)
    entry = _catalogue()[name]
    columns: dict[str, dict[str, Any]] = entry["columns"]
    with resources.files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        # "NA" marks a missing number; in a factor it would be a label.
        frame = pd.read_csv(
            file,
            dtype={c: _DTYPES[spec["type"]] for c, spec in columns.items()},
            keep_default_na=False,
            na_values={c: ["NA"] for c, spec in columns.items() if spec["type"] == "float"},
        )
    for column, spec in columns.items():
        if spec["type"] == "factor":
            frame[column] = pd.Categorical(frame[column], categories=spec["levels"], ordered=spec["ordered"])
    frame.attrs["source"] = entry["source"]
    return frame


def describe(name: str | None = None) -> pd.DataFrame:
    """Tabulate all data sets, or the columns of one.

    Parameters
    ----------
    name : str, optional
        One of ``names()``; all data sets if None.

    Returns
    -------
    DataFrame
        Without ``name``: a row per data set with its size, title, source and licence. With it: a row per
        column with type, levels, unit and meaning.

    Raises
    ------
    DataError
        When there is no such data set.
    """
    if name is None:
        rows = {
            key: (e["rows"], len(e["columns"]), e["title"], e["source"], e["licence"])
            for key, e in _catalogue().items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["rows", "columns", "title", "source", "licence"])
    columns = _catalogue()[_canonical(name)]["columns"]
    described = {c: (s["type"], len(s.get("levels", [])), s["unit"], s["meaning"]) for c, s in columns.items()}
    return pd.DataFrame.from_dict(described, orient="index", columns=["type", "levels", "unit", "meaning"])


def _canonical(name: str) -> str:
    spellings = {known.lower(): known for known in _catalogue()}
    found = spellings.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise DataError(f"There is no packaged data set {name!r}; choose one of {', '.join(_catalogue())}.")
    return found


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    text = resources.files(__name__).joinpath("datasets.json").read_text(encoding="utf-8")
    catalogue: dict[str, dict[str, Any]] = json.loads(text)
    return catalogue
