"""θ → Ψ/σ² of random effects with first and second derivatives, for lanes of θ; scales and starting points.

A template is a tuple of (structure, size) blocks. θ is packed as lme_jax packs it; AR(1) is
parameterized by (s, φ) with ρ = sin φ, so that ρ = ±1 is an ordinary stationary point.
"""

from itertools import combinations

import numpy as np

STRUCTURES = ("unstructured", "diagonal", "identity", "compound_symmetry", "ar1")


def as_template(structure, q):
    """A template from a structure's name or from itself."""
    return ((structure, q),) if isinstance(structure, str) else tuple((s, size) for s, size in structure)


def block_size(structure, size):
    """Number of covariance parameters of one block."""
    if structure == "unstructured":
        return size * (size + 1) // 2
    if structure == "diagonal":
        return size
    return min(size, 2) if structure in ("compound_symmetry", "ar1") else 1


def n_theta(template):
    """Number of covariance parameters."""
    return sum(block_size(*block) for block in template)


def blocks(template):
    """(structure, slice of effects, slice of θ) of every block."""
    row = at = 0
    for structure, size in template:
        k = block_size(structure, size)
        yield structure, slice(row, row + size), slice(at, at + k)
        row, at = row + size, at + k


def is_ar1(structure, size):
    """Whether a block is AR(1) and not one effect alone."""
    return structure == "ar1" and size > 1


def basis(structure, q):
    """(k, q, q) matrices B with L = Σ θ_a B_a."""
    k = block_size(structure, q)
    B = np.zeros((k, q, q))
    if structure == "unstructured":
        B[(np.arange(k), *np.tril_indices(q))] = 1.0
    elif structure == "diagonal":
        B[np.arange(q), np.arange(q), np.arange(q)] = 1.0
    elif structure == "compound_symmetry" and q > 1:
        B[0] = 1.0 / q
        B[1] = np.eye(q) - 1.0 / q
    else:
        B[0] = np.eye(q)
    return B


def ar1_root(s, phi, q):
    """Lower root of s²ρ^|i−j|, ρ = sin φ, for lanes (S,)."""
    rho, new = np.sin(phi), np.cos(phi)
    L = np.zeros((*s.shape, q, q), s.dtype)
    for i in range(q):
        for j in range(i + 1):
            L[..., i, j] = s * rho ** (i - j) * (new if j else 1.0)
    return L


def root(theta, template):
    """L(θ), (S, q, q), for lanes θ (S, k)."""
    q = sum(size for _, size in template)
    L = np.zeros((len(theta), q, q), theta.dtype)
    for structure, rows, at in blocks(template):
        size, part = rows.stop - rows.start, theta[:, at]
        if is_ar1(structure, size):
            L[:, rows, rows] = ar1_root(part[:, 0], part[:, 1], size)
        else:
            L[:, rows, rows] = np.tensordot(part, basis(structure, size).astype(theta.dtype), 1)
    return L


def ar1_derivatives(s, phi, q):
    """∂Ψ (S, 2, q, q) and ∂²Ψ (S, 2, 2, q, q) of s² sin(φ)^|i−j|."""
    s, phi = s[:, None, None], phi[:, None, None]
    lag = np.abs(np.subtract.outer(np.arange(q), np.arange(q)))[None]
    rho, c = np.sin(phi), np.cos(phi)
    R = rho**lag
    R1 = lag * rho ** np.maximum(lag - 1, 0) * c
    R2 = lag * (lag - 1) * rho ** np.maximum(lag - 2, 0) * c**2 - lag * rho**lag
    first = np.stack([2 * s * R, s**2 * R1], axis=1)
    cross = 2 * s * R1
    second = np.stack([np.stack([2 * R, cross], 1), np.stack([cross, s**2 * R2], 1)], 1)
    return first, second


def derivatives(theta, template):
    """∂Ψ/∂θ (S, k, q, q) and ∂²Ψ/∂θ² (S, k, k, q, q)."""
    q, k = sum(size for _, size in template), n_theta(template)
    first = np.zeros((len(theta), k, q, q), theta.dtype)
    second = np.zeros((len(theta), k, k, q, q), theta.dtype)
    for structure, rows, at in blocks(template):
        size, part = rows.stop - rows.start, theta[:, at]
        if is_ar1(structure, size):
            one, two = ar1_derivatives(part[:, 0], part[:, 1], size)
        else:
            B = basis(structure, size)
            L = np.tensordot(part, B, 1)
            half = np.einsum("aij,skj->saik", B, L)
            one = half + np.swapaxes(half, 2, 3)
            BB = np.einsum("aij,bkj->abik", B, B)
            two = np.broadcast_to(BB + np.swapaxes(BB, 2, 3), (len(theta), *BB.shape))
        first[:, at, rows, rows] = one
        second[:, at, at, rows, rows] = two
    return first, second


def common_scale(template, z_scale):
    """(q,) scales of the columns of Z that keep every block's structure: one for all effects of a non-free block."""
    scale = z_scale.copy()
    for structure, rows, _ in blocks(template):
        if structure not in ("unstructured", "diagonal"):
            scale[rows] = np.exp(np.log(z_scale[rows]).mean())
    return scale


def theta_scale(template, scale):
    """(k,) factors: θ of Z / scale is this times θ of Z."""
    parts = []
    for structure, rows, _ in blocks(template):
        s, size = scale[rows], rows.stop - rows.start
        if structure == "unstructured":
            parts.append(s[np.tril_indices(size)[0]])
        elif structure == "diagonal":
            parts.append(s)
        elif is_ar1(structure, size):
            parts.append(np.array([s[0], 1.0]))
        else:
            parts.append(np.repeat(s[:1], block_size(structure, size)))
    return np.concatenate(parts)


def to_lme_jax(theta, template):
    """θ with signs made canonical (diag L ≥ 0), and |φ| ≤ π/2 for AR(1)."""
    out = theta.copy()
    for structure, rows, at in blocks(template):
        size, part = rows.stop - rows.start, theta[at]
        if structure == "unstructured":
            row, column = np.tril_indices(size)
            out[at] = part * np.where(part[row == column] < 0, -1.0, 1.0)[column]
        elif is_ar1(structure, size):
            out[at] = abs(part[0]), np.arcsin(np.sin(part[1]))
        else:
            out[at] = np.abs(part)
    return out


def uncorrelated(template, spread):
    """θ of uncorrelated effects with these standard deviations (q,)."""
    parts = []
    for structure, rows, _ in blocks(template):
        sd, size = spread[rows], rows.stop - rows.start
        if structure == "unstructured":
            row, column = np.tril_indices(size)
            parts.append(np.where(row == column, sd[row], 0.0))
        elif structure == "diagonal":
            parts.append(sd)
        elif is_ar1(structure, size):
            parts.append(np.array([sd.mean(), 0.0]))
        else:
            parts.append(np.full(block_size(structure, size), sd.mean()))
    return np.concatenate(parts)


def from_covariance(template, Psi):
    """θ whose Ψ is near a given covariance (q, q), positive definite."""
    parts = []
    for structure, rows, _ in blocks(template):
        P, size = Psi[rows, rows], rows.stop - rows.start
        sd = np.sqrt(np.diag(P))
        if structure == "unstructured":
            parts.append(np.linalg.cholesky(P)[np.tril_indices(size)])
        elif structure == "diagonal":
            parts.append(sd)
        elif is_ar1(structure, size):
            r = P / np.outer(sd, sd)
            parts.append(np.array([np.sqrt((sd**2).mean()), np.arcsin(np.clip(np.diag(r, 1).mean(), -0.999, 0.999))]))
        elif structure == "compound_symmetry" and size > 1:
            mean = P.sum() / size
            rest = (np.trace(P) - mean) / (size - 1)
            parts.append(np.sqrt([max(mean, 1e-12), max(rest, 1e-12)]))
        else:
            parts.append(np.sqrt([(sd**2).mean()]))
    return np.concatenate(parts)


def correlated(template, sd, r):
    """θ of effects with equal standard deviations and every pair's correlation of sign ``r`` (best it can be)."""
    q = sum(size for _, size in template)
    low = r if r > 0 else r / max(q - 1, 1)
    return from_covariance(template, sd**2 * ((1 - low) * np.eye(q) + low))


def random_theta(template, rng, low, high):
    """θ of random covariances: log-uniform standard deviations, correlations from a random root."""
    q = sum(size for _, size in template)
    root = rng.normal(size=(q, q + rng.integers(0, 2)))
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    sd = 10.0 ** rng.uniform(low, high, q)
    theta = from_covariance(template, np.outer(sd, sd) * (root @ root.T + 1e-9 * np.eye(q)))
    for structure, rows, at in blocks(template):
        size = rows.stop - rows.start
        if structure == "compound_symmetry" and size > 1:
            theta[at] = 10.0 ** rng.uniform(low, high, 2)
        elif is_ar1(structure, size):
            theta[at] = 10.0 ** rng.uniform(low, high), rng.uniform(-1.55, 1.55)
    return theta


def grid_starts(template, low=-2, high=5):
    """Starts over scales, single effects, faces without an effect and signs of correlations."""
    q = sum(size for _, size in template)
    starts = [np.zeros(n_theta(template))]
    starts += [uncorrelated(template, np.full(q, 10.0**e)) for e in range(low, high + 1)]
    if q > 1:
        for j in range(q):
            only, without = np.full(q, 0.01), np.ones(q)
            for sd in (0.5, 20.0):
                only[j] = sd
                starts.append(uncorrelated(template, only))
            without[j] = 0.0
            starts.append(uncorrelated(template, 3.0 * without))
        starts += [correlated(template, sd, r) for sd in (1.0, 10.0, 100.0) for r in (-0.99, 0.99)]
        for i, j in combinations(range(q), 2) if q > 2 else ():
            for sign in (-1, 1):
                Psi = np.eye(q)
                Psi[i, j] = Psi[j, i] = 0.9 * sign
                starts.append(from_covariance(template, 4.0 * Psi))
    return np.array(starts)
