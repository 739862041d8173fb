"""Memory of this process, in bytes: what it holds now, and the most it has held."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def in_use(device: torch.device) -> int:
    """On a GPU the most that torch has allocated there; else the resident set now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmRSS") or peak_resident()


def peak_resident() -> int:
    """The process' high-water mark of resident memory."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int | None:
    """A field of Linux's /proc/self/status; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
