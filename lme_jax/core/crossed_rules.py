"""What only JAX needs for several grouping factors; imported only where a JAX array is at hand.

Derivatives never pass through the Cholesky factor of the dense system S: they are given by S⁻¹, formed once and
shared by all parameters and all verbs. LAPACK is called for one matrix at a time also under ``vmap``: batched calls
can hang in jaxlib 0.10 on CPU.

References: Bates et al. (2015), eqs 30–42; Bates & DebRoy (2004) for the gradient.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import covariance, levels, linalg
from .crossed_data import MEMORY_LIMIT, CrossedData, check_memory
from .types import Array


def sum_by_segment(values: Array, segment: Array, n: int) -> Array:
    """(r, c, m) → (r, c, n) for a non-decreasing segment (m,)."""
    add = functools.partial(jax.ops.segment_sum, segment_ids=segment, num_segments=n, indices_are_sorted=True)
    rows = values.reshape(-1, values.shape[-1])
    sums = jnp.stack([add(row) for row in rows]) if len(rows) <= 12 else jax.vmap(add)(rows)
    return sums.reshape(*values.shape[:-1], n)


@jax.custom_batching.sequential_vmap
def _factored(S: Array) -> tuple[Array, Array]:
    K = jnp.linalg.cholesky(S)
    return linalg.log_det(K), jax.scipy.linalg.cho_solve((K, True), jnp.eye(S.shape[0], dtype=S.dtype))


@jax.custom_jvp
def log_det_and_inverse(S: Array) -> tuple[Array, Array]:
    """log|S| () and S⁻¹ of a symmetric positive-definite S (K, K)."""
    return _factored(S)


@log_det_and_inverse.defjvp
def _log_det_and_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    value, inverse = log_det_and_inverse(*primals)
    return (value, inverse), ((inverse * tangents[0]).sum(), -inverse @ tangents[0] @ inverse)


class Solved(NamedTuple):
    """As ``dense.Solved``: M, F, U of every pattern of factor 1, N, S⁻¹, W = Λ₂S⁻¹Λ₂ᵀ (K, K), Z₂ᵀV₁⁻¹[X y] (K, p+1)."""

    log_det: Array
    H: Array
    M: Array
    F: Array
    U: Array
    N: Array
    inverse: Array
    W: Array
    reduced: Array


class Traced:
    """Verbs of ``criterion.Engine`` for a crossed design of JAX arrays: K³ operations each, differentiable."""

    def __init__(self, data: CrossedData) -> None:
        self.data, self.layout = data, data.layout
        self.first = data.layout.order[0]
        self.q1, self.K = data.layout.sizes[self.first], data.layout.n_dense
        # As measured: what a search holds at a time. The derivatives of a fit hold up to three times that.
        _check_memory((8 + 4 * covariance.n_theta(data.template)) * self.K**2, f"{self.K} × {self.K} matrices")
        n_pairs, n_products = data.base.shape[0], data.product_pattern.shape[0]
        self.pair = jnp.repeat(jnp.arange(n_pairs), jnp.diff(data.product_ends), total_repeat_length=n_products)

    # ---- linear maps

    def _symmetric(self, at_pairs: Array) -> Array:
        """The (K, K) matrix of values at the pairs."""
        data, zero = self.data, jnp.zeros((self.K, self.K), at_pairs.dtype)
        lower = zero.at[data.pair_row, data.pair_column].set(at_pairs, unique_indices=True)
        return lower + jnp.tril(lower, -1).T

    def _root(self, Ls: list[Array], X: Array, transpose: bool) -> Array:
        """Λ₂X or Λ₂ᵀX for X (K, c)."""
        parts = []
        for j, rows in self.layout.dense_slices:
            q, L = self.layout.sizes[j], Ls[j].T if transpose else Ls[j]
            own = X[rows].reshape(-1, q, X.shape[1])
            parts.append(L[0, 0] * X[rows] if q == 1 else jnp.einsum("ab,mbc->mac", L, own).reshape(X[rows].shape))
        return jnp.concatenate(parts)

    def _both_roots(self, Ls: list[Array], X: Array, transpose: bool) -> Array:
        """Λ₂ᵀXΛ₂ or Λ₂XΛ₂ᵀ of a symmetric X (K, K)."""
        return self._root(Ls, self._root(Ls, X, transpose).T, transpose)

    def _down(self, X1: Array) -> Array:
        """Z₂ᵀZ₁X for X (q₁, c, m₁): (K, c)."""
        data = self.data
        met = sum(v * x[:, data.entry_level] for v, x in zip(data.entry_value, X1, strict=True))
        return sum_by_segment(met[None], data.entry_column, self.K)[0].T

    def _up(self, X2: Array) -> Array:
        """Z₁ᵀZ₂X for X (K, c): (q₁, c, m₁)."""
        data, m = self.data, self.data.Z1W.shape[-1]
        met = X2.T[:, data.entry_column]
        rows = (data.entry_value[:, None] * met[None]).reshape(-1, met.shape[1])
        return jax.ops.segment_sum(rows.T, data.entry_level, m).T.reshape(self.q1, -1, m)

    def _per_level(self, T: Array, X1: Array) -> Array:
        """Per level of factor 1, T (q₁, q₁, P) of its pattern times X (q₁, c, m₁)."""
        return linalg.matmul(T[:, :, self.data.pattern], X1)

    # ---- verbs

    def solve(self, Ls: list[Array]) -> Solved:
        """log|V| and H: O(K³ + T) for T pair products."""
        data = self.data
        log_det, M, F = levels.eliminated(Ls[self.first], data.G)
        products = (M[linalg.tril(self.q1)][:, data.product_pattern] * data.product_value).sum(0)
        shared = jax.ops.segment_sum(products, self.pair, data.base.shape[0], indices_are_sorted=True)
        N = self._symmetric(data.base - shared)
        log_s, inverse = log_det_and_inverse(self._both_roots(Ls, N, True) + jnp.eye(self.K, dtype=N.dtype))
        W, MC = self._both_roots(Ls, inverse, False), self._per_level(M, data.Z1W)
        reduced = data.Z2W - self._down(MC)
        H = data.WtW - sum(a @ b.T for a, b in zip(data.Z1W, MC, strict=True)) - reduced.T @ (W @ reduced)
        U = linalg.matmul(data.G, F)
        return Solved((data.count * log_det).sum() + log_s, H, M, F, U, N, inverse, W, reduced)

    def project(self, s: Solved, A: Array) -> list[Array]:
        """ZᵀV⁻¹[X y]A per factor."""
        right = s.reduced @ A
        X = s.W @ right
        own = jnp.einsum("qwm,wc->qcm", self.data.Z1W, A) - self._up(X)
        return self._split(self._per_level(linalg.transpose(s.F), own), right - s.N @ X)

    def _split(self, X1: Array, X2: Array) -> list[Array]:
        """(q₁, c, m₁) and (K, c) as (q, c, m) per factor."""
        out: list[Any] = [None] * len(self.layout.sizes)
        out[self.first] = X1
        for j, rows in self.layout.dense_slices:
            out[j] = X2[rows].reshape(-1, self.layout.sizes[j], X2.shape[1]).transpose(1, 2, 0)
        return out

    def rooted_traces(self, s: Solved, Ls: list[Array]) -> list[Array]:
        """Σ over the levels of ZᵀV⁻¹Z, times L, (q, q) per factor; of the dense ones the blocks of NΛ₂S⁻¹."""
        out: list[Any] = [None] * len(self.layout.sizes)
        FRF = linalg.matmul(linalg.transpose(s.F), linalg.matmul(self._met_by_pattern(s.W), s.F))
        out[self.first] = (s.U * self.data.count - FRF).sum(-1) @ Ls[self.first]
        rooted = self._root(Ls, s.N, True)
        for j, rows in self.layout.dense_slices:
            left, right = (X[:, rows].reshape(self.K, -1, self.layout.sizes[j]) for X in (rooted, s.inverse))
            out[j] = jnp.einsum("kla,klb->ab", left, right)
        return out

    def _met_by_pattern(self, W: Array) -> Array:
        """(q₁, q₁, P): Σ over a pattern's levels of (Z₁ᵀZ₂)W(Z₂ᵀZ₁)."""
        data, (i, j) = self.data, linalg.tril(self.q1)
        twice = 2.0 - (data.pair_row == data.pair_column)
        at_pairs = (W[data.pair_row, data.pair_column] * twice)[self.pair]
        rows = data.product_value * at_pairs
        sums = jax.ops.segment_sum(rows.T, data.product_pattern, data.G.shape[-1]).T
        half = sums * jnp.where(i == j, 1.0, 0.5).astype(sums.dtype)[:, None]
        return jnp.zeros_like(data.G).at[i, j].set(half).at[j, i].set(half)

    def variances(self, s: Solved) -> list[Array]:
        """Var(b | y)/σ² with β fixed, (q, q, m) per factor; m₁K numbers and m₁K² operations."""
        data = self.data
        _check_memory(2 * self.q1 * data.Z1W.shape[-1] * self.K, "covariances of the random effects")
        out: list[Any] = [None] * len(self.layout.sizes)
        for j, rows in self.layout.dense_slices:
            out[j] = jnp.moveaxis(_diagonal_blocks(s.W[rows, rows], self.layout.sizes[j]), 0, 2)
        zero = jnp.zeros((self.q1, data.Z1W.shape[-1], self.K), s.W.dtype)
        met = zero.at[:, data.entry_level, data.entry_column].set(data.entry_value)
        around = jnp.stack([jnp.stack([((a @ s.W) * b).sum(1) for b in met]) for a in met])
        M = s.M[:, :, data.pattern]
        out[self.first] = M + linalg.matmul(M, linalg.matmul(around, M))
        return out


def _check_memory(numbers: float, what: str) -> None:
    check_memory(
        8.0 * numbers, MEMORY_LIMIT, f"{what} in JAX, where all are dense,", "fit NumPy arrays without backend='jax'"
    )


def _diagonal_blocks(X: Array, q: int) -> Array:
    """(m, q, q) diagonal blocks of X (mq, mq)."""
    at = jnp.arange(0, X.shape[0], q)[:, None, None]
    return X[at + np.arange(q)[:, None], at + np.arange(q)]
