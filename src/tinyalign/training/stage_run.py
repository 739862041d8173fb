"""One stage, from recipe to saved model: model, caches, bank, data, trainer, in this order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, set_seed

from tinyalign.data.chat import choose_template
from tinyalign.data.collator import ROW_MULTIPLE, Collator, PackedCollator
from tinyalign.data.packing import Layout
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError
from tinyalign.log import logger, progress
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.open_bank import MEMORY_NOTE
from tinyalign.memory.perceiver import Perceiver, load_perceiver
from tinyalign.memory.search.ranker import Ranker
from tinyalign.memory.search.ranking import Ranking
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.model.copier import Copier
from tinyalign.model.copying import CopyGate
from tinyalign.model.device import choose_device
from tinyalign.model.packing.attention import disable_packing, enable_packing
from tinyalign.training.batches.dataset import Neighbours, TrainingDataset
from tinyalign.training.batches.stream import BlockSearch, StreamDataset, part_of_launch
from tinyalign.training.caches.choice import choose_source
from tinyalign.training.caches.features import (
    FeatureCache,
    Features,
    FeatureSource,
    default_cache_folder,
)
from tinyalign.training.caches.tokenise import Tokeniser
from tinyalign.training.caches.tokens import CachedTokens, cached_tokens
from tinyalign.training.copy_gate import OPENING, fit_copy_gate
from tinyalign.training.loop.arguments import plan_split, planned_steps, training_arguments
from tinyalign.training.loop.callbacks import EvaluateAt, Tell
from tinyalign.training.loop.trainer import TinyAlignTrainer
from tinyalign.training.machine.compiling import compile_layers, undo_compile
from tinyalign.training.machine.launch import (
    first_goes_first,
    is_first,
    join,
    processes,
    wait_for_all,
)
from tinyalign.training.machine.process_ram import keep_freed_memory
from tinyalign.training.machine.sharding import whole_model
from tinyalign.training.metering.flops import device_peak, model_flops
from tinyalign.training.metering.metrics_log import MetricsLog
from tinyalign.training.metering.throughput import Meter
from tinyalign.training.metering.tracking import add_trackers
from tinyalign.training.perceiver.closed_form import closed_form_skip, token_table
from tinyalign.training.preflight import stage_two_start
from tinyalign.training.prepare_memory import MemoryPreparer
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.sources import open_source, open_source_stream
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.run_folder import (
    CACHE_NOTE,
    CHECKPOINTS,
    RunFolder,
    StageResult,
    fingerprint,
)
from tinyalign.training.weights.adapters import check_targets, merge_adapters, save_adapter
from tinyalign.training.weights.freeze import freeze
from tinyalign.training.weights.models import cast_trained, load_model, new_model, save_model
from tinyalign.training.weights.snapshots import SaveModelAt
from tinyalign.vocabulary import Stage

SKIPPED_LINES = "skipped.jsonl"
Items = TrainingDataset | StreamDataset


class StageRun:
    """What one stage needs, made in order: model, caches, bank, data, trainer."""

    def __init__(self, recipe: Recipe, folder: RunFolder, stage: Stage) -> None:
        self.recipe, self.folder, self.stage = recipe, folder, stage
        self.args: StageArgs = getattr(recipe, stage)
        self.device = join(choose_device(recipe.device))
        set_seed(recipe.seed)
        self.model, self.processor = self._model()
        encoder = VisionEncoder.from_model(self.model, self.processor)
        cache_folder = Path(recipe.data.cache_folder or default_cache_folder())
        self.cache_folder = cache_folder
        with first_goes_first():  # an estimate opens the data
            self.features: FeatureSource = choose_source(
                recipe, folder.path / CACHE_NOTE, cache_folder, encoder
            )
        self.memory = MemoryPreparer(recipe, self.features, cache_folder)
        self.bank: MemoryBank | None = None
        if recipe.memory.reads_bank:
            with first_goes_first():
                self._use_bank(self.memory.bank())

    def _model(self) -> tuple[Any, Any]:
        if self.stage == "pretrain":
            model, processor = new_model(self.recipe, self.device)
            if self.recipe.data.finetune is not None:  # better known now than after this stage
                check_targets(model, self.recipe.finetune)
            return model, processor
        found = stage_two_start(self.recipe, self.folder)
        logger.info("finetune: starts from %s", found)
        self.start = found
        return load_model(found, self.recipe, self.device)

    def _use_bank(self, bank: MemoryBank) -> None:
        config, memory = self.model.config, self.recipe.memory
        self.bank = bank
        self._note_ranking()
        if memory.drop_probability:
            config.memory_optional = self.processor.memory_learned = True
        shape = (bank.manifest.n_latents, bank.manifest.d_latents)
        if shape != config.memory_shape:
            raise ConfigError(
                f"{bank.folder}: its values are {shape[0]} x {shape[1]}, the model takes "
                f"{config.memory_shape[0]} x {config.memory_shape[1]}"
            )
        note: dict[str, Any] = {
            "bank": str(bank.folder.resolve()),
            "bank_hash": bank.hash,
            "perceiver_hash": bank.manifest.perceiver_hash,
            "entries": len(bank),
            "k": memory.k,
            "control": memory.control,
        }
        if self.stage == "pretrain":
            perceiver = load_perceiver(bank)
            config.perceiver_hash = bank.manifest.perceiver_hash
            perceiver.network.config.name_or_path = ""  # where it lay is no part of the model
            config.perceiver_config = perceiver.network.config
            if memory.fusion.linear_skip and memory.fusion.closed_form:
                note["closed_form_r2"] = self._start_skip(bank, perceiver)
            if memory.fusion.word_skip:
                self._start_words(perceiver)
        elif config.perceiver_hash != bank.manifest.perceiver_hash:
            raise ConfigError(
                f"{bank.folder}: made with Perceiver {bank.manifest.perceiver_hash}, stage 1 "
                f"was trained with {config.perceiver_hash}; use the bank of stage 1"
            )
        if is_first():
            text = json.dumps(note, indent=2)
            (self.folder.path / MEMORY_NOTE).write_text(text, encoding="utf-8")

    def _start_skip(self, bank: MemoryBank, perceiver: Perceiver) -> float:
        embeddings = self.model.get_input_embeddings().weight
        start = closed_form_skip(bank, perceiver, self.processor.tokenizer, embeddings)
        self.model.model.memory_connector.start_linear_skip(start.weight, start.bias)
        logger.info("memory connector: starts in closed form, R2 %.3f", start.r2)
        return round(start.r2, 4)

    def _start_words(self, perceiver: Perceiver) -> None:
        embeddings = self.model.get_input_embeddings().weight.detach()
        table = token_table(perceiver.tokenizer, self.processor.tokenizer, embeddings)
        head = perceiver.network.text_head
        self.model.model.memory_connector.start_word_skip(head.weight, head.bias, table)
        logger.info("memory connector: reads back %d words", len(table))

    # -- data ---------------------------------------------------------------------------------

    def dataset(self, source: DataSource, *, held_out: bool = False) -> TrainingDataset:
        """The items of a source, with features and neighbours as the recipe has them."""
        with first_goes_first():
            return self._dataset(source, held_out)

    def _dataset(self, source: DataSource, held_out: bool) -> TrainingDataset:
        recipe = self.recipe
        strict = recipe.data.strict
        seed = recipe.memory.seed if held_out else recipe.seed
        samples = open_source(source, seed, strict=strict)
        features = self.features.cover(samples, strict=strict, workers=recipe.data.workers)
        neighbours = self._neighbours(samples, features, held_out)
        tokens = self._tokens(samples, self._encoding())
        return self._items(samples, features, neighbours, tokens)

    def stream(self, source: DataSource) -> StreamDataset:
        """The items of a source that is read as training goes on."""
        part, strict = part_of_launch(), self.recipe.data.strict
        search = None if self.bank is None else BlockSearch(self.bank, self.memory.memory)

        def prepare(samples: Sequence[Sample], number: int) -> TrainingDataset:
            # Without workers: a block is small, and a thread that reads ahead must not fork.
            features = self.features.cover(samples, strict=strict)
            found = None if search is None else search(samples, features, number)
            return self._items(samples, features, found)

        samples = open_source_stream(source, self.recipe.seed, part=part, strict=strict)
        ahead = self.recipe.data.workers > 0
        return StreamDataset(samples, prepare, part=part, strict=strict, ahead=ahead)

    def _encoding(self) -> dict[str, Any]:
        template = self.args.template
        return {
            "n_memory_tokens": self.model.config.n_memory_tokens,
            "template": choose_template(self.processor.tokenizer, template) if template else None,
            "max_length": self.recipe.data.max_length,
        }

    def _items(
        self,
        samples: Sequence[Sample],
        features: Features,
        neighbours: Neighbours | None,
        tokens: CachedTokens | None = None,
    ) -> TrainingDataset:
        return TrainingDataset(
            samples,
            self.processor,
            **self._encoding(),
            features=features,
            tokens=tokens,
            neighbours=neighbours,
            strict=self.recipe.data.strict,
            skip_file=self.folder.stage(self.stage) / SKIPPED_LINES,
        )

    def _tokens(self, samples: Sequence[Sample], encoding: dict[str, Any]) -> CachedTokens | None:
        if not self.recipe.data.cache_tokens:
            return None
        return cached_tokens(self.cache_folder, samples, Tokeniser.of(self.processor, **encoding))

    def _neighbours(
        self, samples: Sequence[Sample], features: Features, held_out: bool
    ) -> Neighbours | None:
        if self.bank is None:
            return None
        table = self.memory.neighbours(self.bank, samples, features, held_out=held_out)
        self._note_ranking()
        return Neighbours(self.bank, table, self.recipe.memory.k)

    def _note_ranking(self) -> None:
        """The model is to choose its memories as they were chosen for its training samples."""
        ranker, config = self.memory.ranker, self.model.config
        ranking = self.recipe.memory.ranking if ranker is None else ranker.ranking
        config.memory_order = ranking.order
        config.memory_neighbours = ranking.neighbours
        config.memory_temperature = ranking.temperature

    # -- training -----------------------------------------------------------------------------

    def run(self) -> StageResult:
        """Train the stage, save its model, and record that it is finished."""
        train_source: DataSource = getattr(self.recipe.data, self.stage)
        eval_source: DataSource | None = getattr(self.recipe.data, f"{self.stage}_eval")
        streams = train_source.streaming
        dataset: Items = self.stream(train_source) if streams else self.dataset(train_source)
        held_out = self.dataset(eval_source, held_out=True) if eval_source is not None else None
        # Asked before training: a tower that FSDP has shared out could not tell any more.
        logger.info("features: %d x %d an image", *self.features.row_shape)
        report = freeze(self.model, self.args, self.recipe.seed)
        folder = self.folder.stage(self.stage)
        log = MetricsLog(folder / "metrics.jsonl")
        trainer = self._trainer(dataset, held_out, log)
        self._train(trainer, _size(dataset))
        kept_step = trainer.keep_weights()
        kept = trainer.evaluation_at(kept_step)
        result = StageResult(
            stage=self.stage,
            steps=trainer.state.global_step,
            samples=log.samples,
            supervised_tokens=log.supervised_tokens,
            seconds=round(log.seconds, 1),
            trained_parameters=report.trained,
            eval_loss=kept.get("eval_loss"),
            fingerprint=fingerprint(self.recipe, self.stage),
            eval_loss_without_memory=kept.get("eval_loss_without_memory"),
            kept_step=kept_step,
            stopped_early=trainer.early_stopping is not None and trainer.early_stopping.stopped,
        )
        model = whole_model(trainer, self.model)
        if model is not None:
            self._fit_gate(model, dataset)
            self._save(model, dataset, held_out)
            self.folder.finish(result)
        wait_for_all()
        return result

    def _fit_gate(self, model: Any, dataset: Items) -> None:
        """Let answers be copied from neighbours' texts, as far as that helps in training.

        At the end of the last stage: a gate that stage 2 is to outgrow would be fitted for nothing.
        """
        n, data = self.recipe.memory.copy, self.recipe.data
        last = "pretrain" if data.finetune is None else "finetune"
        if not n or self.bank is None or self.stage != last:
            return
        gate = CopyGate.constant(OPENING)
        if isinstance(dataset, TrainingDataset) and dataset.neighbours is not None:
            ranker = Ranker(self.bank, Ranking.of(model.config))
            copier = Copier(self.processor, gate, neighbours=n, shares=ranker.shares)
            model.eval()
            gate = fit_copy_gate(
                model, dataset.item, dataset.indices, copier, self.bank,
                dataset.neighbours.table, self.recipe.seed,
            )  # fmt: skip
        model.config.memory_copy = {
            "neighbours": n, "decay": gate.decay, "weights": list(gate.weights)
        }  # fmt: skip

    def _train(self, trainer: TinyAlignTrainer, size: int) -> None:
        steps = planned_steps(self.args, size)
        checkpoint = self.folder.last_checkpoint(self.stage)
        if checkpoint is not None:
            logger.info("%s: going on from %s", self.stage, checkpoint.name)
            if isinstance(trainer.train_dataset, StreamDataset):
                trainer.train_dataset.load_position(checkpoint)
        if self.device.type == "cpu":
            keep_freed_memory()
        compile_layers(self.model, self.recipe.model.compile, steps)
        set_seed(self.recipe.seed)
        with progress(f"Training, stage {self.stage}", steps) as advance:
            trainer.add_callback(Tell(self.stage, trainer.meter, advance))
            if trainer.eval_dataset is not None:
                trainer.add_callback(EvaluateAt(self.args.eval_fractions, trainer.evaluate))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        undo_compile(self.model)
        disable_packing(self.model)

    def _trainer(
        self,
        dataset: Items,
        held_out: TrainingDataset | None,
        log: MetricsLog,
    ) -> TinyAlignTrainer:
        folder = self.folder.stage(self.stage)
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        packed = self.args.packing and enable_packing(self.model) is not None
        pad_token_id = self.processor.tokenizer.pad_token_id
        collator = PackedCollator(pad_token_id, ROW_MULTIPLE) if packed else Collator(pad_token_id)
        layout: Layout = "packed" if packed else "padded"
        split = None
        if not isinstance(dataset, StreamDataset):
            split = plan_split(self.args, layout, dataset, self.recipe.seed)
        trainer = TinyAlignTrainer(
            self.model,
            training_arguments(self.recipe, self.args, folder / CHECKPOINTS, self.device, split),
            self.args,
            log,
            split=split,
            drop_probability=self.recipe.memory.drop_probability,
            eval_folder=folder,
            meter=self._meter(),
            cross_entropy=self.recipe.model.cross_entropy,
            train_dataset=dataset,
            eval_dataset=held_out,
            data_collator=collator,
        )
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        if self.args.save_fractions:
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
            if sharded or self.args.adapts:
                raise ConfigError(
                    f"{self.stage}.save_fractions: weights that are shared out between processes, "
                    "and adapters, cannot be saved part way; leave it out"
                )
            shares, dtype = self.args.save_fractions, self.recipe.model.dtype
            trainer.add_callback(SaveModelAt(shares, folder, self.processor, dtype))
        add_trackers(trainer, self.recipe, self.stage, folder)
        return trainer

    def _meter(self) -> Meter:
        dtype = self.recipe.model.dtype
        flops = model_flops(self.model, cached=isinstance(self.features, FeatureCache))
        return Meter(self.device, flops, device_peak(self.device, dtype, processes()))

    def _save(self, model: Any, dataset: Items, held_out: TrainingDataset | None) -> None:
        skipped = {**dataset.left_out(), **(held_out.left_out() if held_out is not None else {})}
        folder = self.folder.stage(self.stage)
        (folder / SKIPPED_LINES).unlink(missing_ok=True)
        (folder / "skipped.json").write_text(json.dumps(skipped, indent=2), encoding="utf-8")
        if skipped:
            logger.warning("data: %d samples left out, listed in skipped.json", len(skipped))
        if self.args.adapts:
            save_adapter(model, self.args, self.folder.adapter(self.stage), str(self.start))
            merge_adapters(model)
        cast_trained(model, self.recipe.model.dtype)
        save_model(model, self.processor, self.folder.stage_model(self.stage))


def _size(dataset: Items) -> int:
    """Samples of a pass; a stream, which has no end, takes its number of steps instead."""
    return 0 if isinstance(dataset, StreamDataset) else len(dataset)
