"""Residuals and random effects against what the model assumes of them."""

from typing import Any

import numpy as np
from scipy import special

from ..errors import DataError
from .serial import acf
from .style import ACCENT, BAND, DOT, LINE, axes, finish, pyplot, running_median

# More points than this are drawn without edges, and rasterised where a file is written as vectors.
MANY = 5_000
# Effects that spread less than this, relative to σ̂, are those of a variance of zero.
NONE = 1e-8


def _scatter(ax: Any, x: np.ndarray, y: np.ndarray) -> None:
    many = len(x) > MANY
    ax.plot(x, y, "o", color=DOT, markersize=2 if many else 4, alpha=0.3 if many else 0.6, mew=0, rasterized=many)


def _pearson(result: Any) -> np.ndarray:
    """Residuals over their standard deviation given the random effects; whitened where they are correlated."""
    return np.asarray(result.residuals("normalized"), float)


def residuals(result: Any, ax: Any = None) -> Any:
    """Pearson residuals against fitted values: no trend and one spread are expected.

    Parameters
    ----------
    result : what ``lmer`` and its like return.
    ax : matplotlib Axes, optional
    """
    ax = axes(ax)
    fitted, r = np.asarray(result.fittedvalues, float), _pearson(result)
    _scatter(ax, fitted, r)
    ax.axhline(0.0, color=LINE, linewidth=0.8)
    x, y = running_median(fitted, r)
    ax.plot(x, y, color=ACCENT, linewidth=1.8)
    alt = f"Scatter of {len(r)} Pearson residuals against fitted values with a line of running medians."
    return finish(ax, title="Residuals against fitted values", x="Fitted value", y="Residual / σ̂", alt=alt)


def scale_location(result: Any, ax: Any = None) -> Any:
    """√|Pearson residual| against fitted values: a level line says that the spread is one."""
    ax = axes(ax)
    fitted, size = np.asarray(result.fittedvalues, float), np.sqrt(np.abs(_pearson(result)))
    _scatter(ax, fitted, size)
    x, y = running_median(fitted, size)
    ax.plot(x, y, color=ACCENT, linewidth=1.8)
    alt = f"Scatter of the root of {len(size)} absolute Pearson residuals against fitted values, with running medians."
    return finish(ax, title="Scale and location", x="Fitted value", y="√|residual / σ̂|", alt=alt)


def qq(result: Any, ax: Any = None, *, level: float = 0.95) -> Any:
    """Quantiles of the Pearson residuals against those of a normal sample, with pointwise bands.

    Notes
    -----
    The i-th of n ordered uniforms is Beta(i, n + 1 − i): the band holds ``level`` of it.
    """
    r = _pearson(result)
    alt = f"Normal quantile plot of {len(r)} Pearson residuals with a {level:.0%} pointwise band."
    return _quantiles(r, axes(ax), level, "Residuals: normal quantiles", "Residual / σ̂", alt)


def ranef_qq(
    result: Any, ax: Any = None, *, factor: str | None = None, effect: str | None = None, level: float = 0.95
) -> Any:
    """Quantiles of predicted random effects against those of a normal sample, scaled by their own spread.

    Parameters
    ----------
    factor, effect : which; the first ones if None.
    """
    name, column, values = _effects(result, factor, effect)
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    if not spread > NONE * result.sigma:
        raise DataError(
            f"all predicted effects of {name} are alike (a variance of zero?): there are no quantiles to draw"
        )
    alt = (
        f"Normal quantile plot of {len(values)} predicted effects {column} of {name} with a {level:.0%} pointwise band."
    )
    title = f"{name}: {column}, normal quantiles"
    return _quantiles((values - values.mean()) / spread, axes(ax), level, title, "Predicted effect, standardised", alt)


def _effects(result: Any, factor: str | None, effect: str | None) -> tuple[str, str, np.ndarray]:
    """The factor's and effect's names and the predicted effects (m,)."""
    by_factor = result.ranef
    if not by_factor:
        raise DataError("the model has no random effects to draw")
    name = next(iter(by_factor)) if factor is None else factor
    if name not in by_factor:
        raise DataError(f"factor={name!r} is none of the grouping factors {list(by_factor)}")
    frame = by_factor[name]
    column = frame.columns[0] if effect is None else effect
    if column not in frame.columns:
        raise DataError(f"effect={column!r} is none of the effects {list(frame.columns)} of {name}")
    return name, column, frame[column].to_numpy(float)


def _quantiles(values: np.ndarray, ax: Any, level: float, title: str, y: str, alt: str) -> Any:
    n = len(values)
    i = np.arange(1, n + 1)
    x = special.ndtri((i - 0.375) / (n + 0.25))
    tail = 0.5 * (1.0 - level)
    low, high = (special.ndtri(special.betaincinv(i, n + 1 - i, t)) for t in (tail, 1.0 - tail))
    ax.fill_between(x, low, high, color=BAND, alpha=0.6, linewidth=0)
    ax.plot(x, x, color=LINE, linewidth=0.8)
    _scatter(ax, x, np.sort(values))
    return finish(ax, title=title, x="Normal quantile", y=y, alt=alt)


def overview(result: Any, figure: Any = None) -> Any:
    """Four pictures: residuals, their spread, their quantiles, and the quantiles of the first random effects.

    Returns
    -------
    Figure
    """
    figure = pyplot().figure(figsize=(9, 7), layout="constrained") if figure is None else figure
    (a, b), (c, d) = figure.subplots(2, 2)
    residuals(result, a)
    scale_location(result, b)
    qq(result, c)
    if _has_spread(result):
        ranef_qq(result, d)
    elif hasattr(result, "residual_cov"):
        acf(result, d)
    else:
        d.set_axis_off()
        d.text(0.5, 0.5, "no random effects that vary", ha="center", va="center")
    return figure


def _has_spread(result: Any) -> bool:
    by_factor = getattr(result, "ranef", {})
    return bool(len(by_factor)) and bool(next(iter(by_factor.values())).iloc[:, 0].std() > NONE * result.sigma)
