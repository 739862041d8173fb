"""The sequence [H_V | H_R | H_I]: image and memory tokens in the places of their placeholders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinyalign.errors import ModelError


class PlacementMixin:
    """What `TinyAlignModel.forward` does before the LLM: make H_V and H_R, put them in place."""

    config: Any
    memory_connector: Any
    get_image_features: Any

    def get_placeholder_mask(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        image_features: Tensor | None = None,
        memory_features: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Where image and memory tokens go: two masks (B, L, 1), counted against the features.

        memory_features: of the rows that have memory placeholders. segments: of a packed row.
        Raises ModelError with both numbers on a mismatch.
        """
        if input_ids is None:
            raise ModelError(
                "Images and memories are placed by their placeholder ids: pass input_ids."
            )
        image_mask: Tensor = input_ids.eq(self.config.image_token_id)
        memory_mask: Tensor = input_ids.eq(self.config.memory_token_id)
        if image_features is not None:
            found, expected = int(image_mask.sum()), image_features.shape[:2].numel()
            if found != expected:
                raise ModelError(
                    f"Found {found} image placeholders for {expected} image features "
                    f"({image_features.shape[0]} images of {image_features.shape[1]} tokens). Use "
                    "the processor that was saved with this model, and do not cut its output."
                )
        if memory_features is not None:
            rows = _count_by_sample(memory_mask, segments)
            with_memory = rows[rows > 0]
            expected = memory_features.shape[1]
            if memory_features.shape[0] != len(with_memory) or bool(
                (with_memory != expected).any()
            ):
                raise ModelError(
                    f"Found {int(memory_mask.sum())} memory placeholders in {len(rows)} "
                    f"{'rows' if segments is None else 'packed samples'} for "
                    f"{memory_features.shape[0]} x {expected} = "
                    f"{memory_features.shape[:2].numel()} memory features ({expected} in every "
                    "one). Set processor.memory_enabled, and check that k is that of the model."
                )
        return image_mask[..., None], memory_mask[..., None]

    def _check_no_image(self, input_ids: Tensor) -> None:
        if count := int(input_ids.eq(self.config.image_token_id).sum()):
            raise ModelError(
                f"Found {count} image placeholders but no image; pass pixel_values or "
                "vision_features."
            )

    def _image_tokens(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        vision_features: Tensor | None,
        mm_encoder_outputs: dict[str, Any] | None,
    ) -> Tensor | None:
        """H_V (images, n, d), or None for text alone. ModelError for placeholders without one."""
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and (pixel_values is not None or vision_features is not None):
            encoded = self.get_image_features(pixel_values, vision_features, return_dict=True)
        if encoded is not None:
            return torch.stack(list(encoded.pooler_output))
        if input_ids is not None:
            self._check_no_image(input_ids)
        return None

    def _placed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        images: Tensor | None,
        memories: Tensor | None,
        segments: Tensor | None,
    ) -> Tensor:
        """inputs_embeds (B, L, d) with H_V and H_R in the places of their placeholders."""
        if images is None and memories is None:
            return inputs_embeds
        masks = self.get_placeholder_mask(input_ids, inputs_embeds, images, memories, segments)
        for where, features in zip(masks, (images, memories)):
            if features is not None:
                features = features.to(inputs_embeds.device, inputs_embeds.dtype)
                inputs_embeds = inputs_embeds.masked_scatter(where, features)
        return inputs_embeds

    def _memory_features(
        self,
        input_ids: Tensor | None,
        values: Tensor | None,
        mask: Tensor | None,
        scores: Tensor | None,
        segments: Tensor | None,
    ) -> Tensor | None:
        """H_R (B, n, d), or None when retrieval is off for this batch.

        A sample with neither placeholders nor memories, such as text alone, is left out of it.
        """
        count = 0
        if input_ids is not None:
            count = int(input_ids.eq(self.config.memory_token_id).sum())
        if self.memory_connector is None:
            if values is not None or count:
                raise ModelError(
                    "Memories or memory placeholders were passed to a model without memory "
                    "(memory_k is 0); use processor.memory_enabled = False."
                )
            return None
        if self.memory_connector.table is not None:
            if input_ids is None or not count:
                return None
            counts = self._memory_placeholders(input_ids, segments)
            return self.memory_connector(None, batch_size=int((counts > 0).sum()))
        if values is None and count and self.config.memory_optional:
            asking = int((self._memory_placeholders(input_ids, segments) > 0).sum())  # type: ignore[arg-type]
            return self.memory_connector.absent(asking)
        if values is None:
            if count:
                raise ModelError(
                    f"Found {count} memory placeholders but no memory_values: forward does not "
                    "retrieve. With a bank attached, call generate, or pass memory_values, "
                    "memory_mask and memory_scores from model.retriever.retrieve(...); to run "
                    "without memory, set processor.memory_enabled = False."
                )
            return None
        memories = self.memory_connector(values, mask, scores)
        if input_ids is None or mask is None:
            return memories
        counts = self._memory_placeholders(input_ids, segments)
        return _without_absent(memories, counts, mask)

    def _memory_placeholders(self, input_ids: Tensor, segments: Tensor | None) -> Tensor:
        """How many each row (B,), or each sample of a packed row, has."""
        return _count_by_sample(input_ids.eq(self.config.memory_token_id), segments)


def _count_by_sample(mask: Tensor, segments: Tensor | None) -> Tensor:
    """True values of each row of mask (B, L), or of each sample of a packed row."""
    if segments is None:
        return mask.sum(dim=1)
    return (mask[0][segments.clamp(min=0)] & (segments >= 0)).sum(dim=1)


def _without_absent(memories: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
    """memories (B, n, d) less those of samples without placeholders (counts (B,) are 0) whose
    memories are absent (mask (B, k) is False)."""
    if len(counts) != len(memories):
        return memories  # an error, which `get_placeholder_mask` words
    kept = (counts > 0) | mask.to(counts.device).bool().any(dim=1)
    return memories if bool(kept.all()) else memories[kept.to(memories.device)]
