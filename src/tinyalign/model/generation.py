"""generate() with a memory: look at the image once, look up memories once, then as ever."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinyalign.errors import ModelError
from tinyalign.model.copier import Copier
from tinyalign.model.copying import CopyFromMemory, take_copy_texts
from tinyalign.model.protocols import MemoryBatch, MemoryRetriever, Neighbourhood
from tinyalign.model.shared_prefill import SharedPrefillMixin


class MemoryGenerationMixin(SharedPrefillMixin):
    """What a TinyAlign model does beyond transformers' generation.

    `retriever` is the attached memory, if any; `copier` lets answers be copied from what it finds;
    `last_retrieval` is what the last `generate` looked up, None if it did not.
    """

    config: Any
    model: Any
    retriever: MemoryRetriever | None = None
    copier: Copier | None = None
    last_retrieval: MemoryBatch | None = None

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with memory: vision features are computed once and shared.

        With a `retriever` attached, memory placeholders in the ids and no memory_values given,
        the memories of each row's last image are fetched first. memory_query_ids (B, L) long is
        the instruction in the Perceiver's vocabulary; memory_exclude goes to the retriever.

        With a `copier`, or a copy_gate of your own, the texts of the neighbours can be copied
        from: those that were fetched, or copy_ids (B, n, T), copy_weights (B, n) and copy_nearest
        (B,) (`model.copying.CopyTexts`).
        """
        copied = take_copy_texts(kwargs)
        copy_gate = kwargs.pop("copy_gate", None)
        query_ids = kwargs.pop("memory_query_ids", None)
        exclude = kwargs.pop("memory_exclude", None)
        input_ids: Any = inputs if inputs is not None else kwargs.get("input_ids")
        self.last_retrieval = None
        if self._wants_memories(input_ids, kwargs):
            features = kwargs.pop("vision_features", None)
            pixels = kwargs.pop("pixel_values", None)
            if features is None and pixels is not None:
                features = self.model.get_vision_features(pixels)
            found = self._retrieve(input_ids, features, query_ids, exclude)
            self.last_retrieval = found
            kwargs["vision_features"] = features
            kwargs.update(
                memory_values=found.values, memory_mask=found.mask, memory_scores=found.scores
            )
            if self.copier is not None and found.neighbours and copied is None:
                copied = self.copier(found.neighbours)
        if copy_gate is None and self.copier is not None:
            copy_gate = self.copier.gate
        if copied is not None and copy_gate is not None:
            length = self._prompt_length(input_ids, kwargs)
            mixing = CopyFromMemory(copied, copy_gate, length)
            kwargs["logits_processor"] = [*(kwargs.get("logits_processor") or ()), mixing]
        features = kwargs.pop("vision_features", None)
        if features is None and kwargs.get("pixel_values") is not None:
            features = self.model.get_vision_features(kwargs.pop("pixel_values"))
        if features is not None:
            image = self.model.get_image_features(vision_features=features, return_dict=True)
            kwargs["mm_encoder_outputs"] = {"image": image}
        plain: Any = super()
        rows = None if input_ids is None else len(input_ids)
        with self._sharing_prefill(rows, kwargs.get("mm_encoder_outputs")):
            return plain.generate(inputs, *args, **kwargs)

    def _prompt_length(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> int:
        """Where answers start in the ids that a logits processor sees."""
        return 0 if input_ids is None or "inputs_embeds" in kwargs else input_ids.shape[1]

    def _wants_memories(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> bool:
        cache = kwargs.get("past_key_values")
        return (
            self.retriever is not None
            and self.model.memory_connector is not None
            and self.model.memory_connector.table is None
            and kwargs.get("memory_values") is None
            and input_ids is not None
            and (cache is None or cache.get_seq_length() == 0)
            and bool((input_ids == self.config.memory_token_id).any())
        )

    def _retrieve(
        self, input_ids: Tensor, features: Tensor | None, query_ids: Tensor | None, exclude: Any
    ) -> MemoryBatch:
        """Memories by each row's last image, which makes the query; rows without placeholders,
        such as text alone, get none."""
        assert self.retriever is not None
        tokens = (input_ids == self.config.image_token_id).sum(dim=1)
        images = tokens // self.config.image_seq_length  # (B,) images in each row
        asking = (input_ids == self.config.memory_token_id).any(dim=1)  # (B,)
        if features is None or bool((asking & (images == 0)).any()):
            raise ModelError(
                "Memories are looked up by image, but a row with memory placeholders has no "
                "image. Pass pixel_values or vision_features, or memory_values yourself."
            )
        last = images.cumsum(0) - 1
        if int(last[-1]) + 1 != features.shape[0]:
            raise ModelError(
                f"The ids hold placeholders for {int(last[-1]) + 1} images, but "
                f"{features.shape[0]} were passed."
            )
        if not bool(asking.all()):
            query_ids = None if query_ids is None else query_ids[asking.to(query_ids.device)]
            rows = asking.nonzero().flatten().tolist()
            exclude = None if exclude is None else [exclude[row] for row in rows]
        found = self.retriever.retrieve(
            features[last[asking].to(features.device)], query_ids, exclude
        )
        return found if bool(asking.all()) else _spread(found, asking.tolist())

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Memories enter with the prompt; later steps read them from the cache."""
        plain: Any = super()
        prepared = plain.prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("memory_values", "memory_mask", "memory_scores"):
                prepared.pop(name, None)
        return prepared


def _spread(found: MemoryBatch, asking: list[bool]) -> MemoryBatch:
    """`found`, of the rows that asked, as a batch of all rows; those of the others are absent."""
    rows = [row for row, asks in enumerate(asking) if asks]
    ids = dict(zip(rows, found.ids))

    def spread(tensor: Tensor) -> Tensor:
        out = tensor.new_zeros(len(asking), *tensor.shape[1:])
        out[rows] = tensor
        return out

    near = dict(zip(rows, found.neighbours))
    return MemoryBatch(
        spread(found.values),
        spread(found.mask),
        spread(found.scores),
        [ids.get(row, []) for row in range(len(asking))],
        [near.get(row, Neighbourhood()) for row in range(len(asking))] if near else [],
    )
