"""Marginal means or contrasts with their limits, and power curves."""

from typing import Any

import numpy as np

from .style import DOT, LINE, MARKERS, PALETTE, axes, finish

# Rows that get a label of their own.
LABELLED = 60


def means(result: Any, ax: Any = None) -> Any:
    """Estimates with their limits, a line each, of what ``emmeans``, ``emtrends`` or ``contrast`` return."""
    ax = axes(ax)
    table, labels = result.table, result.row_labels()
    place = np.arange(len(table))[::-1]
    ax.hlines(place, table["lower"], table["upper"], color=DOT, linewidth=1.6)
    ax.plot(table["estimate"], place, "o", color=DOT, markersize=5)
    if result.kind != "mean":
        ax.axvline(0.0, color=LINE, linewidth=0.8)
    ax.set_yticks(place if len(table) <= LABELLED else [], labels if len(table) <= LABELLED else [])
    title = {"mean": "Marginal means", "slope": "Slopes", "contrast": "Contrasts"}[result.kind]
    alt = f"{title}: {len(table)} estimates with {100 * result.level:g} % limits."
    return finish(ax, title=title, x="Estimate", y="", alt=alt)


def power(curve: Any, ax: Any = None) -> Any:
    """Power with its limits against the number of levels; beside it false rejections, where they were simulated."""
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
