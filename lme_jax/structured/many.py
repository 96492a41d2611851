"""Many responses of one design with structured residuals: lanes of one computation, and the parametric bootstrap."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..core.residual.lane_contrasts import METHODS, contrasts
from ..core.residual.lanes import LaneFits, fit_lanes
from ..core.types import Status
from ..errors import ConvergenceWarning, DataError, LmeJaxError, LmeJaxWarning, UnsupportedError, warn_caller
from ..inference.intervals import FEWEST, percentile
from ..inference.linear_tests import t_pvalue


class ManyStructured:
    """Fits of many responses, a row each.

    Attributes
    ----------
    bse : (R, p) standard errors of the fixed effects.
    info : (R, …) deviance, sigma, status, and why there are no estimates.
    original : estimates of the fit whose design it is.
    """

    def __init__(self, result: Any, lanes: LaneFits, names: pd.Index, reasons: list[str]) -> None:
        self._result, self._lanes, self._design, self._reml = result, lanes, result._data.blocks, result.reml
        self.original = estimates_of(result)
        terms = list(result.fe_params.index)
        variances = lanes.sigma[:, None] ** 2 * np.diagonal(lanes.unscaled_cov, axis1=1, axis2=2)
        self.bse = pd.DataFrame(np.sqrt(variances), names, terms)
        status = [Status(int(code)).name for code in lanes.status]
        fits = {"deviance": lanes.deviance, "sigma": lanes.sigma, "status": status, "reason": reasons}
        self.info = pd.DataFrame(fits, names)

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """(R, p + …) fixed effects, (co)variances of random effects, parameters of the residual structure.

        NaN where a response could not be fitted.
        """
        rows = np.full((len(self.info), len(self.original)), np.nan)
        for i in np.flatnonzero(self._lanes.status != Status.NOT_FINITE):
            rows[i] = estimates_of(self._result._like(self._lanes.one(int(i))))
        return pd.DataFrame(rows, self.info.index, self.original.index)

    def coefficients(self, ddf: str = "satterthwaite") -> pd.DataFrame:
        """t tests of the fixed effects of every fit, all at once; rows (response, term).

        Parameters
        ----------
        ddf : {"satterthwaite", "kenward-roger"}
            The latter as SAS has it; its standard errors are the adjusted ones.

        Returns
        -------
        DataFrame
            estimate, se, df, statistic, p; NaN for fits that ended in no optimum.

        Raises
        ------
        DataError
            For structures that are not by visit, and with random effects: ``refit`` and ``coefficients`` have them.
        """
        if ddf not in METHODS:
            raise DataError(f"ddf={ddf!r}: fits of many responses have {' and '.join(map(repr, METHODS))}")
        names = list(self.bse.columns)
        found = contrasts(self._lanes, self._design, np.eye(len(names)), method=ddf, reml=self._reml, observed=True)
        index = pd.MultiIndex.from_product([self.bse.index, names], names=["response", "term"])
        table = pd.DataFrame({name: v.ravel() for name, v in found._asdict().items()}, index)
        table["statistic"] = table.estimate / table.se
        table["p"] = t_pvalue(table.statistic.to_numpy(), table.df.to_numpy())
        return table

    @property
    def converged(self) -> pd.Series:
        """Which fits ended in an optimum, singular ones among them."""
        return self.info.status.isin([s.name for s in Status if s.is_optimum])

    def standard_errors(self) -> pd.Series:
        """Standard deviations of the estimates over the responses: bootstrap standard errors of drawn ones."""
        return self.estimates[self.converged].std()

    def bias(self) -> pd.Series:
        """Mean of the estimates less those of the original fit."""
        return self.estimates[self.converged].mean() - self.original

    def intervals(self, level: float = 0.95, method: str = "percentile") -> pd.DataFrame:
        """Percentile limits of each estimate, of coverage ``level``: columns estimate, lower, upper."""
        if method != "percentile":
            raise UnsupportedError(f"method={method!r}: residual structures have percentile limits only")
        if not isinstance(level, (int, float, np.number)) or not 0.0 < level < 1.0:
            raise DataError(f"level={level!r} must lie between 0 and 1")
        if (n := int(self.converged.sum())) < FEWEST:
            raise DataError(f"{n} responses reached an optimum: too few for an interval, draw more")
        lower, upper = percentile(self.estimates[self.converged].to_numpy(), float(level))
        return pd.DataFrame({"estimate": self.original, "lower": lower, "upper": upper})

    def __repr__(self) -> str:
        table = pd.DataFrame({"original": self.original, "mean": self.estimates[self.converged].mean()})
        table["sd"] = self.standard_errors()
        return f"{len(self.info)} fits, {int(self.converged.sum())} of them ended in an optimum\n{table}"


def estimates_of(result: Any) -> pd.Series:
    """Everything that was estimated, by name."""
    data, table = result._data, result.residual_params
    variances = pd.Series(result._covariance[data.covariance_positions], list(data.covariance_names), dtype=float)
    names = [" ".join(filter(None, parts)) for parts in zip(table.term, table.group, table.parameter, strict=True)]
    return pd.concat([result.fe_params, variances, pd.Series(table.estimate.to_numpy(), names)])


def refits(result: Any, Y: pd.DataFrame, start: Any, progress: bool) -> ManyStructured:
    """Fit every column of Y (n, R) as a lane; warnings of single fits become statuses, and one warning of all."""
    from tqdm.auto import tqdm

    data = result._data
    with tqdm(total=Y.shape[1], disable=not progress, delay=2.0, desc="fits") as bar, np.errstate(all="ignore"):
        lanes = fit_lanes(
            data.blocks,
            Y.to_numpy(float) - data.offset[:, None],
            reml=result.reml,
            start=start,
            options=result._options,
            progress=bar.update,
        )
    lost = lanes.status == Status.NOT_FINITE
    reasons = [_why(result, Y.iloc[:, i].to_numpy(), start) if lost[i] else "" for i in range(Y.shape[1])]
    many = ManyStructured(result, lanes, Y.columns, reasons)
    failed = int((~many.converged).sum())
    if failed:
        warn_caller(f"{failed} of {Y.shape[1]} fits ended in no optimum: see .info", ConvergenceWarning)
    return many


def _why(result: Any, y: np.ndarray, start: Any) -> str:
    """What a single fit of the response says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LmeJaxWarning)
        try:
            result.refit(y, start=start)
        except LmeJaxError as error:
            return str(error)
    return ""


def read_many(Y: Any, n_rows: int, index: pd.Index) -> pd.DataFrame:
    """Responses (n, R), a column each, complete."""
    frame = Y if isinstance(Y, pd.DataFrame) else pd.DataFrame(np.asarray(Y))
    if frame.shape[0] != n_rows or frame.shape[1] == 0:
        raise DataError(
            f"Y has shape {frame.shape}: give {n_rows} rows, those that were fitted, and a column per response"
        )
    if not isinstance(Y, pd.DataFrame):
        return frame.set_axis(index, axis=0)
    return frame if frame.index.equals(index) else frame.reindex(index)
