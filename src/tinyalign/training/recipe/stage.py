"""Settings of one training stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinyalign.errors import ConfigError

Mode = Literal["frozen", "full"]
LanguageMode = Literal["frozen", "full", "lora", "qlora"]


@dataclass
class LoraArgs:
    """Low-rank adapters on the LLM: W + (alpha / r) B A, with W frozen (Hu et al. 2021, eq. 3)."""

    r: int = 16
    """Rank of an adapter."""
    alpha: float = 32.0
    """An adapter's output is multiplied by alpha / r."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped while training."""
    targets: list[str] | None = None
    """Names of the linear layers that get one, such as [q_proj, v_proj]; by default all of the
    LLM's, its head aside."""

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0:
            raise ConfigError(
                f"lora needs r of at least 1 and a positive alpha, found {self.r} and {self.alpha}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"lora.dropout must be 0 to below 1, found {self.dropout}")
        if self.targets is not None and not self.targets:
            raise ConfigError("lora.targets is empty; name layers, or leave it out for all")


@dataclass
class StageArgs:
    """One stage: what is trained, on how much, how fast."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    connector_learning_rate: float | None = None
    """Of the connectors, where it differs."""
    vision_learning_rate: float | None = None
    """Of the vision tower, where it differs."""
    batch_size: int = 256
    """Samples a step, over all devices and accumulated micro-batches."""
    micro_batch_size: int | None = None
    """Samples a device computes at once; by default the whole batch."""
    packing: bool = True
    """Lay the samples of a micro-batch in one row without padding, none of which sees another."""
    micro_tokens: int | None = None
    """Most tokens a device computes at once; takes the place of micro_batch_size."""
    rehearse: bool = True
    """Run the largest micro-batch first, so that memory trouble shows at once."""
    epochs: float = 1.0
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after so many steps; the schedule ends there too."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after that."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this norm."""
    connectors: Mode = "full"
    """Image connector and memory connector."""
    template: str | None = None
    """Chat template of this stage alone, such as "plain"; by default the model's."""
    language: LanguageMode = "frozen"
    """The LLM. "full": all of it, with float32 master weights. "lora": low-rank adapters on it,
    merged at the end. "qlora": the same over weights kept in 4 bits (extra `qlora`)."""
    lora: LoraArgs = field(default_factory=LoraArgs)
    """The adapters, where language is lora or qlora."""
    vision: Mode = "frozen"
    """The vision tower."""
    gradient_checkpointing: bool = False
    """Compute the LLM's activations twice instead of keeping them."""
    eval_fractions: list[float] = field(default_factory=lambda: [1.0])
    """When to measure the held-out loss: shares of the stage's steps; 0 is before the first."""
    eval_batch_size: int | None = None
    """Samples at once there; by default the micro-batch."""
    eval_without_memory: bool = False
    """Measure the held-out loss a second time with no memory tokens in the sequence, as the model
    runs when no bank is attached."""
    early_stopping: int | None = None
    """Stop after so many evaluations in a row without a better held-out loss; the best weights
    are the ones that are saved."""
    early_stopping_min_delta: float = 0.0
    """A loss is better if it is lower by more than this, nats a token."""
    ema_decay: float | None = None
    """Average the trained weights over the steps with this decay, such as 0.999; the averages
    are evaluated and saved."""
    checkpoint_steps: int | None = 500
    """Save a checkpoint to resume from every so many steps; none where it is null."""
    keep_checkpoints: int = 1
    """So many of the last checkpoints are kept while training."""
    save_fractions: list[float] = field(default_factory=list)
    """When to save the model as it then is, in model-STEP: shares of the stage's steps."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "connector_learning_rate", "vision_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise ConfigError(f"{name} must lie between 0 and 1, found {value}")
        for name in (
            "batch_size",
            "micro_batch_size",
            "micro_tokens",
            "eval_batch_size",
            "max_steps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        for name in ("checkpoint_steps", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1 (or null), found {value}")
        if self.epochs <= 0:
            raise ConfigError(f"epochs must be positive, found {self.epochs}")
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError(f"warmup is a share of the steps, 0 to below 1; found {self.warmup}")
        for name in ("eval_fractions", "save_fractions"):
            shares = getattr(self, name)
            if any(not 0.0 <= share <= 1.0 for share in shares):
                raise ConfigError(f"{name} are shares of the steps, 0 to 1; found {shares}")
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ConfigError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}; choose a divisor of it"
            )
        self._check_watching()
        if self.connectors == self.language == self.vision == "frozen":
            raise ConfigError(
                "connectors, language and vision are all frozen; there is nothing to train"
            )

    def _check_watching(self) -> None:
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay must lie between 0 and 1, found {self.ema_decay}")
        if self.early_stopping_min_delta < 0:
            raise ConfigError(
                f"early_stopping_min_delta must be 0 or more, found {self.early_stopping_min_delta}"
            )
        if self.early_stopping is None:
            return
        if self.early_stopping < 1:
            raise ConfigError(f"early_stopping must be at least 1, found {self.early_stopping}")
        if len(set(self.eval_fractions)) <= self.early_stopping:
            raise ConfigError(
                f"early_stopping {self.early_stopping} never stops a stage that is evaluated at "
                f"{len(set(self.eval_fractions))} points; name more of them in eval_fractions"
            )

    @property
    def adapts(self) -> bool:
        """Whether the LLM is trained through adapters."""
        return self.language in ("lora", "qlora")

    @classmethod
    def pretraining(cls) -> StageArgs:
        """Stage 1 of the paper: connectors alone, global batch 256, learning rate 1e-3."""
        return cls()

    @classmethod
    def finetuning(cls) -> StageArgs:
        """Stage 2 of the paper: connectors and LLM, global batch 128, learning rate 2e-5."""
        return cls(learning_rate=2e-5, batch_size=128, language="full")

    def accumulation(self, world_size: int) -> tuple[int, int]:
        """(micro-batch of one device, micro-batches a step); raises ConfigError if uneven."""
        if self.batch_size % world_size:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared evenly by {world_size} processes"
            )
        own = self.batch_size // world_size
        micro = min(self.micro_batch_size or own, own)
        if own % micro:
            raise ConfigError(
                f"batch_size {self.batch_size} on {world_size} processes is {own} each, no "
                f"multiple of micro_batch_size {micro}; choose a divisor of {own}"
            )
        return micro, own // micro


def evaluation_steps(fractions: list[float], steps: int) -> set[int]:
    """The steps at which shares of a stage of `steps` steps are reached; 0 is before the first."""
    return {max(1, round(share * steps)) if share else 0 for share in fractions}
