"""Teaching without training: new names for new photos, by adding memories to a bank.

    python benchmarks/teaching.py [--out runs/teaching] [--steps 150]

A small model learns, on photos of Flickr8k's training split, that "What is this called?" is
answered by what a memory of the same thing says: every photo has a made-up name of two words, the
bank holds one view of it (a crop), the question shows another (another crop, mirrored half the
time, lighter or darker). Then 200 photos of the dev split, which neither model nor Perceiver nor
bank have seen, are asked about three times: before anything is added, after `add_samples` of one
view of 100 of them, and after `remove_entries` of these. Half of the new names are made of words
that no name had before. Photos are read from ../shared/data/flickr8k.
"""

# ruff: noqa: SIM905
from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DATA = "../shared/data/flickr8k"
QUESTION = "What is this called?"
KNOWN = (
    "amber arctic autumn bitter bright broken bronze calm clever cloudy copper coral crimson "
    "crystal dusty early eastern electric emerald empty frozen gentle golden hidden hollow humble "
    "ivory jolly lazy little lonely lucky marble mellow misty modest northern olive paper pearl"
).split()
THINGS = (
    "anchor arrow badger basket beacon bishop bridge cabin candle canyon castle cedar comet cradle "
    "dragon eagle engine falcon fiddle forest garden guitar hammer harbor island kettle ladder "
    "lantern magnet meadow mirror needle orchard palace pepper pirate planet rocket saddle temple"
).split()
NEW = "velvet wooden silver thunder scarlet rusty quiet purple polished narrow".split()
NEW_THINGS = "walnut turtle tunnel tractor tower teapot spider shadow sailor river".split()


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


def name_of(rng: random.Random, taken: set[str], new: bool) -> str:
    """A name that nothing has yet; of words no earlier name had where `new`."""
    first, second = (NEW, NEW_THINGS) if new else (KNOWN, THINGS)
    while (name := f"{rng.choice(first)} {rng.choice(second)}") in taken:
        pass
    taken.add(name)
    return name


def write_views(split: str, count: int, out: Path, seed: int, taken: set[str]) -> None:
    """SPLIT-remembered.jsonl and SPLIT-asked.jsonl: two views of each photo, under one name."""
    from tinyalign.data.images import load_image
    from tinyalign.data.readers import open_dataset

    rng = random.Random(seed)
    photos = open_dataset(f"{DATA}/{split}.parquet", captions="first", limit=count)
    lines: dict[str, list[str]] = {"remembered": [], "asked": []}
    for index, sample in enumerate(photos):
        image = load_image(sample.images[0])
        name = name_of(rng, taken, new=split == "dev" and index % 2 == 1)
        for role, found in lines.items():
            file = f"{split}-{role}/{index}.jpg"
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            view(image, rng).save(out / file, quality=92)
            turns = [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": name},
            ]
            record = {"id": f"{split}-{role}-{index}", "image": file, "conversations": turns}
            found.append(json.dumps(record) + "\n")
    for role, found in lines.items():
        (out / f"{split}-{role}.jsonl").write_text("".join(found))


def trained(out: Path, steps: int, photos: int, perceiver_steps: int) -> Any:
    """Perceiver, bank and connectors, on views of training photos; the LLM stays frozen."""
    from tinyalign.training.recipe_files import load_recipe
    from tinyalign.training.run import train

    data = out / "data"
    if not (data / "dev-asked.jsonl").is_file():
        taken: set[str] = set()
        write_views("train", photos, data, 0, taken)
        write_views("dev", 200, data, 1, taken)
    settings = {
        "output": str(out / "run"),
        "model.template": "chatml",
        "data.pretrain": {"path": str(data / "train-asked.jsonl")},
        "data.pretrain_eval": None,
        "memory.data": {"path": str(data / "train-remembered.jsonl")},
        "memory.captions": None,
        "memory.key": "pooled",
        "memory.alpha": 1.0,
        "memory.drop_probability": 0.0,
        "memory.compress.min_steps": perceiver_steps,
        "pretrain.max_steps": steps,
    }
    return train(load_recipe("smollm2-135m-efficientnet-flickr8k", settings))


def asked(done: Any, bank: Path, samples: Any, out: Path, k: int | None = None) -> list[str]:
    """The model's answers with a bank (or with none for k = 0), as a new process would give."""
    from tinyalign.evaluation.runner import evaluate
    from tinyalign.serving.load import load

    loaded = load(done.model, None if k == 0 else bank)
    result = evaluate(
        loaded.model, loaded.processor, samples, task="vqa", retriever=loaded.retriever,
        batch_size=50, max_new_tokens=8, out=out,
    )  # fmt: skip
    return [one.prediction for one in result.predictions]


def right(answers: list[str], samples: Any) -> list[float]:
    """1 where the answer is the name, letter case aside."""
    names = [sample.references[-1] for sample in samples]
    return [float(a.strip().lower() == n) for a, n in zip(answers, names)]


def share(hits: list[float]) -> list[float]:
    """Mean with its 95 % interval, in percent."""
    from tinyalign.evaluation.statistics import interval, per_item

    found = interval(per_item(hits))
    return [round(100 * number, 1) for number in (found.value, found.low, found.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/teaching"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--perceiver-steps", type=int, default=600)
    parser.add_argument("--photos", type=int, default=1400, help="training photos")
    args = parser.parse_args()

    import torch

    from tinyalign.data.readers import open_dataset
    from tinyalign.log import setup_logging
    from tinyalign.memory.changes import add_samples, remove_entries
    from tinyalign.model.vision import VisionEncoder

    setup_logging()
    done = trained(args.out, args.steps, args.photos, args.perceiver_steps)
    bank = args.out / "bank"
    shutil.rmtree(bank, ignore_errors=True)
    shutil.copytree(done.bank, bank)  # the one in the cache stays as it is
    samples = open_dataset(args.out / "data" / "dev-asked.jsonl")
    new = open_dataset(args.out / "data" / "dev-remembered.jsonl", limit=100)
    vision = VisionEncoder.load("efficientnet-lite2", dtype=torch.bfloat16)
    report: dict[str, Any] = {"seconds": {}}
    answers = {"no memory": asked(done, bank, samples, args.out / "none", k=0)}
    answers["before"] = asked(done, bank, samples, args.out / "before")
    started = time.perf_counter()
    add_samples(bank, new, vision)
    report["seconds"]["add 100"] = round(time.perf_counter() - started, 2)
    answers["after add"] = asked(done, bank, samples, args.out / "added")
    started = time.perf_counter()
    remove_entries(bank, ids=[sample.id for sample in new])
    report["seconds"]["remove 100"] = round(time.perf_counter() - started, 2)
    answers["after remove"] = asked(done, bank, samples, args.out / "removed")
    for when, given in answers.items():
        hits = right(given, samples)
        report[when] = {
            "added, known words": share(hits[0:100:2]),
            "added, new words": share(hits[1:100:2]),
            "never added": share(hits[100:]),
            "same as before": sum(a == b for a, b in zip(given, answers["before"])),
        }
    print(json.dumps(report, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "teaching.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
