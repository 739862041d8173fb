"""What every benchmark is: questions from its files, a prompt, and scores of the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import Answers, read_answers
from tinyalign.evaluation.benchmarks.protocols import LLAVA, Protocol
from tinyalign.evaluation.benchmarks.tables import Table
from tinyalign.evaluation.metrics.intervals import Interval

MULTIPLE_CHOICE = "multiple-choice"
OPEN = "open"


@dataclass(frozen=True)
class Question:
    """One question as the benchmark's files have it, without anything a protocol adds."""

    id: str
    text: str
    references: tuple[str, ...]
    """What an answer is judged by: annotators' votes, accepted answers, or a letter."""
    image_id: str
    """What intervals resample: questions about the same picture share it."""
    group: str = ""
    """POPE's split, MME's sub-task, MMMU's subject, a VQA answer type."""
    options: tuple[str, ...] = ()
    """Texts of the options A, B, C ...; empty for a question without options."""
    kind: str = ""
    """MULTIPLE_CHOICE or OPEN, where a benchmark has both."""
    hint: str = ""
    """Text that belongs to the question, such as ScienceQA's context."""
    ocr: tuple[str, ...] = ()
    """Words that an OCR system found in the image."""
    has_image: bool = True

    @property
    def letters(self) -> tuple[str, ...]:
        """A, B, C ... for the options."""
        return tuple(chr(ord("A") + i) for i in range(len(self.options)))


Images = Callable[[int], tuple[ImageRef, ...]]
"""The images of question number `i`, undecoded."""


@dataclass(frozen=True)
class Questions(Sequence[Question]):
    """The questions of a benchmark and where their images are."""

    items: tuple[Question, ...]
    images: Images
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the files said about themselves, such as which POPE release it is."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.items[index]

    def some(self, indices: Sequence[int]) -> Questions:
        """The questions at these places, in this order: a limit, or a shard."""
        places = tuple(indices)
        return replace(
            self,
            items=tuple(self.items[i] for i in places),
            images=lambda i: self.images(places[i]),
        )


def with_images(questions: Questions) -> Questions:
    """The questions that have an image, such as ScienceQA's IMG subset; the notes say so."""
    kept = [i for i, question in enumerate(questions) if question.has_image]
    left_out = len(questions) - len(kept)
    if not left_out:
        return questions
    notes = {**questions.notes, "questions_without_image_left_out": left_out}
    return replace(questions.some(kept), notes=notes)


def in_folder(folder: Path | None, names: Sequence[str | None]) -> Images:
    """Images as files of a folder, by question; None where a question has no image."""
    base = folder or Path()
    return lambda i: () if names[i] is None else (ImageRef(path=str(base / str(names[i]))),)


def in_table(table: Table, rows: Sequence[int]) -> Images:
    """Images as the column of a table, by question."""

    def images(index: int) -> tuple[ImageRef, ...]:
        found = table.image(rows[index])
        return () if found is None else (found,)

    return images


@dataclass(frozen=True)
class Judged:
    """What a benchmark found in the answers."""

    scores: list[dict[str, float]]
    """Of each question, by metric."""
    metrics: dict[str, Interval]
    counts: dict[str, Any] = field(default_factory=dict)
    """What is not a metric but must be said: parse failures, which rule was used."""


class Benchmark(ABC):
    """One benchmark. Subclasses say where questions come from and how answers are judged."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What people call it."""
    files: ClassVar[str]
    """What `questions` reads, in a sentence."""
    protocols: ClassVar[Mapping[str, Protocol]]
    rule: ClassVar[str]
    """How an answer is judged, in a sentence."""
    self_contained: ClassVar[bool] = False
    """Whether predictions files hold the truth as well, so that they are their own references."""

    def protocol(self, name: str = LLAVA, ocr: bool | None = None) -> Protocol:
        """The protocol of that name; `ocr` overrides its own setting."""
        if name not in self.protocols:
            raise EvaluationError(
                f"{self.title} has no protocol {name!r}; it has {', '.join(self.protocols)}."
            )
        found = self.protocols[name]
        if ocr is None:
            return found
        if found.ocr is None:
            raise EvaluationError(
                f"{self.title} has no OCR tokens to show or to leave out; leave that setting off."
            )
        return replace(found, ocr=ocr)

    @abstractmethod
    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """Read the official files: a folder or file, or a hub id where the benchmark has one.

        `images` is the folder of pictures; by default the one the official download has.
        """

    def prompt(self, question: Question, protocol: Protocol) -> str:
        """The user's text for one question."""
        return f"{protocol.prefix}{question.text}{protocol.suffix}"

    def samples(self, questions: Questions, protocol: Protocol) -> BenchmarkSamples:
        """What a model is asked: one sample a question, in order, images undecoded."""
        return BenchmarkSamples(self, questions, protocol)

    def first(self, questions: Questions, limit: int) -> Questions:
        """The first `limit` questions, all if there are no more."""
        return questions.some(range(min(limit, len(questions))))

    def settings(self) -> dict[str, Any]:
        """Settings of its own that decide a score; JSON-ready."""
        return {}

    def ready(self) -> None:
        """Raise EvaluationError now for anything that scoring will need and is not there."""
        return None

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """Read predictions in any of the formats this benchmark's tools write."""
        return read_answers(path)

    def complete(self, questions: Questions, predictions: str | Path) -> Questions:
        """Add what only the predictions file knows; nothing by default."""
        return questions

    def check_prompts(self, answers: Answers, protocol: Protocol) -> None:
        """Raise EvaluationError when a file's own prompts contradict the protocol."""
        return None

    def submitted(self, text: str) -> str:
        """What the official scorer is given for a model's text; the text itself by default."""
        return text

    def submission(self, texts: Mapping[str, str]) -> Any:
        """The JSON value that the official judge or server takes, from a model's own texts by id.

        Raises EvaluationError where there is neither.
        """
        raise EvaluationError(f"{self.title} has no server to submit to; score the answers here.")

    @abstractmethod
    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """Score one answer for each question, in order; `seed` is of the bootstrap.

        Each text is what `submitted` made of the model's own.
        """


class BenchmarkSamples(LazySamples):
    """Samples of a benchmark under a protocol; the answer is the most frequent reference."""

    def __init__(self, benchmark: Benchmark, questions: Questions, protocol: Protocol) -> None:
        self.benchmark, self.questions, self.protocol = benchmark, questions, protocol

    def __len__(self) -> int:
        return len(self.questions)

    def sample_at(self, index: int) -> Sample:
        """Question `index` as a conversation."""
        question: Question = self.questions[index]
        asked = Message("user", self.benchmark.prompt(question, self.protocol))
        votes = question.references
        answer = (Message("assistant", max(votes, key=votes.count)),) if votes else ()
        return Sample(
            id=question.id,
            images=self.questions.images(index),
            messages=(asked, *answer),
            source=self.benchmark.name,
            references=question.references,
            category=question.group,
        )
