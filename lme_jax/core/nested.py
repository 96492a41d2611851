"""The engine of nested chains: levels are eliminated from the inside out, O(levels) (MATH §5).

Eliminating the levels of the innermost factor leaves the next factor block diagonal, and so on. With G = ZᵀZ
and C = Zᵀ[Z of the ancestors, W] of a level as its children left them, Ψ = LLᵀ and W = [X y]:
    M = Ψ(I + GΨ)⁻¹,   F = I − MG,   [G C of the parents, WᵀV⁻¹W]  −=  Σ CᵀMC.
On the way back a column v of coefficients of the ancestors' effects and of W goes down as (−MCv; v), and
ZᵀV⁻¹W = FᵀCv. The joint covariance Γ of the ancestors' effects, given y, goes down as
    [[M + MCΓCᵀM, −MCΓ], [−ΓCᵀM, Γ]],    and    ZᵀV⁻¹Z = GF − FᵀCΓCᵀF   of a level.

The text is written once for NumPy and JAX arrays. Arrays run (q, columns, levels); levels are in the order of
``NestedData``.
"""

from typing import Any, NamedTuple

import numpy as np

from . import levels, linalg
from .crossed_data import Layout, NestedData
from .moments import GroupMoments
from .small import FURTHER_STARTS
from .types import Array, namespace

# Levels up to which a doubtful optimum is searched for again.
SEVERAL_STARTS = 10_000


def as_chain(moments: GroupMoments) -> NestedData:
    """One factor as a chain of one."""
    q, m = moments.ZtZ.shape[0], moments.ZtZ.shape[2]
    return NestedData(
        G=(moments.ZtZ,),
        C=(moments.ZtW,),
        parent=(),
        position=(np.arange(m, dtype=np.int32),),
        WtW=moments.WtW,
        n_rows=moments.n_rows,
        log_weights=moments.log_weights,
        basis=moments.basis,
        template=moments.template,
        layout=Layout((q,), (m,), (0,)),
    )


class Step(NamedTuple):
    """What a factor's levels were when they were eliminated: M, F, G (q, q, m) and C (q, w, m)."""

    M: Array
    F: Array
    G: Array
    C: Array


class Solved(NamedTuple):
    """log|V| (), H = [X y]ᵀV⁻¹[X y] (p+1, p+1), and the steps, innermost first."""

    log_det: Array
    H: Array
    steps: list[Step]


class Segments:
    """Sums over the levels below every ancestor: (…, m) → (…, number of ancestors)."""

    def __init__(self, ancestor: Array, n: int) -> None:
        self.of, self.n = ancestor, n
        if namespace(ancestor) is np and len(ancestor):
            self.starts = np.concatenate([[0], np.flatnonzero(ancestor[1:] != ancestor[:-1]) + 1])
            self.present = None if len(self.starts) == n else ancestor[self.starts]

    def sum(self, values: Array) -> Array:
        if type(values) is not np.ndarray or type(self.of) is not np.ndarray:
            from .crossed_rules import sum_by_segment

            return sum_by_segment(values, self.of, self.n)
        if self.starts is None:
            return values
        sums = np.add.reduceat(values, self.starts, axis=-1)
        if self.present is None:
            return sums
        out = np.zeros((*values.shape[:-1], self.n))
        out[..., self.present] = sums
        return out


class Nested:
    """The verbs of ``criterion.Engine`` for a chain of nested factors.

    Notes
    -----
    Every verb costs O(Σ m_j q_j w_j c) for c columns, w_j the width of what stands around factor j.
    """

    exact = False
    tighter = 1e-3

    def __init__(self, data: NestedData) -> None:
        self.data, self.layout = data, data.layout
        order = data.layout.order
        self.n_starts = FURTHER_STARTS if sum(data.layout.levels) <= SEVERAL_STARTS else 0
        self.sizes = [data.layout.sizes[j] for j in order]
        # Of every factor, a list of its ancestors: (their position in the order, which of them, where in C).
        self.around: list[list[tuple[int, Segments, slice]]] = []
        for at in range(len(order)):
            above, ancestor, lo = [], None, 0
            for up in range(at + 1, len(order)):
                ancestor = data.parent[at] if ancestor is None else data.parent[up - 1][ancestor]
                where = slice(lo, lo + self.sizes[up])
                above.append((up, Segments(ancestor, data.G[up].shape[-1]), where))
                lo += self.sizes[up]
            self.around.append(above)

    # ---- elimination

    def solve(self, Ls: list[Array]) -> Solved:
        """log|V|, H and the steps, for the caller's factors' L (q, q)."""
        data = self.data
        G, C, H = list(data.G), list(data.C), data.WtW
        log_v: Any = 0.0
        steps = []
        for at, j in enumerate(self.layout.order):
            log_det, M, F = levels.eliminated(Ls[j], G[at])
            c = C[at]
            MC = linalg.matmul(M, c)
            log_v = log_v + log_det.sum()
            steps.append(Step(M, F, G[at], c))
            for up, segments, here in self.around[at]:
                update = segments.sum(linalg.matmul(linalg.transpose(c[:, here]), MC[:, here.start :]))
                G[up] = G[up] - update[:, : self.sizes[up]]
                C[up] = C[up] - update[:, self.sizes[up] :]
            H = H - self.contract(self._own(at, c), self._own(at, MC))
        return Solved(log_v, H, steps)

    def _own(self, at: int, C: Array) -> Array:
        """The columns of W in C."""
        return C[:, sum(self.sizes[at + 1 :]) :]

    @staticmethod
    def contract(A: Array, B: Array) -> Array:
        """Σ over effects and levels of AᵀB for (q, c, m) and (q, d, m): (c, d)."""
        return sum(a @ b.T for a, b in zip(A, B, strict=True))

    # ---- verbs

    def project(self, solved: Solved, A: Array) -> list[Array]:
        """ZᵀV⁻¹WA per factor, (q, c, m), for A (p+1, c)."""
        rights = [A.T @ self._own(at, step.C) for at, step in enumerate(solved.steps)]
        return self._down(solved, rights, None)

    def _down(self, solved: Solved, rights: list[Array], effects: list[Array] | None) -> list[Array]:
        """Fᵀ(right − C(b − effects)) per factor, b = M(·) of the ancestors: right is Zᵀ(·)(q, c, m) of each factor."""
        b: list[Any] = [None] * len(rights)
        out: list[Any] = [None] * len(rights)
        for at in range(len(rights) - 1, -1, -1):
            M, F, _, C = solved.steps[at]
            free = rights[at]
            for up, segments, here in self.around[at]:
                above = b[up] if effects is None else b[up] - effects[up]
                free = free - linalg.matmul(C[:, here], above[:, :, segments.of])
            b[at] = linalg.matmul(M, free)
            out[self.layout.order[at]] = linalg.matmul(linalg.transpose(F), free)
        return out

    def apply(self, solved: Solved, Y: list[Array]) -> list[Array]:
        """ZᵀV⁻¹ZY per factor for Y per factor (q, c, m)."""
        order = self.layout.order
        inner: list[Any] = [0.0] * len(order)
        for at, j in enumerate(order):
            M, _, G, C = solved.steps[at]
            inner[at] = inner[at] + linalg.matmul(G, Y[j])
            pushed = Y[j] - linalg.matmul(M, inner[at])
            for up, segments, here in self.around[at]:
                inner[up] = inner[up] + segments.sum(linalg.matmul(linalg.transpose(C[:, here]), pushed))
        return self._down(solved, inner, [Y[j] for j in order])

    def traces(self, solved: Solved) -> list[Array]:
        """Σ over the levels of ZᵀV⁻¹Z (q, q), per factor."""
        out: list[Any] = [None] * len(self.sizes)
        for at, around in self._descend(solved):
            _, F, G, C = solved.steps[at]
            U = linalg.matmul(G, F).sum(-1)
            if around is not None:
                E = linalg.matmul(linalg.transpose(F), C[:, : around.shape[0]])
                U = U - self.contract(linalg.transpose(linalg.matmul(E, around)), linalg.transpose(E))
            out[self.layout.order[at]] = U
        return out

    def rooted_traces(self, solved: Solved, Ls: list[Array]) -> list[Array]:
        """The traces times L (q, q)."""
        return [U @ L for U, L in zip(self.traces(solved), Ls, strict=True)]

    def variances(self, solved: Solved) -> list[Array]:
        """Var(b | y)/σ² of every level with β fixed, (q, q, m) per factor."""
        out: list[Any] = [None] * len(self.sizes)
        for at, around in self._descend(solved):
            M, _, _, C = solved.steps[at]
            own = M
            if around is not None:
                MC = linalg.matmul(M, C[:, : around.shape[0]])
                own = M + linalg.matmul(linalg.matmul(MC, around), linalg.transpose(MC))
            out[self.layout.order[at]] = own
        return out

    def _descend(self, solved: Solved) -> Any:
        """(position, joint covariance Γ/σ² of a level's ancestors (w, w, m) or None), outermost first."""
        xp = namespace(solved.H)
        joint: Any = None
        for at in range(len(self.sizes) - 1, -1, -1):
            around = None if joint is None else joint[:, :, self.around[at][0][1].of]
            yield at, around
            if at == 0:
                return
            M, _, _, C = solved.steps[at]
            if around is None:
                joint = M
                continue
            MC = linalg.matmul(M, C[:, : around.shape[0]])
            across = -linalg.matmul(MC, around)
            own = M - linalg.matmul(across, linalg.transpose(MC))
            joint = xp.concatenate(
                [xp.concatenate([own, across], 1), xp.concatenate([linalg.transpose(across), around], 1)]
            )

    # ---- exact second derivatives

    def trace_products(self, solved: Solved, owner: tuple[int, ...], moves: list[Array]) -> Array:
        """tr(V⁻¹V_aV⁻¹V_b) (k, k) for moves Δ_a (q, q) of the factors ``owner``: minus what Δ_b changes in tr(Δ_aU)."""
        out = np.zeros((len(moves), len(moves)))
        for b, (j, move) in enumerate(zip(owner, moves, strict=True)):
            changed = self._moved_traces(solved, self.layout.order.index(j), move)
            for a, (i, other) in enumerate(zip(owner, moves, strict=True)):
                out[a, b] = -(other * changed[i]).sum()
        return 0.5 * (out + out.T)

    def _moved_traces(self, solved: Solved, moved: int, move: Array) -> list[Array]:
        """The derivative of ``traces`` as Ψ of the factor at position ``moved`` goes along ``move``."""
        tangents = self._moved_steps(solved, moved, move)
        out: list[Any] = [None] * len(self.sizes)
        d_joint: Any = None
        for at, around in self._descend(solved):
            M, F, G, C = solved.steps[at]
            dM, dF, dG, dC = tangents[at]
            change = linalg.matmul(dG, F).sum(-1) + linalg.matmul(G, dF).sum(-1)
            if around is not None:
                w = around.shape[0]
                d_around = d_joint[:, :, self.around[at][0][1].of]
                E = linalg.matmul(linalg.transpose(F), C[:, :w])
                dE = linalg.matmul(linalg.transpose(dF), C[:, :w]) + linalg.matmul(linalg.transpose(F), dC[:, :w])
                half = linalg.matmul(dE, around) + 0.5 * linalg.matmul(E, d_around)
                half = self.contract(linalg.transpose(half), linalg.transpose(E))
                change = change - half - half.T
                MC, dMC = linalg.matmul(M, C[:, :w]), linalg.matmul(dM, C[:, :w]) + linalg.matmul(M, dC[:, :w])
                across = linalg.matmul(MC, around)
                d_across = linalg.matmul(dMC, around) + linalg.matmul(MC, d_around)
                d_own = (
                    dM + linalg.matmul(d_across, linalg.transpose(MC)) + linalg.matmul(across, linalg.transpose(dMC))
                )
                d_joint = np.concatenate(
                    [np.concatenate([d_own, -d_across], 1), np.concatenate([-linalg.transpose(d_across), d_around], 1)]
                )
            else:
                d_joint = dM
            out[self.layout.order[at]] = change
        return out

    def _moved_steps(self, solved: Solved, moved: int, move: Array) -> list[Step]:
        """The derivatives of the steps, with C over the ancestors alone."""
        dG = [np.zeros_like(step.G) for step in solved.steps]
        dC = [np.zeros_like(step.C[:, : sum(self.sizes[at + 1 :])]) for at, step in enumerate(solved.steps)]
        out = []
        for at, (M, F, G, C) in enumerate(solved.steps):
            w = dC[at].shape[1]
            if at == moved:
                step = np.broadcast_to(move[:, :, None], M.shape)
                dM = linalg.matmul(linalg.matmul(F, step), linalg.transpose(F))
            else:
                dM = -linalg.matmul(linalg.matmul(M, dG[at]), M)
            out.append(Step(dM, -linalg.matmul(dM, G) - linalg.matmul(M, dG[at]), dG[at], dC[at]))
            if at < moved or w == 0:
                continue
            half = linalg.matmul(M, dC[at]) + 0.5 * linalg.matmul(dM, C[:, :w])
            for up, segments, here in self.around[at]:
                rest = slice(here.start, w)
                update = linalg.matmul(linalg.transpose(C[:, here]), half[:, rest])
                update = segments.sum(update + linalg.matmul(linalg.transpose(half[:, here]), C[:, rest]))
                dG[up] = dG[up] - update[:, : self.sizes[up]]
                dC[up] = dC[up] - update[:, self.sizes[up] :]
        return out
