"""Protocols: how a benchmark is asked, by name and version, so that two numbers can be compared.

A protocol decides the prompt, the decoding and what the model is shown. It does not decide the
scoring: that is the benchmark's own rule under every protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."

LLAVA = "llava-1.5"
LMMS_EVAL = "lmms-eval"
PLAIN = "plain"


@dataclass(frozen=True)
class Protocol:
    """Everything about the asking that moves a score; written in every results file."""

    name: str
    version: str
    """Changes when anything below changes for any benchmark."""
    prefix: str = ""
    """What stands before the question."""
    suffix: str = ""
    """What stands behind the question."""
    open_suffix: str = ""
    """What stands behind a question without options, where a benchmark has both kinds."""
    ocr: bool | None = None
    """Whether OCR tokens are in the prompt; None where a benchmark has none."""
    max_new_tokens: int = 128
    decoding: str = "greedy"
    """Greedy, without beams: the only decoding there is."""
    image: str = "the model's own image processor, no cropping or padding beside it"
    """What happens to pixels before the model's own processing."""
    images: str = "one"
    """How many images of a question are shown: TinyAlign models read one."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def llava(suffix: str = SHORT, **settings: Any) -> Protocol:
    """The protocol of LLaVA-1.5 (Liu et al., 2024) with a benchmark's own suffix."""
    return Protocol(LLAVA, "1", suffix=suffix, **settings)


def lmms_eval(suffix: str = SHORT, **settings: Any) -> Protocol:
    """The prompts of lmms-eval 0.7 with a benchmark's own suffix."""
    return Protocol(LMMS_EVAL, "0.7", suffix=suffix, **settings)


def plain(**settings: Any) -> Protocol:
    """The bare question: for models that were trained on bare questions."""
    return Protocol(PLAIN, "1", **settings)


def by_name(*protocols: Protocol) -> Mapping[str, Protocol]:
    """Protocols under their names."""
    return {protocol.name: protocol for protocol in protocols}
