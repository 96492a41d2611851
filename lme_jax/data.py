"""ModelData: a Design whose random terms are merged by factor and compressed, ready to fit and to label."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from .core.compression import compress, group_moments
from .core.covariance import Template
from .core.crossed_data import compress_crossed
from .core.crossed_moments import CrossedMoments, crossed_moments
from .core.fit import ModelStatistics
from .core.henderson import MixedModelEquations
from .core.lane_data import SharedDesign
from .core.moments import GroupMoments, triangle
from .core.records import Fit
from .core.rotation import compress_rotated
from .core.several_data import SeveralDesign, suits_lanes
from .core.structures import entry
from .errors import DataError, UnsupportedError
from .formula import Design, RandomTerm


class NoRows:
    """Stands for rows that are not there: knows how many there were, and says why if they are asked for."""

    why = "the rows were removed by remove_data()"

    def __init__(self, n: int, why: str = why) -> None:
        self.n, self.why = n, why

    def __len__(self) -> int:
        return self.n

    def _gone(self, *args: Any, **kwargs: Any) -> Any:
        raise DataError(f"{self.why}: this needs them")

    __array__ = __matmul__ = __getitem__ = __iter__ = __lt__ = __le__ = __gt__ = __ge__ = _gone
    __add__ = __sub__ = __mul__ = __radd__ = __rsub__ = __rmul__ = _gone

    def __getattr__(self, name: str) -> Any:
        """What an array would have."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._gone()


@dataclass(frozen=True)
class Factor:
    """The random terms of one grouping factor, side by side.

    Attributes
    ----------
    levels : (m,) labels; codes : (n,) int32; Z : (n, q); columns : q effect names.
    template : the covariance structure of the q effects, a block per term.
    membership : (n, m) CSR weights where rows belong to several levels, else None.
    root : (m, r) with known relatedness RRᵀ of the levels, else None: levels are independent.
    """

    name: str
    levels: np.ndarray
    codes: np.ndarray
    Z: np.ndarray
    columns: tuple[str, ...]
    template: Template
    membership: Any = None
    root: np.ndarray | None = None

    @cached_property
    def sizes(self) -> np.ndarray:
        """(m,) rows per level."""
        if self.membership is not None:
            return np.diff(self.membership.tocsc().indptr)
        return np.bincount(self.codes, minlength=len(self.levels))

    @property
    def by_code(self) -> bool:
        """Whether every row has one level and the levels are independent."""
        return self.membership is None and self.root is None

    def is_inside(self, outer: "Factor") -> bool:
        """Whether every level lies in one level of another factor, which lies inside itself."""
        if self is outer:
            return True
        if not (self.by_code and outer.by_code):
            return False
        parent = np.zeros(len(self.levels), np.int64)
        parent[self.codes] = outer.codes
        return bool(np.array_equal(parent[self.codes], outer.codes))

    @property
    def n_independent(self) -> int:
        """Number r of independent sets of q effects: the levels, or the rank of their relatedness."""
        return len(self.levels) if self.root is None else self.root.shape[1]

    @property
    def rows(self) -> Any:
        """(n, m) CSR weights of the levels in each row."""
        return self.rows_of(self.codes) if self.membership is None else self.membership

    def rows_of(self, codes: np.ndarray) -> Any:
        """CSR indicators of codes; a negative code gives an empty row."""
        known = codes >= 0
        ends = np.concatenate([[0], np.cumsum(known)])
        return scipy.sparse.csr_matrix(
            (np.ones(ends[-1]), codes[known], ends), shape=(len(codes), len(self.levels)), dtype=float
        )

    def spread(self, Z: np.ndarray, rows: Any) -> Any:
        """(n, r·q) CSR columns of the independent effects for effect values Z (n, q) and level weights (n, m)."""
        rows = rows if self.root is None else scipy.sparse.csr_matrix(rows @ self.root)
        n, q = Z.shape
        values = rows.data[:, None] * Z[np.repeat(np.arange(n), np.diff(rows.indptr))]
        columns = rows.indices[:, None].astype(np.int64) * q + np.arange(q)
        shape = (n, self.n_independent * q)
        return scipy.sparse.csr_matrix((values.ravel(), columns.ravel(), rows.indptr.astype(np.int64) * q), shape=shape)

    @cached_property
    def effects(self) -> Any:
        """(n, r·q) CSR columns of the independent effects in the rows that were fitted."""
        return self.spread(self.Z, self.rows)


def _merge(terms: tuple[RandomTerm, ...]) -> Factor:
    first = terms[0]
    Z = first.Z if len(terms) == 1 else np.concatenate([t.Z for t in terms], axis=1)
    columns = tuple(c for t in terms for c in t.columns)
    template = tuple(t.block for t in terms)
    return Factor(first.factor, first.levels, first.codes, Z, columns, template, first.membership, first.root)


@dataclass(frozen=True)
class ModelData:
    """Everything about the data that fits and results need; never changed after it is built.

    Attributes
    ----------
    terms : the random terms, reordered so that those of one factor stand together.
    factors : one entry per grouping factor.
    covariance_names : (k,) labels of the free (co)variances.
    sums : in place of the rows, what a model of moments was fitted from; else None.
    """

    design: Design
    terms: tuple[RandomTerm, ...]
    factors: tuple[Factor, ...]
    covariance_names: tuple[str, ...]
    sums: GroupMoments | CrossedMoments | None = None

    @classmethod
    def from_design(cls, design: Design, *, factor_in_names: bool) -> "ModelData":
        """Merge the terms of each factor; ``factor_in_names`` puts the factor's label before each effect's name.

        The arrays become the model's own: what the person does to theirs afterwards does not reach it.
        """
        if cls is ModelData and design.residual is not None:
            raise UnsupportedError("residual= and variance= are for single fits: lmer, gls, mmrm")
        design = _owned(design)
        by_factor: dict[str, list[RandomTerm]] = {}
        for term in design.terms:
            by_factor.setdefault(term.factor, []).append(term)
        factors = tuple(_merge(tuple(terms)) for terms in by_factor.values())
        terms = tuple(t for group in by_factor.values() for t in group)
        return cls(design, terms, factors, _covariance_names(terms, factor_in_names))

    def with_response(self, y: np.ndarray) -> "ModelData":
        """The same design with another response (n,)."""
        return replace(self, design=replace(self.design, y=y))

    def rows(self, which: np.ndarray) -> "ModelData":
        """The model on some of the rows (a mask or positions); the factors keep all their levels."""

        def cut(part: Any) -> Any:
            membership = None if part.membership is None else part.membership[which]
            return replace(part, Z=part.Z[which], codes=part.codes[which], membership=membership)

        old = self.design
        # The design and the model hold the same terms in two orders: each is cut once, so that they stay the same.
        terms = {id(term): cut(term) for term in old.terms}
        design = replace(
            old,
            y=old.y[which],
            X=old.X[which],
            index=old.index[which],
            terms=tuple(terms[id(term)] for term in old.terms),
            weights=None if old.weights is None else old.weights[which],
            offset=None if old.offset is None else old.offset[which],
        )
        cut_factors = tuple(cut(factor) for factor in self.factors)
        own = tuple(terms[id(term)] for term in self.terms)
        return replace(self, design=design, terms=own, factors=cut_factors)

    def columns(self, keep: np.ndarray) -> "ModelData":
        """The model with some of the fixed effects (positions); the others count as dropped."""
        old = self.design
        lost = tuple(name for j, name in enumerate(old.exog_names) if j not in keep)
        state: Any = old.state
        if hasattr(state, "keep"):
            state = replace(state, keep=np.asarray(state.keep)[keep])
        design = replace(
            old,
            X=np.ascontiguousarray(old.X[:, keep]) if self.has_rows else old.X,
            exog_names=tuple(old.exog_names[j] for j in keep),
            dropped_columns=(*old.dropped_columns, *lost),
            state=state,
        )
        return replace(self, design=design)

    @cached_property
    def compressed(self) -> ModelStatistics:
        """The core's sufficient statistics."""
        return _compress(self.design, self.factors)

    def moments(self) -> GroupMoments | CrossedMoments:
        """The core's additive cross-products, of models whose factors have independent levels and one per row."""
        y, X, weights = self.y - self.offset, self.X, self.design.weights
        if self.has_one_factor:
            only = self.factors[0]
            return group_moments(y, X, only.Z, only.codes, len(only.levels), template=only.template, weights=weights)
        columns = zip(*((f.Z, f.codes, len(f.levels), f.template) for f in self.factors), strict=True)
        return crossed_moments(y, X, *columns, weights=weights)

    @property
    def few_rows(self) -> np.ndarray:
        """(p+1, p+1) rows of [X y] with the cross-products of all rows, of models that were fitted from moments."""
        assert self.sums is not None
        return triangle(self.sums.WtW, self.sums.basis)

    @cached_property
    def spread(self) -> float:
        """Root mean square of the response less its offset about its mean, in the units of σ: Var(ε_i) = σ²/w_i."""
        y, weights = self.y - self.offset, self.design.weights
        if weights is None:
            return float(np.std(y))
        return float(np.sqrt(np.mean(weights * (y - np.average(y, weights=weights)) ** 2)))

    @cached_property
    def shared_design(self) -> SharedDesign:
        """The design ready for many responses; of models with one factor of independent levels."""
        only = self.factors[0]
        prior: dict[str, Any] = {"weights": self.design.weights, "offset": self.design.offset}
        return SharedDesign(self.X, only.Z, only.codes, structure=only.template, n_groups=len(only.levels), **prior)

    @cached_property
    def several_design(self) -> SeveralDesign | None:
        """The design ready for many responses, of models with several factors and few effects; else None."""
        effects = [f.n_independent * len(f.columns) for f in self.factors]
        by_code = [f.by_code for f in self.factors]
        if self.has_one_factor or not suits_lanes(effects, by_code):
            return None
        return SeveralDesign(
            self.X,
            [f.effects for f in self.factors],
            [f.n_independent for f in self.factors],
            by_code,
            [f.template for f in self.factors],
            weights=self.design.weights,
            offset=self.design.offset,
        )

    @property
    def has_one_factor(self) -> bool:
        """Whether the levels of one factor are all there is: what the batch engine fits."""
        return len(self.factors) == 1 and self.factors[0].by_code

    def equations(self, fitted: Fit) -> MixedModelEquations:
        """Henderson's equations at a fit."""
        L = np.asarray(fitted.relative_factor)
        roots = [L[span, span] for span in self.factor_slices]
        if self.sums is not None:
            return MixedModelEquations.of_moments(self.sums, roots, fitted.unscaled_cov)
        effects = [f.effects for f in self.factors]
        return MixedModelEquations(self.X, effects, roots, self.design.weights, fitted.unscaled_cov)

    @cached_property
    def factor_slices(self) -> tuple[slice, ...]:
        """Where each factor's effects stand among all effects."""
        ends = np.cumsum([len(f.columns) for f in self.factors])
        return tuple(slice(int(end) - len(f.columns), int(end)) for end, f in zip(ends, self.factors, strict=True))

    @property
    def y(self) -> np.ndarray:
        return self.design.y

    @property
    def X(self) -> np.ndarray:
        return self.design.X

    @cached_property
    def offset(self) -> np.ndarray:
        return np.zeros(self.n_rows) if self.design.offset is None else self.design.offset

    @property
    def has_rows(self) -> bool:
        """Whether the rows are still there."""
        return not isinstance(self.design.y, NoRows)

    @property
    def n_rows(self) -> int:
        return len(self.design.y)

    @property
    def index(self) -> pd.Index:
        return self.design.index

    @property
    def exog_names(self) -> tuple[str, ...]:
        return self.design.exog_names

    @property
    def endog_name(self) -> str:
        return self.design.endog_name

    @property
    def n_dropped(self) -> int:
        return self.design.n_dropped

    @property
    def dropped_columns(self) -> tuple[str, ...]:
        return self.design.dropped_columns

    @property
    def template(self) -> Template:
        """The blocks of all factors, in the order of θ."""
        return tuple(block for factor in self.factors for block in factor.template)

    @cached_property
    def term_slices(self) -> tuple[slice, ...]:
        """Where each term's effects stand among all effects."""
        ends = np.cumsum([len(t.columns) for t in self.terms])
        return tuple(slice(int(end) - len(t.columns), int(end)) for end, t in zip(ends, self.terms, strict=True))

    @cached_property
    def term_labels(self) -> tuple[str, ...]:
        """lme4's labels: a factor's later terms are "g.1", "g.2", …"""
        seen: dict[str, int] = {}
        labels = []
        for term in self.terms:
            count = seen.get(term.factor, 0)
            labels.append(f"{term.factor}.{count}" if count else term.factor)
            seen[term.factor] = count + 1
        return tuple(labels)

    @cached_property
    def theta_names(self) -> tuple[str, ...]:
        """Labels of θ, lme4's for unstructured terms: "g.row.column" below the diagonal, "g.row" on it."""
        names = []
        for label, term in zip(self.term_labels, self.terms, strict=True):
            effects = entry(term.block).names(term.block, term.columns)
            names += [f"{label}.{effect}" for effect in effects]
        return tuple(names)

    @cached_property
    def covariance_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns in the effects' covariance of the free (co)variances, in ``covariance_names`` order."""
        rows: list[int] = []
        columns: list[int] = []
        for term, part in zip(self.terms, self.term_slices, strict=True):
            for i, j in entry(term.block).pairs(term.block):
                rows.append(part.start + i)
                columns.append(part.start + j)
        return np.array(rows, int), np.array(columns, int)


def _owned(design: Design) -> Design:
    """The design with arrays of its own, read-only; X and Z are copied only where they are views of others."""

    def own(array: Any, always: bool) -> Any:
        if array is None:
            return None
        copy = np.array(array) if always or not array.flags.owndata else array.view()
        copy.setflags(write=False)
        return copy

    terms = tuple(replace(term, Z=own(term.Z, False)) for term in design.terms)
    vectors = {name: own(getattr(design, name), True) for name in ("y", "weights", "offset")}
    return replace(design, X=own(design.X, False), terms=terms, **vectors)


def _compress(design: Design, factors: tuple[Factor, ...]) -> ModelStatistics:
    prior: dict[str, Any] = {"weights": design.weights, "offset": design.offset}
    if _rotation_pays(factors):
        return _compress_rotated(design, factors, prior)
    if len(factors) == 1:
        only = factors[0]
        return compress(
            design.y,
            design.X,
            only.Z,
            only.codes,
            structure=only.template,
            n_groups=len(only.levels),
            **prior,
        )
    return compress_crossed(
        design.y,
        design.X,
        [f.Z if f.by_code else f.effects for f in factors],
        [f.codes if f.by_code else None for f in factors],
        [f.n_independent for f in factors],
        tuple(f.template for f in factors),
        **prior,
    )


def _rotation_pays(factors: tuple[Factor, ...]) -> bool:
    """Whether a factor of shared or related levels must, or had better, be eliminated first."""
    if not any(f.by_code for f in factors):
        return True
    sizes = [f.n_independent * len(f.columns) for f in factors]
    single = [n for n, f in zip(sizes, factors, strict=True) if not f.by_code and len(f.columns) == 1]
    return 2 * max(single, default=0) > sum(sizes)


def _compress_rotated(design: Design, factors: tuple[Factor, ...], prior: dict[str, Any]) -> ModelStatistics:
    single = [j for j, f in enumerate(factors) if not f.by_code and len(f.columns) == 1]
    if not single:
        names = ", ".join(f.name for f in factors)
        raise UnsupportedError(
            f"every grouping factor ({names}) has shared or related levels and several effects per level. Give "
            "one of them a single effect, such as (1 | g), or add a factor whose levels are independent."
        )
    which = max(single, key=lambda j: factors[j].n_independent)
    return compress_rotated(
        design.y,
        design.X,
        [f.effects for f in factors],
        [f.n_independent for f in factors],
        tuple(f.template for f in factors),
        which,
        **prior,
    )


def _covariance_names(terms: tuple[RandomTerm, ...], factor_in_names: bool) -> tuple[str, ...]:
    names = []
    for term in terms:
        prefix = f"{term.factor} " if factor_in_names else ""
        for i, j in entry(term.block).pairs(term.block):
            a, b = term.columns[i], term.columns[j]
            names.append(f"{prefix}{a} Var" if i == j else f"{prefix}{b} x {a} Cov")
    return tuple(names)
