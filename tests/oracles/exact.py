"""The profiled residual sum of squares of one factor in 60-digit decimal arithmetic, taking the doubles as they are."""

from decimal import Decimal, localcontext

import numpy as np

DIGITS = 60


def rss(y, X, Z, codes, L, weights=None):
    """rᵀV⁻¹r at the generalised least squares, V = W⁻¹ + Z(I ⊗ LLᵀ)Zᵀ, as a Decimal."""
    with localcontext() as context:
        context.prec = DIGITS
        root = _decimals(L)
        Psi = _product(root, _transposed(root))
        rows = _decimals(np.column_stack([Z, X, y]))
        w = [Decimal(1)] * len(y) if weights is None else [Decimal(float(a)) for a in weights]
        q = Z.shape[1]
        H = None
        for level in np.unique(codes):
            own = np.flatnonzero(codes == level)
            scaled = _transposed([[w[i] * a for a in rows[i]] for i in own])
            S = _product(scaled, [rows[i] for i in own])
            G, C, WtW = [r[:q] for r in S[:q]], [r[q:] for r in S[:q]], [r[q:] for r in S[q:]]
            M = [[(i == j) + a for j, a in enumerate(row)] for i, row in enumerate(_product(G, Psi))]
            explained = _product(_transposed(C), _product(Psi, _solve(M, C)))
            left = [[a - b for a, b in zip(*both, strict=True)] for both in zip(WtW, explained, strict=True)]
            H = (
                left
                if H is None
                else [[a + b for a, b in zip(*both, strict=True)] for both in zip(H, left, strict=True)]
            )
        XX, Xy = [row[:-1] for row in H[:-1]], [row[-1:] for row in H[:-1]]
        return H[-1][-1] - _product(_transposed(Xy), _solve(XX, Xy))[0][0]


def relative_error(value, exact):
    with localcontext() as context:
        context.prec = DIGITS
        return abs(float((Decimal(float(value)) - exact) / exact))


def _decimals(matrix):
    return [[Decimal(float(a)) for a in row] for row in matrix]


def _transposed(A):
    return [list(column) for column in zip(*A, strict=True)]


def _product(A, B):
    by_column = _transposed(B)
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in by_column] for row in A]


def _solve(M, B):
    """M⁻¹B by Gauss–Jordan elimination with pivoting."""
    n = len(M)
    A = [[*m, *b] for m, b in zip(M, B, strict=True)]
    for j in range(n):
        best = max(range(j, n), key=lambda i: abs(A[i][j]))
        A[j], A[best] = A[best], A[j]
        for i in range(n):
            if i != j:
                share = A[i][j] / A[j][j]
                A[i] = [a - share * b for a, b in zip(A[i], A[j], strict=True)]
    return [[a / row[i] for a in row[n:]] for i, row in enumerate(A)]
