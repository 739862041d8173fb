"""Run a model over samples: batched, with or without memory, every number with its interval."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinyalign.data.sample import Sample
from tinyalign.errors import EvaluationError, first_few
from tinyalign.evaluation.calls import answer_losses, answers
from tinyalign.evaluation.inputs import Item, ItemReader, retrieve, vision_features
from tinyalign.evaluation.results import (
    Prediction,
    Results,
    Skipped,
    library_versions,
    write_results,
)
from tinyalign.evaluation.tasks import MAX_NEW_TOKENS, check_task, score
from tinyalign.log import logger, progress
from tinyalign.memory.builder import FeatureRows
from tinyalign.model.protocols import MemoryRetriever
from tinyalign.model.vision import VisionEncoder


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    results: Results
    predictions: list[Prediction]


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    task: str,
    retriever: MemoryRetriever | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    cached_features: FeatureRows | None = None,
    strict: bool = False,
    model_name: str | None = None,
    bank_name: str | None = None,
) -> Evaluation:
    """Judge `model` on `samples`; greedy decoding.

    Args:
        task: "caption" (loss, CIDEr-D, BLEU-4), "vqa" or "easy_vqa" (loss, accuracy).
        retriever: where memories come from; without one the model runs without memory, also if
            one is attached to it. A bank entry with the sample's id or image is never used.
        max_new_tokens: by default enough for the task; 0 measures the loss alone.
        seed: of the bootstrap; nothing else is random.
        device: moves the model there first; by default it stays where it is.
        out: results.json or its folder; predictions.jsonl goes beside it.
        cached_features: the frozen tower's output (n, D) for each sample, by index.
        strict: stop at the first unusable sample instead of listing it.
        model_name, bank_name: what the results call them; by default where they came from.

    Raises EvaluationError for an unknown task or when no sample could be judged.
    """
    check_task(task)
    started = time.perf_counter()
    if device is not None:
        model.to(device)
    length = MAX_NEW_TOKENS[task] if max_new_tokens is None else max_new_tokens
    reader = ItemReader(
        samples,
        processor,
        _memory_tokens(model, retriever),
        images=cached_features is None or retriever is not None,  # memories exclude by image
        strict=strict,
    )
    judge = _Judge(model, processor, retriever, length, cached_features)
    with _evaluating(model), progress(f"Evaluating {task}", len(samples)) as advance:
        for read, items in reader.batches(batch_size):
            judge.add(items)
            advance(read)
    _report(reader.skipped, len(samples))
    scored = score(
        task,
        judge.predictions,
        generated=length > 0,
        reference_set=list(reader.reference_set.values()),
        seed=seed,
    )
    results = Results(
        task=task,
        n=len(scored.predictions),
        metrics=scored.metrics,
        model=model_name or str(getattr(model, "name_or_path", "") or type(model).__name__),
        bank=bank_name or _bank_name(retriever),
        seed=seed,
        versions=library_versions(),
        settings={
            "batch_size": batch_size,
            "max_new_tokens": length,
            "decoding": "greedy",
            "memories": judge.memories,
            "bank_hash": getattr(getattr(retriever, "bank", None), "hash", None),
            "images": len({p.image_id for p in scored.predictions}),
            "device": str(judge.vision.device),
            "dtype": str(model.get_output_embeddings().weight.dtype),
            "seconds": round(time.perf_counter() - started, 3),
        },
        skipped=reader.skipped,
    )
    if out is not None:
        write_results(out, results, scored.predictions)
    return Evaluation(results, scored.predictions)


class _Judge:
    """Turns batches of items into predictions, asking the same question only once."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        retriever: MemoryRetriever | None,
        max_new_tokens: int,
        cached_features: FeatureRows | None,
    ) -> None:
        self.model, self.processor, self.retriever = model, processor, retriever
        self.vision = VisionEncoder.from_model(model, processor)
        self.cached_features = cached_features
        self.max_new_tokens = max_new_tokens
        self.predictions: list[Prediction] = []
        self.memories = 0
        """Most memories that a sample was given."""
        self._answered: dict[tuple[object, ...], str] = {}

    def add(self, items: list[Item]) -> None:
        """Judge one batch."""
        if not items:
            return
        features = vision_features(items, self.vision, self.cached_features)
        inputs: dict[str, Tensor] = {"vision_features": features}
        memory = None
        if self.retriever is not None:
            memory = retrieve(items, features, self.retriever, self.processor)
            inputs |= {
                "memory_values": memory.values,
                "memory_mask": memory.mask,
                "memory_scores": memory.scores,
            }
        pad = self.processor.tokenizer.pad_token_id
        losses, counts = answer_losses(self.model, [item.full for item in items], inputs, pad)
        memory_ids = memory.ids if memory is not None else [[] for _ in items]
        texts = self._answers(items, inputs, memory_ids)
        for row, item in enumerate(items):
            ids = tuple(memory_ids[row])
            scores = memory.scores[row, : len(ids)].tolist() if memory is not None else ()
            self.memories = max(self.memories, len(ids))
            self.predictions.append(
                Prediction(
                    id=item.sample.id,
                    image_id=item.image_id,
                    instruction=item.sample.instruction,
                    prediction=texts[row],
                    references=item.references,
                    loss_sum=losses[row],
                    supervised_tokens=counts[row],
                    memory_ids=ids,
                    memory_scores=tuple(scores),
                )
            )

    def _answers(
        self, items: list[Item], inputs: dict[str, Tensor], memory_ids: list[list[str]]
    ) -> list[str]:
        if not self.max_new_tokens:
            return [""] * len(items)
        questions = [
            (item.image_id, *item.prompt.input_ids, *ids) for item, ids in zip(items, memory_ids)
        ]
        new: dict[tuple[object, ...], int] = {}
        for row, question in enumerate(questions):
            if question not in self._answered:
                new.setdefault(question, row)
        if new:
            rows = list(new.values())
            texts = answers(
                self.model,
                [items[row].prompt for row in rows],
                {name: tensor[rows] for name, tensor in inputs.items()},
                self.processor.tokenizer,
                self.max_new_tokens,
            )
            self._answered.update(zip(new, texts))
        return [self._answered[question] for question in questions]


def _memory_tokens(model: Any, retriever: MemoryRetriever | None) -> int:
    """How many memory placeholders a prompt has: none without memory, unless they are learned."""
    config = model.config
    if retriever is not None and not config.n_memory_tokens:
        raise EvaluationError(
            "A bank was given, but this model was built without memory (k = 0). Evaluate it "
            "without a bank, or train one with k > 0."
        )
    if retriever is not None or config.memory_source == "soft_prompt":
        return int(config.n_memory_tokens)
    return 0


def _bank_name(retriever: MemoryRetriever | None) -> str | None:
    if retriever is None:
        return None
    bank = getattr(retriever, "bank", None)
    return str(getattr(bank, "folder", None) or type(retriever).__name__)


def _report(skipped: list[Skipped], total: int) -> None:
    if skipped:
        named = first_few(s.reason for s in skipped)
        logger.warning("%d of %d samples could not be judged: %s", len(skipped), total, named)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the model's own mode again afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
