"""Marginal means or contrasts with their limits, and power curves."""

from typing import Any

import numpy as np

from ..errors import DataError
from .style import DOT, LINE, MARKERS, PALETTE, axes, check_has, finish

# Rows that get a label of their own.
LABELLED = 60
TITLES = {"mean": "Marginal means", "slope": "Slopes", "contrast": "Contrasts"}


def means(result: Any, ax: Any = None, *, x: str | None = None) -> Any:
    """Estimates with their limits, of what ``emmeans``, ``emtrends`` or ``contrast`` return.

    Parameters
    ----------
    result : MarginalMeans
    ax : matplotlib Axes, optional
    x : a variable of the result for the horizontal axis; a joined line for each combination of the others. If None,
        every estimate has a line and a label of its own.
    """
    check_has(result, "row_labels", "emmeans(), emtrends() and contrast()")
    ax = axes(ax)
    title = TITLES[result.kind]
    labels = _side_by_side(result, ax, x) if x is not None else _one_below_the_other(result, ax)
    alt = f"{title}: {len(result)} estimates with {100 * result.level:g} % limits."
    return finish(ax, title=title, x=labels[0], y=labels[1], alt=alt)


def _one_below_the_other(result: Any, ax: Any) -> tuple[str, str]:
    table, labels = result.table, result.row_labels()
    place = np.arange(len(table))[::-1]
    ax.hlines(place, table["lower"], table["upper"], color=DOT, linewidth=1.6)
    ax.plot(table["estimate"], place, "o", color=DOT, markersize=5)
    if result.kind != "mean":
        ax.axvline(0.0, color=LINE, linewidth=0.8)
    ax.set_yticks(place if len(table) <= LABELLED else [], labels if len(table) <= LABELLED else [])
    return "Estimate", ""


def _side_by_side(result: Any, ax: Any, x: str) -> tuple[str, str]:
    if x not in result.keys:
        raise DataError(f"x={x!r} is not among the variables of these estimates: {', '.join(map(str, result.keys))}")
    table, others = result.table, [name for name in result.keys if name != x]
    at, ticks = _places(result.keys[x])
    lines = table.groupby(others, sort=False, observed=True).indices if others else {(): np.arange(len(table))}
    # Limits of several lines at one place would hide each other.
    shifts = 0.04 * np.ptp(at) / max(len(lines), 4) * (np.arange(len(lines)) - (len(lines) - 1) / 2)
    for k, (value, rows) in enumerate(lines.items()):
        part = table.iloc[rows]
        limits = [part["estimate"] - part["lower"], part["upper"] - part["estimate"]]
        style = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)], "markersize": 5, "capsize": 3}
        ax.errorbar(
            at[rows] + shifts[k], part["estimate"], limits, label=" ".join(map(str, np.atleast_1d(value))), **style
        )
    if ticks:
        ax.set_xticks(np.arange(len(ticks)), ticks)
    if others:
        ax.legend(frameon=False)
    return x, "Estimate"


def _places(values: Any) -> tuple[np.ndarray, list[str]]:
    """Where the values stand on an axis: numbers at their place, others one after the other with their names."""
    if values.dtype.kind in "iuf":
        return values.to_numpy(float), []
    names = list(dict.fromkeys(values.astype(str)))
    return np.array([names.index(value) for value in values.astype(str)], float), names


def power(curve: Any, ax: Any = None) -> Any:
    """Power with its limits against the number of levels; beside it false rejections, where they were simulated."""
    check_has(curve, "note", "power()")
    ax = axes(ax)
    table = curve.table
    kinds = [("power", "power", ""), ("type1", "without the effect", "type1_")]
    for (name, label, prefix), color, marker in zip(kinds, PALETTE, MARKERS, strict=False):
        if name in table:
            limits = [table[name] - table[f"{prefix}lower"], table[f"{prefix}upper"] - table[name]]
            ax.errorbar(table["size"], table[name], limits, marker=marker, color=color, capsize=3, label=label)
    ax.set_ylim(0.0, 1.0)
    ax.legend(frameon=False)
    return finish(ax, title="", x="Levels", y="Share of rejections", alt=f"Power by number of levels. {curve.note}")
