"""Tables as text, CSV, JSON or HTML."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

Form = Literal["text", "csv", "json", "html"]


def plain(value: Any) -> Any:
    """What JSON can hold: NaN and infinities are null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.reset_index(names="term").to_dict("records")] if _is_named(value) else [
            plain(row) for row in value.to_dict("records")
        ]  # fmt: skip
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, int | np.integer):
        return int(value)
    return None if value is None or value is pd.NA else str(value)


def _is_named(table: pd.DataFrame) -> bool:
    return not isinstance(table.index, pd.RangeIndex)


def render(table: pd.DataFrame, form: Form) -> str:
    """A table in one of the forms."""
    if form == "json":
        return json.dumps(plain(table), indent=1, ensure_ascii=False)
    if form == "csv":
        return table.to_csv(index=_is_named(table), index_label="term").rstrip("\n")
    if form == "html":
        return str(table.to_html(index=_is_named(table), border=0, na_rep=""))
    return str(table.to_string(index=_is_named(table), na_rep="", float_format=lambda x: f"{x:.6g}"))


def write(text: str, path: str | None) -> None:
    """To a file, or to standard output."""
    if path in (None, "-"):
        sys.stdout.write(text + "\n")
    else:
        Path(str(path)).write_text(text + "\n", encoding="utf-8")
