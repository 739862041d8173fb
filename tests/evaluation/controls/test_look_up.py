"""What memory answers by itself: the nearest entry, and what the neighbours agree on."""

from __future__ import annotations

from pathlib import Path

from tinyalign.data.images import load_image, pixel_hash
from tinyalign.evaluation.controls.comparison_rows import evaluate_rows
from tinyalign.evaluation.controls.look_up import LOOK_UPS, look_up
from tinyalign.evaluation.metrics.vqa import vqa_accuracy
from tinyalign.evaluation.results import Prediction, read_predictions, read_results
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.memory.search.retriever import Exclusion

from ..conftest import World

SETTINGS = {"task": "vqa", "max_new_tokens": 4, "batch_size": 4}


def answered(**told: str) -> Prediction:
    return Prediction(
        id="one", image_id="image", instruction="what is it?", prediction="of the model",
        references=("a dog",), loss_sum=2.0, supervised_tokens=3, look_up=told,
        scores={"accuracy": 1.0},
    )  # fmt: skip


def test_the_look_up_answers_in_the_model_s_place() -> None:
    one = answered(nearest="a cat", consensus="a dog")
    for kind, said in (("nearest", "a cat"), ("consensus", "a dog")):
        [told] = look_up([one], kind)
        assert told.prediction == said
        assert (told.loss_sum, told.supervised_tokens, told.scores) == (0.0, 0, {})
        assert told.references == one.references


def test_where_nothing_was_retrieved_there_is_no_answer() -> None:
    assert [one.prediction for one in look_up([answered()], "nearest")] == [""]


def test_each_prediction_notes_what_its_neighbours_say(world: World, questions) -> None:
    found = evaluate(
        world.model, world.processor, questions, retriever=world.retriever, **SETTINGS
    ).predictions
    for sample, one in zip(questions, found):
        image = load_image(sample.images[0])
        pixels = world.processor.image_processor(images=[image], return_tensors="pt")
        memory = world.retriever.retrieve(
            world.model.get_vision_features(pixels["pixel_values"]),
            world.retriever.perceiver.query_ids([sample.instruction]),
            [Exclusion((sample.id,), (pixel_hash(image),))],
        )
        near = memory.neighbours[0]
        assert one.look_up == {
            "nearest": near.texts[0],
            "consensus": world.retriever.ranker.agreed(near.texts, near.scores),
        }


def test_the_rows_stand_beside_those_of_the_model(world: World, questions, tmp_path: Path) -> None:
    rows = evaluate_rows(
        world.model, world.processor, questions,
        retriever=world.retriever, out=tmp_path, **SETTINGS,
    )  # fmt: skip
    assert set(LOOK_UPS) <= set(rows)
    for kind in LOOK_UPS:
        results = read_results(tmp_path / kind)
        assert results == rows[kind].results
        assert results.settings["memory"] == f"look-up: {kind}"
        assert "loss" not in results.metrics  # there is no model that could have one
        told = read_predictions(tmp_path / kind)
        by_hand = [vqa_accuracy(one.prediction, one.references) for one in told]
        assert results.metrics["accuracy"].value == sum(by_hand) / len(by_hand)
        assert [one.prediction for one in told] == [
            one.look_up[kind] for one in rows["on"].predictions
        ]


def test_without_memory_there_is_no_look_up(world: World, questions) -> None:
    found = evaluate(world.model, world.processor, questions, **SETTINGS)
    assert all(one.look_up == {} for one in found.predictions)


def test_rows_without_answers_have_no_look_up(world: World, questions, tmp_path: Path) -> None:
    rows = evaluate_rows(
        world.model, world.processor, questions,
        retriever=world.retriever, out=tmp_path, **{**SETTINGS, "max_new_tokens": 0},
    )  # fmt: skip
    assert not set(LOOK_UPS) & set(rows)
