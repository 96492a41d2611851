"""θ → Ψ/σ² of random effects with first and second derivatives, for lanes of θ; scales and starting points.

A template is a tuple of (structure, size) blocks; a structure is a name, or (name, what it needs). θ is packed as
lme_jax packs it; AR(1) is parameterized by (s, φ) with ρ = sin φ, so that ρ = ±1 is an ordinary stationary point.
Other scaled correlations are written out as Ψ, and differentiated by complex steps.
"""

from itertools import combinations

import numpy as np

STRUCTURES = (
    "unstructured",
    "diagonal",
    "identity",
    "compound_symmetry",
    "ar1",
    "het_compound_symmetry",
    "het_ar1",
    "toeplitz",
    "het_toeplitz",
    ("exponential", (0.0, 1.0, 2.5)),
    ("reduced_rank", 1),
    ("fixed", ((2.0, 0.8, 0.4), (0.8, 1.5, 0.7), (0.4, 0.7, 1.0))),
)
# Structures Ψ = D R D written out: the correlation, and whether every effect has a standard deviation t² of its own.
SCALED = {
    "het_compound_symmetry": ("compound_symmetry", True),
    "het_ar1": ("ar1", True),
    "toeplitz": ("toeplitz", False),
    "het_toeplitz": ("toeplitz", True),
    "exponential": ("exponential", False),
}
APART = ("unstructured", "diagonal", "reduced_rank", "het_compound_symmetry", "het_ar1", "het_toeplitz")


def as_template(structure, q):
    """A template from a structure or from itself."""
    single = isinstance(structure, str) or isinstance(structure[0], str)
    return ((structure, q),) if single else tuple((s, size) for s, size in structure)


def name_of(structure):
    """The name of a structure, whatever it needs."""
    return structure if isinstance(structure, str) else structure[0]


def block_size(structure, size):
    """Number of covariance parameters of one block."""
    if name_of(structure) in SCALED:
        family, apart = SCALED[name_of(structure)]
        return (size if apart else 1) + (0 if size == 1 else size - 1 if family == "toeplitz" else 1)
    if name_of(structure) == "reduced_rank":
        d = min(structure[1], size)
        return size * d - d * (d - 1) // 2
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
    if structure == "unstructured" or name_of(structure) == "reduced_rank":
        B[(np.arange(k), *entries(structure, q))] = 1.0
    elif name_of(structure) == "fixed":
        B[0] = np.linalg.cholesky(np.array(structure[1]))
    elif structure == "diagonal":
        B[np.arange(q), np.arange(q), np.arange(q)] = 1.0
    elif structure == "compound_symmetry" and q > 1:
        B[0] = 1.0 / q
        B[1] = np.eye(q) - 1.0 / q
    else:
        B[0] = np.eye(q)
    return B


def entries(structure, q):
    """Rows and columns of the packed entries of a triangular or trapezoidal L."""
    return np.tril_indices(q, 0, min(q, q if structure == "unstructured" else structure[1]))


def scaled_psi(theta, structure, q):
    """Ψ (S, q, q) of a scaled correlation at θ (S, k), real or complex."""
    family, apart = SCALED[name_of(structure)]
    n = q if apart else 1
    sd = theta[:, :n] ** 2 if apart else np.repeat(theta[:, :1], q, axis=1)
    lag = np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
    phi = theta[:, n:, None, None]
    if q == 1:
        R = np.ones((len(theta), 1, 1))
    elif family == "toeplitz":
        R = lagged(np.sin(theta[:, n:]))[:, lag]
    elif family == "ar1":
        R = np.sin(phi[:, 0]) ** lag
    elif family == "compound_symmetry":
        rho = np.sin(phi[:, 0]) ** 2 - np.cos(phi[:, 0]) ** 2 / (q - 1)
        R = np.eye(q) + rho * (1.0 - np.eye(q))
    else:
        c = np.array(structure[1][:q])
        R = (np.sin(phi[:, 0]) ** 2) ** (np.abs(np.subtract.outer(c, c)) / np.diff(c).min())
    return sd[:, :, None] * R * sd[:, None, :]


def lagged(partial):
    """Autocorrelations (S, q) from partial ones (S, q − 1)."""
    r = [np.ones(len(partial), partial.dtype)]
    a, v = [], r[0]
    for k in range(partial.shape[1]):
        pi = partial[:, k]
        r.append(pi * v + sum(c * r[k - j] for j, c in enumerate(a)))
        a = [*(c - pi * b for c, b in zip(a, a[::-1], strict=True)), pi]
        v = v * (1.0 - pi**2)
    return np.stack(r, axis=1)


def scaled_derivatives(theta, structure, q):
    """∂Ψ (S, k, q, q) by complex steps, and ∂²Ψ (S, k, k, q, q) by fourth-order differences of them.

    Steps are a thousandth of each parameter, whose sizes may be many powers of ten apart.
    """

    def slopes(x):
        steps = 1e-30j * np.eye(x.shape[1])
        return np.stack([scaled_psi(x + e, structure, q).imag / 1e-30 for e in steps], axis=1)

    size = np.maximum(np.abs(theta), 1e-3 * np.abs(theta).max(axis=1, keepdims=True))
    second = []
    for unit in np.eye(theta.shape[1]):
        h = 1e-3 * np.maximum(size, 1e-30) * unit
        ahead, behind = slopes(theta + h) - slopes(theta - h), slopes(theta + 2.0 * h) - slopes(theta - 2.0 * h)
        second.append((8.0 * ahead - behind) / (12.0 * h.sum(axis=1))[:, None, None, None])
    return slopes(theta), np.stack(second, axis=1)


def semidefinite_root(Psi):
    """A square root (S, q, q) of covariances, singular or not, the effects' own scales taken out first."""
    sd = np.sqrt(np.einsum("sii->si", Psi))
    unit = np.where(sd > 0, sd, 1.0)
    values, axes = np.linalg.eigh(Psi / unit[:, :, None] / unit[:, None, :])
    return unit[:, :, None] * axes * np.sqrt(np.maximum(values, 0.0))[:, None, :]


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
        elif name_of(structure) in SCALED:
            L[:, rows, rows] = semidefinite_root(scaled_psi(part.astype(float), structure, size))
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
        elif name_of(structure) in SCALED:
            one, two = scaled_derivatives(part.astype(float), structure, size)
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
        if name_of(structure) not in APART:
            scale[rows] = np.exp(np.log(z_scale[rows]).mean())
    return scale


def theta_scale(template, scale):
    """(k,) factors: θ of Z / scale is this times θ of Z."""
    parts = []
    for structure, rows, _ in blocks(template):
        s, size = scale[rows], rows.stop - rows.start
        k = block_size(structure, size)
        if structure == "unstructured" or name_of(structure) == "reduced_rank":
            parts.append(s[entries(structure, size)[0]])
        elif name_of(structure) in SCALED:
            own = np.sqrt(s) if SCALED[name_of(structure)][1] else s[:1]
            parts.append(np.concatenate([own, np.ones(k - len(own))]))
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
        if structure == "unstructured" or name_of(structure) == "reduced_rank":
            row, column = entries(structure, size)
            out[at] = part * np.where(part[row == column] < 0, -1.0, 1.0)[column]
        elif name_of(structure) in SCALED:
            family, apart = SCALED[name_of(structure)]
            n = size if apart else 1
            sine = np.sin(part[n:])
            sine = np.abs(sine) if family in ("compound_symmetry", "exponential") else sine
            out[at] = np.concatenate([np.abs(part[:n]), np.arcsin(sine)])
        elif is_ar1(structure, size):
            out[at] = abs(part[0]), np.arcsin(np.sin(part[1]))
        else:
            out[at] = np.abs(part)
    return out


def scaled_start(structure, size, sd, R):
    """θ of a scaled correlation with these standard deviations and about the correlations R (q, q)."""
    family, apart = SCALED[name_of(structure)]
    scales = np.sqrt(sd) if apart else np.array([np.sqrt((sd**2).mean())])
    if size == 1:
        return scales
    lag = np.clip([np.diag(R, k).mean() for k in range(1, size)], -0.999, 0.999)
    if family == "compound_symmetry":
        mean = R[np.tril_indices(size, -1)].mean()
        angles = [np.arcsin(np.sqrt(np.clip(((size - 1) * mean + 1) / size, 1e-3, 0.999)))]
    elif family == "exponential":
        angles = [np.arcsin(np.sqrt(np.clip(lag[0], 0.01, 0.999)))]
    else:
        angles = np.arcsin([lag[0], *[0.0] * (block_size(structure, size) - len(scales) - 1)])
    return np.concatenate([scales, angles])


def uncorrelated(template, spread):
    """θ of uncorrelated effects with these standard deviations (q,)."""
    parts = []
    for structure, rows, _ in blocks(template):
        sd, size = spread[rows], rows.stop - rows.start
        if structure == "unstructured":
            row, column = np.tril_indices(size)
            parts.append(np.where(row == column, sd[row], 0.0))
        elif name_of(structure) == "reduced_rank":
            row, column = entries(structure, size)
            parts.append(np.where(row % structure[1] == column, sd[row], 0.0))
        elif name_of(structure) in SCALED:
            parts.append(scaled_start(structure, size, sd, np.eye(size)))
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
        if structure == "unstructured" or name_of(structure) == "reduced_rank":
            parts.append(np.linalg.cholesky(P)[entries(structure, size)])
        elif name_of(structure) in SCALED:
            parts.append(scaled_start(structure, size, sd, P / np.outer(sd, sd)))
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
        elif name_of(structure) in SCALED:
            n = size if SCALED[name_of(structure)][1] else 1
            theta[at.start + n : at.stop] = rng.uniform(-1.55, 1.55, at.stop - at.start - n)
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
