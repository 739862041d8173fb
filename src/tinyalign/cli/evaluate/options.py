"""The options of `tinyalign evaluate`, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from tinyalign.cli.evaluate.benchmark import BenchmarkOptions, check_untouched
from tinyalign.cli.front.options import NAME, DataOptions
from tinyalign.cli.search_options import AnswerOptions
from tinyalign.errors import ConfigError
from tinyalign.vocabulary import EvaluationControl

TASK_ONLY = ("format", "image_folder", "split", "prompt", "captions")
"""Options that say how a data set of --task is read."""


@dataclass(kw_only=True)
class EvaluateArgs(BenchmarkOptions, AnswerOptions, DataOptions):
    """Arguments of `tinyalign evaluate`."""

    model: str
    """A model's folder, or a run folder."""
    bank: str | None = None
    """A memory bank's folder or Milvus URI, or a run folder, whose bank is taken; without it the
    model runs without memory."""
    task: Literal["caption", "vqa", "easy_vqa"] | None = None
    """What to measure on data of your own: loss, CIDEr and BLEU-4 of captions, or loss and
    accuracy of answers."""
    benchmark: str | None = None
    """What to measure instead of a task: gqa, vqav2, textvqa, pope, scienceqa, mmmu, mme, mm-vet,
    containment, captions, easy-vqa or daquar, by its official rule."""
    lmms_eval: str | None = None
    """What to measure instead: a task of lmms-eval, by its own prompts and rules. Needs the extra
    lmms-eval."""
    include_path: str | None = None
    """Of lmms-eval: a folder with task files of your own."""
    path: str = field(default="", metadata={NAME: "data"})
    """Of a task: a file, folder or glob, or the name "easy_vqa". Of a benchmark: its official
    files, or their Hugging Face id."""
    images: str | None = None
    """Of a benchmark: its folder of images, if not where the official download has it."""
    out: str
    """Results file (.json) or its folder; predictions.jsonl goes beside it. A run that was
    stopped goes on where it was."""
    resume: bool = True
    """Go on from what lies in --out; --no-resume drops it and starts over."""
    split: str = "test"
    """The split, where a data set has several: the test split here, where other verbs take the
    training split unless told otherwise."""
    memory: Literal["on", "off"] = "on"
    """With a bank: "off" shows the model none of its memories."""
    control: EvaluationControl = "none"
    """With a bank: what is shown in the memories' place. "none": nothing, memories as they are
    found. "random": memories drawn at random. "shuffled": each memory with another entry's
    value."""
    no_image: bool = False
    """Leave the image out of the prompt, and the memories with it: what the text gives away."""
    rows: Literal["all"] | None = None
    """"all" runs memory on, off, shuffled, and text without image, each in a folder of its own
    in --out, and prints them in one table, with what memory answers without a model beside."""
    k: int | None = None
    """Memories a sample; by default the model's own."""
    shard: str | None = None
    """I/N: judge the I-th of N parts; the last shard to finish in the same --out joins them."""
    batch_size: int = 16
    """Samples at once; in float32 no prediction depends on it."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of tower and LLM, by default as saved. In bfloat16 an answer on the very edge can
    tip with the batch size."""
    max_new_tokens: int | None = None
    """Tokens an answer may have, by default enough for the task; 0 measures the loss alone."""
    loss: bool = True
    """Also measure the loss of the right answers; --no-loss takes about half the time."""
    seed: int = 0
    """Of the bootstrap, of drawn captions, and of shuffled and random memories."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    strict: bool = False
    """Refuse to judge what was in the bank or in --train-data, and stop at the first unusable
    sample, instead of saying so in the results."""
    train_data: str | None = None
    """Also look for the judged images in this data set: what the model was trained on."""
    json: bool = False
    """Print the results as JSON instead."""

    @property
    def shown(self) -> Literal["none", "random", "shuffled", "off"]:
        """The control, or "off"."""
        return self.control if self.memory == "on" else "off"

    @property
    def measured(self) -> str:
        """The benchmark or task."""
        return self.benchmark or self.task or ""


def check_evaluate(args: EvaluateArgs) -> None:
    """Say now what would be a pity to find out after hours."""
    from tinyalign.evaluation.results import refuse_unknown, results_path

    _check_source(args)
    one = [("batch_size", 1), ("beams", 1), ("best_of", 1)]
    for name, least in (*one, ("max_new_tokens", 0 if args.task else 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, found {value}")
    check_bank(args)
    if args.best_of > 1 and (args.bank is None or args.shown == "off" or args.no_image):
        raise ConfigError("--best-of chooses by what neighbours say; it needs a --bank, memory on")
    if args.rows and args.bank is None:
        raise ConfigError("--rows all compares a memory with none: it needs a --bank")
    if args.rows and (args.no_image or args.shown != "none"):
        raise ConfigError(
            "--rows all sets --memory, --control and --no-image itself; leave them out"
        )
    if args.rows and args.out.endswith(".json"):
        raise ConfigError(f"--rows all writes several results: --out {args.out} must be a folder")
    if args.resume and not args.rows:
        refuse_unknown(results_path(args.out))


def check_bank(args: EvaluateArgs) -> None:
    """Raise ConfigError for a control that has no memories to take the place of."""
    if args.control != "none" and (args.bank is None or args.memory == "off"):
        raise ConfigError(
            f"--control {args.control} needs a --bank that memories come from, and memory on"
        )


def _check_source(args: EvaluateArgs) -> None:
    if (args.task is None) == (args.benchmark is None):
        raise ConfigError("say what to measure: one of --task, --benchmark and --lmms-eval")
    if args.include_path is not None:
        raise ConfigError("--include-path goes with --lmms-eval alone")
    if args.task is not None:
        check_untouched(args)
        if args.images is not None:
            raise ConfigError("--images goes with --benchmark; of a task it is --image-folder")
    else:
        for each in fields(args):
            if each.name in TASK_ONLY and getattr(args, each.name) != each.default:
                raise ConfigError(f"--{each.name.replace('_', '-')} goes with --task alone")
    if not args.path and (args.benchmark or "").replace("_", "-") != "easy-vqa":
        raise ConfigError("name what to judge on with --data")
