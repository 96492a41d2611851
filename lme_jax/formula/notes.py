"""Warnings that point at the person's own line, and level names fit to be read."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

_PACKAGE = __name__.split(".")[0]


def warn(message: str, category: type[Warning]) -> None:
    """Warn as if the first line outside this package had done it."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == _PACKAGE:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)


def shown(values: Iterable[Any], most: int = 5) -> str:
    """Some values as plain Python writes them, without NumPy's types: ``['a', 'b', …]``."""
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    texts = [repr(value) for value in plain[:most]]
    return f"[{', '.join(texts)}{', …' if len(plain) > most else ''}]"
