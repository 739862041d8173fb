"""Settings of a recipe's memory, in groups: fusion, key, bank and Perceiver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

from tinyalign.errors import ConfigError
from tinyalign.lazy import renamed
from tinyalign.memory.keys.registry import KEY_FUNCTIONS
from tinyalign.memory.search.ranking import TEMPERATURE, Ranking
from tinyalign.model.forms import FUSIONS
from tinyalign.training.recipe.data import DataSource
from tinyalign.training.recipe.old_names import FLAT_MEMORY, takes_old_names
from tinyalign.vocabulary import (
    OLD_CONTROLS,
    CaptionChoice,
    KeyKind,
    KeysDtype,
    MemoryOrder,
    TrainingControl,
    ValuesDtype,
)


@dataclass
class PerceiverTraining:
    """How the Perceiver is trained: self-supervised on the pairs, with no LLM in sight."""

    epochs: float = 1.0
    """Passes over the texts."""
    min_steps: int = 400
    """At least so many steps; a small corpus is passed over several times."""
    max_steps: int | None = None
    """At most so many steps."""
    batch_size: int = 64
    """Pairs a step."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 0.01
    """AdamW's, on all weights."""
    vocab_size: int = 4096
    """Size of the byte-level BPE that is trained on the corpus first."""
    input_mode: Literal["features", "pixels"] = "features"
    """What the Perceiver sees of an image: frozen features, or pixels as in the release."""
    max_text_tokens: int = 256
    """Longer texts are cut off; texts beyond 24 tokens are summarised span by span."""
    image_weight: float = 0.2
    """Weight of the image reconstruction beside the text's cross-entropy."""
    random_texts: float = 0.0
    """Share of the texts of a step that are replaced by random words, so that rare words can be
    read back too, wherever they stand."""
    silence: bool = False
    """Teach latents beyond the end of a text to say nothing; else what they say is left open."""
    held_out: float = 0.05
    """Share of the images (with all their texts) kept for the report."""
    held_out_limit: int = 500
    """At most so many held-out images."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.min_steps < 0 or self.batch_size < 1:
            raise ConfigError(
                "memory.perceiver needs epochs > 0, min_steps >= 0 and batch_size >= 1, found "
                f"{self.epochs}, {self.min_steps} and {self.batch_size}"
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(
                f"memory.perceiver.max_steps must be positive, found {self.max_steps}"
            )
        if not 0.0 <= self.random_texts <= 1.0:
            raise ConfigError(
                "memory.perceiver.random_texts is a share between 0 and 1, found "
                f"{self.random_texts}"
            )
        if not 0.0 < self.held_out < 1.0:
            raise ConfigError(
                f"memory.perceiver.held_out is a share between 0 and 1, found {self.held_out}; "
                "without held-out pairs the report would say nothing"
            )


@dataclass
class PerceiverArgs(PerceiverTraining):
    """The Perceiver that makes values: one that is there, or how one is trained."""

    path: str | None = None
    """Folder of a Perceiver trained before; by default it is trained, or found in the cache. With
    a path, none of the settings of its training does anything."""

    @property
    def training(self) -> PerceiverTraining:
        """The settings of its training alone."""
        return PerceiverTraining(
            **{f.name: getattr(self, f.name) for f in fields(PerceiverTraining)}
        )


@dataclass
class FusionArgs:
    """How k memories become tokens for the LLM."""

    form: str = "width"
    """Fusion form: "width" (the paper's: latents of all memories side by side, 32 tokens),
    "sequence" (the first latents of each memory, one memory after the other), or one that another
    package registers."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that form, as {name: value}. sequence: prompt_tokens, prompt_hidden_size,
    prompt_last, nearest_last. width: none."""
    latents_used: int = 32
    """Latents taken of each memory by the form "sequence", the first ones."""
    hidden_size: int | None = None
    """Hidden width of the memory connector; by default the LLM's width."""
    linear_skip: bool = False
    """Add a linear map beside the memory connector's MLP."""
    closed_form: bool = True
    """Start the linear skip at the ridge regression from latents to the LLM's embeddings."""
    word_skip: bool = False
    """Add what the Perceiver reads back from each text latent, in the LLM's own embeddings; never
    trained, so that words which no training sample had can be read. It wants a Perceiver that
    reads well: `memory.perceiver.random_texts` and `memory.perceiver.silence`."""

    def __post_init__(self) -> None:
        FUSIONS.check(self.form)


@dataclass
class KeyArgs:
    """What an entry is found by."""

    kind: KeyKind = "pooled"
    """Key function. "pooled": mean image features beside the instruction's words. "attention": the
    paper's. "aligned": entries by their text, queries by what their image should say. "joint":
    aligned, and image with image beside it. Or one that another package registers."""
    alpha: float = 0.4
    """The image's share of a pooled, attention or joint key; without an instruction a pooled or
    attention key is the image's alone."""

    def __post_init__(self) -> None:
        KEY_FUNCTIONS.check(self.kind)
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"memory.key.alpha must lie between 0 and 1, found {self.alpha}")


@dataclass
class BankArgs:
    """The memory bank: one that is there, or what one is made of and how it is kept."""

    path: str | None = None
    """A bank built before; by default it is built, or found in the cache. With a path, none of the
    other settings of the bank, its key and its Perceiver does anything."""
    data: DataSource | None = None
    """Pairs to remember; by default those of stage 1."""
    captions: CaptionChoice | None = None
    """Captions of an image to remember, where they are not those of stage 1: "all" makes an entry
    of each."""
    entries: int | None = 100_000
    """At most so many entries, drawn with `memory.seed`; all where it is none."""
    keys_dtype: KeysDtype = "float16"
    """Precision of keys in the bank."""
    values_dtype: ValuesDtype = "int8"
    """Precision of values in the bank: 8 bits with a scale a latent, or 16."""

    def __post_init__(self) -> None:
        if self.entries is not None and self.entries < 1:
            raise ConfigError(f"memory.bank.entries must be positive, found {self.entries}")


GROUPS: dict[str, tuple[str, type]] = {
    "fusion": ("form", FusionArgs),
    "key": ("kind", KeyArgs),
    "bank": ("path", BankArgs),
}
"""Groups that were one setting once: the name that it has in the group, and the group's class."""


@takes_old_names(FLAT_MEMORY, GROUPS)
@dataclass
class MemoryArgs:
    """The memory: how many neighbours, in which form, and the controls."""

    k: int = 5
    """Memories a query; 0 is the baseline without memory."""
    neighbours: int = 10
    """Neighbours that are searched and kept for each sample; k of them are its memories."""
    order: MemoryOrder = "similarity"
    """Which k: with "similarity" the nearest, with "consensus" those whose texts speak best for all
    `neighbours`, which wants many of them."""
    temperature: float | None = None
    """With order consensus a neighbour weighs exp(temperature x similarity). By default it is
    chosen, and how many of the neighbours are listened to, on samples of the training data, each
    without its own entries and fold."""
    copy: int = 0
    """Neighbours whose texts answers can be copied from, word by word; 0 copies nothing. How much
    is copied is fitted at the end of a stage, on its training samples."""
    control: TrainingControl = "none"
    """"soft_prompt": learned values in place of retrieved ones. "random": memories drawn at random.
    "shuffled": each memory with another entry's value. "another_sample": the memories of another
    sample. "untrained_perceiver": values from a Perceiver with its first random weights."""
    drop_probability: float = 0.0
    """Chance that a training sample sees no memory at all."""
    seed: int = 0
    """Of the draw of entries and their captions, the Perceiver's training and the controls; apart
    from the run's seed, so that runs share a bank."""
    fusion: FusionArgs = field(default_factory=FusionArgs)
    """How memories become tokens."""
    key: KeyArgs = field(default_factory=KeyArgs)
    """What an entry is found by."""
    bank: BankArgs = field(default_factory=BankArgs)
    """The entries."""
    perceiver: PerceiverArgs = field(default_factory=PerceiverArgs)
    """What makes values of pairs."""

    def __post_init__(self) -> None:
        if self.control in OLD_CONTROLS:
            now = OLD_CONTROLS[self.control]
            said = renamed(f"memory.control {self.control}", now)
            warnings.warn(said, DeprecationWarning, stacklevel=4)
            self.control = cast(TrainingControl, now)
        if self.control not in get_args(TrainingControl):
            raise ConfigError(
                f"memory.control: expected one of {', '.join(get_args(TrainingControl))}, found "
                f"{self.control!r}"
            )
        if self.k < 0:
            raise ConfigError(f"memory.k must be 0 (no memory) or more, found {self.k}")
        if not 0.0 <= self.drop_probability < 1.0:
            raise ConfigError(
                "memory.drop_probability must be at least 0 and below 1, found "
                f"{self.drop_probability}; for no memory at all set memory.k to 0"
            )
        if self.order not in get_args(MemoryOrder):
            raise ConfigError(
                f"memory.order: expected one of {', '.join(get_args(MemoryOrder))}, found "
                f"{self.order!r}"
            )
        if self.copy < 0:
            raise ConfigError(f"memory.copy must be 0 (copy nothing) or more, found {self.copy}")
        if self.temperature is not None and self.temperature < 0.0:
            raise ConfigError(f"memory.temperature must be 0 or more, found {self.temperature}")
        if self.neighbours < 1:
            raise ConfigError(f"memory.neighbours must be positive, found {self.neighbours}")
        if self.bank.path is not None and self.control == "untrained_perceiver":
            raise ConfigError(
                "memory.control untrained_perceiver builds a bank of its own; leave out "
                "memory.bank.path"
            )

    @property
    def ranking(self) -> Ranking:
        """Which neighbours are memories, as far as the recipe says it."""
        temperature = TEMPERATURE if self.temperature is None else self.temperature
        return Ranking(self.order, max(self.neighbours, self.k, self.copy), temperature)

    @property
    def reads_bank(self) -> bool:
        """Whether memories come from a bank: not for the baseline, nor for a soft prompt."""
        return self.k > 0 and self.control != "soft_prompt"
