"""easy-VQA: coloured shapes, thirteen answers, the official test split of the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinyalign.data.readers.easy_vqa import EasyVqaDataset
from tinyalign.data.sample import Sample
from tinyalign.evaluation.benchmarks.base import Benchmark, Judged, Question, Questions
from tinyalign.evaluation.benchmarks.measures import mean, means_by_group
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, plain
from tinyalign.evaluation.metrics.vqa import normalise_answer


class EasyVqa(Benchmark):
    """Accuracy over the 9,673 test questions, and by kind: yes or no, shape, colour."""

    name = "easy-vqa"
    title = "easy-VQA"
    files = "none: the package easy-vqa holds them (or the name of a split: test, train)"
    rule = "equal after the official VQA normal form on both sides"
    protocols = by_name(llava(max_new_tokens=16), plain(max_new_tokens=8))

    def questions(self, source: str | Path = "test", images: str | Path | None = None) -> Questions:
        """The questions of a split; ids are `SPLIT-IMAGE#qN`, as in training."""
        data = EasyVqaDataset(str(source) or "test")
        return Questions(tuple(map(_question, data)), lambda index: data[index].images)

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`accuracy`, and `KIND/accuracy`."""
        hits = [
            float(normalise_answer(t) == normalise_answer(q.references[0]))
            for q, t in zip(questions, texts)
        ]
        metrics = {"accuracy": mean(hits, questions, seed)}
        metrics |= means_by_group(hits, questions, seed)
        return Judged([{"accuracy": hit} for hit in hits], metrics)


_SHAPES = frozenset({"circle", "rectangle", "triangle"})


def _question(sample: Sample) -> Question:
    answer = sample.answer
    kind = "yes_no" if answer in ("yes", "no") else "shape" if answer in _SHAPES else "color"
    image = sample.images[0].name
    return Question(sample.id, sample.instruction, (answer,), image, kind)
