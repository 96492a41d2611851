"""Bootstrap of a fitted model, streamed through the batch engine."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from ..core.batch import Family, Lanes, fit_lanes
from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..errors import ConvergenceWarning, DataError, UnsupportedError, warn_caller
from ..fitting import settle
from ..inference.intervals import FEWEST, basic, bca, percentile
from .alone import OneByOne
from .cases import Cases
from .resampling import BLOCK, LevelSamples, parametric_responses, residual_responses
from .responses import BatchOptions, design_for_lanes, several_width
from .results import ManyFits

Kind = Literal["parametric", "residual", "cases"]
Method = Literal["percentile", "basic", "bca"]
Statistic = Callable[[ManyFits], pd.DataFrame]


def default_statistic(many: ManyFits) -> pd.DataFrame:
    """Fixed effects, (co)variances of the random effects and the residual variance, a row per fit."""
    return many.params


class Bootstrap:
    """Replicates of a fitted model.

    Attributes
    ----------
    fits : ManyFits of the n samples; ``fits.status`` tells those that failed, which intervals leave out.
    kind : how the samples were drawn.
    seed : int
    """

    def __init__(self, fits: ManyFits, original: ManyFits, jackknife: Callable[[], ManyFits], kind: Kind, seed: int):
        self.fits = fits
        self.kind = kind
        self.seed = seed
        self._original = original
        self._jackknife = jackknife
        self._jackknife_fits: ManyFits | None = None

    def __repr__(self) -> str:
        return f"Bootstrap ({self.kind}, seed {self.seed}) of {self.fits!r}"

    def replicates(self, statistic: Statistic = default_statistic) -> pd.DataFrame:
        """The statistic of every sample that reached an optimum, (≤ n, m)."""
        return statistic(self.fits)[self.fits.converged]

    def summary(self, statistic: Statistic = default_statistic) -> pd.DataFrame:
        """Estimate, bootstrap standard error and bias of each parameter."""
        values, estimate = self.replicates(statistic), statistic(self._original).iloc[0]
        return pd.DataFrame({"estimate": estimate, "std_error": values.std(), "bias": values.mean() - estimate})

    def intervals(
        self, level: float = 0.95, method: Method = "percentile", statistic: Statistic = default_statistic
    ) -> pd.DataFrame:
        """Confidence intervals.

        Parameters
        ----------
        level : coverage, in (0, 1).
        method : {"percentile", "basic", "bca"}
            BCa takes its acceleration from a jackknife over the groups, one more fit per group; of several grouping
            factors over the outermost of a nested chain, or the one that ``bootstrap(…, factor=)`` named.
        statistic : function of a ManyFits, optional
            To a DataFrame with a row per fit and a column per parameter; the default is ``ManyFits.params``.

        Returns
        -------
        DataFrame
            ``estimate``, ``lower``, ``upper`` per parameter.

        Raises
        ------
        DataError
            For fewer than 40 replicates, an unknown method or level, or BCa of crossed factors of which none was named.
        """
        if method not in get_args(Method):
            raise DataError(f"method={method!r} is unknown; use one of {', '.join(get_args(Method))}")
        if not 0.0 < level < 1.0:
            raise DataError(f"level={level} must lie between 0 and 1")
        values, estimate = self.replicates(statistic), statistic(self._original).iloc[0]
        if len(values) < FEWEST:
            raise DataError(f"{len(values)} samples reached an optimum: too few for an interval, draw more")
        numbers, centre = values.to_numpy(float), estimate.to_numpy(float)
        if method == "percentile":
            lower, upper = percentile(numbers, level)
        elif method == "basic":
            lower, upper = basic(numbers, centre, level)
        else:
            left_out = self._left_out()
            lower, upper = bca(numbers, centre, statistic(left_out)[left_out.converged].to_numpy(float), level)
        return pd.DataFrame({"estimate": estimate, "lower": lower, "upper": upper})

    def _left_out(self) -> ManyFits:
        if self._jackknife_fits is None:
            self._jackknife_fits = self._jackknife()
        return self._jackknife_fits


def bootstrap(
    data: ModelData,
    fit: Fit,
    b: Collection[np.ndarray],
    n: int,
    seed: int,
    kind: Kind,
    reml: bool,
    settings: BatchOptions,
    factor: str | None = None,
) -> Bootstrap:
    """Draw and fit n samples; see ``MixedLMResults.bootstrap``."""
    if kind not in get_args(Kind):
        raise DataError(f"kind={kind!r} is unknown; use one of {', '.join(get_args(Kind))}")
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise DataError(f"n={n!r}: draw a whole number of samples, 1 or more")
    if kind == "residual" and any(factor.root is not None for factor in data.factors):
        raise UnsupportedError("residuals of related levels cannot be resampled: use kind='parametric'")
    if factor is not None:
        Cases(data, factor)
    if kind == "cases" and not data.has_one_factor:
        fits = _fit_cases(data, fit, reml, settings, Cases(data, factor).bootstrap(n, seed))
    elif kind == "cases":
        fits = _fit_samples(data, fit, reml, settings, lambda samples, w, start: samples.bootstrap(n, seed, w, start))
    else:
        source = (
            parametric_responses(data, fit, n, seed)
            if kind == "parametric"
            else residual_responses(data, fit, b, n, seed)
        )
        found = _fit_drawn(data, fit, source, n, reml, settings)
        fits = _labelled(data, found, np.full(n, data.n_rows), np.ones(n, bool), reml)
    single = Fit(**{name: np.asarray(getattr(fit, name))[None] for name in vars(fit)})
    original = _labelled(data, single, np.array([data.n_rows]), np.ones(1, bool), reml)
    _warn(fits)
    return Bootstrap(fits, original, Jackknife(data, fit, reml, settings, factor), kind, seed)


@dataclass(frozen=True)
class Jackknife:
    """The fits that leave out each level of a grouping factor once, when they are asked for."""

    data: ModelData
    fit: Fit
    reml: bool
    settings: BatchOptions
    factor: str | None = None

    def __call__(self) -> ManyFits:
        if not self.data.has_one_factor:
            samples = Cases(self.data, self.factor).jackknife()
            return _fit_cases(self.data, self.fit, self.reml, self.settings, samples)
        return _fit_samples(self.data, self.fit, self.reml, self.settings, LevelSamples.jackknife)


class NoViews:
    """A bootstrap keeps estimates, not samples."""

    def data(self, number: int) -> ModelData:
        raise UnsupportedError("a bootstrap keeps estimates, not samples: refit a column of simulate() to look at one")

    def result(self, number: int, lane: Fit) -> Any:
        return self.data(number)


def _labelled(data: ModelData, found: Fit, n_obs: np.ndarray, identified: np.ndarray, reml: bool) -> ManyFits:
    names = pd.RangeIndex(len(found.deviance), name="sample")
    fit = settle(found, identified)
    return ManyFits(fit, data, names, reml=reml, n_obs=n_obs.astype(int), views=NoViews())


def _warn(fits: ManyFits) -> None:
    failed = ~fits.converged & (fits.fit.status != Status.INTERRUPTED)
    if failed.any():
        counts = ", ".join(f"{n} {status}" for status, n in fits.status[failed].value_counts().items())
        warn_caller(
            f"{int(failed.sum())} of {len(fits)} bootstrap fits did not reach an optimum ({counts}); summaries leave "
            "them out",
            ConvergenceWarning,
        )


def _start(fit: Fit) -> np.ndarray | None:
    """θ̂, from which the samples' optima are near; not a singular one, where every deviance is stationary."""
    return np.asarray(fit.theta) if int(fit.status) == Status.CONVERGED else None


def _fit_drawn(
    data: ModelData, fit: Fit, blocks: Iterator[np.ndarray], n: int, reml: bool, settings: BatchOptions
) -> Fit:
    """Fit the responses as they are drawn: no more of them are in memory than one call takes."""
    several = None if data.has_one_factor else design_for_lanes(data, settings)
    if not data.has_one_factor and several is None:
        columns = (y for block in blocks for y in np.ascontiguousarray(block.T))
        # The lanes are asked for in their order.
        alone = OneByOne(data, lambda _: data.with_response(next(columns)), n)
        families = [alone.family(np.arange(n), _start(fit))]
        return fit_lanes(families, reml=reml, options=settings.newton, progress=settings.progress)
    design: Any
    if several is not None:
        # Moments cost nothing here, and are nearer to the samples' optima than θ̂; in balanced designs they are these.
        design, width, theta = several, several_width(several, settings), None
    else:
        design, theta = data.shared_design, _start(fit)
        q, p = len(data.factors[0].columns), data.X.shape[1]
        width = settings.width(design.n_levels, q, q, p)

    def work() -> Iterator[Lanes]:
        held: list[np.ndarray] = []
        for block in blocks:
            if held and sum(part.shape[1] for part in held) + block.shape[1] > width:
                yield cut(held)
                held = []
            held.append(block)
        yield cut(held)

    done = 0

    def cut(held: list[np.ndarray]) -> Lanes:
        nonlocal done
        Y = held[0] if len(held) == 1 else np.concatenate(held, axis=1)
        index = np.arange(done, done + Y.shape[1])
        done += Y.shape[1]
        start = None if theta is None else np.repeat(theta[:, None], Y.shape[1], axis=1)
        return Lanes(index, design.compress(Y), start)

    family = Family(work(), n, max(width, BLOCK))
    return fit_lanes([family], reml=reml, options=settings.newton, progress=settings.progress)


def _fit_cases(data: ModelData, fit: Fit, reml: bool, settings: BatchOptions, samples: OneByOne) -> ManyFits:
    """Fit samples of whole levels of several factors, one after the other, over the cores."""
    family = samples.family(np.arange(len(samples.n_obs)), _start(fit))
    found = fit_lanes([family], reml=reml, options=settings.newton, progress=settings.progress)
    return _labelled(data, found, samples.n_obs, samples.identified, reml)


def _fit_samples(
    data: ModelData,
    fit: Fit,
    reml: bool,
    settings: BatchOptions,
    draw: Callable[[LevelSamples, int, np.ndarray | None], Family],
) -> ManyFits:
    """Fit samples of whole levels."""
    q, p = len(data.factors[0].columns), data.X.shape[1]
    width = settings.width(len(data.factors[0].levels), q * (p + 1), q, p)
    samples = LevelSamples(data)
    family = draw(samples, width, _start(fit))
    found = fit_lanes([family], reml=reml, options=settings.newton, progress=settings.progress)
    return _labelled(data, found, samples.n_obs, samples.identified, reml)
