"""TinyAlign: small vision-language models with a memory of their own training pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinyalign.imports import install as _install
from tinyalign.lazy import exports
from tinyalign.version import __version__ as __version__

if TYPE_CHECKING:
    from tinyalign.data.formats import register_reader
    from tinyalign.data.readers import open_dataset
    from tinyalign.data.templates import register_template
    from tinyalign.errors import TinyAlignError
    from tinyalign.evaluation.benchmarks.registry import register_benchmark
    from tinyalign.memory.attach import attach_memory
    from tinyalign.memory.bank.bank import MemoryBank
    from tinyalign.memory.keys.registry import register_key_function
    from tinyalign.model.configuration import TinyAlignConfig
    from tinyalign.model.forms import register_fusion, register_image_connector
    from tinyalign.model.modeling import TinyAlignForConditionalGeneration
    from tinyalign.model.processing import TinyAlignProcessor

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "MemoryBank": "tinyalign.memory.bank.bank",
        "TinyAlignConfig": "tinyalign.model.configuration",
        "TinyAlignError": "tinyalign.errors",
        "TinyAlignForConditionalGeneration": "tinyalign.model.modeling",
        "TinyAlignProcessor": "tinyalign.model.processing",
        "attach_memory": "tinyalign.memory.attach",
        "open_dataset": "tinyalign.data.readers",
        "register_benchmark": "tinyalign.evaluation.benchmarks.registry",
        "register_fusion": "tinyalign.model.forms",
        "register_image_connector": "tinyalign.model.forms",
        "register_key_function": "tinyalign.memory.keys.registry",
        "register_reader": "tinyalign.data.formats",
        "register_template": "tinyalign.data.templates",
    },
)

_install()
