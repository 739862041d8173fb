"""Memory of a process: read from the system, and kept between steps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from tinyalign.training.machine.process_ram import in_use, keep_freed_memory, peak_resident

FAULTS = """
import resource, sys
import torch
from tinyalign.training.machine.process_ram import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    held = [torch.ones(2_000_000) for _ in range(20)]  # 8 MB each
    del held
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_is_in_use_is_at_most_the_peak() -> None:
    held = torch.ones(1_000_000)
    assert 4 * len(held) < in_use(torch.device("cpu")) <= peak_resident()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_memory_is_not_asked_of_the_system_again() -> None:
    """Pages that the system had to hand out in five more steps, with and without."""
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, check=True
            ).stdout
        )
        for how in ("kept", "given back")
    )
    assert kept < given_back / 10


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
