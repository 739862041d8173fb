"""A recipe's settings one by one: dotted name, type, default and what each is for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe."""

    name: str
    """Dotted, as in YAML: "pretrain.learning_rate"."""
    type: Any
    default: Any
    doc: str
    """The string under the field."""

    @property
    def option(self) -> str:
        """As on the command line: "--pretrain.learning-rate"."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_flag(self) -> bool:
        """Whether it is on or off: its option may come without a value."""
        return self.type is bool


def settings_of(cls: type, prefix: str = "", like: Any = None) -> Iterator[Setting]:
    """All settings of a dataclass and of the groups in it, in their order.

    like: an instance whose values are the defaults.
    """
    hints, docs = get_type_hints(cls), field_docs(cls)
    for each in fields(cls):
        name = f"{prefix}{each.name}"
        default = _default(each) if like is None else getattr(like, each.name)
        group = _group(hints[each.name])
        if group is None:
            yield Setting(name, hints[each.name], default, docs[each.name])
        else:
            yield from settings_of(group, f"{name}.", default)


@cache
def field_docs(cls: Any) -> dict[str, str]:
    """The string under each field of a dataclass and of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        for statement, after in pairwise(_classes(inspect.getfile(base))[base.__name__].body):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(after, ast.Expr):
                continue
            if isinstance(statement.target, ast.Name) and isinstance(after.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(after.value.value).split())
    return docs


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """The classes of a module by name, from its source: read once for all of them."""
    module = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {one.name: one for one in ast.walk(module) if isinstance(one, ast.ClassDef)}


def _group(kind: Any) -> type | None:
    """The dataclass that a field holds, be it optional; None for a plain setting."""
    found = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and is_dataclass(one)]
    return found[0] if found and getattr(kind, "__origin__", None) is not list else None


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    return None if each.default_factory is MISSING else each.default_factory()
