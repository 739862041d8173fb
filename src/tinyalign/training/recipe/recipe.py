"""A recipe: everything that decides a run, as typed dataclasses that check themselves.

The shipped ones are `recipes/*.yaml`; a recipe file holds only what differs from the defaults.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tinyalign.errors import ConfigError
from tinyalign.training.recipe.data import DataArgs, DataSource
from tinyalign.training.recipe.memory import MemoryArgs
from tinyalign.training.recipe.model import ModelArgs
from tinyalign.training.recipe.stage import StageArgs

Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass
class Recipe:
    """A run: model, data, memory, two stages, a seed and a folder."""

    data: DataArgs
    """What is learned from."""
    model: ModelArgs = field(default_factory=ModelArgs)
    """The parts."""
    memory: MemoryArgs = field(default_factory=MemoryArgs)
    """The memory."""
    pretrain: StageArgs = field(default_factory=lambda: StageArgs.pretraining())
    """Stage 1: the connectors."""
    finetune: StageArgs = field(default_factory=lambda: StageArgs.finetuning())
    """Stage 2: connectors and LLM."""
    start_from: str | None = None
    """A run folder or model to start stage 2 from; by default stage 1 of the same run folder."""
    seed: int = 0
    """Of the connectors' first weights, the order of samples, captions and drop-out."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    output: str = "runs/tinyalign"
    """Run folder."""
    track: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """Where curves go besides metrics.jsonl: "tensorboard", "wandb", "trackio"."""

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output is empty; name a folder for the run")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, found {self.seed}")
        self._check_streams()
        for name in ("pretrain", "finetune"):
            stage: StageArgs = getattr(self, name)
            if stage.vision == "full" and self.data.cache == "features":
                raise ConfigError(
                    f"{name}.vision is full, so its features change at every step and cannot be "
                    "cached; set data.cache to pixels or none"
                )
            self._check_held_out(name, stage)
        if self.pretrain.adapts:
            raise ConfigError(
                f"pretrain.language {self.pretrain.language}: adapters belong to a model that "
                "stage 1 has saved; use them in finetune"
            )
        if any(s.vision == "full" for s in (self.pretrain, self.finetune)) and (
            self.memory.reads_bank
        ):
            raise ConfigError(
                "a vision tower that is trained leaves the memory bank's keys behind; train it "
                "only with memory.k 0 or memory.control soft_prompt"
            )

    def _check_streams(self) -> None:
        for name in ("pretrain", "finetune"):
            source: DataSource | None = getattr(self.data, name)
            if source is not None and source.streaming:
                self._check_stage_of_stream(name, getattr(self, name))
            held_out: DataSource | None = getattr(self.data, f"{name}_eval")
            if held_out is not None and held_out.streaming:
                raise ConfigError(
                    f"data.{name}_eval is read at every evaluation, so it cannot be a stream; "
                    "leave out its streaming"
                )
        pairs = self.memory.bank.data or self.data.pretrain
        if self.memory.reads_bank and self.memory.bank.path is None and pairs.mixture is not None:
            raise ConfigError(
                "a bank is not made from a mixture; name one in memory.bank.path, or its pairs "
                "in memory.bank.data"
            )

    @staticmethod
    def _check_stage_of_stream(name: str, stage: StageArgs) -> None:
        if stage.max_steps is None:
            raise ConfigError(f"data.{name} is a stream, which has no end; set {name}.max_steps")
        if stage.micro_tokens is not None:
            raise ConfigError(
                f"{name}.micro_tokens {stage.micro_tokens} needs the lengths of all samples before "
                f"training, and data.{name} is a stream, whose lengths nobody knows; set "
                f"{name}.micro_batch_size instead, or leave out data.{name}.streaming"
            )

    def _check_held_out(self, name: str, stage: StageArgs) -> None:
        trained, held_out = getattr(self.data, name), getattr(self.data, f"{name}_eval")
        for setting in ("early_stopping", "eval_without_memory"):
            if getattr(stage, setting) and trained is not None and held_out is None:
                raise ConfigError(
                    f"{name}.{setting} needs held-out samples; name them in data.{name}_eval"
                )

    def as_dict(self) -> dict[str, Any]:
        """Everything, resolved, as plain values."""
        return asdict(self)

    def with_k(self, k: int) -> Recipe:
        """The same recipe with k memories; `with_k(0)` is its baseline."""
        return replace(self, memory=replace(self.memory, k=k))
