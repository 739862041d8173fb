"""POPE (Li et al., EMNLP 2023): does the model see objects that are not there?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import (
    Answers,
    answers_from,
    one_each,
    read_answers,
    read_records,
)
from tinyalign.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Question,
    Questions,
    in_folder,
    in_table,
)
from tinyalign.evaluation.benchmarks.locate import folder_of
from tinyalign.evaluation.benchmarks.measures import safe_ratio
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, lmms_eval, plain
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table
from tinyalign.evaluation.metrics.intervals import Floats, interval

SPLITS = ("random", "popular", "adversarial")
LLAVA_QUESTIONS = "llava_pope_test.jsonl"
LLAVA_RANDOM = 2910
"""Lines of the random split in the release that LLaVA-1.5 used; today's has 3,000."""

TP, FP, TN, FN = range(4)


def parse(text: str) -> str:
    """The first sentence without commas says no if it has the word No, no or not; else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


class Pope(Benchmark):
    """Accuracy, precision, recall, F1 and yes-ratio of each split, and their means over splits."""

    name = "pope"
    title = "POPE"
    files = "coco_pope_{random,popular,adversarial}.json, images in val2014/, or a hub id"
    rule = "no if the first sentence has the word No, no or not, else yes"
    protocols = by_name(llava(), lmms_eval(), plain(max_new_tokens=16))

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """The label files of a folder, or one of them; ids are `SPLIT/question_id`."""
        if is_table(source):
            return _from_table(open_table(source, "test"))
        files = _split_files(Path(source), "coco_pope_{}.json", "*{}*.json")
        if not files:
            raise EvaluationError(
                f"{source}: expected coco_pope_random.json, coco_pope_popular.json or "
                "coco_pope_adversarial.json, found none."
            )
        items, names = [], []
        for split, file in files.items():
            for record in read_records(file):
                items.append(_question(split, record, str(file)))
                names.append(record["image"])
        folder = folder_of(images, next(iter(files.values())), "val2014")
        lines = {split: sum(q.group == split for q in items) for split in files}
        return Questions(tuple(items), in_folder(folder, names), {"release": _release(lines)})

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """A file for each split, in order or with ids; or one file with ids like ours."""
        files = _split_files(Path(path), "*{}*.json", "*{}*.jsonl")
        splits = list(dict.fromkeys(q.group for q in questions))
        if Path(path).is_file():
            records = read_records(path)
            if any("/" in str(record.get("id", "")) for record in records[:1]):
                return read_answers(path)
            if records and "category" in records[0]:
                named = [replace_id(record, str(record["category"])) for record in records]
                return answers_from(named, str(path))
            if len(splits) > 1:
                raise EvaluationError(
                    f"{path}: one file without split names, but references for "
                    f"{', '.join(splits)}. Give a folder with one predictions file for each "
                    "split, or --references one label file."
                )
            files = {splits[0]: Path(path)}
        texts: dict[str, str] = {}
        for split, file in files.items():
            asked = [q for q in questions if q.group == split]
            texts |= _of_split(read_records(file), asked, split, str(file))
        return Answers(str(path), texts)

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`f1`, `accuracy`, ... as means over splits, and `SPLIT/f1`, `SPLIT/accuracy`, ..."""
        splits = list(dict.fromkeys(q.group for q in questions))
        said = [parse(text) for text in texts]
        table = np.zeros((len(questions), 4 * len(splits)))
        for row, question, answer in zip(table, questions, said):
            cell = _cell(answer, question.references[0])
            row[4 * splits.index(question.group) + cell] = 1
        images = [q.image_id for q in questions]
        metrics = {}
        for name, measure in MEASURES.items():
            average = _mean_over(measure, len(splits))
            metrics[name] = interval(table, statistic=average, images=images, seed=seed)
        for number, split in enumerate(splits):
            part = table[:, 4 * number : 4 * number + 4]
            for name, measure in MEASURES.items():
                metrics[f"{split}/{name}"] = interval(
                    part, statistic=measure, images=images, seed=seed
                )
        hits = [float(a == q.references[0]) for a, q in zip(said, questions)]
        counts = {s: _confusion(table[:, 4 * i : 4 * i + 4]) for i, s in enumerate(splits)}
        return Judged([{"accuracy": hit} for hit in hits], metrics, {"confusion": counts})


def replace_id(record: dict[str, Any], split: str) -> dict[str, Any]:
    """The record under the id `SPLIT/question_id`."""
    return {**record, "question_id": f"{split}/{record.get('question_id')}"}


# --- measures of (..., 4) counts: TP, FP, TN, FN ------------------------------------------------


def _accuracy(c: Floats) -> Floats:
    return safe_ratio(c[..., TP] + c[..., TN], c.sum(axis=-1))


def _precision(c: Floats) -> Floats:
    return safe_ratio(c[..., TP], c[..., TP] + c[..., FP])


def _recall(c: Floats) -> Floats:
    return safe_ratio(c[..., TP], c[..., TP] + c[..., FN])


def _f1(c: Floats) -> Floats:
    precision, recall = _precision(c), _recall(c)
    return safe_ratio(2 * precision * recall, precision + recall)


def _yes_ratio(c: Floats) -> Floats:
    return safe_ratio(c[..., TP] + c[..., FP], c.sum(axis=-1))


MEASURES: dict[str, Callable[[Floats], Floats]] = {
    "f1": _f1,
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "yes_ratio": _yes_ratio,
}


def _mean_over(measure: Callable[[Floats], Floats], splits: int) -> Callable[[Floats], Floats]:
    def mean(sums: Floats) -> Floats:
        by_split = sums.reshape(*sums.shape[:-1], splits, 4)  # (..., 4*s) -> (..., s, 4)
        return np.asarray(measure(by_split).mean(axis=-1))

    return mean


def _cell(answer: str, truth: str) -> int:
    if answer == "yes":
        return TP if truth == "yes" else FP
    return TN if truth == "no" else FN


def _confusion(table: Floats) -> dict[str, int]:
    return dict(zip(("TP", "FP", "TN", "FN"), table.sum(axis=0).astype(int).tolist()))


# --- files --------------------------------------------------------------------------------------


def _question(split: str, record: dict[str, Any], where: str) -> Question:
    label = str(record.get("label", record.get("answer", ""))).strip().lower()
    if label not in ("yes", "no"):
        raise EvaluationError(
            f"{where}, question {record.get('question_id')}: expected the label yes or no, "
            f"found {label!r}."
        )
    return Question(
        id=f"{split}/{record['question_id']}",
        text=record.get("text", record.get("question", "")).strip(),
        references=(label,),
        image_id=str(record.get("image", record.get("image_source"))),
        group=split,
    )


def _from_table(table: Table) -> Questions:
    items = tuple(_question(row["category"], row, table.source) for row in table.rows())
    return Questions(items, in_table(table, range(len(items))))


def _split_files(path: Path, *patterns: str) -> dict[str, Path]:
    if path.is_file():
        return {split: path for split in SPLITS if split in path.name}
    found = {}
    for split in SPLITS:
        fitting = [f for pattern in patterns for f in sorted(path.glob(pattern.format(split)))]
        if fitting:
            found[split] = fitting[0]
    return found


def _release(lines: dict[str, int]) -> str:
    if lines.get("random") == LLAVA_RANDOM:
        return f"random split of {LLAVA_RANDOM:,} questions, as LLaVA-1.5 used"
    return ", ".join(f"{split}: {n:,} questions" for split, n in lines.items())


def _of_split(
    records: list[dict[str, Any]], asked: Sequence[Question], split: str, where: str
) -> dict[str, str]:
    """Answers of one split: by id, or in the order of the label file (POPE's own format)."""
    if records and "question_id" in records[0]:
        found = answers_from([replace_id(record, split) for record in records], where)
        return found.texts
    if len(records) != len(asked):
        raise EvaluationError(
            f"{where}: {len(records)} answers without ids to {len(asked)} questions of the "
            f"{split} split; give every answer its question_id."
        )
    for number, (record, question) in enumerate(zip(records, asked), start=1):
        told = record.get("question", question.text)
        if told.strip() != question.text:
            raise EvaluationError(
                f"{where}, record {number}: answers {told!r:.60}, but question {number} of the "
                f"{split} split is {question.text!r:.60}; keep the order of the label file."
            )
    pairs = [(q.id, r.get("answer", r.get("text"))) for r, q in zip(records, asked)]
    return one_each(pairs, where)
