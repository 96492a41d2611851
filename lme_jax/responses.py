"""Many responses of one design: cut into pieces for the batch engine, with or without missing rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .core.batch import Family, chunk_lanes, fit_lanes
from .core.fit import fit
from .core.lane_data import SharedDesign
from .core.optimize import NewtonOptions
from .core.records import Fit
from .data import ModelData
from .errors import DataError, UnsupportedError

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


def read_responses(Y: Any, n_rows: int, mask: Any) -> Responses:
    """Check Y (n, R) and the mask against the rows of the design."""
    values = Y.to_numpy() if isinstance(Y, pd.DataFrame) else np.asarray(Y)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != n_rows:
        raise DataError(f"Y has shape {values.shape}; the design has {n_rows} rows: give (n, R), a column per response")
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
    return Responses(values, names, mask)


def fit_responses(
    data: ModelData, responses: Responses, *, reml: bool, start: Any = None, options: BatchOptions = BatchOptions()
) -> tuple[Fit, np.ndarray]:
    """Fit every response; the arrays (R, …) and the rows (R,) that counted."""
    complete = _complete_lanes(responses)
    if not data.has_one_factor:
        if not complete.all():
            raise UnsupportedError(
                f"{int((~complete).sum())} responses have missing rows: with several grouping factors (or related "
                "levels) every response needs all rows. Drop or impute them."
            )
        return _one_by_one(data, responses, reml, start, options), np.full(len(responses.names), data.n_rows)
    design = data.shared_design
    n_obs = np.full(len(complete), data.n_rows)
    q, p = len(data.factors[0].columns), data.X.shape[1]
    whole, partial = np.flatnonzero(complete), np.flatnonzero(~complete)

    def family(which: np.ndarray, levels: int, values: int, compress: Callable[[np.ndarray], Any]) -> Family:
        return Family.cut(which, options.width(levels, values, q, p), compress, start)

    def compress_partial(which: np.ndarray) -> Any:
        seen = responses.seen(which)
        n_obs[which] = seen.sum(0)
        return design.compress_observed(responses.columns(which), seen)

    sized = _Sized(design, options.memory_limit)
    families = [
        family(whole, design.n_levels, q, lambda which: sized.compress(responses.columns(which))),
        family(partial, design.n_groups, q * (q + p + 1), compress_partial),
    ]
    return fit_lanes(families, reml=reml, options=options.newton, progress=options.progress), n_obs


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


def _one_by_one(data: ModelData, responses: Responses, reml: bool, start: Any, options: BatchOptions) -> Fit:
    """Several grouping factors: the search of a single fit, response after response."""
    numbers = tqdm(range(len(responses.names)), disable=not options.progress, unit="fit", delay=2.0)
    fits = []
    for number in numbers:
        y = responses.columns(np.array([number]))[:, 0]
        fits.append(fit(data.with_response(y).compressed, reml=reml, start=start, options=options.newton))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *fits)
