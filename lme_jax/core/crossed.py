"""Several grouping factors: log|V| and H = [X y]ᵀV⁻¹[X y] for nested chains and crossed designs (MATH §5).

Nested chain: eliminating the inner factor leaves the next one block diagonal, so levels are eliminated
from the inside out, each adding its Schur update to its ancestors: O(levels).

Crossed: factor 1 is eliminated level by level, the others form one K × K system
    S = I + Λ₂ᵀNΛ₂,   N = Z₂ᵀV₁⁻¹Z₂ = Z₂ᵀZ₂ − Σ_u (Z₁ᵀZ₂)_uᵀ M_u (Z₁ᵀZ₂)_u,   M = Ψ₁(I + GΨ₁)⁻¹,
with N a sum over the listed pairs of columns. Derivatives never pass through the Cholesky factor of S:
they are given by S⁻¹, formed once and shared by all parameters.

References: Bates et al. (2015), eqs 30–42; Bates & DebRoy (2004) for the gradient.
"""

import functools
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from . import covariance, crossed_host, levels, linalg
from .compression import Basis
from .crossed_data import MEMORY_LIMIT, CrossedData, Layout, NestedData, compress_crossed
from .crossed_start import moment_start
from .optimize import NewtonOptions, NewtonState, initial_state, newton
from .profiled import AtOptimum, Expansion, profiled_deviance
from .profiled import derivatives as profiled_derivatives
from .records import Fit, RandomEffects, assemble
from .types import Array, float64_on_host, is_host, pytree, static

__all__ = [
    "MEMORY_LIMIT",
    "CrossedData",
    "NestedData",
    "compress_crossed",
    "derivatives",
    "deviance",
    "fit_crossed",
    "hessian",
    "log_det_and_cross",
    "random_effects",
]

# Above this K the NumPy/LAPACK driver with the average-information Hessian beats the compiled exact one.
HOST_ABOVE = 64


def factors(theta: Array, data: CrossedData | NestedData) -> list[Array]:
    """L_j(θ), (q_j, q_j), of every factor in the caller's order."""
    whole = covariance.factor(theta, data.template)
    spans = [data.layout.columns(j) for j in range(len(data.layout.sizes))]
    return [whole[s, s] for s in spans]


def log_det_and_cross(theta: Array, data: CrossedData | NestedData) -> tuple[Array, Array]:
    """log|V| () and H = [X y]ᵀV⁻¹[X y] (p+1, p+1) in the conditioned basis, at scaled θ.

    Differentiable to any order in θ and in the data.

    Notes
    -----
    Nested: O(Σ m_j w_j²) with w_j the width of what is left. Crossed: K³/3 + O(T) for T pair products;
    a derivative adds one inverse, a second one 4K³ per direction.
    """
    if isinstance(data, NestedData):
        return _nested(theta, data)[:2]
    return _crossed(theta, data)


# ---------------------------------------------------------------- nested chain


def _sum_by_parent(values: Array, parent: Array, n_parents: int) -> Array:
    """(r, c, m) → (r, c, n_parents) for a non-decreasing parent."""
    add = functools.partial(jax.ops.segment_sum, segment_ids=parent, num_segments=n_parents, indices_are_sorted=True)
    rows = values.reshape(-1, values.shape[-1])
    sums = jnp.stack([add(row) for row in rows]) if len(rows) <= 12 else jax.vmap(add)(rows)
    return sums.reshape(*values.shape[:-1], n_parents)


def _nested(theta: Array, data: NestedData) -> tuple[Array, Array, list[tuple[Array, Array]]]:
    """log|V|, H, and per eliminated factor M (q, q, m) and the C (q, w, m) it met."""
    order, sizes = data.layout.order, data.layout.sizes
    Ls = factors(theta, data)
    G, C, H = list(data.G), list(data.C), data.WtW
    log_v = jnp.zeros((), H.dtype)
    steps = []
    for at, j in enumerate(order):
        log_det, M = _weights(Ls[j], G[at])
        MC = linalg.matmul(M, C[at])
        log_v = log_v + log_det.sum()
        steps.append((M, C[at]))
        lo = 0
        left, right = C[at], MC
        ancestor = None
        for up in range(at + 1, len(order)):
            q = sizes[order[up]]
            ancestor = data.parent[at] if ancestor is None else data.parent[up - 1][ancestor]
            update = linalg.matmul(linalg.transpose(left[:, lo : lo + q]), right[:, lo:])
            update = _sum_by_parent(update, ancestor, G[up].shape[-1])
            G[up] = G[up] - update[:, :q]
            C[up] = C[up] - update[:, q:]
            lo += q
        H = H - sum(left[a, lo:] @ right[a, lo:].T for a in range(left.shape[0]))
    return log_v, H, steps


# ---------------------------------------------------------------- crossed factors


@jax.custom_jvp
def spd_inverse(S: Array) -> Array:
    """S⁻¹ of a symmetric positive-definite S (K, K)."""
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(S), True), jnp.eye(S.shape[0], dtype=S.dtype))


@spd_inverse.defjvp
def _spd_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = spd_inverse(*primals)
    return inverse, -inverse @ tangents[0] @ inverse


@jax.custom_jvp
def bordered(S: Array, R: Array) -> tuple[Array, Array]:
    """log|S| () and RᵀS⁻¹R (c, c) for symmetric positive-definite S (K, K) and R (K, c)."""
    K = jnp.linalg.cholesky(S)
    half = jax.scipy.linalg.solve_triangular(K, R, lower=True)
    return linalg.log_det(K), half.T @ half


@bordered.defjvp
def _bordered_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Any, Any]:
    (S, R), (dS, dR) = primals, tangents
    inverse = spd_inverse(S)
    solved = inverse @ R
    moved = dR.T @ solved
    return bordered(S, R), ((inverse * dS).sum(), moved + moved.T - solved.T @ dS @ solved)


def _weights(L: Array, G: Array) -> tuple[Array, Array]:
    """log|I + LᵀGL| (P,) and W = L M⁻¹Lᵀ (q, q, P) per level."""
    log_det, W = levels.weigh(L, G, levels.dense(len(L)))
    return log_det, levels.stacked(W)


def _apply_root(Ls: list[Array], layout: Layout, X: Array) -> Array:
    """Λ₂ᵀX for X (K, c)."""
    parts = []
    for j, rows in layout.dense_slices:
        q = layout.sizes[j]
        if q == 1:
            parts.append(Ls[j][0, 0] * X[rows])
        else:
            parts.append(jnp.einsum("ab,mac->mbc", Ls[j], X[rows].reshape(-1, q, X.shape[1])).reshape(-1, X.shape[1]))
    return jnp.concatenate(parts)


def _crossed(theta: Array, data: CrossedData) -> tuple[Array, Array]:
    layout, K = data.layout, data.layout.n_dense
    Ls = factors(theta, data)
    L1 = Ls[layout.order[0]]
    q1 = L1.shape[0]
    log_det, M = _weights(L1, data.G)
    products = (M[np.tril_indices(q1)][:, data.product_pattern] * data.product_value).sum(0)
    n_pairs = data.base.shape[0]
    N_pairs = data.base - jax.ops.segment_sum(products, data.product_pair, n_pairs, indices_are_sorted=True)
    lower = jnp.zeros((K, K), N_pairs.dtype).at[data.pair_row, data.pair_column].set(N_pairs, unique_indices=True)
    N = lower + jnp.tril(lower, -1).T
    S = _apply_root(Ls, layout, _apply_root(Ls, layout, N).T) + jnp.eye(K, dtype=N.dtype)
    MC = linalg.matmul(M[:, :, data.pattern], data.Z1W)
    H = data.WtW - sum(data.Z1W[a] @ MC[a].T for a in range(q1))
    pulled = sum(data.entry_value[a] * MC[a][:, data.entry_level] for a in range(q1))
    add = functools.partial(jax.ops.segment_sum, segment_ids=data.entry_column, num_segments=K, indices_are_sorted=True)
    R = _apply_root(Ls, layout, data.Z2W - jax.vmap(add)(pulled).T)
    log_s, cross = bordered(S, R)
    return (data.count * log_det).sum() + log_s, H - cross


# ---------------------------------------------------------------- deviance, derivatives, fit


def derivatives(theta: Array, data: CrossedData | NestedData, reml: bool) -> tuple[Array, Array, Array, AtOptimum]:
    """Deviance (), gradient (k,), exact Hessian (k, k) in scaled θ by autodiff, and what the fit keeps."""
    around = Expansion(lambda delta: log_det_and_cross(theta + delta, data))
    return profiled_derivatives(around, theta.shape[0], data, reml)


@float64_on_host
def deviance(theta: Array, data: CrossedData | NestedData, *, reml: bool = True) -> Array:
    """Profiled deviance (−2 log L, or the REML criterion) at θ in the user's units of Z; see ``grouped``."""
    return _deviance(jnp.asarray(theta), data, reml)


@functools.partial(jax.jit, static_argnames="reml")
def _deviance(theta: Array, data: CrossedData | NestedData, reml: bool) -> Array:
    scaled = theta * covariance.theta_scale(data.template, data.basis.z_scale)
    return profiled_deviance(*log_det_and_cross(scaled, data), data, reml)


def _on_host(data: CrossedData | NestedData, *others: Any) -> TypeGuard[CrossedData]:
    """Whether the NumPy driver serves: a large dense system, and nothing that JAX must see."""
    return isinstance(data, CrossedData) and data.layout.n_dense > HOST_ABOVE and is_host((data, others))


def hessian(theta: Any, data: CrossedData | NestedData, *, reml: bool = True) -> Any:
    """Exact Hessian (k, k) of the deviance at θ, user's units.

    Notes
    -----
    Large crossed designs on NumPy input: closed form, 2K³ operations per covariance of the first factor;
    where a factor is singular it is taken 1e-5 inside the boundary.
    """
    if _on_host(data, theta):
        scale = crossed_host.theta_scale(data)
        return crossed_host.Engine(data, reml).hessian(np.asarray(theta) * scale) * np.outer(scale, scale)
    return _hessian(theta, data, reml=reml)


@float64_on_host
def _hessian(theta: Any, data: CrossedData | NestedData, *, reml: bool) -> Array:
    scale = covariance.theta_scale(data.template, jnp.asarray(data.basis.z_scale))
    return _derivatives(jnp.asarray(theta) * scale, data, reml)[2] * jnp.outer(scale, scale)


_derivatives = jax.jit(derivatives, static_argnames="reml")


def fit_crossed(
    data: CrossedData | NestedData,
    *,
    reml: bool = True,
    start: Any = None,
    options: NewtonOptions = NewtonOptions(),
    backend: Any = None,
) -> Fit:
    """Maximum-likelihood or REML fit of a model with several grouping factors.

    Parameters
    ----------
    data : from ``compress_crossed``.
    reml : bool, static.
    start : (k,), optional
        θ to start from, user's units, factors in the caller's order; moment estimates if None.
    options : NewtonOptions, static.

    Returns
    -------
    Fit
        θ concatenated over the caller's factors; ``relative_factor`` (Σq, Σq) is block diagonal.

    Notes
    -----
    Newton with a trust region. On NumPy data with a large dense system each of about 8 evaluations costs
    one Cholesky factor and one inverse (K³ operations) in LAPACK with the average information as curvature;
    otherwise the compiled program takes the exact Hessian.
    """
    if start is None:
        start = moment_start(data)
    if _on_host(data, start):
        return _fit_on_host(data, reml, start, options)
    return _fit_traced(data, start, reml=reml, options=options)


@float64_on_host
def _fit_traced(data: CrossedData | NestedData, start: Any, *, reml: bool, options: NewtonOptions) -> Fit:
    return _fit(data, start, reml, options)


@functools.partial(jax.jit, static_argnames=("reml", "options"))
def _fit(data: CrossedData | NestedData, start: Array, reml: bool, options: NewtonOptions) -> Fit:
    scale = covariance.theta_scale(data.template, data.basis.z_scale)
    x0 = jnp.asarray(start, data.WtW.dtype) * scale

    def objective(x: Array) -> tuple[Array, Array, Array, AtOptimum]:
        return derivatives(x, data, reml)

    from .profiled import nothing_kept

    state = initial_state(x0, nothing_kept(data.n_fixed, x0))
    return assemble(newton(objective, state, *options.limits(x0.dtype)), data, data.template, reml)


@pytree
class _Summary:
    """What ``_assemble`` reads of the data, without the large arrays."""

    WtW: Array
    n_rows: Array
    log_weights: Array
    basis: Basis
    template: covariance.Template = static()


@functools.partial(jax.jit, static_argnames="reml")
def _assemble_jitted(found: NewtonState, data: _Summary, reml: bool) -> Fit:
    return assemble(found, data, data.template, reml)


def _fit_on_host(data: CrossedData, reml: bool, start: Any, options: NewtonOptions) -> Fit:
    engine = crossed_host.Engine(data, reml)
    with jax.enable_x64(True):
        x0 = np.asarray(start, float) * crossed_host.theta_scale(data)
        found = crossed_host.minimise(engine, x0, options)
        small = _Summary(data.WtW, data.n_rows, data.log_weights, data.basis, data.template)
        return jax.tree.map(np.asarray, _assemble_jitted(found, small, reml))


# ---------------------------------------------------------------- random effects


def random_effects(fitted: Fit, data: CrossedData | NestedData) -> tuple[RandomEffects, ...]:
    """BLUPs with conditional and prediction-error covariances, one record per factor in the caller's order.

    References
    ----------
    Henderson (1975); Bates et al. (2015), eq. 58.

    Notes
    -----
    Nested: one pass from the outermost factor inwards. Crossed: one K × K inverse, and for each level of
    factor 1 the block of S⁻¹ over the d_u effects it meets; NumPy only.
    """
    if isinstance(data, CrossedData):
        return crossed_host.random_effects(fitted, jax.tree.map(np.asarray, data))
    return _nested_effects(fitted, data)


@float64_on_host
def _nested_effects(fitted: Fit, data: NestedData) -> tuple[RandomEffects, ...]:
    return _nested_effects_jitted(fitted, data)


@jax.jit
def _nested_effects_jitted(fitted: Fit, data: NestedData) -> tuple[RandomEffects, ...]:
    """Downwards: b_u = M_u(C_u,y − C_u,β β − Σ C_u,k b_ancestor), and the joint covariance with it."""
    order, p = data.layout.order, data.n_fixed
    z_scale = jnp.asarray(data.basis.z_scale)
    scale = covariance.theta_scale(data.template, z_scale)
    steps = _nested(fitted.theta * scale, data)[2]
    A, c, d = data.basis.map[:p, :p], data.basis.map[:p, p], data.basis.map[p, p]
    a = jnp.linalg.solve(A, c + d * fitted.beta) if p else jnp.zeros(0, A.dtype)
    root = jnp.linalg.solve(A, fitted.unscaled_cov) if p else fitted.unscaled_cov
    fixed_cov = jnp.linalg.solve(A, root.T) if p else root
    # Above the outermost factor stand the fixed effects; y's column has coefficient −1 in conditioned units.
    top = a
    effects, variances = top[:, None], [jnp.zeros((p, p, 1)), fixed_cov[:, :, None]]
    results: list[Any] = [None] * len(order)
    for at in range(len(order) - 1, -1, -1):
        j = order[at]
        M, C = steps[at]
        parent = data.parent[at] if at < len(order) - 1 else jnp.zeros(M.shape[-1], jnp.int32)
        above = effects[:, parent]
        free = C[:, -1] - (C[:, :-1] * above[None]).sum(1)
        b = (M * free[None]).sum(1)
        MC = linalg.matmul(M, C[:, :-1])
        joint, block = [], []
        for V in variances:
            up = V[:, :, parent]
            across = -linalg.matmul(MC, up) if MC.shape[1] else MC
            own = M - linalg.matmul(across, linalg.transpose(MC)) if MC.shape[1] else M
            joint.append(
                jnp.concatenate([jnp.concatenate([own, across], 1), jnp.concatenate([linalg.transpose(across), up], 1)])
            )
            block.append(own)
        effects, variances = jnp.concatenate([b, above]), joint
        unit = 1.0 / z_scale[data.layout.columns(j)]
        place = data.position[at]
        size = fitted.sigma**2 * unit[:, None] * unit[None, :]
        results[j] = RandomEffects(
            (b[:, place] * unit[:, None]).T / d,
            *(size * jnp.moveaxis(V[:, :, place], 2, 0) for V in block),
        )
    return tuple(results)
