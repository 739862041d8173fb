"""The two things a model is asked for: the loss of an answer it is shown, and an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from tinyalign.data.chat import Encoded
from tinyalign.data.collator import IGNORED, Collator
from tinyalign.model.decoding import Choose, Decoding, decode


def answer_losses(
    model: Any, encoded: Sequence[Encoded], inputs: dict[str, Tensor], pad_token_id: int
) -> tuple[list[float], list[int]]:
    """Cross entropy summed over each sample's supervised tokens, in nats, and their number.

    `inputs` holds the features and memories of the samples, row by row; without any the model
    reads text alone. Logits exist only where
    a token is supervised, so a long prompt costs no memory at the LLM's head.
    """
    rows = [{"input_ids": e.input_ids, "labels": e.labels} for e in encoded]
    batch = Collator(pad_token_id)(rows)
    device = model.device
    counts: Tensor = batch["n_supervised"]
    if not counts.sum():
        return [0.0] * len(rows), [0] * len(rows)
    labels = batch["labels"].to(device)
    output = model(
        input_ids=batch["input_ids"].to(device),
        attention_mask=batch["attention_mask"].to(device),
        labels=labels,
        supervised_only=True,
        use_cache=False,
        **inputs,
    )
    targets = labels[:, 1:][labels[:, 1:] != IGNORED]  # (S,), row by row like the logits
    logits = output.logits.reshape(len(targets), -1)  # (S, V)
    losses = cross_entropy(logits.float(), targets, reduction="none").double().cpu()
    sums = [part.sum().item() for part in losses.split(counts.tolist())]
    return sums, counts.tolist()


def answers(
    model: Any,
    prompts: Sequence[Encoded],
    inputs: dict[str, Tensor],
    tokenizer: Any,
    decoding: Decoding,
    choose: Choose | None = None,
) -> list[str]:
    """Answers. Prompts are padded on the left, so batching does not change greedy ones."""
    collate = Collator(tokenizer.pad_token_id, padding_side="left")
    batch = collate([{"input_ids": prompt.input_ids} for prompt in prompts])
    device = model.device
    asked = {
        "input_ids": batch["input_ids"].to(device),
        "attention_mask": batch["attention_mask"].to(device),
        **inputs,
    }
    return decode(model, asked, tokenizer, decoding, choose)
