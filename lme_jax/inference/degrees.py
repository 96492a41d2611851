"""Denominator degrees of freedom: what tests of Lβ refer to, six methods behind one record.

References: Satterthwaite (1946), Biometrics Bulletin 2, 110–114; Fai & Cornelius (1996), J. Stat. Comput. Simul. 54,
363–378; Kenward & Roger (1997), Biometrics 53, 983–997; Pinheiro & Bates (2000), section 2.4.2; Schluchter & Elashoff
(1990), J. Stat. Comput. Simul. 37, 69–87; Kuznetsova, Brockhoff & Christensen (2017), J. Stat. Softw. 82(13).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..core.fixed_effects import Jets
from ..core.likelihood import flat_inverse
from ..errors import DataError

Method = Literal["satterthwaite", "kenward-roger", "containment", "between-within", "residual", "normal"]
SHORT = {"kr": "kenward-roger", "kenward_roger": "kenward-roger", "bw": "between-within", "z": "normal"}
# Degrees of freedom that differ by less are one (lmerTest); directions of less than this share of the hypotheses none.
SAME, DEPENDENT = 1e-8, 1e-10
# What rounding leaves of 1 − A₁/(qA₂) where all variances move in proportion.
PROPORTIONAL = 1e-9


class Reference(NamedTuple):
    """What tests of Lβ refer to: t or F with these degrees of freedom, infinite ones for the normal and χ².

    Attributes
    ----------
    method : its name.
    cov : (p, p) the Cov β̂ that belongs to it: adjusted for Kenward & Roger, else σ̂²(XᵀV⁻¹X)⁻¹.
    single : L (m, p) → (m,), of each row alone.
    several : L (m, p) of full row rank → (degrees of freedom, factor of F), of all rows together.
    """

    method: str
    cov: np.ndarray
    single: Callable[[np.ndarray], np.ndarray]
    several: Callable[[np.ndarray], tuple[float, float]]


def read_method(given: str) -> Method:
    """The method's own name; upper case, spaces and short names are understood."""
    name = str(given).lower().replace(" ", "-")
    name = SHORT.get(name, SHORT.get(name.replace("-", "_"), name))
    if name not in get_args(Method):
        raise DataError(f"ddf={given!r} is unknown; use one of {', '.join(map(repr, get_args(Method)))}")
    return name  # type: ignore[return-value]


def of_parameters(jets: Jets, kept: np.ndarray) -> Jets:
    """Jets in some of the parameters, kept (r,) bool; the others count as known."""
    both = np.ix_(kept, kept)
    parts = {name: getattr(jets, name) for name in ("curve", "information", "expected", "bend")}
    chosen = {name: part if part is None or not len(part) else part[both] for name, part in parts.items()}
    return jets._replace(slope=jets.slope[kept], **chosen)


# ---------------------------------------------------------------- Satterthwaite


def satterthwaite(jets: Jets) -> Reference:
    """Of jets in parameters at whose estimates the score is zero, such as (θ, σ²) at any optimum.

    Notes
    -----
    A parameter along which Cov β̂ is flat counts for nothing: in θ a variance of zero, or a correlation of ±1, counts as
    known. Several rows: independent t statistics along the eigenvectors of L·cov·Lᵀ and the F whose mean is that of
    their average square. That depends on the rows of L, not on their span alone.
    """
    spread = flat_inverse(jets.information)
    return Reference(
        "satterthwaite", jets.cov, partial(_satterthwaite, jets, spread), partial(_of_eigenvectors, jets, spread)
    )


def _satterthwaite(jets: Jets, spread: np.ndarray, L: np.ndarray) -> np.ndarray:
    """2v²/Var v̂ with v = lᵀ·cov·l, per row; infinite where v does not depend on estimates."""
    slopes = np.einsum("mi,aij,mj->ma", L, jets.slope, L, optimize=True)
    variance = np.einsum("ma,ab,mb->m", slopes, spread, slopes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2.0 * np.einsum("mi,ij,mj->m", L, jets.cov, L) ** 2 / variance


def _of_eigenvectors(jets: Jets, spread: np.ndarray, L: np.ndarray) -> tuple[float, float]:
    vectors = np.linalg.eigh(L @ jets.cov @ L.T)[1]
    return float(of_average(_satterthwaite(jets, spread, vectors.T @ L))), 1.0


def of_average(nu: np.ndarray) -> np.ndarray:
    """Degrees of freedom ν (…) with E F(q, ν) = E of the mean of q independent t² with ν_m (…, q); lmerTest's rule.

    E = Σ ν_m/(ν_m − 2) and ν = 2E/(E − q); their mean if they agree, 2 if one of them is 2 or less.
    """
    # Infinite ones differ by NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        same = (np.ptp(nu, axis=-1) < SAME) | np.isinf(nu).all(-1)
        # E − q, without cancellation where the ν are large.
        excess = (2.0 / (nu - 2.0)).sum(-1)
        apart = np.where((nu <= 2.0).any(-1), 2.0, 2.0 * (excess + nu.shape[-1]) / excess)
    return np.where(same, nu.mean(-1), apart)


# ---------------------------------------------------------------- Kenward & Roger


def kenward_roger(jets: Jets) -> Reference:
    """Kenward & Roger (1997), in the parameters of the jets: second derivatives and the REML expected information.

    Their formulas for V that is linear in its parameters are those of jets whose ``bend`` is None; where it is not, the
    result depends on the parameters.
    """
    if jets.curve is None:
        raise DataError("Kenward and Roger's correction needs jets with second derivatives: jets(…, second=True)")
    W = flat_inverse(jets.expected)
    # Φ_A = Φ + 2ΦΣW(Q − PΦP − R/4)Φ, where ∂²Φ = Φ(2PΦP − Q − Qᵀ + R)Φ.
    adjusted = jets.cov - np.einsum("ab,abij->ij", W, jets.curve)
    if jets.bend is not None:
        adjusted = adjusted + 0.5 * np.einsum("ab,abij->ij", W, jets.bend)
    adjusted = 0.5 * (adjusted + adjusted.T)
    return Reference("kenward-roger", adjusted, partial(_of_rows, jets, W), partial(_kenward_roger, jets, W))


def _of_rows(jets: Jets, W: np.ndarray, L: np.ndarray) -> np.ndarray:
    return _satterthwaite(jets, W, L)


def _kenward_roger(jets: Jets, W: np.ndarray, L: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and factor of F.

    A₁ ≤ qA₂ with equality where all variances of Lβ̂ move in proportion: F is then exact, its degrees of freedom are
    2q/A₂ and its factor is 1, also at 2, where the general formula is 0/0.
    """
    q = len(L)
    root = np.linalg.cholesky(L @ jets.cov @ L.T)
    moved = np.linalg.solve(root, L @ jets.slope @ L.T)
    moved = np.linalg.solve(root, np.swapaxes(moved, 1, 2))
    trace = np.trace(moved, axis1=1, axis2=2)
    a1 = float(trace @ W @ trace)
    a2 = float(np.einsum("ab,aij,bji->", W, moved, moved, optimize=True))
    if a1 >= (1.0 - PROPORTIONAL) * q * a2:
        return 2.0 * q / a2 if a2 > 0 else np.inf, 1.0
    b = (a1 + 6.0 * a2) / (2.0 * q)
    g = ((q + 1) * a1 - (q + 4) * a2) / ((q + 2) * a2)
    c = np.array([g, q - g, q + 2 - g]) / (3 * q + 2 * (1 - g))
    inverse_mean = 1.0 - a2 / q
    rho = (inverse_mean / (1.0 - c[1] * b)) ** 2 * (1.0 + c[0] * b) / (1.0 - c[2] * b) / q
    df = 4.0 + (q + 2) / (q * rho - 1.0)
    return df, df * inverse_mean / (df - 2.0)


# ---------------------------------------------------------------- from the design alone


def by_column(method: str, cov: np.ndarray, df: np.ndarray) -> Reference:
    """One number per fixed effect, df (p,): rows, alone or together, have the least of the effects they involve."""
    return Reference(method, cov, partial(_least, df), partial(_least_of_all, df))


def _least(df: np.ndarray, L: np.ndarray) -> np.ndarray:
    return np.where(L != 0, df, np.inf).min(1, initial=np.inf)


def _least_of_all(df: np.ndarray, L: np.ndarray) -> tuple[float, float]:
    return float(_least(df, L).min()), 1.0


def residual(cov: np.ndarray, n_rows: int) -> Reference:
    """Rows less fixed effects, for all."""
    return by_column("residual", cov, np.full(len(cov), float(n_rows - len(cov))))


def normal(cov: np.ndarray) -> Reference:
    """z and χ²."""
    return by_column("normal", cov, np.full(len(cov), np.inf))


def containment(X: np.ndarray, chain: Sequence[np.ndarray]) -> np.ndarray:
    """Degrees of freedom (p,) by the level inside which a column varies (nlme's rule).

    Parameters
    ----------
    X : (n, p); chain : codes (n,) of nested factors, the outermost first.

    Notes
    -----
    A level has its number of groups less that of the level outside of it, less the columns that vary inside of that one
    and not within its own groups. The intercept has the most that any level has.
    """
    counts = np.array([1, *(len(np.unique(codes)) for codes in chain), len(X)])
    constant = np.array([_constant(x) for x in X.T], bool)
    # Stratum of a column: 0 if it is constant in the outermost groups, len(chain) if it varies in the innermost.
    stratum = np.array([sum(_varies(x, codes) for codes in chain) for x in X.T], int)
    df = np.diff(counts).astype(float) + (0.0 if constant.any() else np.eye(len(chain) + 1)[0])
    df -= np.bincount(stratum[~constant], minlength=len(df))
    out = df[stratum]
    out[constant] = df.max()
    return out


def between_within(X: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Degrees of freedom (p,): rows less subjects less the columns that vary in one, or subjects less the others."""
    subjects = len(np.unique(codes))
    within = np.array([_varies(x, codes) for x in X.T], bool)
    inside, between = len(X) - subjects - within.sum(), subjects - (~within).sum()
    return np.where(within, float(inside), float(between))


def _constant(x: np.ndarray) -> bool:
    return bool(np.ptp(x) <= 1e-8 * np.abs(x).max(initial=0.0))


def _varies(x: np.ndarray, codes: np.ndarray) -> bool:
    """Whether x (n,) varies inside of a group."""
    first = np.zeros(int(codes.max()) + 1)
    first[codes] = x
    return bool((np.abs(x - first[codes]) > 1e-8 * np.abs(x).max(initial=0.0)).any())
