"""What a saved model carries so that transformers can load it without `import tinyalign`.

`auto_map` in config.json and processor_config.json names classes of a small module that lies
beside them. With `trust_remote_code=True` transformers runs that module, and all it does is to
import the installed package: the package is the code, no copy of it travels with the weights.
"""

from __future__ import annotations

from pathlib import Path

MODULE = "tinyalign_auto"
PROCESSOR_MAP = {"AutoProcessor": f"{MODULE}.TinyAlignProcessor"}
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.TinyAlignConfig",
    "AutoModel": f"{MODULE}.TinyAlignModel",
    "AutoModelForImageTextToText": f"{MODULE}.TinyAlignForConditionalGeneration",
    **PROCESSOR_MAP,
}
SOURCE = '''"""Loads this TinyAlign model from the installed package; nothing else happens here."""

try:
    from tinyalign.model.configuration import TinyAlignConfig
    from tinyalign.model.modeling import TinyAlignForConditionalGeneration, TinyAlignModel
    from tinyalign.model.processing import TinyAlignProcessor
except ImportError as error:
    raise ImportError('this model needs its package: pip install "tinyalign-vlm"') from error

__all__ = [
    "TinyAlignConfig",
    "TinyAlignForConditionalGeneration",
    "TinyAlignModel",
    "TinyAlignProcessor",
]
'''


def write_remote_module(folder: str | Path) -> None:
    """Put the module beside a saved config or processor."""
    (Path(folder) / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")


class PackageIsTheCode:
    """Mixin: transformers must not copy the class's own file when a remote model is saved."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing to do: `auto_map` is always written, see above."""
