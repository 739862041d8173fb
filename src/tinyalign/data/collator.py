"""Items of different length -> one batch of tensors, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tinyalign.errors import DataError

IGNORED = -100
"""The label of a position that is not supervised, as in `torch.nn.CrossEntropyLoss`."""

ROW_MULTIPLE = 16
"""Tokens that packed rows are a multiple of in training: the height of a tile of AMX and of a
tensor core's."""
MOST_PADDING = 0.03
"""Share of a row's tokens that may be added to reach the multiple; a shorter row stays as it is."""

SEQUENCE_FILL = {"input_ids": None, "labels": IGNORED, "attention_mask": 0}
IMAGE_KEYS = ("pixel_values", "vision_features")
"""One row an image, not one a sample: a text-only sample has none, a list adds several."""


class Collator:
    """Pad `input_ids`, `labels` and `attention_mask`; stack every other tensor.

    Returns a dict with `input_ids`, `attention_mask` and, where the items have them, `labels`,
    each (B, L) int64; `n_supervised` (B,) int64, the label positions that the shifted loss sees;
    image tensors (images, ...); any other tensor or number (B, ...). What is no tensor comes
    back as a list.
    """

    def __init__(self, pad_token_id: int, padding_side: Literal["right", "left"] = "right") -> None:
        if padding_side not in ("right", "left"):
            raise DataError(f"padding_side: expected 'right' or 'left', found {padding_side!r}")
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not items:
            raise DataError("a batch needs at least one item, found none")
        batch = self._sequences(items)
        for key in dict.fromkeys(key for item in items for key in item):
            if key in SEQUENCE_FILL:
                continue
            present = [item[key] for item in items if item.get(key) is not None]
            if key in IMAGE_KEYS:
                rows = [row for value in present for row in _as_list(value)]
                if rows:
                    batch[key] = _stack(key, rows)
            elif len(present) == len(items):
                batch[key] = _stack(key, present)
            elif present:
                raise DataError(
                    f"a batch has {key!r} in {len(present)} of {len(items)} items; expected it "
                    "in all or none"
                )
        return batch

    def _sequences(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        masks = [item.get("attention_mask") for item in items]
        masks = [
            np.ones(len(item["input_ids"])) if mask is None else mask
            for item, mask in zip(items, masks)
        ]
        batch: dict[str, Any] = {
            "input_ids": self._pad([item["input_ids"] for item in items], self.pad_token_id),
            "attention_mask": self._pad(masks, 0),
        }
        if all("labels" in item for item in items):
            labels = self._pad([item["labels"] for item in items], IGNORED)
            if labels.shape != batch["input_ids"].shape:
                raise DataError(
                    f"labels pad to {tuple(labels.shape)}, input_ids to "
                    f"{tuple(batch['input_ids'].shape)}; each item needs one label a token"
                )
            batch["labels"] = labels
            batch["n_supervised"] = (labels[:, 1:] != IGNORED).sum(dim=1)
        return batch

    def _pad(self, rows: Sequence[Any], fill: int) -> Tensor:
        length = max(len(row) for row in rows)
        out = torch.full((len(rows), length), fill, dtype=torch.long)  # (B, L)
        for i, row in enumerate(rows):
            values = torch.as_tensor(row, dtype=torch.long)
            if self.padding_side == "right":
                out[i, : len(values)] = values
            else:
                out[i, length - len(values) :] = values
        return out


class PackedCollator(Collator):
    """Lay `input_ids` and `labels` of all items in one row, without padding; stack the rest.

    Returns, beside what `Collator` stacks by image and by sample: `input_ids`, `labels` and
    `position_ids` (1, T) int64; `segments` (S, L) int64, of each sample the places of its tokens
    in the row, -1 behind its end; `n_supervised` (S,). Positions start at 0 in each sample, whose
    first label is -100, as nothing stands before it. There is no attention mask.

    With `multiple`, T is one of its multiples, unless that took more than 3 % of padding: it
    stands behind the words of the shortest sample, at position 0, where none of them sees it, and
    `n_padding` says how much. Rows of few different lengths are what matrix libraries prepare
    once.
    """

    def __init__(self, pad_token_id: int, multiple: int = 1) -> None:
        super().__init__(pad_token_id)
        if multiple < 1:
            raise DataError(f"multiple: expected at least 1, found {multiple}")
        self.multiple = multiple

    def _sequences(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        positions = [[*range(len(item["input_ids"]))] for item in items]
        items, n_padding = self._filled_up(items)
        lengths = [len(item["input_ids"]) for item in items]
        if any("attention_mask" in item for item in items):
            raise DataError("packed items are whole samples; they have no attention_mask")
        batch: dict[str, Any] = {
            "input_ids": _row([item["input_ids"] for item in items]),
            "position_ids": _row(
                [[*own, *[0] * (length - len(own))] for own, length in zip(positions, lengths)]
            ),
            "segments": segment_table(lengths),
        }
        if self.multiple > 1:
            batch["n_padding"] = n_padding
        if all("labels" in item for item in items):
            labels = _row([item["labels"] for item in items])
            if labels.shape != batch["input_ids"].shape:
                raise DataError(
                    f"{labels.shape[1]} labels for {sum(lengths)} tokens; each item needs one "
                    "label a token"
                )
            labels[batch["position_ids"] == 0] = IGNORED
            batch["labels"] = labels
            batch["n_supervised"] = torch.stack(
                [(part != IGNORED).sum() for part in labels[0].split(lengths)]
            )
        return batch

    def _filled_up(
        self, items: Sequence[Mapping[str, Any]]
    ) -> tuple[Sequence[Mapping[str, Any]], int]:
        """The items, of which the shortest has grown to make the row a multiple; by how much."""
        lengths = [len(item["input_ids"]) for item in items]
        missing = -sum(lengths) % self.multiple
        if not 0 < missing <= MOST_PADDING * sum(lengths):
            return items, 0
        shortest = lengths.index(min(lengths))
        item = dict(items[shortest])
        for name, fill in (("input_ids", self.pad_token_id), ("labels", IGNORED)):
            if name in item:
                item[name] = [*item[name], *[fill] * missing]
        return [*items[:shortest], item, *items[shortest + 1 :]], missing


def segment_table(lengths: Sequence[int]) -> Tensor:
    """Places of the tokens of samples of these lengths in one row: (S, longest), -1 at the end."""
    table = torch.full((len(lengths), max(lengths)), -1, dtype=torch.long)
    start = 0
    for row, length in zip(table, lengths):
        row[:length] = torch.arange(start, start + length)
        start += length
    return table


def _row(parts: Sequence[Any]) -> Tensor:
    """Sequences one behind the other: (1, T) int64."""
    return torch.cat([torch.as_tensor(part, dtype=torch.long) for part in parts])[None]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _stack(key: str, values: list[Any]) -> Any:
    if isinstance(values[0], (np.ndarray, np.generic, int, float, bool)):
        values = [torch.as_tensor(value) for value in values]
    if not isinstance(values[0], Tensor):
        return values
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise DataError(f"{key!r} has different shapes in one batch: {sorted(shapes)}")
    return torch.stack(values)
