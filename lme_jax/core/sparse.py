"""The engine of crossed designs whose smaller factors meet in few pairs of levels: ``dense`` with S by fronts.

Of S⁻¹ only the listed pairs and the diagonal are ever formed; they are all that traces and variances read. Second
derivatives of log|V| need all of S⁻¹, so the closed-form traces are differenced instead.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import fronts
from .crossed_data import CrossedData
from .dense import NEARLY_SINGULAR, Dense, Solved

# Sixth-order central differences, in steps relative to Ψ: an error of some 1e-10.
STEP = 0.01
STENCIL = ((1, 0.75), (2, -0.15), (3, 1.0 / 60.0))
COLUMNS_AT_ONCE = 128


class SparseSolved(Solved):
    """``dense.Solved`` with the factor of S by fronts, and S⁻¹ at the plan's pairs once it was asked for."""

    def __init__(self, Ls: list[np.ndarray], data: CrossedData, plan: fronts.Plan) -> None:
        super().__init__(Ls, data)
        self.plan = plan
        self.selected: Any = None

    def solve(self, R: np.ndarray) -> np.ndarray:
        return fronts.solve(self.plan, self.matrix, R)

    def at_pairs(self) -> np.ndarray:
        if self.selected is None:
            self.selected = fronts.selected_inverse(self.plan, self.matrix)
        return self.selected


class Sparse(Dense):
    """The verbs of ``criterion.Engine``; every factor but the first has one effect per level."""

    def __init__(self, data: CrossedData, plan: fronts.Plan) -> None:
        super().__init__(data)
        self.plan = plan
        row, column, N = data.pair_row, data.pair_column, len(data.base)
        on_diagonal = np.flatnonzero(row == column)
        # The plan lists the diagonal of effects that no row has after the pairs.
        self.diagonal = np.arange(N, N + self.K - len(on_diagonal))
        absent = np.setdiff1d(np.arange(self.K), row[on_diagonal])
        place = np.empty(self.K, np.int64)
        place[row[on_diagonal]], place[absent] = on_diagonal, self.diagonal
        self.diagonal = place
        self.keys = row.astype(np.int64) * self.K + column
        self.n_values = N + len(absent)

    def begun(self, Ls: list[np.ndarray]) -> Solved:
        return SparseSolved(Ls, self.data, self.plan)

    def _factor(self, s: Any) -> bool:
        scale, values = self._scale_vector(s.Ls), np.zeros(self.n_values)
        values[: len(s.N)] = s.N * scale[self.data.pair_row] * scale[self.data.pair_column]
        values[self.diagonal] += 1.0
        s.matrix = fronts.factor(self.plan, values)
        if s.matrix is None:
            return False
        s.log_det_rest = s.matrix.log_det
        return True

    def _inverse_at_pairs(self, s: Any) -> np.ndarray:
        scale, row, column = self._scale_vector(s.Ls), self.data.pair_row, self.data.pair_column
        return s.at_pairs()[: len(row)] * scale[row] * scale[column] * (2.0 - (row == column))

    def _dense_trace(self, s: Any, j: int, rows: slice) -> np.ndarray:
        size = s.Ls[j][0, 0]
        if abs(size) > NEARLY_SINGULAR:
            return np.array([[np.sum(1.0 - s.at_pairs()[self.diagonal[rows]]) / size**2]])
        total = 0.0
        for lo in range(rows.start, rows.stop, COLUMNS_AT_ONCE):
            N, half, right = self._reached(s, slice(lo, min(lo + COLUMNS_AT_ONCE, rows.stop)))
            total += N[lo : lo + N.shape[1]].trace() - np.sum(half * right)
        return np.array([[total]])

    def variances(self, s: Any) -> list[np.ndarray]:
        out: list[Any] = [None] * len(self.layout.sizes)
        for j, rows in self.layout.dense_slices:
            out[j] = (s.Ls[j][0, 0] ** 2 * s.at_pairs()[self.diagonal[rows]])[None, None]
        out[self.first] = np.moveaxis(self._first_variances(s), 0, 2)
        return out

    def _blocks_of_inverse(self, s: Any) -> Callable[[np.ndarray], np.ndarray]:
        scale, values = self._scale_vector(s.Ls), s.at_pairs()

        def block_of(columns: np.ndarray) -> np.ndarray:
            a, b = columns[:, :, None].astype(np.int64), columns[:, None, :].astype(np.int64)
            place = np.searchsorted(self.keys, np.maximum(a, b) * self.K + np.minimum(a, b))
            return values[place] * scale[a] * scale[b]

        return block_of

    def trace_products(self, s: Any, owner: tuple[int, ...], moves: list[np.ndarray]) -> np.ndarray:
        """tr(V⁻¹V_aV⁻¹V_b) (k, k), to some ten digits, at 6 evaluations per parameter; no L may be singular."""
        k = len(moves)
        out = np.zeros((k, k))
        for b, (j, move) in enumerate(zip(owner, moves, strict=True)):
            left = np.linalg.inv(s.Ls[j])
            step = STEP / np.linalg.norm(left @ move @ left.T, 2)
            for times, weight in STENCIL:
                ahead = self._traces_at(s.Ls, j, times * step * move)
                behind = self._traces_at(s.Ls, j, -times * step * move)
                change = [(x - y) * (weight / step) for x, y in zip(ahead, behind, strict=True)]
                out[:, b] -= [np.sum(moves[a] * change[i]) for a, i in enumerate(owner)]
        return 0.5 * (out + out.T)

    def _traces_at(self, Ls: list[np.ndarray], j: int, delta: np.ndarray) -> list[np.ndarray]:
        """``traces`` with Ψ_j + Δ."""
        moved = [*Ls[:j], np.linalg.cholesky(Ls[j] @ Ls[j].T + delta), *Ls[j + 1 :]]
        solved = self.solve(moved)
        if solved is None:
            raise np.linalg.LinAlgError("V is not positive definite beside a point where it is")
        return self.traces(solved)
