"""Values with first and second derivatives, carried forward through products and sums; NumPy or JAX, no tracing.

Griewank & Walther (2008), Evaluating Derivatives, chapter 13.
"""

from dataclasses import dataclass
from typing import Any

from .types import Array, namespace


@dataclass(frozen=True)
class Jet:
    """A vector (m, *lanes) with its derivatives in n parameters.

    Attributes
    ----------
    value : (m, *lanes); first : (n, m, *lanes); second : (n, n, m, *lanes).
    """

    value: Array
    first: Array
    second: Array

    def __getitem__(self, which: Any) -> "Jet":
        """Some of the m entries."""
        return Jet(self.value[which], self.first[:, which], self.second[:, :, which])

    def __add__(self, other: "Jet") -> "Jet":
        return Jet(self.value + other.value, self.first + other.first, self.second + other.second)

    def __sub__(self, other: "Jet") -> "Jet":
        return Jet(self.value - other.value, self.first - other.first, self.second - other.second)

    def __mul__(self, other: "Jet") -> "Jet":
        across = self.first[:, None] * other.first[None]
        bent = self.second * other.value + self.value * other.second
        return Jet(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            bent + across + namespace(across).swapaxes(across, 0, 1),
        )

    def sum(self) -> "Jet":
        """The sum of the entries, as a vector of one."""
        return Jet(self.value.sum(0)[None], self.first.sum(1)[:, None], self.second.sum(2)[:, :, None])


def joined(a: Jet, b: Jet) -> Jet:
    """The entries of one after those of the other."""
    xp = namespace(a.value, b.value)
    return Jet(
        xp.concatenate([a.value, b.value]),
        xp.concatenate([a.first, b.first], axis=1),
        xp.concatenate([a.second, b.second], axis=2),
    )


def elementwise(value: Array, slope: Array, bend: Array) -> Jet:
    """f(x) of n parameters x (n, *lanes), each of its own: f, f′ and f″ (n, *lanes)."""
    xp, n = namespace(value), len(value)
    unit = xp.eye(n, dtype=value.dtype).reshape(n, n, *[1] * (value.ndim - 1))
    return Jet(value, unit * slope[None], unit[:, :, None] * unit[None] * bend[None, None])
