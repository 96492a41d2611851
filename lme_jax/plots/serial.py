"""Correlation of residuals within subjects: what a residual structure is to take away."""

from typing import Any

import numpy as np

from .style import ACCENT, BAND, DOT, LINE, axes, finish


def acf(result: Any, ax: Any = None, *, max_lag: int | None = None, type: str = "normalized") -> Any:
    """Autocorrelations of the residuals within subjects, with the limits of independent ones.

    Parameters
    ----------
    result : of ``mmrm``, ``gls`` or ``lmer(residual=)``.
    ax : matplotlib Axes, optional
    max_lag, type : as of its ``acf``.
    """
    ax, table = axes(ax), result.acf(max_lag, type).iloc[1:]
    ax.fill_between(table.lag, -table.limit, table.limit, color=BAND, alpha=0.6, linewidth=0)
    ax.vlines(table.lag, 0.0, table.acf, color=DOT, linewidth=2)
    ax.plot(table.lag, table.acf, "o", color=DOT, markersize=5)
    ax.axhline(0.0, color=LINE, linewidth=0.8)
    alt = f"Autocorrelations of {type} residuals at {len(table)} lags with 95% limits."
    return finish(ax, title="Autocorrelation within subjects", x="Lag", y=f"Correlation of {type} residuals", alt=alt)


def variogram(result: Any, ax: Any = None, *, bins: int = 20, type: str = "pearson") -> Any:
    """Semivariogram of the residuals within subjects, areas of the dots by the number of pairs.

    Parameters as of ``acf``; ``bins`` as of the result's ``variogram``.
    """
    ax, table = axes(ax), result.variogram(type, bins=bins)
    ax.plot(table.distance, table.semivariance, color=ACCENT, linewidth=1.2)
    ax.scatter(table.distance, table.semivariance, s=60.0 * table.pairs / np.max(table.pairs), color=DOT, zorder=3)
    ax.set_ylim(bottom=0.0)
    alt = f"Semivariogram of {type} residuals in {len(table)} classes of distance."
    return finish(ax, title="Semivariogram within subjects", x="Distance", y="Semivariance", alt=alt)
