"""MM-Vet (Yu et al., ICML 2024): open questions graded by a language model.

Three ways to a number, each under its own name: grades of the official judge, read from its file;
grades of any judge behind an OpenAI-compatible endpoint; and, as another benchmark that does not
call itself MM-Vet, `containment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import Answers, read_json
from tinyalign.evaluation.benchmarks.base import Benchmark, Judged, Question, Questions, in_folder
from tinyalign.evaluation.benchmarks.judge import Judge
from tinyalign.evaluation.benchmarks.locate import file_of, folder_of
from tinyalign.evaluation.benchmarks.measures import mean
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, lmms_eval

OFFICIAL_JUDGE = "gpt-4-0613"
STEP_BY_STEP = (
    "First please perform reasoning, and think step by step to provide best answer to the "
    "following question: \n\n"
)


class MmVet(Benchmark):
    """The mean grade, in all and by capability, named for the judge that gave the grades."""

    name = "mm-vet"
    title = "MM-Vet"
    files = "mm-vet.json and images/"
    rule = "a language model's grade from 0 to 1 for each answer"
    protocols = by_name(
        llava("", max_new_tokens=1024),
        lmms_eval("", prefix=STEP_BY_STEP, max_new_tokens=1024),
    )

    def __init__(self, judge: Judge | None = None) -> None:
        """`judge` grades raw answers; without one, predictions must be a file of grades."""
        self.grader = judge
        self.grades: Mapping[str, tuple[str, float]] = {}

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """mm-vet.json: `{"v1_0": {imagename, question, answer, capability}}`."""
        file = file_of(source, "mm-vet.json")
        content = read_json(file)
        if not isinstance(content, dict):
            raise EvaluationError(f"{file}: expected an object of questions by id, found a list.")
        items = tuple(_question(name, entry, str(file)) for name, entry in content.items())
        names = [entry["imagename"] for entry in content.values()]
        return Questions(items, in_folder(folder_of(images, file, "images"), names))

    def settings(self) -> dict[str, Any]:
        """Who grades."""
        return {"judge": None if self.grader is None else self.grader.label}

    def ready(self) -> None:
        """There must be a judge before a model is asked anything that only it can grade."""
        if self.grader is None:
            raise EvaluationError(
                "MM-Vet needs a judge: name an OpenAI-compatible endpoint and its model "
                "(--judge-url, --judge-model); or write the predictions, grade them with the "
                "official judge, and score its file of grades; or take the benchmark "
                "'containment', an offline proxy."
            )

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """Raw texts, to be judged now; or the official judge's file of grades."""
        content = read_json(path)
        if isinstance(content, dict) and content and all(map(_is_graded, content.values())):
            self.grades = {name: _grade(name, e, str(path)) for name, e in content.items()}
            return Answers(str(path), dict.fromkeys(content, ""))
        self.grades = {}
        self.ready()
        return super().answers(path, questions)

    def submission(self, texts: Mapping[str, str]) -> dict[str, str]:
        """What the official judge reads: texts by id; LLaVA's ids lack the `v1_`."""
        return {n if n.startswith("v1_") else f"v1_{n}": text for n, text in texts.items()}

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`score (judge=X)` in [0, 1], and `CAPABILITY/score (judge=X)`."""
        if self.grades:
            found = [self.grades.get(q.id, ("", 0.0)) for q in questions]
            judges = sorted({name for name, _ in found if name})
            grades, failures = [grade for _, grade in found], 0
            label = "+".join(judges)
        else:
            self.ready()
            assert self.grader is not None
            grades, failures = self.grader.grade(questions, texts)
            label = self.grader.label
        name = f"score (judge={label})"
        metrics = {name: mean(grades, questions, seed)}
        for capability in sorted({c for q in questions for c in q.group.split("+")}):
            kept = [i for i, q in enumerate(questions) if capability in q.group.split("+")]
            metrics[f"{capability}/{name}"] = mean(
                [grades[i] for i in kept], [questions[i] for i in kept], seed
            )
        counts = {
            "judge": label,
            "official_judge": label.startswith(OFFICIAL_JUDGE),
            "ungraded": failures,
        }
        return Judged([{"score": grade} for grade in grades], metrics, counts)


def _question(name: str, entry: Any, where: str) -> Question:
    needed = ("imagename", "question", "answer", "capability")
    if not isinstance(entry, dict) or any(key not in entry for key in needed):
        raise EvaluationError(
            f"{where}, {name!r}: expected {', '.join(needed)}, found {entry!r:.80}."
        )
    return Question(
        id=name,
        text=entry["question"],
        references=(entry["answer"],),
        image_id=entry["imagename"],
        group="+".join(sorted(entry["capability"])),
    )


def _is_graded(entry: Any) -> bool:
    return isinstance(entry, dict) and "score" in entry


def _grade(name: str, entry: dict[str, Any], where: str) -> tuple[str, float]:
    """(judge, mean grade over its runs)."""
    scores = entry["score"] if isinstance(entry["score"], list) else [entry["score"]]
    if not scores or not all(isinstance(s, int | float) and 0 <= s <= 1 for s in scores):
        raise EvaluationError(
            f"{where}, {name!r}: expected grades from 0 to 1, found {scores!r:.60}."
        )
    models = entry.get("model") or ["unnamed"]
    return (models[0] if isinstance(models, list) else str(models)), sum(scores) / len(scores)
