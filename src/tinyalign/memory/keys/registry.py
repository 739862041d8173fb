"""Key functions by name, as `memory.key.kind` has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tinyalign.errors import BankError, ConfigError
from tinyalign.memory.bank.files import check_readable
from tinyalign.memory.keys.protocol import KeyCorpus, KeyFunction, KeyMaker
from tinyalign.registry import Lazy, Registry

_FITTING = "tinyalign.memory.keys.fitting"

KEY_FUNCTIONS: Registry[KeyMaker] = Registry(
    "key function",
    "tinyalign.key_functions",
    {
        "pooled": Lazy(f"{_FITTING}:IMAGE_TEXT"),
        "attention": Lazy(f"{_FITTING}:IMAGE_TEXT"),
        "aligned": Lazy(f"{_FITTING}:ALIGNED"),
        "joint": Lazy(f"{_FITTING}:JOINT"),
    },
)
"""Name to what fits and loads it; see `tinyalign.memory.keys.protocol`."""


def register_key_function(
    kind: str,
    fit: Callable[[KeyCorpus], KeyFunction],
    load: Callable[[str | Path], KeyFunction],
) -> None:
    """Let `memory.key.kind` name a key function of your own.

    fit(corpus) makes one from a `KeyCorpus`; load(folder) reads what its `save` wrote. Banks keep
    it with them, and whoever opens such a bank needs your package.
    """
    KEY_FUNCTIONS.register(kind, KeyMaker(fit, load))


def load_key_function(folder: str | Path) -> KeyFunction:
    """The key function saved in a folder, of whichever kind its key.json names.

    BankError names the file that is missing or damaged, or the kind that nothing here knows.
    """
    path = Path(folder) / "key.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BankError(f"{path}: not a readable key function ({error})") from error
    try:
        maker = KEY_FUNCTIONS[kind]
    except ConfigError as error:
        raise BankError(f"{path}: {error}") from error
    check_readable(Path(folder) / "key.safetensors")
    return maker.load(folder)
