"""The engine of sparsely crossed designs: ``dense``'s algebra, with S factored by fronts on the pattern of its blocks.

S⁻¹ is known on the pattern only. Its blocks there give every sum over levels: with W = Λ₂S⁻¹Λ₂ᵀ those of factor 1,
and for a factor j of the system, two forms of the same,
    L_jᵀ Σ U_ll L_j = Σ (I − S⁻¹_ll)   and   Σ U_ll L_j = Σ_l Σ_k N_lk L_k S⁻¹_kl,
the first where LᵀNL is large, the second where it is small. The root of Ψ_j is taken with orthogonal columns, none
shorter than 1e-8, so that each column's numbers are right relative to its own length: a singular L needs nothing more.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import dense, fronts, pattern
from .crossed_data import CrossedData

# The length of a root's column where Ψ is singular: 1e-16 in Ψ, which no digit shows.
SHORTEST = 1e-8
# Moves of Ψ for differences of the traces, relative to the distance from their nearest pole.
STEP = 2e-3


class Solved(dense.Solved):
    """``dense.Solved`` with a factor by fronts.

    Attributes
    ----------
    blocks : (T,) N on the pattern; inverse : (T,) S⁻¹, once it was asked for.
    own : L (q, q) per factor, where ``Ls`` are the roots with orthogonal columns.
    """

    def __init__(self, Ls: list[np.ndarray], data: CrossedData, met: pattern.Pattern) -> None:
        first = data.layout.order[0]
        super().__init__([L if j == first else _rooted(L)[0] for j, L in enumerate(Ls)], data)
        self.own, self.met = Ls, met
        self.blocks: Any = None
        self.factor: Any = None
        self.inverse: Any = None

    def solve(self, R: np.ndarray) -> np.ndarray:
        """S⁻¹R for R (K, c)."""
        return fronts.solve(self.met.plan, self.factor, R)

    def selected(self) -> np.ndarray:
        """S⁻¹ (T,) on the pattern."""
        if self.inverse is None:
            self.inverse = fronts.selected_inverse(self.met.plan, self.factor)[self.met.source]
        return self.inverse


class Sparse(dense.Dense):
    """The verbs of ``criterion.Engine`` for a sparsely crossed design."""

    def __init__(self, data: CrossedData, met: pattern.Pattern) -> None:
        super().__init__(data)
        self.met = met

    # ---- blocks

    def _of(self, group: pattern.Group, values: np.ndarray) -> np.ndarray:
        q, r = self.layout.sizes[group.i], self.layout.sizes[group.j]
        return values[group.span].reshape(-1, q, r)

    def _between(self, left: list[np.ndarray], values: np.ndarray) -> np.ndarray:
        """A_iB A_jᵀ of every block (T,)."""
        out = np.empty(len(values))
        for group in self.met.groups:
            A, B, block = left[group.i], left[group.j], self._of(group, values)
            out[group.span] = (A[0, 0] * B[0, 0] * block if A.size == B.size == 1 else A @ block @ B.T).ravel()
        return out

    def _on_pattern(self, values: np.ndarray) -> np.ndarray:
        """The blocks (T,) of the symmetric matrix with these values at the listed pairs."""
        out = np.zeros(len(self.met.source))
        out[self.met.pair] = values
        return out[self.met.lower][self.met.source]

    # ---- verbs

    def begun(self, Ls: list[np.ndarray]) -> Solved:
        return Solved(Ls, self.data, self.met)

    def _factor(self, s: Any) -> bool:
        s.blocks = self._on_pattern(s.N)
        S = self._between([L.T for L in s.Ls], s.blocks)[self.met.lower]
        S[self.met.diagonal] += 1.0
        s.factor = fronts.factor(self.met.plan, S)
        if s.factor is None:
            return False
        s.log_det_rest = s.factor.log_det
        return True

    def traces(self, s: Any) -> list[np.ndarray]:
        """Σ over the levels of ZᵀV⁻¹Z (q, q), per factor: one selected inverse, and O(T)."""
        out: list[Any] = [None] * len(self.layout.sizes)
        R = s.adjoint = self._pair_adjoint(s)
        out[self.first] = s.U @ self.data.count - dense._conjugated(s.F, R).sum(-1)
        sums = self._reached_sums(s)
        for j, _ in self.layout.dense_slices:
            out[j] = self._trace(s, j, *sums[j])
        return out

    def variances(self, s: Any) -> list[np.ndarray]:
        """Var(b | y)/σ² with β fixed, (q, q, m) per factor."""
        W = self._between(s.Ls, s.selected())
        out: list[Any] = [None] * len(self.layout.sizes)
        for j, _ in self.layout.dense_slices:
            group, own = self._own(j)
            block = self._of(group, W)[own]
            out[j] = np.moveaxis(block[np.argsort(group.row[own])], 0, 2)
        out[self.first] = np.moveaxis(self._first_variances(s), 0, 2)
        return out

    def _blocks_of_inverse(self, s: Any) -> Callable[[np.ndarray], np.ndarray]:
        at = self._between(s.Ls, s.selected())[self.met.lower]
        return lambda columns: at[pattern.lookup(self.met, columns[:, :, None], columns[:, None, :], self.K)]

    # ---- traces

    def _own(self, j: int) -> tuple[pattern.Group, np.ndarray]:
        """The blocks of a factor with itself, and which of them are of one level."""
        group = next(g for g in self.met.groups if g.i == g.j == j)
        return group, np.flatnonzero(group.row == group.column)

    def _inverse_at_pairs(self, s: Any) -> np.ndarray:
        twice = 2.0 - (self.data.pair_row == self.data.pair_column)
        return self._between(s.Ls, s.selected())[self.met.pair] * twice

    def _reached_sums(self, s: Any) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Per factor Σ_l Σ_k N_lk L_k S⁻¹_kl and the mean N_ll over its levels (q, q)."""
        inverse = s.selected()
        out = {}
        for j, _ in self.layout.dense_slices:
            group, own = self._own(j)
            q = self.layout.sizes[j]
            out[j] = (np.zeros((q, q)), self._of(group, s.blocks)[own].mean(0))
        for group in self.met.groups:
            N, Z = self._of(group, s.blocks), self._of(group, inverse)
            out[group.j][0][:] += np.tensordot(N, s.Ls[group.i] @ Z, ([0, 1], [0, 1]))
            two = slice(None) if group.i != group.j else np.flatnonzero(group.row != group.column)
            out[group.i][0][:] += np.tensordot(N[two], Z[two] @ s.Ls[group.j].T, ([0, 2], [0, 2]))
        return out

    def _trace(self, s: Any, j: int, reached: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Σ_l U_ll (q, q) of a factor of the system."""
        P, length = _rooted(s.own[j])[1:]
        group, own = self._own(j)
        q, m = self.layout.sizes[j], self.layout.levels[j]
        both = np.outer(length, length)
        large = (m * np.eye(q) - self._of(group, s.selected())[own].sum(0)) / both
        small = P.T @ reached / length
        small = np.where(length[None] >= length[:, None], small, small.T)
        return P @ np.where(both * np.diagonal(mean).max() > 0.1, large, small) @ P.T

    # ---- exact second derivatives

    def trace_products(self, s: Any, owner: tuple[int, ...], moves: list[np.ndarray]) -> np.ndarray:
        """tr(V⁻¹V_aV⁻¹V_b) (k, k), from differences of the traces: 4 evaluations per parameter, 10 digits.

        A move of Ψ that no move of its root gives, from a singular Ψ into its null space, goes column by column.
        """
        k = len(moves)
        steps = [_root_move(s.own[j], move) for j, move in zip(owner, moves, strict=True)]
        whole = {j for j, step in zip(owner, steps, strict=True) if step is None}
        out = np.zeros((k, k))
        for b, step in enumerate(steps):
            if step is not None and owner[b] not in whole and step.any():
                change = self._trace_change(s, owner[b], step)
                out[:, b] = [-np.sum(move * change[j]) for j, move in zip(owner, moves, strict=True)]
        out = 0.5 * (out + out.T)
        for j in whole:
            products = np.zeros((k, k))
            self._column_products(s, j, owner, moves, products)
            mine = [b for b in range(k) if owner[b] == j]
            out[mine], out[:, mine] = products[mine], products[:, mine]
        return out

    def _trace_change(self, s: Any, j: int, step: np.ndarray) -> list[np.ndarray]:
        """The derivative of the traces along a move of L_j."""
        group = None if j == self.first else self._own(j)
        most = self.data.G.max() if group is None else self._of(group[0], s.blocks)[group[1]].max()
        L = s.own[j]
        nearest = np.sqrt(np.linalg.svd(L, compute_uv=False).min() ** 2 + 1.0 / max(float(most), 1.0))
        h = STEP * nearest / np.linalg.norm(step, 2)

        def at(t: float) -> list[np.ndarray]:
            moved = self.solve([L + t * h * step if i == j else other for i, other in enumerate(s.own)])
            assert moved is not None
            return self.traces(moved)

        a, b, c, d = at(1.0), at(-1.0), at(2.0), at(-2.0)
        return [(8.0 * (w - x) - (y - z)) / (12.0 * h) for w, x, y, z in zip(a, b, c, d, strict=True)]


def _rooted(L: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A root PΣ of LLᵀ with orthogonal columns, P (q, q) and their lengths (q,)."""
    P, length, _ = np.linalg.svd(L)
    length = np.maximum(length, SHORTEST)
    return P * length, P, length


def _root_move(L: np.ndarray, move: np.ndarray) -> np.ndarray | None:
    """The least dL with dL Lᵀ + L dLᵀ = move, or None where there is none."""
    P, length, Qt = np.linalg.svd(L)
    inside = P.T @ move @ P
    size = length[:, None] ** 2 + length[None] ** 2
    some = size > SHORTEST**2
    step = np.where(some, inside * length[None] / np.where(some, size, 1.0), 0.0)
    back = step * length[None]
    if np.abs(back + back.T - inside).max() > 1e-10 * np.abs(move).max():
        return None
    return P @ step @ Qt
