"""A recipe: everything that decides a run, as typed dataclasses that check themselves.

The shipped ones are `recipes/*.yaml`; a recipe file holds only what differs from the defaults.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tinyalign.errors import ConfigError
from tinyalign.memory.bank.coding import KeysDtype, ValuesDtype
from tinyalign.model.head_loss import CrossEntropy
from tinyalign.training.recipe.stage import StageArgs

RECIPE_ONLY = {"recipe_only": True}
"""The mark of a field that recipes have, and options of single verbs have not."""

KeyKind = Literal["pooled", "attention", "aligned"]
Control = Literal[
    "none", "soft_prompt", "random_neighbours", "shuffled_values", "untrained_perceiver"
]

Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass
class ModelArgs:
    """Which parts the model is made of."""

    vision: str = "efficientnet-lite2"
    """Vision tower: a hub id, a folder, or a packaged name such as "efficientnet-lite2"."""
    language: str = "smollm2-135m"
    """Language model: a hub id, a folder, a .gguf file, or the packaged "smollm2-135m"."""
    template: str | None = None
    """Chat template by name; by default the tokenizer's own, or one that renders the same."""
    connector: str = "mlp2x_gelu"
    """Form of the image connector."""
    connector_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of the connector, such as the number of queries of a resampler."""
    vision_feature_layer: int | list[int] = -1
    """Layer of the tower that features are read from; -1 is its last output."""
    vision_feature_select: Literal["patch", "full"] = "patch"
    """"patch" drops class token and registers; "full" keeps them."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of what is frozen, and of the arithmetic of an LLM that is trained. "float16",
    with loss scaling, is for GPUs without bfloat16."""
    attn_implementation: str = "auto"
    """Attention of the LLM. "auto" is "eager" on a CPU, where it trains a third faster in
    bfloat16 than the library's default, and the library's default elsewhere. Others are "sdpa",
    "flex_attention" and "flash_attention_2" (GPU, package flash-attn)."""
    cross_entropy: CrossEntropy = "full"
    """How the LLM's head and the loss are computed. "chunked" goes through the supervised tokens
    part by part and never holds all their logits; "liger" does so in one GPU kernel."""
    compile: Literal["off", "on", "auto"] = "off"
    """Compile each layer of the LLM, and the loss: 1.5 x faster on a CPU after 20 to 30 s. "auto"
    does so when a stage has 150 steps or more and the machine has the compiler that it takes."""

    def __post_init__(self) -> None:
        for name in ("vision", "language"):
            if not getattr(self, name):
                raise ConfigError(f"model.{name} is empty; name a hub id, a folder or a package")


DataFormat = Literal["auto", "llava", "parquet", "csv", "webdataset", "easy_vqa"]


@dataclass
class MixturePart:
    """One data set of a mixture; its fields mean what those of `DataSource` do."""

    path: str | list[str]
    """A file, folder, glob, URL, or a list of shards."""
    weight: float = 1.0
    """Its share of the samples, beside the weights of the others."""
    format: DataFormat = "auto"
    """How to read it."""
    image_folder: str | None = None
    """Where relative image paths start."""
    split: str = "train"
    """The split, where a data set has several."""
    prompt: str | None = None
    """The user's text for captions."""
    captions: Literal["first", "all", "random"] = "first"
    """Which captions of an image are answers."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ConfigError(f"{self.path}: its weight must be above 0, found {self.weight}")


@dataclass
class DataSource:
    """One data set, as `tinyalign.data.readers.open_dataset` takes it."""

    path: str | list[str] = ""
    """A file, folder or glob, the URL of a shard or a list of shards, or the name "easy_vqa"."""
    format: DataFormat = "auto"
    """How to read it; "auto" looks at suffix and content."""
    image_folder: str | None = None
    """Where relative image paths start; by default beside the data file."""
    split: str = "train"
    """The split, where a data set has several."""
    prompt: str | None = None
    """The user's text for captions; none by default (plain captions)."""
    captions: Literal["first", "all", "random"] = "first"
    """Of several captions of an image: the first, each of them, or one drawn with the seed."""
    limit: int | None = None
    """Use only the first so many samples."""
    streaming: bool = field(default=False, metadata=RECIPE_ONLY)
    """Read shards as training goes on, without an index of all samples: for data sets that are too
    large, or far away. It takes a number of steps, and data.workers above 0 read ahead."""
    shuffle_buffer: int = field(default=1000, metadata=RECIPE_ONLY)
    """Samples of a stream that are shuffled at a time; 0 keeps their order."""
    mixture: list[MixturePart] | None = field(default=None, metadata=RECIPE_ONLY)
    """Several data sets in place of `path`, each with its weight; for streams."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"a data source's limit must be at least 1, found {self.limit}")
        if self.shuffle_buffer < 0:
            raise ConfigError(f"shuffle_buffer must be 0 or more, found {self.shuffle_buffer}")
        if self.streaming and self.limit is not None:
            raise ConfigError("a stream has no limit of samples; limit the steps with max_steps")
        if self.mixture is not None and (self.path or not self.streaming or not self.mixture):
            raise ConfigError(
                "a mixture lists its data sets in place of path, and needs streaming: true"
            )

    @property
    def parts(self) -> list[DataSource]:
        """The data sets that it mixes; of a source that is no mixture, itself."""
        return [
            DataSource(**{name: value for name, value in vars(part).items() if name != "weight"})
            for part in self.mixture or ()
        ] or [self]


@dataclass
class DataArgs:
    """What each stage learns from, and what it is watched on."""

    pretrain: DataSource
    """Pairs of stage 1. By default the memory bank and the Perceiver are made from these too."""
    finetune: DataSource | None = None
    """Conversations of stage 2; a recipe without them has stage 1 only."""
    pretrain_eval: DataSource | None = None
    """Held-out samples for the loss during stage 1."""
    finetune_eval: DataSource | None = None
    """Held-out samples for the loss during stage 2."""
    max_length: int = 2048
    """Tokens a sample may have; text is cut at the end, placeholders never."""
    cache: Literal["auto", "features", "pixels", "none"] = "auto"
    """"features" computes frozen vision features once and keeps them; "pixels" keeps decoded and
    resized images and runs the tower at every step; "none" keeps nothing. "auto" takes what an
    estimate of bytes and seconds says, which is printed."""
    cache_tokens: bool = True
    """Tokenise a data set once and keep its ids and labels."""
    cache_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of cached features."""
    cache_folder: str | None = None
    """Where caches, Perceivers, banks and neighbour tables are kept and shared between runs; by
    default $TINYALIGN_CACHE, or ~/.cache/tinyalign."""
    workers: int = 0
    """Processes that load data beside the training process."""
    strict: bool = False
    """Stop at the first unusable sample instead of skipping and listing it."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ConfigError(f"data.max_length must be positive, found {self.max_length}")
        if self.workers < 0:
            raise ConfigError(f"data.workers must be 0 or more, found {self.workers}")


@dataclass
class CompressArgs:
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
                "memory.compress needs epochs > 0, min_steps >= 0 and batch_size >= 1, found "
                f"{self.epochs}, {self.min_steps} and {self.batch_size}"
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"memory.compress.max_steps must be positive, found {self.max_steps}")
        if not 0.0 <= self.random_texts <= 1.0:
            raise ConfigError(
                "memory.compress.random_texts is a share between 0 and 1, found "
                f"{self.random_texts}"
            )
        if not 0.0 < self.held_out < 1.0:
            raise ConfigError(
                f"memory.compress.held_out is a share between 0 and 1, found {self.held_out}; "
                "without held-out pairs the report would say nothing"
            )


@dataclass
class MemoryArgs:
    """The memory: how many neighbours, in which form, and the controls."""

    k: int = 5
    """Memories a query; 0 is the baseline without memory."""
    fusion: str = "width"
    """How k memories become tokens: "width" (the paper's) or "sequence"."""
    fusion_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of the fusion form."""
    latents_used: int = 32
    """Latents taken of each memory by sequence fusion, the first ones."""
    hidden_size: int | None = None
    """Hidden width of the RAG connector; by default the LLM's width."""
    linear_skip: bool = False
    """Add a linear map beside the RAG connector's MLP."""
    closed_form: bool = True
    """Start the linear skip at the ridge regression from latents to the LLM's embeddings."""
    word_skip: bool = False
    """Add what the Perceiver reads back from each text latent, in the LLM's own embeddings; never
    trained, so that words which no training sample had can be read. It wants a Perceiver that
    reads well: `compress.random_texts` and `compress.silence`."""
    control: Control = "none"
    """"soft_prompt": learned values in place of retrieved ones. "random_neighbours" and
    "shuffled_values": real memories of nobody, or of another sample. "untrained_perceiver":
    values from a Perceiver with its first random weights."""
    drop_probability: float = 0.0
    """Chance that a training sample sees no memory at all."""
    data: DataSource | None = None
    """Pairs to remember; by default those of stage 1."""
    captions: Literal["first", "all", "random"] | None = None
    """Captions of an image to remember, where they are not those of stage 1: "all" makes an entry
    of each."""
    entries: int | None = 100_000
    """At most so many entries, drawn with `seed`; all where it is none."""
    seed: int = 0
    """Of the draw of entries and their captions, the Perceiver's training and the controls; apart
    from the run's seed, so that runs share a bank."""
    key: KeyKind = "pooled"
    """Key function. "pooled": mean image features beside the instruction's words. "attention": the
    paper's. "aligned": entries by their text, queries by what their image should say."""
    alpha: float = 0.4
    """The image's share of a key; without an instruction a key is the image's alone."""
    neighbours: int = 10
    """Neighbours kept in the table; k of them are used."""
    keys_dtype: KeysDtype = "float16"
    """Precision of keys in the bank."""
    values_dtype: ValuesDtype = "int8"
    """Precision of values in the bank: 8 bits with a scale a latent, or 16."""
    bank: str | None = None
    """A bank built before; by default it is built, or found in the cache."""
    compressor: str | None = None
    """A Perceiver trained before; by default it is trained, or found in the cache."""
    compress: CompressArgs = field(default_factory=CompressArgs)
    """How the Perceiver is trained."""

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ConfigError(f"memory.k must be 0 (no memory) or more, found {self.k}")
        if not 0.0 <= self.drop_probability < 1.0:
            raise ConfigError(
                "memory.drop_probability must be at least 0 and below 1, found "
                f"{self.drop_probability}; for no memory at all set memory.k to 0"
            )
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"memory.alpha must lie between 0 and 1, found {self.alpha}")
        if self.entries is not None and self.entries < 1:
            raise ConfigError(f"memory.entries must be positive, found {self.entries}")
        if self.neighbours < 1:
            raise ConfigError(f"memory.neighbours must be positive, found {self.neighbours}")
        if self.bank is not None and self.control == "untrained_perceiver":
            raise ConfigError(
                "memory.control untrained_perceiver builds a bank of its own; leave out memory.bank"
            )

    @property
    def reads_bank(self) -> bool:
        """Whether memories come from a bank: not for the baseline, nor for a soft prompt."""
        return self.k > 0 and self.control != "soft_prompt"


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
        pairs = self.memory.data or self.data.pretrain
        if self.memory.reads_bank and self.memory.bank is None and pairs.mixture is not None:
            raise ConfigError(
                "a bank is not made from a mixture; name one in memory.bank, or its pairs in "
                "memory.data"
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
