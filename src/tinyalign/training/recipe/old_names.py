"""Settings by the names that they had before they lay in groups: read still, and told the new name.

Old recipes and run folders hold `memory.fusion_args`, `memory.alpha` and so on, flat; they mean
what they meant.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tinyalign.errors import ConfigError
from tinyalign.lazy import renamed
from tinyalign.vocabulary import OLD_CONTROLS

T = TypeVar("T")

GROUPS = ("fusion", "key", "bank", "perceiver")
FLAT_MEMORY: dict[str, str] = {
    "fusion_args": "fusion.args",
    "latents_used": "fusion.latents_used",
    "hidden_size": "fusion.hidden_size",
    "linear_skip": "fusion.linear_skip",
    "closed_form": "fusion.closed_form",
    "word_skip": "fusion.word_skip",
    "alpha": "key.alpha",
    "data": "bank.data",
    "captions": "bank.captions",
    "entries": "bank.entries",
    "keys_dtype": "bank.keys_dtype",
    "values_dtype": "bank.values_dtype",
    "compressor": "perceiver.path",
    "compress": "perceiver",
}
"""What lay in `memory` itself, and where it lies now."""
WAS_ONE_SETTING = {"fusion": "fusion.form", "key": "key.kind", "bank": "bank.path"}
"""Groups whose name was a single setting's."""


def with_new_names(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A recipe as nested values, every setting under its name of today; and what to say of it.

    settings: of a YAML file, a settings.json or a config.yaml, of this version or an older one.
    Raises ConfigError for a setting that stands there under both its names.
    """
    found = dict(settings)
    memory = found.get("memory")
    if not isinstance(memory, Mapping):
        return found, None
    groups, said = memory_with_new_names(memory)
    told = None
    if said:
        told = f"names of an older version, which will go in version 1.0: now {', '.join(said)}"
    return found | {"memory": groups}, told


def memory_with_new_names(memory: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings of `memory` in their groups, and "old is new" for each that was elsewhere."""
    groups: dict[str, Any] = {}
    said: list[str] = []
    for name, value in memory.items():
        new = _new_name(name, value)
        if new != name:
            said.append(f"memory.{name} is memory.{new}")
        _put(groups, str(new).split("."), value, f"memory.{new}")
    control = groups.get("control")
    if isinstance(control, str) and control in OLD_CONTROLS:
        groups["control"] = OLD_CONTROLS[control]
        said.append(f"memory.control {control} is {groups['control']}")
    return groups, said


def option_with_new_name(word: str, value: str | None) -> tuple[str, str | None, str | None]:
    """(option, its value, what to say) for `--memory.alpha 0.2` and its like.

    word: the option's name without its dashes; value: None where none follows.
    """
    room, _, name = word.partition(".")
    if room != "memory" or not name:
        return word, value, None
    first, _, rest = name.partition(".")
    if not rest and first in WAS_ONE_SETTING and not _is_group(value):
        new = WAS_ONE_SETTING[first]
    elif first in FLAT_MEMORY:
        new = FLAT_MEMORY[first] + (f".{rest}" if rest else "")
    elif name == "control" and value in OLD_CONTROLS:
        now = OLD_CONTROLS[value]
        return word, now, renamed(f"{word} {value}", now)
    else:
        return word, value, None
    return f"memory.{new}", value, renamed(f"--{word}", f"--memory.{new}")


def takes_old_names(
    names: Mapping[str, str], groups: Mapping[str, tuple[str, type]]
) -> Callable[[type[T]], type[T]]:
    """Let a dataclass be made, copied and read by old names too, with a DeprecationWarning.

    names: old field -> "group.field". groups: field -> the name that a plain value has in it.
    """

    def wrap(cls: type[T]) -> type[T]:
        made: Any = cls.__init__

        def __init__(self: Any, *args: Any, **given: Any) -> None:  # noqa: N807
            old = {name: given.pop(name) for name in names if name in given}
            for name, (_, group) in groups.items():
                if name in given and not isinstance(given[name], group):
                    old[name] = given.pop(name)
            made(self, *args, **given)
            for name in sorted(old, key=lambda name: "." in names.get(name, ".")):  # groups first
                setattr(self, name, old[name])
            if old:
                self.__post_init__()

        def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
            inner, group = groups.get(name, ("", object))
            new = f"{name}.{inner}" if not isinstance(value, group) else names.get(name)
            if new is None:
                object.__setattr__(self, name, value)
                return
            said = renamed(f"memory.{name}", f"memory.{new}")
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            _set(self, new, value)

        def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
            if name not in names:
                raise AttributeError(f"{type(self).__name__} has no setting {name!r}")
            said = renamed(f"memory.{name}", f"memory.{names[name]}")
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            value = self
            for part in names[name].split("."):
                value = getattr(value, part)
            return value

        __init__.__signature__ = inspect.signature(made)  # type: ignore[attr-defined]
        __init__.__doc__ = made.__doc__
        changed: Any = cls
        changed.__init__, changed.__getattr__ = __init__, __getattr__
        changed.__setattr__ = __setattr__
        return cls

    return wrap


def _new_name(name: Any, value: Any) -> Any:
    if name in WAS_ONE_SETTING and isinstance(value, str):
        return WAS_ONE_SETTING[name]
    return FLAT_MEMORY.get(name, name)


def _put(groups: dict[str, Any], where: list[str], value: Any, name: str) -> None:
    """Put a value into the groups; ConfigError where another one stands there already."""
    *outer, last = where
    for group in outer:
        groups[group] = groups.get(group) or {}
        groups = groups[group]
    there = groups.get(last)
    if value is None and last in GROUPS:  # the group with all its defaults
        value = {}
    if isinstance(value, Mapping) and isinstance(there, dict) and last in GROUPS:
        for inner, one in value.items():
            _put(there, [inner], one, f"{name}.{inner}")
    elif last in groups and there != value:
        raise ConfigError(
            f"{name} stands there twice, under its former name too: {there!r} and {value!r}; "
            "leave one of them out"
        )
    else:
        groups[last] = dict(value) if isinstance(value, Mapping) else value


def _set(holder: Any, where: str, value: Any) -> None:
    """Put a value into a group, of which the holder gets a copy: others may share it."""
    group, _, name = where.partition(".")
    new = {name: value}
    if not name:  # all settings of the Perceiver's training came as one
        given = value if isinstance(value, Mapping) else vars(value)
        new = {one: it for one, it in given.items() if one != "path" or it is not None}
    object.__setattr__(holder, group, replace(getattr(holder, group), **new))


def _is_group(value: str | None) -> bool:
    """Whether an option's value is a mapping in YAML."""
    return value is not None and value.lstrip().startswith("{")
