"""Ψ of every covariance structure, written out entry by entry from what the documentation says of θ."""

import numpy as np


def autocorrelations(partial):
    """Lags 0 … n from partial autocorrelations, each lag by the equation that defines its partial one."""
    r = [1.0]
    for k, wanted in enumerate(partial, start=1):
        if k == 1:
            r.append(wanted)
            continue
        R = np.array([[r[abs(i - j)] for j in range(k - 1)] for i in range(k - 1)])
        ahead, behind = np.array(r[1:k]), np.array(r[1:k][::-1])
        inverse = np.linalg.pinv(R, rcond=1e-12)
        r.append(ahead @ inverse @ behind + wanted * (1.0 - ahead @ inverse @ ahead))
    return np.array(r)


def correlation(name, phi, block):
    """R written out entry by entry."""
    q = block.size
    R = np.eye(q)
    lags = autocorrelations(np.sin(phi)) if name.endswith("toeplitz") else None
    for i in range(q):
        for j in range(q):
            if i == j:
                continue
            if name.endswith("ar1"):
                R[i, j] = np.sin(phi[0]) ** abs(i - j)
            elif name.endswith("toeplitz"):
                R[i, j] = lags[abs(i - j)]
            elif name.endswith("compound_symmetry"):
                R[i, j] = np.sin(phi[0]) ** 2 - np.cos(phi[0]) ** 2 / (q - 1)
            else:
                c = np.array(block.detail)
                R[i, j] = (np.sin(phi[0]) ** 2) ** (abs(c[i] - c[j]) / np.diff(c).min())
    return R


def naive(theta, block):
    """Ψ of one block from what the documentation says of θ."""
    name, q = block.structure, block.size
    if name in ("unstructured", "reduced_rank"):
        L, at = np.zeros((q, q)), iter(theta)
        for i in range(q):
            for j in range(i + 1 if name == "unstructured" else min(i + 1, block.detail[0])):
                L[i, j] = next(at)
        return L @ L.T
    if name in ("diagonal", "identity"):
        return np.diag(np.broadcast_to(theta**2, q))
    if name == "compound_symmetry":
        a, b = np.broadcast_to(theta**2, 2)
        return a * np.full((q, q), 1.0 / q) + b * (np.eye(q) - 1.0 / q)
    if name == "fixed":
        return theta[0] ** 2 * np.array(block.detail)
    sd = theta[:q] ** 2 if name.startswith("het") else np.full(q, theta[0])
    return np.diag(sd) @ correlation(name, theta[q if name.startswith("het") else 1 :], block) @ np.diag(sd)
