"""The tables of `benchmarks/training.py`, from its numbers."""

from __future__ import annotations

import statistics
from typing import Any

from contenders.pairs import PAIRS

STAGE_NAMES = {"pretrain": "stage 1 (connectors)", "finetune": "stage 2 (connectors and LLM)"}
HEAD = (
    "", "trained", "tokens a sample", "samples/s", "supervised tokens/s", "padding", "data wait",
    "peak memory, GB", "ours is",
)  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """Markdown: a table for each pair and stage, memory's cost, ablations, preparation, machine."""
    cells = [row for row in found["cells"].values() if row["rounds"]]
    text = ""
    for stage, stage_name in STAGE_NAMES.items():
        for pair in PAIRS.values():
            own = [c for c in cells if (c["pair"], c["stage"]) == (pair.name, stage)]
            plain = [cell for cell in own if not cell["without"]]
            if plain:
                text += f"## {pair.title}: {stage_name}\n\n{contender_table(plain)}\n"
                text += memory_cost(plain, found["prepared"].get(pair.name, {})) + "\n"
    return text + ablation_table(cells) + preparation(found) + closing(found)


def median(cell: dict[str, Any], name: str) -> float:
    """A number of a cell, the median over its rounds."""
    return statistics.median(one[name] for one in cell["rounds"])


def rates(cell: dict[str, Any]) -> list[float]:
    """Samples a second in each timed step, of all rounds."""
    return [
        step["samples"] / seconds
        for one in cell["rounds"]
        for step, seconds in zip(one["steps"], one["step_s"])
    ]


def rate(cell: dict[str, Any]) -> float:
    """Samples a second: the median over timed steps."""
    return statistics.median(rates(cell))


def total(cell: dict[str, Any], name: str) -> int:
    """A count of samples or tokens over all timed steps."""
    return sum(step[name] for one in cell["rounds"] for step in one["steps"])


def title(cell: dict[str, Any]) -> str:
    """A contender as a person would call it."""
    names = {
        "ours": f"**ours, k = {cell['k']}**",
        "padded": "LLaVA-style loop: padding, full logits, tower at every step",
        "nanovlm": "nanoVLM's own loop",
        "release": f"release's way, k = {cell['k']}: retrieval inside `forward`, "
        f"{cell['entries']:,} entries",
    }
    return names[cell["contender"]]


def contender_table(cells: list[dict[str, Any]]) -> str:
    """All contenders of a pair and stage; ratios are to ours with memory where they have it."""
    ours = {c["k"]: rate(c) for c in cells if c["contender"] == "ours"}
    rows = [HEAD, ("---",) * len(HEAD)]
    for cell in cells:
        own, same = rate(cell), ours.get(cell["k"])
        other = cell["contender"] != "ours" and same is not None
        rows.append((
            title(cell),
            f"{cell['rounds'][0]['trained'] / 1e6:.2f} M",
            f"{total(cell, 'tokens') / total(cell, 'samples'):.0f}",
            f"{own:.2f} ({min(rates(cell)):.2f}–{max(rates(cell)):.2f})",
            f"{own * total(cell, 'supervised') / total(cell, 'samples'):.1f}",
            percent(median(cell, "padding")),
            percent(median(cell, "data_wait")),
            f"{median(cell, 'peak_gb'):.2f}",
            f"{same / own:.2f} ×" if other else "",
        ))  # fmt: skip
    return markdown(rows)


def memory_cost(cells: list[dict[str, Any]], prepared: dict[str, Any]) -> str:
    """Time a sample of k = 5 over k = 0, beside the arithmetic of its extra tokens."""
    ours = {cell["k"]: cell for cell in cells if cell["contender"] == "ours"}
    if len(ours) < 2:
        return ""
    low, high = sorted(ours)
    stage = ours[low]["stage"]
    both = list(zip(rates(ours[low]), rates(ours[high])))  # the same samples in each step
    measured = statistics.median(without / with_it for without, with_it in both)
    text = f"k = {high} takes {measured:.3f} × the time of k = {low} a sample"
    counted = [prepared.get(f"{stage} k={k}") for k in (low, high)]
    if None in counted:
        return text + ".\n"
    expected = arithmetic(ours[low], ours[high], *counted)
    return text + (
        f"; the arithmetic is {expected:.3f} × (floating-point operations): "
        f"**{100 * (measured / expected - 1):+.1f} % beyond the arithmetic** "
        "(goal: at most +3 %).\n"
    )


def arithmetic(
    low: dict[str, Any], high: dict[str, Any], few: dict[str, Any], many: dict[str, Any]
) -> float:
    """Floating-point operations of `high` over those of `low`.

    Counted in one step (`few`, `many`), and carried over to the timed steps by the tokens that
    were computed.
    """
    timed = total(high, "computed") / total(low, "computed")
    return many["flops"] / few["flops"] * timed / (many["computed"] / few["computed"])


def ablation_table(cells: list[dict[str, Any]]) -> str:
    """What each optimisation alone gives: ours without it, beside ours."""
    from contenders.ablations import ABLATIONS

    whole = {
        (c["pair"], c["stage"], c["k"]): c
        for c in cells
        if c["contender"] == "ours" and not c["without"]
    }
    rows = [
        ("left out", "stage", "k", "samples/s", "with it", "it gives", "peak memory, GB", "with it")
    ]
    rows.append(("---",) * len(rows[0]))
    for cell in cells:
        full = whole.get((cell["pair"], cell["stage"], cell["k"]))
        if not cell["without"] or full is None:
            continue
        own, best = rate(cell), rate(full)
        rows.append((
            ABLATIONS[cell["without"]].title, "1" if cell["stage"] == "pretrain" else "2",
            str(cell["k"]), f"{own:.2f}", f"{best:.2f}", f"{best / own:.2f} ×",
            f"{median(cell, 'peak_gb'):.2f}", f"{median(full, 'peak_gb'):.2f}",
        ))  # fmt: skip
    if len(rows) == 2:
        return ""
    return f"## What each optimisation alone gives\n\n{markdown(rows)}\n"


def preparation(found: dict[str, Any]) -> str:
    """Seconds from the start of `train()` to the first step, cold and warm."""
    rows = [("pair", "stage", "k", "cold, s", "warm, s"), ("---",) * 5]
    for pair, prepared in found["prepared"].items():
        for name, numbers in prepared.items():
            stage, k = name.split(" k=")
            cell = found["cells"].get(f"ours {pair} {stage} k={k}")
            warm = "–"
            if cell and cell["rounds"]:
                warm = f"{median(cell, 'first_step_after_s'):.1f}"
            cold = f"{numbers['first_step_after_s']:.1f}"
            rows.append((pair, "1" if stage == "pretrain" else "2", k, cold, warm))
    text = "Loading the model included; cold rows came in this order, each finding the earlier "
    text += "ones' caches (vision features; then Perceiver, bank and neighbour table).\n"
    return f"## Before the first step\n\n{markdown(rows)}\n{text}\n"


def closing(found: dict[str, Any]) -> str:
    """The machine, and what was not run."""
    m = found["machine"]
    device = f"Run on one {m['gpu']}" if m["gpu"] else "No GPU was used"
    text = (
        f"{m['cpu']}, {m['cores']} cores ({m['threads']} threads used), load average "
        f"{m['load_average']} at the start; torch {m['torch']}, transformers {m['transformers']}. "
        f"{device}. Batch {m['batch_size']}, {m['steps']} timed steps after {m['warmup']}, medians "
        "over the timed steps (slowest and fastest in brackets).\n"
    )
    if m["nanovlm"] is None:
        return text + "\nnanoVLM was not run: give a checkout with --nanovlm.\n"
    return text + f"\nnanoVLM at commit {m['nanovlm']}.\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def markdown(rows: list[Any]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"
