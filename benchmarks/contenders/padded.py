"""A straightforward loop in the style of LLaVA and TinyLLaVA.

Images are decoded in the data loader, the vision tower runs at every step, samples are padded to
the longest of their batch, and logits are computed at every position. The model is ours, so that
weights and precision are the same. Left out, in its favour: gradient checkpointing, which the
scripts of both switch on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from contenders.clock import Enough, StepClock
from contenders.pairs import RATES, TEMPLATES, Task

WORKERS = 4
Batch = dict[str, Any]
Extra = Callable[[Any, Batch], Batch]


def run(
    clock: StepClock, task: Task, extra: Callable[[Any], Extra] | None = None
) -> dict[str, Any]:
    """Time a stage. extra: given the model, makes what adds inputs to a step (see `release`)."""
    import torch

    model, processor = new_model(task)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    add = extra(model) if extra is not None else None
    optimizer = torch.optim.AdamW(trained, lr=RATES[task.stage], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(warmup=4, steps=125))
    batches = endless(loader(processor, task))
    model.train()
    model.model.vision_tower.eval()
    with suppress(Enough):
        while True:
            clock.ask()
            batch = next(batches)
            clock.give(*counts(batch))
            step(model, batch, add, optimizer, schedule, trained, autocast=task.stage == "finetune")
    return {"trained": sum(parameter.numel() for parameter in trained)}


def new_model(task: Task) -> tuple[Any, Any]:
    """Model and processor; connectors, and in stage 2 the LLM, trained in float32."""
    import torch

    from tinyalign.model.build import build_model

    model, processor = build_model(
        task.tower, task.language, k=task.k, dtype=torch.bfloat16,
        connector=task.pair.connector, connector_args=task.pair.connector_args,
        template=TEMPLATES[task.stage],
    )  # fmt: skip
    model.requires_grad_(False)
    parts = [model.model.multi_modal_projector, model.model.memory_connector]
    if task.stage == "finetune":
        parts += [model.model.language_model, model.lm_head]
    for part in parts:
        if part is not None:
            part.to(torch.float32).requires_grad_(True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def step(
    model: Any, batch: Batch, add: Extra | None, optimizer: Any, schedule: Any, trained: list[Any],
    autocast: bool,
) -> None:  # fmt: skip
    """Forward, backward, clip, update."""
    import torch

    batch = {name: value.to(model.device) for name, value in batch.items()}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        if add is not None:
            batch = add(model, batch)
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    loss.item()


def cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """Share of the learning rate at a step."""

    def share(now: int) -> float:
        if now < warmup:
            return (now + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (now - warmup) / (steps - warmup)))

    return share


def loader(processor: Any, task: Task) -> Any:
    """Decodes, tokenises and pads in workers."""
    import torch

    from tinyalign.data.chat import encode
    from tinyalign.data.images import load_image

    found, sequence = task.samples(), task.order()

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(sequence)

        def __getitem__(self, position: int) -> dict[str, Any]:
            sample = found[sequence[position]]
            image = load_image(sample.images[0])
            pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
            text = encode(
                sample, processor.tokenizer, processor.chat_template,
                n_image_tokens=processor.image_seq_length,
                n_memory_tokens=processor.memory_seq_length,
            )  # fmt: skip
            ids, labels = torch.tensor(text.input_ids), torch.tensor(text.labels)
            return {"input_ids": ids, "labels": labels, "pixel_values": pixels[0]}

    return torch.utils.data.DataLoader(
        Pairs(),
        batch_size=task.batch_size,
        num_workers=min(WORKERS, torch.get_num_threads()),
        collate_fn=lambda items: padded(items, processor.tokenizer.pad_token_id),
        pin_memory=torch.cuda.is_available(),
    )


def padded(items: list[Batch], pad: int) -> Batch:
    """Items of different length -> tensors as long as the longest."""
    import torch

    def fill(name: str, value: int) -> Any:
        rows = [item[name] for item in items]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    ids = fill("input_ids", pad)
    return {
        "input_ids": ids,
        "labels": fill("labels", -100),
        "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
    }


def endless(batches: Any) -> Iterator[Batch]:
    """One epoch after the other."""
    while True:
        yield from batches


def counts(batch: Batch) -> tuple[int, int, int, int]:
    """Samples, supervised tokens, tokens, and tokens computed."""
    supervised = int((batch["labels"][:, 1:] != -100).sum())
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return len(ids), supervised, int(mask.sum()), ids.numel()
