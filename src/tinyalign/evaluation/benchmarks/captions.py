"""Captioning in COCO's format (Chen et al., 2015): BLEU, ROUGE-L and CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from tinyalign.evaluation.benchmarks.locate import file_of, folder_of
from tinyalign.evaluation.benchmarks.protocols import (
    CAPTION,
    Protocol,
    by_name,
    llava,
    lmms_eval,
    plain,
)
from tinyalign.evaluation.benchmarks.tables import Table, is_table, open_table
from tinyalign.evaluation.metrics.caption_tokens import caption_tokens
from tinyalign.evaluation.metrics.captions import (
    DocumentFrequencies,
    bleu,
    bleu_statistics,
    cider_scores,
    rouge_l_scores,
)
from tinyalign.evaluation.metrics.intervals import interval, per_item


class Captions(Benchmark):
    """CIDEr-D, BLEU-1 to 4 and ROUGE-L against every human caption of an image."""

    name = "captions"
    title = "Captions"
    files = "COCO annotations (captions_*.json), or parquet with images and captions, or a hub id"
    rule = "PTB-like tokens; CIDEr-D weights from the whole reference set; no METEOR, no SPICE"
    protocols = by_name(
        llava(CAPTION), lmms_eval(CAPTION, max_new_tokens=64), plain(max_new_tokens=40)
    )

    def questions(self, source: str | Path, images: str | Path | None = None) -> Questions:
        """One question an image; ids are the image ids of the file."""
        if is_table(source):
            return _from_table(open_table(source, "test"))
        file = file_of(source, "captions_val2014.json", "captions*.json", "*captions*.json")
        content = read_json(file)
        entries = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise EvaluationError(f"{file}: expected an object with a list 'annotations'.")
        captions: dict[str, list[str]] = {}
        for number, entry in enumerate(entries, start=1):
            if "image_id" not in entry or "caption" not in entry:
                raise EvaluationError(
                    f"{file}, annotation {number}: expected image_id and caption, found "
                    f"{', '.join(entry)}."
                )
            captions.setdefault(str(entry["image_id"]), []).append(entry["caption"])
        files = {str(i["id"]): i["file_name"] for i in content.get("images", ()) if "id" in i}
        items = tuple(Question(name, "", tuple(c), name) for name, c in captions.items())
        folder = folder_of(images, file, "images", "val2014")
        return Questions(items, in_folder(folder, [files.get(q.id, f"{q.id}.jpg") for q in items]))

    def judge(
        self, questions: Sequence[Question], texts: Sequence[str], protocol: Protocol, seed: int = 0
    ) -> Judged:
        """`cider`, `bleu1` ... `bleu4`, `rouge_l`."""
        candidates = [caption_tokens(text) for text in texts]
        references = [[caption_tokens(r) for r in q.references] for q in questions]
        images = [q.image_id for q in questions]
        cider = cider_scores(candidates, references, DocumentFrequencies(references))
        rouge = rouge_l_scores(candidates, references)
        counted = bleu_statistics(candidates, references)
        metrics = {"cider": interval(per_item(cider), images=images, seed=seed)}
        for order in range(1, 5):
            metrics[f"bleu{order}"] = interval(
                counted, statistic=partial(bleu, order=order), images=images, seed=seed
            )
        metrics["rouge_l"] = interval(per_item(rouge), images=images, seed=seed)
        scores = [{"cider": float(c), "rouge_l": float(r)} for c, r in zip(cider, rouge)]
        return Judged(scores, metrics)


def _from_table(table: Table) -> Questions:
    items = []
    for number, row in enumerate(table.rows()):
        found: Any = row.get("captions", row.get("answer", row.get("caption")))
        captions = (found,) if isinstance(found, str) else tuple(found or ())
        name = str(row.get("id", row.get("image_id", row.get("img_id", number))))
        if not captions:
            raise EvaluationError(f"{table.source}, row {number}: expected captions, found none.")
        items.append(Question(name, "", captions, name))
    return Questions(tuple(items), in_table(table, range(len(items))))
