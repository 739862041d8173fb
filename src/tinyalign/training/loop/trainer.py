"""TinyAlignTrainer: transformers' Trainer, with our loss, order of data and held-out loss."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tinyalign.errors import ConfigError
from tinyalign.training.batches.dataset import TrainingDataset
from tinyalign.training.batches.evaluation import EvaluationBatches
from tinyalign.training.batches.memory_dropout import kept_memories
from tinyalign.training.batches.micro_batches import (
    Items,
    MicroBatches,
    MicroBatchLoader,
    SeededOrder,
    Split,
)
from tinyalign.training.batches.stream import StreamDataset
from tinyalign.training.loop.callbacks import CheckpointsAsAsked
from tinyalign.training.loop.early_stopping import EarlyStopping
from tinyalign.training.loop.held_out import WithoutMemory, mean_loss, side_by_side
from tinyalign.training.loop.rehearsal import Rehearsal
from tinyalign.training.machine.launch import gather
from tinyalign.training.machine.sharding import name_layers, shard_on_cpu
from tinyalign.training.metering.metrics_log import MetricsCallback, MetricsLog
from tinyalign.training.metering.throughput import Meter
from tinyalign.training.metering.work import Work, work_of
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.weights.checkpoints import ASIDE, clear_aside, publish
from tinyalign.training.weights.ema import AveragedWeights
from tinyalign.training.weights.freeze import frozen_modules, part_of_parameters
from tinyalign.vocabulary import CrossEntropy

NOT_FOR_FORWARD = ("index", "n_padding", "n_supervised", "slot")


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
        meter: Meter | None = None,
        cross_entropy: CrossEntropy = "full",
        **kwargs: Any,
    ) -> None:
        """split: how a step's samples are shared out, needed for data sets with `lengths`;
        drop_probability: chance of a sample to see no memory; eval_folder: where the losses of
        single held-out samples go (eval-STEP.jsonl); meter: times the steps; cross_entropy: how
        head and loss are computed in training."""
        self.split = split
        self.stage = stage
        self.meter = meter or Meter()
        self.cross_entropy: CrossEntropy = cross_entropy
        self.metrics_log = log
        self.drop_probability = drop_probability
        self.eval_folder = eval_folder
        if isinstance(kwargs.get("train_dataset"), StreamDataset):
            args.ignore_data_skip = True  # it goes on from its own position
            args.dataloader_num_workers = 0  # its thread must not be forked for an evaluation
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(MetricsCallback(log))
        self.add_callback(CheckpointsAsAsked())
        if stage.rehearse and split is not None:
            self.add_callback(Rehearsal(self))
        self._frozen = frozen_modules(model)
        self.averages: AveragedWeights | None = None
        self.early_stopping: EarlyStopping | None = None
        self._add_modes()

    def _add_modes(self) -> None:
        """Averaged weights and early stopping, where the stage wants them."""
        stage = self.stage
        sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.accelerator.distributed_type in sharded and (
            stage.adapts or stage.ema_decay or stage.early_stopping
        ):
            raise ConfigError(
                "language lora or qlora, ema_decay and early_stopping need whole weights on each "
                f"process, which {self.accelerator.distributed_type.value} has not; use DDP"
            )
        if stage.ema_decay is not None:
            self.averages = AveragedWeights(stage.ema_decay)
            self.add_callback(self.averages)
        if stage.early_stopping is not None and self.eval_folder is not None:
            self.early_stopping = EarlyStopping(
                stage.early_stopping,
                stage.early_stopping_min_delta,
                self.eval_folder,
                saves=self.is_world_process_zero(),
            )
            self.add_callback(self.early_stopping)

    def keep_weights(self) -> int:
        """After training: leave the model with the weights to save, best or averaged ones.

        Returns the step that they are of.
        """
        if self.early_stopping is not None:  # what it kept is what was evaluated, so averaged too
            model = self.accelerator.unwrap_model(self.model)
            return self.early_stopping.restore(model, self.state)
        if self.averages is not None:
            self.averages.swap(self.optimizer)
        return self.state.global_step

    def evaluation_at(self, step: int) -> dict[str, Any]:
        """The last evaluation up to a step; empty if there was none."""
        found = [x for x in self.state.log_history if "eval_loss" in x and x["step"] <= step]
        return dict(found[-1]) if found else {}

    def create_accelerator_and_postprocess(self) -> None:
        """As in Trainer; FSDP2 works on CPUs too."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = self.is_fsdp_enabled or shard_on_cpu(self.accelerator)
        if self.is_fsdp_enabled:
            name_layers(self.accelerator, cast(nn.Module, self.model))

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
        """Batches as planned; a stream, whose lengths nobody knows, as it comes."""
        if isinstance(self.train_dataset, StreamDataset):  # shared out among processes already
            return self.train_dataset.loader(self._train_batch_size, self.data_collator)
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

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, StreamDataset):
            self.train_dataset.save_position(Path(output_dir))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """As in Trainer; times it, and counts what the step computes on the way."""
        with self.meter.fetching():
            batches, items = super().get_batch_samples(*args, **kwargs)
        work = self._over_processes(work_of(batches))
        work.supervised_tokens = 0 if items is None else int(items)
        self.meter.add(work)
        self.metrics_log.count(work.samples, work.supervised_tokens, work.tokens)
        return batches, None if items is None else torch.as_tensor(items).clamp(min=1)

    def _over_processes(self, work: Work) -> Work:
        if self.accelerator.num_processes == 1:
            return work
        counts = torch.tensor([work.samples, work.tokens, work.slots, work.images])
        total: Any = self.accelerator.reduce(counts.to(self.args.device), "sum")
        samples, tokens, slots, images = total.tolist()
        return Work(samples=samples, tokens=tokens, slots=slots, images=images)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer; a step's log gets the meter's measures."""
        if "loss" in logs:
            logs.update(self.meter.step())
        super().log(logs, start_time)

    def rehearse(self, batch: dict[str, Any]) -> None:
        """Forward and backward of a micro-batch as in a step of its own, without the step."""
        items = batch["n_supervised"].sum().clamp(min=1).to(self.args.device)
        self.training_step(self.model_wrapped, batch, items)

    # -- loss ---------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy (nats) summed over supervised tokens, over their number in the step."""
        indices = inputs["index"]
        inputs = self._for_forward(inputs)
        if model.training:
            inputs["cross_entropy"] = self.cross_entropy
            for part in self._frozen:
                part.eval()
            if self.stage.gradient_checkpointing:  # transformers does so in training mode only
                self.accelerator.unwrap_model(model).model.language_model.train()
            if self.drop_probability and "memory_mask" in inputs:
                inputs["memory_mask"] = self._dropped(inputs["memory_mask"], indices)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _for_forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in inputs.items() if name not in NOT_FOR_FORWARD}
        return {**kept, "supervised_only": True, "use_cache": False}

    def _dropped(self, mask: Tensor, indices: Tensor) -> Tensor:
        """mask (B, k) with all memories of some samples taken away; indices (B,): theirs."""
        step, seed = self.state.global_step, self.args.seed
        kept = kept_memories(indices.tolist(), step, self.drop_probability, seed)
        return mask & kept[:, None].to(mask.device)

    # -- checkpoints --------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        clear_aside(folder)
        super()._save_checkpoint(model, trial)
        publish(folder, self.args.save_total_limit)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / ASIDE)

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
        be compared pair by pair; with `eval_without_memory` also "loss_sum_without_memory", the
        same tokens with no memory tokens before them.
        """
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.monotonic()
        averaged = nullcontext() if self.averages is None else self.averages.applied(self.optimizer)
        with averaged:
            rows = self._rows(dataset)
            metrics = {
                f"{metric_key_prefix}_loss": mean_loss(rows),
                f"{metric_key_prefix}_samples": len(rows),
                f"{metric_key_prefix}_tokens": sum(row["tokens"] for row in rows),
                f"{metric_key_prefix}_seconds": round(time.monotonic() - started, 3),
            }
            if self._looks_without_memory:
                name = f"{metric_key_prefix}_loss_without_memory"
                metrics[name] = mean_loss(rows, "loss_sum_without_memory")
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics

    @property
    def _looks_without_memory(self) -> bool:
        config: Any = self.accelerator.unwrap_model(self.model).config
        return self.stage.eval_without_memory and config.n_memory_tokens > 0

    def _rows(self, dataset: TrainingDataset) -> list[dict[str, Any]]:
        """The losses of single samples, with memory and, if wanted, without; written down too."""
        rows = self.sample_losses(dataset)
        if self._looks_without_memory:
            rows = side_by_side(rows, self.sample_losses(dataset, without_memory=True))
        if self.eval_folder is not None and self.is_world_process_zero():
            path = self.eval_folder / f"eval-{self.state.global_step}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return rows

    def sample_losses(
        self, dataset: TrainingDataset, *, without_memory: bool = False
    ) -> list[dict[str, Any]]:
        """For each sample its id, summed loss in nats, and number of supervised tokens."""
        args = self.args
        batches = EvaluationBatches(
            len(dataset), args.per_device_eval_batch_size, args.world_size, args.process_index
        )
        collator: Any = self.data_collator
        if without_memory:
            config: Any = self.accelerator.unwrap_model(self.model).config
            collator = WithoutMemory(collator, config.memory_token_id)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),  # drawing from the global one would move training's
        )
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        found: list[list[dict[str, Any]]] = []
        for batch in loader:
            sums, counts = self._losses(model, self._prepare_inputs(batch))
            values = zip(batch["index"].tolist(), sums.tolist(), counts.tolist())
            found.append(
                [
                    {"id": dataset.samples[index].id, "loss_sum": loss, "tokens": count}
                    for index, loss, count in values
                ]
            )
        model.train(was_training)
        return [row for rows in batches.joined(gather(found)) for row in rows]

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


def _owner(batch: dict[str, Any]) -> Tensor:
    """Number of the sample in the batch that each token belongs to: (B, L), or packed (1, T)."""
    ids, segments = batch["input_ids"], batch.get("segments")
    if segments is None:
        return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    return torch.repeat_interleave((segments >= 0).sum(dim=1))[None]
