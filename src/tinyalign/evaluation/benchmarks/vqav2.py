"""VQAv2 (Goyal et al., CVPR 2017): soft accuracy against ten annotators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import read_json
from tinyalign.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Question,
    Questions,
    in_folder,
    in_table,
)
from tinyalign.evaluation.benchmarks.locate import beside, file_of, folder_of
from tinyalign.evaluation.benchmarks.measures import mean, means_by_group
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, lmms_eval, plain
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table
from tinyalign.evaluation.metrics.vqa import m4c_answer, official_vqa_accuracy


class Vqav2(Benchmark):
    """Accuracy over all questions, and by answer type (yes/no, number, other)."""

    name = "vqav2"
    title = "VQAv2"
    files = "v2_OpenEnded_mscoco_*_questions.json and v2_mscoco_*_annotations.json, or a hub id"
    rule = "M4C normal form of the answer, then the official leave-one-out soft accuracy"
    protocols = by_name(llava(), lmms_eval(max_new_tokens=16), plain(max_new_tokens=16))

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """From the annotations, beside which the questions must lie; or from parquet."""
        if is_table(source):
            return _from_table(open_table(source, "validation"))
        file = file_of(source, "v2_mscoco_val2014_annotations.json", "*annotations.json")
        asked = beside(
            file,
            file.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions"),
            "*OpenEnded*questions.json",
        )
        if asked is None:
            raise EvaluationError(
                f"{file.parent}: expected the questions (v2_OpenEnded_mscoco_*_questions.json) "
                "beside the annotations, found none."
            )
        texts = {q["question_id"]: q["question"] for q in _list(asked, "questions")}
        items, names = [], []
        for entry in _list(file, "annotations"):
            if entry["question_id"] not in texts:
                raise EvaluationError(
                    f"{asked}: no question {entry['question_id']}, which {file.name} annotates."
                )
            items.append(_question(entry, texts[entry["question_id"]]))
            names.append(f"COCO_val2014_{int(entry['image_id']):012d}.jpg")
        return Questions(tuple(items), in_folder(folder_of(images, file, "val2014"), names))

    def submitted(self, text: str) -> str:
        """The M4C form: what LLaVA sends to the official scorer."""
        return m4c_answer(text)

    def submission(self, texts: Mapping[str, str]) -> list[dict[str, Any]]:
        """What the server reads: `[{"question_id", "answer"}]`, ids as numbers, M4C forms."""
        return [
            {"question_id": int(name) if name.isdecimal() else name, "answer": m4c_answer(text)}
            for name, text in texts.items()
        ]

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`accuracy`, and `TYPE/accuracy` for each answer type."""
        scores = [official_vqa_accuracy(t, q.references) for q, t in zip(questions, texts)]
        metrics = {"accuracy": mean(scores, questions, seed)}
        metrics |= means_by_group(scores, questions, seed)
        return Judged([{"accuracy": score} for score in scores], metrics)


def _question(entry: dict[str, Any], text: str) -> Question:
    return Question(
        id=str(entry["question_id"]),
        text=text,
        references=tuple(vote["answer"] for vote in entry["answers"]),
        image_id=str(entry["image_id"]),
        group=entry.get("answer_type") or "",
    )


def _from_table(table: Table) -> Questions:
    items = tuple(_question(row, row["question"]) for row in table.rows())
    return Questions(items, in_table(table, range(len(items))))


def _list(file: Path, key: str) -> list[dict[str, Any]]:
    content = read_json(file)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise EvaluationError(f"{file}: expected an object with a list {key!r}, found none.")
    return found
