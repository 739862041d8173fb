"""How relevant are the neighbours that each kind of key finds? Flickr8k, no LLM involved.

    python benchmarks/keys.py

One caption of each of the 6,000 training photos is an entry; dev photos are the queries. Relevance
is the tf-idf cosine between a neighbour's caption and the query's five captions together, over
word tokens: a measure that none of the keys was fitted to. The last rows query with *training*
photos, own entries left out, with and without leaving the query's own fold out of the fit: the
gap between them is how much closer a training set would see its neighbours than a user does.
Writes benchmarks/results/keys.md. Reads ../shared/data/flickr8k.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tinyalign.data.readers import open_dataset
from tinyalign.evaluation.metrics.caption_tokens import caption_tokens
from tinyalign.log import setup_logging
from tinyalign.memory.keys.aligned import fold_of
from tinyalign.memory.keys.protocol import KeyFunction
from tinyalign.memory.keys.text import encode_text, train_tokenizer
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.features import FeatureCache, default_cache_folder
from tinyalign.training.perceiver.fit_keys import fit_key_function

DATA = Path("../shared/data/flickr8k")
RESULTS = Path(__file__).resolve().parent / "results" / "keys.md"
AT = (1, 5, 20)


class Relevance:
    """tf-idf vectors of texts, with document frequencies of the training photos."""

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        counts = Counter(word for texts in documents for word in self._words(texts))
        self.index = {word: i for i, word in enumerate(sorted(counts))}
        self.idf = np.array([math.log(len(documents) / counts[word]) for word in self.index])

    @staticmethod
    def _words(texts: Sequence[str]) -> set[str]:
        return {word for text in texts for word in caption_tokens(text)}

    def vectors(self, documents: Sequence[Sequence[str]]) -> torch.Tensor:
        rows = np.zeros((len(documents), len(self.index)), dtype=np.float32)
        for row, texts in zip(rows, documents):
            for word in self._words(texts):
                if word in self.index:
                    row[self.index[word]] = self.idf[self.index[word]]
        return torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)


def main() -> None:
    setup_logging()
    torch.manual_seed(0)
    encoder = VisionEncoder.load("efficientnet-lite2", dtype=torch.bfloat16)
    cache = FeatureCache(Path(default_cache_folder()), encoder, "bfloat16")
    corpus = open_dataset(DATA / "train.parquet", captions="all")
    bank = open_dataset(DATA / "train.parquet", captions="random", seed=0)
    dev = open_dataset(DATA / "dev.parquet")
    corpus_features, bank_features, dev_features = map(cache.cover, (corpus, bank, dev))
    tokenizer = train_tokenizer(sample.text for sample in corpus)
    relevance = Relevance([sample.references for sample in bank])
    entries = relevance.vectors([[sample.text] for sample in bank])
    wanted = relevance.vectors([sample.references for sample in dev])
    wanted_in_training = relevance.vectors([sample.references for sample in bank])
    texts = encode_text(tokenizer, [sample.text for sample in bank], 64)[0]
    hashes = bank_features.image_hashes()
    starts = range(0, len(bank), 500)
    images = [bank_features.batch(range(i, min(i + 500, len(bank)))) for i in starts]
    unseen = dev_features.batch(range(len(dev)))

    def measured(queries: torch.Tensor, keys: torch.Tensor, wanted: torch.Tensor, own: bool) -> str:
        scores = queries @ keys.T
        if own:
            scores.fill_diagonal_(-torch.inf)
        top = scores.topk(max(AT), dim=1).indices
        found = (wanted @ entries.T).gather(1, top)
        return " | ".join(f"{found[:, :k].mean():.4f}" for k in AT)

    lines = [f"| key | queries | {' | '.join(f'@{k}' for k in AT)} |", "|---|---|---|---|---|"]
    functions: dict[str, KeyFunction] = {}
    for kind in ("pooled", "attention", "aligned"):
        fitted = fit_key_function(
            corpus, corpus_features, corpus_features.usable(), tokenizer, kind, 1.0
        )
        functions[kind] = fitted
        keys = torch.cat(
            [
                fitted.entry_keys(block, torch.zeros(len(block), 1, dtype=torch.long), ids)
                for block, ids in zip(images, texts.split(500))
            ]
        )
        row = measured(fitted.keys(unseen), keys, wanted, own=False)
        lines.append(f"| {kind} | dev photos | {row} |")
    aligned = functions["aligned"]
    for name, folds in (
        ("training photos, own fold left out", [fold_of(h) for h in hashes]),
        ("training photos, nothing left out", None),
    ):
        blocks = []
        for start, block in zip(starts, images):
            chosen = None if folds is None else folds[start : start + len(block)]
            blocks.append(aligned.keys(block, folds=chosen))
        row = measured(torch.cat(blocks), keys, wanted_in_training, own=True)
        lines.append(f"| aligned | {name} | {row} |")
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
