"""ℓ(β, covariance, σ²), ML or REML, with exact score and Hessian at any parameters, of any design.

Everything comes from the verbs of an engine (see ``criterion``): with U = ZᵀV⁻¹Z, D = ZᵀV⁻¹[X r] and directions Δ_a in
which Ψ moves, V_a = ZΔ_aZᵀ, so that tr V⁻¹V_a = tr Δ_aU, [X r]ᵀV⁻¹V_aV⁻¹[X r] = DᵀΔ_aD and its second order
DᵀΔ_aUΔ_bD. Nothing is assumed to vanish: the terms in XᵀV⁻¹r are kept (Lindstrom & Bates 1988, section 5, with σ² a
parameter; where it is left out it is profiled, σ̂² = (y − Xβ)ᵀV⁻¹(y − Xβ)/N with N = n or, under REML, n − p). NumPy.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from ..errors import DataError
from . import covariance, criterion, linalg
from .crossed import engine_of
from .crossed_data import CrossedData, Layout, NestedData
from .dense import Dense
from .moments import GroupData
from .nested import Nested, as_chain
from .parameterizations import Scale, check_scale, sqrt_from_profile, to_profile
from .small import Small
from .structures import entry

# Effects up to which all of them as one dense system are exact everywhere and still cheap.
EXACT = 1500
# What a dense factor's root is moved by where it is singular: ``Dense.trace_products`` divides by it.
NUDGE = 1e-6
# Directions of less than this share of an information in parameters of unit information are flat.
FLAT = 1e-10

Statistics = GroupData | NestedData | CrossedData


class Likelihood(NamedTuple):
    """ℓ, its score (m,) and Hessian (m, m) in the packed parameters (β, ω[, σ²])."""

    value: float
    score: np.ndarray
    hessian: np.ndarray


class Sums(NamedTuple):
    """V and what it makes of X (conditioned) and r = y − Xβ.

    Attributes
    ----------
    log_det : log|V|; M : (p, p) XᵀV⁻¹X; Xr : (p,) XᵀV⁻¹r; Q : rᵀV⁻¹r.
    D : per factor ZᵀV⁻¹[X r] (q, p+1, m); DD : Σ D⊗D (q, p+1, q, p+1) over its levels; U : Σ ZᵀV⁻¹Z (q, q).
    solved : what the engine keeps.
    """

    log_det: float
    M: np.ndarray
    Xr: np.ndarray
    Q: float
    D: list[np.ndarray]
    DD: list[np.ndarray]
    U: list[np.ndarray]
    solved: Any


class Moves(NamedTuple):
    """The change of V to second order in directions Δ_a of Ψ.

    Attributes
    ----------
    trace : (k,) tr V⁻¹V_a; B : (k, p+1, p+1) [X r]ᵀV⁻¹V_aV⁻¹[X r].
    trace2 : (k, k) tr V⁻¹V_aV⁻¹V_b; BB : (k, p+1, k, p+1) [X r]ᵀV⁻¹V_aV⁻¹V_bV⁻¹[X r].
    """

    trace: np.ndarray
    B: np.ndarray
    trace2: np.ndarray
    BB: np.ndarray


class Record(NamedTuple):
    """What the derivatives of ℓ in k directions of V are made of, whatever made it; β in any basis.

    Attributes
    ----------
    M : (p, p) XᵀV⁻¹X; Xr : (p,) XᵀV⁻¹r; Q : rᵀV⁻¹r.
    trace : (k,) tr V⁻¹V_a; XB : (k, p) XᵀV⁻¹V_aV⁻¹r; B : (k,) rᵀV⁻¹V_aV⁻¹r.
    trace2 : (k, k) tr V⁻¹V_aV⁻¹V_b; BB : (k, k) rᵀV⁻¹V_aV⁻¹V_bV⁻¹r.
    own, F, products : tr M⁻¹X_a (k,), tr M⁻¹F_ab (k, k), tr M⁻¹X_aM⁻¹X_b (k, k); see ``fixed_traces``.
    bend : (k, k) the derivative of ℓ along V_ab.
    """

    M: np.ndarray
    Xr: np.ndarray
    Q: float
    trace: np.ndarray
    XB: np.ndarray
    B: np.ndarray
    trace2: np.ndarray
    BB: np.ndarray
    own: np.ndarray
    F: np.ndarray
    products: np.ndarray
    bend: np.ndarray


def loglike(params: Any, data: Statistics, *, scale: Scale = "natural", reml: bool = True) -> float:
    """Log-likelihood, or restricted log-likelihood, at packed (β, ω[, σ²]).

    Parameters
    ----------
    params : (p + k + 1,) or, with σ² profiled out (profile and sqrt scales), (p + k,)
        User's units; factors in the caller's order.
    data : what ``compress`` returned, NumPy.
    scale : {"natural", "profile", "sqrt"}
        ω = Ψ, Ψ/σ² or the packed root L of Ψ/σ²; see ``core.parameterizations``.
    reml : bool

    Raises
    ------
    DataError
        Of parameters of another length, a covariance that is not positive semidefinite, or σ² ≤ 0.

    References
    ----------
    Lindstrom & Bates (1988), eqs 2.3 and 2.4.
    """
    at = _read(params, data, scale, reml)
    log_det, H = _solved(engine(data), at.roots)[:2]
    contrast = _contrast(at.beta, data)
    Q = float(contrast @ H @ contrast)
    return _value(float(log_det), H[: len(at.beta), : len(at.beta)], Q, at.sigma2, data, reml)


def score_and_hessian(params: Any, data: Statistics, *, scale: Scale = "natural", reml: bool = True) -> Likelihood:
    """``loglike`` with its exact score and Hessian in ``params``; arguments as there.

    Notes
    -----
    Costs one ``apply`` for k(p + 1) columns and tr(V⁻¹V_aV⁻¹V_b); see the engines. Crossed designs of more than 1 500
    effects: where a factor's covariance is singular these traces are taken a hair, 1e-6 of its unit, inside.
    """
    return expand(params, data, scale=scale, reml=reml)[0]


def expand(
    params: Any, data: Statistics, *, scale: Scale, reml: bool
) -> tuple[Likelihood, Sums, Moves, list[np.ndarray | None]]:
    """``score_and_hessian`` with what it was made of: the sums, the moves, and ∂²Ψ per factor."""
    at = _read(params, data, scale, reml)
    steps, bends = _directions(at, data)
    held = engine(data)
    first = sums(held, at.roots, at.beta, data)
    moves = second_order(held, first, at.roots, steps)
    found = _derivatives(first, moves, bends, at, data, reml)
    if scale == "natural":
        J, J2 = to_profile(np.asarray(params, float), "natural", len(at.beta), data.template)
        curvature = np.tensordot(found.score, J2, 1)
        found = Likelihood(found.value, J.T @ found.score, J.T @ found.hessian @ J + curvature)
    return found if at.given else _profiled(found), first, moves, bends


# ---------------------------------------------------------------- parameters


class _Point(NamedTuple):
    """β (p,), ω (k,) on ``scale``, profile or sqrt, its roots, σ², and whether that was given, not profiled."""

    beta: np.ndarray
    omega: np.ndarray
    scale: Scale
    roots: list[np.ndarray]
    sigma2: float
    given: bool


def _read(params: Any, data: Statistics, scale: Scale, reml: bool) -> _Point:
    check_scale(scale)
    values, p, k = np.asarray(params, float), data.n_fixed, covariance.n_theta(data.template)
    if values.shape not in ((p + k,), (p + k + 1,)) or (scale == "natural" and values.shape != (p + k + 1,)):
        free = "" if scale == "natural" else f", or ({p + k},) with σ² profiled out"
        raise DataError(
            f"params of shape {values.shape}: give {p} fixed effects, {k} covariance parameters and σ², "
            f"({p + k + 1},){free}"
        )
    if not np.isfinite(values).all():
        raise DataError("params hold values that are not finite")
    beta, omega, given = values[:p], values[p : p + k], len(values) > p + k
    if given and not values[-1] > 0:
        raise DataError(f"σ² = {values[-1]} must be positive")
    base: Scale = "sqrt" if scale == "sqrt" else "profile"
    omega = omega / values[-1] if scale == "natural" else omega
    sigma2 = float(values[-1]) if given else scale_at(beta, omega, base, data, reml)
    return _Point(beta, omega, base, roots(omega, base, data), sigma2, given)


def roots(omega: np.ndarray, scale: Scale, data: Statistics) -> list[np.ndarray]:
    """L (q_j, q_j) of every factor in conditioned units of Z, of ω = Ψ/σ² or θ."""
    totals, sizes = totals_of(data), layout_of(data).sizes
    unit = covariance.theta_scale(data.template, totals.basis.z_scale)
    theta = omega if scale == "sqrt" else sqrt_from_profile(omega, data.template)
    if scale != "sqrt":
        _check_root(theta, omega, data)
    return criterion.factors(theta * unit, data.template, sizes)


def _check_root(theta: np.ndarray, omega: np.ndarray, data: Statistics) -> None:
    L, E = covariance.factor(theta, data.template), covariance.linear_basis(data.template)
    wanted = np.tensordot(omega, E, 1)
    size = np.abs(np.diagonal(wanted))
    if (np.abs(L @ L.T - wanted) > 1e-8 * np.sqrt(np.outer(size, size)) + np.finfo(float).tiny).any():
        raise DataError("the covariance parameters are not those of a positive semidefinite covariance")


def _directions(at: _Point, data: Statistics) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Per factor ∂Ψ (q, q, k_j) and ∂²Ψ (q², k_j, k_j), None where Ψ is linear; conditioned units of Z."""
    basis, layout = totals_of(data).basis, layout_of(data)
    unit = covariance.theta_scale(data.template, basis.z_scale)
    steps: list[np.ndarray] = []
    bends: list[np.ndarray | None] = []
    for j, part in enumerate(criterion.parts(data.template, layout.sizes)):
        if at.scale == "sqrt":
            t = unit[part.theta]
            step, bend = criterion.moves_of(at.omega[part.theta] * t, part, layout.sizes[j])
            steps.append(step * t)
            bends.append(bend * np.outer(t, t))
        else:
            s = basis.z_scale[layout.columns(j)]
            steps.append(np.moveaxis(covariance.linear_basis(part.template) * np.outer(s, s), 0, 2))
            bends.append(None)
    return steps, bends


def slopes_of_psi(theta: np.ndarray, data: Statistics) -> list[np.ndarray]:
    """∂Ψ/∂θ (q, q, k_j) per factor, conditioned units of Z."""
    return _directions(_Point(np.zeros(0), theta, "sqrt", [], 1.0, True), data)[0]


# ---------------------------------------------------------------- what an engine tells


def engine(data: Statistics) -> criterion.Engine:
    """An engine whose verbs are exact, also where Ψ is singular, wherever that can be afforded."""
    if isinstance(data, GroupData):
        return Nested(as_chain(data.moments))
    layout = data.layout
    if isinstance(data, CrossedData) and sum(q * m for q, m in zip(layout.sizes, layout.levels, strict=True)) <= EXACT:
        return Small(data)
    return engine_of(data)


def totals_of(data: Statistics) -> Any:
    """n, Σ log w and the basis."""
    return data.moments if isinstance(data, GroupData) else data


def layout_of(data: Statistics) -> Layout:
    """Sizes of the factors."""
    if not isinstance(data, GroupData):
        return data.layout
    q, m = data.moments.ZtZ.shape[0], data.moments.ZtZ.shape[2]
    return Layout((q,), (m,), (0,))


def is_linear(data: Statistics) -> bool:
    """Whether Ψ is linear in some parameters, so that it has a natural scale."""
    return all(block.size == 1 or entry(block).patterns(block) is not None for block in data.template)


def _solved(held: criterion.Engine, Ls: list[np.ndarray]) -> Any:
    solved = held.solve(Ls)
    if solved is None:
        raise DataError("V is not positive definite at these parameters: rounding; take a smaller covariance")
    return _Solved(solved.log_det, solved.H, solved)


class _Solved(NamedTuple):
    log_det: Any
    H: np.ndarray
    kept: Any


def _contrast(beta: np.ndarray, data: Statistics) -> np.ndarray:
    """(p+1,) with y − Xβ = [X y]·map·contrast."""
    return solve_triangular(totals_of(data).basis.map, np.append(-beta, 1.0))


def sums(held: criterion.Engine, Ls: list[np.ndarray], beta: np.ndarray, data: Statistics) -> Sums:
    """``Sums`` at the roots Ls and β (p,), user's units."""
    p = len(beta)
    log_det, H, solved = _solved(held, Ls)
    A = np.eye(p + 1)
    A[:, p] = _contrast(beta, data)
    inner, D = A.T @ H @ A, held.project(solved, A)
    DD = [np.einsum("icm,jdm->icjd", d, d, optimize=True) for d in D]
    return Sums(
        float(log_det), inner[:p, :p], inner[:p, p], float(inner[p, p]), D, DD, held.traces(solved), solved
    )  # fmt: skip


def along_fixed_effects(Ls: list[np.ndarray], steps: list[np.ndarray], data: Statistics) -> np.ndarray:
    """XᵀV⁻¹V_aV⁻¹X (k, p, p), user's units, in the directions ``steps`` (q_j, q_j, k_j) of every factor's Ψ."""
    held, p = engine(data), data.n_fixed
    D = held.project(_solved(held, Ls).kept, np.eye(p + 1)[:, :p])
    back = np.linalg.inv(totals_of(data).basis.map[:p, :p])
    parts = [np.tensordot(step, np.einsum("icm,jdm->icjd", d, d, optimize=True), ((0, 1), (0, 2)))
             for step, d in zip(steps, D, strict=True)]  # fmt: skip
    return back.T @ np.concatenate(parts) @ back


def second_order(held: criterion.Engine, at: Sums, Ls: list[np.ndarray], steps: list[np.ndarray]) -> Moves:
    """``Moves`` in the directions ``steps`` (q_j, q_j, k_j) of every factor's Ψ."""
    p, k = len(at.M), sum(step.shape[2] for step in steps)
    owner = tuple(j for j, step in enumerate(steps) for _ in range(step.shape[2]))
    moves = [step[:, :, a] for step in steps for a in range(step.shape[2])]
    ends = np.cumsum([step.shape[2] for step in steps])
    Y = [
        criterion.moved(step, d, slice(int(end) - step.shape[2], int(end)), k)
        for step, d, end in zip(steps, at.D, ends, strict=True)
    ]
    BB = criterion.contract(Y, held.apply(at.solved, Y)).reshape(k, p + 1, k, p + 1)
    trace, B = (np.concatenate(parts) for parts in zip(*map(_along, steps, at.U, at.DD), strict=True))
    return Moves(trace, B, trace_products(held, at.solved, Ls, owner, moves), BB)


def _along(step: np.ndarray, U: np.ndarray, DD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """tr ΔU (k,) and DᵀΔD (k, p+1, p+1) for the Δ = step[:, :, a] of one factor."""
    return np.tensordot(step, U, ((0, 1), (0, 1))), np.einsum("ija,icjd->acd", step, DD, optimize=True)


def trace_products(
    held: criterion.Engine, solved: Any, Ls: list[np.ndarray], owner: tuple[int, ...], moves: list[np.ndarray]
) -> np.ndarray:
    """tr(V⁻¹V_aV⁻¹V_b) (k, k) at the roots Ls, where these are singular a hair inside if the engine divides by them."""
    if isinstance(held, Dense) and any(np.linalg.svd(L, compute_uv=False)[-1] < 10.0 * NUDGE for L in Ls):
        solved = held.solve([L + NUDGE * np.eye(len(L)) for L in Ls])
    return held.trace_products(solved, owner, moves)


# ---------------------------------------------------------------- algebra


def _value(log_det: float, M: np.ndarray, Q: float, sigma2: float, data: Statistics, reml: bool) -> float:
    totals, p = totals_of(data), len(M)
    N = float(totals.n_rows) - (p if reml else 0)
    value = log_det - float(totals.log_weights) + N * np.log(2.0 * np.pi * sigma2) + Q / sigma2
    if reml and p:
        value += float(linalg.log_det(linalg.cholesky(M))) - 2.0 * float(totals.basis.log_det_x)
    return -0.5 * float(value)


def _derivatives(
    first: Sums, m: Moves, bends: list[np.ndarray | None], at: _Point, data: Statistics, reml: bool
) -> Likelihood:
    """ℓ and its derivatives in (β, ω or θ, σ²)."""
    p, k, s2 = len(at.beta), len(m.trace), at.sigma2
    N = float(totals_of(data).n_rows) - (p if reml else 0)
    back = np.linalg.inv(totals_of(data).basis.map[:p, :p])
    record = Record(
        M=back.T @ first.M @ back,
        Xr=back.T @ first.Xr,
        Q=first.Q,
        trace=m.trace,
        XB=m.B[:, :p, p] @ back,
        B=m.B[:, p, p],
        trace2=m.trace2,
        BB=m.BB[:, p, :, p],
        **dict(zip(("own", "F", "products"), fixed_traces(first.M, m), strict=True)),
        bend=_bend(first, bends, k, s2, reml),
    )
    return assembled(record, _value(first.log_det, first.M, first.Q, s2, data, reml), s2, N, reml)


def assembled(m: Record, value: float, s2: float, N: float, reml: bool) -> Likelihood:
    """ℓ = ``value`` with its derivatives in (β, k directions, σ²), at σ² = ``s2``; N = n or, under REML, n − p."""
    p, k = len(m.M), len(m.trace)
    slope = -0.5 * m.trace + 0.5 * m.B / s2
    curvature = 0.5 * m.trace2 - m.BB / s2 + m.bend
    if reml and p:
        slope = slope + 0.5 * m.own
        curvature = curvature + 0.5 * m.products - 0.5 * (m.F + m.F.T)
    score = np.concatenate([m.Xr / s2, slope, [0.5 * (m.Q / s2 - N) / s2]])
    hessian = np.empty((p + k + 1,) * 2)
    hessian[:p, :p], hessian[p:-1, p:-1] = -m.M / s2, 0.5 * (curvature + curvature.T)
    hessian[p:-1, :p] = -m.XB / s2
    hessian[-1, :p], hessian[-1, p:-1] = -m.Xr / s2**2, -0.5 * m.B / s2**2
    hessian[:p, p:] = hessian[p:, :p].T
    hessian[p:-1, -1] = hessian[-1, p:-1]
    hessian[-1, -1] = (0.5 * N - m.Q / s2) / s2**2
    return Likelihood(value, score, hessian)


def fixed_traces(M: np.ndarray, m: Moves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tr M⁻¹X_a (k,), tr M⁻¹F_ab (k, k) and tr M⁻¹X_aM⁻¹X_b (k, k), X_a and F_ab as in ``Moves`` of X alone."""
    p, inverse = len(M), np.linalg.inv(M)
    X_a = inverse @ m.B[:, :p, :p]
    F = np.einsum("pr,arbp->ab", inverse, m.BB[:, :p, :, :p], optimize=True)
    return np.trace(X_a, axis1=1, axis2=2), F, np.einsum("apr,brp->ab", X_a, X_a, optimize=True)


def bent(first: Sums, bends: list[np.ndarray | None], k: int) -> np.ndarray:
    """(k, k, p+1, p+1): [X r]ᵀV⁻¹V_abV⁻¹[X r] for V_ab = Z∂²ΨZᵀ."""
    w, at = len(first.M) + 1, 0
    out = np.zeros((k, k, w, w))
    for bend, DD in zip(bends, first.DD, strict=True):
        if bend is None:
            return out
        q, here = len(DD), slice(at, at + bend.shape[1])
        out[here, here] = np.einsum("ijab,icjd->abcd", bend.reshape(q, q, *bend.shape[1:]), DD, optimize=True)
        at = here.stop
    return out


def _bend(first: Sums, bends: list[np.ndarray | None], k: int, sigma2: float, reml: bool) -> np.ndarray:
    """(k, k): the derivative of ℓ along ∂²Ψ, where Ψ is not linear in its parameters."""
    p, at = len(first.M), 0
    inner = bent(first, bends, k)
    out = 0.5 * inner[:, :, p, p] / sigma2
    if reml and p:
        out = out + 0.5 * np.einsum("pr,abpr->ab", np.linalg.inv(first.M), inner[:, :, :p, :p])
    for bend, U in zip(bends, first.U, strict=True):
        if bend is not None:
            here = slice(at, at + bend.shape[1])
            out[here, here] -= 0.5 * np.tensordot(U.reshape(-1), bend, 1)
            at = here.stop
    return out


def _profiled(whole: Likelihood) -> Likelihood:
    """Without σ², at whose optimum the derivatives were taken."""
    across = whole.hessian[:-1, -1]
    hessian = whole.hessian[:-1, :-1] - np.outer(across, across) / whole.hessian[-1, -1]
    return Likelihood(whole.value, whole.score[:-1], hessian)


def without_beta(curvature: np.ndarray, p: int) -> np.ndarray:
    """Of a Hessian or an information, β its first p parameters: the same of the others, β profiled out."""
    own, across = curvature[p:, p:], curvature[:p, p:]
    return own - across.T @ np.linalg.solve(curvature[:p, :p], across) if p else own


def flat_inverse(information: np.ndarray) -> np.ndarray:
    """The inverses (…, r, r) of symmetric matrices without their flat and negative directions.

    NaN of a matrix that is not finite.
    """
    finite = np.isfinite(information).all((-2, -1))[..., None, None]
    safe = np.where(finite, information, 0.0)
    size = np.sqrt(np.abs(np.diagonal(safe, axis1=-2, axis2=-1)))
    size = np.where(size > 0, size, 1.0)[..., :, None]
    values, vectors = np.linalg.eigh(safe / size / np.swapaxes(size, -2, -1))
    kept = values > FLAT * np.maximum(values[..., -1:], 1.0)
    root = vectors * np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)[..., None, :] / size
    return np.where(finite, root @ np.swapaxes(root, -2, -1), np.nan)


# ---------------------------------------------------------------- profiled parameters


def gls(omega: np.ndarray, data: Statistics, scale: Scale = "profile") -> np.ndarray:
    """β̂ (p,) at ω on the profile or sqrt scale."""
    H, basis, p = _solved(engine(data), roots(omega, scale, data)).H, totals_of(data).basis, data.n_fixed
    inner = np.linalg.solve(H[:p, :p], H[:p, p])
    # r = W·(−b; 1) in conditioned columns, so (−β; 1) ∝ map·(−b; 1).
    back = basis.map @ np.append(-inner, 1.0)
    return -back[:p] / back[p]


def scale_at(beta: np.ndarray, omega: np.ndarray, scale: Scale, data: Statistics, reml: bool) -> float:
    """σ̂² = (y − Xβ)ᵀV⁻¹(y − Xβ)/N at ω on the profile or sqrt scale."""
    H, contrast = _solved(engine(data), roots(omega, scale, data)).H, _contrast(beta, data)
    return float(contrast @ H @ contrast) / (float(totals_of(data).n_rows) - (len(beta) if reml else 0))
