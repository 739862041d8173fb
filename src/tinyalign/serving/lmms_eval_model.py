"""TinyAlign as a model that lmms-eval knows, retrieval included.

Installed beside lmms-eval, it is found by the entry point `lmms_eval.models`:
`lmms-eval --model tinyalign --model_args pretrained=RUN,bank=RUN,k=2 --tasks TASK`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from tinyalign.data.images import load_image, to_rgb
from tinyalign.data.sample import ImageRef, Message
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.controls.comparison_rows import with_control
from tinyalign.evaluation.results import Prediction
from tinyalign.evaluation.running.conversations import Answerer, Conversation
from tinyalign.log import logger, progress
from tinyalign.serving.load import load
from tinyalign.vocabulary import RECALL, Engine, EvaluationControl

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

NAME = "tinyalign"
UNSET = "\n\n"
"""The stop that lmms-eval sets where a task names none; its own chat models ignore it too."""


def manifest() -> ModelManifest:
    """What lmms-eval asks an entry point for: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.TinyAlign")


def __getattr__(name: str) -> Any:
    # The class exists only where lmms-eval, whose base class it has, is asked for it.
    if name == "TinyAlign":
        return _model_class()
    raise AttributeError(name)


class LmmsEvalModel:
    """What lmms-eval calls, apart from its own base class."""

    is_simple = False  # takes messages, not text with placeholders

    def __init__(
        self,
        pretrained: str,
        bank: str | None = None,
        k: int | None = None,
        control: EvaluationControl = "none",
        memory: Literal["on", "off"] = "on",
        batch_size: int | str = 1,
        device: str = "auto",
        max_new_tokens: int = 128,
        seed: int = 0,
        max_batch_size: int | None = None,
        engine: Engine = "auto",
        recall: float = RECALL,
    ) -> None:
        """These are the `model_args`.

        Args:
            pretrained: a model's folder, or a run folder.
            bank: a memory bank, or a run folder; without it the model runs without memory.
            k: memories a question; by default the model's own.
            control: none, random or shuffled, as of `tinyalign evaluate`.
            memory: "off" runs without memory, though a bank is named.
            max_new_tokens: where a task does not say it.
            seed: of shuffled and random memories.
            max_batch_size: given by lmms-eval; batches are of `batch_size`.
            engine, recall: how the bank is searched, as of `tinyalign evaluate`.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise EvaluationError(
                "Under lmms-eval TinyAlign runs in one process; `tinyalign evaluate --benchmark` "
                "runs in several."
            )
        loaded = load(pretrained, bank, k=k, device=device, engine=engine, recall=recall)
        self.retriever = with_control(loaded.retriever, control if memory == "on" else memory, seed)
        self.batch_size = int(batch_size)
        self.answerer = Answerer(loaded.model, loaded.processor, self.retriever, self.batch_size)
        self.max_new_tokens = max_new_tokens
        self.predictions: dict[tuple[str, int], Prediction] = {}
        """What was answered, by task and number of the document."""
        self.before: Callable[[Iterator[Conversation]], None] = lambda asked: None
        """Called with everything that is to be asked, before any of it is."""
        self.task_dict: dict[str, Any] = {}

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One greedy answer for each request, in order."""
        settings = [self._length(request.args) for request in requests]
        self.before(self.conversations(requests))
        with progress("Answering", len(requests)) as advance:
            for length in sorted(set(settings)):
                those = [r for r, each in zip(requests, settings) if each == length]
                found = self.answerer.answers(self.conversations(those), length, advance)
                for request, prediction in zip(those, found):
                    *_, number, task, _ = request.args
                    self.predictions[task, number] = prediction
        return [self._text(request.args) for request in requests]

    def conversations(self, requests: Sequence[Any]) -> Iterator[Conversation]:
        """What is asked; images are decoded when they are reached."""
        for request in requests:
            _, to_messages, _, number, task, split = request.args
            messages = to_messages(self.task_dict[task][split][number])
            yield conversation(f"{task}/{number}", messages)

    def _length(self, args: Sequence[Any]) -> int:
        _, _, wanted, _, task, _ = args
        wanted = wanted or {}
        sampling = wanted.get("do_sample") and wanted.get("temperature", 1)
        if sampling or (wanted.get("num_beams") or 1) > 1:
            raise EvaluationError(
                f"lmms-eval task {task!r} wants {dict(wanted)}; TinyAlign answers greedily. Set "
                "do_sample: false, temperature: 0 and num_beams: 1 in its generation_kwargs."
            )
        return int(wanted.get("max_new_tokens") or self.max_new_tokens)

    def _text(self, args: Sequence[Any]) -> str:
        """The answer, cut where the task wants it to stop."""
        _, _, wanted, number, task, _ = args
        text = self.predictions[task, number].prediction
        stops = (wanted or {}).get("until") or ()
        for stop in [stops] if isinstance(stops, str) else stops:
            if stop and stop != UNSET:
                text = text.split(stop)[0]
        return text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: tasks must generate."""
        raise EvaluationError("TinyAlign generates answers; it ranks none (loglikelihood tasks).")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: one question about one image."""
        raise EvaluationError("TinyAlign answers one round, this lmms-eval task has several.")


def conversation(name: str, messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """lmms-eval's messages as a conversation about their first image.

    Raises EvaluationError for video and audio, DataError for an image that cannot be read.
    """
    images, turns = [], []
    for message in messages:
        texts = []
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image":
                images.append(part["url"])
            else:
                raise EvaluationError(f"{name}: TinyAlign reads images, found {part['type']}.")
        turns.append(Message(message["role"], "\n".join(texts)))
    if len(images) > 1:
        logger.warning("%s: the first of its %d images is shown", name, len(images))
    if not images:
        return Conversation(name, tuple(turns))
    first = images[0]
    picture = load_image(ImageRef(path=first)) if isinstance(first, str) else to_rgb(first)
    return Conversation(name, tuple(turns), picture)


@cache
def _model_class() -> type:
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise EvaluationError(
            f"lmms-eval cannot be imported ({error}); install it: pip install "
            "'tinyalign-vlm[lmms-eval]'"
        ) from error
    return type("TinyAlign", (LmmsEvalModel, lmms), {"__module__": __name__})
