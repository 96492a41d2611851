"""Results of ``MixedLM.fit``: labels and conventions of statsmodels where they differ from ``lmer``'s."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..inference.prediction import design_rows
from ..lazy import handed_out
from ..summary import Summary
from .layout import PackedLayout
from .packed import PackedEstimates


class StatsmodelsFit(PackedEstimates):
    """A fit made by ``MixedLM``: ``conf_int`` is that of ``params``, ``random_effects`` are those of the groups."""

    def conf_int(  # type: ignore[override]
        self, alpha: float = 0.05, cols: Any = None, *, method: str = "wald", which: Any = None, **options: Any
    ) -> pd.DataFrame:
        """Wald limits (K, 2) of the packed ``params`` (``t_test`` gives those of β by GLS), or see ``Profiles``."""
        if method != "wald" or which is not None or options:
            return super().conf_int(alpha, method, which, **options)
        limits = self.conf_int_params(alpha)
        return limits if cols is None else limits.iloc[np.asarray(cols)]

    @handed_out
    def cov_re(self) -> pd.DataFrame:
        """Ψ of the correlated random effects, response units²; the components are in ``vcomp``."""
        if not self.k_re:
            return pd.DataFrame(np.zeros((0, 0)))
        where = self._data.term_slices[self._layout.positions[0]]
        columns = self._layout.data.design.terms[0].columns
        return pd.DataFrame(self._covariance[where, where], index=columns, columns=columns)

    @property
    def vcomp(self) -> np.ndarray:
        """Variances of the independent components, response units², in the order of their names."""
        return self.scale * self._omega[self.k_re2 :]

    @handed_out
    def bse_re(self) -> pd.Series:
        """Standard errors of the (co)variances on their own scale (k,), NaN at a singular fit."""
        return super().bse_re.iloc[self._shown_order]

    @property
    def _shown_order(self) -> np.ndarray:
        """The packed order."""
        return PackedLayout(self._data).theta_order

    def profile_re(
        self,
        re_ix: int | str,
        vtype: Literal["re", "vc"],
        num_low: int = 5,
        dist_low: float = 1.0,
        num_high: int = 5,
        dist_high: float = 1.0,
        **fit_kwargs: Any,
    ) -> np.ndarray:
        """See ``MixedLMResults.profile_re``; ``fit_kwargs``, statsmodels' options of its fits, have no effect."""
        return super().profile_re(re_ix, vtype, num_low, dist_low, num_high, dist_high)

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
        groups = self._group_places
        sets = self._data.equations(self.fit).within([self._layout.effect_places[at] for _, at, _ in groups])
        return {
            label: pd.DataFrame(self.scale * V, index=names, columns=names)
            for V, (label, _, names) in zip(sets, groups, strict=True)
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
        self._model = self._model._without_rows()

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
        labelled = not self._model._from_arrays
        frame = exog.to_frame().T.infer_objects() if labelled and isinstance(exog, pd.Series) else exog
        if transform and labelled and isinstance(frame, (pd.DataFrame, Mapping)):
            return super().predict(frame, random_effects=random_effects, **options)
        mean = design_rows(exog, self.k_fe) @ np.asarray(self.fit.beta)
        return pd.Series(mean, index=exog.index) if isinstance(exog, pd.DataFrame) else mean

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
