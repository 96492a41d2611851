"""statsmodels' parameter objects: ``MixedLMParams`` and ``VCSpec``, and components given as matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, UnsupportedError
from ..formula import RandomTerm

PADDED_LIMIT = 24


class MixedLMParams:
    """Parameters of a mixed model in three parts; same names and packing as statsmodels.

    Parameters
    ----------
    k_fe, k_re, k_vc : int
        Numbers of fixed effects, of correlated random effects, of independent variance components.

    Attributes
    ----------
    fe_params : (k_fe,); cov_re : (k_re, k_re); vcomp : (k_vc,).
    """

    def __init__(self, k_fe: int, k_re: int, k_vc: int) -> None:
        self.k_fe, self.k_re, self.k_vc = int(k_fe), int(k_re), int(k_vc)
        self.k_re2 = self.k_re * (self.k_re + 1) // 2
        self.k_tot = self.k_fe + self.k_re2 + self.k_vc
        self.fe_params = np.zeros(self.k_fe)
        self.cov_re = np.zeros((self.k_re, self.k_re))
        self.vcomp = np.zeros(self.k_vc)

    @staticmethod
    def from_packed(params: Any, k_fe: int, k_re: int, use_sqrt: bool, has_fe: bool) -> "MixedLMParams":
        """Unpack (fixed effects if ``has_fe``, row-major lower triangle, variances), or their roots."""
        packed = np.asarray(params, float)
        lead, k_re2 = (k_fe if has_fe else 0), k_re * (k_re + 1) // 2
        if packed.ndim != 1 or len(packed) < lead + k_re2:
            raise DataError(f"packed parameters of shape {packed.shape} are too short: {lead + k_re2} at least")
        out = MixedLMParams(k_fe, k_re, len(packed) - lead - k_re2)
        if has_fe:
            out.fe_params = packed[:lead].copy()
        lower = np.zeros((k_re, k_re))
        lower[np.tril_indices(k_re)] = packed[lead : lead + k_re2]
        out.cov_re = lower @ lower.T if use_sqrt else lower + np.tril(lower, -1).T
        vcomp = packed[lead + k_re2 :]
        out.vcomp = vcomp**2 if use_sqrt else vcomp.copy()
        return out

    @staticmethod
    def from_components(
        fe_params: Any = None, cov_re: Any = None, cov_re_sqrt: Any = None, vcomp: Any = None
    ) -> "MixedLMParams":
        """From the parts; ``cov_re_sqrt`` (L with cov_re = LLᵀ) takes precedence over ``cov_re``."""
        fe = np.zeros(0) if fe_params is None else np.array(fe_params, float)
        v = np.zeros(0) if vcomp is None else np.array(vcomp, float)
        if cov_re_sqrt is not None:
            root = np.atleast_2d(np.asarray(cov_re_sqrt, float))
            cov = root @ root.T
        else:
            cov = np.zeros((0, 0)) if cov_re is None else np.atleast_2d(np.array(cov_re, float))
        out = MixedLMParams(len(fe), len(cov), len(v))
        out.fe_params, out.cov_re, out.vcomp = fe, cov, v
        return out

    def copy(self) -> "MixedLMParams":
        return MixedLMParams.from_components(self.fe_params, self.cov_re, None, self.vcomp)

    def get_packed(self, use_sqrt: bool, has_fe: bool = False) -> np.ndarray:
        """One vector; with ``use_sqrt`` a root of ``cov_re`` (zero columns where singular) and √vcomp."""
        lower = _semidefinite_root(self.cov_re) if use_sqrt else np.asarray(self.cov_re, float)
        vcomp = np.sqrt(self.vcomp) if use_sqrt else np.asarray(self.vcomp, float)
        fe = [np.asarray(self.fe_params, float)] if has_fe else []
        return np.concatenate([*fe, lower[np.tril_indices(self.k_re)], vcomp])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MixedLMParams):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("fe_params", "cov_re", "vcomp")
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"MixedLMParams(fe_params={self.fe_params}, cov_re={self.cov_re.tolist()}, vcomp={self.vcomp})"


def _semidefinite_root(cov: np.ndarray) -> np.ndarray:
    """Lower L with LLᵀ = cov; negative pivots are refused."""
    rest, L = np.array(cov, float), np.zeros((len(cov), len(cov)))
    floor = 64 * len(rest) * np.finfo(float).eps * np.abs(np.diag(rest))
    for j in range(len(rest)):
        if rest[j, j] < -floor[j]:
            raise DataError("cov_re is not positive semidefinite, so it has no square root: pass a covariance matrix")
        if rest[j, j] > floor[j]:
            L[j:, j] = rest[j:, j] / np.sqrt(rest[j, j])
            rest -= np.outer(L[:, j], L[:, j])
    return L


class VCSpec:
    """Independent variance components given as matrices, as in statsmodels.

    Attributes
    ----------
    names : list of k component names.
    colnames : [k][i] → column names of component k in the i-th group (sorted order).
    mats : [k][i] → (n_i, c_i) design of component k in the i-th group.
    """

    def __init__(self, names: Sequence[str], colnames: Sequence[Any], mats: Sequence[Any]) -> None:
        if not len(names) == len(colnames) == len(mats):
            raise DataError(f"VCSpec: {len(names)} names, {len(colnames)} colnames, {len(mats)} mats")
        self.names, self.colnames, self.mats = list(names), list(colnames), list(mats)

    @staticmethod
    def from_dict(exog_vc: Mapping[str, Mapping[Any, Any]], labels: Sequence[Any]) -> "VCSpec":
        """From the older form name → group → matrix."""
        names = sorted(exog_vc)
        mats = [[_dense(exog_vc[name][g]) for g in labels] for name in names]
        colnames = [[[str(j) for j in range(m.shape[1])] for m in of_name] for of_name in mats]
        return VCSpec(names, colnames, mats)

    def terms(self, label: str, labels: Sequence[Any], rows: Sequence[np.ndarray]) -> list[RandomTerm]:
        """A random term per component; ``rows[i]`` are the rows of group i."""
        return [
            _component(label, name, names, [_dense(m) for m in mats], labels, rows)
            for name, names, mats in zip(self.names, self.colnames, self.mats, strict=True)
        ]


def _dense(matrix: Any) -> np.ndarray:
    array = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, float)
    return array[:, None] if array.ndim == 1 else array


def _component(
    label: str,
    name: str,
    colnames: Sequence[Sequence[str]],
    mats: Sequence[np.ndarray],
    labels: Sequence[Any],
    rows: Sequence[np.ndarray],
) -> RandomTerm:
    """Indicators times numbers become a factor of cells; other matrices, columns on the groups."""
    if len(mats) != len(rows) or any(len(m) != len(r) for m, r in zip(mats, rows, strict=False)):
        raise DataError(f"exog_vc component {name!r}: give one matrix per group, with a row for each row of the group")
    if not all(np.isfinite(m).all() for m in mats):
        raise DataError(f"exog_vc component {name!r} has missing or infinite values: leave those rows out first")
    n, width = sum(map(len, rows)), max(m.shape[1] for m in mats)
    groups = np.empty(n, np.int32)
    for i, r in enumerate(rows):
        groups[r] = i
    if width > 1 and all(((m != 0).sum(axis=1) <= 1).all() for m in mats):
        return _cells(label, name, colnames, mats, labels, rows, n)
    if width > PADDED_LIMIT:
        raise UnsupportedError(
            f"exog_vc component {name!r} has {width} columns in a group that are no indicators; up to "
            f"{PADDED_LIMIT} are fitted. Columns with one non-zero per row (an indicator times a number) have no limit."
        )
    Z = np.zeros((n, width))
    for r, m in zip(rows, mats, strict=True):
        Z[r, : m.shape[1]] = m
    columns = (name,) if width == 1 else tuple(f"{name}[{j}]" for j in range(width))
    return RandomTerm(label, columns, np.asarray(labels), groups, Z, "identity")


def _cells(
    label: str,
    name: str,
    colnames: Sequence[Sequence[str]],
    mats: Sequence[np.ndarray],
    labels: Sequence[Any],
    rows: Sequence[np.ndarray],
    n: int,
) -> RandomTerm:
    codes, Z, levels, at = np.zeros(n, np.int64), np.zeros((n, 1)), [], 0
    for group, names, r, m in zip(labels, colnames, rows, mats, strict=True):
        where = np.abs(m).argmax(axis=1)
        codes[r] = at + where
        Z[r, 0] = m[np.arange(len(m)), where]
        levels += [f"{group}:{names[j]}" for j in range(m.shape[1])]
        at += m.shape[1]
    used, compact = np.unique(codes, return_inverse=True)
    occurring = np.array(levels, dtype=object)[used]
    return RandomTerm(f"{label}:{name}", (name,), occurring, compact.ravel().astype(np.int32), Z, "identity")
