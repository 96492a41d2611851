"""What a model with structured residual errors is made of: arrays and codes, no labels."""

from typing import Any, NamedTuple

import numpy as np

from ..blocks import Block


class Correlation(NamedTuple):
    """Rows of one subject are correlated, C (n_i, n_i); rows of different subjects are not.

    Attributes
    ----------
    word : of the registry (``families``): ident us toep toeph ar1 ar1h cs csh ad adh arma car1 sp_exp sp_gau sp_rat.
    subject : (n,) integer codes.
    clock : (n,) integer visits 0 … T − 1 (or integer times) of structures by visit; (n,) or (n, d) coordinates of those
        of distances.
    n_visits : T of structures by visit, 0 otherwise.
    group : (n,) codes 0 … A − 1, constant within a subject: each has parameters of its own, a scale among them.
    options : ("nugget", True), ("p", 1), ("q", 1), ("metric", "manhattan").
    """

    word: str
    subject: np.ndarray
    clock: np.ndarray
    n_visits: int = 0
    group: np.ndarray | None = None
    options: tuple[tuple[str, Any], ...] = ()


class Variance(NamedTuple):
    """Standard deviations relative to σ, a function of the rows; several of them multiply.

    Attributes
    ----------
    word : ident power exp constpower fixed.
    strata : (n,) codes: of ``ident`` one scale each, relative to stratum 0; of the others parameters of their own.
    covariate : (n,) v; of ``fixed`` the variance is proportional to it.
    options : ("fitted", True) asks for the fitted values as covariate.
    """

    word: str
    strata: np.ndarray | None = None
    covariate: np.ndarray | None = None
    options: tuple[tuple[str, Any], ...] = ()


class RandomTerm(NamedTuple):
    """A bar beside the residual structure: Z (n, q), levels' codes (n,), its covariance structure of size q."""

    Z: np.ndarray
    codes: np.ndarray
    structure: Block


class Parameter(NamedTuple):
    """A number that people read of the residual structure, with its standard error.

    Attributes
    ----------
    kind : "sd" (of a visit or stratum, response units where no variance function is beside it), "ratio" of a standard
        deviation to that of stratum 0, "variance", "covariance", "correlation", "rho", "phi" (per unit of time or
        lag), "theta", "range", "nugget", "power", "expon", "const", "sigma".
    term : −1 the correlation, 0 … the variance functions in their order.
    group : code of the arm or stratum whose own it is, −1 where it is everyone's.
    index : (i, j) visits of a covariance, (k,) the lag or number, () none.
    estimate, se : se is NaN at the boundary and where the data do not tell.
    lower_bound, upper_bound, transform : the scale on which an interval is symmetric: "log", "atanh", "logit",
        "identity"; "logit" runs between the bounds.
    gradient : (k + 1,) of the estimate in (params, log σ).
    boundary : whether it stands on the edge of what it can be.
    """

    kind: str
    term: int
    group: int
    index: tuple[int, ...]  # type: ignore[assignment]
    estimate: float
    se: float
    transform: str
    lower_bound: float
    upper_bound: float
    gradient: np.ndarray
    boundary: bool = False
