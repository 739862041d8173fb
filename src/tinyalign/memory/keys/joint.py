"""Joint keys: an entry's text, its image and its question side by side, each with its like.

The aligned key finds texts that say what an image should say; the image's own features find
pictures that look like it; a question's words find questions like it. None is enough: a search by
all finds better neighbours than by any. A joint key is these side by side, each of unit length, so
that an inner product is

    (1 - alpha) * cos(what the query's image should say, the entry's text)
    + alpha * cos(the query's image, the entry's image),

where, in a corpus with questions, half of the first share is cos(the question, the entry's
question), both in the semantic space of the aligned key. What is missing of a query counts for
nothing, and the rest is brought to unit length.

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
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.memory.keys.aligned import AlignedKeyFunction
from tinyalign.memory.keys.saved import write_key

FORMAT_VERSION = 1
NOISE_FLOOR = 1e-4
"""Length below which a centred question is the mean itself, but for rounding."""
DIRECTIONS, SCALES = "directions", "scales"


class JointKeyFunction:
    """Keys (B, d_k), fp32, unit length: the aligned key, then the image's own features."""

    kind = "joint"
    uses_text = True
    uses_image = True

    def __init__(
        self,
        aligned: AlignedKeyFunction,
        scales: Tensor,
        directions: Tensor,
        alpha: float,
        asks: bool = False,
    ) -> None:
        """aligned: of pooled images (`pooled`); scales (2,): what mean and largest values are
        divided by; directions (D, w): what an image's centred mean features are projected on;
        alpha: the image's share of the similarity; asks: whether questions have a part.

        Raises ConfigError where the widths do not agree.
        """
        if directions.ndim != 2 or 2 * len(directions) != aligned.image_width or len(scales) != 2:
            raise ConfigError(
                f"joint keys: directions {tuple(directions.shape)} and scales "
                f"{tuple(scales.shape)} do not fit pooled images of width {aligned.image_width}"
            )
        self.aligned, self.scales = aligned, scales
        self.directions, self.alpha, self.asks = directions, alpha, asks

    @property
    def image_width(self) -> int:
        """D, the width of the vision features it takes."""
        return len(self.directions)

    @property
    def dim(self) -> int:
        """d_k, the length of a key."""
        words = 2 * self.aligned.dim if self.asks else self.aligned.dim
        return words + self.directions.shape[1]

    @property
    def n_folds(self) -> int:
        """Folds of the cross-fit of the aligned part."""
        return self.aligned.n_folds

    @cached_property
    def hash(self) -> str:
        """Content hash of the settings and the tensors."""
        settings = [self.kind, FORMAT_VERSION, self.alpha, *(["asks"] if self.asks else [])]
        return hash_json([*settings, hash_tensors(self._tensors())])

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
        if query_ids is not None and query_mask is not None:
            query_ids = query_ids * query_mask.to(query_ids.dtype)
        return self._joined(said, seen, query_ids)

    @torch.no_grad()
    def entry_keys(
        self, vision_features: Tensor | None, query_ids: Tensor, text_ids: Tensor
    ) -> Tensor:
        """Keys of entries, from the ids (B, L) of their whole text and their images."""
        seen = None if vision_features is None else self._pooled(vision_features)
        said = self.aligned.entry_keys(seen, query_ids, text_ids)
        return self._joined(said, seen, query_ids)

    def _pooled(self, features: Tensor) -> Tensor:
        if features.ndim != 3 or features.shape[-1] != self.image_width:
            raise ConfigError(
                f"vision features must be (B, n, {self.image_width}) for this key function, "
                f"found {tuple(features.shape)}: use the encoder it was fitted with"
            )
        return pooled(features, self.scales.to(features.device))

    def _joined(self, said: Tensor, seen: Tensor | None, asked: Tensor | None) -> Tensor:
        """said (B, d), seen (B, 1, 2 D) or None, asked (B, L) or None -> (B, d_k)."""
        image = said.new_zeros(len(said), self.directions.shape[1])
        if seen is not None:
            mean = (seen[:, 0] - self.aligned.image_mean.to(seen.device))[:, : self.image_width]
            image = normalize(mean @ self.directions.to(seen.device), dim=-1).to(said.device)
        parts, words = [self.alpha**0.5 * image], 1.0 - self.alpha
        if self.asks:
            words *= 0.5
            parts.append(words**0.5 * self._question(said, asked))
        return normalize(torch.cat([words**0.5 * said, *parts], dim=-1), dim=-1)

    def _question(self, said: Tensor, asked: Tensor | None) -> Tensor:
        """Questions (B, L) at unit length (B, d); zeros for none, or one that all have."""
        if asked is None:
            return torch.zeros_like(said)
        words = self.aligned.asked(asked.to(said.device))
        return normalize(words, dim=-1) * (words.norm(dim=-1, keepdim=True) > NOISE_FLOOR)

    # -- saving, loading ----------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        own = {DIRECTIONS: self.directions, SCALES: self.scales}
        own = {name: one.detach().cpu().float().contiguous() for name, one in own.items()}
        return {**self.aligned.tensors(), **own}

    def save(self, folder: str | Path) -> None:
        """Write key.json and key.safetensors."""
        settings = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "alpha": self.alpha,
            "dim": self.dim,
            "asks": self.asks,
            "hash": self.hash,
        }
        write_key(folder, self._tensors(), settings)

    @classmethod
    def load(cls, folder: str | Path) -> JointKeyFunction:
        """Read what `save` wrote. BankError names the file that is missing or damaged."""
        path = Path(folder) / "key.safetensors"
        try:
            settings = json.loads((Path(folder) / "key.json").read_text())
            tensors = load_file(path)
            own = tensors.pop(SCALES), tensors.pop(DIRECTIONS)
            made = cls(
                AlignedKeyFunction(**tensors), *own, settings["alpha"], settings.get("asks", False)
            )
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
