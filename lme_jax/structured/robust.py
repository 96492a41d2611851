"""Cluster-robust covariances of models with structured residuals, and tests that refer to them."""

from typing import Any

import numpy as np
import pandas as pd

from ..core import sandwich
from ..core.residual import clusters
from ..core.residual.fit import ResidualFit
from ..errors import DataError
from ..inference.degrees import Reference, by_column
from ..inference.robust import RobustEstimates
from .data import StructuredData

VCOV = ("asymptotic", "CR0", "CR1", "CR1S", "CR2", "CR3")


def read_vcov(given: Any) -> Any:
    """The type of a robust covariance, None for the model's own."""
    if given not in VCOV:
        raise DataError(f"vcov={given!r} is unknown; use one of {', '.join(map(repr, VCOV))}")
    return None if given == "asymptotic" else given


def robust(data: StructuredData, fitted: ResidualFit, cluster: Any, kind: Any) -> RobustEstimates:
    """By blocks of dependent rows, subjects where there are no random effects, or by clusters of whole blocks."""
    sandwich.check_kind(kind)
    blocks = data.blocks
    found, n, name = clusters.batches(fitted, blocks), int(blocks.block.max()) + 1, data.term.subject_name
    if cluster is not None:
        codes, n, name = _given(data, cluster)
        found = clusters.joined(found, clusters.cluster_of_blocks(blocks.block, codes, name))
    elif data.terms:
        name = "independent rows"
    made = sandwich.scores(found, fitted.unscaled_cov, n, data.n_rows, kind)
    return RobustEstimates(fitted.beta, tuple(data.exog_names), kind, name, made)


def _given(data: StructuredData, cluster: Any) -> tuple[np.ndarray, int, str]:
    """Codes (n,), their number, and what the clusters are called."""
    if isinstance(cluster, str):
        for factor in data.factors:
            if factor.name == cluster:
                used, codes = np.unique(factor.codes, return_inverse=True)
                return codes.reshape(-1), len(used), cluster
        if cluster == data.term.subject_name:
            return data.term.rows.subject, len(data.term.subjects), cluster
        known = [data.term.subject_name, *(factor.name for factor in data.factors)]
        raise DataError(f"cluster={cluster!r} is none of {', '.join(known)}: give labels of the fitted rows (n,)")
    labels = cluster.reindex(data.index) if isinstance(cluster, pd.Series) else pd.Series(np.asarray(cluster).ravel())
    if len(labels) != data.n_rows or labels.isna().any():
        raise DataError(f"cluster: give one label for each of the {data.n_rows} rows that were fitted, none missing")
    codes, levels = pd.factorize(labels)
    return codes, len(levels), str(getattr(cluster, "name", None) or "given labels")


def reference(found: RobustEstimates, ddf: str, df: np.ndarray | None) -> Reference:
    """Tests by a robust covariance: Satterthwaite's degrees of freedom and HTZ, or ``df`` (p,) of the design."""
    cov = found.cov.to_numpy()
    if df is not None:
        return by_column(ddf, cov, df)

    def several(L: np.ndarray) -> tuple[float, float]:
        eta, q = sandwich.hotelling(found.scores, L), len(L)
        if eta - q + 1.0 <= 0.0:
            raise DataError(f"{found.n_clusters} clusters tell too little for a joint test of {q} hypotheses")
        return eta - q + 1.0, (eta - q + 1.0) / eta

    return Reference(f"{found.type}, Satterthwaite", cov, lambda L: sandwich.satterthwaite(found.scores, L), several)
