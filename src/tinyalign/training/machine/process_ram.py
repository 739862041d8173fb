"""RAM of this process, in bytes: what it holds now, the most it has held, and keeping it."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
NEVER, LARGEST = -1, 32 << 20


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors give back, for the tensors of the next step.

    By default glibc returns much of it to the system, which hands out fresh pages, zeroed one by
    one, at every step: a tenth of a step's time where an LLM is trained on a CPU. Blocks above
    32 MB, the most that glibc allows here, still go back. Returns False, and does nothing, where
    the C library isn't glibc. Memory that other processes wait for is a reason not to call it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    settings = ((M_TRIM_THRESHOLD, NEVER), (M_MMAP_THRESHOLD, LARGEST))
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in settings)


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
