"""Text files are UTF-8; others are refused with the place, and with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyalign.data.readers import open_dataset
from tinyalign.data.readers.text_file import read_text
from tinyalign.errors import DataError


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf_8_with_or_without_a_mark_keeps_its_line_ends(tmp_path: Path, mark):
    file = tmp_path / "set.csv"
    file.write_bytes(mark + "café\r\nthé\u2028\n".encode())
    assert read_text(file) == "café\r\nthé\u2028\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_named_by_its_first_foreign_byte(tmp_path: Path, mark):
    file = tmp_path / "set.csv"
    file.write_bytes(mark + b"caf\xe9, caf\xe9")
    place = rf"set\.csv: expected UTF-8, found byte 0xe9 at offset {len(mark) + 3}; .*iconv"
    with pytest.raises(DataError, match=place):
        read_text(file)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("set.json", '[{"conversations": [{"from": "gpt", "value": "café"}]}]'),
        ("set.jsonl", '{"conversations": [{"from": "gpt", "value": "café"}]}\n'),
        ("set.csv", "image,caption\na.png,café\n"),
    ],
)
def test_data_sets_in_another_encoding_are_data_errors(tmp_path: Path, name, text):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"{name}: expected UTF-8"):
        open_dataset(tmp_path / name)
