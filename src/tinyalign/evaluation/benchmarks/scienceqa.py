"""ScienceQA (Lu et al., NeurIPS 2022): school science with options, some with an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import Answers, one_each, read_answers, read_json
from tinyalign.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Question,
    Questions,
    in_folder,
    in_table,
    with_images,
)
from tinyalign.evaluation.benchmarks.locate import beside, file_of, folder_of
from tinyalign.evaluation.benchmarks.measures import mean
from tinyalign.evaluation.benchmarks.protocols import (
    LETTER,
    Protocol,
    by_name,
    llava,
    lmms_eval,
    plain,
)
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table

LETTERS = ("A", "B", "C", "D", "E")
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def parse(text: str) -> str | None:
    """The letter of an answer: `B`, `B. ...`, or exactly one `The answer is B.`; else None."""
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


class ScienceQa(Benchmark):
    """Accuracy over the questions with an image (SQA-IMG), and over all that were asked."""

    name = "scienceqa"
    title = "ScienceQA-IMG"
    files = "problems.json, pid_splits.json and images/test/ID/image.png, or a hub id"
    rule = "`X`, `X. ...` or exactly one `The answer is X.`; anything else is wrong"
    protocols = by_name(
        llava(LETTER, max_new_tokens=1024),
        lmms_eval(LETTER, max_new_tokens=16),
        plain(max_new_tokens=16),
    )

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """The test split; ids are those of problems.json."""
        if is_table(source):
            return _from_table(open_table(source, "test", "ScienceQA-IMG"))
        file = file_of(source, "problems.json")
        problems = read_json(file)
        splits = beside(file, "pid_splits.json")
        names = read_json(splits)["test"] if splits else list(problems)
        absent = [name for name in names if name not in problems]
        if absent:
            raise EvaluationError(f"{file}: no problem {absent[0]!r}, which {splits} names.")
        items = tuple(_question(str(name), problems[name]) for name in names)
        folder = folder_of(images, file, "images/test", "images", "test")
        paths = [f"{q.id}/{problems[q.id]['image']}" if q.has_image else None for q in items]
        return Questions(items, in_folder(folder, paths))

    def prompt(self, question: Question, protocol: Protocol) -> str:
        """Context if there is one, question, lettered options, and the suffix."""
        context = f"Context: {question.hint}\n" if question.hint else ""
        options = "\n".join(f"{x}. {o}" for x, o in zip(question.letters, question.options))
        return f"{protocol.prefix}{context}{question.text}\n{options}{protocol.suffix}"

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """Records with ids; or a stored result with its raw texts under `outputs`."""
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("outputs"), dict):
            return Answers(str(path), one_each(content["outputs"].items(), str(path)))
        return read_answers(path)

    def complete(self, questions: Questions, predictions: str | Path) -> Questions:
        """Only the questions with an image where no other is answered: a run of SQA-IMG."""
        answered = self.answers(predictions, questions).texts
        if any(q.id in answered for q in questions if not q.has_image):
            return questions
        return with_images(questions)

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`image_accuracy` where any question has an image, and `accuracy` over all."""
        said = [parse(text) for text in texts]
        hits = [float(a in q.letters and a in q.references) for a, q in zip(said, questions)]
        seen = [i for i, q in enumerate(questions) if q.has_image]
        metrics = {}
        if seen:
            metrics["image_accuracy"] = mean(
                [hits[i] for i in seen], [questions[i] for i in seen], seed
            )
        metrics["accuracy"] = mean(hits, questions, seed)
        counts = {"parse_failures": said.count(None), "with_image": len(seen)}
        return Judged([{"accuracy": hit} for hit in hits], metrics, counts)


def _question(name: str, problem: dict[str, Any], has_image: bool | None = None) -> Question:
    return Question(
        id=name,
        text=problem["question"],
        references=(LETTERS[problem["answer"]],),
        image_id=name,
        options=tuple(problem["choices"]),
        hint=problem.get("hint") or "",
        has_image=problem.get("image") is not None if has_image is None else has_image,
    )


def _from_table(table: Table) -> Questions:
    shown = table.has_image()
    items = tuple(
        _question(str(row.get("id", i)), row, shown[i]) for i, row in enumerate(table.rows())
    )
    return Questions(items, in_table(table, range(len(items))))
