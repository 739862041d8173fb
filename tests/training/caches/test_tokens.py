"""Token ids and labels are made once, and read back as they were made."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import Message, Sample
from tinyalign.errors import DataError
from tinyalign.model.build import build_model
from tinyalign.training.batches.dataset import TrainingDataset
from tinyalign.training.caches import tokens as token_cache
from tinyalign.training.caches.tokenise import Tokeniser
from tinyalign.training.caches.tokens import CachedTokens, Folding, cached_tokens

IMAGE, MEMORY = 900, 901


@pytest.fixture(scope="module")
def processor(tiny_vision_dir: Path, tiny_llm_dir: Path) -> Any:
    return build_model(tiny_vision_dir, tiny_llm_dir, k=2, template="chatml")[1]


@pytest.fixture
def tokeniser(processor: Any) -> Tokeniser:
    return Tokeniser.of(processor, n_memory_tokens=32, max_length=200)


@pytest.fixture
def samples(questions: Path) -> list[Sample]:
    """Questions, one with two images, one without any, one that cannot be learned from."""
    found = list(open_dataset(questions))
    found[3] = replace(found[3], images=found[3].images + found[4].images)
    found[5] = Sample("text", (), (Message("user", "Who?"), Message("assistant", "Nobody.")))
    found[7] = replace(found[7], messages=(Message("user", "alone"),))
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the samples that are tokenised from now on."""
    seen: list[str] = []
    plain = Tokeniser.__call__

    def counting(self: Tokeniser, sample: Sample) -> Any:
        seen.append(sample.id)
        return plain(self, sample)

    monkeypatch.setattr(Tokeniser, "__call__", counting)
    return seen


def outcome(make: Any) -> Any:
    """Ids and labels, or the reason why there are none."""
    try:
        found = make()
    except DataError as error:
        return str(error)
    return found.input_ids, found.labels


# ---------------------------------------------------------------------------------------- equality


def test_cached_ids_and_labels_are_the_live_ones(samples, tokeniser, tmp_path):
    cached = cached_tokens(tmp_path, samples, tokeniser)
    for index, sample in enumerate(samples):
        live = outcome(lambda sample=sample: tokeniser(sample))
        assert outcome(lambda index=index: cached[index]) == live
    assert "pair-7" in cached.reasons[7]
    assert cached.lengths[7] == 0


def test_so_they_are_where_texts_are_cut(samples, tokeniser, tmp_path):
    cut = replace(tokeniser, max_length=70)
    cached = cached_tokens(tmp_path, samples, cut)
    assert int(cached.lengths.max()) == 70
    for index, sample in enumerate(samples):
        live = outcome(lambda sample=sample: cut(sample))
        assert outcome(lambda index=index: cached[index]) == live


@given(st.data())
def test_folding_keeps_one_of_each_run_and_unfolding_gives_all_back(data):
    folding = Folding(IMAGE, MEMORY, data.draw(st.integers(1, 9)), data.draw(st.integers(0, 9)))
    text = st.lists(st.integers(0, 899), max_size=4)
    ids: list[int] = data.draw(text)
    images = data.draw(st.integers(0, 3))
    for _ in range(images):
        ids += [IMAGE] * folding.n_image
        ids += data.draw(text)
    ids += [MEMORY] * folding.n_memory + data.draw(text)
    labels = [token if token % 3 else -100 for token in ids]
    kept = folding.fold(np.array(ids), np.array(labels))
    assert (kept[0] == IMAGE).sum() == images
    back = folding.unfold(*kept)
    assert back[0].tolist() == ids
    assert back[1].tolist() == labels


def test_a_data_set_gives_the_same_items_and_reads_no_sample(samples, processor, tmp_path):
    settings: dict[str, Any] = {"n_memory_tokens": 32, "max_length": 200}
    cached = cached_tokens(tmp_path, samples, Tokeniser.of(processor, **settings))
    live = TrainingDataset(samples, processor, **settings)
    kept = TrainingDataset(samples, processor, tokens=cached, **settings)
    for position in range(len(samples)):
        ours, theirs = kept[position], live[position]
        for name in ("input_ids", "labels", "index"):
            assert ours[name] == theirs[name]
    assert kept[7]["index"] == 8
    assert list(kept.skipped.items()) == list(live.skipped.items())
    with pytest.raises(DataError, match="pair-7"):
        TrainingDataset(samples, processor, tokens=cached, strict=True, **settings)[7]


def test_lengths_are_those_of_the_items(samples, processor, tmp_path):
    settings: dict[str, Any] = {"n_memory_tokens": 32, "max_length": 200}
    cached = cached_tokens(tmp_path, samples, Tokeniser.of(processor, **settings))
    for tokens in (cached, None):
        dataset = TrainingDataset(samples, processor, tokens=tokens, **settings)
        asked = [len(dataset[position]["input_ids"]) for position in range(len(dataset))]
        assert dataset.lengths.tolist() == asked
    with pytest.raises(DataError, match="24 rows of tokens for 2 samples"):
        TrainingDataset(samples[:2], processor, tokens=cached)


# ------------------------------------------------------------------------------------- made once


def test_a_second_run_tokenises_nothing(samples, tokeniser, tmp_path, monkeypatch):
    first = cached_tokens(tmp_path, samples, tokeniser)
    seen = counted(monkeypatch)
    again = cached_tokens(tmp_path, list(samples), tokeniser)
    assert seen == []
    assert again.folder == first.folder


def test_what_decides_the_ids_decides_the_cache(samples, tokeniser, tmp_path, make_tokenizer):
    other = [replace(samples[0], messages=(Message("assistant", "another"),)), *samples[1:]]
    with_bos = make_tokenizer(bos=True)
    with_bos.add_tokens(["<image>", "<memory>"], special_tokens=True)
    folders = {
        cached_tokens(tmp_path, samples, tokeniser).folder,
        cached_tokens(tmp_path, other, tokeniser).folder,
        cached_tokens(tmp_path, samples[1:], tokeniser).folder,
        cached_tokens(tmp_path, samples, replace(tokeniser, max_length=199)).folder,
        cached_tokens(tmp_path, samples, replace(tokeniser, n_image_tokens=9)).folder,
        cached_tokens(tmp_path, samples, replace(tokeniser, n_memory_tokens=0)).folder,
        cached_tokens(tmp_path, samples, replace(tokeniser, template="plain")).folder,
        cached_tokens(tmp_path, samples, replace(tokeniser, tokenizer=with_bos)).folder,
    }
    assert len(folders) == 8


def test_how_a_tokenizer_was_last_called_changes_nothing(tokeniser):
    before = tokeniser.hash
    tokeniser.tokenizer(["a dog", "a"], padding=True, truncation=True, max_length=4)
    assert tokeniser.hash == before


@pytest.mark.parametrize("name", [*token_cache.FILES, token_cache.MANIFEST])
def test_a_damaged_cache_is_made_again_with_a_warning(name, samples, tokeniser, tmp_path, caplog):
    cached = cached_tokens(tmp_path, samples, tokeniser)
    expected = outcome(lambda: cached[0])
    path = cached.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        CachedTokens(cached.folder)
    with caplog.at_level(logging.WARNING, "tinyalign"):
        again = cached_tokens(tmp_path, samples, tokeniser)
    assert "made again" in caplog.text
    assert outcome(lambda: again[0]) == expected


def test_an_interrupted_build_goes_on(samples, tokeniser, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "BLOCK", 8)
    whole = cached_tokens(tmp_path / "whole", samples, tokeniser)
    plain = token_cache._append

    def killed(aside: Path, content: dict[str, bytes], done: int) -> None:
        if done == 24:  # half of the last block is in one of the files
            with open(aside / token_cache.IDS, "ab") as file:
                file.write(content[token_cache.IDS][:10])
            raise KeyboardInterrupt
        plain(aside, content, done)

    monkeypatch.setattr(token_cache, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_tokens(tmp_path / "killed", samples, tokeniser)
    monkeypatch.setattr(token_cache, "_append", plain)
    seen = counted(monkeypatch)
    again = cached_tokens(tmp_path / "killed", samples, tokeniser)
    assert seen == [sample.id for sample in samples[16:]]
    for name in token_cache.FILES:
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_it_travels_to_workers_without_its_maps(samples, tokeniser, tmp_path):
    cached = cached_tokens(tmp_path, samples * 50, tokeniser)
    expected = cached[0]
    text = pickle.dumps(cached)
    assert len(text) < (cached.folder / token_cache.IDS).stat().st_size
    assert pickle.loads(text)[0] == expected


TOGETHER = """
import json, sys
from pathlib import Path
from tinyalign.data.readers import open_dataset
from tinyalign.model.build import build_model
from tinyalign.training.caches.tokens import cached_tokens
from tinyalign.training.caches.tokenise import Tokeniser

vision, llm, data, out = sys.argv[1:]
processor = build_model(vision, llm, template="chatml")[1]
print("ready", flush=True)
sys.stdin.readline()
cached = cached_tokens(Path(out), open_dataset(data), Tokeniser.of(processor))
print(json.dumps([cached[i].input_ids for i in range(len(cached))]))
"""


@pytest.mark.slow
def test_two_processes_that_ask_at_once_get_one_cache(
    tiny_vision_dir: Path, tiny_llm_dir: Path, questions: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", TOGETHER]
    words += [str(each) for each in (tiny_vision_dir, tiny_llm_dir, questions, tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(words, **pipes) for _ in range(2)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [json.loads(process.communicate(timeout=300)[0]) for process in running]
    assert results[0] == results[1]
    assert len(results[0]) == 24
    made = [path for path in (tmp_path / "tokens").iterdir() if path.is_dir()]
    assert len(made) == 1
