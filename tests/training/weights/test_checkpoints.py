"""A checkpoint has its name only when it is whole."""

from __future__ import annotations

from pathlib import Path

from tinyalign.training.weights.checkpoints import (
    ASIDE,
    checkpoints,
    clear_aside,
    last_checkpoint,
    publish,
)


def write(folder: Path, step: int) -> None:
    (folder / ASIDE / f"checkpoint-{step}").mkdir(parents=True)
    (folder / ASIDE / f"checkpoint-{step}" / "state").write_text(str(step))


def test_what_lies_aside_is_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    write(tmp_path, 2)
    assert last_checkpoint(tmp_path) is None
    publish(tmp_path, keep=1)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_the_newest_counts_by_its_number_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        write(tmp_path, step)
        publish(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]


def test_all_are_kept_where_no_number_is_given(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
        publish(tmp_path, keep=None)
    assert len(checkpoints(tmp_path)) == 3


def test_what_a_kill_left_is_cleared_and_a_step_can_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 4)
    publish(tmp_path, keep=1)
    write(tmp_path, 6)
    clear_aside(tmp_path)
    publish(tmp_path, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    write(tmp_path, 4)
    (tmp_path / ASIDE / "checkpoint-4" / "state").write_text("again")
    publish(tmp_path, keep=1)
    assert (tmp_path / "checkpoint-4" / "state").read_text() == "again"
