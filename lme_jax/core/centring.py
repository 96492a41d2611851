"""The search of one factor in columns of Z that are nearly orthogonal, where the user's are nearly collinear.

An unstructured covariance is as well told of Z' = ZN as of Z: b = Nb', L = NL', and with N lower triangular θ = Mθ'.
So a covariate far from zero (a date, a pressure) asks for no more evaluations than a centred one; NumPy.
"""

import dataclasses

import numpy as np

from . import levels, linalg
from .covariance import Template, n_theta
from .moments import GroupData
from .optimize import NewtonState
from .structures import entry

# The least part of a column's square that those after it may leave before the columns are told apart.
COLLINEAR = 0.05


def mixing(data: GroupData) -> np.ndarray | None:
    """N (q, q), lower triangular, or None where Z may stay as it is."""
    total = data.moments.ZtZ.sum(-1)
    N, lo, needed = np.eye(len(total)), 0, False
    for block in data.template:
        here = slice(lo, lo + block.size)
        lo += block.size
        P = total[here, here]
        if not entry(block).free or block.size == 1 or not (np.diag(P) > 0).all():
            continue
        R = np.zeros_like(P)
        R[linalg.tril(block.size)] = levels.root(P)
        left = np.diag(R) ** 2 / np.diag(P)
        if left.min() > 0 and left.min() < COLLINEAR:
            N[here, here], needed = linalg.inverse_lower(R) * np.sqrt(np.diag(P)), True
    return N if needed else None


def mixed(data: GroupData, N: np.ndarray) -> GroupData:
    """The same model told of ZN: for a search, whose end is to be ``restored``."""
    R = np.zeros((*N.shape, data.R.shape[-1]))
    R[linalg.tril(len(N))] = data.R
    R = np.einsum("abg,bc->acg", R, N)[linalg.tril(len(N))]
    lower = levels.unpack_lower(R)
    G, C = levels.stacked(levels.squared(lower)), np.stack(levels.carried(lower, data.c))
    return dataclasses.replace(data, G=G, C=C, R=R)


def theta_map(template: Template, N: np.ndarray) -> np.ndarray:
    """M (k, k) with θ = Mθ'."""
    M, at, lo = np.eye(n_theta(template)), 0, 0
    for block in template:
        if entry(block).free:
            for i, j in levels.pairs(block.size):
                for m in range(j, i + 1):
                    M[at + i * (i + 1) // 2 + j, at + m * (m + 1) // 2 + j] = N[lo + i, lo + m]
        at, lo = at + block.n_theta, lo + block.size
    return M


def restored(found: NewtonState, M: np.ndarray) -> NewtonState:
    """The end of a search over θ' in θ."""
    inverse = np.linalg.inv(M)
    aux = found.aux._replace(log_scale_slope=inverse.T @ found.aux.log_scale_slope)
    hessian = inverse.T @ found.hessian @ inverse
    return found._replace(x=M @ found.x, gradient=inverse.T @ found.gradient, hessian=hessian, aux=aux)
