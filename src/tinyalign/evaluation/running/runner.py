"""Run a model over samples: batched, resumable, in shards, every number with its interval."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tinyalign.data.sample import Sample
from tinyalign.errors import EvaluationError, first_few
from tinyalign.evaluation.contamination import Contamination, find_contamination
from tinyalign.evaluation.results import Prediction, Results, Skipped, library_versions
from tinyalign.evaluation.running.inputs import ItemReader, image_id, references
from tinyalign.evaluation.running.judged_samples import JudgedSamples
from tinyalign.evaluation.running.partial_files import JudgedPart
from tinyalign.evaluation.running.predictor import Predictor
from tinyalign.evaluation.running.shards import Shard, gather, rank
from tinyalign.evaluation.tasks import MAX_NEW_TOKENS, Scored, check_task, score
from tinyalign.hashing import hash_tensors
from tinyalign.log import logger, progress
from tinyalign.memory.building.builder import FeatureRows
from tinyalign.model.decoding import Decoding
from tinyalign.model.protocols import MemoryRetriever

Scorer = Callable[[Sequence[Prediction]], Scored]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    results: Results
    predictions: list[Prediction]
    missing: int = 0
    """Samples that other shards have still to judge; while there are any, there is no metric."""


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    task: str,
    retriever: MemoryRetriever | None = None,
    show_image: bool = True,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    shard: Shard | None = None,
    cached_features: FeatureRows | None = None,
    strict: bool = False,
    model_name: str | None = None,
    bank_name: str | None = None,
    protocol: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    scorer: Scorer | None = None,
    contamination: Contamination | None = None,
    loss: bool = True,
    beams: int = 1,
    best_of: int = 1,
) -> Evaluation:
    """Judge `model` on `samples`; greedy decoding, unless told otherwise.

    Under torch.distributed every rank judges its share, rank 0 writes, and all return the whole.

    Args:
        task: "caption" (loss, CIDEr-D, BLEU-4), "vqa" or "easy_vqa" (loss, accuracy); with a
            `scorer` of your own, any name.
        retriever: where memories come from; without one the model runs without memory, also if
            one is attached to it. A bank entry with the sample's id or image is never used.
        show_image: False leaves the image out of the prompt, and with it the memories, which
            are looked up by it: what the text alone gives away.
        max_new_tokens: by default enough for the task; 0 measures the loss alone.
        loss: False measures answers alone, in about half the time.
        beams: of a beam search; 1 is greedy.
        best_of: answers to choose among, by what the neighbours' texts agree with most.
        seed: of the bootstrap; nothing else is random.
        device: moves the model there first; by default it stays where it is.
        out: results.json or its folder; predictions.jsonl goes beside it. A run that was stopped
            goes on where it was; a finished one is read, not run again.
        resume: False drops what `out` holds of an earlier evaluation.
        shard: judge only these samples; the shard that finds all others done in `out` joins them.
        cached_features: the frozen tower's output (n, D) for each sample, by index.
        strict: stop at the first unusable sample instead of listing it.
        model_name, bank_name: what the results call them; by default where they came from.
        protocol, data: how questions were put, and where samples lie, for the results.
        scorer: predictions, one for each sample that was judged and in order, to their scores;
            `max_new_tokens` must be given with it.
        contamination: the samples' overlap with bank and training data; by default it is looked
            for in the bank of `retriever`.

    Raises EvaluationError for an unknown task, when no sample could be judged, or when `out`
    holds an evaluation with other settings.
    """
    length = _length(task, max_new_tokens, scorer, loss)
    started = time.perf_counter()
    if device is not None:
        model.to(device)
    decode = cached_features is None or retriever is not None  # memories exclude by image
    tokens = memory_tokens(model, retriever)
    reader = ItemReader(
        samples, processor, tokens, decode=decode, strict=strict, show_image=show_image
    )
    decoding = Decoding(length, beams, best_of)
    predictor = Predictor(model, processor, retriever, decoding, cached_features, show_image, loss)
    draft = _draft(predictor, task, len(samples), seed, protocol)
    draft.model, draft.bank = model_name or draft.model, bank_name or draft.bank
    draft.settings |= {"batch_size": batch_size, "data": dict(data or {})}
    collection = JudgedSamples(out, draft, shard, resume)
    if (finished := collection.finished()) is not None:
        logger.info("%s: finished before with these settings; nothing to do", collection.path)
        return Evaluation(*finished)
    _predict_all(predictor, reader, collection, batch_size)
    draft.contamination = (contamination or _in_bank(samples, retriever)).as_dict()
    draft.settings["seconds"] = round(time.perf_counter() - started, 3)
    return _joined(draft, collection, samples, scorer)


def _joined(
    draft: Results, collection: JudgedSamples, samples: Sequence[Sample], scorer: Scorer | None
) -> Evaluation:
    """The evaluation with all shards that are done, written if none is missing."""
    found = _scored(draft, collection.join(), samples, scorer)
    if not found.missing:
        collection.write(found.results, found.predictions)
    elif (finished := collection.finished()) is not None:  # another shard joined them just now
        return Evaluation(*finished)
    return found


def _length(task: str, max_new_tokens: int | None, scorer: Scorer | None, loss: bool) -> int:
    """Tokens an answer may have. Raises EvaluationError for an unknown task, or nothing to do."""
    if scorer is None:
        check_task(task)
    elif max_new_tokens is None:
        raise EvaluationError(f"Say with max_new_tokens how long an answer of {task!r} may be.")
    length = MAX_NEW_TOKENS[task] if max_new_tokens is None else max_new_tokens
    if not loss and not length:
        raise EvaluationError("Without loss and without answers there is nothing to measure.")
    return length


def _predict_all(
    predictor: Predictor, reader: ItemReader, collection: JudgedSamples, batch_size: int
) -> None:
    """Answer what is left of this process's share."""
    todo = collection.start(reader.samples)
    total = len(collection.share.indices(len(reader.samples)))
    bar = progress("Evaluating", total) if rank() == 0 else nullcontext(lambda n: None)
    with evaluating(predictor.model), bar as advance:
        advance(total - len(todo))
        for batch in reader.batches(batch_size, todo):
            collection.add(JudgedPart(predictor.predict(batch.items), batch.skipped))
            advance(len(batch.items) + len(batch.skipped))


def _scored(
    draft: Results, judged: JudgedPart, samples: Sequence[Sample], scorer: Scorer | None
) -> Evaluation:
    """Results with their numbers, from what was judged; without them while samples are missing."""
    predictions = [judged.predictions[index] for index in sorted(judged.predictions)]
    skipped = [judged.skipped[index] for index in sorted(judged.skipped)]
    results = replace(draft, n=len(predictions), skipped=skipped)
    if missing := judged.missing(len(samples)):
        return Evaluation(results, predictions, missing)
    _report(skipped, len(samples))
    results.settings |= {
        "memories": max((len(p.memory_ids) for p in predictions), default=0),
        "images": len({p.image_id for p in predictions}),
    }
    return _with_scores(results, predictions, samples, scorer)


def _with_scores(
    results: Results,
    predictions: Sequence[Prediction],
    samples: Sequence[Sample],
    scorer: Scorer | None,
) -> Evaluation:
    if scorer is None:
        scorer = partial(
            score,
            results.task,
            generated=results.decoding["max_new_tokens"] > 0,
            reference_set=_reference_set(samples) if results.task == "caption" else None,
            seed=results.seed,
        )
    scored = scorer(predictions)
    results.metrics = scored.metrics
    results.settings |= scored.settings
    return Evaluation(results, scored.predictions)


def rescored(
    before: Evaluation,
    predictions: Sequence[Prediction],
    samples: Sequence[Sample],
    scorer: Scorer | None,
    settings: Mapping[str, Any],
) -> Evaluation:
    """Other answers to the same samples, scored as those of `before` were.

    settings: what is different about them, for the record.
    """
    results = replace(before.results, settings={**before.results.settings, **settings})
    return _with_scores(results, predictions, samples, scorer)


def _draft(
    predictor: Predictor, task: str, n: int, seed: int, protocol: Mapping[str, Any] | None
) -> Results:
    """All of the results that is known before the first sample."""
    model, retriever = predictor.model, predictor.retriever
    search = getattr(retriever, "search_settings", {})
    learned = model.config.memory_source == "soft_prompt" and predictor.show_image
    return Results(
        task=task,
        n=0,
        metrics={},
        model=str(getattr(model, "name_or_path", "") or type(model).__name__),
        bank=_bank_name(retriever),
        seed=seed,
        versions=library_versions(),
        settings={
            "samples": n,
            "memory": getattr(retriever, "control", "on") if retriever else _without(learned),
            "memory_seed": getattr(retriever, "seed", None),
            "k": getattr(retriever, "k", None),
            "image": "shown" if predictor.show_image else "left out",
            "dtype": str(model.get_output_embeddings().weight.dtype),
            "device": str(predictor.vision.device),
            **({} if predictor.loss else {"loss": "not measured"}),
            **({"search": search} if search else {}),
            **_copying(model, retriever),
        },
        model_hash=hash_tensors(model.state_dict()),
        bank_hash=getattr(getattr(retriever, "bank", None), "hash", None),
        protocol=dict(protocol or {}),
        decoding=predictor.decoding.as_dict(),
    )


def _copying(model: Any, retriever: MemoryRetriever | None) -> dict[str, Any]:
    """How much is copied from the neighbours' texts, where anything is."""
    if retriever is None or model.copier is None:
        return {}
    return {"copy": [round(one, 6) for one in model.copier.gate.weights]}


def _in_bank(samples: Sequence[Sample], retriever: MemoryRetriever | None) -> Contamination:
    """The samples' overlap with the retriever's bank; rank 0 looks for all."""
    bank = getattr(retriever, "bank", None)
    if bank is None:
        return Contamination()
    return gather(find_contamination(samples, bank=bank) if rank() == 0 else None)[0]


def _without(learned: bool) -> str:
    return "soft_prompt" if learned else "off"


def _reference_set(samples: Sequence[Sample]) -> list[tuple[str, ...]]:
    """References of every image of the split, also where its samples were skipped."""
    found: dict[str, tuple[str, ...]] = {}
    for sample in samples:
        if references(sample):
            found.setdefault(image_id(sample), references(sample))
    return list(found.values())


def memory_tokens(model: Any, retriever: MemoryRetriever | None) -> int:
    """How many memory placeholders a prompt has: none without memory, unless they stay."""
    config = model.config
    if retriever is not None and not config.n_memory_tokens:
        raise EvaluationError(
            "A bank was given, but this model was built without memory (k = 0). Evaluate it "
            "without a bank, or train one with k > 0."
        )
    return int(config.n_memory_tokens if retriever is not None else config.n_tokens_without_bank)


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
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the model's own mode again afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
