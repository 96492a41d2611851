"""Many responses of one design: cut into pieces for the batch engine, with or without missing rows."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..core.batch import Family, chunk_lanes, fit_lanes
from ..core.fit import fit
from ..core.lane_data import SharedDesign
from ..core.lanes import LaneData
from ..core.optimize import NewtonOptions
from ..core.records import Fit
from ..core.types import Status
from ..data import ModelData
from ..errors import DataError, UnsupportedError, warn_caller
from ..fitting import spread_of
from ..formula.values import aligned, as_frame

MEMORY_LIMIT = 1 << 30


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is run, not what it gives.

    Attributes
    ----------
    progress : show a bar for what takes more than two seconds.
    memory_limit : bytes of working memory, beside the responses and the results.
    newton : of each search.
    """

    progress: bool = True
    memory_limit: int = MEMORY_LIMIT
    newton: NewtonOptions = NewtonOptions()

    def __post_init__(self) -> None:
        if not isinstance(self.memory_limit, (int, float, np.number)) or not self.memory_limit > 0:
            raise DataError(f"memory_limit={self.memory_limit!r} must be a number of bytes > 0")

    def width(self, n_levels: int, values_per_level: int, q: int, p: int) -> int:
        """Lanes per call that keep eight copies of a call's data within the limit."""
        room = self.memory_limit // (64 * max(n_levels * values_per_level, 1))
        return int(max(8, min(chunk_lanes(n_levels, q, p), room)))


@dataclass(frozen=True)
class Responses:
    """A checked (n, R) block of responses, read in pieces."""

    values: np.ndarray
    names: pd.Index
    observed: np.ndarray | None

    def columns(self, which: np.ndarray) -> np.ndarray:
        """float64 copies or views of some columns."""
        contiguous = len(which) and which[-1] - which[0] == len(which) - 1
        part = self.values[:, which[0] : which[-1] + 1] if contiguous else self.values[:, which]
        return np.asarray(part, float)

    def seen(self, which: np.ndarray) -> np.ndarray:
        """Which rows count in some columns."""
        finite = np.isfinite(self.columns(which))
        return finite if self.observed is None else finite & self.observed[:, which]


def read_responses(Y: Any, n_rows: int, mask: Any, index: pd.Index | None = None) -> Responses:
    """Check Y (n, R) and the mask against the rows of the design.

    Parameters
    ----------
    Y : array, Series or DataFrame
        Kept as a copy, so that single results can be asked for later; a memory map stays where it is.
    index : labels of the rows, optional
        A pandas Y is put in their order by its own labels, which must hold these.
    """
    Y = as_frame(Y) if hasattr(Y, "to_pandas") else Y
    if isinstance(Y, pd.Series):
        Y = Y.to_frame()
    if isinstance(Y, pd.DataFrame):
        if index is None or len(Y) < n_rows:
            _check_length(Y.shape, n_rows)
        Y = Y if index is None else aligned(Y, index, "the responses")
    try:
        values = Y.to_numpy() if isinstance(Y, pd.DataFrame) else np.asarray(Y)
    except ValueError as error:
        raise DataError(f"Y must be an array (n, R), a column per response: {error}") from error
    if values.ndim == 1:
        values = values[:, None]
    _check_length(values.shape, n_rows)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or np.iscomplexobj(values):
        raise DataError(f"Y has dtype {values.dtype}: responses must be real numbers (NaN where missing)")
    if values.shape[1] == 0:
        raise DataError("Y has no columns: there is no response to fit")
    names = Y.columns if isinstance(Y, pd.DataFrame) else pd.RangeIndex(values.shape[1])
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != values.shape or mask.dtype != bool:
            raise DataError(
                f"mask has shape {mask.shape} and dtype {mask.dtype}; it needs {values.shape} booleans, True where "
                "the response was observed"
            )
    owned = values if isinstance(Y, np.memmap) else np.array(values)
    return Responses(owned, names, None if mask is None else np.array(mask))


def _check_length(shape: tuple[int, ...], n_rows: int) -> None:
    if len(shape) != 2 or shape[0] != n_rows:
        raise DataError(f"Y has shape {shape}; the design has {n_rows} rows: give (n, R), a column per response")


class FittedLanes(NamedTuple):
    """Lanes as the engine leaves them, for ``fitting.settle``.

    Attributes
    ----------
    fit : with a leading axis R; n_obs : (R,) rows that counted.
    identified : (R,) whether a single fit would accept the rows; spread : (R,) of the response, in the units of σ.
    """

    fit: Fit
    n_obs: np.ndarray
    identified: np.ndarray
    spread: np.ndarray


def fit_responses(
    data: ModelData, responses: Responses, *, reml: bool, start: Any = None, options: BatchOptions = BatchOptions()
) -> FittedLanes:
    """Fit every response, complete or not."""
    complete = _complete_lanes(responses)
    n_obs, identified = np.full(len(complete), data.n_rows), np.ones(len(complete), bool)
    if not data.has_one_factor:
        if not complete.all():
            raise UnsupportedError(
                f"{int((~complete).sum())} responses have missing rows: {why_not_one_factor(data)}, so every response "
                "needs all rows. Drop or impute them."
            )
        columns = (responses.columns(np.array([number]))[:, 0] for number in range(len(complete)))
        fit, spread = fit_one_by_one(data, columns, len(complete), reml, start, options)
        return FittedLanes(fit, n_obs, identified, spread)
    spread = np.full(len(complete), np.nan)
    design, sized = data.shared_design, _Sized(data.shared_design, options.memory_limit)
    q, p = len(data.factors[0].columns), data.X.shape[1]
    partial = np.flatnonzero(~complete)

    def compress_whole(which: np.ndarray) -> LaneData:
        lanes = sized.compress(responses.columns(which))
        spread[which] = residual_spread(lanes)
        return lanes

    def compress_partial(which: np.ndarray) -> LaneData:
        seen = responses.seen(which)
        n_obs[which] = seen.sum(0)
        lanes, identified[which] = design.compress_observed(responses.columns(which), seen)
        spread[which] = residual_spread(lanes)
        return lanes

    widths = options.width(design.n_levels, q, q, p), options.width(design.n_groups, q * (q + p + 1), q, p)
    families = [
        Family.cut(np.flatnonzero(complete), widths[0], compress_whole, start),
        Family.cut(partial, widths[1], compress_partial, start),
    ]
    found = fit_lanes(families, reml=reml, options=options.newton, progress=options.progress)
    return FittedLanes(found, n_obs, identified, spread)


def fit_observed(
    data: ModelData, responses: Responses, lanes: np.ndarray, *, reml: bool, start: Any, options: BatchOptions
) -> tuple[Fit, np.ndarray, np.ndarray]:
    """Some incomplete responses of a one-factor design: fit, identified and spread in the order of ``lanes``."""
    design, q, p = data.shared_design, len(data.factors[0].columns), data.X.shape[1]
    identified, spread = np.ones(len(lanes), bool), np.full(len(lanes), np.nan)

    def compress(which: np.ndarray) -> LaneData:
        own = lanes[which]
        compressed, identified[which] = design.compress_observed(responses.columns(own), responses.seen(own))
        spread[which] = residual_spread(compressed)
        return compressed

    width = options.width(design.n_groups, q * (q + p + 1), q, p)
    family = Family.cut(np.arange(len(lanes)), width, compress, start)
    return fit_lanes([family], reml=reml, options=options.newton), identified, spread


def residual_spread(lanes: LaneData) -> np.ndarray:
    """(R,) root mean square residual of least squares, in the units of σ."""
    return 1.0 / np.asarray(lanes.basis.map)[-1, -1]


def why_not_one_factor(data: ModelData) -> str:
    """What keeps the batch engine from a model; see ``ModelData.has_one_factor``."""
    names = ", ".join(repr(factor.name) for factor in data.factors)
    if len(data.factors) > 1:
        return f"the model has several grouping factors ({names})"
    kind = "rows that belong to several levels" if data.factors[0].membership is not None else "related levels"
    return f"the grouping factor {names} has {kind}"


@dataclass(frozen=True)
class _Sized:
    design: SharedDesign
    memory_limit: int

    def compress(self, Y: np.ndarray) -> Any:
        return self.design.compress(Y, lanes_at_once=self.memory_limit // (64 * self.design.n_rows))


def _complete_lanes(responses: Responses) -> np.ndarray:
    """(R,) whether every row of a response counts, column block by column block."""
    n, R = responses.values.shape
    step = max(1, (1 << 23) // n)
    out = np.empty(R, bool)
    for lo in range(0, R, step):
        which = np.arange(lo, min(lo + step, R))
        block = responses.columns(which)
        with np.errstate(invalid="ignore", over="ignore"):
            out[which] = np.isfinite(block.sum(0))
        for column in np.flatnonzero(~out[which]):
            infinite = np.flatnonzero(np.isinf(block[:, column]))
            if len(infinite):
                raise DataError(
                    f"response {responses.names[lo + int(column)]!r} is infinite in {len(infinite)} rows (from 0: "
                    f"{infinite[:5].tolist()}): mark missing values by NaN"
                )
    return out if responses.observed is None else out & responses.observed.all(0)


def fit_one_by_one(
    data: ModelData, columns: Iterable[np.ndarray], n: int, reml: bool, start: Any, options: BatchOptions
) -> tuple[Fit, np.ndarray]:
    """The search of a single fit, response after response, for what the batch engine does not take.

    Returns
    -------
    Fit, (n,)
        And the spread of each response, in the units of σ. An interrupt keeps what is done; the others are NaN and
        ``INTERRUPTED``.
    """
    from tqdm.auto import tqdm

    fits: list[Fit] = []
    spread = np.full(n, np.nan)
    try:
        for y in tqdm(columns, total=n, disable=not options.progress, unit="fit", delay=2.0):
            own = data.with_response(y)
            found = fit(own.compressed, reml=reml, start=start, options=options.newton)
            spread[len(fits)] = spread_of(own)
            fits.append(found)
    except KeyboardInterrupt:
        if not fits:
            raise
        warn_caller(f"interrupted: {len(fits)} of {n} fits are done and kept, the others are NaN", RuntimeWarning)
    undone = dataclasses.replace(
        fits[0], **{name: _nothing(np.asarray(values), name) for name, values in vars(fits[0]).items()}
    )
    fits += [undone] * (n - len(fits))
    stacked = {name: np.stack([np.asarray(getattr(one, name)) for one in fits]) for name in vars(undone)}
    return dataclasses.replace(undone, **stacked), spread


def _nothing(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.full_like(values, np.nan)
    return np.full_like(values, Status.INTERRUPTED if name == "status" else 0)
