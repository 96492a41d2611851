"""MarginalMeans: linear functions of the fixed effects with labels; their contrasts, tests and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..errors import DataError
from ..formula.values import level_labels
from .adjustment import Tests, check_adjust, in_words
from .contrasts import Family, family, letters
from .degrees import Reference
from .linear_tests import joint_test
from .reference_grid import Functions, named


class Basis(NamedTuple):
    """β̂ (p,) and what tests of it refer to, with the Cov β̂ that belongs to that."""

    beta: np.ndarray
    reference: Reference


@dataclass(frozen=True)
class MarginalMeans:
    """Means, slopes or contrasts of them: a row each.

    Attributes
    ----------
    keys : the labels of the rows.
    functions : what they are in terms of the fixed effects.
    basis : estimates, their covariance and degrees of freedom.
    by : the columns of ``keys`` within whose values rows are compared, a family of tests each.
    kind : "mean", "slope" or "contrast".
    level : of the intervals; adjust : of p-values and intervals.
    pairs_of : k, if the rows of a family are all the differences of k means.
    remarks : for below the table.
    """

    keys: pd.DataFrame
    functions: Functions
    basis: Basis
    by: tuple[str, ...] = ()
    kind: str = "mean"
    level: float = 0.95
    adjust: str = "none"
    pairs_of: int | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.level, (int, float, np.number)) or not 0.0 < self.level < 1.0:
            raise DataError(f"level={self.level!r} must lie between 0 and 1")
        check_adjust(self.adjust, self.pairs_of is not None)

    def __len__(self) -> int:
        return len(self.keys)

    # ------------------------------------------------------------ numbers

    @property
    def compared(self) -> list[str]:
        """The columns of ``keys`` that tell apart the rows of a family."""
        return [str(name) for name in self.keys if name not in self.by]

    @cached_property
    def estimate(self) -> np.ndarray:
        """(m,) NaN where the data do not determine the function."""
        values = self.functions.L @ self.basis.beta + self.functions.offset
        return np.where(self.functions.estimable, values, np.nan)

    @cached_property
    def cov(self) -> np.ndarray:
        """(m, m) covariance of the estimates."""
        known = self.functions.estimable
        cov = self.functions.L @ self.basis.reference.cov @ self.functions.L.T
        return np.where(known[:, None] & known, cov, np.nan)

    @cached_property
    def se(self) -> np.ndarray:
        """(m,) standard errors."""
        return np.sqrt(np.diag(self.cov))

    @cached_property
    def df(self) -> np.ndarray:
        """(m,) degrees of freedom."""
        known = self.functions.estimable & (np.nan_to_num(self.se) > 0)
        out = np.full(len(self), np.nan)
        if known.any():
            out[known] = self.basis.reference.single(self.functions.L[known])
        return out

    @cached_property
    def _families(self) -> list[np.ndarray]:
        """Positions of the rows of each family, in their order."""
        if not self.by:
            return [np.arange(len(self))]
        grouped = self.keys.groupby(list(self.by), sort=False, observed=True, dropna=False)
        return [np.asarray(rows) for rows in grouped.indices.values()]

    def _tests(self, null: float, adjust: str) -> list[tuple[np.ndarray, Tests]]:
        """Families of tests against ``null``, each with the positions of its rows: those that can be tested."""
        out = []
        for rows in self._families:
            some = rows[(np.nan_to_num(self.se[rows]) > 0) & (np.nan_to_num(self.df[rows]) > 0)]
            se, df = self.se[some], self.df[some]
            R = self.cov[np.ix_(some, some)] / np.outer(se, se)
            out.append((some, Tests((self.estimate[some] - null) / se, df, R, adjust, self.pairs_of)))
        return out

    def _spread_out(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """(m,) values of rows, NaN elsewhere."""
        out = np.full(len(self), np.nan)
        for rows, values in parts:
            out[rows] = values
        return out

    @cached_property
    def _made(self) -> tuple[pd.DataFrame, list[str]]:
        families = self._tests(0.0, self.adjust)
        columns = {"estimate": self.estimate, "se": self.se, "df": self.df}
        if self.kind != "mean":
            columns["statistic"] = self._spread_out([(rows, tests.t) for rows, tests in families])
            columns["p"] = self._spread_out([(rows, tests.p) for rows, tests in families])
        half = self._spread_out([(rows, tests.critical(self.level)) for rows, tests in families]) * self.se
        columns |= {"lower": self.estimate - half, "upper": self.estimate + half}
        sizes, how = [len(rows) for rows, _ in families], [tests.how for _, tests in families]
        return self.keys.assign(**columns), in_words(self.adjust, sizes, self.pairs_of, how)

    @property
    def table(self) -> pd.DataFrame:
        """The labels, then estimate, se, df, statistic and p (not of means), lower and upper."""
        return self._made[0].copy()

    @property
    def notes(self) -> list[str]:
        """What the numbers are, in words."""
        lost = int((~self.functions.estimable).sum())
        freedom = f"Degrees of freedom: {self.basis.reference.method}. {100 * self.level:g} % intervals."
        out = [*self.remarks, freedom, *self._made[1]]
        if lost:
            out.append(
                f"{lost} of {len(self)} are NaN: the rows do not determine them, because combinations of levels are "
                "empty; weights='cells' averages over those that occur."
            )
        return out

    # ------------------------------------------------------------ contrasts

    def contrast(
        self,
        method: Any = "pairwise",
        *,
        by: Any = None,
        adjust: str | None = None,
        ref: Any = None,
        interaction: Any = None,
        level: float | None = None,
    ) -> MarginalMeans:
        """Contrasts of the rows of each family.

        Parameters
        ----------
        method : str, (r, k) array or mapping of names to k coefficients
            "pairwise", "revpairwise", "trt.vs.ctrl", "consec" (neighbours), "poly" (orthogonal polynomials, in whole
            numbers), "eff" (from the mean of all).
        by : str or list, optional
            Columns within whose values rows are compared; those of these means if None, ``[]`` for none.
        adjust : {"tukey", "mvt", "sidak", "bonferroni", "holm", "fdr", "none"}, optional
            Within each family. None is what suits the method: Tukey's for all pairs, multivariate t for "trt.vs.ctrl"
            (Dunnett's test) and "consec", "fdr" for "eff", and "none" for others.
        ref : label or position, optional
            Of the control of "trt.vs.ctrl"; the first if None, -1 is the last.
        interaction : str, or mapping of columns to methods, optional
            Contrasts of contrasts: a method for each compared column, instead of ``method``.
        level : of the intervals; that of these means if None.

        Returns
        -------
        MarginalMeans
            Of kind "contrast", of which further contrasts may be taken.
        """
        outer = self.by if by is None else tuple(named(by, "by"))
        for name in outer:
            if name not in self.keys:
                raise DataError(f"by={name!r} is no column of the table; there are {', '.join(map(str, self.keys))}")
        base = replace(self, by=outer, adjust="none", pairs_of=None)
        if outer and not base.compared:
            raise DataError("contrast: by= holds every column, so that nothing is left to compare")
        parts = [base._contrasts_in(rows, method, ref, interaction) for rows in base._families]
        keys = pd.concat([labels for _, labels, _ in parts], ignore_index=True)
        whole = Functions(*(np.concatenate(arrays) for arrays in zip(*(made for made, _, _ in parts), strict=True)))
        first = parts[0][2]
        chosen = first.adjust if adjust is None else adjust
        k = len(base._families[0]) if first.all_pairs else None
        return MarginalMeans(
            keys, whole, self.basis, outer, "contrast", self.level if level is None else level, chosen, k, self.remarks
        )

    def _contrasts_in(
        self, rows: np.ndarray, method: Any, ref: Any, interaction: Any
    ) -> tuple[Functions, pd.DataFrame, Family]:
        """The contrasts of one family: functions, labels, and the kind of contrasts."""
        if interaction is None:
            made = family(method, self._labels(rows), ref)
            labels = pd.DataFrame({"contrast": made.names})
        else:
            made, labels = self._crossed(rows, interaction)
        outer = {name: [self.keys[name].iloc[rows[0]]] * len(labels) for name in self.by}
        return self.functions.rows(rows).combined(made.K), labels.assign(**outer), made

    def row_labels(self) -> list[str]:
        """A label for each row, from all its columns."""
        parts = [_texts(self.keys[name]) for name in self.keys]
        return [" ".join(row) for row in zip(*parts, strict=True)] if parts else ["mean"]

    def _labels(self, rows: np.ndarray) -> list[str]:
        columns = [_texts(self.keys[name].iloc[rows]) for name in self.compared]
        return [" ".join(parts) for parts in zip(*columns, strict=True)] if columns else ["mean"]

    def _crossed(self, rows: np.ndarray, interaction: Any) -> tuple[Family, pd.DataFrame]:
        """Products of a family of contrasts for every compared column, the first fastest."""
        names = self.compared
        given = interaction if isinstance(interaction, Mapping) else dict.fromkeys(names, interaction)
        if set(given) != set(names):
            raise DataError(f"interaction= needs a method for each of {', '.join(names)}")
        K, labels = np.ones((1, 1)), pd.DataFrame(index=pd.RangeIndex(1))
        for name in names:
            own = family(given[name], list(dict.fromkeys(_texts(self.keys[name].iloc[rows]))))
            K = np.kron(own.K, K)
            title = f"{name}_{given[name]}" if isinstance(given[name], str) else name
            earlier = {n: list(labels[n]) * len(own.names) for n in labels}
            labels = pd.DataFrame({**earlier, title: np.repeat(own.names, len(labels))})
        if K.shape[1] != len(rows):
            raise DataError("interaction= needs every combination of levels once")
        return Family(K, [], "none"), labels

    # ------------------------------------------------------------ tests and intervals

    def test(self, null: float = 0.0, *, joint: bool = False, adjust: str | None = None) -> pd.DataFrame:
        """Tests of every row against ``null``, or of the rows of each family together.

        Returns
        -------
        DataFrame
            ``estimate, se, df, null, statistic, p`` with the labels; jointly ``F, df1, df2, p`` for each value of
            ``by``, in the degrees of freedom of these means. Rows that follow from others do not count there.
        """
        if joint:
            return self._joint(null)
        method = check_adjust(self.adjust if adjust is None else adjust, self.pairs_of is not None)
        families = self._tests(null, method)
        columns = {"estimate": self.estimate, "se": self.se, "df": self.df}
        t = self._spread_out([(rows, tests.t) for rows, tests in families])
        p = self._spread_out([(rows, tests.p) for rows, tests in families])
        return self.keys.assign(**columns, null=null, statistic=t, p=p)

    def _joint(self, null: float) -> pd.DataFrame:
        lines = []
        for rows in self._families:
            some = self.functions.rows(rows[self.functions.estimable[rows]])
            labels = {name: self.keys[name].iloc[rows[0]] for name in self.by}
            value, q, df, p = np.nan, 0, np.nan, np.nan
            if some.L.any():
                value, q, df, p, _ = joint_test(some.L, null - some.offset, self.basis.beta, self.basis.reference)
            lines.append(labels | dict(F=value, df1=q, df2=df, p=p))
        return pd.DataFrame(lines)

    def conf_int(self, level: float | None = None, adjust: str | None = None) -> pd.DataFrame:
        """Intervals at another level, or simultaneous ones by another method: labels, estimate, lower, upper."""
        changed = replace(
            self, level=self.level if level is None else level, adjust=self.adjust if adjust is None else adjust
        )
        return changed.table[[*self.keys, "estimate", "lower", "upper"]]

    def letters(self, alpha: float = 0.05, adjust: str | None = None) -> pd.DataFrame:
        """Compact letter display: the table by rising estimate, with the letters of each row in ``group``.

        Rows of a family that share a letter do not differ at ``alpha``, which is no evidence that they are equal.

        References
        ----------
        Piepho (2004), J. Comput. Graph. Stat. 13, 456–466.
        """
        p = self.contrast("pairwise", adjust=adjust).test()["p"].to_numpy()
        groups, at = np.full(len(self), "", object), 0
        for rows in self._families:
            upper = np.triu_indices(len(rows), 1)
            differ = np.zeros((len(rows), len(rows)), bool)
            differ[upper] = p[at : at + len(upper[0])] < alpha
            at += len(upper[0])
            known = [int(i) for i in np.argsort(self.estimate[rows]) if np.isfinite(self.estimate[rows[i]])]
            groups[rows[known]] = letters(known, differ | differ.T)
        out = self.table.assign(group=groups)
        return out.sort_values([*self.by, "estimate"], kind="stable", ignore_index=True)

    # ------------------------------------------------------------ shown

    def __repr__(self) -> str:
        table = self.table
        text = table.to_string(index=False, float_format=lambda v: f"{v:.4g}" if abs(v) < 1e5 else f"{v:.6g}")
        return "\n".join([text, "", *self.notes])

    def _repr_html_(self) -> str:
        table = self.table.to_html(index=False, float_format=lambda v: f"{v:.4g}")
        return table + "".join(f"<p>{note}</p>" for note in self.notes)


def _texts(values: pd.Series) -> list[str]:
    """Labels as they are shown."""
    plain = values.to_numpy()
    return level_labels(plain) if plain.dtype.kind in "bfM" else level_labels(np.asarray(plain, dtype=object))
