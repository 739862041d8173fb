"""Teaching without training: new names for new photos, by adding memories to a bank.

    python benchmarks/teaching.py [--out runs/teaching] [--steps 300]

A small model learns, on photos of Flickr8k's training split, that "What is this called?" is
answered by what a memory of the same thing says: every photo has a made-up name of two words, the
bank holds one view of it (a crop), the question shows another (another crop, mirrored half the
time, lighter or darker). Then 300 photos of the dev split, which neither model nor Perceiver nor
bank have seen, are asked about three times: before anything is added, after `add_samples` of one
view of 150 of them, and after `remove_entries` of these. A third of the new names are made of
words that other names have, a third of words that only captions have, a third of words that no
text of training has. Photos are read from ../shared/data/flickr8k.
"""

# ruff: noqa: SIM905
from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyalign.evaluation.results import Prediction

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DATA = "../shared/data/flickr8k"
QUESTION = "What is this called?"
JUDGED = slice(300, 600)  # of the dev photos; the first 300 were looked at while choosing settings
STRANGE = (
    "velvet bishop cedar comet copper falcon fiddle gentle hollow humble island ivory jolly kettle "
    "lantern lunar magnet marble meadow mellow modest narrow needle northern nuclear orchard "
    "palace parcel pepper pilgrim polished quiet rapid rocket saddle scarlet secret sailor temple "
    "thunder timber travel treaty tunnel turnip velocity walnut whisper widow zebra"
).split()


def words_of_names() -> dict[str, list[str]]:
    """Words to make names of: "known" ones, in the names of training photos; "new" ones, that only
    captions have, and the Perceiver read; and "strange" ones, that no text of training has."""
    from tinyalign.data.readers import open_dataset

    counts: Counter[str] = Counter()
    for sample in open_dataset(f"{DATA}/train.parquet", captions="first"):
        counts.update(re.findall(r"[a-z]+", " ".join(sample.references).lower()))
    found = sorted(w for w, n in counts.items() if 4 <= len(w) <= 9 and 5 <= n <= 300)
    random.Random(0).shuffle(found)
    new = len(found) // 10
    strange = [word for word in STRANGE if word not in counts]
    return {"known": found[new:], "new": found[:new], "strange": strange}


def view(image: Any, rng: random.Random) -> Any:
    """A crop of 65 to 95 % of each side, mirrored half the time, up to a quarter lighter or
    darker."""
    from PIL import Image, ImageEnhance, ImageOps

    width, height = image.size
    share = rng.uniform(0.65, 0.95)
    w, h = int(width * share), int(height * share)
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    crop = image.crop((left, top, left + w, top + h))
    crop = crop.resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        crop = ImageOps.mirror(crop)
    return ImageEnhance.Brightness(crop).enhance(rng.uniform(0.75, 1.25))


def name_of(rng: random.Random, words: list[str], taken: set[str]) -> str:
    """A name of two words that nothing has yet."""
    while (name := " ".join(rng.sample(words, 2))) in taken:
        pass
    taken.add(name)
    return name


def write_views(split: str, photos: slice, out: Path, seed: int, kinds: list[str]) -> None:
    """SPLIT-remembered.jsonl and SPLIT-asked.jsonl: two views of each photo, under one name.

    SPLIT-read.jsonl has the names and captions of the remembered views: what the Perceiver reads.
    kinds: of words, in turn.
    """
    from tinyalign.data.images import load_image
    from tinyalign.data.readers import open_dataset

    rng, words, taken = random.Random(seed), words_of_names(), set()
    samples = open_dataset(f"{DATA}/{split}.parquet", captions="first")[photos]
    lines: dict[str, list[str]] = {"remembered": [], "asked": [], "read": []}
    for index, sample in enumerate(samples):
        image = load_image(sample.images[0])
        name = name_of(rng, words[kinds[index % len(kinds)]], taken)
        for role in ("remembered", "asked"):
            file = f"{split}-{role}/{index}.jpg"
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            view(image, rng).save(out / file, quality=92)
            lines[role].append(record(f"{split}-{role}-{index}", file, QUESTION, name))
        file = f"{split}-remembered/{index}.jpg"
        lines["read"].append(lines["remembered"][-1])
        for number, caption in enumerate(sample.references):
            lines["read"].append(record(f"{split}-read-{index}-{number}", file, "", caption))
    for role, found in lines.items():
        (out / f"{split}-{role}.jsonl").write_text("".join(found))


def record(name: str, file: str, question: str, answer: str) -> str:
    """A line of a LLaVA file."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return json.dumps({"id": name, "image": file, "conversations": turns}) + "\n"


def trained(out: Path, steps: int, photos: int, epochs: float) -> Any:
    """Perceiver, bank and connectors, on views of training photos; the LLM stays frozen."""
    from tinyalign.cli.perceiver import PerceiverTrainArgs, perceiver_train
    from tinyalign.training.recipe.files import load_recipe
    from tinyalign.training.run import train

    data = out / "data"
    if not (data / "dev-asked.jsonl").is_file():
        write_views("train", slice(photos), data, 0, ["known"])
        write_views("dev", JUDGED, data, 2, ["known", "new", "strange"])
    perceiver = out / "compressor"
    if not (perceiver / "report.json").is_file():
        perceiver_train(
            PerceiverTrainArgs(
                path=str(data / "train-read.jsonl"), out=str(perceiver),
                vision="efficientnet-lite2", alpha=1.0, cache_folder=str(out / "cache"),
                epochs=epochs, random_texts=0.5, silence=True,
            )
        )  # fmt: skip
    settings = {
        "output": str(out / "run"),
        "model.template": "chatml",
        "data.pretrain": {"path": str(data / "train-asked.jsonl")},
        "data.pretrain_eval": None,
        "memory.k": 3,
        "memory.fusion.args": {"prompt_tokens": 32},
        "memory.bank.data": {"path": str(data / "train-remembered.jsonl")},
        "memory.bank.captions": None,
        "memory.key.kind": "pooled",
        "memory.key.alpha": 1.0,
        "memory.drop_probability": 0.0,
        "memory.perceiver.path": str(perceiver),
        "pretrain.max_steps": steps,
    }
    return train(load_recipe("smollm2-135m-efficientnet-flickr8k", settings))


def asked(done: Any, bank: Path, samples: Any, out: Path, k: int | None = None) -> list[Prediction]:
    """The model's answers with a bank (or with none for k = 0), as a new process would give."""
    from tinyalign.evaluation.running.runner import evaluate
    from tinyalign.serving.load import load

    loaded = load(done.model, None if k == 0 else bank)
    result = evaluate(
        loaded.model, loaded.processor, samples, task="vqa", retriever=loaded.retriever,
        batch_size=50, max_new_tokens=8, out=out,
    )  # fmt: skip
    return list(result.predictions)


def is_right(given: Prediction) -> bool:
    """Whether the answer is the name, letter case aside."""
    return given.prediction.strip().lower() == given.references[-1]


def share(hits: list[float]) -> list[float]:
    """Mean with its 95 % interval, in percent."""
    from tinyalign.evaluation.metrics.intervals import interval, per_item

    found = interval(per_item(hits))
    return [round(100 * number, 1) for number in (found.value, found.low, found.high)]


def picture(data: Path, answers: dict[str, list[Prediction]], path: Path) -> None:
    """The first two photos of each kind of name: what was said when, and what was added."""
    from PIL import Image

    from tinyalign.analysis.contact_sheet import Card, Remembered, Said, contact_sheet

    def opened(role: str, index: int) -> Image.Image:
        return Image.open(data / f"dev-{role}" / f"{index}.jpg").convert("RGB")

    cards = []
    for index in range(6):
        given = {when: found[index] for when, found in answers.items() if when != "no memory"}
        name, after = given["after add"].references[-1], given["after add"]
        added = Remembered(name, after.memory_scores[0], opened("remembered", index))
        said = tuple(Said(when, one.prediction, is_right(one)) for when, one in given.items())
        cards.append(Card(opened("asked", index), QUESTION, name, said, (added,)))
    sheet = contact_sheet(
        cards,
        "Taught by adding a memory, forgotten by removing it",
        "photos that training has not seen; names of known, new and strange words, in turn",
    )
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/teaching"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--perceiver-epochs", type=float, default=5.0)
    parser.add_argument("--photos", type=int, default=6000, help="training photos")
    args = parser.parse_args()

    import torch

    from tinyalign.data.readers import open_dataset
    from tinyalign.log import setup_logging
    from tinyalign.memory.building.changes import add_samples, remove_entries
    from tinyalign.model.backbones.vision import VisionEncoder

    setup_logging()
    done = trained(args.out, args.steps, args.photos, args.perceiver_epochs)
    bank = args.out / "bank"
    shutil.rmtree(bank, ignore_errors=True)
    shutil.copytree(done.bank, bank)  # the one in the cache stays as it is
    samples = open_dataset(args.out / "data" / "dev-asked.jsonl")
    new = open_dataset(args.out / "data" / "dev-remembered.jsonl", limit=150)
    vision = VisionEncoder.load("efficientnet-lite2", dtype=torch.bfloat16)
    report: dict[str, Any] = {"seconds": {}}
    answers = {"no memory": asked(done, bank, samples, args.out / "none", k=0)}
    answers["before"] = asked(done, bank, samples, args.out / "before")
    started = time.perf_counter()
    add_samples(bank, new, vision)
    report["seconds"]["add 150"] = round(time.perf_counter() - started, 2)
    answers["after add"] = asked(done, bank, samples, args.out / "added")
    started = time.perf_counter()
    remove_entries(bank, ids=[sample.id for sample in new])
    report["seconds"]["remove 150"] = round(time.perf_counter() - started, 2)
    answers["after remove"] = asked(done, bank, samples, args.out / "removed")
    for when, given in answers.items():
        hits = [float(is_right(one)) for one in given]
        report[when] = {
            "added, known words": share(hits[0:150:3]),
            "added, new words": share(hits[1:150:3]),
            "added, strange words": share(hits[2:150:3]),
            "never added": share(hits[150:]),
            "same as before": sum(
                one.prediction == other.prediction for one, other in zip(given, answers["before"])
            ),
        }
    picture(args.out / "data", answers, RESULTS / "teaching.png")
    print(json.dumps(report, indent=2))
    (RESULTS / "teaching.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
