"""Cells and tables of Markdown."""

from collections.abc import Iterable
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(cell) for cell in cells) + " |"

    header = list(header)
    ruler = ["---"] * 2 + ["--:"] * (len(header) - 2)
    return "\n".join([line(header), line(ruler), *map(line, rows)])


def seconds(value: float | None) -> str:
    """Three significant digits in a unit that suits."""
    if value is None:
        return ""
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if value * s >= 1.0), ("µs", 1e6))
    return f"{digits(value * scale)} {unit}"


def digits(value: float) -> str:
    return f"{value:.3g}" if value < 1e3 else f"{value:.0f}"
