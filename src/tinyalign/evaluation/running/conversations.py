"""Conversations that another tool puts together, answered as the runner answers samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image

from tinyalign.data.chat import Encoded
from tinyalign.data.collator import IGNORED
from tinyalign.data.images import pixel_hash
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.evaluation.results import Prediction
from tinyalign.evaluation.running.inputs import Item, ItemReader
from tinyalign.evaluation.running.predictor import Predictor
from tinyalign.evaluation.running.runner import evaluating, memory_tokens
from tinyalign.model.decoding import Decoding
from tinyalign.model.protocols import MemoryRetriever


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the user's, about one decoded RGB image or none."""

    id: str
    messages: tuple[Message, ...]
    image: Image.Image | None = None


class Answerer:
    """A model, its memory if any, and batches of conversations."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        retriever: MemoryRetriever | None = None,
        batch_size: int = 1,
    ) -> None:
        """Without an image a model reads text alone, and no memory: these are looked up by it."""
        self.model, self.processor, self.retriever = model, processor, retriever
        self.batch_size = batch_size
        self._readers = {shown: self._reader(shown) for shown in (True, False)}

    def answers(
        self,
        conversations: Iterable[Conversation],
        max_new_tokens: int,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[Prediction]:
        """One greedy answer for each conversation, in order; never by a memory of its own image.

        Predictions have no references, and as `image_id` the hash of the decoded pixels.
        """
        answered: list[Prediction] = []
        predictors = {shown: self._predictor(max_new_tokens, shown) for shown in (True, False)}
        with evaluating(self.model):
            for shown, those in groupby(conversations, lambda each: each.image is not None):
                for batch in _batches(those, self.batch_size):
                    items = [self._item(i, each) for i, each in enumerate(batch)]
                    found = predictors[shown].predict(items)
                    advance(len(items))
                    answered += (found[i] for i in range(len(items)))
        return answered

    def _predictor(self, max_new_tokens: int, shown: bool) -> Predictor:
        return Predictor(
            self.model, self.processor, self.retriever, Decoding(max_new_tokens), show_image=shown
        )

    def _reader(self, shown: bool) -> ItemReader:
        n = memory_tokens(self.model, self.retriever)
        return ItemReader((), self.processor, n, decode=False, strict=True, show_image=shown)

    def _item(self, index: int, asked: Conversation) -> Item:
        image = asked.image
        refs = () if image is None else (ImageRef(path=asked.id),)
        sample = Sample(asked.id, refs, asked.messages)
        prompt = self._readers[image is not None].encoded(sample, ask=True)
        full = Encoded(prompt.input_ids, [IGNORED] * len(prompt.input_ids))
        name = asked.id if image is None else pixel_hash(image)
        return Item(index, sample, name, (), prompt, full, image)


def _batches(each: Iterable[Conversation], size: int) -> Iterator[Sequence[Conversation]]:
    batch: list[Conversation] = []
    for one in each:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
