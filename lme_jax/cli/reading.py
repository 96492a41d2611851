"""Files and standard input as data frames."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

# What R writes for a missing value, and nothing: other words, such as None, may be levels.
MISSING = ["", "NA", "NaN", "nan"]


def _text(separator: str) -> Callable[[Any], pd.DataFrame]:
    def read(source: Any) -> pd.DataFrame:
        return pd.read_csv(source, sep=separator, keep_default_na=False, na_values=MISSING)

    return read


READERS: dict[str, Callable[[Any], pd.DataFrame]] = {
    ".csv": _text(","),
    ".tsv": _text("\t"),
    ".tab": _text("\t"),
    ".txt": _text(r"\s+"),
    ".parquet": pd.read_parquet,
    ".feather": pd.read_feather,
    ".arrow": pd.read_feather,
}


def read_table(path: str, kind: str | None = None, factors: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of a file, ``-`` for standard input.

    Parameters
    ----------
    path : a name that ends in .csv, .tsv, .txt, .parquet or .feather, ``.gz`` and the like after it, or ``-`` (CSV).
    kind : the ending that counts instead of the file's.
    factors : columns of numbers that are labels.

    Raises
    ------
    click.UsageError
        For what cannot be read, in words.
    """
    ending = _ending(path, kind)
    if path != "-" and not Path(path).exists():
        raise click.UsageError(f"there is no file {path!r}")
    try:
        frame = READERS[ending](sys.stdin if path == "-" else path)
    except ImportError as error:
        raise click.UsageError(f"{path}: reading {ending} files needs pyarrow: pip install pyarrow") from error
    except (ValueError, OSError) as error:
        raise click.UsageError(f"{path} cannot be read as {ending[1:]}: {error}") from error
    absent = [name for name in factors if name not in frame.columns]
    if absent:
        raise click.UsageError(f"--factor names {absent}, but the columns are {list(frame.columns)}")
    return frame.astype({name: "category" for name in factors}) if factors else frame


def _ending(path: str, kind: str | None) -> str:
    if kind is not None:
        return f".{kind.lstrip('.')}"
    if path == "-":
        return ".csv"
    endings = [e.lower() for e in Path(path).suffixes if e.lower() not in (".gz", ".bz2", ".xz", ".zip", ".zst")]
    ending = endings[-1] if endings else ""
    if ending not in READERS:
        known = ", ".join(READERS)
        raise click.UsageError(f"{path}: what kind of file is it? Known endings are {known}; else say --format csv")
    return ending
