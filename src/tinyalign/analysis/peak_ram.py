"""The peak of a stretch of work: GPU memory where there is one, else the RAM of the process."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

from tinyalign.training.machine.process_ram import peak_resident

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


def _peak() -> int:
    """Bytes."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident()
