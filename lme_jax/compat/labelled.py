"""``LabelledModel``: the data of a ``MixedLM`` under statsmodels' names; sizes, lists per group, matrices."""

from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from ..data import ModelData
from ..formula import Design, RandomTerm
from ..keeping import without_rows
from .design import group_matrix, with_component_names
from .layout import PackedLayout
from .params import VCSpec


class LabelledModel:
    """What is known before a fit. ``reml``, ``fe_pen``, ``cov_pen``: those of the latest fit."""

    formula: str | None = None

    def _set_up(
        self,
        design: Design,
        levels: np.ndarray,
        codes: np.ndarray,
        group_factor: str,
        components: Sequence[str | None],
        use_sqrt: bool,
        *,
        from_arrays: bool,
    ) -> None:
        used, self._group_codes = np.unique(codes, return_inverse=True)
        self.group_labels = list(np.asarray(levels)[used])
        self._group_factor, self._components, self._from_arrays = group_factor, tuple(components), from_arrays
        self.use_sqrt, self.reml = use_sqrt, True
        self.fe_pen: Any = None
        self.cov_pen: Any = None
        data = ModelData.from_design(design, factor_in_names=False)
        self._data = with_component_names(data, self._named_of(data.design))

    def _named_of(self, design: Design) -> list[tuple[str | None, RandomTerm]]:
        return list(zip(self._components, design.terms, strict=True))

    # ------------------------------------------------------------ data and sizes

    @cached_property
    def _layout(self) -> PackedLayout:
        return PackedLayout(self._data)

    @property
    def _named_terms(self) -> list[tuple[str | None, RandomTerm]]:
        return self._named_of(self._data.design)

    @property
    def endog(self) -> np.ndarray:
        """(n,) the response that is fitted."""
        return self._data.y

    @property
    def exog(self) -> np.ndarray:
        """(n, p) the fixed-effects design that is fitted."""
        return self._data.X

    @property
    def exog_re(self) -> np.ndarray | None:
        """(n, q) the design of the correlated random effects."""
        return self._data.design.terms[0].Z if self.k_re else None

    @property
    def endog_names(self) -> str:
        return self._data.endog_name

    @property
    def exog_names(self) -> list[str]:
        return list(self._data.exog_names)

    @property
    def n_groups(self) -> int:
        return len(self.group_labels)

    @property
    def nobs(self) -> int:
        return self._data.n_rows

    n_totobs = nobs

    @property
    def k_fe(self) -> int:
        return len(self._data.exog_names)

    @property
    def k_re(self) -> int:
        return len(self._data.design.terms[0].columns) if self._components[0] is None else 0

    @property
    def k_re2(self) -> int:
        return self.k_re * (self.k_re + 1) // 2

    @property
    def k_vc(self) -> int:
        return sum(component is not None for component in self._components)

    @property
    def k_params(self) -> int:
        """Fixed effects and all covariance parameters (statsmodels leaves the components out)."""
        return self.k_fe + self.k_re2 + self.k_vc

    @property
    def df_resid(self) -> int:
        return self.nobs - self.k_fe

    @cached_property
    def row_indices(self) -> dict[Any, np.ndarray]:
        """Group → its rows."""
        order = np.argsort(self._group_codes, kind="stable")
        cuts = np.cumsum(np.bincount(self._group_codes, minlength=self.n_groups))[:-1]
        return dict(zip(self.group_labels, np.split(order, cuts), strict=True))

    def group_list(self, array: Any) -> list[np.ndarray] | None:
        """Rows of an array, a list entry per group."""
        if array is None:
            return None
        values = np.asarray(array)
        return [values[rows] for rows in self.row_indices.values()]

    @property
    def endog_li(self) -> Any:
        return self.group_list(self.endog)

    @property
    def exog_li(self) -> Any:
        return self.group_list(self.exog)

    @property
    def exog_re_li(self) -> Any:
        return self.group_list(self.exog_re)

    @cached_property
    def exog_vc(self) -> VCSpec:
        """The components as matrices per group (built when asked for; the fit needs none of them)."""
        names, colnames, mats = [], [], []
        for component, term in self._named_terms:
            if component is None:
                continue
            names.append(component)
            per_group = [group_matrix(term, rows) for rows in self.row_indices.values()]
            colnames.append([names_ for names_, _ in per_group])
            mats.append([matrix for _, matrix in per_group])
        return VCSpec(names, colnames, mats)

    @property
    def data(self) -> SimpleNamespace:
        """Names, as statsmodels keeps them."""
        k_re2 = self.k_re2
        names = [str(n) for n in self._layout.names]
        re_names = list(self._data.design.terms[0].columns) if self.k_re else []
        return SimpleNamespace(
            xnames=self.exog_names,
            ynames=self.endog_names,
            param_names=[*self.exog_names, *names],
            exog_re_names=re_names,
            exog_re_names_full=names[:k_re2],
            vcomp_names=[c for c in self._components if c is not None],
            endog=self.endog,
            exog=self.exog,
            frame=None,
        )

    def _without_rows(self) -> Self:
        """A copy that keeps names and sizes only."""
        thin = type(self).__new__(type(self))
        thin.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("row_indices", "exog_vc", "_layout")})
        thin._data = without_rows(self._data)
        thin._group_codes = np.zeros(0, int)
        return thin
