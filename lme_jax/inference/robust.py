"""Cluster-robust inference on fixed effects: covariance, t tests with Satterthwaite's df, joint tests by HTZ.

``RobustEstimates`` needs scores of clusters only (``core.sandwich``): any model with independent blocks has one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ..core import clusters, sandwich
from ..core.records import Fit
from ..core.sandwich import Kind, Scores
from ..data import Factor, ModelData
from ..errors import DataError
from .degrees import Reference
from .hypotheses import hypotheses
from .linear_tests import f_pvalue, row_tests


@dataclass(frozen=True)
class RobustTest:
    """A joint test of q hypotheses: F (), its degrees of freedom and p-value; ``eta`` of the Wishart behind it."""

    statistic: float
    df_num: int
    df_denom: float
    pvalue: float
    eta: float

    def __repr__(self) -> str:
        value = f"F({self.df_num}, {self.df_denom:.4g}) = {self.statistic:.6g}"
        return f"<Cluster-robust test (HTZ): {value}, p = {self.pvalue:.4g}>"


@dataclass(frozen=True)
class RobustEstimates:
    """Fixed effects with a cluster-robust covariance.

    Attributes
    ----------
    beta : (p,); names : p labels; type : of the covariance; clusters : what the clusters are; scores : see ``Scores``.
    """

    beta: np.ndarray
    names: tuple[str, ...]
    type: Kind
    clusters: str
    scores: Scores

    @property
    def n_clusters(self) -> int:
        return self.scores.n_clusters

    @property
    def cov(self) -> pd.DataFrame:
        """Cov β̂ (p, p)."""
        return pd.DataFrame(sandwich.covariance(self.scores), index=self.names, columns=self.names)

    @property
    def reference(self) -> Reference:
        """What tests refer to: Satterthwaite's degrees of freedom of each row, those of HTZ of several together."""
        single = partial(sandwich.satterthwaite, self.scores)
        return Reference(f"{self.type}, Satterthwaite", sandwich.covariance(self.scores), single, self._hotelling)

    def _hotelling(self, L: np.ndarray) -> tuple[float, float]:
        """Degrees of freedom and factor of F of all rows of L together."""
        eta, q = sandwich.hotelling(self.scores, L), len(L)
        ddf = eta - q + 1.0
        if ddf <= 0.0:
            raise DataError(
                f"{self.n_clusters} clusters tell too little for a joint test of {q} hypotheses (η = {eta:.3g})"
            )
        return ddf, ddf / eta

    @property
    def coefficients(self) -> pd.DataFrame:
        """Estimate, se, Satterthwaite's df, t statistic, p-value and limits of 95 % of every fixed effect."""
        return self.table()

    def table(self, r_matrix: Any = None, level: float = 0.95) -> pd.DataFrame:
        """As ``coefficients``, of linear combinations ``r_matrix`` (m, p) or as text, and at any level."""
        rows, constants = self._read(np.eye(len(self.beta)) if r_matrix is None else r_matrix)
        tests = row_tests(rows, constants, self.beta, self.reference, level)
        labels = self.names if r_matrix is None else [f"c{i}" for i in range(len(rows))]
        return pd.DataFrame(tests._asdict(), index=list(labels))

    def test(self, r_matrix: Any, rhs: Any = None) -> RobustTest:
        """Approximate Hotelling T² test (HTZ) of all rows of ``r_matrix`` together.

        Parameters
        ----------
        r_matrix : (q, p) array, a pair (R, c), or text such as ``"x1 - x2 = 0, x3"``.
        rhs : (q,) what Rβ is under the hypothesis; zero if None.
        """
        rows, constants = self._read(r_matrix)
        constants = constants if rhs is None else np.broadcast_to(np.asarray(rhs, float), constants.shape)
        gap, q = rows @ self.beta - constants, len(rows)
        ddf, factor = self._hotelling(rows)
        wald = float(gap @ np.linalg.solve(rows @ sandwich.covariance(self.scores) @ rows.T, gap))
        value = factor / q * wald
        return RobustTest(value, q, ddf, float(f_pvalue(value, q, ddf)), ddf + q - 1.0)

    def _read(self, given: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, constants = hypotheses(given, self.names)
        if rows.shape[1] != len(self.beta):
            raise DataError(f"r_matrix has {rows.shape[1]} columns; give {len(self.beta)}, one per fixed effect")
        return rows, constants

    def __repr__(self) -> str:
        title = f"Cluster-robust ({self.type}), {self.n_clusters} clusters of {self.clusters}"
        return f"{title}\n{self.coefficients.to_string()}"


def robust(data: ModelData, fitted: Fit, cluster: Any, kind: Kind) -> RobustEstimates:
    """Of a fit of independent clusters; see ``Diagnostics.robust``."""
    sandwich.check_kind(kind)
    name, codes, n = _clusters(data, cluster)
    beta, unscaled = np.asarray(fitted.beta), np.asarray(fitted.unscaled_cov)
    rows = arranged(data, fitted, codes, n)
    if kind == "CR2":
        found = sandwich.scores(clusters.batches(rows), unscaled, n, data.n_rows, kind)
    else:
        both = clusters.products(rows)
        found = sandwich.scores_of_products(both[:, :-1, :-1], both[:, :-1, -1], unscaled, data.n_rows, kind)
    return RobustEstimates(beta, tuple(data.exog_names), kind, name, found)


def arranged(data: ModelData, fitted: Fit, codes: np.ndarray, n: int) -> clusters.Rows:
    """The rows of a fit, marginal residuals with them, by cluster."""
    residual = data.y - data.offset - data.X @ np.asarray(fitted.beta)
    return clusters.arrange(data.X, residual, data.equations(fitted).G, data.design.weights, codes, n)


def _clusters(data: ModelData, given: Any) -> tuple[str, np.ndarray, int]:
    """What the clusters are called, their codes (n,) and their number."""
    if given is None:
        top = outermost(data)
        return top.name, *counted(top.codes)
    if isinstance(given, str):
        names = [factor.name for factor in data.factors]
        if given not in names:
            raise DataError(
                f"cluster={given!r} is no grouping factor ({', '.join(names)}): give its name, or the cluster of every "
                "row that was fitted"
            )
        factor = data.factors[names.index(given)]
        if not factor.by_code:
            raise DataError(f"levels of {given!r} are related or share rows, so that they are no clusters")
        return given, *counted(factor.codes)
    return given_labels(data, given)


def given_labels(data: ModelData, given: Any) -> tuple[str, np.ndarray, int]:
    """What clusters given by labels of the rows are called, their codes (n,) and their number."""
    labels = given.reindex(data.index) if isinstance(given, pd.Series) else pd.Series(np.asarray(given).ravel())
    if len(labels) != data.n_rows or labels.isna().any():
        raise DataError(
            f"cluster: give one label for each of the {data.n_rows} rows that were fitted, none missing; here are "
            f"{len(labels)}, {int(labels.isna().sum())} of them missing"
        )
    codes, levels = pd.factorize(labels)
    return str(getattr(given, "name", None) or "given labels"), codes, len(levels)


def counted(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes of the levels that have rows, and how many there are."""
    present = np.bincount(codes) > 0
    return (np.cumsum(present) - 1)[codes], int(present.sum())


def outermost(data: ModelData) -> Factor:
    """The grouping factor whose levels contain those of all others.

    Raises
    ------
    DataError
        Where there is none: crossed, related or shared levels.
    """
    for factor in data.factors:
        if factor.by_code and all(other.is_inside(factor) for other in data.factors):
            return factor
    names = ", ".join(factor.name for factor in data.factors)
    raise DataError(
        f"no grouping factor contains the levels of all others ({names}), so that no clusters of theirs are "
        "independent: give cluster= the labels of independent blocks of rows, if there are any"
    )
