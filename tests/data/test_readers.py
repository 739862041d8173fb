"""Every format opens to the same samples; what is wrong with a file is said with its place."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyalign.data.images import load_image
from tinyalign.data.readers import open_dataset, open_stream
from tinyalign.data.readers.captions import pick_caption
from tinyalign.data.sample import ImageRef, Message
from tinyalign.errors import DataError

RECORDS = [
    {
        "id": 7,
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWho?"},
            {"from": "gpt", "value": "A dog."},
        ],
    },
    {
        "id": "b",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
        ],
    },
]


def write_json(path: Path, records) -> Path:
    path.write_text(json.dumps(records))
    return path


def write_lines(path: Path, records) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    return path


def caption_table(tmp_path: Path, photo: Image.Image, name: str = "data.parquet") -> Path:
    import datasets

    rows = {
        "id": ["x", "y"],
        "image": [photo, photo],
        "captions": [["one", "two", "three"], ["four"]],
    }
    features = datasets.Features(
        id=datasets.Value("string"),
        image=datasets.Image(),
        captions=datasets.List(datasets.Value("string")),
    )
    file = tmp_path / name
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file


class TestLlava:
    @pytest.mark.parametrize("write", [write_json, write_lines])
    @pytest.mark.parametrize("name", ["set.json", "set.jsonl", "set"])
    def test_list_and_lines_read_alike_under_any_name(self, tmp_path, write, name):
        dataset = open_dataset(write(tmp_path / name, RECORDS), image_folder=str(tmp_path / "pics"))
        first, second = dataset
        assert first.id == "7"
        assert first.images == (ImageRef(path=str(tmp_path / "pics" / "a.png")),)
        assert first.messages == (Message("user", "Who?"), Message("assistant", "A dog."))
        assert first.references == ("A dog.",)
        assert second.images == ()
        assert second.messages[0] == Message("system", "Be brief.")

    def test_the_image_folder_is_the_files_own_by_default(self, tmp_path):
        dataset = open_dataset(write_json(tmp_path / "set.json", RECORDS))
        assert dataset[0].images[0].path == str(tmp_path / "a.png")

    def test_a_broken_line_is_named_by_number(self, tmp_path):
        file = tmp_path / "set.jsonl"
        file.write_text(json.dumps(RECORDS[0]) + '\n{"id": \n')
        with pytest.raises(DataError, match=r"set\.jsonl, line 2"):
            open_dataset(file)

    def test_a_broken_line_waits_until_it_is_asked_for_where_that_is_wanted(self, tmp_path):
        file = tmp_path / "set.jsonl"
        file.write_text(json.dumps(RECORDS[0]) + '\n{"id": \n3\n' + json.dumps(RECORDS[1]))
        dataset = open_dataset(file, keep_unreadable=True)
        assert [dataset[0].id, dataset[3].id] == ["7", "b"]
        for index in (1, 2):
            with pytest.raises(DataError, match=rf"set\.jsonl, line {index + 1}: expected"):
                dataset[index]

    def test_a_stream_leaves_a_broken_line_out_and_lists_it(self, tmp_path):
        file = tmp_path / "set.jsonl"
        file.write_text(json.dumps(RECORDS[0]) + '\n{"id": \n' + json.dumps(RECORDS[1]))
        stream = open_stream(file, buffer=0, epochs=1)
        assert [sample.id for sample in stream] == ["7", "b"]
        assert "line 2" in stream.report.records["set.jsonl@1"]

    def test_a_file_without_one_readable_line_is_refused(self, tmp_path):
        file = tmp_path / "set.json"
        file.write_text(json.dumps({"data": RECORDS}, indent=2))
        with pytest.raises(DataError, match=r"set\.json, line 1"):
            open_dataset(file, keep_unreadable=True)

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"id": "a"}, "record 0: expected a list 'conversations'"),
            ({"conversations": [{"from": "dog", "value": "wuff"}]}, "record 0: expected a turn"),
            ({"image": 3, "conversations": []}, "record 0: expected 'image'"),
        ],
    )
    def test_a_record_of_another_shape_is_named(self, tmp_path, record, message):
        dataset = open_dataset(write_json(tmp_path / "set.json", [record]))
        with pytest.raises(DataError, match=message):
            dataset[0]

    def test_an_empty_conversation_opens_so_that_validation_can_list_it(self, tmp_path):
        dataset = open_dataset(write_json(tmp_path / "set.json", [{"conversations": []}]))
        assert dataset[0].messages == ()

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(answer=st.text())
    def test_any_answer_comes_back_from_lines(self, tmp_path, answer):
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": answer}]
        file = tmp_path / "set.jsonl"
        record = json.dumps({"conversations": turns}, ensure_ascii=False)
        file.write_text(record + "\n", encoding="utf-8", newline="")
        assert open_dataset(file)[0].answer == answer


class TestParquet:
    def test_captions_first_all_and_random(self, tmp_path, photo):
        file = caption_table(tmp_path, photo)
        first = open_dataset(file)
        assert [s.answer for s in first] == ["one", "four"]
        assert [s.instruction for s in first] == ["", ""]
        every = open_dataset(file, captions="all")
        assert [s.id for s in every] == ["x#0", "x#1", "x#2", "y#0"]
        assert [s.answer for s in every] == ["one", "two", "three", "four"]
        drawn = {open_dataset(file, captions="random", seed=s)[0].answer for s in range(20)}
        assert drawn == {"one", "two", "three"}
        for dataset in (first, every):
            assert dataset[0].references == ("one", "two", "three")

    def test_images_decode_to_the_photo(self, tmp_path, photo):
        dataset = open_dataset(caption_table(tmp_path, photo))
        assert load_image(dataset[0].images[0]).tobytes() == photo.tobytes()

    def test_prompt_and_limit(self, tmp_path, photo):
        dataset = open_dataset(caption_table(tmp_path, photo), prompt="Describe it.", limit=1)
        assert len(dataset) == 1
        assert dataset[-1].instruction == "Describe it."
        assert dataset[:5] == [dataset[0]]
        with pytest.raises(IndexError):
            dataset[1]

    def test_a_folder_takes_the_files_of_one_split(self, tmp_path, photo):
        caption_table(tmp_path, photo, "train.parquet")
        caption_table(tmp_path, photo, "dev.parquet")
        assert len(open_dataset(tmp_path, split="dev")) == 2
        with pytest.raises(DataError, match=r"split 'test', found \['dev\.parquet'"):
            open_dataset(tmp_path, split="test")

    def test_a_glob_and_a_folder_of_shards_take_all(self, tmp_path, photo):
        for shard in range(2):
            caption_table(tmp_path, photo, f"{shard:04d}.parquet")
        assert len(open_dataset(tmp_path)) == 4
        assert len(open_dataset(tmp_path / "*.parquet")) == 4

    def test_hugging_face_data_sets_in_memory_and_saved(self, tmp_path, photo):
        import datasets

        table = datasets.Dataset.from_parquet(str(caption_table(tmp_path, photo)))
        assert [s.answer for s in open_dataset(table.select([1]))] == ["four"]
        table.save_to_disk(tmp_path / "one")
        datasets.DatasetDict(dev=table).save_to_disk(tmp_path / "two")
        assert len(open_dataset(tmp_path / "one")) == 2
        assert open_dataset(tmp_path / "two", split="dev")[0].answer == "one"
        with pytest.raises(DataError, match=r"split 'train', found \['dev'\]"):
            open_dataset(tmp_path / "two")

    def test_a_selection_keeps_its_rows_in_step_with_their_captions(self, tmp_path, photo):
        import datasets

        table = datasets.Dataset.from_parquet(str(caption_table(tmp_path, photo))).select([1, 0])
        answers = [s.answer for s in open_dataset(table, captions="all")]
        assert answers == ["four", "one", "two", "three"]

    def test_image_paths_start_at_the_image_folder(self, tmp_path):
        import datasets

        table = datasets.Dataset.from_dict({"image": ["a.png"], "caption": ["one"]})
        sample = open_dataset(table, image_folder=str(tmp_path))[0]
        assert sample.images[0].path == str(tmp_path / "a.png")
        assert (sample.id, sample.answer, sample.references) == ("0", "one", ("one",))

    @pytest.mark.parametrize(
        ("columns", "message"),
        [({"caption": ["a"]}, "column 'image'"), ({"image": ["a.png"]}, "one of the columns")],
    )
    def test_missing_columns_are_named(self, columns, message):
        import datasets

        with pytest.raises(DataError, match=message):
            open_dataset(datasets.Dataset.from_dict(columns))

    def test_flickr8k_captions(self, shared_data):
        dataset = open_dataset(shared_data / "flickr8k" / "dev.parquet")
        assert len(dataset) == 1000
        assert len(dataset[0].references) == 5
        assert load_image(dataset[0].images[0]).size == (224, 224)
        every = open_dataset(shared_data / "flickr8k" / "dev.parquet", captions="all")
        assert len(every) == 5000

    def test_daquar_questions(self, shared_data):
        dataset = open_dataset(shared_data / "daquar" / "train.parquet")
        assert len(dataset) == 6795
        sample = dataset[1]
        assert sample.id.endswith("#q1")
        assert sample.instruction.endswith("?")
        assert sample.references == (sample.answer,)
        assert len({s.id for s in dataset}) == 6795


class TestCsv:
    @pytest.mark.parametrize(("name", "sep"), [("set.csv", ","), ("set.tsv", "\t"), ("set", "\t")])
    def test_lines_of_one_image_are_its_captions(self, tmp_path, name, sep):
        lines = [["image", "caption"], ["a.png", '"one, more"'], ["b.png", "three"]]
        lines.append(["a.png", "two"])
        file = tmp_path / name
        file.write_text("\n".join(sep.join(line) for line in lines))
        first, second = open_dataset(file)
        assert first.id == "a.png"
        assert first.references == ("one, more", "two")
        assert first.images[0].path == str(tmp_path / "a.png")
        assert second.answer == "three"
        assert [s.id for s in open_dataset(file, captions="all")] == [
            "a.png#0",
            "a.png#1",
            "b.png#0",
        ]

    def test_a_missing_column_and_a_short_line_are_named(self, tmp_path):
        file = tmp_path / "set.csv"
        file.write_text("picture,caption\na.png,one\n")
        with pytest.raises(DataError, match=r"column named one of \('image'"):
            open_dataset(file)
        file.write_text("image,caption\na.png,one\nb.png\n")
        with pytest.raises(DataError, match="line 3"):
            open_dataset(file)

    def test_a_caption_that_is_not_in_quotes_is_not_cut_at_its_comma(self, tmp_path):
        file = tmp_path / "set.csv"
        file.write_text("image,caption\na.png,one, and more\n")
        with pytest.raises(DataError, match="line 2: expected 2 fields, found 3; put a caption"):
            open_dataset(file)

    def test_a_short_line_waits_until_it_is_asked_for_where_that_is_wanted(self, tmp_path):
        file = tmp_path / "set.csv"
        file.write_text("image,caption\na.png,one\nb.png\nc.png,three\n")
        dataset = open_dataset(file, keep_unreadable=True)
        assert [sample.id for sample in dataset[:2]] == ["a.png", "c.png"]
        with pytest.raises(DataError, match="line 3"):
            dataset[2]

    def test_a_field_without_end_is_a_data_error(self, tmp_path):
        file = tmp_path / "set.csv"
        file.write_text('image,caption\na.png,"' + "one " * 50_000)
        with pytest.raises(DataError, match=r"set\.csv, line 2: expected CSV"):
            open_dataset(file)

    def test_another_format_taken_for_csv_is_told_in_a_few_words(self, tmp_path):
        file = write_json(tmp_path / "set.json", RECORDS * 100)
        with pytest.raises(DataError, match=r"expected a header.*another format") as told:
            open_dataset(file, format="csv")
        assert len(str(told.value)) < 400 + len(str(file))


class TestEasyVqa:
    def test_the_official_split(self):
        if importlib.util.find_spec("easy_vqa") is None:
            pytest.skip("needs the package easy-vqa")
        train, test = open_dataset("easy_vqa"), open_dataset("easy_vqa", split="test")
        assert (len(train), len(test)) == (38_575, 9_673)
        assert len({s.id for s in test} | {s.id for s in train}) == 38_575 + 9_673
        sample = test[0]
        assert sample.instruction.endswith("?")
        assert sample.answer == sample.answer.lower()
        assert load_image(sample.images[0]).size == (64, 64)
        with pytest.raises(DataError, match="found 'dev'"):
            open_dataset("easy_vqa", split="dev")


class TestFormat:
    def test_an_undecidable_file_and_a_missing_one_list_the_formats(self, tmp_path):
        (tmp_path / "notes").write_text("hello world\n")
        for name in ("notes", "absent.parquet"):
            with pytest.raises(DataError, match=r"llava.*parquet.*csv.*easy_vqa"):
                open_dataset(tmp_path / name)

    def test_a_relative_path_that_leads_nowhere_says_where_it_started(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for format in ("auto", "parquet"):
            with pytest.raises(DataError, match=re.escape(f"looked for from {tmp_path}")):
                open_dataset("shared/train.parquet", format=format)

    def test_a_path_that_speaks_of_a_format_is_not_taken_for_it(self, tmp_path):
        folder = tmp_path / "easy_vqa.parquet.csv"
        folder.mkdir()
        dataset = open_dataset(write_json(folder / "llava", RECORDS))
        assert len(dataset) == 2

    def test_unknown_choices_are_refused(self, tmp_path, photo):
        file = caption_table(tmp_path, photo)
        with pytest.raises(DataError, match="format: expected"):
            open_dataset(file, format="parket")
        with pytest.raises(DataError, match="captions: expected"):
            open_dataset(file, captions="last")  # type: ignore[arg-type]

    def test_what_is_not_there_may_be_on_the_hub_or_was_saved(self):
        with pytest.raises(DataError, match=r"save_to_disk.*hf://datasets/OWNER/NAME"):
            open_dataset("owner/name")

    def test_an_undecidable_file_can_be_named_in_both_ways(self, tmp_path):
        (tmp_path / "notes").write_text("hello world\n")
        with pytest.raises(DataError, match=r"with --format, or format= in Python"):
            open_dataset(tmp_path / "notes")

    def test_of_several_parquet_files_the_truncated_one_is_named(self, tmp_path, photo):
        whole = caption_table(tmp_path, photo, "0.parquet").read_bytes()
        (tmp_path / "1.parquet").write_bytes(whole[: len(whole) // 2])
        told = r"^\S+1\.parquet: expected a complete parquet file, .*; fetch or write it again$"
        with pytest.raises(DataError, match=told):
            open_dataset(tmp_path / "*.parquet")

    def test_parquet_files_with_different_columns_are_told_so(self, tmp_path):
        import datasets

        for name, column in (("0", {"caption": ["one"]}), ("1", {"words": [2]})):
            table = datasets.Dataset.from_dict({"image": ["a.png"], **column})
            table.to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=r"0\.parquet, .*with the same columns"):
            open_dataset(tmp_path / "*.parquet")

    def test_damaged_parquet_is_a_data_error(self, tmp_path):
        (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
        with pytest.raises(DataError, match=r"bad\.parquet"):
            open_dataset(tmp_path / "bad.parquet")


@given(st.text(), st.integers(1, 9), st.integers(0, 99))
def test_the_drawn_caption_exists_and_stays(row_id, n, seed):
    drawn = pick_caption(row_id, n, "random", seed)
    assert 0 <= drawn < n
    assert drawn == pick_caption(row_id, n, "random", seed)
