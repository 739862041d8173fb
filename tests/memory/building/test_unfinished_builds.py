"""A build that was stopped is refused to every other build, and is there afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.errors import BankError
from tinyalign.memory.building.builder import BuildPart, build_bank
from tinyalign.memory.building.changes import merge_banks
from tinyalign.memory.building.parquet import export_bank, import_bank
from tinyalign.memory.building.unfinished_builds import refuse_unfinished


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.fixture
def stopped(samples, vision, perceiver, tmp_path: Path, monkeypatch) -> Path:
    """A build by two processes that ended when the first of them had made its part."""
    folder = tmp_path / "out"
    build_part(samples, vision, perceiver, folder, 0, monkeypatch)
    return folder


def build_part(samples, vision, perceiver, folder: Path, index: int, monkeypatch) -> None:
    """One process's part, without the bank of all parts."""

    def dies(*arguments) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("tinyalign.memory.building.builder._joined", dies)
        with pytest.raises(Killed):
            build_bank(samples, vision, perceiver, folder, batch_size=4, share=BuildPart(index, 2))


def test_a_merge_and_an_import_spare_the_parts_of_a_build(bank, stopped, tmp_path: Path) -> None:
    exported = export_bank(bank, tmp_path / "exported")
    for work in (
        lambda: merge_banks([bank.folder], stopped),
        lambda: import_bank(exported, stopped),
    ):
        with pytest.raises(BankError, match=r"out/building: .* is 2, not 1 \(part-0-of-2\)"):
            work()
        assert (stopped / "building" / "part-0-of-2" / "progress.json").exists()


@pytest.mark.parametrize("share", [BuildPart(), BuildPart(0, 3), BuildPart(1, 3)])
def test_a_build_by_another_number_of_processes_is_refused(
    share, stopped, samples, vision, perceiver
) -> None:
    with pytest.raises(BankError, match=r"part-0-of-2.*as many processes, or remove"):
        build_bank(samples, vision, perceiver, stopped, batch_size=4, share=share)
    assert sorted(path.name for path in (stopped / "building").iterdir()) == ["part-0-of-2"]


@pytest.mark.usefixtures("no_checkpoint_luck")
def test_a_build_by_one_process_is_refused_to_several(
    samples, vision, perceiver, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tinyalign.memory.building.builder._commit", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_bank(samples, vision, perceiver, tmp_path, batch_size=4)
    with pytest.raises(BankError, match=r"is 1, not 2 \(progress\.json\)"):
        build_bank(samples, vision, perceiver, tmp_path, batch_size=4, share=BuildPart(0, 2))
    assert (tmp_path / "building" / "progress.json").exists()


def test_a_build_by_as_many_processes_goes_on(stopped) -> None:
    refuse_unfinished(stopped, 2)
    (stopped / "building" / "progress.json").touch()  # of joining the parts
    refuse_unfinished(stopped, 2)


def test_a_new_folder_has_nothing_to_refuse(tmp_path: Path) -> None:
    refuse_unfinished(tmp_path / "new")
    refuse_unfinished(tmp_path, 4)
