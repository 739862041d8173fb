"""`tinyalign train` and `tinyalign recipes`: from a recipe to a run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyalign.cli.front.options import POSITIONAL, REST
from tinyalign.cli.front.output import columns, facts, say, say_json, say_table
from tinyalign.vocabulary import CacheChoice


@dataclass(kw_only=True)
class TrainArgs:
    """Arguments of `tinyalign train`, besides the recipe's own."""

    config: str
    """A recipe: a YAML file, or the name of one that `tinyalign recipes list` shows."""
    stage: Literal["both", "pretrain", "finetune"] = "both"
    """Which stage to train; "both" of a recipe without stage-2 data is stage 1."""
    k: int | None = None
    """Memories a sample (memory.k); 0 is the recipe's baseline."""
    cache: CacheChoice | None = None
    """Which image cache to keep (data.cache)."""
    out: str | None = None
    """Run folder (output)."""
    resume: bool = True
    """Go on where an interrupted run stands; --no-resume starts over."""
    json: bool = False
    """Print where things are as JSON."""
    overrides: list[str] = field(default_factory=list, metadata=REST)
    """Any field of the recipe by its dotted name: --pretrain.learning-rate 5e-4."""


def train(args: TrainArgs) -> int:
    """Train a recipe's stages: Perceiver, memory bank and neighbours first, where it uses memory.

    Every field of the recipe is an option too and wins over the file, such as
    `--pretrain.learning-rate 5e-4`, `--seed 1` or `--device cpu`.
    """
    from tinyalign.training.machine.launch import is_first
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train as run

    recipe = load_recipe(args.config, _overrides(args))
    result = run(recipe, args.stage, args.resume)
    if not is_first():
        return 0
    if args.json:
        say_json(asdict(result))
        return 0
    stages = [
        (s.stage, s.steps, s.samples, s.eval_loss or "-", round(s.seconds)) for s in result.stages
    ]
    say_table(columns(("stage", "steps", "samples", "held-out loss", "seconds"), stages))
    say_table(facts(_places(result)))
    bank = "" if result.bank is None else f" --bank {result.folder}"
    model = f"--model {result.folder}{bank}"
    say("next:")
    say(f"  tinyalign ask {model} --image FILE" + (" --show-memories" if bank else ""))
    say(f"  tinyalign evaluate {model} --task caption --data PATH --out results/results.json")
    say(f"  tensorboard --logdir {result.folder}")
    return 0


def _overrides(args: TrainArgs) -> list[str]:
    found = list(args.overrides)
    if args.k is not None:
        found += ["--memory.k", str(args.k)]
    if args.cache is not None:
        found += ["--data.cache", args.cache]
    if args.out is not None:
        found += ["--output", args.out]
    return found


def _places(result: Any) -> list[tuple[str, Any]]:
    return [
        ("run", result.folder),
        ("model", result.model),
        ("bank", result.bank or "none: trained without memories"),
        ("settings", result.folder / "config.yaml"),
        ("metrics", result.folder / "metrics.jsonl"),
        ("log", result.folder / "log.txt"),
    ]


@dataclass(kw_only=True)
class RecipesListArgs:
    """Arguments of `tinyalign recipes list`."""

    json: bool = False
    """Print the recipes as JSON."""


def recipes_list(args: RecipesListArgs) -> int:
    """The recipes that come with TinyAlign; `tinyalign train --config NAME` takes them by name."""
    from tinyalign.training.recipe.files import find_recipe, load_recipe, shipped_recipes

    rows = []
    for name in shipped_recipes():
        recipe, about = load_recipe(name), _about(find_recipe(name))
        parts = {"language": recipe.model.language, "vision": recipe.model.vision}
        rows.append({"name": name, **parts, "k": recipe.memory.k, "about": about})
    if args.json:
        say_json(rows)
    else:
        short = ("name", "k", "about")
        say_table(columns(short, [[row[name] for name in short] for row in rows]))
    return 0


@dataclass(kw_only=True)
class RecipesShowArgs:
    """Arguments of `tinyalign recipes show`."""

    name: str = field(metadata=POSITIONAL)
    """A recipe's name, or a YAML file."""
    resolved: bool = False
    """Also show every setting that the file leaves at its default."""
    json: bool = False
    """Print every setting as JSON."""


def recipes_show(args: RecipesShowArgs) -> int:
    """A recipe as it is written: copy it to a file of your own and change that."""
    import yaml

    from tinyalign.training.recipe.files import find_recipe, load_recipe

    path = find_recipe(args.name)
    if args.json:
        say_json(load_recipe(path).as_dict())
    elif args.resolved:
        settings = load_recipe(path).as_dict()
        say(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip())
    else:
        say(path.read_text(encoding="utf-8").rstrip())
    return 0


def _about(path: Path) -> str:
    """The comment that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:first])
