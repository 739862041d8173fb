"""`tinyalign recipes launch`: the configurations for `accelerate launch` that come with us."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import columns, say, say_json, say_table


@dataclass(kw_only=True)
class RecipesLaunchArgs:
    """Arguments of `tinyalign recipes launch`."""

    name: str | None = field(default=None, metadata=POSITIONAL)
    """A configuration: print its path alone. Without one, all are listed."""
    json: bool = False
    """Print them as JSON."""


def recipes_launch(args: RecipesLaunchArgs) -> int:
    """The configurations for `accelerate launch`, to train on several GPUs by a recipe.

    accelerate launch --config_file $(tinyalign recipes launch fsdp2) --num_processes 4
    -m tinyalign train --config NAME
    """
    from tinyalign.training.recipe.files import find_launch, shipped_launches

    if args.name is not None:
        path = find_launch(args.name)
        if args.json:
            say_json({"name": args.name, "path": str(path)})
        else:
            say(str(path))
        return 0
    rows = [
        {"name": name, "path": str(find_launch(name)), "about": _about(find_launch(name))}
        for name in shipped_launches()
    ]
    if args.json:
        say_json(rows)
    else:
        short = ("name", "about")
        say_table(columns(short, [[row[name] for name in short] for row in rows]))
    return 0


def _about(path: Path) -> str:
    """The comment that a configuration begins with."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
