"""How often do the 95 % intervals hold the truth, and how often do the tests cry wolf?

Simulated answers: each image draws how easy it is (a beta distribution), each of its questions is
then right or wrong by that chance. Two models share an image's ease up to a disagreement of their
own. All is known, so intervals can be checked:

    python benchmarks/intervals.py    # eight minutes on a slow core; writes results/intervals.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyalign.evaluation.metrics.intervals import interval, mcnemar, paired_test, per_item

RUNS = 1000
EASE = (1.4, 0.6)
"""Beta distribution of an image's ease: mean 0.7, questions of an image much alike."""
CASES = [(25, 4), (50, 4), (100, 4), (400, 4), (200, 1), (50, 20)]
"""(images, questions an image)."""
OUT = Path(__file__).parent / "results" / "intervals.md"


def answers(rng: np.random.Generator, images: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong, of two equally good models: (images * each) twice.

    On a third of the images a model has an ease of its own.
    """
    shared = rng.beta(*EASE, images)
    found = []
    for _ in range(2):
        own = np.where(rng.random(images) < 1 / 3, rng.beta(*EASE, images), shared)
        found.append((rng.random((images, each)) < own[:, None]).ravel().astype(float))
    return found[0], found[1]


def case(images: int, each: int, runs: int = RUNS) -> list[float]:
    """Shares of runs: covered over images, over questions; false alarms of three tests."""
    truth = EASE[0] / sum(EASE)
    ids = np.repeat(np.arange(images), each).tolist()
    counts = np.zeros(6)
    for seed in range(runs):
        a, b = answers(np.random.default_rng([images, each, seed]), images, each)
        over_images = interval(per_item(a), images=ids, seed=seed)
        over_questions = interval(per_item(a), seed=seed)
        gap, p = paired_test(per_item(a), per_item(b), images=ids, seed=seed)
        naive = paired_test(per_item(a), per_item(b), seed=seed)[1]
        exact = mcnemar(int((a > b).sum()), int((b > a).sum()))
        counts += [
            over_images.low <= truth <= over_images.high,
            over_questions.low <= truth <= over_questions.high,
            gap.low <= 0 <= gap.high,
            p < 0.05,
            naive < 0.05,
            exact < 0.05,
        ]
    return list(counts / runs)


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Run all cases, print and write them."""
    head = ["images", "questions each", "interval over images holds the truth",
            "over questions", "paired interval holds 0", "p < 0.05: bootstrap over images",
            "over questions", "McNemar"]  # fmt: skip
    rows = []
    for images, each in CASES:
        rows.append([images, each, *(f"{100 * share:.1f} %" for share in case(images, each))])
        print(rows[-1], flush=True)
    text = table(rows, head)
    print(text)
    note = f"{RUNS} simulated data sets a row, 2000 resamples; `python benchmarks/intervals.py`."
    OUT.write_text(f"{text}\n\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
