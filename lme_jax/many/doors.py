"""Front doors of the batch engine: many responses, many data sets, many formulas."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..core.batch import Family, fit_lanes
from ..core.checks import check_rows, real_array
from ..core.compression import bucket
from ..core.data_sets import DataSets
from ..core.lanes import LaneData
from ..core.optimize import NewtonOptions
from ..core.programs import Backend
from ..core.records import Fit
from ..core.structures import StructureLike
from ..data import ModelData
from ..errors import DataError, UnsupportedError
from ..fitting import fit_without_lost_columns, read_options, read_reml, read_start, settle, with_backend
from ..formula import design_from_arrays, design_from_formula
from ..formula.values import as_frame, column, namespace
from ..results import MixedLMResults, refit_responses
from .responses import MEMORY_LIMIT, BatchOptions, Responses, read_responses, residual_spread, why_not_one_factor
from .results import ManyFits
from .views import SubsetViews

RESPONSE = "response"
# Levels with padding per level without it, from which data sets are compiled by size.
MOSTLY_PADDING = 4


def fit_many(
    Y: Any,
    X: Any,
    Z: Any,
    groups: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    offset: Any = None,
    structure: StructureLike = "unstructured",
    reml: bool = True,
    start: Any = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = True,
    options: NewtonOptions = NewtonOptions(),
    backend: Backend | None = None,
) -> ManyFits:
    """Fit one design with one grouping factor to many responses at once.

    Parameters
    ----------
    Y : (n, R)
        A column per response; a DataFrame's columns name them. NaN marks a missing value: each response is
        fitted to the rows it has. Memory-mapped and other array types are read a few columns at a time.
    X : (n, p) fixed effects; Z : (n, q) random effects, a column of ones if None; groups : (n,) labels.
    mask : (n, R) booleans, optional
        True where a response was observed, besides its NaN.
    weights, offset : (n,), optional
        Prior weights w > 0, Var(ε_i) = σ²/w_i; a known part of every mean.
    structure : str, or (str, what it needs)
        Covariance of the q effects of a group, as in ``lmer``: "unstructured", "diagonal", ("reduced_rank", 2) …
    reml : bool
    start : (k,), optional
        θ from which every search starts, such as ``.theta`` of a single fit; moment estimates if None.
    memory_limit : bytes of working memory, beside Y, the copy of it that the results keep, and the results.
    progress : show a bar for what takes more than two seconds.
    options : NewtonOptions
    backend : {"numpy", "jax"}, optional
        What computes: NumPy at once, or a compiled program; what is sooner ready by default. ``.backend`` of the
        result says which it was.

    Returns
    -------
    ManyFits
        Arrays over the responses; ``.frame()`` is the tidy table. A fit that fails says so in its own
        ``status`` and leaves the others alone; ``reasons`` tells why. An interrupt keeps what is done. The responses
        are copied, unless they are a ``numpy.memmap``, so that ``.one()`` can give any single fit later.

    Raises
    ------
    DataError

    Notes
    -----
    The design is compressed once, the responses by matrix products; the fits are lanes of one compiled program,
    the same numbers as one ``lmer`` per response gives.
    """
    X, Z = _columns(X, "X"), None if Z is None else _columns(Z, "Z")
    n = len(X)
    responses = read_responses(Y, n, mask)
    if weights is not None:
        weights = real_array("weights", weights, 1)
    design = design_from_arrays(_placeholder(n), X, groups, Z, weights=weights, structure=structure)
    if offset is not None:
        offset = real_array("offset", offset, 1)
        check_rows(X=design.X, offset=offset)
    design = replace(design, offset=offset)
    data = ModelData.from_design(design, factor_in_names=False)
    return refit_responses(
        data, responses, reml, start, BatchOptions(progress, memory_limit, with_backend(options, backend))
    )


def lmer_many(
    formula: str | Sequence[str] | Mapping[str, str],
    data: Any,
    responses: Any = None,
    *,
    by: Any = None,
    mask: Any = None,
    reml: bool = True,
    start: Any = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = True,
    options: NewtonOptions = NewtonOptions(),
    backend: Backend | None = None,
    **arguments: Any,
) -> Any:
    """Fit an ``lmer`` formula to many responses or many data sets; or several formulas to the same.

    Parameters
    ----------
    formula : str, or several as a list or a mapping of names
        With ``responses``, one-sided: ``"~ time + (time | subject)"``.
    data : DataFrame or mapping of columns
    responses : DataFrame or (n, R) array, or a list of column names of ``data``
        A DataFrame is matched to ``data`` by its row labels, an array by position. NaN marks a missing value; see
        ``fit_many``.
    by : column name, or several, optional
        Fit the formula apart in every subset of rows that shares a value of this column (lme4's ``lmList``
        for whole mixed models). Factors keep the levels they have in the whole data; fixed effects that the
        rows of a subset do not tell apart are left out of its fit, NaN and named in ``dropped_columns``.
        Transforms that learn from data, such as ``scale`` and ``poly``, learn from all rows.
    mask : (n, R) booleans, optional, with ``responses``.
    backend : {"numpy", "jax"}, optional; see ``fit_many``.
    **arguments
        What else ``lmer`` takes: weights, offset, contrasts, subset (not with ``by``), structures …

    Returns
    -------
    ManyFits, or a dict of them for several formulas; ``compare`` puts their AIC and BIC side by side.
    """
    options = with_backend(options, backend)
    if not isinstance(formula, str):
        named = formula if isinstance(formula, Mapping) else {text: text for text in formula}
        common = dict(by=by, mask=mask, reml=reml, start=start, memory_limit=memory_limit, progress=progress)
        context = namespace(1)
        return {
            name: _lmer_many(text, data, responses, context=context, options=options, **common, **arguments)
            for name, text in named.items()
        }
    return _lmer_many(
        formula,
        data,
        responses,
        by=by,
        mask=mask,
        reml=reml,
        start=start,
        memory_limit=memory_limit,
        progress=progress,
        options=options,
        context=namespace(1),
        **arguments,
    )


def _lmer_many(
    formula: str,
    data: Any,
    responses: Any,
    *,
    by: Any,
    mask: Any,
    reml: bool,
    start: Any,
    memory_limit: int,
    progress: bool,
    options: NewtonOptions,
    context: Mapping[str, Any],
    **arguments: Any,
) -> ManyFits:
    settings = BatchOptions(progress, memory_limit, options)
    if (responses is None) == (by is None):
        raise DataError("give either responses= (many responses of one design) or by= (many data sets)")
    if by is not None:
        return _fit_subsets(formula, as_frame(data), by, reml, start, settings, context, arguments)
    text = formula.strip()
    if not text.startswith("~"):
        raise DataError(f"with responses= the formula has no left side: write {'~' + text.split('~', 1)[-1]!r}")
    given = as_frame(data)
    if isinstance(responses, (list, tuple)) and all(isinstance(name, str) for name in responses):
        missing = [name for name in responses if name not in given]
        if missing:
            raise DataError(f"data has no columns {missing}: responses= names columns of data")
        responses = given[list(responses)]
    read = read_responses(responses, len(given), mask, given.index)
    frame = given.reset_index(drop=True)
    design = design_from_formula(
        f"{RESPONSE} {text}", frame.assign(**{RESPONSE: _placeholder(len(frame))}), context=context, **arguments
    )
    kept = np.asarray(design.index)
    if len(kept) < len(frame):
        read = Responses(read.values[kept], read.names, None if read.observed is None else read.observed[kept])
    return refit_responses(ModelData.from_design(design, factor_in_names=True), read, reml, start, settings)


# ---------------------------------------------------------------- many data sets


def _fit_subsets(
    formula: str,
    frame: pd.DataFrame,
    by: Any,
    reml: bool,
    start: Any,
    settings: BatchOptions,
    context: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> ManyFits:
    """One lane per subset: the design is built once for all rows, then cut."""
    reml, newton = read_reml(reml), read_options(settings.newton)
    keys = list(by) if isinstance(by, (list, tuple)) else [by]
    for key in keys:
        column(frame, key)
    frame = frame.reset_index(drop=True)
    design = design_from_formula(formula, frame, context=context, **arguments)
    data = ModelData.from_design(design, factor_in_names=True)
    if not data.has_one_factor:
        raise UnsupportedError(
            f"by= needs a model with one grouping factor of independent levels; {why_not_one_factor(data)}"
        )
    subset, labels = _subsets(frame.iloc[np.asarray(design.index)], keys)
    start = read_start(start, data.theta_names)
    views = SubsetViews(make=MixedLMResults, reml=reml, options=newton, whole=data, subset=subset)

    def fit_some(lanes: np.ndarray, keep: np.ndarray) -> tuple[Fit, np.ndarray, np.ndarray]:
        number = np.full(len(labels), -1)
        number[lanes] = np.arange(len(lanes))
        which = np.flatnonzero(number[subset] >= 0)
        own = data.rows(which).columns(keep)
        return _fit_sets(own, number[subset[which]], len(lanes), reml, start, replace(settings, progress=False))[:3]

    found, identified, spread, n_obs = _fit_sets(data, subset, len(labels), reml, start, settings)
    kept = fit_without_lost_columns(found, identified, spread, views.data, fit_some)
    views = replace(views, kept=kept)
    fit = settle(found, identified, spread, views.data)
    many = ManyFits(fit, data, labels, reml=reml, n_obs=n_obs, views=views)
    many.warn_of_failures()
    return many


def _fit_sets(
    data: ModelData, subset: np.ndarray, n_sets: int, reml: bool, start: Any, settings: BatchOptions
) -> tuple[Fit, np.ndarray, np.ndarray, np.ndarray]:
    """A lane per subset of the rows: fit, identified, spread and rows of each."""
    factor, spread = data.factors[0], np.full(n_sets, np.nan)
    sets = DataSets(
        data.y - data.offset,
        data.X,
        factor.Z,
        factor.codes,
        subset,
        n_sets,
        template=factor.template,
        weights=data.design.weights,
    )
    families = _families(sets, data, settings, start, spread)
    found = fit_lanes(families, reml=reml, options=settings.newton, progress=settings.progress)
    return found, sets.identified, spread, sets.n_rows


def _subsets(frame: pd.DataFrame, keys: list[Any]) -> tuple[np.ndarray, pd.Index]:
    """Number of each row's subset, and the labels of the subsets: of one column its values, of several their tuples."""
    missing = frame[keys].isna().any(axis=1)
    if missing.any():
        named = " or ".join(repr(key) for key in keys)
        raise DataError(f"{int(missing.sum())} rows have no value of {named}: drop them or give them one")
    if len(keys) == 1:
        subset, labels = pd.factorize(frame[keys[0]].to_numpy(), sort=True)
        return subset, pd.Index(labels, name=keys[0])
    groups = frame.groupby(keys, sort=True, observed=True)
    return groups.ngroup().to_numpy(), groups.size().index


def _families(sets: DataSets, data: ModelData, settings: BatchOptions, start: Any, spread: np.ndarray) -> list[Family]:
    """The lanes by size class; ``spread`` (n_sets,) is filled as they are compressed."""
    q, p = len(data.factors[0].columns), data.X.shape[1]

    def compress(which: np.ndarray, n_levels: int) -> LaneData:
        lanes = sets.compress(which, n_levels)
        spread[which] = residual_spread(lanes)
        return lanes

    def family(which: np.ndarray, n_levels: int) -> Family:
        width = settings.width(n_levels, q * (p + q + 1), q, p)
        return Family.cut(which, width, functools.partial(compress, n_levels=n_levels), start)

    return [family(*size_class) for size_class in _size_classes(sets.n_levels)]


def _size_classes(counts: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Numbers of the data sets that are padded alike, and to how many levels.

    A class is compiled by itself, so that all are one unless padding would be most of the work.
    """
    order = np.argsort(counts, kind="stable")
    sorted_counts = counts[order]
    if sorted_counts[-1] * len(order) <= MOSTLY_PADDING * sorted_counts.sum():
        return [(np.arange(len(order)), bucket(int(sorted_counts[-1])))]
    power = np.ceil(np.log(sorted_counts) / np.log(MOSTLY_PADDING)).astype(int)
    parts = np.split(order, np.flatnonzero(np.diff(power)) + 1)
    return [(part, bucket(int(counts[part].max()))) for part in parts]


# ---------------------------------------------------------------- arguments


def _placeholder(n: int) -> np.ndarray:
    """A response to build a design with: the checks of a real one need it to vary."""
    return np.linspace(-1.0, 1.0, n) ** 3


def _columns(values: Any, name: str) -> Any:
    """A design of the batch's own: pandas keeps its names, arrays are copied."""
    if isinstance(values, (pd.DataFrame, pd.Series)):
        return values
    array = real_array(name, values, np.ndim(values) if np.ndim(values) == 1 else 2)
    return np.array(array[:, None] if array.ndim == 1 else array)
