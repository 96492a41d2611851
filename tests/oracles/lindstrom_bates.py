"""ℓ, score and Hessian from plain n × n matrices, straight from the definition (Lindstrom & Bates 1988, section 5).

Independent of the package: Ψ is written out from the terms' rows, V(params) = σ²(W⁻¹ + Σ Z_tΨ_tZ_tᵀ), and the textbook
derivatives of a Gaussian log-likelihood in V's parameters, V's own derivatives by the definition of each scale.
"""

import numpy as np
import scipy.linalg


def _lower(packed, q):
    L = np.zeros((q, q))
    L[np.tril_indices(q)] = packed
    return L


def _term_effects(term):
    """(n, m·q) columns, level by level."""
    n, q = term.Z.shape
    out = np.zeros((n, len(term.levels), q))
    out[np.arange(n), term.codes] = term.Z
    return out.reshape(n, -1)


def covariance(params, data, scale):
    """V (n, n), and its first (list) and second (dict) derivatives in (ω, σ²)."""
    p, sigma2 = data.X.shape[1], params[-1]
    n = len(data.y)
    W = np.diag(1.0 / (np.ones(n) if data.design.weights is None else data.design.weights))
    factor = 1.0 if scale == "natural" else sigma2
    V, first, second, at = sigma2 * W, [], {}, p
    for term in data.terms:
        A, q = _term_effects(term), term.Z.shape[1]
        k = q * (q + 1) // 2
        packed, start = params[at : at + k], at - p
        at += k

        def spread(Psi, A=A):
            return A @ np.kron(np.eye(A.shape[1] // len(Psi)), Psi) @ A.T

        units = [_lower(e, q) for e in np.eye(k)]
        if scale == "sqrt":
            L = _lower(packed, q)
            Psi, d_Psi = L @ L.T, [E @ L.T + L @ E.T for E in units]
            for a in range(k):
                for b in range(k):
                    bend = units[a] @ units[b].T + units[b] @ units[a].T
                    second[start + a, start + b] = sigma2 * spread(bend)
        else:
            d_Psi = [E + E.T - np.diag(np.diag(E)) for E in units]
            Psi = sum(x * d for x, d in zip(packed, d_Psi, strict=True))
        V = V + factor * spread(Psi)
        first += [factor * spread(d) for d in d_Psi]
        if scale != "natural":
            for a, d in enumerate(d_Psi):
                second[start + a, "σ²"] = spread(d)
    first.append(W if scale == "natural" else V / sigma2)
    return V, first, second


def derivatives(params, data, scale, reml):
    """ℓ, score, Hessian in (β, ω[, σ²]); σ² profiled out where it is left out."""
    params, p = np.asarray(params, float), data.X.shape[1]
    k = sum(t.Z.shape[1] * (t.Z.shape[1] + 1) // 2 for t in data.terms)
    y = data.y - data.offset
    if len(params) == p + k:
        V = covariance(np.append(params, 1.0), data, scale)[0]
        r = y - data.X @ params[:p]
        sigma2 = r @ np.linalg.solve(V, r) / (len(y) - (p if reml else 0))
        value, score, hessian = derivatives(np.append(params, sigma2), data, scale, reml)
        across = hessian[:-1, -1]
        return value, score[:-1], hessian[:-1, :-1] - np.outer(across, across) / hessian[-1, -1]
    V, first, second = covariance(params, data, scale)
    X, r, n = data.X, y - data.X @ params[:p], len(y)
    inverse = scipy.linalg.inv(V)
    M = X.T @ inverse @ X
    P = inverse - (inverse @ X @ np.linalg.solve(M, X.T @ inverse) if reml else 0.0)
    value = -0.5 * (np.linalg.slogdet(V)[1] + r @ inverse @ r + (n - p * reml) * np.log(2 * np.pi))
    value -= 0.5 * np.linalg.slogdet(M)[1] if reml else 0.0
    u = inverse @ r
    PV = [P @ D for D in first]
    score = [0.5 * (u @ D @ u - np.trace(G)) for D, G in zip(first, PV, strict=True)]
    h = np.zeros((p + k + 1,) * 2)
    h[:p, :p] = -M
    for a, D in enumerate(first):
        h[p + a, :p] = h[:p, p + a] = -X.T @ inverse @ D @ u
        for b, E in enumerate(first):
            names = [(a, b), (b, a), (a, "σ²" if b == k else None), (b, "σ²" if a == k else None)]
            bend = next((second[key] for key in names if key in second), None)
            value_ab = 0.5 * np.einsum("ij,ji->", PV[a], PV[b]) - u @ D @ inverse @ E @ u
            if bend is not None:
                value_ab += 0.5 * (u @ bend @ u - np.einsum("ij,ji->", P, bend))
            h[p + a, p + b] = value_ab
    return value, np.concatenate([X.T @ u, score]), h
