"""``Profiles``: intervals of any parameter of a result, by profile likelihood, Wald or bootstrap behind one method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from .core.targets import Target
from .data import ModelData, NoRows
from .errors import DataError
from .estimates import Estimates
from .inference import parameters, profile
from .inference.profile import Limits, Profiler
from .inference.wald import check_alpha, wald_table

ROOTS = tuple(np.arange(-3.0, 3.01, 0.5))


class Profiles(Estimates):
    """The intervals of a result with random effects; see ``MixedLMResults``."""

    bootstrap: Callable[..., Any]

    def profile_ci(self, which: Any = None, level: float = 0.95) -> pd.DataFrame:
        """Profile-likelihood limits, found by root finding: nothing is interpolated.

        Parameters
        ----------
        which : optional
            A group ("fixed", "random": standard deviations, correlations and what else the structures have;
            "covariance": variances and covariances, response units²; "theta"; "all"), names, a list of either, or a
            dict from labels to functions ``f(psi, sigma2)`` of Ψ per grouping factor (arrays, response units²) and
            σ², ``(f, low, high)`` of one that stays between bounds, or (p,) weights of the fixed effects. None is
            fixed and random, under REML random alone: its criterion is no likelihood of the fixed effects.
        level : coverage.

        Returns
        -------
        DataFrame
            A row per parameter: ``estimate``, ``lower``, ``upper``, and in ``note`` where a limit is the bound of the
            parameter's range because the profile stays below the cut up to there.

        Notes
        -----
        A limit costs about four evaluations of −2ℓ with gradient and Hessian.

        References
        ----------
        Venzon & Moolgavkar (1988), Appl. Stat. 37, 87–94.

        Examples
        --------
        >>> fit.profile_ci({"ICC": (lambda psi, s2: psi["g"][0, 0] / (psi["g"][0, 0] + s2), 0, 1)})  # doctest: +SKIP
        """
        alpha = check_alpha(1.0 - level)
        default = ("random",) if self.reml else ("fixed", "random")
        found = [profile.limits(around, target, 1.0 - alpha) for around, target in self._profilers(which, default)]
        return _as_frame(found)

    def profile(self, which: Any = None, zeta: Sequence[float] = ROOTS) -> pd.DataFrame:
        """The signed root ζ = ±√(rise of −2ℓ) along each parameter: straight where a Wald interval would do.

        Parameters
        ----------
        which : as in ``profile_ci``.
        zeta : where the points are; those at ±√χ²₁ quantiles are the limits.

        Returns
        -------
        DataFrame
            ``parameter``, ``value``, ``zeta``; where a parameter ends at a bound the last point is there.
        """
        default = ("random",) if self.reml else ("fixed", "random")
        rows = []
        for around, target in self._profilers(which, default):
            rows += [(target.name, *point) for point in profile.signed_roots(around, target, zeta)]
        return pd.DataFrame(rows, columns=["parameter", "value", "zeta"])

    def conf_int(self, alpha: float = 0.05, method: str = "wald", which: Any = None, **options: Any) -> pd.DataFrame:
        """Confidence limits, (m, 2).

        Parameters
        ----------
        alpha : the share left outside.
        method : {"wald", "profile", "bootstrap"}
            Normal theory, for covariance parameters on the log, atanh or logit scale; profile likelihood; percentiles
            of ``bootstrap``.
        which : as in ``profile_ci``; None is the fixed effects by Wald, and all that the others have. The bootstrap
            takes names of its own columns.
        **options : of ``bootstrap``, such as ``n`` and ``seed``; ``interval`` is its kind of limits.
        """
        if options and method != "bootstrap":
            raise DataError(f"conf_int(method={method!r}) takes no {', '.join(options)}")
        if method == "wald":
            return super().conf_int(alpha) if which is None else _limits_only(self._wald(which, alpha))
        if method == "profile":
            return _limits_only(self.profile_ci(which, 1.0 - check_alpha(alpha)))
        if method == "bootstrap":
            return self._bootstrapped(alpha, which, options)
        raise DataError(f"method={method!r} is unknown; use 'wald', 'profile' or 'bootstrap'")

    def profile_re(
        self,
        re_ix: int | str,
        vtype: Literal["re", "vc"],
        num_low: int = 5,
        dist_low: float = 1.0,
        num_high: int = 5,
        dist_high: float = 1.0,
    ) -> np.ndarray:
        """Profile likelihood of one variance, (num_low + num_high + 1, 2): variance (response units²), ℓ.

        Parameters
        ----------
        re_ix : index of an effect of the first random term (``vtype="re"``) or name of a variance (``"vc"``), as in
            ``bse_re``.
        num_low, num_high : points below and above the estimate.
        dist_low, dist_high : distances of the farthest points, response units²; cut at zero.

        Notes
        -----
        The variance itself is held; statsmodels holds its ratio to σ², which is another curve.
        """
        effect = profile.find_variance(self._whole, re_ix, vtype)
        block, mine, i = parameters.place_of(self._whole, effect)
        around = profile.profiler(self._whole, self.fit, self.reml, self._held)
        row = np.asarray(self.fit.relative_factor)[effect]
        center = self.scale * float(row @ row)
        low = np.linspace(max(center - dist_low, 0.0), center, num_low + 1)[:-1]
        high = np.linspace(center, center + dist_high, num_high + 1)[1:]
        below, above = (-0.5 * profile.at_variances(around, block, mine, i, v) for v in (low, high))
        return np.column_stack([np.concatenate([low, [center], high]), np.concatenate([below, [self.llf], above])])

    def _wald(self, which: Any, alpha: float) -> pd.DataFrame:
        level, cov = 1.0 - check_alpha(alpha), np.asarray(self.cov_fe)
        shared = profile.profiler(self._whole, self.fit, self.reml, self._held)
        found = []
        for target in parameters.chosen(self._whole, which, False, (), shared.unit):
            if target.direction is None:
                found.append(profile.wald_limits(shared, target, level))
            else:
                row = target.direction
                estimate, se = row @ np.asarray(self.fe_params), np.sqrt(row @ cov @ row)
                line = wald_table(np.array([estimate]), np.array([se]), alpha)
                found.append(Limits(target.name, estimate, float(line.lower[0]), float(line.upper[0]), ""))
        return _as_frame(found)

    def _bootstrapped(self, alpha: float, which: Any, options: dict[str, Any]) -> pd.DataFrame:
        kind = options.pop("interval", "percentile")
        if options.get("seed") is None:
            raise DataError("conf_int(method='bootstrap') needs seed=, a whole number")
        table = self.bootstrap(**options).intervals(1.0 - check_alpha(alpha), kind)
        if which is None:
            return _limits_only(table)
        names = [which] if isinstance(which, str) else list(which)
        unknown = [name for name in names if name not in table.index]
        if unknown:
            raise DataError(f"the bootstrap has no {unknown}; it has {list(table.index)}")
        return _limits_only(table.loc[names])

    @property
    def _whole(self) -> ModelData:
        """The data, of which the sums over the rows are needed."""
        if isinstance(self._data.compressed, NoRows):
            raise DataError(f"{NoRows.why}: this result needs them")
        return self._data

    def _profilers(self, which: Any, default: tuple[str, ...]) -> Iterator[tuple[Profiler, Target]]:
        """Every target with what is profiled around; those of the covariance share it."""
        shared = profile.profiler(self._whole, self.fit, self.reml, self._held)
        for target in parameters.chosen(self._whole, which, self.reml, default, shared.unit):
            if target.direction is None:
                yield shared, target
            else:
                yield profile.profiler(self._whole, self.fit, self.reml, self._held, target.direction), target


def _as_frame(found: list[Limits]) -> pd.DataFrame:
    table = pd.DataFrame(found, columns=list(Limits._fields))
    return table.set_index("name").rename_axis(None)


def _limits_only(table: pd.DataFrame) -> pd.DataFrame:
    return table[["lower", "upper"]].set_axis([0, 1], axis=1)
