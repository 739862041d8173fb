"""GQA (Hudson & Manning, CVPR 2019): one word or phrase about a scene, exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import read_json
from tinyalign.evaluation.benchmarks.base import Benchmark, Judged, Question, Questions, in_folder
from tinyalign.evaluation.benchmarks.locate import file_of, folder_of
from tinyalign.evaluation.benchmarks.measures import mean, means_by_group
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, lmms_eval, plain


def parse(text: str) -> str:
    """LLaVA's conversion: points at the end dropped, lower case; nothing else is touched."""
    return text.rstrip(".").lower()


class Gqa(Benchmark):
    """Accuracy over the balanced questions, and by the official binary and open kinds."""

    name = "gqa"
    title = "GQA"
    files = "testdev_balanced_questions.json, and a folder images/ with ID.jpg"
    rule = "exact match after dropping final points and lower-casing"
    protocols = by_name(llava(), lmms_eval(max_new_tokens=16), plain(max_new_tokens=16))

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """Questions of a `*_questions.json`; those not balanced are left out, as in eval.py."""
        file = file_of(source, "testdev_balanced_questions.json", "*balanced_questions.json")
        content = read_json(file)
        if not isinstance(content, dict):
            raise EvaluationError(f"{file}: expected an object of questions by id, found a list.")
        items, names, unbalanced = [], [], 0
        for key, entry in content.items():
            if not entry.get("isBalanced", True):
                unbalanced += 1
                continue
            items.append(_question(key, entry, str(file)))
            names.append(f"{entry['imageId']}.jpg")
        folder = folder_of(images, file, "images")
        return Questions(tuple(items), in_folder(folder, names), {"left_out": unbalanced})

    def submission(self, texts: Mapping[str, str]) -> list[dict[str, str]]:
        """What eval.py and the server read: `[{"questionId", "prediction"}]`, converted."""
        return [{"questionId": name, "prediction": parse(text)} for name, text in texts.items()]

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`accuracy`, `binary/accuracy`, `open/accuracy`."""
        hits = [float(parse(t) == q.references[0]) for q, t in zip(questions, texts)]
        metrics = {"accuracy": mean(hits, questions, seed)}
        metrics |= means_by_group(hits, questions, seed)
        return Judged([{"accuracy": hit} for hit in hits], metrics)


def _question(key: str, entry: dict, file: str) -> Question:
    try:
        structural = (entry.get("types") or {}).get("structural")
        kind = "" if structural is None else ("open" if structural == "query" else "binary")
        return Question(key, entry["question"], (entry["answer"],), str(entry["imageId"]), kind)
    except KeyError as error:
        raise EvaluationError(f"{file}, question {key!r}: expected {error}, found none.") from error
