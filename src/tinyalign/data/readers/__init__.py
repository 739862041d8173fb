"""Files and data sets -> samples, images undecoded: `open_dataset` and `open_stream`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyalign.data.formats import READERS, check_format, format_of_suffix
from tinyalign.data.readers.caption_csv import IMAGE_COLUMNS, CaptionCsvDataset
from tinyalign.data.readers.easy_vqa import EasyVqaDataset
from tinyalign.data.readers.lazy import Head
from tinyalign.data.readers.llava import LlavaDataset
from tinyalign.data.readers.parquet import TableDataset, read_parquet, read_saved
from tinyalign.data.readers.records import Reading
from tinyalign.data.readers.shards.dataset import ShardDataset
from tinyalign.data.readers.shards.shard import TAR_SUFFIXES, SequenceShard, Shard, find_shards
from tinyalign.data.readers.shards.stream import SHUFFLE_BUFFER, Part, SampleStream, open_shards
from tinyalign.data.readers.splits import files_of_split
from tinyalign.data.sample import Sample
from tinyalign.errors import DataError
from tinyalign.vocabulary import CaptionChoice

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("llava", "parquet", "csv", "webdataset", "easy_vqa")
"""Our own; `tinyalign.data.formats.READERS` has those of other packages too."""


def open_dataset(
    path: str | Path | Sequence[str] | Dataset,
    *,
    format: str = "auto",
    image_folder: str | None = None,
    split: str = "train",
    prompt: str | None = None,
    captions: CaptionChoice = "first",
    seed: int = 0,
    limit: int | None = None,
    keep_unreadable: bool = False,
    strict: bool = False,
) -> Sequence[Sample]:
    """Open a data set as a sequence of samples; text is indexed now, images are read when used.

    Args:
        path: a LLaVA `.json`/`.jsonl`; a parquet file, a glob or folder of them, a folder made by
            `save_to_disk`, or a `datasets.Dataset`; a caption CSV; WebDataset tars (a file, glob
            or folder); a list or fsspec URLs of tar or parquet shards, such as
            `hf://datasets/OWNER/NAME`; or the name `easy_vqa`.
        format: one of `FORMATS`, one that another package registers, or "auto" to decide by
            suffix and content.
        image_folder: where relative image paths start; the data file's folder if not given.
        split: for `easy_vqa`, saved `DatasetDict`s, and folders whose files are named for splits
            (`train.parquet`, `train-00000-of-00002.parquet`).
        prompt: the user's text of caption samples; none (plain captions) if not given.
        captions: which caption of an image is the answer: the first, each (one sample a caption,
            ids `ID#0`, `ID#1`, ...), or one drawn by `seed` and id. `Sample.references` always
            holds all of them.
        seed: of the draw for `captions="random"`.
        limit: keep only the first so many samples.
        keep_unreadable: let a line that can't be read as a record raise when its sample is asked
            for; otherwise it raises now.
        strict: raise for a shard that breaks off, and a record in shards that can't be read;
            otherwise they are left out and listed (`left_out`).

    Raises:
        DataError: nothing there, an undecidable format, or a file that isn't what it should be.
    """
    reading = Reading(captions, prompt, seed, image_folder)
    dataset = _open(path, format, split, reading, keep_unreadable, strict)
    return dataset if limit is None else Head(dataset, limit)


def open_stream(
    path: str | Path | Sequence[str],
    *,
    format: str = "auto",
    image_folder: str | None = None,
    split: str = "train",
    prompt: str | None = None,
    captions: CaptionChoice = "first",
    seed: int = 0,
    buffer: int = SHUFFLE_BUFFER,
    part: Part | None = None,
    epochs: int | None = None,
    strict: bool = False,
) -> SampleStream:
    """Open tar or parquet shards as a stream; any other data set streams as a single shard.

    path, format, ..., seed: as in `open_dataset`. buffer, part, epochs, strict: see
    `SampleStream`; the seed is of its order too. Raises DataError where nothing is to be read.
    """
    reading = Reading(captions, prompt, seed, image_folder)
    shards: list[Shard]
    if _only_shards(path, format):
        shards = open_shards(path if isinstance(path, Sequence) else str(path), reading, split)
    elif isinstance(path, (str, Path)) and (files := _parquet_files(path, split)):
        shards = open_shards([str(file) for file in files], reading)
    else:
        samples = open_dataset(
            path, format=format, image_folder=image_folder, split=split, prompt=prompt,
            captions=captions, seed=seed, keep_unreadable=True,
        )  # fmt: skip
        shards = [SequenceShard(samples, Path(str(path)).name)]
    return SampleStream(shards, seed=seed, buffer=buffer, part=part, epochs=epochs, strict=strict)


def check_there(
    path: str | Path | Sequence[str], *, format: str = "auto", split: str = "train"
) -> None:
    """Raise DataError where `open_dataset` and `open_stream` would find nothing to read.

    Only looks for files; of those at URLs, only that globs and folders hold some.
    """
    if _only_shards(path, format):
        shards = find_shards(path if isinstance(path, (list, tuple)) else str(path), split)
        if not any("://" in one or Path(one).is_file() for one in shards):
            raise DataError(
                f"{shards[0]}: expected a shard, found nothing there{_seen_from(shards[0])}"
                + (f", nor any of {len(shards) - 1} more" if len(shards) > 1 else "")
            )
    elif isinstance(path, (str, Path)):
        _found(path, format, split)


def _found(path: str | Path, format: str, split: str) -> tuple[list[Path], str]:
    """The files behind a path and their format; DataError where there are none."""
    files = find_files(path, split)
    if format == "auto":
        format = detect_format(path, files)
    if not files and format != "easy_vqa":
        raise _nothing_there(path)
    return files, format


def _only_shards(path: object, format: str) -> bool:
    """Whether only the readers of shards can read it: tars, URLs, and lists of shards."""
    if format == "webdataset" or isinstance(path, (list, tuple)):
        return True
    if not isinstance(path, (str, Path)) or format not in ("auto", "parquet"):
        return False
    if "://" in str(path) or str(path).lower().endswith(TAR_SUFFIXES):
        return True
    return Path(path).is_dir() and any(Path(path).rglob("*.tar"))


def _parquet_files(path: str | Path, split: str) -> list[Path]:
    """The parquet files behind a local path; none if it is something else."""
    files = [] if _is_saved(Path(path)) else find_files(path, split)
    return files if all(file.suffix == ".parquet" for file in files) else []


def _open(
    path: str | Path | Sequence[str] | Dataset,
    format: str,
    split: str,
    reading: Reading,
    keep_unreadable: bool,
    strict: bool,
) -> Sequence[Sample]:
    format = check_format(format)
    images = None if reading.image_folder is None else Path(reading.image_folder)
    choice: Any = {
        "captions": reading.captions, "prompt": reading.prompt, "seed": reading.seed,
    }  # fmt: skip
    if _only_shards(path, format):
        shards = path if isinstance(path, (list, tuple)) else str(path)
        return ShardDataset(open_shards(shards, reading, split), strict=strict)
    if not isinstance(path, (str, Path)):
        table: Any = path
        return TableDataset(table, source="dataset", image_folder=images, **choice)
    files, format = _found(path, format, split)
    if format == "easy_vqa":
        return EasyVqaDataset(split)
    theirs = READERS[format].open
    if theirs is not None:
        return theirs(path, image_folder=reading.image_folder, split=split, **choice)
    if format == "parquet":
        saved = files[0].is_dir()
        table = read_saved(files[0], split) if saved else read_parquet(files)
        images = images or files[0].parent
        name = files[0].name if len(files) == 1 else str(Path(path).name)
        return TableDataset(table, source=name, image_folder=images, **choice)
    if len(files) > 1:
        raise DataError(f"{path}: format {format!r} takes one file, found {len(files)}")
    if format == "llava":
        return LlavaDataset(files[0], images, keep_unreadable=keep_unreadable)
    return CaptionCsvDataset(files[0], images, keep_unreadable=keep_unreadable, **choice)


def _nothing_there(path: str | Path) -> DataError:
    return DataError(
        f"{path}: expected a data set, found nothing there{_seen_from(path)}; give a file, folder, "
        f"glob or URL of one of the formats {FORMATS}, a folder made by save_to_disk, "
        "hf://datasets/OWNER/NAME for parquet files on the Hugging Face hub, or the name 'easy_vqa'"
    )


def _seen_from(path: str | Path) -> str:
    """Where a relative path was looked for: such paths start at the current folder."""
    return "" if Path(path).is_absolute() else f" (looked for from {Path.cwd()})"


def find_files(path: str | Path, split: str) -> list[Path]:
    """The files behind a path, folder or glob; a `save_to_disk` folder stands for itself."""
    path = Path(path)
    if path.is_file() or _is_saved(path):
        return [path]
    if path.is_dir():
        names = [str(file) for file in sorted(path.rglob("*.parquet"))]
        return [Path(name) for name in files_of_split(str(path), names, split)]
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if first is None:
        return []
    return sorted(f for f in Path(*parts[:first]).glob(str(Path(*parts[first:]))) if f.is_file())


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def detect_format(path: str | Path, files: Sequence[Path]) -> str:
    """The format of what `find_files` found, by suffix, else by the first bytes.

    Raises:
        DataError: undecidable; the message lists the formats.
    """
    if not files and str(path).replace("-", "_") == "easy_vqa":
        return "easy_vqa"
    if not files:
        raise _nothing_there(path)
    if files[0].is_dir():
        return "parquet"
    found = format_of_suffix(files[0].suffix)
    if found is not None:
        return found
    with files[0].open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"PAR1":
        return "parquet"
    if head.lstrip()[:1] in (b"[", b"{"):
        return "llava"
    header = head.split(b"\n")[0].decode("utf-8", "replace").strip()
    if any(name in header.replace("\t", ",").split(",") for name in IMAGE_COLUMNS):
        return "csv"
    raise DataError(
        f"{path}: can't tell its format; name one of {FORMATS} with --format, or format= in Python"
    )


__all__ = ["FORMATS", "CaptionChoice", "check_there", "open_dataset", "open_stream"]
