"""The memory bank against what else one could store memories in: speed, memory, disk.

    python benchmarks/bank.py [--sizes 10000 100000 1000000] [--only store search build]

Synthetic banks of clustered unit keys (d = 512) and random values (32 x 96), at the defaults
(fp16 keys, int8 values). Everything is measured in one run on one machine; medians of several
repetitions. For each size: writing, opening and memory (in a fresh process), disk, search (exact
and IVF) with recall@5, gathering the values of 64 x 5 memories, adding and removing. Beside it,
on the same keys: faiss Flat and IVF1024,SQ8, and LanceDB if it is installed (`pip install
lancedb`). `build` measures the whole way from photos to entries on Flickr8k, beside the release's
loop: one pair at a time through a Perceiver over 384 x 384 pixels. Writes results/bank.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WIDTH, LATENTS, D_LATENTS = 512, 32, 96
BATCH, K = 64, 5
CLUSTERS = 2000
PHOTOS = "../shared/data/flickr8k/dev.parquet"

OPEN = """
import json, resource, sys, time
import torch
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.search.index import KeyIndex

def resident():
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith("VmRSS")) / 1e3

MemoryBank.open(sys.argv[1])  # the code is loaded, the files are in the page cache
before = resident()
times = []
for _ in range(20):
    started = time.perf_counter()
    bank = MemoryBank.open(sys.argv[1])
    times.append(time.perf_counter() - started)
opened = resident()
queries = torch.nn.functional.normalize(torch.randn(64, bank.keys.shape[1]), dim=1)
KeyIndex(bank, engine="exact").topk(queries, 5)
print(json.dumps({"open_ms": 1e3 * sorted(times)[10], "opened_mb": opened - before,
                  "searched_mb": resident() - before}))
"""


def clustered(count: int, seed: int) -> Any:
    """Unit vectors (count, 512) around 2,000 centres, fp32."""
    import torch
    from torch.nn.functional import normalize

    centres = torch.randn(CLUSTERS, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(CLUSTERS, (count,), generator=generator)
    noise = torch.randn(count, WIDTH, generator=generator)
    return normalize(centres[which] + 0.7 * noise, dim=1)


def median_ms(work: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a call, in milliseconds, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def entry(number: int) -> Any:
    """An entry as long as a caption's."""
    from tinyalign.memory.bank.entries import Entry

    text = f"A dog number {number} runs over a field with a ball in its mouth ."
    return Entry(f"photo-{number}", text, f"photos/{number}.jpg", f"{number:016x}", "made", "")


def write_bank(folder: Path, count: int) -> float:
    """A bank of made-up entries; returns the seconds that writing took, drawing aside."""
    import torch

    from tinyalign.memory.bank.manifest import Manifest
    from tinyalign.memory.building.writer import BankWriter

    manifest = Manifest("made", "v", "c", "k", "pooled", 1.0, WIDTH, LATENTS, D_LATENTS, "d")
    writer = BankWriter(folder, "bench", manifest.key_coding, manifest.value_coding)
    values = torch.randn(1024, LATENTS, D_LATENTS, generator=torch.Generator().manual_seed(1))
    keys = clustered(count, 2)
    started = time.perf_counter()
    for low in range(0, count, 1024):
        part = keys[low : low + 1024]
        rows = range(low, low + len(part))
        writer.append(part, values[: len(part)], [entry(row) for row in rows])
    writer.commit(manifest)
    return time.perf_counter() - started


def size_mb(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def recall(found: Any, true: Any) -> float:
    """Share of the true five nearest that were found."""
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist())]
    return sum(hits) / true.numel()


def our_store(folder: Path, count: int) -> dict[str, Any]:
    """Writing, opening, searching, gathering, adding and removing."""
    import torch

    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.building.editor import BankEditor, compact
    from tinyalign.memory.search.index import KeyIndex

    seconds = write_bank(folder, count)
    found: dict[str, Any] = {"write_per_s": count / seconds, "disk_mb": size_mb(folder)}
    opened = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True
    )
    found |= json.loads(opened.stdout)
    bank, queries = MemoryBank.open(folder), clustered(BATCH, 3)
    exact = KeyIndex(bank, engine="exact")
    true = exact.topk(queries, K)[0]
    found["exact_ms"] = median_ms(lambda: exact.topk(queries, K))
    started = time.perf_counter()
    ivf = KeyIndex(bank, engine="ivf", recall=0.95)
    rows = ivf.topk(queries, K)[0]
    found["ivf_build_s"] = time.perf_counter() - started
    found["ivf_ms"] = median_ms(lambda: ivf.topk(queries, K))
    found["ivf_recall"] = recall(rows, true)
    picks = torch.randint(count, (BATCH, K), generator=torch.Generator().manual_seed(4))
    found["gather_ms"] = median_ms(lambda: bank.gather(picks), 31)

    keys, values = clustered(1000, 5), torch.randn(1000, LATENTS, D_LATENTS)
    started = time.perf_counter()
    with BankEditor(folder) as editor:
        editor.append(keys, values, [entry(count + i) for i in range(1000)])
        editor.commit("a thousand")
    found["add_1000_s"] = time.perf_counter() - started
    times = []
    for i in range(30):
        started = time.perf_counter()
        with BankEditor(folder) as editor:
            editor.append(keys[i : i + 1], values[i : i + 1], [entry(count + 1000 + i)])
            editor.commit("one")
        times.append(time.perf_counter() - started)
    found["add_one_ms"] = 1e3 * statistics.median(times)
    started = time.perf_counter()
    with BankEditor(folder) as editor:
        editor.remove(range(0, count, max(1, count // 1000)))
        editor.commit("a thousand")
    found["remove_1000_s"] = time.perf_counter() - started
    started = time.perf_counter()
    compact(folder)
    found["compact_s"] = time.perf_counter() - started
    return found


def faiss_store(folder: Path, count: int) -> dict[str, Any]:
    """The same keys in plain faiss indexes."""
    import faiss
    import torch

    keys, queries = clustered(count, 2).numpy(), clustered(BATCH, 3).numpy()
    flat = faiss.IndexFlatIP(WIDTH)
    started = time.perf_counter()
    flat.add(keys)
    found: dict[str, Any] = {"flat_write_per_s": count / (time.perf_counter() - started)}
    faiss.write_index(flat, str(folder / "flat.faiss"))
    found["flat_open_ms"] = median_ms(lambda: faiss.read_index(str(folder / "flat.faiss")), 5)
    found["flat_ms"] = median_ms(lambda: flat.search(queries, K))
    true = torch.from_numpy(flat.search(queries, K)[1])
    nlist = min(1024, count // 40)
    ivf = faiss.index_factory(WIDTH, f"IVF{nlist},SQ8", faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    ivf.train(keys[: 64 * nlist])
    ivf.add(keys)
    found["ivf_build_s"] = time.perf_counter() - started
    ivf.nprobe = 16
    found["ivf_ms"] = median_ms(lambda: ivf.search(queries, K))
    found["ivf_recall"] = recall(torch.from_numpy(ivf.search(queries, K)[1]), true)
    faiss.write_index(ivf, str(folder / "ivf.faiss"))
    found["flat_disk_mb"] = (folder / "flat.faiss").stat().st_size / 1e6
    found["ivf_disk_mb"] = (folder / "ivf.faiss").stat().st_size / 1e6
    return found


def lance_store(folder: Path, count: int) -> dict[str, Any] | None:
    """The same keys, values and texts in LanceDB, an embedded vector database."""
    try:
        import lancedb
    except ImportError:
        return None
    import numpy as np
    import pyarrow as pa

    keys = clustered(count, 2).numpy()
    block, width = 8192, 3136  # bytes of a value as ours are stored
    drawn = np.random.default_rng(1).integers(0, 256, (block, width), dtype=np.uint8).tobytes()

    def table(low: int, rows: Any) -> Any:
        flat = pa.array(np.ascontiguousarray(rows).ravel(), pa.float32())
        names = range(low, low + len(rows))
        return pa.table(
            {
                "vector": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
                "row": pa.array(names, pa.int64()),
                "id": [f"photo-{i}" for i in names],
                "text": [entry(i).text for i in names],
                "value": pa.Array.from_buffers(
                    pa.binary(width), len(rows), [None, pa.py_buffer(drawn[: len(rows) * width])]
                ),
            }
        )

    started = time.perf_counter()
    db = lancedb.connect(folder / "lance")
    made = db.create_table("bank", table(0, keys[:1024]))
    for low in range(1024, count, block):
        made.add(table(low, keys[low : low + block]))
    found: dict[str, Any] = {"write_per_s": count / (time.perf_counter() - started)}
    found["disk_mb"] = size_mb(folder / "lance")
    found["open_ms"] = median_ms(lambda: lancedb.connect(folder / "lance").open_table("bank"), 5)
    queries = clustered(BATCH, 3).numpy()

    def search() -> None:
        for query in queries:
            made.search(query).distance_type("dot").limit(K).select(["row"]).to_arrow()

    found["search_ms"] = median_ms(search, 3)
    picks = np.random.default_rng(4).integers(0, count, BATCH * K).tolist()

    def gather() -> None:
        made.take_offsets(picks).select(["value"]).to_arrow()

    try:
        found["gather_ms"] = median_ms(gather, 5)
    except Exception as error:  # an API of another version
        found["gather_ms"] = None
        print(f"lancedb: {error}")
    started = time.perf_counter()
    for i in range(10):
        made.add(table(count + i, keys[i : i + 1]))
    found["add_one_ms"] = 1e3 * (time.perf_counter() - started) / 10
    return found


def build_rates(folder: Path, pairs: int, slow_pairs: int) -> dict[str, Any]:
    """From photos to entries, with our builder and with the release's loop."""
    import torch

    from tinyalign.data.images import load_image
    from tinyalign.data.readers import open_dataset
    from tinyalign.memory.building.builder import build_bank
    from tinyalign.memory.keys.image_text import ImageTextKeyFunction
    from tinyalign.memory.keys.text import train_tokenizer
    from tinyalign.memory.perceiver import Perceiver
    from tinyalign.model.backbones.vision import VisionEncoder
    from tinyalign.model.perceiver import PerceiverNetwork, PerceiverNetworkConfig

    samples = open_dataset(PHOTOS, captions="first", limit=pairs)
    vision = VisionEncoder.load("efficientnet-lite2", dtype=torch.bfloat16)
    tokenizer = train_tokenizer((sample.text for sample in samples), vocab_size=2048)
    few = vision.encode([load_image(samples[i].images[0]) for i in range(32)])
    torch.manual_seed(0)
    network = PerceiverNetwork(
        PerceiverNetworkConfig(feature_dim=few.shape[-1], vocab_size=2048)
    ).eval()
    key = ImageTextKeyFunction.fit(
        [few], text_table=network.token_embedding.weight.detach(), alpha=1.0
    )
    perceiver = Perceiver(network, tokenizer, key)
    found: dict[str, Any] = {"pairs": pairs}
    for workers in (0, 1):
        out = folder / f"built-{workers}"
        started = time.perf_counter()
        build_bank(samples, vision, perceiver, out, workers=workers)
        found[f"pairs_per_s_workers_{workers}"] = pairs / (time.perf_counter() - started)
    pixels = PerceiverNetwork(
        PerceiverNetworkConfig(input_mode="pixels", image_size=384, vocab_size=2048)
    ).eval()
    slow = Perceiver(pixels, tokenizer, key)
    started = time.perf_counter()
    for i in range(slow_pairs):  # one pair at a time: features for the key, pixels for the value
        image, text = load_image(samples[i].images[0]), samples[i].text
        slow.values(None, [text], [image])
        slow.entry_keys(vision.encode([image]), [""], [text])
    found["one_at_a_time_pairs_per_s"] = slow_pairs / (time.perf_counter() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", default=["store", "others", "build"])
    parser.add_argument("--folder", type=Path, default=Path("runs/bank-benchmark"))
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--slow-pairs", type=int, default=10)
    args = parser.parse_args()

    import torch

    from flickr8k import machine
    from tinyalign.log import setup_logging

    setup_logging()
    path = RESULTS / "bank.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    report["machine"] = {**machine(), "threads": torch.get_num_threads()}
    report["load_average"] = os.getloadavg()[0]
    for count in args.sizes:
        row = report.setdefault("sizes", {}).setdefault(str(count), {})
        for name, work in (("ours", our_store), ("faiss", faiss_store), ("lancedb", lance_store)):
            if ("store" if name == "ours" else "others") not in args.only:
                continue
            folder = args.folder / f"{name}-{count}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            row[name] = work(folder, count)
            print(count, name, json.dumps(row[name]), flush=True)
            shutil.rmtree(folder)
            path.write_text(json.dumps(report, indent=2) + "\n")
    if "build" in args.only:
        shutil.rmtree(args.folder, ignore_errors=True)
        args.folder.mkdir(parents=True)
        report["build"] = build_rates(args.folder, args.pairs, args.slow_pairs)
        shutil.rmtree(args.folder)
        path.write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / "bank.md").write_text(table(report))
    print(table(report))


ROWS = (
    ("write, entries/s", "ours", "write_per_s", "{:,.0f}"),
    ("– LanceDB", "lancedb", "write_per_s", "{:,.0f}"),
    ("open, ms", "ours", "open_ms", "{:.1f}"),
    ("– faiss Flat (read whole)", "faiss", "flat_open_ms", "{:.1f}"),
    ("– LanceDB", "lancedb", "open_ms", "{:.1f}"),
    ("added by opening, MB resident", "ours", "opened_mb", "{:.1f}"),
    ("added by opening and the first exact search, MB resident", "ours", "searched_mb", "{:.0f}"),
    ("disk, MB", "ours", "disk_mb", "{:,.0f}"),
    ("– faiss Flat, keys alone", "faiss", "flat_disk_mb", "{:,.0f}"),
    ("– LanceDB", "lancedb", "disk_mb", "{:,.0f}"),
    ("exact search, ms for 64 queries", "ours", "exact_ms", "{:.1f}"),
    ("exact search, queries/s", "ours", "exact_qps", "{:,.0f}"),
    ("– faiss Flat", "faiss", "flat_ms", "{:.1f}"),
    ("– faiss Flat, queries/s", "faiss", "flat_qps", "{:,.0f}"),
    ("– LanceDB, no index", "lancedb", "search_ms", "{:.1f}"),
    ("– LanceDB, no index, queries/s", "lancedb", "search_qps", "{:,.0f}"),
    ("IVF search, ms for 64 queries", "ours", "ivf_ms", "{:.1f}"),
    ("IVF search, queries/s", "ours", "ivf_qps", "{:,.0f}"),
    ("its recall@5 (0.95 asked for)", "ours", "ivf_recall", "{:.3f}"),
    ("– faiss IVF1024,SQ8, 16 lists", "faiss", "ivf_ms", "{:.1f}"),
    ("– faiss IVF1024,SQ8, 16 lists, queries/s", "faiss", "ivf_qps", "{:,.0f}"),
    ("– its recall@5", "faiss", "ivf_recall", "{:.3f}"),
    ("IVF index made in, s", "ours", "ivf_build_s", "{:.1f}"),
    ("gather 64 x 5 values, ms", "ours", "gather_ms", "{:.2f}"),
    ("– LanceDB", "lancedb", "gather_ms", "{:.2f}"),
    ("add 1,000, s", "ours", "add_1000_s", "{:.2f}"),
    ("add one, ms", "ours", "add_one_ms", "{:.1f}"),
    ("– LanceDB", "lancedb", "add_one_ms", "{:.1f}"),
    ("remove 1,000, s", "ours", "remove_1000_s", "{:.2f}"),
    ("compact, s", "ours", "compact_s", "{:.1f}"),
)


def measured(found: dict[str, Any], name: str) -> float | None:
    """A measure by its name; "X_qps" is queries a second, from "X_ms" of a batch."""
    if not name.endswith("_qps"):
        return found.get(name)
    batch_ms = found.get(name.removesuffix("qps") + "ms")
    return None if batch_ms is None else 1e3 * BATCH / batch_ms


def table(report: dict[str, Any]) -> str:
    """A row a measure, a column a size."""
    sizes = list(report.get("sizes", {}))
    lines = [["", *(f"{int(size):,} entries" for size in sizes)], ["---"] * (len(sizes) + 1)]
    for label, store, name, form in ROWS:
        cells = [measured(report["sizes"][size].get(store) or {}, name) for size in sizes]
        if any(cell is not None for cell in cells):
            lines.append([label, *("–" if c is None else form.format(c) for c in cells)])
    text = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    if build := report.get("build"):
        text += (
            f"\nFrom photos to entries: {build['pairs_per_s_workers_0']:.1f} pairs/s, "
            f"{build['pairs_per_s_workers_1']:.1f} with images decoded in a process of their own; "
            "one at a time with a Perceiver over 384 x 384 pixels, as the release does: "
            f"{build['one_at_a_time_pairs_per_s']:.2f} pairs/s.\n"
        )
    cpu = report["machine"]
    return text + (
        f"\n{cpu['cpu']}, {cpu['cores']} cores ({cpu['threads']} threads used), load average "
        f"{report['load_average']:.1f} at the start; torch {cpu['torch']}.\n"
    )


if __name__ == "__main__":
    main()
