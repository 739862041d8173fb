"""`tinyalign data`: what is in a data set, before hours are spent on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import say, say_json, say_table
from tinyalign.errors import ModelError
from tinyalign.training.recipe.data import DataSource


@dataclass(kw_only=True)
class ValidateArgs(DataSource):
    """Arguments of `tinyalign data validate`."""

    path: str = field(metadata=POSITIONAL)
    """A file, folder, glob or URL, or the name "easy_vqa"."""
    streaming: bool = False
    """Read shards in one pass, in their order, without an index of all samples first."""
    tokenizer: str | None = None
    """Also look for over-long samples with the tokenizer of this language model: a hub id, a
    folder, a .gguf file, or "smollm2-135m"."""
    max_length: int = 2048
    """Tokens of text that a sample may have."""
    seed: int = 0
    """Of the draw of captions."""
    show: int = 20
    """At most so many problems are spelled out under the table."""
    strict: bool = False
    """End with exit code 1 if anything is wrong."""
    json: bool = False
    """Print the report, every problem in it, as JSON."""


def validate(args: ValidateArgs) -> int:
    """Read every sample and decode every image of a data set, and report what is wrong.

    Missing and corrupt images, empty and odd conversations, over-long samples and duplicate ids
    are counted in a table and named; so are shards that cannot be read to their end.
    """
    from tinyalign.data.validate import validate as look
    from tinyalign.training.recipe.sources import open_source, open_source_stream

    if args.streaming:
        in_order = replace(args, shuffle_buffer=0)
        dataset: Any = open_source_stream(in_order, args.seed, epochs=1)
    else:
        dataset = open_source(args, args.seed, keep_unreadable=True)
    tokenizer = None if args.tokenizer is None else load_tokenizer(args.tokenizer)
    report = look(dataset, tokenizer, args.max_length)
    if args.json:
        say_json(report.as_dict())
    else:
        say_table(report.table())
        for problem in report.problems[: args.show]:
            say(f"{problem.kind}  {problem.id}: {problem.detail}")
        if len(report.problems) > args.show:
            say(f"and {len(report.problems) - args.show} more; --show or --json lists them")
        if tokenizer is None:
            say("Lengths were not looked at; name a language model with --tokenizer for that.")
    return int(args.strict and not report.ok)


def load_tokenizer(spec: str) -> Any:
    """The tokenizer of what `load_language` takes, without loading the language model."""
    from transformers import AutoTokenizer

    from tinyalign.model.backbones.language import PACKAGED
    from tinyalign.model.backbones.packaged_weights import packaged_file

    name = str(packaged_file(*PACKAGED[spec])) if spec in PACKAGED else spec
    folder, file = _folder_and_file(name)
    try:
        return AutoTokenizer.from_pretrained(folder, **file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{spec}: no tokenizer can be loaded from it ({error})") from error


def _folder_and_file(name: str) -> tuple[str, dict[str, str]]:
    if not name.endswith(".gguf"):
        return name, {}
    folder, _, file = name.rpartition("/")
    return folder or ".", {"gguf_file": file}
