"""WordNet's nouns and WUPS, on a WordNet of a few senses."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.metrics.wordnet import VARIABLE, WordNet
from tinyalign.evaluation.metrics.wups import exact, set_score, wups

from ..benchmarks.conftest import small_wordnet  # noqa: F401


@pytest.fixture
def wordnet(small_wordnet: Path) -> WordNet:  # noqa: F811
    return WordNet.open(small_wordnet)


def test_words_are_found_by_their_base_forms(wordnet: WordNet):
    assert wordnet.senses("Chairs") == wordnet.senses("chair") != ()
    assert wordnet.senses("women") == wordnet.senses("man")  # noun.exc goes before the endings
    assert wordnet.senses("seatmen") == ()
    assert wordnet.senses("arm chair") == ()


@pytest.mark.parametrize(
    ("a", "b", "similarity"),
    [
        ("chair", "chair", 1.0),
        ("chair", "stool", 2 * 2 / (3 + 3)),
        ("armchair", "stool", 2 * 2 / (4 + 3)),
        ("armchair", "seat", 2 * 2 / (4 + 2)),
        ("armchair", "furniture", 2 * 2 / (4 + 2)),
        ("man", "stool", 2 * 1 / (2 + 3)),
        ("man", "nonsense", 0.0),
    ],
)
def test_wu_palmer_similarity(wordnet: WordNet, a: str, b: str, similarity: float):
    assert wordnet.similarity(a, b) == pytest.approx(similarity)
    assert wordnet.similarity(b, a) == pytest.approx(similarity)


def test_below_the_threshold_a_tenth_is_left(wordnet: WordNet):
    strict, lenient = wups(wordnet, 0.9), wups(wordnet, 0.0)
    assert strict("chair", "stool") == pytest.approx(0.1 * 2 / 3)
    assert lenient("chair", "stool") == pytest.approx(2 / 3)
    assert strict("nonsense", "nonsense") == 1.0


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [
        ("book, cup", "cup,book", 1.0),
        ("book, cup", "cup", 0.0),
        ("cup", "cup, cup", 1.0),
        ("cup", "", 0.0),
    ],
)
def test_accuracy_is_equality_of_sets(truth: str, answer: str, score: float):
    assert set_score(truth, answer, exact) == score


def test_the_lower_direction_counts(wordnet: WordNet):
    measure = wups(wordnet, 0.0)
    assert set_score("chair, stool", "chair", measure) == pytest.approx(2 / 3)
    assert set_score("chair", "chair, man", measure) == pytest.approx(2 * 1 / (3 + 2))


def test_wordnet_is_found_where_the_environment_says(
    small_wordnet: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setenv(VARIABLE, str(small_wordnet))
    assert WordNet.find().senses("chair")
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for file in small_wordnet.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    assert WordNet.find(tmp_path / "wordnet.zip").senses("chair")
    with pytest.raises(EvaluationError, match=r"data\.noun"):
        WordNet.find(tmp_path / "nowhere")


def test_an_index_of_another_version_is_noticed(small_wordnet: Path):  # noqa: F811
    data = (small_wordnet / "data.noun").read_text()
    (small_wordnet / "data.noun").write_text("  2 more licence\n" + data)
    with pytest.raises(EvaluationError, match="differ in version"):
        WordNet.open(small_wordnet).similarity("chair", "stool")
