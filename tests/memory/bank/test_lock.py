from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tinyalign.errors import BankError
from tinyalign.memory.bank.lock import LOCK, WriteLock, cannot_write

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_second_lock_is_refused_in_the_same_process_too(tmp_path: Path) -> None:
    refused = pytest.raises(BankError, match=r"another process is writing.*wait until it is done")
    with WriteLock(tmp_path), refused:
        WriteLock(tmp_path).__enter__()
    with WriteLock(tmp_path):
        pass


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), WriteLock(tmp_path):
        raise RuntimeError
    with WriteLock(tmp_path):
        pass


def test_a_lock_file_without_a_process_means_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("12345")
    with WriteLock(tmp_path):
        pass


def test_one_that_waits_says_so_and_gets_it(tmp_path: Path, caplog) -> None:
    held, order = WriteLock(tmp_path), []

    def wait() -> None:
        with WriteLock(tmp_path, wait=True):
            order.append("second")

    with caplog.at_level(logging.INFO, logger="tinyalign"):
        held.__enter__()
        thread = threading.Thread(target=wait)
        thread.start()
        while "waiting for it" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
        held.__exit__()
        thread.join(60)
    assert order == ["first", "second"]


@needs_fork
@pytest.mark.parametrize("with_worker", [False, True])
def test_a_killed_process_frees_the_lock(tmp_path: Path, with_worker: bool) -> None:
    """Also while a worker that it forked lives on."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        held = WriteLock(tmp_path)
        held.__enter__()
        worker = os.fork() if with_worker else os.getpid()
        if worker:
            os.write(writing, f"{worker}\n".encode())
        time.sleep(600)
        os._exit(0)
    worker = int(os.read(reading, 100))
    alive = {pid, worker}
    try:
        with pytest.raises(BankError, match="another process"):
            WriteLock(tmp_path).__enter__()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        alive.discard(pid)
        with WriteLock(tmp_path):
            pass
    finally:
        for one in alive:
            os.kill(one, signal.SIGKILL)


@needs_fork
def test_a_forked_worker_that_ends_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    lock = WriteLock(tmp_path)
    with lock:
        pid = os.fork()
        if not pid:
            try:
                lock.__exit__()
                del lock
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        pid = os.fork()
        if not pid:
            try:
                WriteLock(tmp_path).__enter__()
                os._exit(1)
            except BankError:
                os._exit(0)
        assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 0


def test_a_folder_that_cannot_hold_the_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(BankError, match="cannot be written"):
        WriteLock(tmp_path).__enter__()


def test_the_message_for_a_full_disk_says_what_stands(tmp_path: Path) -> None:
    text = str(cannot_write(tmp_path, OSError(28, "No space left on device")))
    assert str(tmp_path) in text
    assert "No space left on device" in text
    assert "untouched" in text
