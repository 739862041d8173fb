"""DAQUAR (Malinowski & Fritz, NeurIPS 2014): indoor scenes, answers that are sets of words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.base import (
    Benchmark,
    Judged,
    Question,
    Questions,
    in_folder,
    in_table,
)
from tinyalign.evaluation.benchmarks.locate import file_of, folder_of
from tinyalign.evaluation.benchmarks.measures import mean
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, plain
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table
from tinyalign.evaluation.metrics.wordnet import WordNet
from tinyalign.evaluation.metrics.wups import exact, set_score, wups

THRESHOLDS = (0.9, 0.0)
_IN_IMAGE = re.compile(r"\s+in\s+(?:the\s+)?(image\d+)\s*\?\s*$")


def parse(text: str) -> str:
    """Lower case without spaces around or points behind: the answers' own spelling."""
    return text.strip().rstrip(".").strip().lower()


class Daquar(Benchmark):
    """Accuracy of answer sets, and WUPS at 0.9 and 0.0, which forgive near words."""

    name = "daquar"
    title = "DAQUAR"
    files = "parquet with image and qa columns, or qa.37.raw.test.txt with nyu_depth_images/"
    rule = "answers as sets of comma-separated words: product of best matches, the lower direction"
    protocols = by_name(llava(max_new_tokens=32), plain(max_new_tokens=16))

    def __init__(self, wordnet: str | Path | None = None, wups: bool = True) -> None:
        """`wordnet`: the folder with data.noun; found in the usual places by default.

        `wups=False` leaves WUPS out, and the results say so.
        """
        self.wups, self.folder = wups, wordnet
        self._wordnet: WordNet | None = None

    def settings(self) -> dict[str, Any]:
        """Whether WUPS is measured."""
        return {"wups": self.wups}

    def ready(self) -> None:
        """WUPS needs a WordNet; raises EvaluationError with how to get one."""
        if self.wups and self._wordnet is None:
            self._wordnet = WordNet.find(self.folder)

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """Rows with `qa` pairs, ids `ROW#qN`; or the official text file, ids `imageN#qM`."""
        if is_table(source):
            return _from_table(open_table(source, "test"))
        file = file_of(source, "qa.37.raw.test.txt", "qa.*.test.txt")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").split("\n")]
        lines = [line for line in lines if line]
        if len(lines) % 2:
            raise EvaluationError(
                f"{file}: expected a line of answers behind every question, found {len(lines)} "
                "lines."
            )
        items, names = [], []
        asked: dict[str, int] = {}
        for number, (text, answer) in enumerate(zip(lines[::2], lines[1::2])):
            found = _IN_IMAGE.search(text)
            if found is None:
                raise EvaluationError(
                    f"{file}, line {2 * number + 1}: expected a question that ends with `in the "
                    f"imageN ?`, found {text!r:.60}."
                )
            image = found[1]
            asked[image] = asked.get(image, -1) + 1
            plain_text = f"{text[: found.start()]}?"
            items.append(Question(f"{image}#q{asked[image]}", plain_text, (answer,), image))
            names.append(f"{image}.png")
        folder = folder_of(images, file, "nyu_depth_images")
        return Questions(tuple(items), in_folder(folder, names))

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`accuracy`, `wups_0.9`, `wups_0.0`."""
        self.ready()
        said = [parse(text) for text in texts]
        scores: list[dict[str, float]] = [
            {"accuracy": set_score(q.references[0], a, exact)} for q, a in zip(questions, said)
        ]
        if self._wordnet is not None:
            for threshold in THRESHOLDS:
                measure = wups(self._wordnet, threshold)
                for row, question, answer in zip(scores, questions, said):
                    row[f"wups_{threshold}"] = set_score(question.references[0], answer, measure)
        metrics = {name: mean([row[name] for row in scores], questions, seed) for name in scores[0]}
        wordnet = None if self._wordnet is None else self._wordnet.hash
        return Judged(scores, metrics, {"wordnet": wordnet or "none: WUPS was left out"})


def _from_table(table: Table) -> Questions:
    items, rows = [], []
    for row, record in enumerate(table.rows()):
        name = str(record.get("id", row))
        for number, pair in enumerate(record["qa"]):
            text, answer = pair["question"].strip(), pair["answer"].strip()
            items.append(Question(f"{name}#q{number}", text, (answer,), name))
            rows.append(row)
    return Questions(tuple(items), in_table(table, rows))
