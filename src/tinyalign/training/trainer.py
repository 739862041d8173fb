"""TinyAlignTrainer: transformers' Trainer, with our loss, order of data and held-out loss."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tinyalign.training.dataset import TrainingDataset
from tinyalign.training.freeze import frozen_modules, part_of_parameters
from tinyalign.training.metrics_log import MetricsCallback, MetricsLog
from tinyalign.training.micro_batches import (
    Items,
    MicroBatches,
    MicroBatchLoader,
    SeededOrder,
    Split,
)
from tinyalign.training.rehearsal import Rehearsal
from tinyalign.training.stage_args import StageArgs

NOT_FOR_FORWARD = ("index", "n_supervised", "slot")


class TinyAlignTrainer(Trainer):
    """Trains one stage.

    The loss is the mean over the supervised tokens of the whole batch, whatever the split into
    micro-batches and processes; the LLM's head runs only where a token is supervised. Frozen
    parts stay in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        stage: StageArgs,
        log: MetricsLog,
        *,
        split: Split | None = None,
        drop_probability: float = 0.0,
        eval_folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        """split: how a step's samples are shared out, needed for data sets with `lengths`;
        drop_probability: chance of a sample to see no memory; eval_folder: where the losses of
        single held-out samples go (eval-STEP.jsonl)."""
        self.split = split
        self._step_samples = 0
        self._kept: Tensor | None = None
        self.stage = stage
        self.metrics_log = log
        self.drop_probability = drop_probability
        self.eval_folder = eval_folder
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(MetricsCallback(log))
        if stage.rehearse and split is not None:
            self.add_callback(Rehearsal(self))
        self._frozen = frozen_modules(model)

    # -- data ---------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return SeededOrder(len(dataset), self.args.seed)

    @cached_property
    def items(self) -> Items:
        """The training items by their place in the plan."""
        return Items(self.train_dataset)

    def micro_batches(self) -> MicroBatches:
        """The plan of this process: which samples each of its micro-batches has."""
        dataset: Any = self.train_dataset
        assert self.split is not None
        order = self._get_train_sampler()
        lengths = dataset.lengths.tolist()
        return MicroBatches(order, lengths, self.split, self.args.process_index)

    def get_train_dataloader(self) -> DataLoader:
        """Batches as planned; a stream, whose lengths nobody knows, as the Trainer has it."""
        if self.split is None:
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        return MicroBatchLoader(
            self.items,
            batch_sampler=self.micro_batches(),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """As in Trainer; counts the step's samples, supervised tokens and padding on the way."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        counted = sum((_counts(batch) for batch in batches), torch.zeros(3, dtype=torch.long))
        if self.args.world_size > 1:
            counted = self.accelerator.reduce(counted.to(self.args.device), "sum")
        samples, computed, padding = counted.tolist()
        tokens = 0 if items is None else int(items)
        self.metrics_log.count(samples, tokens, computed_tokens=computed, padding_tokens=padding)
        self._step_samples, self._kept = samples, None
        return batches, None if items is None else torch.as_tensor(items).clamp(min=1)

    def rehearse(self, batch: dict[str, Any]) -> None:
        """Forward and backward of a micro-batch as in a step of its own, without the step."""
        self._step_samples, self._kept = self.stage.batch_size, None
        items = batch["n_supervised"].sum().clamp(min=1).to(self.args.device)
        self.training_step(self.model_wrapped, batch, items)
        self._kept = None

    # -- loss ---------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy (nats) summed over supervised tokens, over their number in the step."""
        slots = inputs.get("slot")
        inputs = self._for_forward(inputs)
        if model.training:
            for part in self._frozen:
                part.eval()
            if self.stage.gradient_checkpointing:  # transformers does so in training mode only
                self.accelerator.unwrap_model(model).model.language_model.train()
            if self.drop_probability and "memory_mask" in inputs:
                inputs["memory_mask"] = self._dropped(inputs["memory_mask"], slots)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _for_forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in inputs.items() if name not in NOT_FOR_FORWARD}
        return {**kept, "supervised_only": True, "use_cache": False}

    def _dropped(self, mask: Tensor, slots: Tensor | None = None) -> Tensor:
        """mask (B, k) with all memories of some samples taken away.

        slots (B,): the samples' numbers within the step. One draw a step decides for all of them,
        so that no split into micro-batches and processes changes who sees no memory.
        """
        if slots is None:
            kept = torch.rand(len(mask), 1) >= self.drop_probability
            return mask & kept.to(mask.device)
        if self._kept is None:
            self._kept = torch.rand(self._step_samples, 1) >= self.drop_probability
        return mask & self._kept.to(mask.device)[slots]

    # -- optimiser ----------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate for each part: connectors, LLM, vision tower."""
        if self.optimizer is None:
            chosen: Any = model if model is not None else self.model
            groups = self.parameter_groups(chosen)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, chosen)
            self.optimizer = cls(groups, **options)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trained parameters by learning rate, and by whether they decay."""
        stage = self.stage
        connector = stage.connector_learning_rate or stage.learning_rate
        rates = {
            "vision tower": stage.vision_learning_rate or stage.learning_rate,
            "image connector": connector,
            "memory connector": connector,
            "language model": stage.learning_rate,
        }
        decaying = set(self.get_decay_parameter_names(model))
        owner = part_of_parameters(self.accelerator.unwrap_model(model))
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decay = stage.weight_decay if name in decaying else 0.0
                rate = rates[owner[name.removeprefix("module.")]]
                groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]

    # -- held-out loss ------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss per supervised token of the held-out samples; a sample's own goes to a file.

        eval-STEP.jsonl has {"id", "loss_sum", "tokens"} for every sample, so that two runs can
        be compared pair by pair.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.monotonic()
        rows = self.sample_losses(dataset)
        tokens = sum(row["tokens"] for row in rows)
        loss = sum(row["loss_sum"] for row in rows) / max(1, tokens)
        if self.eval_folder is not None and self.is_world_process_zero():
            path = self.eval_folder / f"eval-{self.state.global_step}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_samples": len(rows),
            f"{metric_key_prefix}_tokens": tokens,
            f"{metric_key_prefix}_seconds": round(time.monotonic() - started, 3),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def sample_losses(self, dataset: TrainingDataset) -> list[dict[str, Any]]:
        """For each sample its id, summed loss in nats, and number of supervised tokens."""
        loader = DataLoader(
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),  # drawing from the global one would move training's
        )
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        rows: list[dict[str, Any]] = []
        for batch in loader:
            sums, counts = self._losses(model, self._prepare_inputs(batch))
            for index, loss, count in zip(batch["index"].tolist(), sums.tolist(), counts.tolist()):
                rows.append({"id": dataset.samples[index].id, "loss_sum": loss, "tokens": count})
        model.train(was_training)
        return rows

    def _losses(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with self.compute_loss_context_manager():
            logits = model(**self._for_forward(batch)).logits[0]  # (supervised, V)
        following = batch["labels"][:, 1:]
        wanted = following != -100  # (B, L - 1)
        loss = nn.functional.cross_entropy(logits.float(), following[wanted], reduction="none")
        owner = _owner(batch)[:, 1:][wanted]
        sums = torch.zeros(len(batch["n_supervised"]), device=loss.device)
        sums.index_add_(0, owner, loss)
        return sums, batch["n_supervised"]


def _counts(batch: dict[str, Any]) -> Tensor:
    """(samples, tokens computed, tokens of these that are padding) of a micro-batch."""
    computed = batch["input_ids"].numel()
    mask = batch.get("attention_mask")
    samples = (batch["slot"] >= 0).sum() if "slot" in batch else len(batch["n_supervised"])
    padding = 0 if mask is None else computed - int(mask.sum())
    return torch.tensor([int(samples), computed, padding])


def _owner(batch: dict[str, Any]) -> Tensor:
    """Number of the sample in the batch that each token belongs to: (B, L), or packed (1, T)."""
    ids, segments = batch["input_ids"], batch.get("segments")
    if segments is None:
        return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    return torch.repeat_interleave((segments >= 0).sum(dim=1))[None]
