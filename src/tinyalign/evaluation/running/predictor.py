"""Batches of items -> predictions, asking the same question only once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinyalign.evaluation.results import CONSENSUS, NEAREST, Prediction
from tinyalign.evaluation.running.answering import answer_losses, answers
from tinyalign.evaluation.running.inputs import Item, retrieve, vision_features
from tinyalign.memory.building.builder import FeatureRows
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.decoding import Choose, Decoding
from tinyalign.model.protocols import MemoryBatch, MemoryRetriever, Neighbourhood


class Predictor:
    """A model with what it is asked through."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        retriever: MemoryRetriever | None,
        decoding: Decoding,
        cached_features: FeatureRows | None = None,
        show_image: bool = True,
        loss: bool = True,
    ) -> None:
        """`max_new_tokens` of 0 asks for no answer; without `show_image` text is all there is;
        without `loss` no answer is shown to the model."""
        self.model, self.processor = model, processor
        self.retriever = retriever if show_image else None
        self.show_image = show_image
        self.vision = VisionEncoder.from_model(model, processor)
        self.cached_features = cached_features
        self.decoding = decoding
        self.loss = loss
        self._answered: dict[tuple[object, ...], str] = {}

    def predict(self, items: list[Item]) -> dict[int, Prediction]:
        """Predictions without scores, by index of the sample."""
        if not items:
            return {}
        inputs, memory = self._inputs(items)
        losses, counts = self._losses(items, inputs)
        memory_ids = memory.ids if memory is not None else [[] for _ in items]
        texts = self._answers(items, inputs, memory)
        look_up = self._look_up(memory, len(items))
        found: dict[int, Prediction] = {}
        for row, item in enumerate(items):
            ids = tuple(memory_ids[row])
            scores = memory.scores[row, : len(ids)].tolist() if memory is not None else ()
            found[item.index] = Prediction(
                id=item.sample.id,
                image_id=item.image_id,
                instruction=item.sample.instruction,
                prediction=texts[row],
                references=item.references,
                loss_sum=losses[row],
                supervised_tokens=counts[row],
                memory_ids=ids,
                memory_scores=tuple(scores),
                look_up=look_up[row],
                category=item.sample.category,
            )
        return found

    def _look_up(self, memory: MemoryBatch | None, n: int) -> list[dict[str, str]]:
        """What the neighbours of each item answer without a model."""
        ranker = getattr(self.retriever, "ranker", None)
        if memory is None or ranker is None or not memory.neighbours:
            return [{} for _ in range(n)]
        return [
            {
                NEAREST: near.texts[0] if near.texts else "",
                CONSENSUS: ranker.agreed(near.texts, near.scores),
            }
            for near in memory.neighbours
        ]

    def _losses(
        self, items: list[Item], inputs: dict[str, Tensor]
    ) -> tuple[list[float], list[int]]:
        if not self.loss:
            return [0.0] * len(items), [0] * len(items)
        pad = self.processor.tokenizer.pad_token_id
        return answer_losses(self.model, [item.full for item in items], inputs, pad)

    def _inputs(self, items: list[Item]) -> tuple[dict[str, Tensor], MemoryBatch | None]:
        """What the model reads besides token ids, row by row, and the memories in it."""
        if not self.show_image:
            return {}, None
        features = vision_features(items, self.vision, self.cached_features)
        if self.retriever is None:
            return {"vision_features": features, **self._absent(len(items))}, None
        memory = retrieve(items, features, self.retriever, self.processor)
        inputs = {
            "vision_features": features,
            "memory_values": memory.values,
            "memory_mask": memory.mask,
            "memory_scores": memory.scores,
        }
        copier = self.model.copier
        if copier is not None and memory.neighbours:
            inputs |= copier(memory.neighbours).to(features.device).inputs()
        return inputs, memory

    def _absent(self, n: int) -> dict[str, Tensor]:
        """Said aloud where a model's placeholders stay without a bank: a retriever that is
        attached to it would be asked otherwise."""
        config = self.model.config
        if not config.memory_optional:
            return {}
        values = torch.zeros(n, config.memory_k, *config.memory_shape, device=self.vision.device)
        mask = torch.zeros(n, config.memory_k, dtype=torch.bool, device=self.vision.device)
        return {"memory_values": values, "memory_mask": mask}

    def _answers(
        self, items: list[Item], inputs: dict[str, Tensor], memory: MemoryBatch | None
    ) -> list[str]:
        if not self.decoding.max_new_tokens:
            return [""] * len(items)
        questions = [
            (
                item.image_id if self.show_image else None,
                *item.prompt.input_ids,
                *_seen(memory, row),
            )
            for row, item in enumerate(items)
        ]
        new: dict[tuple[object, ...], int] = {}
        for row, question in enumerate(questions):
            if question not in self._answered:
                new.setdefault(question, row)
        if new:
            rows = list(new.values())
            told = [] if memory is None else memory.neighbours
            near = [told[row] for row in rows] if told else []
            texts = answers(
                self.model,
                [items[row].prompt for row in rows],
                {name: tensor[rows] for name, tensor in inputs.items()},
                self.processor.tokenizer,
                self.decoding,
                self._chooser(near),
            )
            self._answered.update(zip(new, texts))
        return [self._answered[question] for question in questions]

    def _chooser(self, near: list[Neighbourhood]) -> Choose | None:
        """Chooses among several answers by what each item's neighbours say."""
        ranker = getattr(self.retriever, "ranker", None)
        if ranker is None or not near:
            return None
        return lambda row, candidates, _: ranker.best(candidates, near[row])


def _seen(memory: MemoryBatch | None, row: int) -> list[object]:
    """What an answer depends on besides image and prompt: memories, and neighbours' texts."""
    if memory is None:
        return []
    return [*memory.ids[row], *(memory.neighbours[row].rows if memory.neighbours else ())]
