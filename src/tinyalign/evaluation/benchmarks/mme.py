"""MME (Fu et al., 2023): yes-no pairs in fourteen sub-tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import Answers, one_each, read_answers
from tinyalign.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Question,
    Questions,
    in_folder,
    in_table,
)
from tinyalign.evaluation.benchmarks.measures import safe_ratio
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, lmms_eval, plain
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table
from tinyalign.evaluation.metrics.intervals import Floats, interval

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
TASKS = (*PERCEPTION, *COGNITION)
SHARED_PHOTOS = frozenset({"existence", "count", "position", "color"})
"""Sub-tasks about the same COCO photos; elsewhere equal file names are different pictures."""

_ASKS_FOR_YES_OR_NO = " Please answer yes or no."
_COLUMNS = 4  # right answers, questions, pairs wholly right, pairs


def parse(text: str) -> str | None:
    """yes or no: exactly, or else within the first four characters; None for neither."""
    start = text.lower()
    if start not in ("yes", "no"):
        start = start[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


class Mme(Benchmark):
    """Perception (of 2,000) and cognition (of 800): sums of 100 (accuracy + accuracy of pairs)."""

    name = "mme"
    title = "MME"
    files = "a folder of the 14 tab files (image, question, truth, answer), or a hub id"
    rule = "yes or no exactly, else in the first four characters, else wrong"
    self_contained = True
    protocols = by_name(llava(), lmms_eval(max_new_tokens=16), plain(max_new_tokens=16))

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """The tab files of a folder, with or without a fourth column of answers."""
        if is_table(source):
            return _from_table(open_table(source, "test"))
        items, names = [], []
        for task, rows in _tab_files(Path(source)).items():
            for number, row in enumerate(rows):
                items.append(_question(task, number, row[0], row[1], row[2], str(source)))
                names.append(f"{task}/{row[0]}")
        _check_pairs(items)
        return Questions(tuple(items), in_folder(Path(images or source), names))

    def first(self, questions: Questions, limit: int) -> Questions:
        """As for every benchmark; raises EvaluationError where it would tear a pair apart."""
        if limit % 2:
            raise EvaluationError(
                f"MME asks two questions about each image: a limit of {limit} leaves one alone; "
                f"take {limit + 1}."
            )
        return super().first(questions, limit)

    def prompt(self, question: Question, protocol: Protocol) -> str:
        """The suffix takes the place of the request to answer yes or no."""
        text = question.text
        if protocol.suffix:
            text = text.replace(_ASKS_FOR_YES_OR_NO, "")
        return f"{protocol.prefix}{text}{protocol.suffix}"

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """The tab files of a folder, matched by place and checked by question; or records."""
        if not Path(path).is_dir():
            return read_answers(path)
        asked = {q.id: q for q in questions}
        pairs = []
        for task, rows in _tab_files(Path(path)).items():
            for number, row in enumerate(rows):
                name = f"{task}/{number}"
                if len(row) < 4:
                    raise EvaluationError(
                        f"{path}/{task}.txt, line {number + 1}: expected image, question, truth "
                        f"and answer, separated by tabs; found {len(row)} columns."
                    )
                if name in asked and asked[name].text != row[1]:
                    raise EvaluationError(
                        f"{path}/{task}.txt, line {number + 1}: answers {row[1]!r:.60}, but the "
                        f"references ask {asked[name].text!r:.60} there."
                    )
                pairs.append((name, row[3]))
        return Answers(str(path), one_each(pairs, str(path)))

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`perception`, `cognition`, and `TASK/score`, `TASK/accuracy`, `TASK/accuracy_plus`."""
        said = [parse(text) for text in texts]
        hits = [float(a == q.references[0]) for a, q in zip(said, questions)]
        tasks = [task for task in TASKS if any(q.group == task for q in questions)]
        table, images = _pairs(questions, hits, tasks)
        metrics = {}
        for name, those in (("perception", PERCEPTION), ("cognition", COGNITION)):
            kept = [tasks.index(task) for task in those if task in tasks]
            if kept:
                metrics[name] = interval(table, statistic=_total(kept), images=images, seed=seed)
        for number, task in enumerate(tasks):
            part = table[:, _COLUMNS * number : _COLUMNS * (number + 1)]
            for name, measure in MEASURES.items():
                metrics[f"{task}/{name}"] = interval(
                    part, statistic=measure, images=images, seed=seed
                )
        counts = {"neither_yes_nor_no": said.count(None), "sub_tasks": len(tasks)}
        return Judged([{"accuracy": hit} for hit in hits], metrics, counts)


# --- measures of (..., 4) sums: right, questions, pairs wholly right, pairs ---------------------


def _accuracy(sums: Floats) -> Floats:
    return safe_ratio(sums[..., 0], sums[..., 1])


def _accuracy_plus(sums: Floats) -> Floats:
    return safe_ratio(sums[..., 2], sums[..., 3])


def _score(sums: Floats) -> Floats:
    return 100 * _accuracy(sums) + 100 * _accuracy_plus(sums)


MEASURES: dict[str, Callable[[Floats], Floats]] = {
    "score": _score,
    "accuracy": _accuracy,
    "accuracy_plus": _accuracy_plus,
}


def _total(tasks: Sequence[int]) -> Callable[[Floats], Floats]:
    def total(sums: Floats) -> Floats:
        by_task = sums.reshape(*sums.shape[:-1], -1, _COLUMNS)  # (..., 4*t) -> (..., t, 4)
        return np.asarray(_score(by_task[..., list(tasks), :]).sum(axis=-1))

    return total


def _pairs(
    questions: Sequence[Question], hits: Sequence[float], tasks: Sequence[str]
) -> tuple[Floats, list[str]]:
    """One row a pair of questions (consecutive in a sub-task): (pairs, 4 * tasks), image ids."""
    rows: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        rows.setdefault(question.group, []).append(index)
    table: list[Floats] = []
    images = []
    for number, task in enumerate(tasks):
        indices = rows[task]
        for first, second in zip(indices[::2], indices[1::2]):
            row = np.zeros(_COLUMNS * len(tasks))
            right = hits[first] + hits[second]
            row[_COLUMNS * number : _COLUMNS * (number + 1)] = right, 2, right == 2, 1
            table.append(row)
            images.append(questions[first].image_id)
    return np.array(table), images


# --- files --------------------------------------------------------------------------------------


def _tab_files(folder: Path) -> dict[str, list[list[str]]]:
    """Rows of TASK.txt, for the sub-tasks that are there; columns image, question, truth, ..."""
    found = {task: folder / f"{task}.txt" for task in TASKS if (folder / f"{task}.txt").is_file()}
    if not found:
        raise EvaluationError(
            f"{folder}: expected MME's tab files ({TASKS[0]}.txt, ...), found none of them."
        )
    tasks = {}
    for task, file in found.items():
        lines = file.read_text(encoding="utf-8").split("\n")
        rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
        for number, row in enumerate(rows, start=1):
            if len(row) not in (3, 4):
                raise EvaluationError(
                    f"{file}, line {number}: expected 3 or 4 columns separated by tabs, found "
                    f"{len(row)}."
                )
        tasks[task] = rows
    return tasks


def _question(task: str, number: int, image: str, text: str, truth: str, where: str) -> Question:
    truth = truth.strip().lower()
    if truth not in ("yes", "no"):
        raise EvaluationError(
            f"{where}/{task}.txt, line {number + 1}: expected the truth Yes or No, found {truth!r}."
        )
    return Question(
        id=f"{task}/{number}",
        text=text,
        references=(truth,),
        image_id=image if task in SHARED_PHOTOS else f"{task}/{image}",
        group=task,
    )


def _check_pairs(items: Sequence[Question]) -> None:
    by_task: dict[str, list[Question]] = {}
    for item in items:
        by_task.setdefault(item.group, []).append(item)
    for task, those in by_task.items():
        for first, second in zip(those[::2], [*those[1::2], None]):
            if second is None or first.image_id != second.image_id:
                raise EvaluationError(
                    f"MME {task}: expected two questions in a row about each image, found one "
                    f"about {first.image_id} (question {first.id})."
                )


def _from_table(table: Table) -> Questions:
    """Rows of an image are brought together, whatever their order in the table."""
    by_image: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for index, row in enumerate(table.rows()):
        by_image.setdefault((row["category"], str(row["question_id"])), []).append((index, row))
    numbers: Counter[str] = Counter()
    items, places = [], []
    for (task, name), those in by_image.items():
        for index, row in those:
            picture = name.rpartition("/")[2]
            question, truth = row["question"], row["answer"]
            items.append(_question(task, numbers[task], picture, question, truth, table.source))
            places.append(index)
            numbers[task] += 1
    _check_pairs(items)
    return Questions(tuple(items), in_table(table, places))
