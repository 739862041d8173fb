"""Things that have a name in a recipe or on the command line, ours and other packages'.

Another package adds one in either of two ways: it calls `register` (`tinyalign.register_fusion`
and its like), or it announces an entry point, which is found without an import of its own.
Ours are named by where they live and imported when they are first asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from tinyalign.errors import ConfigError, TinyAlignError

T = TypeVar("T")


@dataclass(frozen=True)
class Lazy:
    """Something that is imported when it is first used."""

    where: str
    """"package.module:name"."""

    def load(self) -> Any:
        """Import it."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(module), name)


class Registry(Mapping[str, T], Generic[T]):
    """Name -> thing, in the order in which they were added; ours first, entry points last."""

    def __init__(
        self,
        kind: str,
        group: str,
        own: Mapping[str, T | Lazy],
        error: type[TinyAlignError] = ConfigError,
    ) -> None:
        """kind: what its things are called in messages. group: the entry points' group. error:
        what an unknown name raises."""
        self.kind, self.group, self.error = kind, group, error
        self._found: dict[str, T | Lazy | EntryPoint] = dict(own)
        self._own = frozenset(own)
        self._searched = False

    def register(self, name: str, thing: T) -> None:
        """Add a thing, or replace one of the same name that was registered before.

        Raises the registry's error for a name of one of ours, and for none at all.
        """
        if not name or name in self._own:
            raise self.error(
                f"{self.kind} {name!r}: expected a name of its own, found "
                f"{'one that TinyAlign uses' if name else 'none'}; choose another"
            )
        self._found[name] = thing

    def check(self, name: str) -> str:
        """The name, if there is something of that name. Raises the registry's error otherwise.

        "easy-vqa" and "easy_vqa" are one name; the one that was registered is given back.
        """
        if not isinstance(name, str):
            raise self.error(f"{self.kind}: expected one of {', '.join(self)}, found {name!r}")
        for spelled in (name, name.replace("-", "_"), name.replace("_", "-")):
            if spelled in self:
                return spelled
        near = difflib.get_close_matches(name, self, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "one of another package must be installed"
        raise self.error(f"{self.kind}: expected one of {', '.join(self)}, found {name!r}; {hint}")

    def __getitem__(self, name: str) -> T:
        name = self.check(name)
        found = self._found[name]
        if isinstance(found, (Lazy, EntryPoint)):
            found = self._found[name] = self._loaded(name, found)
        return found

    def _loaded(self, name: str, found: Lazy | EntryPoint) -> T:
        if isinstance(found, Lazy):
            return found.load()
        try:
            return found.load()
        except Exception as error:  # whatever another package's import raises
            raise self.error(
                f"{self.kind} {name!r}: its package announces it as {found.value}, which cannot be "
                f"imported ({error}); repair or remove that package"
            ) from error

    def get(self, name: str, default: Any = None) -> Any:
        """The thing of that name, or `default`."""
        return self[name] if name in self else default  # noqa: SIM401

    def __contains__(self, name: object) -> bool:
        if name not in self._found:
            self._search()
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        self._search()
        return iter(self._found)

    def __len__(self) -> int:
        self._search()
        return len(self._found)

    def _search(self) -> None:
        """Look once for what installed packages announce; nobody's may hide one of ours."""
        if not self._searched:
            self._searched = True
            for entry in entry_points(group=self.group):
                self._found.setdefault(entry.name, entry)
