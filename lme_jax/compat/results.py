"""Results of ``MixedLM.fit``: labels and conventions of statsmodels where they differ from ``lmer``'s."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..inference.wald import wald_table
from ..lazy import handed_out
from ..results import MixedLMResults
from ..summary import Summary
from .layout import Layout
from .packed import PackedEstimates

# Plain arrays in array models, as in statsmodels; everything else keeps its labels and takes positions too.
_PLAIN = ("params", "bse", "tvalues", "pvalues")


class PositionalSeries(pd.Series):
    """A Series that also takes integer positions, as the plain arrays of statsmodels' array models do."""

    @property
    def _constructor(self) -> Any:
        return PositionalSeries

    @property
    def _constructor_expanddim(self) -> Any:
        return PositionalFrame

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except (KeyError, IndexError, ValueError):
            return self.iloc[key]


class PositionalFrame(pd.DataFrame):
    """A DataFrame that also takes a pair of integer positions or slices."""

    @property
    def _constructor(self) -> Any:
        return PositionalFrame

    @property
    def _constructor_sliced(self) -> Any:
        return PositionalSeries

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and all(isinstance(k, (int, np.integer, slice)) for k in key):
            picked: Any = self.iloc[key]
            return picked.to_numpy() if isinstance(picked, pd.DataFrame) else picked
        return super().__getitem__(key)


class StatsmodelsFit(PackedEstimates, MixedLMResults):
    """A fit made by ``MixedLM``: ``conf_int`` is that of ``params``, ``random_effects`` are those of the groups.

    Models of plain arrays give labelled results that take positions too: ``result.params[0]``.
    """

    model: Any = None

    @property
    def _layout(self) -> Layout:
        return self.model._layout if self.model is not None else self._own_layout

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or not isinstance(value, (pd.Series, pd.DataFrame)):
            return value
        if not self.__dict__.get("_from_arrays", False):
            return value
        return np.array(value) if name in _PLAIN else _positional(value)

    def cov_params(self, r_matrix: Any = None, column: Any = None, scale: Any = None) -> Any:
        """Covariance of ``params``; see ``PackedEstimates.cov_params``."""
        out = super().cov_params(r_matrix, column, scale)
        return _positional(out) if self.__dict__.get("_from_arrays", False) and isinstance(out, pd.DataFrame) else out

    def conf_int(self, alpha: float = 0.05, cols: Any = None) -> pd.DataFrame:
        """Wald limits (K, 2) of the packed ``params`` (``t_test`` gives those of β by GLS)."""
        limits = self.conf_int_params(alpha)
        return limits if cols is None else limits.iloc[np.asarray(cols)]

    @handed_out
    def cov_re(self) -> pd.DataFrame:
        """Ψ of the correlated random effects, response units²; the components are in ``vcomp``."""
        first = self._layout.data.design.terms[0]
        if first.structure == "identity":
            return pd.DataFrame(np.zeros((0, 0)))
        where = self._data.term_slices[self._layout.positions[0]]
        return pd.DataFrame(self._full_cov_re()[where, where], index=first.columns, columns=first.columns)

    def _full_cov_re(self) -> np.ndarray:
        """Ψ of all effects, components too."""
        L = np.asarray(self.fit.relative_factor)
        return self.scale * (L @ L.T)

    @property
    def cov_re_unscaled(self) -> pd.DataFrame:
        """Ψ/σ̂²."""
        return self.cov_re / self.scale

    @property
    def vcomp(self) -> np.ndarray:
        """Variances of the independent components, response units², in the order of their names."""
        return self.scale * self._omega[self.k_re2 :]

    @handed_out
    def bse_re(self) -> pd.Series:
        """Standard errors of the (co)variances on their own scale (k,), NaN at a singular fit."""
        errors = super().bse_re
        return errors if self.freepat is not None else errors.iloc[self._layout.theta_order]

    # ------------------------------------------------------------ random effects by group

    @cached_property
    def _columns_by_group(self) -> tuple[np.ndarray, list[str]]:
        """Group and name of every random effect, ordered by term, level, effect."""
        model, groups, names = self.model, [], []
        for component, term in model._named_terms:
            q = len(term.columns)
            first = np.full(len(term.levels), -1)
            first[term.codes[::-1]] = model._group_codes[::-1]
            groups.append(np.repeat(first, q))
            if component is None:
                names += list(term.columns) * len(term.levels)
            elif len(term.levels) == model.n_groups and term.factor == model._group_factor:
                labels = [component] if q == 1 else [f"{component}[{c}]" for c in term.columns]
                names += labels * len(term.levels)
            else:
                names += [f"{component}[{level}]" for level in term.levels]
        return np.concatenate(groups), names

    @cached_property
    def random_effects(self) -> dict[Any, pd.Series]:
        """BLUPs: group → Series of its correlated effects, then of its components' levels."""
        b = np.concatenate([effects.ravel() for effects in self._term_effects])
        return {label: pd.Series(b[at], index=names) for label, at, names in self._group_places}

    @cached_property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Var(b | y) with β, θ fixed: group → DataFrame over the effects of ``random_effects``."""
        V = self.scale * self._layout.components.effects_covariance(self._omega)[0]
        return {
            label: pd.DataFrame(V[at][:, at].toarray(), index=names, columns=names)
            for label, at, names in self._group_places
        }

    @property
    def _group_places(self) -> list[tuple[Any, np.ndarray, list[str]]]:
        groups, names = self._columns_by_group
        order = np.argsort(groups, kind="stable")
        cuts = np.searchsorted(groups[order], np.arange(self.model.n_groups + 1))
        places = np.split(order, cuts[1:-1])
        labels = self.model.group_labels
        return [(label, at, [names[j] for j in at]) for label, at in zip(labels, places, strict=True)]

    @cached_property
    def _term_effects(self) -> list[np.ndarray]:
        """BLUPs (levels, q) of each term, in packed order."""
        taken: dict[str, int] = {}
        by_factor = {f.name: b for f, b in zip(self._data.factors, self._blups, strict=True)}
        out = []
        for term in self._data.terms:
            at = taken.get(term.factor, 0)
            taken[term.factor] = at + len(term.columns)
            out.append(by_factor[term.factor][:, at : at + len(term.columns)])
        return [out[i] for i in self._layout.positions]

    def remove_data(self) -> None:
        """Forget the rows; see ``MixedLMResults.remove_data``."""
        super().remove_data()
        if self.model is not None:
            self.model = self.model._without_rows()

    # ------------------------------------------------------------ prediction and report

    def predict(  # type: ignore[override]
        self, exog: Any = None, transform: bool = True, *, random_effects: Any = False, **options: Any
    ) -> Any:
        """Predicted means: fixed effects alone, unless ``random_effects``.

        Parameters
        ----------
        exog : DataFrame through the formula, or an (n, p) array; the fitted rows if None.
        transform : bool
            Whether a DataFrame goes through the formula.
        random_effects : bool or names of factors
        **options : ``allow_new_levels``, ``offset``; see ``MixedLMResults.predict``.
        """
        if exog is None:
            return super().predict(random_effects=random_effects, **options)
        is_row = isinstance(exog, pd.Series) and not self.__dict__.get("_from_arrays", False)
        frame = exog.to_frame().T.infer_objects() if is_row else exog
        if transform and not self.__dict__.get("_from_arrays", False) and isinstance(frame, (pd.DataFrame, Mapping)):
            return super().predict(frame, random_effects=random_effects, **options)
        mean = self._array_rows(exog) @ np.asarray(self.fit.beta)
        return pd.Series(mean, index=exog.index) if isinstance(exog, pd.DataFrame) else mean

    def _estimates(self, alpha: float) -> pd.DataFrame:
        table = wald_table(np.asarray(self.fe_params), np.asarray(self.bse_fe), alpha)
        limits = [f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"]
        columns = ["Coef.", "Std.Err.", "z", "P>|z|", *limits]
        fixed = pd.DataFrame(dict(zip(columns, table, strict=True)), index=list(self._exog_names))
        rows, cols = self._data.covariance_positions
        values = self._full_cov_re()[rows, cols]
        components = pd.DataFrame({"Coef.": values}, index=list(self._data.covariance_names))
        order = None if self.freepat is not None else self._layout.theta_order
        components = _ordered(components, order)
        components["Std.Err."] = np.asarray(self.bse_re)
        return pd.concat([fixed, components]).reindex(columns=columns)

    def summary(  # type: ignore[override]
        self,
        yname: str | None = None,
        xname_fe: Any = None,
        xname_re: Any = None,
        title: str | None = None,
        alpha: float = 0.05,
    ) -> Summary:
        """Tables of the fit on the natural scale, under names of your own if given."""
        out = super().summary(title=title, alpha=alpha)
        estimates = out.tables[1]
        names = [str(name) for name in estimates.index]
        k_fe = self.k_fe
        fixed = names[:k_fe] if xname_fe is None else [str(name) for name in xname_fe]
        random = names[k_fe:] if xname_re is None else [str(name) for name in xname_re]
        estimates.index = pd.Index(fixed + random)
        if yname is not None:
            out.tables[0].iloc[0, 1] = yname
        return out


def _ordered(frame: pd.DataFrame, order: np.ndarray | None) -> pd.DataFrame:
    return frame if order is None else frame.iloc[order]


def _positional(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return PositionalFrame(value)
    return PositionalSeries(value)
