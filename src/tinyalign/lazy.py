"""Names that a package hands on and imports when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(old: str, new: str) -> str:
    """The sentence that tells a new name."""
    return f"{old} is now called {new}; the old name still works, and will go in version 1.0"


def exports(
    package: str, names: Mapping[str, str], old: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """(`__getattr__`, `__dir__`, `__all__`) for a package's `__init__`.

    names: what it hands on -> the module that has it. old: names of an earlier version ->
    "module:name" of today, with a DeprecationWarning.
    """
    former = dict(old or {})

    def getattr_(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        if name in former:
            module, _, new = former[name].partition(":")
            said = renamed(f"{package}.{name}", f"{module}.{new}")
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(module), new)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattr_, lambda: sorted(names), sorted(names)


def former(old: str, new: str) -> Any:
    """A property for the name that an attribute had, with a DeprecationWarning."""

    def get(self: Any) -> Any:
        said = renamed(f"{type(self).__name__}.{old}", f"{type(self).__name__}.{new}")
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(get, doc=f"The former name of `{new}`.")
