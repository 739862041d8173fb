"""Argument dataclasses to command-line options: one field, one option, its docstring the help.

Types, choices and defaults are checked and shown by jsonargparse. An option for a list of texts
is given once for each of them.
"""

from __future__ import annotations

import inspect
import shlex
from argparse import BooleanOptionalAction
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from tinyalign.cli.front.recipe_options import add_recipe_options
from tinyalign.errors import ConfigError
from tinyalign.training.recipe.data import RECIPE_ONLY, DataSource
from tinyalign.training.recipe.fields import field_docs

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# Marks for `dataclasses.field(metadata=...)`.
POSITIONAL = {"positional": True}
"""The field is given by its place on the command line, without a name."""
REST = {"rest": True}
"""The field (list[str]) takes every option that is no field's, as it was typed."""
NAME = "name"
"""What the option is called, where it is not called as the field."""
LEAST = {"batch_size": 1, "workers": 0}
"""Options that must not be lower, whatever verb they are of."""


@dataclass(kw_only=True)
class DataOptions(DataSource):
    """A data set: what `DataSource` has, with `--data` for its path."""

    path: str = field(metadata={NAME: "data"})
    """A file, folder or glob, or the name "easy_vqa"."""


def parse(function: Callable[..., int], prog: str, argv: Sequence[str]) -> Any:
    """The function's argument dataclass, filled from `argv`.

    On --help, one whose arguments take a recipe's settings too shows those as well. Ends the
    process, as parsers do, on --help and on arguments that do not fit.
    """
    from jsonargparse import ArgumentParser

    cls = arguments_class(function)
    takes_rest = next((f.name for f in fields(cls) if f.metadata == REST), None)
    wants_help = any(word in ("-h", "--help") for word in argv)
    parser = ArgumentParser(allow_abbrev=False)
    parser.prog, parser.description = prog, inspect.getdoc(function)
    add_options(parser, cls)
    parser.usage = usage(prog, cls)
    if wants_help:
        if takes_rest is not None:
            add_recipe_options(parser)
        parser.print_help()
        raise SystemExit(0)
    words, others = ([*argv], []) if takes_rest is None else _own(parser, argv)
    found = parser.parse_args([_dashed(word) for word in words])
    values = {
        each.name: found[_destination(each)]
        for each in fields(cls)
        if each.metadata not in (REST, RECIPE_ONLY)
    }
    if takes_rest is not None:
        values[takes_rest] = others
    for name, least in LEAST.items():
        if values.get(name) is not None and values[name] < least:
            raise ConfigError(f"{_flag(name)} must be at least {least}, found {values[name]}")
    return cls(**values)


def refuse_blank(**given: str | Sequence[str] | None) -> None:
    """ConfigError for an option, or one of its values, that is given without a word in it."""
    for name, value in given.items():
        values = [value] if isinstance(value, str) else value or ()
        if not all(one.strip() for one in values):
            raise ConfigError(f"{_flag(name)} is empty; give it a value, or leave it out")


def arguments_class(function: Callable[..., int]) -> Any:
    """The dataclass that a verb's function takes."""
    return get_type_hints(function)[next(iter(inspect.signature(function).parameters))]


def add_options(parser: ArgumentParser, cls: Any) -> None:
    """Add an option for each field: `batch_size` becomes `--batch-size`, a bool becomes a flag."""
    hints, docs = get_type_hints(cls), field_docs(cls)
    for each in sorted(fields(cls), key=lambda each: not _required(each)):
        if each.metadata in (REST, RECIPE_ONLY):
            continue
        required, name = _required(each), _destination(each)
        settings: dict[str, Any] = {"help": docs[each.name].replace("%", "%%")}
        if not required:
            settings["default"] = _default(each)
        if hints[each.name] == list[str]:
            many: dict[str, Any] = {"nargs": "+"} if _positional(each) else {"action": "append"}
            parser.add_argument(name if _positional(each) else _flag(name), **settings, **many)
        elif _positional(each):
            settings |= {"type": hints[each.name]} | ({} if required else {"nargs": "?"})
            parser.add_argument(name, **settings)
        elif hints[each.name] is bool:
            action = BooleanOptionalAction if each.default else "store_true"
            parser.add_argument(_flag(name), action=action, **settings)
        else:
            kind = hints[each.name]
            parser.add_argument(_flag(name), type=kind, required=required, **settings)


def repeated(args: Any, names: Sequence[str]) -> str:
    """The options among `names` that are not at their defaults, to be typed again; or nothing."""
    words: list[str] = []
    for each in fields(args):
        value = getattr(args, each.name)
        if each.name in names and value != each.default:
            words += [_flag(_destination(each)), str(value)]
    return shlex.join(words)


def usage(prog: str, cls: Any) -> str:
    """One line: what must be given; the options are listed below it anyway."""
    words = [prog]

    def place(each: Field[Any]) -> tuple[bool, bool]:
        return _positional(each), not _required(each)

    for each in sorted(fields(cls), key=place):
        name, required = _destination(each), _required(each)
        if _positional(each):
            words.append(name.upper() if required else f"[{name.upper()}]")
        elif required:
            words.append(f"{_flag(name)} {name.upper()}")
    words.append("[options]")
    return " ".join(words)


def _required(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _positional(each: Field[Any]) -> bool:
    return bool(each.metadata.get("positional"))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _destination(each: Field[Any]) -> str:
    return each.metadata.get(NAME, each.name)


def _dashed(word: str) -> str:
    """--batch_size may be written for --batch-size, as recipes have it."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _own(parser: ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words of the parser's own options with their values, all others)."""
    takes = {name: a.nargs != 0 for a in parser._actions for name in a.option_strings}
    own: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in takes:
            others.append(word)
            continue
        own.append(word)
        if takes[name] and not equals:
            own += [value for value in [next(words, None)] if value is not None]
    return own, others
