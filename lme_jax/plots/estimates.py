"""Estimates: random effects with limits, fitted curves over the data, coefficients of several models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from ..errors import DataError
from .diagnostic import _effects
from .style import ACCENT, DOT, LINE, MARKERS, PALETTE, axes, finish, pyplot

# Levels that get a label of their own, and panels that are drawn if nothing else is said.
LABELLED, PANELS = 60, 12


def caterpillar(
    result: Any, ax: Any = None, *, factor: str | None = None, effect: str | None = None, level: float = 0.95
) -> Any:
    """Predicted random effects in order, with limits from their conditional variances (``ranef_cov``).

    Parameters
    ----------
    factor, effect : which; the first ones if None.
    """
    ax = axes(ax)
    name, column, values = _effects(result, factor, effect)
    frame = result.ranef[name]
    at = list(frame.columns).index(column)
    half = special.ndtri(0.5 + 0.5 * level) * np.sqrt(np.asarray(result.ranef_cov[name])[:, at, at])
    order = np.argsort(values, kind="stable")
    place = np.arange(len(values))
    ax.hlines(place, (values - half)[order], (values + half)[order], color=DOT, linewidth=1.2)
    ax.plot(values[order], place, "o", color=DOT, markersize=4)
    ax.axvline(0.0, color=LINE, linewidth=0.8)
    if len(values) <= LABELLED:
        ax.set_yticks(place, [str(label) for label in frame.index[order]])
    else:
        ax.set_yticks([])
    alt = f"Predicted effects {column} of {len(values)} levels of {name} in increasing order, with {level:.0%} limits."
    return finish(ax, title=f"{name}: {column}", x="Predicted effect", y="", alt=alt)


def groups(result: Any, x: str, *, factor: str | None = None, levels: Any = None, figure: Any = None) -> Any:
    """The response against a column, a panel per level of a factor, with the fitted values as lines.

    Parameters
    ----------
    x : a column of the data, numbers.
    levels : which levels; the first twelve if None.

    Returns
    -------
    Figure
    """
    data = result._data
    chosen = data.factors[0] if factor is None else next((f for f in data.factors if f.name == factor), None)
    if chosen is None:
        raise DataError(f"factor={factor!r} is none of the grouping factors {[f.name for f in data.factors]}")
    along = _column(result, x)
    shown = list(chosen.levels)[:PANELS] if levels is None else list(levels)
    unknown = [level for level in shown if level not in set(chosen.levels)]
    if unknown:
        raise DataError(f"levels {unknown[:3]} are none of {chosen.name}")
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = pyplot().figure(figsize=(2.6 * across, 2.2 * down), layout="constrained") if figure is None else figure
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    y, fitted, where = data.y, np.asarray(result.fittedvalues, float), {v: i for i, v in enumerate(chosen.levels)}
    for ax, level in zip(panels.ravel(), shown, strict=False):
        rows = np.flatnonzero(chosen.codes == where[level])
        rows = rows[np.argsort(along[rows], kind="stable")]
        ax.plot(along[rows], y[rows], "o", color=DOT, markersize=4)
        ax.plot(along[rows], fitted[rows], color=ACCENT, linewidth=1.6)
        alt = f"{data.endog_name} against {x} in {chosen.name} {level}, with the fitted line."
        finish(ax, title=str(level), x="", y="", alt=alt)
    for ax in panels.ravel()[len(shown) :]:
        ax.set_axis_off()
    figure.supxlabel(x)
    figure.supylabel(data.endog_name)
    return figure


def _column(result: Any, name: str) -> np.ndarray:
    """A column of X (n,), by its name."""
    names = list(result._data.exog_names)
    if name not in names:
        raise DataError(f"x={name!r} is no column of the fixed effects; these are {names}")
    return np.asarray(result._data.X, float)[:, names.index(name)]


def forest(results: Mapping[str, Any] | Any, ax: Any = None, *, level: float = 0.95, intercept: bool = False) -> Any:
    """Fixed effects of one or several models with their limits.

    Parameters
    ----------
    results : a result, or name → result.
    intercept : whether it is drawn too, whose size often hides the others.
    """
    ax = axes(ax)
    models = results if isinstance(results, Mapping) else {"": results}
    tables = {name: _limits(result, level, intercept) for name, result in models.items()}
    terms = list(dict.fromkeys(term for table in tables.values() for term in table))
    if not terms:
        raise DataError(
            "there are no coefficients to draw: the models have intercepts only (intercept=True draws them)"
        )
    step = min(0.25, 0.7 / len(tables))
    for k, (name, table) in enumerate(tables.items()):
        shift = (k - 0.5 * (len(tables) - 1)) * step
        place = np.array([terms.index(term) for term in table]) + shift
        estimate, low, high = np.array(list(table.values())).T
        colour, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
        ax.hlines(place, low, high, color=colour, linewidth=1.6)
        ax.plot(estimate, place, marker, color=colour, markersize=6, label=name)
    ax.axvline(0.0, color=LINE, linewidth=0.8)
    ax.set_yticks(range(len(terms)), terms)
    ax.set_ylim(len(terms) - 0.5, -0.5)
    if len(tables) > 1:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    alt = f"Estimates of {len(terms)} fixed effects of {len(tables)} models with {level:.0%} limits."
    return finish(ax, title="Fixed effects", x="Estimate", y="", alt=alt)


def _limits(result: Any, level: float, intercept: bool) -> dict[str, tuple[float, float, float]]:
    limits = result.conf_int(alpha=1.0 - level)
    out = {
        str(term): (float(result.fe_params[term]), float(limits.loc[term].iloc[0]), float(limits.loc[term].iloc[1]))
        for term in result.fe_params.index
    }
    return out if intercept else {term: row for term, row in out.items() if term not in ("(Intercept)", "Intercept")}
