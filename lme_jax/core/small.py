"""The engine of small designs of any kind: all effects as one dense system, in a dozen calls of LAPACK.

With A = ZᵀZ, B = ZᵀW over all K effects and I + ΛᵀAΛ = KKᵀ, the one matrix P = K⁻¹Λᵀ[A B] gives
    ZᵀV⁻¹Z = A − PₐᵀPₐ,   ZᵀV⁻¹W = B − PₐᵀP_b,   WᵀV⁻¹W = WᵀW − P_bᵀP_b.
It costs (4/3)K³, which up to some hundred effects is less than an engine that knows the zeros spends on
calling NumPy.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import lapack

from .crossed_data import CrossedData, NestedData

# Effects of all factors up to which this engine is the quickest.
SMALL = 64
# Times that a search begins again where its end is in doubt.
FURTHER_STARTS = 3


class Solved(NamedTuple):
    """log|V|, H (p+1, p+1), ZᵀV⁻¹[Z W] (K, K + p + 1), and K⁻¹ with the L's, which give Var(b | y)."""

    log_det: Any
    H: np.ndarray
    reached: np.ndarray
    inverse: np.ndarray
    Ls: list[np.ndarray]


class Small:
    """The verbs of ``criterion.Engine``; effects stand factor by factor, within a factor effect by effect."""

    exact = True
    n_starts = FURTHER_STARTS
    tighter = 1.0

    def __init__(self, data: CrossedData | NestedData) -> None:
        layout = data.layout
        self.shapes = list(zip(layout.sizes, layout.levels, strict=True))
        ends = np.cumsum([q * m for q, m in self.shapes])
        self.spans = [slice(int(end) - q * m, int(end)) for end, (q, m) in zip(ends, self.shapes, strict=True)]
        self.K = int(ends[-1])
        width = self.K + len(data.WtW)
        self.moments = np.zeros((width, width))
        if isinstance(data, NestedData):
            _fill_nested(data, self.moments, self.spans, self.shapes)
        else:
            _fill_crossed(data, self.moments, self.spans, self.shapes)
        below = np.tril(self.moments, -1)
        self.moments = np.tril(self.moments) + below.T
        self.moments[self.K :, self.K :] = data.WtW
        self.scalar = all(q == 1 for q, _ in self.shapes)
        self.factor_of = np.repeat(np.arange(len(self.shapes)), [q * m for q, m in self.shapes])

    # ---- verbs

    def solve(self, Ls: list[np.ndarray]) -> Solved | None:
        """log|V|, H and all the rest of V⁻¹ that is ever asked for."""
        K = self.K
        if self.scalar:
            scale = np.array([L[0, 0] for L in Ls])[self.factor_of]
            right = scale[:, None] * self.moments[:K]
            S = right[:, :K] * scale
        else:
            right = self._times_root(Ls, self.moments[:K])
            S = self._times_root(Ls, right[:, :K].T)
        S.reshape(-1)[:: K + 1] += 1.0
        # The transpose of a C array is what Fortran takes without a copy.
        root, info = lapack.dpotrf(S.T, lower=1, overwrite_a=1)
        if info != 0:
            return None
        log_det = 2.0 * np.log(root.diagonal()).sum()
        # Not a triangular solve: OpenBLAS wakes its threads for it, which takes longer than all the rest.
        inverse = lapack.dtrtri(root, lower=1, overwrite_c=1)[0]
        P = inverse @ right
        left = self.moments - P.T @ P
        return Solved(log_det, left[K:, K:], left[:K], inverse, Ls)

    def _times_root(self, Ls: list[np.ndarray], X: np.ndarray) -> np.ndarray:
        """ΛᵀX."""
        out = np.empty(X.shape)
        for L, span, (q, m) in zip(Ls, self.spans, self.shapes, strict=True):
            out[span] = (L.T @ X[span].reshape(q, -1)).reshape(q * m, -1)
        return out

    def _split(self, X: np.ndarray) -> list[np.ndarray]:
        """(K, c) → (q, c, m) per factor."""
        blocks = zip(self.spans, self.shapes, strict=True)
        return [X[span].reshape(q, m, -1).swapaxes(1, 2) for span, (q, m) in blocks]

    def project(self, solved: Solved, A: np.ndarray) -> list[np.ndarray]:
        """ZᵀV⁻¹[X y]A per factor."""
        return self._split(solved.reached[:, self.K :] @ A)

    def apply(self, solved: Solved, Y: list[np.ndarray]) -> list[np.ndarray]:
        """ZᵀV⁻¹ZY per factor."""
        whole = np.concatenate([y.swapaxes(1, 2).reshape(-1, y.shape[1]) for y in Y])
        return self._split(solved.reached[:, : self.K] @ whole)

    def traces(self, solved: Solved) -> list[np.ndarray]:
        """Σ over the levels of ZᵀV⁻¹Z (q, q), per factor."""
        U = solved.reached
        return [
            U[span, span].trace().reshape(1, 1) if q == 1 else np.einsum("imjm->ij", U[span, span].reshape(q, m, q, m))
            for span, (q, m) in zip(self.spans, self.shapes, strict=True)
        ]

    def variances(self, solved: Solved) -> list[np.ndarray]:
        """Var(b | y)/σ² with β fixed, (q, q, m) per factor."""
        out = []
        for L, span, (q, m) in zip(solved.Ls, self.spans, self.shapes, strict=True):
            unit = np.zeros((self.K, q * m))
            unit[span] = np.kron(L.T, np.eye(m))
            half = (solved.inverse @ unit).reshape(-1, q, m)
            out.append(np.einsum("kim,kjm->ijm", half, half))
        return out

    def trace_products(self, solved: Solved, owner: tuple[int, ...], moves: list[np.ndarray]) -> np.ndarray:
        """tr(V⁻¹V_aV⁻¹V_b) (k, k)."""
        U, k = solved.reached, len(moves)
        out = np.empty((k, k))
        gram: dict[tuple[int, int], np.ndarray] = {}
        for j, (q, m) in enumerate(self.shapes):
            for i, (r, n) in enumerate(self.shapes[: j + 1]):
                block = U[self.spans[j], self.spans[i]].reshape(q, m, r, n).swapaxes(1, 2).reshape(q * r, -1)
                gram[j, i] = (block @ block.T).reshape(q, r, q, r)
        for a, (j, left) in enumerate(zip(owner, moves, strict=True)):
            for b, (i, right) in enumerate(zip(owner[: a + 1], moves[: a + 1], strict=True)):
                # Σ Δ_sr U_rt Δ_tu U_su
                pairs = gram[j, i] if j >= i else gram[i, j].transpose(1, 0, 3, 2)
                value = left[0, 0] * right[0, 0] * pairs[0, 0, 0, 0] if pairs.size == 1 else _both(pairs, left, right)
                out[a, b] = out[b, a] = value
        return out


def _both(pairs: np.ndarray, left: np.ndarray, right: np.ndarray) -> Any:
    """Σ Δ_sr G_rt,su E_tu for G (q, r, q, r)."""
    return (np.tensordot(left, pairs, ([1, 0], [0, 2])) * right).sum()


# ---------------------------------------------------------------- the dense moments


def _put(out: np.ndarray, row: np.ndarray, column: np.ndarray, value: np.ndarray) -> None:
    """Entries of a symmetric matrix, into its lower triangle."""
    out[np.maximum(row, column), np.minimum(row, column)] = value


def _fill_nested(data: NestedData, out: np.ndarray, spans: list[slice], shapes: list[tuple[int, int]]) -> None:
    """ZᵀZ and WᵀZ of a chain, in the lower triangle."""
    order = data.layout.order
    K = spans[-1].stop

    for at, j in enumerate(order):
        q, m = shapes[j]
        where = spans[j].start + np.arange(q * m).reshape(q, m)
        _put(out, where[:, None], where[None], data.G[at])
        lo, ancestor = 0, np.arange(m)
        for up in range(at + 1, len(order)):
            r, n = shapes[order[up]]
            ancestor = data.parent[up - 1][ancestor]
            above = spans[order[up]].start + np.arange(r * n).reshape(r, n)[:, ancestor]
            _put(out, where[:, None], above[None], data.C[at][:, lo : lo + r])
            lo += r
        rows = K + np.arange(len(data.WtW))
        _put(out, where[:, None], rows[None, :, None], data.C[at][:, lo:])


def _fill_crossed(data: CrossedData, out: np.ndarray, spans: list[slice], shapes: list[tuple[int, int]]) -> None:
    """ZᵀZ and WᵀZ of a crossed design, in the lower triangle."""
    layout, K = data.layout, spans[-1].stop
    first = layout.order[0]
    q, m = shapes[first]
    own = spans[first].start + np.arange(q * m).reshape(q, m)
    # Where the columns of the dense system, which stand level by level, stand here.
    others = [
        spans[j].start + np.arange(shapes[j][0] * shapes[j][1]).reshape(shapes[j]).T.reshape(-1)
        for j, _ in layout.dense_slices
    ]
    place = np.concatenate(others) if others else np.zeros(0, int)

    _put(out, own[:, None], own[None], data.G[:, :, data.pattern])
    _put(out, place[data.pair_row], place[data.pair_column], data.base)
    _put(out, own[:, data.entry_level], place[data.entry_column][None], data.entry_value)
    W = K + np.arange(len(data.WtW))
    _put(out, own[:, None], W[None, :, None], data.Z1W)
    _put(out, place[:, None], W[None], data.Z2W)
