"""`tinyalign VERB ...`: finds the verb, runs it, and turns errors into one line for people."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tinyalign.cli.front import old_names
from tinyalign.errors import TinyAlignError
from tinyalign.lazy import renamed
from tinyalign.version import __version__

DEBUG = "TINYALIGN_DEBUG"


@dataclass(frozen=True)
class Verb:
    """Where a verb's function lives: imported only when the verb is called."""

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., int]:
        """The function, which takes its argument dataclass and returns the exit code."""
        return getattr(importlib.import_module(f"tinyalign.cli.{self.module}"), self.function)


VERBS = {
    "quickstart": Verb("quickstart", "quickstart", "the whole method on small models, in minutes"),
    "data validate": Verb("data", "validate", "look for damage in a data set"),
    "perceiver train": Verb(
        "perceiver", "perceiver_train", "train the Perceiver that makes memories"
    ),
    "bank build": Verb("bank.build", "bank_build", "turn pairs into a memory bank"),
    "bank add": Verb("bank.changes", "bank_add", "remember more pairs, or one image and text"),
    "bank update": Verb("bank.changes", "bank_update", "replace pairs by others with their ids"),
    "bank remove": Verb("bank.changes", "bank_remove", "forget by id, by data set or by search"),
    "bank merge": Verb("bank.files", "bank_merge", "one new bank of several"),
    "bank compact": Verb("bank.files", "bank_compact", "free the room of removed entries"),
    "bank search": Verb("bank.look", "bank_search", "find memories by image, by text, or by both"),
    "bank info": Verb("bank.look", "bank_info", "what a bank was made of, and how large it is"),
    "bank verify": Verb(
        "bank.look", "bank_verify", "read every byte of a bank and name all damage"
    ),
    "bank log": Verb("bank.look", "bank_log", "the commits of a bank"),
    "bank audit": Verb("bank.audit", "bank_audit", "what a bank knows of evaluation data"),
    "bank export": Verb("bank.files", "bank_export", "a bank as parquet"),
    "bank import": Verb("bank.files", "bank_import", "a bank from parquet"),
    "bank push": Verb("bank.push", "bank_push", "bring a Milvus collection to what a bank is now"),
    "bank browse": Verb("bank.browse", "bank_browse", "look at a bank on a local web page"),
    "train": Verb("train", "train", "train a model by a recipe, with memory or without"),
    "estimate": Verb("estimate", "estimate", "what a recipe will take, before anything is done"),
    "evaluate": Verb("evaluate.verb", "evaluate", "judge a model on held-out samples"),
    "compare": Verb("compare", "compare", "two judged runs, paired: difference, interval, flips"),
    "score": Verb("evaluate.score", "score", "score official prediction files, without a model"),
    "ask": Verb("ask", "ask", "ask a model about an image"),
    "recipes list": Verb("train", "recipes_list", "the recipes that come with TinyAlign"),
    "recipes show": Verb("train", "recipes_show", "what is in a recipe"),
    "recipes launch": Verb("launch", "recipes_launch", "configurations for `accelerate launch`"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 only on success, 2 for errors of use.

    argv: the words after `tinyalign`; by default those of the process. With TINYALIGN_DEBUG=1
    errors come with their traceback and third parties may warn.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        name, rest = _split(words)
        if name is None:
            return _overview(rest)
        from tinyalign.cli.front.options import parse

        function = VERBS[name].load()
        rest = old_names.with_new_names(name, rest, _tell)
        arguments = parse(function, f"tinyalign {name}", rest)
        _prepare()
        code = function(arguments)
        sys.stdout.flush()  # here, where a reader that has gone is dealt with
        return code
    except SystemExit as stop:  # how an argument parser ends
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TinyAlignError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        _tell("stopped. The same command again goes on where this one was, wherever that is kept.")
        return 130


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """(verb, its arguments), or (None, words) where no verb is meant."""
    for size in (2, 1):
        name = " ".join(words[:size])
        if name in old_names.VERBS:
            _tell(renamed(f"tinyalign {name}", f"tinyalign {old_names.VERBS[name]}"))
            name = old_names.VERBS[name]
        if name in VERBS and len(words) >= size:
            return name, words[size:]
    return None, words


def _overview(words: list[str]) -> int:
    """Help on what verbs there are; also where the words name none of them."""
    if words == ["--version"]:
        sys.stdout.write(f"tinyalign {__version__}\n")
        return 0
    group = words[0] if words else ""
    chosen = {n: v for n, v in VERBS.items() if n.split()[0] == group} or VERBS
    asked = [word for word in words if word not in ("-h", "--help")]
    helped = len(asked) < len(words) and (not asked or (chosen is not VERBS and len(asked) == 1))
    if asked and not helped and (chosen is VERBS or len(asked) > 1):
        near = [new for old, new in old_names.VERBS.items() if old.split()[0] == asked[0]]
        near = near or difflib.get_close_matches(" ".join(asked[:2]), VERBS, n=1, cutoff=0.5)
        near = near or difflib.get_close_matches(asked[0], VERBS, n=1, cutoff=0.5)
        hint = f" Did you mean `tinyalign {near[0]}`?" if near else ""
        _tell(f"error: there is no `tinyalign {' '.join(asked[:2])}`.{hint}")
    lines = [f"  {name:<16}{verb.summary}" for name, verb in chosen.items()]
    page = (
        "usage: tinyalign VERB [options]\n\n"
        "Small vision-language models with a memory of their own training pairs.\n\n"
        + "\n".join(lines)
        + "\n\n`tinyalign VERB --help` lists a verb's options with their defaults; "
        "`tinyalign --version` says the version.\n"
    )
    (sys.stdout if helped else sys.stderr).write(page)
    return 0 if helped else 2


def _prepare() -> None:
    """The package's log to the terminal, and no chatter of third parties."""
    from tinyalign.log import setup_logging

    setup_logging()
    if os.environ.get(DEBUG) == "1":
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import enable_progress_bars
    from tqdm.auto import tqdm
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()  # a download may take long; the line above silences it too
    # The bar of unpacking a GGUF listens to no switch that could be set this late.
    vars(gguf)["tqdm"] = partial(tqdm, disable=True)


def _fail(error: Exception) -> int:
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(error)
    else:
        _tell(f"error: {error}")
    return 2


def _tell(message: str) -> None:
    sys.stderr.write(" ".join(message.split()) + "\n")
