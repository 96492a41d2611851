"""Structures Ψ = D R(φ) D with a family of ``correlations``: θ is (s, φ) with D = s·I, or (t, φ) with D = diag(t²).

With signed standard deviations s_i the covariances s_i s_j ρ_ij would not be even in s_i; in t_i a zero variance is a
stationary point whose curvature tells whether the deviance falls from there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .blocks import AWAY, Block, Quantity, Structure, absolute, deviations, row_norms
from .correlations import Correlation, Detail, identity
from .types import Array, namespace

# Relative standard deviations at which nothing tells the correlations any more: they are then said to be none.
VANISHED = 1e-10


class _Scaled(NamedTuple):
    """The answers of a family with one standard deviation, or with one for each effect."""

    family: Correlation
    homogeneous: bool

    def n_scales(self, block: Block) -> int:
        return 1 if self.homogeneous else block.size

    def n_angles(self, block: Block) -> int:
        return self.family.n_angles(block.size) if block.size > 1 else 0

    def n_theta(self, block: Block) -> int:
        return self.n_scales(block) + self.n_angles(block)

    def cut(self, block: Block, theta: Array) -> tuple[Array, Array]:
        return theta[: self.n_scales(block)], theta[self.n_scales(block) :]

    def deviations(self, block: Block, t: Array) -> Array:
        """(q, *lanes), with a sign where they are equal."""
        return namespace(t).broadcast_to(t, (block.size, *t.shape[1:])) if self.homogeneous else t * t

    def root(self, block: Block, theta: Array) -> Array:
        t, phi = self.cut(block, theta)
        s = self.deviations(block, t)[:, None]
        return s * self.family.root(phi, block.size, block.detail) if block.size > 1 else s

    def derivatives(self, block: Block, theta: Array) -> tuple[Array, Array]:
        t, phi = self.cut(block, theta)
        return _derivatives(*self.slopes(block, t), *self.correlations(block, phi))

    def slopes(self, block: Block, t: Array) -> tuple[Array, Array, Array]:
        """Standard deviations s (q, *lanes), ∂s/∂t (q, n, *lanes) and ∂²s/∂t² (q, n, n, *lanes)."""
        xp, q, lanes = namespace(t), block.size, t.shape[1:]
        if self.homogeneous:
            ones = xp.ones((q, 1, *lanes), t.dtype)
            return xp.broadcast_to(t, (q, *lanes)), ones, 0.0 * ones[:, None]
        one = identity(q, t)
        return t * t, 2.0 * one * t[None], xp.broadcast_to(2.0 * one[:, :, None] * one[:, None], (q, q, q, *lanes))

    def correlations(self, block: Block, phi: Array) -> tuple[Array, Array, Array]:
        if block.size > 1:
            return self.family.derivatives(phi, block.size, block.detail)
        xp, lanes = namespace(phi), phi.shape[1:]
        shapes = (1, 1), (1, 1, 0), (1, 1, 0, 0)
        R, dR, ddR = (xp.ones((*shape, *lanes), phi.dtype) for shape in shapes)
        return R, dR, ddR

    def filled(self, block: Block) -> np.ndarray:
        return np.ones((block.size,) * 2, bool) if self.family.full else np.tri(block.size, dtype=bool)

    # ---- starts

    def correlated(self, block: Block, t: Array, R: Array) -> Array:
        """θ with scales t and correlations near R."""
        if block.size == 1:
            return t
        return namespace(t).concatenate([t, self.family.angles(R, block.size, block.detail)])

    def start(self, block: Block, sd: Array) -> Array:
        xp = namespace(sd)
        R = identity(block.size, sd) + xp.zeros_like(sd[:1])
        return self.correlated(block, sd.mean(0)[None] if self.homogeneous else xp.sqrt(sd), R)

    def near(self, block: Block, L: Array) -> Array:
        xp, sd = namespace(L), row_norms(L)
        unit = L / xp.where(sd > 0, sd, 1.0)[:, None]
        t = xp.sqrt((sd * sd).mean(0))[None] if self.homogeneous else xp.sqrt(sd)
        return self.correlated(block, t, xp.einsum("ik...,jk...->ij...", unit, unit))

    def opposite(self, block: Block, theta: Array) -> Array:
        t, phi = self.cut(block, theta)
        R = self.correlations(block, phi)[0]
        return self.correlated(block, abs(t) + AWAY, 2.0 * identity(block.size, t) - R)

    # ---- signs, units, sizes

    def canonical(self, block: Block, theta: Array) -> tuple[Array, Array]:
        t, phi = self.cut(block, theta)
        xp, (t, t_sign) = namespace(theta), absolute(block, t)
        phi, phi_sign = self.family.fold(phi)
        if block.size > 1:
            none = self.start(block, self.deviations(block, t))[len(t) :]
            phi = xp.where(self.deviations(block, t).max(0) < VANISHED, none, phi)
        return xp.concatenate([t, phi]), xp.concatenate([t_sign, phi_sign])

    def smallest(self, block: Block, theta: Array) -> Array:
        t, phi = self.cut(block, theta)
        s = abs(self.deviations(block, t))
        return s.min(0)[None] * self.family.smallest(phi, block.size, block.detail) if block.size > 1 else s

    def scale(self, block: Block, z: Array) -> Array:
        xp = namespace(z)
        own = z[:1] if self.homogeneous else xp.sqrt(z)
        return xp.concatenate([own, xp.ones((self.n_angles(block), *z.shape[1:]), own.dtype)])

    # ---- labels

    def names(self, block: Block, columns: Sequence[str]) -> list[str]:
        own = ["sd"] if self.homogeneous else [f"√sd {name}" for name in columns]
        return own + (self.family.names(block.size) if block.size > 1 else [])

    def lags(self, block: Block) -> list[int]:
        return self.family.lags(block.size) if block.size > 1 else []

    def pairs(self, block: Block) -> list[tuple[int, int]]:
        return [*((i, i) for i in range(self.n_scales(block))), *((k, 0) for k in self.lags(block))]

    def quantities(self, block: Block, columns: Sequence[str]) -> list[Quantity]:
        own = [Quantity("SD", "sd", 0)] if self.homogeneous else deviations(columns)
        if self.family.distance is not None and block.size > 1:
            distance = self.family.distance(block.size, block.detail)
            return [*own, Quantity("Range", "range", 1, 0, distance)]
        lags = self.lags(block)
        return [*own, *(Quantity(f"ρ lag {k}" if len(lags) > 1 else "ρ", "correlation", k, 0) for k in lags)]


def scaled(family: Correlation, *, homogeneous: bool, **more: Any) -> Structure:
    """The entry of a family of correlations; ``more`` are fields of ``Structure`` such as its spellings."""
    own = _Scaled(family, homogeneous)
    entry = Structure(
        n_theta=own.n_theta,
        root=own.root,
        derivatives=own.derivatives,
        filled=own.filled,
        start=own.start,
        near=own.near,
        opposite=own.opposite,
        canonical=own.canonical,
        smallest=own.smallest,
        scale=own.scale,
        names=own.names,
        pairs=own.pairs,
        quantities=own.quantities,
        homogeneous=homogeneous,
        apart=not homogeneous,
        leans=True,
        moments=True,
    )
    return entry._replace(**more)


def _derivatives(s: Array, E: Array, F: Array, R: Array, dR: Array, ddR: Array) -> tuple[Array, Array]:
    """∂Ψ and ∂²Ψ of Ψ_ij = s_i s_j R_ij in (t, φ) by the product rule; s, E, F as ``slopes`` gives them."""
    xp = namespace(s, R)
    slope = E[:, None] * s[None, :, None] + s[:, None, None] * E[None]
    across = E[:, None, :, None] * E[None, :, None]
    bend = F[:, None] * s[None, :, None, None] + s[:, None, None, None] * F[None]
    bend = bend + across + xp.swapaxes(across, 2, 3)
    product = s[:, None] * s[None]
    mixed = slope[:, :, :, None] * dR[:, :, None]
    first = xp.concatenate([slope * R[:, :, None], product[:, :, None] * dR], axis=2)
    upper = xp.concatenate([bend * R[:, :, None, None], mixed], axis=3)
    lower = xp.concatenate([xp.swapaxes(mixed, 2, 3), product[:, :, None, None] * ddR], axis=3)
    return first, xp.concatenate([upper, lower], axis=2)


def read_coordinates(given: Any, size: int) -> Detail:
    """Coordinates of the effects, finite and increasing."""
    try:
        c = np.asarray(given, float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"coordinates must be numbers, one per effect; got {given!r}") from error
    if len(c) != size:
        raise DataError(f"an exponential structure needs a coordinate for each of its {size} effects; got {len(c)}")
    if not np.isfinite(c).all() or (np.diff(c) <= 0).any():
        raise DataError(f"coordinates must be finite and increase from effect to effect; got {c.tolist()}")
    return tuple(c.tolist())
