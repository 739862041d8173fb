"""One question about one image: the answer, and what memory had to say about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tinyalign.data.images import load_image, to_rgb
from tinyalign.data.sample import ImageRef
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.decoding import Choose, Decoding, decode
from tinyalign.model.protocols import MemoryBatch


@dataclass(frozen=True)
class Answer:
    """What a model answered, and the memories it was shown: (id, text, similarity), best first."""

    text: str
    memories: list[tuple[str, str, float]]


def answer(
    model: Any,
    processor: Any,
    image: Image.Image | str | os.PathLike[str],
    question: str,
    retriever: Retriever | None = None,
    max_new_tokens: int = 32,
    decoding: Decoding | None = None,
) -> Answer:
    """Answer `question` about `image` (a picture or its file), greedily unless told otherwise.

    The same path as `pipeline("image-text-to-text")`: the processor's chat template, then
    `generate`. `retriever` is by default the one attached to the model, if any; an empty question
    asks for what the model was trained to say unasked, a caption. Raises DataError for a file
    that is no image.
    """
    if isinstance(image, Image.Image):
        picture = to_rgb(image)
    else:
        picture = load_image(ImageRef(path=str(image)))
    content: list[dict[str, Any]] = [{"type": "image", "image": picture}]
    if question:
        content.append({"type": "text", "text": question})
    retriever = model.retriever if retriever is None else retriever
    with _using(model, processor, retriever):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        wanted = decoding or Decoding(max_new_tokens)
        [text] = decode(model, dict(inputs), processor.tokenizer, wanted, _choice(retriever))
        found = model.last_retrieval if retriever is not None else None
    return Answer(text, _memories(found, retriever))


def _choice(retriever: Retriever | None) -> Choose | None:
    """Chooses among several answers by what the neighbours say that `generate` looked up."""
    if retriever is None:
        return None

    def choose(row: int, candidates: Sequence[str], looked_up: MemoryBatch | None) -> int:
        return (
            0 if looked_up is None else retriever.ranker.best(candidates, looked_up.neighbours[row])
        )

    return choose


@contextmanager
def _using(model: Any, processor: Any, retriever: Retriever | None) -> Iterator[None]:
    """Attach `retriever` for one question in evaluation mode; restore what was there before."""
    training = model.training
    before = model.retriever, processor.memory_enabled, processor.query_tokenizer
    model.retriever = retriever
    processor.memory_enabled = retriever is not None
    processor.query_tokenizer = None if retriever is None else retriever.perceiver.query_ids
    model.eval()
    try:
        yield
    finally:
        model.retriever, processor.memory_enabled, processor.query_tokenizer = before
        model.train(training)


def _memories(
    found: MemoryBatch | None, retriever: Retriever | None
) -> list[tuple[str, str, float]]:
    if found is None or retriever is None:
        return []
    ids = found.ids[0]
    entries = retriever.bank.entries
    texts = {e.id: e.text for e in entries.at(entries.rows_with("id", ids)).values()}
    return [(i, texts[i], score) for i, score in zip(ids, found.scores[0].tolist())]
