"""The key function K_m of the paper: one unit vector for an image and an instruction.

The same function makes the keys of a bank and the queries against it, at build, training and
test time. It sees frozen vision features and the instruction only, never an answer, and its
result depends neither on padding nor on what else is in the batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.memory.keys.saved import write_key
from tinyalign.memory.keys.text import PAD_ID

KINDS = ("pooled", "attention")
FORMAT_VERSION = 1
PROJECTION_SEED = 20251284
# A centred vector this much shorter than what it was is rounding noise, not a direction.
NOISE_FLOOR = 1e-5


class ImageTextKeyFunction:
    """Keys and queries from vision features (B, n, D) and instruction ids (B, L).

    kind "pooled": `[sqrt(alpha) * i ; sqrt(1 - alpha) * t]`, where i is the mean image feature,
    centred, times `image_projection` if there is one, at unit length, and t the mean token
    embedding, centred, at unit length. Where one of the two is absent (no instruction, or one
    that does not differ from the corpus mean) the other takes the full length. With alpha = 1
    the key is the image part alone, with alpha = 0 the text part alone.

    kind "attention": the paper's. `x = [alpha * v ; (1 - alpha) * t]` with unit rows, the text
    brought to the image width by a fixed orthonormal matrix; `A = softmax(x x^T)`; the mean row
    of A, times x, at unit length. Not centred.
    """

    def __init__(
        self,
        kind: str,
        alpha: float,
        image_mean: Tensor,
        text_table: Tensor | None = None,
        text_mean: Tensor | None = None,
        image_projection: Tensor | None = None,
    ) -> None:
        """image_mean (D,), text_table (V, d), text_mean (d,), image_projection (D, p).

        Raises ConfigError for an unknown kind, an alpha outside 0..1, shapes that do not go
        together, or a missing `text_table` where alpha < 1.
        """
        _check(kind, alpha, image_mean, text_table, text_mean, image_projection)
        self.kind = kind
        self.alpha = float(alpha)
        self.image_mean = _float(image_mean)
        self.text_table = None if text_table is None else _float(text_table)
        if text_mean is None and self.text_table is not None:
            text_mean = torch.zeros(self.text_table.shape[1])
        self.text_mean = None if text_mean is None else _float(text_mean)
        self.image_projection = None if image_projection is None else _float(image_projection)
        self.text_projection = self._fixed_text_projection()

    # -- what it is ---------------------------------------------------------------------------

    n_folds = 0

    @property
    def image_width(self) -> int:
        """D, the width of the vision features it takes."""
        return self.image_mean.shape[0]

    @property
    def dim(self) -> int:
        """d_k, the length of a key."""
        image = self.image_width
        if self.image_projection is not None:
            image = self.image_projection.shape[1]
        if self.kind == "attention" or self.alpha == 1.0:
            return image
        text = cast(Tensor, self.text_table).shape[1]
        return text if self.alpha == 0.0 else image + text

    @property
    def uses_text(self) -> bool:
        """Whether an instruction can change the key."""
        return self.alpha < 1.0

    @property
    def uses_image(self) -> bool:
        """Whether an image can change the key."""
        return self.alpha > 0.0

    @cached_property
    def hash(self) -> str:
        """Content hash of the settings and the tensors."""
        return hash_json([self._settings(), hash_tensors(self._tensors())])

    # -- making keys --------------------------------------------------------------------------

    @torch.no_grad()
    def keys(
        self,
        vision_features: Tensor | None,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
        folds: Sequence[int] | None = None,
    ) -> Tensor:
        """Keys (B, d_k), fp32, unit length, on the device of the input.

        vision_features (B, n, D) or None for a query by text alone; query_ids (B, L) ids of
        the Perceiver's tokenizer or None; query_mask (B, L), by default all but id 0. A row
        that has neither image nor text is all zeros and matches nothing. No text of an entry had a
        part in it, so there are no `folds` to leave out.
        """
        features, ids, mask = self._checked(vision_features, query_ids, query_mask)
        make = self._attention if self.kind == "attention" else self._pooled
        return make(features, ids, mask)

    def entry_keys(
        self, vision_features: Tensor | None, query_ids: Tensor, text_ids: Tensor
    ) -> Tensor:
        """Keys of entries: the same as a query's. The whole text (`text_ids`) plays no part."""
        return self.keys(vision_features, query_ids)

    def _checked(
        self, features: Tensor | None, ids: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if features is None and ids is None:
            raise ConfigError("a key needs vision features, instruction ids, or both; found none")
        if features is not None:
            if features.ndim != 3 or features.shape[-1] != self.image_width:
                raise ConfigError(
                    f"vision features must be (B, n, {self.image_width}) for this key function, "
                    f"found {tuple(features.shape)}: use the vision encoder it was fitted with"
                )
            features = features.float()
        if ids is None or not self.uses_text:
            if features is None:
                raise ConfigError(
                    "these keys hold no text (alpha is 1): give an image to search by"
                )
            return features, None, None
        if features is not None:
            ids = ids.to(features.device)
        mask = ids != PAD_ID if mask is None else mask.to(ids.device).bool()
        if features is not None and len(features) != len(ids):
            raise ConfigError(f"{len(features)} images but {len(ids)} instructions in one batch")
        return features, ids, mask

    def _pooled(self, features: Tensor | None, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        device = features.device if features is not None else cast(Tensor, ids).device
        batch = len(features) if features is not None else len(cast(Tensor, ids))
        parts: list[Tensor] = []
        if self.uses_image:
            parts.append(self._image_part(features, batch, device) * self.alpha**0.5)
        if self.uses_text:
            parts.append(self._text_part(ids, mask, batch, device) * (1 - self.alpha) ** 0.5)
        # Unit again: where one part is absent (zeros) this gives the other the full length.
        return normalize(torch.cat(parts, dim=-1), dim=-1)

    def _image_part(self, features: Tensor | None, batch: int, device: torch.device) -> Tensor:
        width = self.image_width
        if self.image_projection is not None:
            width = self.image_projection.shape[1]
        if features is None:
            return torch.zeros(batch, width, device=device)
        pooled = features.mean(dim=1)  # (B, n, D) -> (B, D)
        centred = _silence_noise(pooled - self.image_mean.to(device), pooled)
        if self.image_projection is not None:
            centred = centred @ self.image_projection.to(device)
        return normalize(centred, dim=-1)

    def _text_part(
        self, ids: Tensor | None, mask: Tensor | None, batch: int, device: torch.device
    ) -> Tensor:
        table, mean = cast(Tensor, self.text_table), cast(Tensor, self.text_mean)
        if ids is None or mask is None:
            return torch.zeros(batch, table.shape[1], device=device)
        pooled = _masked_mean(table.to(device)[ids], mask)
        centred = _silence_noise(pooled - mean.to(device), pooled)
        return normalize(centred * mask.any(dim=1, keepdim=True), dim=-1)

    def _attention(
        self, features: Tensor | None, ids: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        rows, valid = [], []
        if features is not None:
            if self.image_projection is not None:
                features = features @ self.image_projection.to(features.device)
            rows.append(self.alpha * normalize(features, dim=-1))
            valid.append(torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))
        if ids is not None and mask is not None:
            tokens = cast(Tensor, self.text_table).to(ids.device)[ids]
            if self.text_projection is not None:
                tokens = tokens @ self.text_projection.to(ids.device)
            rows.append((1 - self.alpha) * normalize(tokens, dim=-1))
            valid.append(mask)
        x, real = torch.cat(rows, dim=1), torch.cat(valid, dim=1)  # (B, n + L, D), (B, n + L)
        x = x * real[..., None]
        similar = (x @ x.mT).masked_fill(~real[:, None, :], -torch.inf)
        attention = similar.softmax(dim=-1).nan_to_num(0.0)  # all-masked rows become zeros
        return normalize((_masked_mean(attention, real)[:, None, :] @ x)[:, 0], dim=-1)

    def _fixed_text_projection(self) -> Tensor | None:
        """A seeded orthonormal (d, D) matrix for the paper's key, which needs equal widths."""
        if self.kind != "attention" or self.text_table is None:
            return None
        width = self.image_width
        if self.image_projection is not None:
            width = self.image_projection.shape[1]
        text = self.text_table.shape[1]
        if text == width:
            return None
        generator = torch.Generator().manual_seed(PROJECTION_SEED)
        noise = torch.randn(max(text, width), min(text, width), generator=generator)
        basis = torch.linalg.qr(noise.double()).Q.float()
        return (basis if text > width else basis.T).contiguous()

    # -- fitting, saving, loading -------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        features: Iterable[Tensor],
        query_ids: Iterable[Tensor | None] | None = None,
        *,
        kind: str = "pooled",
        alpha: float = 0.4,
        text_table: Tensor | None = None,
        image_projection: Tensor | None = None,
    ) -> ImageTextKeyFunction:
        """Means over a corpus in one pass, holding one batch at a time.

        features yields (B, n, D) batches; query_ids, if given, yields the instruction ids
        (B, L) beside them (padding 0; rows without text do not count). The default alpha is
        the paper's 0.4. Raises ConfigError for an empty corpus.
        """
        image, text = _RunningMean(), _RunningMean()
        table = None if text_table is None else text_table.detach().cpu().float()
        texts: Iterator[Tensor | None] = repeat(None) if query_ids is None else iter(query_ids)
        for batch, ids in zip(features, texts):
            image.add(batch.detach().float().mean(dim=1))
            if ids is not None and table is not None:
                ids = ids.cpu()
                mask = ids != PAD_ID
                text.add(_masked_mean(table[ids], mask)[mask.any(dim=1)])
        image_mean = image.value
        if image_mean is None:
            raise ConfigError("cannot fit a key function on no features: the corpus is empty")
        return cls(kind, alpha, image_mean, table, text.value, image_projection)

    def _settings(self) -> dict[str, object]:
        return {"format_version": FORMAT_VERSION, "kind": self.kind, "alpha": self.alpha}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "image_mean": self.image_mean,
            "image_projection": self.image_projection,
            "text_table": self.text_table,
            "text_mean": self.text_mean,
            "text_projection": self.text_projection,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def save(self, folder: str | Path) -> None:
        """Write key.json and key.safetensors."""
        settings = self._settings() | {"dim": self.dim, "hash": self.hash}
        write_key(folder, self._tensors(), settings)

    @classmethod
    def load(cls, folder: str | Path) -> ImageTextKeyFunction:
        """Read what `save` wrote. BankError names the file that is missing or damaged."""
        path = Path(folder) / "key.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            version, kind, alpha = (settings[k] for k in ("format_version", "kind", "alpha"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BankError(f"{path}: not a readable key function ({error})") from error
        if version > FORMAT_VERSION:
            raise BankError(
                f"{path}: written in format {version}, this TinyAlign reads up to "
                f"{FORMAT_VERSION}; upgrade tinyalign-vlm"
            )
        path = Path(folder) / "key.safetensors"
        try:
            tensors = load_file(path)
            projection = tensors.pop("text_projection", None)
            made = cls(kind, alpha, **tensors)
        except (OSError, SafetensorError, TypeError, ConfigError) as error:
            raise BankError(f"{path}: not a readable key function ({error})") from error
        made.text_projection = projection  # as saved: a QR may differ by a sign elsewhere
        if made.hash != settings.get("hash"):
            raise BankError(f"{path}: content does not match key.json; it was changed or damaged")
        return made


class _RunningMean:
    """Mean of rows that come in batches, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        total = rows.double().sum(dim=0).cpu()
        self.total = total if self.total is None else self.total + total
        self.count += len(rows)

    @property
    def value(self) -> Tensor | None:
        """The mean (D,), fp32; None before the first row."""
        return None if self.total is None or not self.count else (self.total / self.count).float()


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float().contiguous().clone()


def _masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean over dimension 1 of rows (B, L, d) where mask (B, L); zeros where nothing is."""
    weights = mask.to(rows.dtype)
    total = (rows * weights[..., None]).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


def _silence_noise(centred: Tensor, raw: Tensor) -> Tensor:
    """Zero the rows whose centring left only rounding error (an instruction all samples share)."""
    heard = centred.norm(dim=-1, keepdim=True) > NOISE_FLOOR * raw.norm(dim=-1, keepdim=True)
    return centred * heard


def _check(
    kind: str,
    alpha: float,
    image_mean: Tensor,
    text_table: Tensor | None,
    text_mean: Tensor | None,
    image_projection: Tensor | None,
) -> None:
    if kind not in KINDS:
        raise ConfigError(f"key kind must be one of {KINDS}, found {kind!r}")
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha is the image's share, between 0 and 1; found {alpha}")
    if alpha < 1.0 and text_table is None:
        raise ConfigError(f"alpha {alpha} gives text a share: text_table (V, d) is needed")
    if image_mean.ndim != 1:
        raise ConfigError(f"image_mean must be (D,), found {tuple(image_mean.shape)}")
    if image_projection is not None and (
        image_projection.ndim != 2 or len(image_projection) != len(image_mean)
    ):
        raise ConfigError(
            f"image_projection must be ({len(image_mean)}, p), "
            f"found {tuple(image_projection.shape)}"
        )
    if (
        text_table is not None
        and text_mean is not None
        and (text_table.ndim != 2 or text_mean.shape != text_table.shape[1:])
    ):
        raise ConfigError(
            f"text_table (V, d) and text_mean (d,) do not go together: "
            f"{tuple(text_table.shape)} and {tuple(text_mean.shape)}"
        )
