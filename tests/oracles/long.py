"""Cholesky, triangular solves and Householder reflections in any float type: what LAPACK lacks in long double."""

import numpy as np

LONG = np.longdouble


def cholesky(V):
    """Lower root of a positive-definite matrix."""
    V = V.copy()
    for j in range(len(V)):
        V[j:, j] /= np.sqrt(V[j, j])
        V[j + 1 :, j + 1 :] -= np.outer(V[j + 1 :, j], V[j + 1 :, j])
    return np.tril(V)


def solve_upper(R, b):
    """R⁻¹b."""
    x = b.copy()
    for i in range(len(R) - 1, -1, -1):
        x[i] = (x[i] - R[i, i + 1 :] @ x[i + 1 :]) / R[i, i]
    return x


def solve_lower(K, b):
    """K⁻¹b."""
    return solve_upper(K[::-1, ::-1], b[::-1])[::-1]


def reflect(A, columns):
    """Upper triangle of A's first columns by Householder reflections, applied to all of A."""
    A = A.copy()
    for j in range(min(columns, len(A) - 1)):
        v = A[j:, j].copy()
        size = np.sqrt((v * v).sum())
        if size == 0:
            continue
        v[0] += np.copysign(size, v[0])
        A[j:] -= np.outer(v, (v @ A[j:]) * (2 / (v @ v)))
        A[j + 1 :, j] = 0
    return A


def big_rows_first(A):
    """Rows by falling size: then Householder reflections are stable row by row."""
    return A[np.argsort(-np.abs(A).max(1), kind="stable")]
