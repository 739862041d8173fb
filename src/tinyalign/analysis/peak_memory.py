"""Peak memory of a stretch of work: of the GPU where there is one, else of the process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import torch

GB = 1e9


class PeakMemory:
    """`with PeakMemory() as peak: ...`, then `peak.gigabytes`.

    On Linux the process' high-water mark is reset at the start; elsewhere it is that of the whole
    process so far. On a GPU it is what torch allocated there.
    """

    gigabytes: float = 0.0

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif (clear := Path("/proc/self/clear_refs")).exists():
            try:
                clear.write_text("5")
            except OSError:
                return self  # not allowed here: the mark of the whole process is reported
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.gigabytes = _peak() / GB


def _peak() -> float:
    """Bytes."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
