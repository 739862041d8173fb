"""The words that settings are made of: one list a notion, for recipes, command line and Python.

Names that another package may add to (fusion forms, key functions, readers, benchmarks, chat
templates) are in registries instead (`tinyalign.registry`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

TrainingControl = Literal[
    "none", "soft_prompt", "random", "shuffled", "another_sample", "untrained_perceiver"
]
"""What stands in the memories' place in training. "none": nothing, memory as it is.
"soft_prompt": learned values. "random": memories drawn at random. "shuffled": each memory with
another entry's value. "another_sample": the memories that were found for another sample.
"untrained_perceiver": values of a Perceiver with its first random weights."""
EvaluationControl = Literal["none", "random", "shuffled"]
"""The same words for a model that is judged; a trained one has no other soft prompt or Perceiver.
"""
Control = TrainingControl
"""Every control there is; `EvaluationControl` has some of them."""

OLD_CONTROLS: dict[str, str] = {
    "random_neighbours": "random",
    "shuffled_values": "another_sample",
    "on": "none",
}
"""What controls were called before, and what each is called now."""

KeyKind: TypeAlias = str
"""A key function by its name in the registry, `memory.keys.registry.KEY_FUNCTIONS`."""
MemoryOrder = Literal["similarity", "consensus"]
"""Which of a query's neighbours are its memories: the nearest, or those that speak for the others.
"""
DataFormat: TypeAlias = str
"""A format by its name in the registry, `data.formats.READERS`, or "auto"."""
CacheChoice = Literal["auto", "features", "pixels", "none"]
"""Which images' work is kept between steps and runs; see `data.cache`."""
CaptionChoice = Literal["first", "all", "random"]
"""Of several captions of an image: the first, each of them, or one drawn with the seed."""
CrossEntropy = Literal["full", "chunked", "liger"]
"""How the LLM's head and the loss are computed."""
Engine = Literal["auto", "exact", "ivf"]
"""How a bank's keys are searched."""
RECALL = 0.95
"""Share of the true nearest that an approximate search must find, unless told otherwise."""
KeysDtype = Literal["float16", "float32"]
"""How a bank stores keys."""
ValuesDtype = Literal["int8", "float16"]
"""How a bank stores values: 8 bits with a scale a latent, or 16."""
Stage = Literal["pretrain", "finetune"]
"""The two stages of a run."""
NEAR_DUPLICATE = 0.98
"""Two keys as similar as this are near-duplicates, unless told otherwise."""
