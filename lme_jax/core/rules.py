"""Derivative rules for what the core writes once: ``jax.custom_jvp``, made when the first JAX array comes."""

import functools
from collections.abc import Callable
from typing import Any

from .types import is_host


class CustomJvp:
    """A function that NumPy arrays run as it is, and that JAX differentiates by the rule given to ``defjvp``."""

    def __init__(self, function: Callable[..., Any], nondiff_argnums: tuple[int, ...]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._nondiff = function, nondiff_argnums
        self._rule: Callable[..., Any] | None = None
        self._symbolic = False

    def defjvp(self, symbolic_zeros: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate the rule: (*static arguments, primals, tangents) → (value, tangent)."""

        def keep(rule: Callable[..., Any]) -> Callable[..., Any]:
            self._rule, self._symbolic = rule, symbolic_zeros
            return rule

        return keep

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments) if is_host(arguments) else self._traced(*arguments)

    @functools.cached_property
    def _traced(self) -> Any:
        import jax

        function = jax.custom_jvp(self._function, nondiff_argnums=self._nondiff)
        function.defjvp(self._rule, symbolic_zeros=self._symbolic)  # type: ignore[arg-type]
        return function


def custom_jvp(nondiff_argnums: tuple[int, ...]) -> Callable[[Callable[..., Any]], CustomJvp]:
    """Decorate a function with a rule of its own; the arguments ``nondiff_argnums`` are static."""
    return lambda function: CustomJvp(function, nondiff_argnums)
