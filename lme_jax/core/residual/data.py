"""Rows → blocks pooled into patterns, in a conditioned basis: what ``residual.fit`` takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import DataError
from .. import covariance, moments
from ..checks import check_codes, check_rows, real_array
from ..compression import dependent_columns
from ..moments import Basis
from . import identification, long
from .model import Model
from .registry import VARIANCES, family, read_options, variance_family
from .series import Series
from .stacks import Rows, Stack, build, components
from .terms import Correlation, RandomTerm, Variance

# Of every visit structure's n rows, no more distinct visits than this: the matrix of all of them is formed.
MOST_VISITS = 4_000


@dataclass(frozen=True, eq=False)
class BlockData:
    """Everything a fit needs, and the rows for what is asked of single blocks afterwards.

    Attributes
    ----------
    model : the parameters and what they mean. made : the patterns, None where fits go by ``series``.
    basis : conditioned [X y] = [X y]·map. n_rows : n, NaN where X explains all of y. log_weights : Σ log w.
    unit : (k,) x = params ∘ unit is searched.
    y : (n,) less the offset; X : (n, p); weights : (n,) or None. rows : per row what V depends on, user's units.
    block : (n,) the block of every row.
    series : the chain of rows that fits go by; sample : some of its rows as data of their own, to begin at.
    """

    model: Model
    made: tuple[Stack, ...] | None
    basis: Basis
    n_rows: np.float64
    log_weights: np.float64
    unit: np.ndarray
    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray | None
    rows: Rows
    block: np.ndarray
    series: Series | None = None
    sample: "BlockData | None" = None

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The patterns; made when they are asked for where fits go by ``series``."""
        if self.made is not None:
            return self.made
        _check_visits(self.model)
        W, scaled = _weighed(self.model, self.rows, self.X, self.y, self.weights)[:2]
        return tuple(s._replace(C=s.C @ self.basis.map) for s in _stacks(self.model, self.block, scaled, W))

    @property
    def as_blocks(self) -> "BlockData":
        """The same data with fits by blocks, or itself where these are too many or too large."""
        if self.series is None or not long.affordable(self.block):
            return self
        return replace(self, series=None, sample=None, made=self.stacks)

    @property
    def n_fixed(self) -> int:
        """p."""
        return self.X.shape[1]

    @property
    def n_patterns(self) -> int:
        """Distinct covariance matrices."""
        return sum(len(s.copies) for s in self.stacks)


def compress(
    y: Any,
    X: Any,
    terms: Sequence[RandomTerm],
    correlation: Correlation | None,
    variances: Sequence[Variance] = (),
    *,
    weights: Any = None,
    offset: Any = None,
    engine: str | None = None,
) -> BlockData:
    """Blocks of dependent rows, those alike pooled.

    Parameters
    ----------
    y : (n,); X : (n, p).
    terms : bars beside the residual structure, or none.
    correlation : of the rows of a subject; None where they are independent.
    variances : functions whose product is a row's standard deviation relative to σ.
    weights, offset : (n,), optional
        Var(ε) is divided by w > 0 (SAS WEIGHT, mmrm's weights); a known term subtracted from y.
    engine : {"blocks", "series"}, optional
        Patterns of blocks, or, of structures that look back by one row under the levels of at most one factor, the rows
        as a chain; None takes the cheaper.

    Raises
    ------
    DataError
        For arrays that cannot be fitted and for parameters that the rows cannot tell, naming the visits.
    """
    y, X = real_array("y", y, 1), real_array("X", X, 2)
    weights = None if weights is None else real_array("weights", weights, 1)
    offset = None if offset is None else real_array("offset", offset, 1)
    check_rows(y=y, X=X, weights=weights, offset=offset)
    y = y if offset is None else y - offset
    correlation = _none(len(y)) if correlation is None else correlation
    model, rows = _read(len(y), terms, correlation, variances)
    identification.check_rows(model, rows)
    W, scaled, z_scale, log_weights = _weighed(model, rows, X, y, weights)
    block = components(rows.subject, rows.codes)
    unit, nothing = _units(model, z_scale), Basis(np.zeros((0, 0)), np.float64(0.0), np.ones(0))
    data = BlockData(
        model, None, nothing, np.float64(np.nan), log_weights, unit, y, X, weights, rows, block
    )  # fmt: skip
    chain = engine == "series" or (engine is None and long.cheaper(model, rows, block))
    return _as_chain(data, scaled, W) if chain else _by_blocks(data, scaled, W)


def responding(data: BlockData, y: np.ndarray) -> BlockData:
    """The same design with another response y (n,), less the offset."""
    W, scaled = _weighed(data.model, data.rows, data.X, y, data.weights)[:2]
    other = replace(data, y=y, sample=None)
    return _by_blocks(other, scaled, W) if data.series is None else _as_chain(other, scaled, W)


def _by_blocks(data: BlockData, scaled: Rows, W: np.ndarray) -> BlockData:
    _check_visits(data.model)
    stacks, basis = conditioned(_stacks(data.model, data.block, scaled, W), len(W))
    n_rows = _check([_gram(s.C) for s in stacks], basis, len(W))
    identification.check_patterns(data.model, stacks)
    return replace(data, made=tuple(stacks), basis=basis, n_rows=n_rows)


def _as_chain(data: BlockData, scaled: Rows, W: np.ndarray) -> BlockData:
    found = long.compress(data.model, scaled, data.block, W)
    n_rows = _check([found.WtW], found.basis, len(W))
    data = replace(data, series=found.series, basis=found.basis, n_rows=n_rows)
    return replace(data, sample=_sampled(data))


def _weighed(
    model: Model, rows: Rows, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, Rows, list[np.ndarray], np.float64]:
    """√w [X y] (n, p+1); the rows with √w Z in the units that follow; Σ log w."""
    root_w = None if weights is None else np.sqrt(weights)
    W = np.column_stack([X, y])
    W = W if root_w is None else W * root_w[:, None]
    log_weights = 0.0 if weights is None else float(np.log(weights).sum())
    scaled, z_scale = _scaled_bars(model, rows, root_w, log_weights)
    return W, scaled, z_scale, np.float64(log_weights)


def _stacks(model: Model, block: np.ndarray, scaled: Rows, W: np.ndarray) -> list[Stack]:
    alone = not model.bars and not model.variances and not model.family.distance
    metric = str(model.settings.get("metric", "euclidean")) if model.family.distance else None
    return build(block, scaled, W, model.n_visits if alone else 0, metric)


def _check_visits(model: Model) -> None:
    if model.n_visits > MOST_VISITS:
        raise DataError(
            f"{model.word} would form the correlations of {model.n_visits:,} visits: number the visits 0, 1, 2 … "
            "without wide gaps, or use car1, which takes times"
        )


def _sampled(data: BlockData) -> BlockData | None:
    """Some rows as data of their own."""
    assert data.series is not None
    found = long.sampled(data.model, data.series.chain)
    if found is None:
        return None
    chain = found.series.chain
    p = len(found.kept)
    return replace(
        data,
        series=found.series,
        n_rows=np.float64(chain.W.shape[1]),
        log_weights=np.float64(0.0),
        X=data.X[:, found.kept],
        basis=Basis(np.eye(p + 1), np.float64(0.0), np.ones(0)),
    )


def _none(n: int) -> Correlation:
    return Correlation("ident", np.arange(n), np.zeros(n, int), 1)


def _read(
    n: int, terms: Sequence[RandomTerm], correlation: Correlation, variances: Sequence[Variance]
) -> tuple[Model, Rows]:
    """The model and its rows, checked."""
    entry, options = family(correlation.word), read_options(correlation)
    subject = _renumbered(_codes("subject", correlation.subject, n))
    group = np.zeros(n, int) if correlation.group is None else _codes("group", correlation.group, n)
    clock, T = _clock(correlation, n, entry.distance)
    strata, covariates, sizes = [], [], []
    for v in variances:
        s, c = _variance(v, n)
        strata.append(s)
        covariates.append(c)
        sizes.append((v.word, int(s.max()) + 1))
    codes = tuple(_renumbered(_codes("codes of a random term", t.codes, n)) for t in terms)
    Zs = tuple(real_array("Z", t.Z, 2) for t in terms)
    check_rows(subject=subject, **{f"Z{j}": Z for j, Z in enumerate(Zs)})
    model = Model(
        bars=tuple(t.structure for t in terms),
        word=correlation.word,
        options=tuple(sorted(options.items())),
        n_visits=T,
        n_groups=int(group.max()) + 1,
        variances=tuple(sizes),
        delta_units=tuple(
            unit for (word, S), v in zip(sizes, covariates, strict=True) for unit in VARIANCES[word].unit(v, S).tolist()
        ),
    )
    return model, Rows(subject, clock, group, tuple(strata), tuple(covariates), Zs, codes)


def _codes(name: str, values: Any, n: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n,):
        raise DataError(f"{name} has shape {values.shape}; give ({n},), one code per row")
    return check_codes(values, int(values.max()) + 1 if n else 0, name)


def _renumbered(codes: np.ndarray) -> np.ndarray:
    """The codes that occur as 0, 1, 2 …"""
    if not len(codes) or codes.max() > 8 * len(codes):
        return np.unique(codes, return_inverse=True)[1].reshape(-1)
    seen = np.bincount(codes) > 0
    return (np.cumsum(seen) - 1)[codes]


def _clock(term: Correlation, n: int, distance: bool) -> tuple[np.ndarray, int]:
    """Visits (n,) and T, or coordinates (n, d) and 0."""
    if distance:
        clock = real_array("clock", np.reshape(np.asarray(term.clock, float), (n, -1)), 2)
        check_rows(clock=clock)
        return clock, 0
    T = int(term.n_visits) or int(np.max(term.clock)) + 1
    return check_codes(np.asarray(term.clock), T, "clock"), T


def _variance(term: Variance, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Strata and covariate of a variance function."""
    entry = variance_family(term.word)
    if dict(term.options).get("fitted"):
        raise DataError(
            f"{term.word}(fitted) is not available: the variance would depend on the fitted values of the fit itself. "
            f"Give a covariate, for example the fitted values of an earlier fit as a column: {term.word}(mu)"
        )
    strata = np.zeros(n, int) if term.strata is None else _codes("strata", term.strata, n)
    if not entry.covariate:
        return strata, np.zeros(n)
    if term.covariate is None:
        raise DataError(f"{term.word} needs a covariate")
    v = real_array(f"covariate of {term.word}", term.covariate, 1)
    check_rows(strata=strata, covariate=v)
    if entry.positive and (v == 0).any():
        instead = "shift it" if term.word == "constpower" else "use constpower or exp, or shift it"
        raise DataError(
            f"the covariate of {term.word} is 0 in row {int(np.argmax(v == 0))} (from 0), where the variance would be "
            f"0 or unbounded: {instead}"
        )
    if term.word == "fixed" and (v < 0).any():
        raise DataError(f"fixed variances must be positive: row {int(np.argmax(v < 0))} (from 0) is not")
    return strata, v


def _scaled_bars(
    model: Model, rows: Rows, root_w: np.ndarray | None, log_weights: float
) -> tuple[Rows, list[np.ndarray]]:
    """The rows with √w Z in units of powers of two, and those units."""
    Zs, scales = [], []
    for block, Z in zip(model.bars, rows.Z, strict=True):
        weighed = Z if root_w is None else Z * root_w[:, None]
        z = moments.power_of_two_scale(np.einsum("nq,nq->q", Z, Z), len(Z), (block,), log_weights)
        Zs.append(weighed / z)
        scales.append(z)
    return rows._replace(Z=tuple(Zs)), scales


def conditioned(stacks: list[Stack], n: int) -> tuple[list[Stack], Basis]:
    """The stacks with C in the basis in which X is near-orthonormal and y a residual of least squares."""
    w = stacks[0].C.shape[2]
    rows = np.concatenate([s.C.reshape(-1, w)[s.present[s.owner].ravel()] for s in stacks])
    basis = moments.basis_of_rows(rows[:, -1], rows[:, :-1], np.ones(0), n)
    return [s._replace(C=s.C @ basis.map) for s in stacks], basis


def _gram(C: np.ndarray) -> np.ndarray:
    flat = C.reshape(-1, C.shape[2])
    return flat.T @ flat


def _check(grams: list[np.ndarray], basis: Basis, n: int) -> np.float64:
    """The number of rows, NaN where X leaves nothing of y; dependent columns of X are refused."""
    WtW = sum(grams, np.zeros(grams[0].shape))
    lost = dependent_columns(WtW[:-1, :-1])
    if len(lost):
        raise DataError(
            f"columns {lost.tolist()} of X (from 0) are combinations of the earlier ones, so their effects cannot be "
            "told apart: leave them out"
        )
    return moments.rows_with_residual(n, WtW, basis)


def _units(model: Model, z_scale: list[np.ndarray]) -> np.ndarray:
    unit = np.ones(model.size)
    for here, block, z in zip(model.theta, model.bars, z_scale, strict=True):
        unit[here] = covariance.theta_scale((block,), z)
    unit[model.correlation.stop :] = model.delta_units
    return unit
