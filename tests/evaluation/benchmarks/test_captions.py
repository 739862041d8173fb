"""Captions in COCO's format, by hand-computed BLEU and ROUGE-L and by their sets."""

from __future__ import annotations

import math

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.registry import get_benchmark
from tinyalign.evaluation.metrics.captions import rouge_l_scores


@pytest.fixture
def references(write):
    annotations = [
        {"image_id": 1, "caption": "A dog runs on the grass."},
        {"image_id": 1, "caption": "a brown dog"},
        {"image_id": 2, "caption": "Two men talk."},
    ]
    images = [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}]
    return write("captions_val2014.json", {"annotations": annotations, "images": images})


def results(*captions: str) -> list[dict]:
    return [{"image_id": i, "caption": c} for i, c in enumerate(captions, start=1)]


def test_perfect_captions(references, write, metrics_of):
    predictions = write("r.json", results("a dog runs on the grass", "two men talk"))
    found = metrics_of("captions", predictions, references)
    assert found["bleu1"] == pytest.approx(1.0)
    assert found["bleu4"] == pytest.approx(1.0)
    assert found["rouge_l"] == pytest.approx(1.0)
    assert found["cider"] > 4


def test_bleu_by_hand(references, write, metrics_of):
    found = metrics_of(
        "captions", write("r.json", results("a dog sits", "two men talk")), references
    )
    # unigrams 5 of 6; bigrams 3 of 4; 6 words against the closest references' 3 + 3
    assert found["bleu1"] == pytest.approx(5 / 6)
    assert found["bleu2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 4))


def test_rouge_by_hand():
    found = rouge_l_scores([["a", "dog", "sits"]], [[["a", "brown", "dog"], ["dog"]]])
    precision, recall, weight = 2 / 3, 1.0, 1.2**2
    assert found[0] == pytest.approx(
        (1 + weight) * precision * recall / (recall + weight * precision)
    )
    assert rouge_l_scores([[]], [[["dog"]]])[0] == 0.0


def test_every_image_must_have_a_caption(references, write, metrics_of):
    with pytest.raises(EvaluationError, match="1 of 2 questions have no answer"):
        metrics_of("captions", write("r.json", results("a dog")), references)


def test_prompt_and_image(references):
    captions = get_benchmark("captions")
    sample = captions.samples(captions.questions(references), captions.protocol())[1]
    assert sample.instruction == "Provide a one-sentence caption for the provided image."
    assert sample.images[0].path.endswith("two.jpg")
    assert (
        captions.samples(captions.questions(references), captions.protocol("plain"))[0].instruction
        == ""
    )


def test_flickr8k_in_parquet(shared_data):
    captions = get_benchmark("captions")
    questions = captions.questions(shared_data / "flickr8k" / "dev.parquet")
    assert len(questions) == 1000
    assert all(len(q.references) == 5 for q in questions)
    sample = captions.samples(questions, captions.protocol("plain"))[3]
    assert sample.references == questions[3].references
    assert sample.images[0].data
