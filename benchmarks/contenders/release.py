"""The release's way of remembering: `padded`, with retrieval inside the forward pass.

As the release does it: a query is made of the connector's own image tokens and of all
text embeddings of the row, answer and padding included (softmax self-similarity, alpha 0.4); a
flat inner-product index on the CPU is asked for one query after the other; values come from one
float32 tensor that was pickled and lies in memory whole. Nothing is excluded. The keys are random
unit vectors, which cost the same to search as any. The gather that fails for k > 1 in the release
is done right here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contenders import padded
from contenders.clock import StepClock
from contenders.pairs import Task

ALPHA = 0.4


def run(clock: StepClock, task: Task, entries: int) -> dict[str, Any]:
    """Time a stage with a bank of `entries` entries."""
    path = task.work / f"pickled-{entries}.pt"
    if not path.is_file():
        write_bank(path, entries)

    def retrieval(model: Any) -> Any:
        return Retrieval(path, model.config.text_width, task.k)

    return padded.run(clock, task, retrieval)


def write_bank(path: Path, entries: int) -> None:
    """Values (entries, 32, 96) float32, pickled."""
    import torch

    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(entries, 32, 96, generator=generator), path)


class Retrieval:
    """Adds memory_values (B, k, 32, 96) to a batch, one search a row."""

    def __init__(self, path: Path, width: int, k: int) -> None:
        import faiss
        import torch

        self.k, self.values = k, torch.load(path, weights_only=True)
        keys = torch.randn(len(self.values), width, generator=torch.Generator().manual_seed(1))
        self.index = faiss.IndexFlatIP(width)
        self.index.add(torch.nn.functional.normalize(keys, dim=1).numpy())

    def __call__(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        batch = dict(batch)
        images = model.get_image_features(batch.pop("pixel_values"))
        with torch.no_grad():
            texts = model.get_input_embeddings()(batch["input_ids"])
            found = [self.rows(i, t) for i, t in zip(images.pooler_output, texts)]
        batch["memory_values"] = self.values[torch.stack(found)].to(model.device)
        batch["mm_encoder_outputs"] = {"image": images}
        return batch

    def rows(self, image: Any, text: Any) -> Any:
        """The k nearest rows for one query; image (n, d), text (L, d)."""
        import torch
        from torch.nn.functional import normalize

        both = [
            ALPHA * normalize(image.float(), dim=1),
            (1 - ALPHA) * normalize(text.float(), dim=1),
        ]
        x = torch.cat(both)  # (n + L, d)
        key = normalize((torch.softmax(x @ x.T, dim=1).mean(dim=0) @ x)[None], dim=1)
        return torch.from_numpy(self.index.search(key.float().cpu().numpy(), self.k)[1][0])
