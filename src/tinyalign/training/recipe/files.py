"""Recipes on disk: shipped ones by name, any by path, with overrides as on the command line."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tinyalign.errors import ConfigError, TinyAlignError
from tinyalign.log import logger
from tinyalign.training.recipe.fields import settings_of
from tinyalign.training.recipe.old_names import (
    memory_with_new_names,
    option_with_new_name,
    with_new_names,
)
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.without_effect import without_effect


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("tinyalign") / "recipes"
    names = [entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return sorted(name.removesuffix(".yaml") for name in names)


def find_recipe(name_or_path: str | Path) -> Path:
    """Path of a recipe: a YAML file, or the name of a shipped one. ConfigError lists those."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    if name in shipped_recipes():
        return Path(str(resources.files("tinyalign") / "recipes" / f"{name}.yaml"))
    raise ConfigError(
        f"{name_or_path}: no such recipe file, and no recipe of that name is shipped; there are "
        f"{', '.join(shipped_recipes())}"
    )


def shipped_launches() -> list[str]:
    """Names of the configurations for `accelerate launch` that come with the package, sorted."""
    folder = resources.files("tinyalign") / "recipes" / "accelerate"
    return sorted(Path(entry.name).stem for entry in folder.iterdir())


def find_launch(name: str) -> Path:
    """Path of a shipped configuration for `accelerate launch`. ConfigError lists those."""
    if name not in shipped_launches():
        raise ConfigError(
            f"{name}: no configuration of that name is shipped; there are "
            f"{', '.join(shipped_launches())}"
        )
    return Path(str(resources.files("tinyalign") / "recipes" / "accelerate" / f"{name}.yaml"))


def recipe_parser() -> Any:
    """A jsonargparse parser of recipes: `--config FILE` and an option for every field."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_class_arguments(Recipe, None)
    return parser


def load_recipe(
    name_or_path: str | Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read a recipe and put overrides on top.

    overrides: as on the command line (["--pretrain.learning_rate", "1e-4"]), or a mapping of
    dotted names. Raises ConfigError with one sentence for an unknown field, a value of another
    type or a setting out of range.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"--{name}={_as_option(value)}" for name, value in overrides.items()]
    arguments = [] if name_or_path is None else ["--config", _readable(find_recipe(name_or_path))]
    where = "recipe" if name_or_path is None else str(name_or_path)
    options = _options(overrides)
    parser = recipe_parser()
    try:
        with redirect_stderr(io.StringIO()):
            built = parser.instantiate_classes(parser.parse_args([*arguments, *options]))
        fields = {name: value for name, value in vars(built).items() if name != "config"}
        recipe = Recipe(**fields)
    except TinyAlignError:
        raise
    except Exception as error:  # jsonargparse raises ArgumentError, TypeError, KeyError, ...
        cause = _cause(error)
        if cause is not None:
            raise cause from None
        raise ConfigError(f"{where}: {str(error).strip()}") from error
    for line in without_effect(recipe):
        logger.warning("%s", line)
    return recipe


def _readable(path: Path) -> str:
    """A recipe's path, or, of one with names of an older version, what it says with today's."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return str(path)  # the parser words it
    if not isinstance(settings, Mapping):
        return str(path)
    today, said = with_new_names(settings)
    if said is not None:
        logger.warning("%s: %s", path, said)
    return str(path) if today == settings else yaml.safe_dump(today, sort_keys=False)


def _options(words: Sequence[str]) -> list[str]:
    """Overrides with the names that fields have now, each with its value behind "=".

    `--pretrain.learning-rate` is taken as well as `--pretrain.learning_rate`, a flag with a value
    or without (`--data.strict`, `--no-pretrain.packing`), and an old name with a warning.
    """
    flags = {setting.name for setting in settings_of(Recipe) if setting.is_flag}
    found: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            found.append(word)  # the parser words it
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name.removeprefix("no_") in flags and not equals and not _is_truth(left):
            turned_on = not name.startswith("no_")
            found.append(f"--{name.removeprefix('no_')}={str(turned_on).lower()}")
            continue
        given = value if equals else None
        if not equals and left and not left[0].startswith("--"):
            given = left.pop(0)
        if name == "memory" and given is not None:
            given = _memory_with_new_names(given)
        name, given, said = option_with_new_name(name, given)
        if said is not None:
            logger.warning("%s", said)
        found.append(f"--{name}" if given is None else f"--{name}={given}")
    return found


def _memory_with_new_names(given: str) -> str:
    """A mapping of memory's settings, as YAML, by today's names."""
    try:
        settings = yaml.safe_load(given)
    except yaml.YAMLError:
        return given  # the parser words it
    if not isinstance(settings, Mapping):
        return given
    settings, said = memory_with_new_names(settings)
    if said:
        logger.warning("--memory: now %s", ", ".join(said))
    return _as_option(settings)


def _is_truth(left: Sequence[str]) -> bool:
    """Whether the next word is a flag's value."""
    return bool(left) and left[0].lower() in ("true", "false", "yes", "no", "on", "off")


def _cause(error: BaseException) -> TinyAlignError | None:
    """The error of our own behind one that was wrapped on the way."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TinyAlignError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _as_option(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write everything, resolved, as YAML that `load_recipe` reads back."""
    text = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")
