"""Many responses of one design: cut into pieces for the batch engine, with or without missing rows."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..core.batch import Family, chunk_lanes, fit_lanes
from ..core.lane_data import SharedDesign
from ..core.lanes import LaneData
from ..core.optimize import NewtonOptions
from ..core.records import Fit
from ..core.several_data import SeveralDesign
from ..core.several_lanes import SeveralLanes
from ..data import ModelData
from ..errors import DataError
from ..formula.values import aligned, as_frame
from .alone import OneByOne, occurring

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
        return self.fitting(chunk_lanes(n_levels, q, p), n_levels * values_per_level)

    def fitting(self, lanes: int, values_per_lane: int) -> int:
        """``lanes``, or as many as keep eight copies of a call's data within the limit."""
        return int(max(8, min(lanes, self.memory_limit // (64 * max(values_per_lane, 1)))))


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
        return _fit_several(data, responses, np.arange(len(complete)), complete, reml, start, options)
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


def design_for_lanes(data: ModelData, options: BatchOptions) -> SeveralDesign | None:
    """The design of several factors as lanes of NumPy take it; None where each response is a fit of its own."""
    return None if options.newton.backend == "jax" else data.several_design


def several_width(design: SeveralDesign, options: BatchOptions) -> int:
    """Lanes per call of a design with several factors: within the cache, and the memory limit."""
    return options.fitting(design.shared.width, design.n_rows + len(design.shared.ZtX) ** 2)


def _fit_several(
    data: ModelData,
    responses: Responses,
    numbers: np.ndarray,
    complete: np.ndarray,
    reml: bool,
    start: Any,
    options: BatchOptions,
) -> FittedLanes:
    """The responses ``numbers`` of a design with several factors; the ``complete`` ones as lanes where that suits."""
    design = design_for_lanes(data, options) if complete.any() else None
    alone = OneByOne(data, lambda lane: _observed(data, responses, int(numbers[lane])), len(numbers))

    def compress(which: np.ndarray) -> SeveralLanes:
        lanes = design.compress(responses.columns(numbers[which]))  # type: ignore[union-attr]
        alone.spread[which] = residual_spread(lanes)
        return lanes

    together = complete & (design is not None)
    families = [alone.family(np.flatnonzero(~together), start)]
    if design is not None:
        families.append(Family.cut(np.flatnonzero(together), several_width(design, options), compress, start))
    found = fit_lanes(families, reml=reml, options=options.newton, progress=options.progress)
    return FittedLanes(found, alone.n_obs, alone.identified, alone.spread)


def _observed(data: ModelData, responses: Responses, number: int) -> ModelData:
    """The rows that one response has."""
    which = np.array([number])
    y, seen = responses.columns(which)[:, 0], responses.seen(which)[:, 0]
    return data.with_response(y) if seen.all() else occurring(data.rows(seen)).with_response(y[seen])


def fit_observed(
    data: ModelData, responses: Responses, lanes: np.ndarray, *, reml: bool, start: Any, options: BatchOptions
) -> tuple[Fit, np.ndarray, np.ndarray]:
    """Some incomplete responses: fit, identified and spread in the order of ``lanes``."""
    if not data.has_one_factor:
        some = _fit_several(data, responses, lanes, np.zeros(len(lanes), bool), reml, start, options)
        return some.fit, some.identified, some.spread
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


def residual_spread(lanes: LaneData | SeveralLanes) -> np.ndarray:
    """(R,) root mean square residual of least squares, in the units of σ."""
    return 1.0 / np.asarray(lanes.basis.map)[-1, -1]


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
