"""The Perceiver with its tokenizer and key function, kept in one folder; no LLM is known here.

It turns pairs into what a bank stores, values E_R (32 x 96) and keys K_m, and instructions
what queries are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.lazy import former
from tinyalign.memory.bank.files import check_readable, common_mode, copy_file
from tinyalign.memory.keys.folds import fold_of
from tinyalign.memory.keys.protocol import KeyFunction
from tinyalign.memory.keys.registry import load_key_function
from tinyalign.memory.keys.text import encode_text, text_spans, train_tokenizer

if TYPE_CHECKING:
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.model.perceiver import PerceiverNetwork

__all__ = ["Perceiver", "text_spans", "train_tokenizer"]

TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
# What decides the Perceiver's function besides its weights' shapes.
DEFINING = (
    "num_self_attention_heads",
    "num_cross_attention_heads",
    "input_mode",
    "max_text_tokens",
)


class Perceiver:
    """Perceiver network + tokenizer + key function. The folder holds config.json,
    model.safetensors, tokenizer.json, key.json and key.safetensors.
    """

    def __init__(
        self, network: PerceiverNetwork, tokenizer: Tokenizer, key_function: KeyFunction
    ) -> None:
        """The tokenizer must fit the Perceiver's vocabulary; raises ConfigError otherwise."""
        size, room = tokenizer.get_vocab_size(), network.config.vocab_size
        if size > room:
            raise ConfigError(
                f"the tokenizer has {size} tokens, the Perceiver's vocabulary only {room}"
            )
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.key_function = key_function

    perceiver = former("perceiver", "network")

    @property
    def hash(self) -> str:
        """Hash of what makes values: the Perceiver's weights and settings, and the tokenizer."""
        settings = {name: getattr(self.network.config, name) for name in DEFINING}
        weights = hash_tensors(self.network.state_dict())
        return hash_json([settings, weights, self.tokenizer.to_str()])

    @property
    def device(self) -> torch.device:
        """Where the Perceiver is."""
        return next(self.network.parameters()).device

    @property
    def value_shape(self) -> tuple[int, int]:
        """(latents, width) of a value; (32, 96) in the paper."""
        return self.network.config.num_latents, self.network.config.d_latents

    def to(self, device: str | torch.device) -> Perceiver:
        """Move the Perceiver; keys follow the device of their input by themselves."""
        self.network.to(torch.device(device))
        return self

    # -- text ---------------------------------------------------------------------------------

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, L) int64 and mask (B, L) bool, on the CPU; padding is 0 and at the end."""
        return encode_text(self.tokenizer, texts, self.network.config.max_text_tokens)

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
        if image_hashes is None or not self.key_function.n_folds:
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
        if self.network.config.input_mode == "pixels":
            if images is None:
                raise ConfigError("this Perceiver reads pixels: values needs the images")
            pixels = self.pixels(images).to(self.device)
            return self.network(ids, mask, pixel_values=pixels).float()
        if features is None:
            raise ConfigError("this Perceiver reads frozen features: values needs them (B, n, D)")
        features = features.to(self.device, torch.float32)
        return self.network(ids, mask, image_features=features).float()

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images to (B, 3, S, S) fp32 in -1..1, S the Perceiver's image_size; bicubic."""
        size = (self.network.config.image_size,) * 2
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
        self.network.save_pretrained(folder)
        common_mode(folder / WEIGHTS)
        self.tokenizer.save(str(folder / TOKENIZER))
        self.key_function.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Perceiver:
        """Read what `save` wrote, on the CPU. BankError names what is missing or damaged."""
        from tinyalign.model.perceiver import PerceiverNetwork

        folder = Path(folder)
        for name in ("config.json", WEIGHTS, TOKENIZER):
            if not (folder / name).is_file():
                raise BankError(f"{folder / name}: missing; a Perceiver folder needs it")
            check_readable(folder / name)
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise BankError(f"{folder / TOKENIZER}: damaged ({error})") from error
        try:
            network = PerceiverNetwork.from_pretrained(folder)
        except Exception as error:
            raise BankError(f"{folder}: its Perceiver cannot be loaded ({error})") from error
        return cls(network, tokenizer, load_key_function(folder))


def copy_perceiver(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy a Perceiver's files byte by byte, named as in a manifest, from one folder to another.

    Raises BankError for a file that cannot be read or lies elsewhere, OSError where `target`
    cannot be written.
    """
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BankError(
                f"{source}: its Perceiver has a file {name!r}, expected one inside the folder; "
                "use it only if you know who made it, and build it again"
            )
        copy_file(source / name, target / name)


def load_perceiver(bank: MemoryBank) -> Perceiver:
    """The Perceiver in a bank's own folder, on the CPU: the one that made its keys and values.

    Raises BankError as `Perceiver.load` does, and where the manifest names another Perceiver or
    another key function.
    """
    perceiver = Perceiver.load(bank.perceiver_folder)
    found, wanted = perceiver.hash, bank.manifest.perceiver_hash
    if found != wanted:
        raise BankError(
            f"{bank.perceiver_folder}: this Perceiver (hash {found}) did not make the bank's "
            f"values (hash {wanted}); it was replaced, restore it from a copy"
        )
    check_key_function(bank, perceiver)
    return perceiver


def check_key_function(bank: MemoryBank, perceiver: Perceiver) -> None:
    """Raise BankError unless the Perceiver's key function made the bank's keys."""
    found, wanted = perceiver.key_function.hash, bank.manifest.key_hash
    if found != wanted:
        raise BankError(
            f"{bank.folder}: its keys come from another key function (hash {wanted}, the one "
            f"given has {found}); use the one in {bank.perceiver_folder}"
        )
