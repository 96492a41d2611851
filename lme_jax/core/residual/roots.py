"""Many blocks that share everything but [X y] replaced by few: a triangular root of their rows side by side.

Of m blocks of n rows with one covariance V only Σ_i vec(C_i)vec(C_i)ᵀ counts, C_i = [X y] (n, w). Most of the n·w
columns of the m × nw matrix of the vec(C_i) are zero or multiples of one another (x = covariate × visit): QR of the d
distinct ones, spread again over all, leaves min(m, d) blocks. QR, not a Gram matrix: backward stable column by column.
"""

import numpy as np

# Blocks of one pattern up to which there is nothing to gain.
FEW = 4
# Relative difference of three random projections up to which two columns are multiples of each other.
EQUAL = 1e-12


def reduced(V: np.ndarray) -> np.ndarray:
    """Rows (r, c), r ≤ m, with the cross-products of V (m, c)."""
    if len(V) <= FEW:
        return V
    chosen, of, scale = distinct_columns(V)
    if len(V) <= len(chosen):
        return V
    R: np.ndarray = np.linalg.qr(V[:, chosen], mode="r")  # type: ignore[assignment]
    return np.where(scale == 0.0, 0.0, R[:, of] * scale)


def distinct_columns(V: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns (d,) of V (m, c) of which all are multiples: V[:, j] = scale[j] · V[:, chosen[of[j]]]."""
    h = np.random.default_rng(0).uniform(0.5, 1.5, (3, len(V))) @ V
    c = V.shape[1]
    live = np.flatnonzero(h[0] != 0)
    # What cancels in one projection is kept as it is, unless all of it is zero.
    odd = np.flatnonzero((h[0] == 0) & V.any(0))
    a, b = h[1, live] / h[0, live], h[2, live] / h[0, live]
    order = np.lexsort((b, a))
    new = np.ones(len(order), bool)
    new[1:] = (np.abs(np.diff(a[order])) > EQUAL * np.abs(a[order][1:])) | (
        np.abs(np.diff(b[order])) > EQUAL * np.abs(b[order][1:])
    )
    chosen = np.concatenate([live[order[new]], odd])
    of, scale = np.zeros(c, int), np.zeros(c)
    of[live[order]] = np.cumsum(new) - 1
    of[odd] = int(new.sum()) + np.arange(len(odd))
    largest = np.argmax(np.abs(V[:, chosen]), axis=0) if len(chosen) else np.zeros(0, int)
    alive = np.concatenate([live, odd])
    rows, base = largest[of[alive]], chosen[of[alive]]
    scale[alive] = V[rows, alive] / V[rows, base]
    return chosen, of, scale
