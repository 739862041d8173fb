"""What happens at imports: old module paths find the new ones, and transformers finds our models.

`import tinyalign` puts one finder behind Python's own. It is asked for modules that nobody else
has, which old paths are; and it stands before them for the three modules of transformers that hold
its Auto classes, so that ours are registered the moment those exist, and torch is imported by none
of it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

from tinyalign.lazy import renamed
from tinyalign.old_paths import MOVED, RENAMED

AUTO = "transformers.models.auto"
OURS = "tinyalign.model."


class OldPath(ModuleType):
    """A module under its old path: whatever is asked of it, the new one answers."""

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(MOVED[self.__name__]))

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # what `import *` takes
            return [one for one in dir(self) if not one.startswith("_")]
        if name.startswith("__"):
            raise AttributeError(name)
        old = f"{self.__name__}.{name}"
        if old not in RENAMED:
            return getattr(importlib.import_module(MOVED[self.__name__]), name)
        module, _, new = RENAMED[old].partition(":")
        warnings.warn(renamed(old, f"{module}.{new}"), DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(module), new)


class OldPaths(MetaPathFinder, Loader):
    """Finds modules by the paths that they had, and says the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old path; None for everything else."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The stand-in."""
        return OldPath(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Tell the new path."""
        said = renamed(module.__name__, MOVED[module.__name__])
        warnings.warn(said, DeprecationWarning, stacklevel=2)


class Registration(MetaPathFinder):
    """Registers our classes with transformers' Auto classes as soon as those exist.

    It looks again whenever one of the Auto modules, or one of our model modules, has been imported:
    an import of ours may be what brings the Auto classes in, and half-imported classes cannot be
    registered.
    """

    def __init__(self) -> None:
        self.waiting = {
            f"{AUTO}.configuration_auto": "register_configs",
            f"{AUTO}.modeling_auto": "register_models",
            f"{AUTO}.processing_auto": "register_processor",
        }
        self._busy = False
        self._lock = RLock()

    def install(self) -> None:
        """Register what can be, and watch for the rest."""
        sys.meta_path.insert(0, self)
        self.register()

    def register(self) -> None:
        """Register with the Auto classes that are there, unless we are half imported ourselves."""
        with self._lock:
            ours = [name for name in tuple(sys.modules) if name.startswith(OURS)]
            if self._busy or any(map(_half_imported, ours)):
                return
            self._busy = True  # registering imports our modules
            try:
                while ready := self._ready():  # registering one may import another
                    registration = importlib.import_module(f"{OURS}registration")
                    getattr(registration, self.waiting[ready])()
                    del self.waiting[ready]
            finally:
                self._busy = False
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)

    def _ready(self) -> str | None:
        there = (name for name in self.waiting if name in sys.modules)
        return next((name for name in there if not _half_imported(name)), None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that looks again when it is done."""
        if fullname not in self.waiting and not fullname.startswith(OURS):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run: Any = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            spec._initializing = False  # type: ignore[attr-defined]  # it is done: so we look
            self.register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _half_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def install() -> None:
    """Put the finders in place; `import tinyalign` does so once."""
    sys.meta_path.append(OldPaths())
    Registration().install()
