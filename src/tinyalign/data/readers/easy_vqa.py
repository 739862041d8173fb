"""easy-VQA: questions about coloured shapes, from the package of that name (MIT licence)."""

from __future__ import annotations

import importlib
import importlib.util

from tinyalign.data.readers.captions import question_sample
from tinyalign.data.readers.lazy import LazySamples
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError

SPLITS = ("train", "test")


class EasyVqaDataset(LazySamples):
    """One sample a question of the official split; ids are `SPLIT-IMAGE#qN`.

    Questions become the instruction, answers are in lower case.
    """

    def __init__(self, split: str = "train") -> None:
        if split not in SPLITS:
            raise DataError(f"easy_vqa: expected a split of {SPLITS}, found {split!r}")
        if importlib.util.find_spec("easy_vqa") is None:
            raise DataError(
                "easy_vqa: expected the package easy-vqa, found none; "
                "install it with `pip install easy-vqa`"
            )
        package = importlib.import_module("easy_vqa")
        questions, answers, images = getattr(package, f"get_{split}_questions")()
        self.split = split
        self._paths: dict[int, str] = getattr(package, f"get_{split}_image_paths")()
        asked: dict[int, int] = {}
        self._rows: list[tuple[str, str, int, int]] = []
        for question, answer, image in zip(questions, answers, images):
            number = asked.get(image, 0)
            asked[image] = number + 1
            self._rows.append((question, answer, image, number))

    def __len__(self) -> int:
        return len(self._rows)

    def sample_at(self, index: int) -> Sample:
        """Question `index` of the split."""
        question, answer, image, number = self._rows[index]
        ref = ImageRef(path=self._paths[image])
        row_id = f"{self.split}-{image}"
        return question_sample(row_id, ref, number, question, answer.lower(), source="easy_vqa")
