from __future__ import annotations

import os
from pathlib import Path

from tinyalign.memory.bank.file_watch import Watch
from tinyalign.memory.bank.files import write_atomically


def test_every_replacement_is_seen_even_within_one_tick_of_the_clock(tmp_path: Path) -> None:
    """Same size, same time; the system may give a freed inode number to the next file."""
    path = tmp_path / "manifest.json"
    write_atomically(path, b"a")
    os.utime(path, ns=(0, 0))
    for _ in range(50):
        watch = Watch(path)
        assert not watch.changed()
        for _ in range(2):
            write_atomically(path, b"b")
            os.utime(path, ns=(0, 0))
            assert watch.changed()


def test_a_file_written_over_in_place_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(b"a")
    watch = Watch(path)
    path.write_bytes(b"ab")
    assert watch.changed()


def test_a_file_that_is_gone_or_empty_is_no_reason_to_fail(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    watch = Watch(path)
    assert not watch.changed()
    path.write_bytes(b"")
    assert watch.changed()
    assert not Watch(path).changed()
