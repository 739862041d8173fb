"""The runner: right at any batch size, with and without memory, and not thrown by bad images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyalign.data.chat import encode
from tinyalign.data.images import load_image
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import DataError, EvaluationError
from tinyalign.evaluation.controls.retrievers import RandomMemories
from tinyalign.evaluation.metrics.intervals import Interval
from tinyalign.evaluation.results import read_predictions, read_results
from tinyalign.evaluation.running.inputs import ItemReader
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.evaluation.tasks import Scored
from tinyalign.model.backbones.vision import VisionEncoder

from ..conftest import World, make_captions, make_model


def run(world: World, samples, task="vqa", memory=True, **settings):
    retriever = world.retriever if memory is True else memory or None
    settings.setdefault("max_new_tokens", 6)
    return evaluate(
        world.model, world.processor, samples, task=task, retriever=retriever, **settings
    )


def close(a, b) -> bool:
    """The same judgement up to the rounding of another batch shape."""
    rounded = [
        dataclasses.replace(p, loss_sum=round(p.loss_sum, 3), memory_scores=()) for p in (*a, *b)
    ]
    return rounded[: len(a)] == rounded[len(a) :]


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "without"])
def test_batch_size_changes_nothing(world: World, questions, memory: bool):
    one = run(world, questions, memory=memory, batch_size=1).predictions
    assert len({p.prediction for p in one}) > 1, "the model must not answer all alike"
    for size in (7, 32):
        assert close(run(world, questions, memory=memory, batch_size=size).predictions, one)


def test_loss_equals_the_models_own(world: World, questions):
    found = run(world, questions, memory=False, batch_size=4)
    vision = VisionEncoder.from_model(world.model, world.processor)
    processor = world.processor
    total, tokens = 0.0, 0
    for sample in questions:
        encoded = encode(
            sample,
            processor.tokenizer,
            processor.chat_template,
            n_image_tokens=processor.image_seq_length,
        )
        labels = torch.tensor([encoded.labels])
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            loss = world.model(
                input_ids=torch.tensor([encoded.input_ids]),
                vision_features=vision.encode([load_image(sample.images[0])]),
                labels=labels,
            ).loss
        total, tokens = total + loss.item() * count, tokens + count
    assert found.results.metrics["loss"].value == pytest.approx(total / tokens, rel=1e-5)
    assert sum(p.supervised_tokens for p in found.predictions) == tokens


def test_memories_change_the_answer_and_are_on_record(world: World, questions):
    with_memory, without = run(world, questions), run(world, questions, memory=False)
    assert with_memory.results.settings["memories"] == 2
    assert without.results.settings["memories"] == 0
    for prediction in with_memory.predictions:
        assert len(prediction.memory_ids) == len(prediction.memory_scores) == 2
        assert prediction.memory_scores[0] >= prediction.memory_scores[1]
        assert all(-1.001 <= score <= 1.001 for score in prediction.memory_scores)
    assert all(p.memory_ids == () for p in without.predictions)
    losses = [p.loss_sum for p in with_memory.predictions]
    assert not np.allclose(losses, [p.loss_sum for p in without.predictions], atol=1e-3)
    assert with_memory.results.bank == str(world.retriever.bank.folder)
    assert without.results.bank is None


def test_a_picture_in_the_bank_never_helps_itself(world: World, questions):
    for i, prediction in enumerate(run(world, questions, max_new_tokens=0).predictions[:3]):
        assert f"bank{i}" not in prediction.memory_ids


def test_cached_features_give_the_same_as_live_ones(world: World, questions):
    vision = VisionEncoder.from_model(world.model, world.processor)
    cache = vision.encode([load_image(sample.images[0]) for sample in questions])
    live = run(world, questions).predictions
    assert close(run(world, questions, cached_features=cache).predictions, live)


def test_prompts_are_those_of_the_pipeline(world: World, questions):
    reader = ItemReader(
        questions,
        world.processor,
        world.processor.memory_seq_length,
        decode=True,
        strict=True,
    )
    for batch in reader.batches(1):
        items = batch.items
        content = [
            {"type": "image", "image": items[0].image},
            {"type": "text", "text": items[0].sample.instruction},
        ]
        inputs = world.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert inputs["input_ids"][0].tolist() == items[0].prompt.input_ids


def test_random_memories_have_the_searchs_scores_and_other_ids(world: World, questions):
    true = run(world, questions, max_new_tokens=0)
    control = RandomMemories(world.retriever, seed=1)
    drawn = run(world, questions, memory=control, max_new_tokens=0, batch_size=4)
    again = run(world, questions, memory=control, max_new_tokens=0, batch_size=9)
    assert close(drawn.predictions, again.predictions)
    for ours, theirs in zip(drawn.predictions, true.predictions):
        assert ours.memory_scores == pytest.approx(theirs.memory_scores, abs=1e-5)
        assert len(set(ours.memory_ids)) == 2
    assert [p.memory_ids for p in drawn.predictions] != [p.memory_ids for p in true.predictions]
    for i, prediction in enumerate(drawn.predictions[:3]):
        assert f"bank{i}" not in prediction.memory_ids
    assert drawn.results.bank == str(world.retriever.bank.folder)


def test_captions_are_asked_once_an_image_and_judged_by_all_references(world: World):
    samples = make_captions(images=4, each=3)
    found = run(world, samples, "caption", batch_size=5, max_new_tokens=6)
    assert set(found.results.metrics) == {"loss", "cider", "bleu4"}
    assert found.results.n == 12
    assert found.results.settings["images"] == 4
    for first in range(0, 12, 3):
        group = found.predictions[first : first + 3]
        assert len({p.prediction for p in group}) == 1
        assert len({p.loss_sum for p in group}) == 3
        assert [set(p.scores) for p in group] == [{"cider"}, set(), set()]
    assert found.predictions[0].references == samples[0].references
    assert found.predictions[0].instruction == ""


def test_a_perfect_answer_scores_one(world: World, questions):
    found = run(world, questions)
    echoed = [
        dataclasses.replace(sample, references=(prediction.prediction,))
        for sample, prediction in zip(questions, found.predictions)
    ]
    assert run(world, echoed).results.metrics["accuracy"].value == 1


def test_a_bad_image_is_listed_and_the_rest_judged(world: World, questions, tmp_path: Path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    turns = questions[0].messages
    bad = [
        Sample("gone", (ImageRef(path=str(tmp_path / "gone.jpg")),), turns),
        Sample("cut", (ImageRef(path=str(tmp_path / "cut.jpg")),), turns),
        Sample("blind", (), turns),
        Sample("mute", questions[0].images, ()),
    ]
    mixed = [bad[0], *questions[:2], *bad[1:], *questions[2:]]
    found = run(world, mixed, batch_size=3, max_new_tokens=2)
    assert [s.id for s in found.results.skipped] == ["gone", "cut", "blind", "mute"]
    assert "gone.jpg" in found.results.skipped[0].reason
    clean = run(world, questions, batch_size=3, max_new_tokens=2)
    assert close(found.predictions, clean.predictions)
    with pytest.raises(DataError, match=r"gone\.jpg"):
        run(world, mixed, strict=True)
    with pytest.raises(EvaluationError, match="every sample was skipped"):
        run(world, bad)


def test_a_question_without_an_answer_has_no_loss_but_is_judged(world: World, questions):
    asked = dataclasses.replace(questions[0], messages=(Message("user", "What colour?"),))
    found = run(world, [asked, questions[1]], max_new_tokens=2)
    assert found.predictions[0].supervised_tokens == 0
    assert found.predictions[0].loss_sum == 0
    assert found.predictions[1].supervised_tokens > 0
    assert "loss" not in run(world, [asked], max_new_tokens=2).results.metrics


def test_loss_alone_generates_nothing(world: World, questions):
    found = run(world, questions, max_new_tokens=0)
    assert set(found.results.metrics) == {"loss"}
    assert {p.prediction for p in found.predictions} == {""}
    full = run(world, questions)
    assert found.results.metrics["loss"] == full.results.metrics["loss"]


def test_files_say_what_was_found(world: World, questions, tmp_path: Path):
    found = run(world, questions, out=tmp_path / "r" / "results.json", seed=7, model_name="tiny")
    assert read_results(tmp_path / "r") == found.results
    assert read_predictions(tmp_path / "r") == found.predictions
    content = json.loads((tmp_path / "r" / "results.json").read_text())
    assert (content["model"], content["seed"], content["n"]) == ("tiny", 7, 9)


def test_the_models_mode_and_attachment_are_left_alone(world: World, questions):
    world.model.train()
    try:
        run(world, questions[:2], memory=False, max_new_tokens=2)
        assert world.model.training
        assert world.model.retriever is world.retriever
        assert world.processor.memory_enabled
    finally:
        world.model.eval()


def test_a_soft_prompt_is_used_without_a_bank(
    world, perceiver, tiny_vision_dir, tiny_llm_dir, questions
):
    model, processor = make_model(
        tiny_vision_dir, tiny_llm_dir, perceiver, k=2, memory_source="soft_prompt"
    )
    before = evaluate(model, processor, questions, task="vqa", max_new_tokens=3)
    with torch.no_grad():
        model.model.memory_connector.table.add_(1.0)
    after = evaluate(model, processor, questions, task="vqa", max_new_tokens=3)
    assert before.results.settings["memories"] == 0
    assert before.results.metrics["loss"] != after.results.metrics["loss"]


def test_what_cannot_be_asked_is_refused(
    world, perceiver, tiny_vision_dir, tiny_llm_dir, questions
):
    with pytest.raises(EvaluationError, match="caption, vqa, easy_vqa"):
        run(world, questions, task="captions")
    model, processor = make_model(tiny_vision_dir, tiny_llm_dir, perceiver)
    with pytest.raises(EvaluationError, match="without memory"):
        evaluate(model, processor, questions, task="vqa", retriever=world.retriever)


def test_saving_and_loading_changes_nothing(world: World, questions, tmp_path: Path):
    from tinyalign.memory.attach import attach_memory
    from tinyalign.model.modeling import TinyAlignForConditionalGeneration
    from tinyalign.model.processing import TinyAlignProcessor

    before = run(world, questions, batch_size=1)
    world.model.save_pretrained(tmp_path)
    world.processor.save_pretrained(tmp_path)
    model = TinyAlignForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = TinyAlignProcessor.from_pretrained(tmp_path)
    retriever = attach_memory(model, processor, world.retriever.bank.folder)
    for size in (7, 32):
        after = run(World(model, processor, retriever), questions, batch_size=size)
        assert close(after.predictions, before.predictions)
    assert after.results.model_hash == before.results.model_hash
    assert after.results.bank_hash == before.results.bank_hash == world.retriever.bank.hash
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    changed = run(World(model, processor, retriever), questions[:1])
    assert changed.results.model_hash != before.results.model_hash


def test_text_only_sees_neither_image_nor_memories(world: World, questions):
    found = run(world, questions, show_image=False, batch_size=4)
    assert (found.results.settings["image"], found.results.settings["memory"]) == (
        "left out",
        "off",
    )
    assert found.results.bank is None
    assert all(p.memory_ids == () for p in found.predictions)
    shown = run(world, questions, memory=False)
    assert [p.image_id for p in found.predictions] == [p.image_id for p in shown.predictions]
    by_question: dict[str, set[str]] = {}
    for prediction in found.predictions:
        by_question.setdefault(prediction.instruction, set()).add(prediction.prediction)
    assert all(len(answers) == 1 for answers in by_question.values())
    others = [
        dataclasses.replace(s, images=questions[0].images, id=f"other{s.id}") for s in questions
    ]
    swapped = run(world, others, show_image=False)
    assert swapped.results.metrics["loss"].value == pytest.approx(
        found.results.metrics["loss"].value, rel=1e-5
    )
    assert found.results.metrics["loss"] != shown.results.metrics["loss"]


def test_text_only_captions_start_as_texts_do(world, perceiver, tiny_vision_dir, tiny_llm_dir):
    model, processor = make_model(tiny_vision_dir, tiny_llm_dir, perceiver, k=2, template="plain")
    samples = make_captions(images=2)
    reader = ItemReader(samples, processor, 0, decode=False, strict=True, show_image=False)
    [batch] = reader.batches(9)
    start = processor.tokenizer.eos_token_id  # this tokenizer has no BOS
    assert all(item.prompt.input_ids == [start] for item in batch.items)
    assert all(item.full.input_ids[0] == start for item in batch.items)
    assert all(item.full.labels[:1] == [-100] for item in batch.items)
    found = evaluate(model, processor, samples, task="caption", show_image=False, batch_size=3)
    assert sum(p.supervised_tokens for p in found.predictions) == sum(
        len(item.full.labels) - 1 for item in batch.items
    )


def test_a_scorer_of_ones_own_judges_a_task_of_any_name(world: World, questions):
    def scorer(predictions):
        scored = [dataclasses.replace(p, scores={"length": len(p.prediction)}) for p in predictions]
        return Scored(scored, {"length": Interval(1, 0, 2)})

    sorted_ = [dataclasses.replace(questions[0], category="colours"), *questions[1:3]]
    found = run(world, sorted_, "mine", scorer=scorer)
    assert (found.results.task, found.results.metrics) == ("mine", {"length": Interval(1, 0, 2)})
    assert [p.scores["length"] for p in found.predictions] == [
        len(p.prediction) for p in found.predictions
    ]
    assert [p.category for p in found.predictions] == ["colours", "", ""]
    with pytest.raises(EvaluationError, match="max_new_tokens"):
        run(world, sorted_, "mine", scorer=scorer, max_new_tokens=None)
