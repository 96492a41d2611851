"""``moments``, ``merge``: models of rows that are never all in one place, from sums that add."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .core import crossed_moments
from .core import moments as one_factor
from .core.compression import pool
from .core.crossed_data import pool_crossed
from .core.crossed_moments import CrossedMoments, merge_crossed
from .core.fit import ModelStatistics
from .core.moments import GroupMoments, triangle
from .core.optimize import NewtonOptions
from .core.programs import Backend
from .core.pytrees import leaves, tree_map
from .data import ModelData, NoRows
from .errors import DataError, UnsupportedError
from .fitting import with_backend
from .formula import design_from_formula, drop_dependent_columns
from .formula.chunk import Chunk
from .formula.columns import dependence
from .formula.design import check_counts, check_varies
from .formula.lme4 import Lme4State
from .formula.union import check_same_columns, state_of, union_of_columns, union_of_levels
from .formula.values import namespace
from .keeping import without_rows
from .results import MixedLMResults, fit_model

NO_ROWS = "a fit of moments has no rows"


class Spread(NamedTuple):
    """What the response is like, in numbers that add.

    Attributes
    ----------
    weight, mean, squares : Σw, the mean and Σw(y − mean)² of the response less its offset.
    low, high : the range of the response.
    """

    weight: float
    mean: float
    squares: float
    low: float
    high: float

    def __add__(self, other: Spread) -> Spread:  # type: ignore[override]
        weight, step = self.weight + other.weight, other.mean - self.mean
        mean = self.mean + step * other.weight / weight
        squares = self.squares + other.squares + step**2 * self.weight * other.weight / weight
        return Spread(weight, mean, squares, min(self.low, other.low), max(self.high, other.high))


def _spread(data: ModelData) -> Spread:
    y, weights = data.y - data.offset, data.design.weights
    w = np.ones(len(y)) if weights is None else weights
    mean = float(np.average(y, weights=w))
    low, high = float(data.y.min()), float(data.y.max())
    return Spread(float(w.sum()), mean, float((w * (y - mean) ** 2).sum()), low, high)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Moments:
    """Everything that a fit needs of some rows: sums that add, and what their columns and levels mean.

    Made by ``moments``; ``a + b`` or ``merge`` gives those of all the rows. Never changed, and holds no row.

    Attributes
    ----------
    sums : the core's additive cross-products, read-only.
    """

    _data: ModelData
    sums: GroupMoments | CrossedMoments
    _spread: Spread

    @property
    def formula(self) -> str:
        return self._data.design.formula

    @property
    def n_rows(self) -> int:
        """Rows that were used."""
        return self._data.n_rows

    @property
    def n_dropped(self) -> int:
        """Rows left out for missing values."""
        return self._data.n_dropped

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the fixed effects; those that the rows do not tell apart are dropped by ``fit``."""
        return self._data.exog_names

    @property
    def levels(self) -> dict[str, np.ndarray]:
        """The levels of each grouping factor that the rows have."""
        return {factor.name: np.array(factor.levels) for factor in self._data.factors}

    def __add__(self, other: Any) -> Moments:
        return _merged([self, other]) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other: Any) -> Moments:
        # The 0 that sum() begins with.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __repr__(self) -> str:
        levels = ", ".join(f"{len(f.levels)} levels of {f.name}" for f in self._data.factors)
        return f"<Moments of {self.n_rows} rows, {len(self.columns)} fixed effects, {levels}: {self.formula}>"

    @property
    def statistics(self) -> ModelStatistics:
        """The core's sufficient statistics: for ``lme.deviance``, ``lme.loglike`` … at any parameters."""
        return self._model.compressed

    @cached_property
    def _model(self) -> ModelData:
        """The labelled data to fit, without the columns of X that others determine."""
        # Its columns have the lengths and angles of those of X.
        few_rows = triangle(self.sums.WtW, self.sums.basis)[:, :-1]
        keep = drop_dependent_columns(few_rows, self.columns)
        data, sums = self._data, self.sums
        if len(keep) < len(self.columns):
            data, sums = _without_dependent(data, keep, few_rows), _without_columns(sums, keep.tolist())
        data = dataclasses.replace(data, sums=sums)
        statistics = pool(sums) if isinstance(sums, GroupMoments) else pool_crossed(sums)
        spread = float(np.sqrt(self._spread.squares / self.n_rows))
        data.__dict__.update(compressed=statistics, spread=spread)
        return data

    def _check_effects(self) -> None:
        """Whether every random effect has a row that tells of it."""
        effects = [(column, factor.name) for factor in self._data.factors for column in factor.columns]
        for (column, factor), squares in zip(effects, self.sums.column_squares, strict=True):
            if squares == 0:
                raise DataError(
                    f"The effect {column} that varies by {factor!r} is zero in every row, such as that of a level that "
                    "no row has: leave it out of the formula, or the level out of levels= and the Categorical."
                )

    def fit(
        self,
        *,
        reml: bool = True,
        start: Any = None,
        options: NewtonOptions = NewtonOptions(),
        backend: Backend | None = None,
    ) -> MixedLMResults:
        """Fit the model to the rows that were summed; the arguments are those of ``lmer``.

        Returns
        -------
        MixedLMResults
            What ``lmer`` of all the rows gives, but for what needs the rows themselves (residuals, fitted values,
            simulations, refits): that raises DataError.

        Raises
        ------
        DataError
            Where the rows cannot identify the model.
        """
        check_varies(self._spread.low, self._spread.high, self._data.endog_name)
        self._check_effects()
        data = self._model
        check_counts(data.n_rows, len(data.exog_names), data.terms)
        return fit_model(data, reml, start, with_backend(options, backend))


def moments(
    formula: str,
    data: Any,
    *,
    like: Any = None,
    levels: Mapping[str, Sequence[Any]] | None = None,
    weights: Any = None,
    offset: Any = None,
    contrasts: Mapping[str, Any] | None = None,
    missing: str = "drop",
    subset: Any = None,
    structures: Mapping[str, Any] | None = None,
    memberships: Any = None,
    relatedness: Any = None,
) -> Moments:
    """Sum one chunk of rows for a model; sums of chunks add, and the sum is fitted.

    Parameters
    ----------
    formula, weights, offset, contrasts, missing, subset, structures : as in ``lmer``, the same for every chunk.
    data : DataFrame or mapping of columns
        The rows of the chunk. It may lack levels, share levels with other chunks, and have fewer rows than effects.
    like : Moments or DataFrame, optional
        Whose columns these shall be: levels and contrasts of factors among the effects, and what ``scale``, ``poly``,
        ``bs``, ``mean`` … have learnt. The moments of another chunk, or a frame to learn from.
    levels : mapping, optional
        Column → all the levels that it has in any chunk, in order. A Categorical column says so itself.
    memberships, relatedness : are not served; rows have one level per factor, and levels are independent.

    Returns
    -------
    Moments

    Raises
    ------
    DataError
        For a factor among the effects with a level that ``like``, ``levels`` or the Categorical lacks, naming column
        and level. Levels of grouping factors need not be known before: those of all chunks are joined by label.

    Notes
    -----
    Without ``like`` a chunk learns levels (of columns that are no Categoricals) and transforms from its own rows;
    chunks that learnt different ones do not add, and the error says which. A fit of the sum is that of all rows at
    once, to rounding; where transforms learnt from the first chunk, say its mean, the model is written in these.

    Memory is O(levels · effects²), and for several factors a number per pair of levels that meet; see ``merge``.

    Examples
    --------
    >>> parts = [lme.moments("y ~ x + (x | g)", chunk) for chunk in chunks]  # doctest: +SKIP
    >>> print(lme.merge(parts).fit().summary())  # doctest: +SKIP
    """
    if memberships is not None or relatedness is not None:
        raise UnsupportedError(
            "moments() takes rows of one level per factor and independent levels: for memberships= and relatedness= "
            "give all rows to lmer()."
        )
    how: dict[str, Any] = dict(weights=weights, offset=offset, contrasts=contrasts, structures=structures)
    context, levels = namespace(1), levels or {}
    state = _state(formula, like, levels, how, context)
    chunk = Chunk(state, levels)
    design = design_from_formula(formula, data, **how, missing=missing, subset=subset, context=context, chunk=chunk)
    union_of_levels([design])
    model = ModelData.from_design(design, factor_in_names=True)
    return Moments(without_rows(model, NO_ROWS), _locked(model.moments()), _spread(model))


def _state(
    formula: str, like: Any, levels: Mapping[str, Sequence[Any]], how: dict[str, Any], context: Mapping[str, Any]
) -> Lme4State | None:
    """The state whose columns a chunk shall have."""
    if like is None:
        return None
    if isinstance(like, Moments):
        return state_of(like._data.design)
    given = {name: value for name, value in how.items() if name not in ("weights", "offset") or isinstance(value, str)}
    return state_of(design_from_formula(formula, like, **given, context=context, chunk=Chunk(None, levels)))


def merge(*parts: Any) -> Any:
    """The moments of all chunks together: they add, in any order.

    Parameters
    ----------
    parts : moments of chunks, or one list of them
        ``Moments`` of a formula; or those of the core, ``GroupMoments`` or ``CrossedMoments``, whose chunks must use
        one coding of the levels.

    Returns
    -------
    The same kind; the parts stay as they are.

    Raises
    ------
    DataError
        Where the columns of the chunks do not mean the same, saying which and what to do.
    """
    if len(parts) == 1 and isinstance(parts[0], Iterable) and not isinstance(parts[0], Moments):
        parts = tuple(parts[0])
    if not parts:
        raise DataError("there are no moments to merge: give those of one chunk or more")
    for kind, join in ((Moments, _merged), (CrossedMoments, _of_core), (GroupMoments, _of_core)):
        if all(isinstance(part, kind) for part in parts):
            return join(parts)
    names = sorted({type(part).__name__ for part in parts})
    raise DataError(f"merge takes moments of one kind, not {' and '.join(names)}")


def _of_core(parts: Sequence[Any]) -> Any:
    return merge_crossed(*parts) if isinstance(parts[0], CrossedMoments) else one_factor.merge(*parts)


def _merged(parts: Sequence[Moments]) -> Moments:
    first = parts[0]._data
    for part in parts[1:]:
        check_same_columns(first.design, part._data.design)
        for a, b in zip(first.terms, part._data.terms, strict=True):
            if a.block != b.block:
                raise DataError(
                    f"The covariance structures of ({' + '.join(a.columns)} | {a.factor}) differ: {a.structure} in one "
                    f"chunk, {b.structure} in another, or what they need; give every chunk the same structures=."
                )
    designs = [part._data.design for part in parts]
    state, positions = union_of_levels(designs)
    state = dataclasses.replace(state, columns=union_of_columns(designs, [part.n_rows for part in parts]))
    names = [factor.name for factor in first.factors]
    n_levels = [len(labels) for labels in _labels(state).values()]
    where = [[positions[name][i] for name in names] for i in range(len(parts))]
    sums: list[Any] = [part.sums for part in parts]
    if isinstance(sums[0], GroupMoments):
        added: Any = one_factor.merge(*sums, positions=[own for (own,) in where], n_levels=n_levels[0])
    else:
        added = merge_crossed(*sums, positions=where, n_levels=n_levels)
    spread = parts[0]._spread
    for part in parts[1:]:
        spread = spread + part._spread
    return Moments(_relabelled(parts, state, where), _locked(added), spread)


def _labels(state: Lme4State) -> dict[str, np.ndarray]:
    """The levels of each grouping factor, in the order of the factors."""
    pairs = zip(state.parsed.bars, state.crossings, strict=True)
    return {bar.label: crossing.labels for bar, crossing in pairs if crossing is not None}


def _relabelled(parts: Sequence[Moments], state: Lme4State, where: Sequence[Sequence[np.ndarray]]) -> ModelData:
    """The labels and sizes of all chunks together."""
    first, labels = parts[0]._data, _labels(state)
    n_dropped = sum(part.n_dropped for part in parts)
    offset = next((p._data.design.offset for p in parts if p._data.design.offset is not None), None)
    weights = next((p._data.design.weights for p in parts if p._data.design.weights is not None), None)
    rows: Any = NoRows(sum(part.n_rows for part in parts), NO_ROWS)
    gone: dict[str, Any] = dict(codes=rows, Z=rows)
    terms = {id(term): dataclasses.replace(term, levels=labels[term.factor], **gone) for term in first.design.terms}
    design = dataclasses.replace(
        first.design,
        y=rows,
        X=rows,
        index=rows,
        state=state,
        n_dropped=n_dropped,
        offset=offset,
        weights=weights,
        terms=tuple(terms[id(term)] for term in first.design.terms),
    )
    factors = []
    for j, factor in enumerate(first.factors):
        new = dataclasses.replace(factor, levels=labels[factor.name], **gone)
        sizes = [part._data.factors[j].sizes for part in parts]
        new.__dict__["sizes"] = one_factor.added(sizes, [own[j] for own in where], len(new.levels)).astype(int)
        factors.append(new)
    return dataclasses.replace(
        first, design=design, terms=tuple(terms[id(term)] for term in first.terms), factors=tuple(factors)
    )


def _without_dependent(data: ModelData, keep: np.ndarray, few_rows: np.ndarray) -> ModelData:
    """The labels without the columns that others determine, and how they do."""
    kept = data.columns(keep)
    state = state_of(kept.design)
    if state.columns is not None:
        columns = dataclasses.replace(state.columns, dependence=dependence(few_rows, keep))
        state = dataclasses.replace(state, columns=columns)
    return dataclasses.replace(kept, design=dataclasses.replace(kept.design, state=state))


def _without_columns(sums: GroupMoments | CrossedMoments, keep: list[int]) -> GroupMoments | CrossedMoments:
    if isinstance(sums, GroupMoments):
        return one_factor.without_columns(sums, keep)
    return crossed_moments.without_columns(sums, keep)


def _locked(sums: Any) -> Any:
    """The sums in arrays that cannot be written to."""
    sums = tree_map(np.asarray, sums)
    for array in leaves(sums):
        array.setflags(write=False)
    return sums
