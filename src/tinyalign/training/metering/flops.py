"""The arithmetic of a training step, and the peak of known devices: what MFU is made of.

A weight matrix costs 2 FLOP a parameter and token forward, 2 backward for the gradients of its
input, and 2 more for its own where it is trained (Kaplan et al. 2020, section 2.1; arXiv
2001.08361): 6 for trained parameters, 4 for those of a frozen LLM, through which gradients pass
to the connectors. MFU is that arithmetic over the device's peak (Chowdhery et al. 2022, appendix
B; arXiv 2204.02311). Attention scores, embeddings and norms are left out, and what gradient
checkpointing computes again is no model arithmetic, so that MFU is rather too low than too high.
Padding does not count; the head counts at supervised positions only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tinyalign.training.metering.work import Work

FROZEN, TRAINED = 4, 6  # FLOP a parameter and token, forward and backward

# Dense 16-bit peak in TFLOP/s with accumulation in float32, from the makers' data sheets. A device
# is the first row all of whose words are in its name; of one chip the rarer boards come first.
PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250.0),
    (("H200",), 989.4),
    (("H100", "NVL"), 835.5),
    (("H100", "PCIe"), 756.0),
    (("H100",), 989.4),
    (("A100",), 312.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("A40",), 149.7),
    (("A30",), 165.0),
    (("A10G",), 70.0),
    (("A10",), 125.0),
    (("A6000",), 154.8),
    (("RTX", "4090"), 165.2),
    (("RTX", "3090"), 71.0),
    (("V100",), 125.0),
    (("T4",), 65.0),
    (("MI300X",), 1307.4),
)
PARTIAL = {"MIG", "Laptop", "D", "Max"}  # a slice of a device, or a slower one of the same name
FLOAT16_ONLY = {"V100", "T4"}  # no bfloat16 in their matrix units


def peak_flops(device: str, dtype: str) -> float | None:
    """Peak FLOP/s of a device in bfloat16 or float16 matrix products; None where unknown.

    device: as `torch.cuda.get_device_name` has it. In float32 the peak depends on whether TF32 is
    allowed, so none is given.
    """
    if dtype not in ("bfloat16", "float16"):
        return None
    words = set(re.split(r"[\s-]+", device))
    if words & PARTIAL or (dtype == "bfloat16" and words & FLOAT16_ONLY):
        return None
    return next((peak * 1e12 for needed, peak in PEAKS if words.issuperset(needed)), None)


def device_peak(device: torch.device, dtype: str, processes: int = 1) -> float | None:
    """Peak FLOP/s of `processes` devices like this one; None on a CPU and where unknown."""
    if device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device), dtype)
    return None if peak is None else peak * processes


@dataclass(frozen=True)
class ModelFlops:
    """FLOP of forward and backward pass together."""

    token: float
    """A token in the LLM's layers."""
    supervised: float
    """A supervised token in its head."""
    image: float
    """An image in its connector, and in the tower where that runs at every step."""
    memory: float
    """The memories of a sample in the memory connector."""

    def of(self, work: Work) -> float:
        """FLOP of some work."""
        return (
            self.token * work.tokens
            + self.supervised * work.supervised_tokens
            + self.image * work.images
            + self.memory * work.samples
        )


def model_flops(model: Any, *, cached: bool) -> ModelFlops:
    """Arithmetic of a TinyAlign model as it is frozen now.

    cached: image features come from a cache, the tower does not run. The connectors are counted
    by the tokens they give. Right for dense LLMs: experts would all be counted.
    """
    core = model.model
    table = set(core.get_input_embeddings().parameters())
    body = [p for p in core.language_model.parameters() if p not in table]
    image = _cost(core.multi_modal_projector.parameters()) * model.config.image_seq_length
    if not cached:
        trained = any(p.requires_grad for p in core.vision_tower.parameters())
        image += tower_flops(core.vision_tower, model.config.vision_config) * (3 if trained else 1)
    memory = 0.0
    if core.memory_connector is not None:
        memory = _cost(core.memory_connector.parameters()) * model.config.n_memory_tokens
    return ModelFlops(
        token=_cost(body), supervised=_cost([model.lm_head.weight]), image=image, memory=memory
    )


def _cost(parameters: Iterable[nn.Parameter]) -> float:
    """FLOP a token of the matrices among some parameters."""
    matrices = (p for p in parameters if p.ndim > 1)
    return float(sum((TRAINED if p.requires_grad else FROZEN) * p.numel() for p in matrices))


def tower_flops(tower: nn.Module, config: Any) -> float:
    """FLOP of one image's way forward through a tower, counted in a run without numbers."""
    from torch.utils.flop_counter import FlopCounterMode

    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    with torch.device("meta"):
        copy = type(tower)(config).eval()
        pixels = torch.empty(1, 3, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy(pixels)
    return float(counter.get_total_flops())
