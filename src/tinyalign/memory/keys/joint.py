"""Joint keys: an entry's text and its image side by side, each compared with its like.

The aligned key finds captions that say what an image should say; the image's own features find
pictures that look like it. Neither is enough: a search by both finds better neighbours than by
either. A joint key is the aligned key beside the image's mean features in their principal
directions, both of unit length, so that an inner product is

    (1 - alpha) * cos(what the query's image should say, the entry's text)
    + alpha * cos(the query's image, the entry's image).

What an image should say is read from the mean of its patches and from their largest values beside
it: a thing in one corner shows in the second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.memory.bank.files import common_mode, write_atomically
from tinyalign.memory.keys.aligned import AlignedKeyFunction

FORMAT_VERSION = 1
DIRECTIONS, SCALES = "directions", "scales"


class JointKeyFunction:
    """Keys (B, d_k), fp32, unit length: the aligned key, then the image's own features."""

    kind = "joint"
    uses_text = True
    uses_image = True

    def __init__(
        self, aligned: AlignedKeyFunction, scales: Tensor, directions: Tensor, alpha: float
    ) -> None:
        """aligned: of pooled images (`pooled`); scales (2,): what mean and largest values are
        divided by; directions (D, w): what an image's centred mean features are projected on;
        alpha: the image's share of the similarity.

        Raises ConfigError where the widths do not agree.
        """
        if directions.ndim != 2 or 2 * len(directions) != aligned.image_width or len(scales) != 2:
            raise ConfigError(
                f"joint keys: directions {tuple(directions.shape)} and scales "
                f"{tuple(scales.shape)} do not fit pooled images of width {aligned.image_width}"
            )
        self.aligned, self.scales = aligned, scales
        self.directions, self.alpha = directions, alpha

    @property
    def image_width(self) -> int:
        """D, the width of the vision features it takes."""
        return len(self.directions)

    @property
    def dim(self) -> int:
        """d_k, the length of a key."""
        return self.aligned.dim + self.directions.shape[1]

    @property
    def n_folds(self) -> int:
        """Folds of the cross-fit of the aligned part."""
        return self.aligned.n_folds

    @cached_property
    def hash(self) -> str:
        """Content hash of the settings and the tensors."""
        return hash_json([self.kind, FORMAT_VERSION, self.alpha, hash_tensors(self._tensors())])

    @torch.no_grad()
    def keys(
        self,
        vision_features: Tensor | None,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
        folds: Sequence[int] | None = None,
    ) -> Tensor:
        """Queries; see `AlignedKeyFunction.keys`. By text alone the image's part is zero."""
        seen = None if vision_features is None else self._pooled(vision_features)
        said = self.aligned.keys(seen, query_ids, query_mask, folds)
        return self._joined(said, seen)

    @torch.no_grad()
    def entry_keys(
        self, vision_features: Tensor | None, query_ids: Tensor, text_ids: Tensor
    ) -> Tensor:
        """Keys of entries, from the ids (B, L) of their whole text and their images."""
        seen = None if vision_features is None else self._pooled(vision_features)
        said = self.aligned.entry_keys(seen, query_ids, text_ids)
        return self._joined(said, seen)

    def _pooled(self, features: Tensor) -> Tensor:
        if features.ndim != 3 or features.shape[-1] != self.image_width:
            raise ConfigError(
                f"vision features must be (B, n, {self.image_width}) for this key function, "
                f"found {tuple(features.shape)}: use the encoder it was fitted with"
            )
        return pooled(features, self.scales.to(features.device))

    def _joined(self, said: Tensor, seen: Tensor | None) -> Tensor:
        """said (B, d), seen (B, 1, 2 D) or None -> (B, d + w)."""
        image = said.new_zeros(len(said), self.directions.shape[1])
        if seen is not None:
            mean = (seen[:, 0] - self.aligned.image_mean.to(seen.device))[:, : self.image_width]
            image = normalize(mean @ self.directions.to(seen.device), dim=-1).to(said.device)
        both = [(1.0 - self.alpha) ** 0.5 * said, self.alpha**0.5 * image]
        return normalize(torch.cat(both, dim=-1), dim=-1)

    # -- saving, loading ----------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        own = {DIRECTIONS: self.directions, SCALES: self.scales}
        own = {name: one.detach().cpu().float().contiguous() for name, one in own.items()}
        return {**self.aligned.tensors(), **own}

    def save(self, folder: str | Path) -> None:
        """Write key.json and key.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), folder / "key.safetensors")
        common_mode(folder / "key.safetensors")
        settings = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "alpha": self.alpha,
            "dim": self.dim,
            "hash": self.hash,
        }
        write_atomically(folder / "key.json", json.dumps(settings, indent=2).encode())

    @classmethod
    def load(cls, folder: str | Path) -> JointKeyFunction:
        """Read what `save` wrote. BankError names the file that is missing or damaged."""
        path = Path(folder) / "key.safetensors"
        try:
            settings = json.loads((Path(folder) / "key.json").read_text())
            tensors = load_file(path)
            own = tensors.pop(SCALES), tensors.pop(DIRECTIONS)
            made = cls(AlignedKeyFunction(**tensors), *own, settings["alpha"])
            wanted = settings["hash"]
        except (OSError, SafetensorError, TypeError, ValueError, KeyError, ConfigError) as error:
            raise BankError(f"{path}: not a readable key function ({error})") from error
        if made.hash != wanted:
            raise BankError(f"{path}: content does not match key.json; it was changed or damaged")
        return made


def pooled(features: Tensor, scales: Tensor) -> Tensor:
    """(B, 1, 2 D): mean and largest value over the patches of (B, n, D), each scaled."""
    both = torch.stack([features.float().mean(dim=1), features.float().amax(dim=1)], dim=1)
    return (both / scales[:, None]).flatten(1)[:, None]
