"""Benchmarks of a few questions in their official files, with pictures, for runs of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..conftest import COLOURS, png


def _put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def pope(folder: Path) -> None:
    """Three splits of four questions about two photos."""
    for split in ("random", "popular", "adversarial"):
        records = [
            {
                "question_id": i + 1,
                "image": f"COCO_val2014_{i // 2}.png",
                "text": f"Is there a {COLOURS[i]} {split} thing in the image?",
                "label": "yes" if i % 2 else "no",
            }
            for i in range(4)
        ]
        _put(folder / f"coco_pope_{split}.json", "\n".join(map(json.dumps, records)))
    for i in range(2):
        _put(folder / "val2014" / f"COCO_val2014_{i}.png", png(i))


def mme(folder: Path) -> None:
    """Two sub-tasks of two images with two questions each."""
    for number, task in enumerate(("count", "code_reasoning")):
        lines = [
            f"{i}.png\tIs it {COLOURS[i]}{said}? Please answer yes or no.\t{truth}"
            for i in range(2)
            for said, truth in (("", "Yes"), (" or black", "No"))
        ]
        _put(folder / f"{task}.txt", "\n".join(lines) + "\n")
        for i in range(2):
            _put(folder / task / f"{i}.png", png(10 * number + i))


def scienceqa(folder: Path) -> None:
    """Four questions, the second and the fourth with an image."""
    problems = {
        str(i): {
            "question": f"Which one is {COLOURS[i]}?",
            "choices": ["this", "that"],
            "answer": i % 2,
            "hint": "Look well." if i else "",
            "image": "image.png" if i % 2 else None,
            "split": "test",
        }
        for i in range(4)
    }
    _put(folder / "problems.json", problems)
    _put(folder / "pid_splits.json", {"test": list(problems)})
    for i in (1, 3):
        _put(folder / "images" / "test" / str(i) / "image.png", png(i))


def vqav2(folder: Path) -> None:
    """Six questions of three types about three photos, ten annotators each."""
    kinds = ("yes/no", "number", "other")
    questions = [
        {"question_id": 100 + i, "image_id": i // 2, "question": f"How {COLOURS[i % 5]} is it?"}
        for i in range(6)
    ]
    annotations = [
        {
            "question_id": q["question_id"],
            "image_id": q["image_id"],
            "answer_type": kinds[i % 3],
            "answers": [{"answer": "yes" if vote < 7 else "no"} for vote in range(10)],
        }
        for i, q in enumerate(questions)
    ]
    _put(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    _put(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    for i in range(3):
        _put(folder / "val2014" / f"COCO_val2014_{i:012d}.jpg", png(i))


def mmmu(folder: Path) -> None:
    """Three questions with options and an open one, as the parquet of the hub has them."""
    rows = []
    for i in range(4):
        subject, kind = ("Art", "Math")[i % 2], "open" if i == 3 else "multiple-choice"
        rows.append(
            {
                "id": f"validation_{subject}_{i}",
                "question": f"<image 1> Which is {COLOURS[i]}?",
                "options": "[]" if i == 3 else "['one', 'two']",
                "question_type": kind,
                "answer": "['2', 'two']" if i == 3 else "AB"[i % 2],
                "image_1": {"bytes": png(i), "path": f"{i}.png"},
            }
        )
    table = pa.Table.from_pylist(rows)
    features = {
        name: {"dtype": "string", "_type": "Value"} for name in rows[0] if name != "image_1"
    } | {"image_1": {"_type": "Image"}}
    about = json.dumps({"info": {"features": features}})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata({"huggingface": about}), folder / "validation.parquet"
    )


OFFICIAL: dict[str, tuple[Callable[[Path], None], int]] = {
    "pope": (pope, 12),
    "mme": (mme, 8),
    "scienceqa": (scienceqa, 2),
    "vqav2": (vqav2, 6),
    "mmmu": (mmmu, 4),
}
"""By name: what writes the files, and how many questions a model is asked."""
