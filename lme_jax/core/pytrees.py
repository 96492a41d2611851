"""Frozen dataclasses that JAX sees as pytrees, whichever of the two is imported first.

JAX is not imported for them. Where it is there already a class registers itself at once; otherwise all of
them register when JAX is imported, before any other code can see it.
"""

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")

_classes: list[type] = []
_registered: set[type] = set()


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree; fields marked ``static()`` are metadata."""
    frozen = dataclasses.dataclass(frozen=True)(cls)
    _classes.append(frozen)
    if hasattr(sys.modules.get("jax"), "tree_util"):
        _register_all()
    return frozen


def static() -> Any:
    """A field that is part of the pytree's structure: hashable, and compared when tracing."""
    return dataclasses.field(metadata={"static": True})


def _names(cls: type, is_static: bool) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if bool(f.metadata.get("static")) is is_static]


def _register_all() -> None:
    import jax

    for cls in _classes:
        if cls not in _registered:
            _registered.add(cls)
            jax.tree_util.register_dataclass(cls, data_fields=_names(cls, False), meta_fields=_names(cls, True))


def children(node: Any) -> tuple[Any, ...] | None:
    """The parts of a node of a pytree, or None of a leaf; without JAX."""
    if type(node) in _classes:
        return tuple(getattr(node, name) for name in _names(type(node), False))
    if isinstance(node, (tuple, list)):
        return tuple(node)
    if isinstance(node, dict):
        return tuple(node.values())
    return () if node is None else None


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of a pytree; without JAX."""
    parts = children(tree)
    if parts is None:
        yield tree
    else:
        for part in parts:
            yield from leaves(part)


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """``jax.tree.map`` over dataclasses of this module, tuples, named tuples, lists and dicts; without JAX."""
    parts = children(tree)
    if parts is None:
        return function(tree, *others)
    rest: list[Any] = [children(other) for other in others]
    mapped = [tree_map(function, *together) for together in zip(parts, *rest, strict=True)]
    if type(tree) in _classes:
        return dataclasses.replace(tree, **dict(zip(_names(type(tree), False), mapped, strict=True)))
    if isinstance(tree, dict):
        return dict(zip(tree, mapped, strict=True))
    if tree is None:
        return None
    return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)


class _WhenJaxComes(importlib.abc.MetaPathFinder):
    """Lets the import of JAX go its way, and registers the classes at its end."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "jax":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: resources and reloading work as without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException:
            sys.meta_path.insert(0, _WhenJaxComes())
            raise
        _register_all()


if "jax" not in sys.modules:
    sys.meta_path.insert(0, _WhenJaxComes())
