"""The LLM-independent compressor: Perceiver, tokenizer and key function, kept in one folder.

It turns pairs into what a bank stores, values E_R (32 x 96) and keys K_m, and instructions
what queries are made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.memory.bank.files import check_readable, common_mode, copy_file
from tinyalign.memory.keys.aligned import AlignedKeyFunction, fold_of
from tinyalign.memory.keys.image_text import KeyFunction
from tinyalign.memory.keys.text import encode_text, text_spans, train_tokenizer

if TYPE_CHECKING:
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.model.perceiver import PerceiverCompressor

__all__ = ["Compressor", "text_spans", "train_tokenizer"]

TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
AnyKeyFunction: TypeAlias = KeyFunction | AlignedKeyFunction
# What decides the Perceiver's function besides its weights' shapes.
DEFINING = (
    "num_self_attention_heads",
    "num_cross_attention_heads",
    "input_mode",
    "max_text_tokens",
)


class Compressor:
    """Perceiver + tokenizer + key function. The folder holds config.json, model.safetensors,
    tokenizer.json, key.json and key.safetensors.
    """

    def __init__(
        self, perceiver: PerceiverCompressor, tokenizer: Tokenizer, key_function: AnyKeyFunction
    ) -> None:
        """The tokenizer must fit the Perceiver's vocabulary; raises ConfigError otherwise."""
        size, room = tokenizer.get_vocab_size(), perceiver.config.vocab_size
        if size > room:
            raise ConfigError(
                f"the tokenizer has {size} tokens, the Perceiver's vocabulary only {room}"
            )
        self.perceiver = perceiver.eval()
        self.tokenizer = tokenizer
        self.key_function = key_function

    @property
    def hash(self) -> str:
        """Hash of what makes values: the Perceiver's weights and settings, and the tokenizer."""
        settings = {name: getattr(self.perceiver.config, name) for name in DEFINING}
        weights = hash_tensors(self.perceiver.state_dict())
        return hash_json([settings, weights, self.tokenizer.to_str()])

    @property
    def device(self) -> torch.device:
        """Where the Perceiver is."""
        return next(self.perceiver.parameters()).device

    @property
    def value_shape(self) -> tuple[int, int]:
        """(latents, width) of a value; (32, 96) in the paper."""
        return self.perceiver.config.num_latents, self.perceiver.config.d_latents

    def to(self, device: str | torch.device) -> Compressor:
        """Move the Perceiver; keys follow the device of their input by themselves."""
        self.perceiver.to(torch.device(device))
        return self

    # -- text ---------------------------------------------------------------------------------

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L) int64 and mask (B, L) bool, on the CPU; padding is 0 and at the end."""
        return encode_text(self.tokenizer, texts, self.perceiver.config.max_text_tokens)

    def query_ids(self, instructions: Sequence[str]) -> Tensor:
        """Ids (B, L) of instructions for a query; their mask is `ids != 0`."""
        return self.encode_text(instructions)[0]

    # -- keys and values ----------------------------------------------------------------------

    def keys(
        self,
        features: Tensor | None,
        instructions: Sequence[str] | None = None,
        image_hashes: Sequence[str] | None = None,
    ) -> Tensor:
        """Queries (B, d_k) from features (B, n, D) and instructions; fp32, unit length.

        image_hashes: give them for training samples, so that a key function that was fitted on
        them leaves each sample's own fold out (see `tinyalign.memory.keys.aligned`).
        """
        ids = None if instructions is None else self.query_ids(instructions)
        if image_hashes is None or not isinstance(self.key_function, AlignedKeyFunction):
            return self.key_function.keys(features, ids)
        folds = [fold_of(name, self.key_function.n_folds) for name in image_hashes]
        return self.key_function.keys(features, ids, folds=folds)

    def entry_keys(
        self, features: Tensor | None, instructions: Sequence[str], texts: Sequence[str]
    ) -> Tensor:
        """Keys (B, d_k) of entries from features (B, n, D), instructions and whole texts."""
        ids, text_ids = self.query_ids(instructions), self.query_ids(texts)
        return self.key_function.entry_keys(features, ids, text_ids)

    @torch.no_grad()
    def values(
        self,
        features: Tensor | None,
        texts: Sequence[str],
        images: Sequence[Image.Image] | None = None,
    ) -> Tensor:
        """E_R of pairs: latents (B, 32, 96) fp32 on the Perceiver's device.

        features (B, n, D) for a Perceiver that reads frozen features, images for one that
        reads pixels. A text is read whole, up to `max_text_tokens`.
        """
        ids, mask = self.encode_text(texts)
        ids, mask = ids.to(self.device), mask.to(self.device)
        if self.perceiver.config.input_mode == "pixels":
            if images is None:
                raise ConfigError("this Perceiver reads pixels: values needs the images")
            pixels = self.pixels(images).to(self.device)
            return self.perceiver(ids, mask, pixel_values=pixels).float()
        if features is None:
            raise ConfigError("this Perceiver reads frozen features: values needs them (B, n, D)")
        features = features.to(self.device, torch.float32)
        return self.perceiver(ids, mask, image_features=features).float()

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images to (B, 3, S, S) fp32 in -1..1, S the Perceiver's image_size; bicubic."""
        size = (self.perceiver.config.image_size,) * 2
        resized = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
        array = np.stack([np.asarray(image, dtype=np.float32) for image in resized])
        return (
            torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1
        )  # (B, S, S, 3) -> (B, 3, S, S)

    # -- on disk ------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the five files into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.perceiver.save_pretrained(folder)
        common_mode(folder / WEIGHTS)
        self.tokenizer.save(str(folder / TOKENIZER))
        self.key_function.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Compressor:
        """Read what `save` wrote, on the CPU. BankError names what is missing or damaged."""
        from tinyalign.model.perceiver import PerceiverCompressor

        folder = Path(folder)
        for name in ("config.json", WEIGHTS, TOKENIZER):
            if not (folder / name).is_file():
                raise BankError(f"{folder / name}: missing; a compressor folder needs it")
            check_readable(folder / name)
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise BankError(f"{folder / TOKENIZER}: damaged ({error})") from error
        try:
            perceiver = PerceiverCompressor.from_pretrained(folder)
        except Exception as error:
            raise BankError(f"{folder}: its Perceiver cannot be loaded ({error})") from error
        return cls(perceiver, tokenizer, load_key_function(folder))


def copy_compressor(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy a compressor's files byte by byte, named as in a manifest, from one folder to another.

    Raises BankError for a file that cannot be read or lies elsewhere, OSError where `target`
    cannot be written.
    """
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BankError(
                f"{source}: its compressor has a file {name!r}, expected one inside the folder; "
                "use it only if you know who made it, and build it again"
            )
        copy_file(source / name, target / name)


def load_compressor(bank: MemoryBank) -> Compressor:
    """The compressor in a bank's own folder, on the CPU: the one that made its keys and values.

    Raises BankError as `Compressor.load` does, and where the manifest names another Perceiver or
    another key function.
    """
    compressor = Compressor.load(bank.compressor_folder)
    found, wanted = compressor.hash, bank.manifest.compressor_hash
    if found != wanted:
        raise BankError(
            f"{bank.compressor_folder}: this Perceiver (hash {found}) did not make the bank's "
            f"values (hash {wanted}); it was replaced, restore it from a copy"
        )
    check_key_function(bank, compressor)
    return compressor


def check_key_function(bank: MemoryBank, compressor: Compressor) -> None:
    """Raise BankError unless the compressor's key function made the bank's keys."""
    found, wanted = compressor.key_function.hash, bank.manifest.key_hash
    if found != wanted:
        raise BankError(
            f"{bank.folder}: its keys come from another key function (hash {wanted}, the one "
            f"given has {found}); use the one in {bank.compressor_folder}"
        )


def load_key_function(folder: str | Path) -> AnyKeyFunction:
    """The key function saved in a folder, of whichever kind key.json names.

    BankError names the file that is missing or damaged.
    """
    try:
        kind = json.loads((Path(folder) / "key.json").read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        path = Path(folder) / "key.json"
        raise BankError(f"{path}: not a readable key function ({error})") from error
    check_readable(Path(folder) / "key.safetensors")
    return AlignedKeyFunction.load(folder) if kind == "aligned" else KeyFunction.load(folder)
