"""What all pictures share: axes, colours that grey and the colour-blind keep apart, alternative text."""

from typing import Any

import numpy as np

from ..errors import DataError

# Okabe & Ito (2008); dark first, so that they differ in grey too.
DOT, LINE, BAND, ACCENT = "#0072B2", "#000000", "#BBBBBB", "#D55E00"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>P"


def pyplot() -> Any:
    """``matplotlib.pyplot``, imported when the first picture is drawn."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise DataError("pictures need matplotlib: pip install 'lme-jax[plot]'") from error
    return plt


def axes(ax: Any) -> Any:
    """The axes to draw on."""
    return pyplot().subplots(layout="constrained")[1] if ax is None else ax


def finish(ax: Any, *, title: str, x: str, y: str, alt: str) -> Any:
    """Title, labels and the alternative text; grid behind what is drawn."""
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.set_axisbelow(True)
    ax.grid(True, color="#E6E6E6", linewidth=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_label(alt)
    return ax


def alt_text(ax: Any) -> str:
    """What a picture of this module shows, in a sentence."""
    return str(ax.get_label())


def running_median(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians (b,) of y in up to 20 bins of equally many x; none of fewer than 20 points."""
    n_bins = min(20, len(x) // 10)
    if n_bins < 2:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(x, kind="stable")
    parts = np.array_split(order, n_bins)
    return np.array([np.median(x[part]) for part in parts]), np.array([np.median(y[part]) for part in parts])
