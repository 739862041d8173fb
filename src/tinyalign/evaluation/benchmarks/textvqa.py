"""TextVQA (Singh et al., CVPR 2019): questions about text in images, ten annotators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.answers import (
    Answers,
    answers_from,
    read_answers,
    read_json,
    read_records,
)
from tinyalign.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkSamples,
    Judged,
    Question,
    Questions,
    in_folder,
    in_table,
)
from tinyalign.evaluation.benchmarks.locate import beside, file_of, folder_of
from tinyalign.evaluation.benchmarks.measures import mean
from tinyalign.evaluation.benchmarks.protocols import Protocol, by_name, llava, lmms_eval, plain
from tinyalign.evaluation.benchmarks.tables import is_table, open_table
from tinyalign.evaluation.metrics.vqa import m4c_answer, soft_accuracy

OCR = "\nReference OCR token: "


class TextVqa(Benchmark):
    """Soft accuracy; with and without OCR tokens in the prompt are two metrics, never one."""

    name = "textvqa"
    title = "TextVQA"
    files = "TextVQA_0.5.1_val.json, TextVQA_Rosetta_OCR_v0.2_val.json for OCR, or a hub id"
    rule = "M4C normal form on both sides, leave-one-out soft accuracy"
    protocols = by_name(llava(ocr=True), lmms_eval(ocr=False), plain(ocr=False, max_new_tokens=16))

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """From the annotations and, beside them, the Rosetta OCR file; or from parquet."""
        if is_table(source):
            table = open_table(source, "validation")
            rows = [_question(row, row.get("ocr_tokens") or ()) for row in table.rows()]
            has_ocr = any(row.ocr for row in rows)
            return Questions(tuple(rows), in_table(table, range(len(rows))), {"ocr": has_ocr})
        file = file_of(source, "TextVQA_0.5.1_val.json", "TextVQA_*_val.json")
        entries = _data(file)
        words = _ocr_words(file)
        items, names = [], []
        for entry in entries:
            found = entry.get("ocr_tokens", words.get(str(entry["image_id"]), ()))
            items.append(_question(entry, found))
            names.append(f"{entry['image_id']}.jpg")
        folder = folder_of(images, file, "train_images", "train_val_images")
        has_ocr = bool(words) or any(item.ocr for item in items)
        return Questions(tuple(items), in_folder(folder, names), {"ocr": has_ocr})

    def prompt(self, question: Question, protocol: Protocol) -> str:
        """The question, the OCR tokens where the protocol shows them, and the suffix."""
        text = question.text.capitalize() if protocol.name == "lmms-eval" else question.text
        words = OCR + ", ".join(question.ocr) if protocol.ocr else ""
        return f"{protocol.prefix}{text}{words}{protocol.suffix}"

    def samples(self, questions: Questions, protocol: Protocol) -> BenchmarkSamples:
        """As every benchmark's; refuses to ask with OCR tokens where there are none."""
        if protocol.ocr and not questions.notes.get("ocr"):
            raise EvaluationError(
                f"TextVQA under {protocol.name} shows OCR tokens, and no question has any. Put "
                "TextVQA_Rosetta_OCR_v0.2_val.json beside the annotations, or ask without them "
                "(`--ocr false`)."
            )
        return super().samples(questions, protocol)

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`accuracy_with_ocr` or `accuracy_without_ocr`, as the protocol has it."""
        name = "accuracy_with_ocr" if protocol.ocr else "accuracy_without_ocr"
        scores = [
            soft_accuracy(m4c_answer(text), [m4c_answer(vote) for vote in question.references])
            for question, text in zip(questions, texts)
        ]
        counts = {"ocr_tokens_in_prompt": bool(protocol.ocr)}
        return Judged(
            [{name: score} for score in scores], {name: mean(scores, questions, seed)}, counts
        )

    def answers(self, path: str | Path, questions: Questions) -> Answers:
        """By question id; or LLaVA's file, which names image and prompt instead."""
        content = read_json(path)
        if isinstance(content, dict) or not any(
            "prompt" in r for r in content if isinstance(r, dict)
        ):
            return read_answers(path)
        known = {q.id for q in questions}
        by_prompt = {(q.image_id, q.text.lower()): q.id for q in questions}
        records = read_records(path)
        for record in records:
            name, prompt = str(record.get("question_id")), record.get("prompt")
            if name not in known and isinstance(prompt, str):
                record["question_id"] = by_prompt.get((name, asked(prompt).lower()), name)
        return answers_from(records, str(path))

    def check_prompts(self, answers: Answers, protocol: Protocol) -> None:
        """Raise EvaluationError when the file's prompts contradict the protocol about OCR."""
        shown = {OCR.strip() in prompt for prompt in answers.prompts.values()}
        if shown and shown != {bool(protocol.ocr)}:
            found = (
                "some prompts with"
                if len(shown) > 1
                else ("prompts with" if True in shown else "prompts without")
            )
            raise EvaluationError(
                f"{answers.source}: {found} OCR tokens, but the protocol says "
                f"{'with' if protocol.ocr else 'without'} them. Say `--ocr true` or `--ocr false`."
            )


def asked(prompt: str) -> str:
    """The question in a LLaVA prompt: its first line that is no list of OCR tokens."""
    lines = prompt.split("\n")
    return next((line for line in lines if not line.startswith(OCR.strip())), "")


def _question(entry: dict[str, Any], words: Sequence[str]) -> Question:
    return Question(
        id=str(entry["question_id"]),
        text=entry["question"],
        references=tuple(entry["answers"]),
        image_id=str(entry["image_id"]),
        ocr=tuple(words),
    )


def _data(file: Path) -> list[dict[str, Any]]:
    content = read_json(file)
    data = content.get("data") if isinstance(content, dict) else content
    if not isinstance(data, list):
        raise EvaluationError(f"{file}: expected an object with a list 'data', found none.")
    return data


def _ocr_words(file: Path) -> dict[str, Sequence[str]]:
    found = beside(file, "TextVQA_Rosetta_OCR_v0.2_val.json", "TextVQA_Rosetta_OCR*val.json")
    return {} if found is None else {str(e["image_id"]): e["ocr_tokens"] for e in _data(found)}
