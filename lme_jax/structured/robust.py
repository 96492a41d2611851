"""Cluster-robust covariances of models with structured residuals, and tests that refer to them."""

from typing import Any

import numpy as np

from ..core import sandwich
from ..core.residual import clusters
from ..core.residual.fit import ResidualFit
from ..errors import DataError
from ..inference.robust import RobustEstimates, counted, given_labels
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
        name, codes, n = _given(data, cluster)
        found = clusters.joined(found, clusters.cluster_of_blocks(blocks.block, codes, name))
    elif data.terms:
        name = "independent rows"
    made = sandwich.scores(found, fitted.unscaled_cov, n, data.n_rows, kind)
    return RobustEstimates(fitted.beta, tuple(data.exog_names), kind, name, made)


def _given(data: StructuredData, cluster: Any) -> tuple[str, np.ndarray, int]:
    """What the clusters are called, their codes (n,) and their number."""
    if not isinstance(cluster, str):
        return given_labels(data, cluster)
    for factor in data.factors:
        if factor.name == cluster:
            return cluster, *counted(factor.codes)
    if cluster == data.term.subject_name:
        return cluster, data.term.rows.subject, len(data.term.subjects)
    known = [data.term.subject_name, *(factor.name for factor in data.factors)]
    raise DataError(f"cluster={cluster!r} is none of {', '.join(known)}: give labels of the fitted rows (n,)")
