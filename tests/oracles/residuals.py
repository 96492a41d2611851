"""The oracle of structured residual errors: V (n, n) entry by entry from the definitions, in plain loops.

Nothing here knows of blocks, patterns or derivatives. Parameters are the package's searched ones, read anew:
correlations are sines of angles, Σ of ``us`` is LLᵀ with L₁₁ = 1, ranges and ratios of standard deviations logarithms.
"""

import numpy as np


def partial_to_correlations(pacf):
    """Autocorrelations 1, r_1, … of partial ones, each from the definition: the correlation left beside all between."""
    r = [1.0]
    for k, pi in enumerate(pacf, start=1):
        inner = np.array([[r[abs(i - j)] for j in range(k - 1)] for i in range(k - 1)]).reshape(k - 1, k - 1)
        ahead, behind = np.array(r[1:k]), np.array(r[1:k][::-1])
        solved = np.linalg.solve(inner, ahead) if k > 1 else ahead
        left = 1.0 - ahead @ solved
        r.append(float(behind @ solved + pi * left))
    return r


def arma_correlations(angles, p, q, T, terms=4000):
    """From the impulse response of x_t = Σ φx + e + Σ θe, summed."""

    def regression(pacf):
        r = partial_to_correlations(pacf)
        R = np.array([[r[abs(i - j)] for j in range(len(pacf))] for i in range(len(pacf))])
        return np.linalg.solve(R, np.array(r[1:])) if len(pacf) else np.zeros(0)

    phi, theta = regression(np.sin(angles[:p])), -regression(np.sin(angles[p:]))
    psi = np.zeros(terms + T)
    for t in range(terms + T):
        psi[t] = (t == 0) + (theta[t - 1] if 1 <= t <= q else 0.0)
        for i in range(1, min(p, t) + 1):
            psi[t] += phi[i - 1] * psi[t - i]
    gamma = [psi[:terms] @ psi[k : terms + k] for k in range(T)]
    return [g / gamma[0] for g in gamma]


def correlation_matrix(word, rho, T, options):
    """M (T, T) of an arm of a structure by visit."""
    het = word in ("ar1h", "csh", "toeph", "adh")
    sd = np.concatenate([[1.0], np.exp(rho[: T - 1])]) if het else np.ones(T)
    a = rho[T - 1 :] if het else rho
    base = word[:-1] if het else word
    M = np.eye(T)
    if base == "us":
        L = np.zeros((T, T))
        L[0, 0], at = 1.0, 0
        for i in range(1, T):
            for j in range(i + 1):
                L[i, j], at = a[at], at + 1
        return L @ L.T
    lags = None
    if base == "toep":
        lags = partial_to_correlations(np.sin(a))
    if base == "arma":
        lags = arma_correlations(a, options["p"], options["q"], T)
    for i in range(T):
        for j in range(T):
            if i == j or base == "ident":
                continue
            if base == "ar1":
                M[i, j] = np.sin(a[0]) ** abs(i - j)
            elif base == "cs":
                M[i, j] = np.sin(a[0]) ** 2 - np.cos(a[0]) ** 2 / (T - 1)
            elif base == "ad":
                M[i, j] = np.prod([np.sin(a[t]) for t in range(min(i, j), max(i, j))])
            else:
                M[i, j] = lags[abs(i - j)]
    return M * np.outer(sd, sd)


def by_distance(word, rho, d, nugget):
    """Correlation of two different rows at distance d."""
    u = d / np.exp(rho[0])
    f = {"car1": np.exp(-u), "sp_exp": np.exp(-u), "sp_gau": np.exp(-(u**2)), "sp_rat": 1.0 / (1.0 + u**2)}[word]
    return f * (1.0 - np.sin(rho[1]) ** 2) if nugget else f


def relative_sd(variances, deltas, i):
    """Of row i, the product of the variance functions (word, strata, covariate)."""
    out = 1.0
    for (word, strata, v), d in zip(variances, deltas, strict=True):
        s = 0 if strata is None else strata[i]
        if word == "ident":
            out *= 1.0 if s == 0 else np.exp(d[s - 1])
        elif word == "power":
            out *= abs(v[i]) ** d[s]
        elif word == "exp":
            out *= np.exp(d[s] * v[i])
        elif word == "constpower":
            out *= np.exp(d[2 * s]) + abs(v[i]) ** d[2 * s + 1]
        elif word == "fixed":
            out *= np.sqrt(v[i])
    return out


def residual_covariance(spec, rho, deltas):
    """R (n, n) = D C D over σ²; ``spec`` a dict: word, subject, clock, T, group, options, variances, weights."""
    n = len(spec["subject"])
    A = 1 if spec["group"] is None else int(max(spec["group"])) + 1
    group = np.zeros(n, int) if spec["group"] is None else spec["group"]
    k = (len(rho) + 1) // A - 1
    arms, at = [], 0
    for a in range(A):
        scale = 1.0
        if a:
            scale, at = np.exp(rho[at]), at + 1
        arms.append((scale, rho[at : at + k]))
        at += k
    distance = spec["word"] in ("car1", "sp_exp", "sp_gau", "sp_rat")
    grids = None if distance else [correlation_matrix(spec["word"], r, spec["T"], spec["options"]) for _, r in arms]
    clock, R = spec["clock"], np.zeros((n, n))
    weights = np.ones(n) if spec["weights"] is None else spec["weights"]
    sds = [relative_sd(spec["variances"], deltas, i) / np.sqrt(weights[i]) for i in range(n)]
    for i in range(n):
        for j in range(n):
            if spec["subject"][i] != spec["subject"][j]:
                continue
            scale, own = arms[group[i]]
            if distance:
                step = np.atleast_1d(clock[i] - clock[j])
                d = np.abs(step).sum() if spec["options"].get("metric") == "manhattan" else np.sqrt((step**2).sum())
                c = 1.0 if i == j else by_distance(spec["word"], own, d, spec["options"].get("nugget", False))
            else:
                c = grids[group[i]][clock[i], clock[j]]
            R[i, j] = scale**2 * sds[i] * sds[j] * c
    return R


def covariance(spec, params):
    """V (n, n)/σ²; ``spec`` has also bars: (Z, codes) with unstructured L, and sizes of the parameters."""
    at, V = 0, 0.0
    for Z, codes in spec["bars"]:
        q = Z.shape[1]
        L = np.zeros((q, q))
        for i in range(q):
            for j in range(i + 1):
                L[i, j], at = params[at], at + 1
        V = V + (Z @ L @ L.T @ Z.T) * (codes[:, None] == codes[None])
    rho, at = params[at : at + spec["n_rho"]], at + spec["n_rho"]
    deltas = []
    for k in spec["n_delta"]:
        deltas.append(params[at : at + k])
        at += k
    return V + residual_covariance(spec, rho, deltas)


def deviance(spec, params, y, X, reml):
    """−2 log L or the REML criterion, from V (n, n)."""
    V = covariance(spec, params)
    n, p = X.shape
    N = n - p if reml else n
    half = np.linalg.solve(V, np.column_stack([X, y]))
    M = X.T @ half[:, :p]
    beta = np.linalg.solve(M, X.T @ half[:, p])
    Q = (y - X @ beta) @ (half[:, p] - half[:, :p] @ beta)
    value = np.linalg.slogdet(V)[1] + N * (1.0 + np.log(2.0 * np.pi * Q / N))
    return value + (np.linalg.slogdet(M)[1] if reml else 0.0)
