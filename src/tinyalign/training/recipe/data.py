"""Settings of a recipe's data: what is learned from, and how it is read and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinyalign.data.formats import check_format
from tinyalign.errors import ConfigError
from tinyalign.vocabulary import CacheChoice, CaptionChoice, DataFormat

RECIPE_ONLY = {"recipe_only": True}
"""The mark of a field that recipes have, and options of single verbs have not."""


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
    captions: CaptionChoice = "first"
    """Which captions of an image are answers."""

    def __post_init__(self) -> None:
        check_format(self.format)
        if self.weight <= 0:
            raise ConfigError(f"{self.path}: its weight must be above 0, found {self.weight}")


@dataclass
class DataSource:
    """One data set, as `tinyalign.data.readers.open_dataset` takes it."""

    path: str | list[str] = ""
    """A file, folder or glob, the URL of a shard or a list of shards, or the name "easy_vqa"."""
    format: DataFormat = "auto"
    """How to read it: llava, parquet, csv, webdataset, easy_vqa, or a format that another package
    registers; "auto" looks at suffix and content."""
    image_folder: str | None = None
    """Where relative image paths start; by default beside the data file."""
    split: str = "train"
    """The split, where a data set has several."""
    prompt: str | None = None
    """The user's text for captions; none by default (plain captions)."""
    captions: CaptionChoice = "first"
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
        check_format(self.format)
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
    cache: CacheChoice = "auto"
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
