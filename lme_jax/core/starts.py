"""Where the searches over the effects of one factor start, and when one is not enough.

The first start takes the covariance of the effects from moments: with c = Zᵀr of a level, r the residuals of least
squares, and E_x the symmetric unit matrices of the free (co)variances,
    E cᵀE_x c = Σ_y ψ_y K_xy + σ² t_x,    E rᵀr = Σ_y ψ_y t_y + σ²(n − p),
which gives all of them together (Henderson 1953; MINQUE(0), Rao 1971). Arrays may carry lanes on their last axes.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import covariance, linalg
from .covariance import Template, by_block
from .levels import pairs
from .multistart import SAME, Multistart, Plan
from .structures import Block, entry
from .types import Array, Status, namespace, select

# Variances of a conditioned effect relative to σ²: not at zero, where the deviance is stationary whatever the
# data; not so far out that it is flat.
SMALLEST, LARGEST = 0.04, 1e4
RIDGE = 1e-13
# A relative standard deviation so large that a level knows its effects as well as it can.
FAR = 300.0
# Searches of a regular design that end in one optimum until it is beyond doubt.
ENOUGH = 4
# Effects that are tried alone, how large, and how small the others are then.
MOST_ALONE, ALONE, SLIGHT = 3, 5.0, 0.05
# Blocks that lean either way in all combinations.
MOST_LEANING = 3
# Searches of a design whose largest level tells this many times more than its median, or than its smallest one.
IRREGULAR, SPREAD, MANY_SEARCHES = 8.0, 1e4, 7
# The least part of a variance that the effects before it must leave unexplained.
LEFT = 0.05


@functools.lru_cache(maxsize=64)
def _free(template: Template) -> np.ndarray:
    """Packed pairs of effects whose (co)variance is estimated: variances, covariances where a structure has such."""
    block = np.repeat(np.arange(len(template)), [b.size for b in template])
    return np.array(
        [
            x
            for x, (i, j) in enumerate(pairs(len(block)))
            if i == j or (block[i] == block[j] and entry(template[block[i]]).moments)
        ],
        np.int32,
    )


def from_moments(template: Template, K: Array, t: Array, cc: Array, rss: Array, dof: Array) -> Array:
    """Scaled θ (k, *lanes).

    Parameters
    ----------
    K : (kq, kq, *lanes) tr(E_xGE_yG) summed over the levels, less what X takes of it; t : (kq, *lanes) likewise
        tr(E_xG); cc : (kq, *lanes) cᵀE_xc; rss : (*lanes) rᵀr; dof : n − p.
    """
    xp = namespace(K, cc, rss)
    free = _free(template)
    n = dof + 0.0 * rss
    across = t[free] + 0.0 * cc[free]
    A = xp.concatenate(
        [
            xp.concatenate([K[free][:, free] + 0.0 * cc[free][None], across[:, None]], axis=1),
            xp.concatenate([across, n[None]])[None],
        ]
    )
    b = xp.concatenate([cc[free], rss[None]])
    at = np.arange(len(b))
    diagonal = A[at, at]
    unit = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    root = linalg.cholesky(A / (unit[:, None] * unit[None]) + RIDGE * linalg.identity(len(b), A))
    found = linalg.solve_upper(root, linalg.solve_lower(root, (b / unit)[:, None]))[:, 0] / unit
    sigma2 = xp.maximum(found[-1], 0.1 * rss / n)
    psi = xp.where(xp.isfinite(found[:-1]), found[:-1] / xp.where(sigma2 > 0, sigma2, 1.0), 0.0)
    return _theta(template, dict(zip(free.tolist(), psi, strict=True)))


def _theta(template: Template, psi: dict[int, Array]) -> Array:
    """θ (k, *lanes) of relative (co)variances by packed pair, made positive definite."""
    parts, lo = [], 0
    xp = namespace(*psi.values())
    for block in template:
        here = range(lo, lo + block.size)
        lo += block.size
        variances = [xp.clip(psi[i * (i + 1) // 2 + i], SMALLEST, LARGEST) for i in here]
        if entry(block).moments:
            parts.append(entry(block).near(block, linalg.stack_rows(_root(psi, variances, here))))
        else:
            parts.append(entry(block).start(block, xp.sqrt(xp.stack(variances))))
    return xp.concatenate(parts)


def _root(psi: dict[int, Array], variances: list[Array], effects: range) -> list[list[Array]]:
    """The Cholesky factor (q, q) of a block, each pivot at least a part of its variance."""
    xp = namespace(*variances)
    L: list[list[Array]] = []
    for i, own in enumerate(variances):
        row: list[Array] = []
        for j in range(i):
            x = effects[i] * (effects[i] + 1) // 2 + effects[j]
            row.append((psi[x] - sum(a * b for a, b in zip(row, L[j], strict=False))) / L[j][j])
        explained = sum((a * a for a in row), 0.0 * own)
        # Where the covariances ask for more than the variance holds they are shrunk together.
        shrink = xp.sqrt(xp.minimum(1.0, (1.0 - LEFT) * own / xp.maximum(explained, 1e-300)))
        row = [a * shrink for a in row]
        L.append([*row, xp.sqrt(own - explained * shrink**2)])
    return [[*row, *[0.0 * own] * (len(L) - len(row))] for row in L]


class Glimpse(NamedTuple):
    """The lowest points of a grid, one for each pattern of correlations, lowest first: x (s, k), value (s,)."""

    x: np.ndarray
    value: np.ndarray


def glimpse(template: Template, profile: Callable[[np.ndarray], np.ndarray]) -> Glimpse:
    """A look at the deviance all over the place; ``profile`` gives it (S,) at θ (k, S)."""
    points = grid(template)
    k, _, size = points.shape
    values = profile(points.reshape(k, -1)).reshape(-1, size)
    values = np.where(np.isfinite(values), values, np.inf)
    own = np.arange(len(values))
    which = values.argmin(1)
    order = np.argsort(values[own, which])
    return Glimpse(points[:, own, which].T[order], values[own, which][order])


def plan(template: Template, searches: Any, certain: Array, seen: Glimpse | None = None) -> Plan:
    """Search again: ``searches`` times whatever happens, and where the best end is in doubt.

    In doubt is an end that is singular or no optimum, that was not the only one, or that lies above what was
    ``seen``; then the points seen and ``further_starts`` are searched from. ``certain`` (*lanes): see
    ``has_one_optimum``.
    """
    listed = further_starts(template) if seen is None else np.concatenate([seen.x, further_starts(template)])

    def again(s: Multistart) -> Array:
        singular = covariance.smallest_root(s.best.x, template) < covariance.SINGULAR_BELOW
        failed = (s.best.status != Status.CONVERGED) | (s.now.status != Status.CONVERGED)
        lower = False if seen is None else seen.value[0] < s.best.value - SAME
        doubt = (singular | failed | (s.optima > 1) | lower) & ((s.hits < ENOUGH) | (searches > 1))
        wanted = (s.attempt + 1 < searches) | doubt
        return wanted & (s.attempt <= len(listed)) & ~certain

    def start(s: Multistart) -> Array:
        xp, x = namespace(s.best.x), s.best.x
        chosen = xp.moveaxis(xp.asarray(listed, x.dtype)[xp.minimum(s.attempt, len(listed) - 1)], -1, 0)
        return select(s.attempt < len(listed), chosen, _opposite(x, template))

    return Plan(again, start)


def plan_of_several(template: Template, n_starts: int, certain: Array) -> Plan:
    """Search again where the best end of several factors is in doubt, at most ``n_starts`` times; see ``plan``.

    Blocks whose structure holds their correlations together earn a search of every way to lean, whatever is found.
    """
    held = len(_held_together(template)[:MOST_LEANING])
    earned = 2**held + len(_kinds(template)) if held else 0
    whatever, most = plan(template, 1 + earned, certain), max(n_starts, earned)
    return whatever._replace(again=lambda s: whatever.again(s) & (s.attempt < most))


@functools.lru_cache(maxsize=64)
def grid(template: Template) -> np.ndarray:
    """(k, patterns, S) scaled θ to be glimpsed at: sizes of each effect apart where they are few, correlations."""
    q = sum(block.size for block in template)
    sizes = (0.03, 0.2, 1.0, 4.0, 20.0, 200.0)
    if q <= 3:
        chosen = np.array(list(itertools.product(sizes if q < 3 else sizes[1::2], repeat=q))).T
    else:
        alone = [np.where(np.eye(q, dtype=bool), s, 0.03) for s in sizes]
        chosen = np.concatenate([np.tile(sizes, (q, 1)), *alone], axis=1)
    plain = covariance.start(template, chosen)
    patterns = itertools.product((-0.9, 0.9), repeat=min(max(q - 1, 1), 2)) if _may_correlate(template) else ()
    return np.stack([plain, *(_leaning(template, chosen, pattern) for pattern in patterns)], axis=1)


def _leaning(template: Template, spread: np.ndarray, correlations: tuple[float, ...]) -> np.ndarray:
    """θ (k, *lanes) with the effects of each block correlated with its first one, in turn as much as is said."""
    parts = []
    for block, sd in zip(template, by_block(spread, template), strict=True):
        r = np.array([1.0, *(correlations[i % len(correlations)] for i in range(block.size - 1))])
        parts.append(_with_first(block, sd, r) if entry(block).leans else entry(block).start(block, sd))
    return np.concatenate(parts)


def _with_first(block: Block, sd: np.ndarray, r: np.ndarray) -> np.ndarray:
    """θ (k, *lanes) of standard deviations sd (q, *lanes) and correlations r (q,) with the first effect.

    Effects in an order are correlated as the first two are, from one to the next.
    """
    q = block.size
    if entry(block).ordered and q > 1:
        R = r[1] ** np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
        L = np.linalg.cholesky(R)
    else:
        L = np.diag(np.sqrt(1.0 - np.where(np.arange(q) > 0, r, 0.0) ** 2))
        L[:, 0] = r
    return entry(block).near(block, sd[:, None] * L.reshape(q, q, *[1] * (sd.ndim - 1)))


def n_searches(template: Template, G: np.ndarray, levels: int, *, glimpsed: bool) -> Any:
    """How many searches (*lanes) a design earns whatever the first one finds; levels stand on axis ``levels`` of G.

    ``glimpsed``: whether a grid was looked at, which tells of other optima of variances without covariances.
    """
    several = [block for block in template if block.size > 1]
    if not all(entry(block).free or (glimpsed and _is_variances(block)) for block in several):
        return np.int32(MANY_SEARCHES)
    q = len(G) if levels else G.shape[1]
    G = np.moveaxis(G, levels, 0)
    own = G[:, np.arange(q), np.arange(q)]
    told = np.sort(np.where(own > 0, own, np.inf), axis=0)
    middle = np.maximum((own > 0).sum(0) - 1, 0) // 2
    median, least, most = np.take_along_axis(told, middle[None], 0)[0], told[0], own.max(0)
    irregular = ((most > IRREGULAR * median) | (most > SPREAD * least)).any(0)
    return np.where(irregular, np.int32(MANY_SEARCHES), np.int32(1))


def _is_variances(block: Block) -> bool:
    """Whether sizes are all that a block has."""
    return entry(block).uncorrelated or block.n_theta == 1


def has_one_optimum(template: Template, G: Array, levels: int) -> Array:
    """Whether (*lanes) all levels share ZᵀZ and their covariance is free; levels stand on axis ``levels`` of G.

    Where the fixed effects are alike in all levels too, the likelihood is that of a Wishart matrix of mean σ²(G⁻¹ + Ψ)
    beside σ², convex in its precision and 1/σ², and Ψ ≥ 0 is a convex set there; other fixed effects bend it little.
    """
    xp = namespace(G)
    if len(template) > 1 or (template[0].size > 1 and not entry(template[0]).free):
        return np.False_
    first, second = (1, 2) if levels == 0 else (0, 1)
    own = xp.abs(G).sum((first, second))
    full = xp.expand_dims(own > 0, (first, second))
    high, low = xp.where(full, G, -np.inf).max(levels), xp.where(full, G, np.inf).min(levels)
    return (abs(high - low) <= 1e-12 * abs(high)).all((0, 1))


def is_balanced_chain(template: Template, told: Sequence[Array]) -> Array:
    """Whether nested factors with one effect a level have one optimum: the levels of each tell equally much.

    ``told`` : per factor ZᵀZ of its levels. Where the fixed effects are alike in all levels too, −2ℓ is a sum of
    df·(SS·x − log x) over the inverse mean squares x = 1/(σ² + …) of the strata, convex, and the variances are ≥ 0
    where the x are in order: a convex set; other fixed effects bend it little.
    """
    if any(block.size > 1 for block in template) or len(template) != len(told):
        return np.False_
    return namespace(*told).stack([own.max() - own.min() <= 1e-12 * own.max() for own in told]).all()


def _may_correlate(template: Template) -> bool:
    return any(block.size > 1 and entry(block).leans for block in template)


def _kinds(template: Template) -> list[tuple[float, float]]:
    """(size, correlation) of the further starts, but for the one that turns the best end."""
    across = [(size, r) for size in (1.0, 30.0) for r in (-0.999, 0.999)] if _may_correlate(template) else []
    return [(FAR, 0.0), (0.1, 0.0), *across, (10.0, 0.0), (1.0, 0.0)]


@functools.lru_cache(maxsize=64)
def further_starts(template: Template) -> np.ndarray:
    """θ (s, k) to search from: effects of all sizes, alone, and of rank one.

    Effects that are far too large come down to an optimum that small ones never see; optima that are missed are
    mostly of rank one. Last of all the covariances of the best end are turned.
    """
    kinds = [_correlated(template, *kind) for kind in _kinds(template)]
    return np.array([*kinds[:2], *_leaning_ways(template), *_alone(template), *kinds[2:]])


def _held_together(template: Template) -> list[int]:
    """Which of several blocks have correlations that their structure holds together: each way has optima of its own."""
    held = [i for i, block in enumerate(template) if entry(block).leans and not entry(block).free]
    return held if len(template) > 1 else []


def _leaning_ways(template: Template) -> list[np.ndarray]:
    """θ (k,) of moderate effects whose blocks lean either way, in all combinations of the first few."""
    held = _held_together(template)[:MOST_LEANING]
    out = []
    for ways in itertools.product((-0.9, 0.9), repeat=len(held)) if held else ():
        r = dict(zip(held, ways, strict=True))
        parts = [_leaning((b,), np.ones(b.size), (r.get(i, 0.9), abs(r.get(i, 0.9)))) for i, b in enumerate(template)]
        out.append(np.concatenate(parts))
    return out


def _alone(template: Template) -> list[np.ndarray]:
    """θ (k,) of one effect after the other alone, the others next to nothing."""
    q = sum(block.size for block in template)
    if q == 1:
        return []
    return [covariance.start(template, own) for own in np.where(np.eye(q, dtype=bool), ALONE, SLIGHT)[:MOST_ALONE]]


def _correlated(template: Template, size: float, correlation: float) -> np.ndarray:
    """θ (k,) of effects of one size, correlated with the first one in alternating signs where it is negative."""
    q = sum(block.size for block in template)
    if correlation == 0.0:
        return covariance.start(template, np.full(q, size))
    return _leaning(template, np.full(q, size), (correlation, abs(correlation)))


def _opposite(x: Array, template: Template) -> Array:
    """θ (k, *lanes) with the signs of the covariances turned, and away from zero."""
    parts = zip(covariance.split(x, template), template, strict=True)
    return namespace(x).concatenate([entry(block).opposite(block, part) for part, block in parts])
