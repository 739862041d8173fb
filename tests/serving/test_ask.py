"""`answer` agrees with transformers' pipeline and with the evaluation, and shows its memories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tinyalign.data.images import load_image
from tinyalign.errors import BankError, DataError
from tinyalign.evaluation.running.runner import evaluate
from tinyalign.memory.attach import attach_memory, detach_memory
from tinyalign.memory.open_bank import find_bank
from tinyalign.model.copier import Copier
from tinyalign.model.copying import CopyGate
from tinyalign.model.decoding import Decoding
from tinyalign.serving.ask import answer

from ..evaluation.conftest import make_model, make_sample

LENGTH = 8


@pytest.fixture
def detached(world):
    """The world's model without its memory, which is given back afterwards."""
    detach_memory(world.model, world.processor)
    yield world
    attach_memory(world.model, world.processor, world.retriever.bank.folder)


def ask(world, sample, **settings):
    image = load_image(sample.images[0])
    return answer(
        world.model, world.processor, image, sample.instruction, max_new_tokens=LENGTH, **settings
    )


def test_ask_evaluate_and_pipeline_agree_with_memory(world, questions):
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=world.model, processor=world.processor)
    judged = evaluate(
        world.model,
        world.processor,
        questions[3:6],
        task="vqa",
        retriever=world.retriever,
        max_new_tokens=LENGTH,
    ).predictions
    for sample, prediction in zip(questions[3:6], judged):
        content = [
            {"type": "image", "image": load_image(sample.images[0])},
            {"type": "text", "text": sample.instruction},
        ]
        piped = pipe(
            text=[{"role": "user", "content": content}],
            return_full_text=False,
            generate_kwargs={"max_new_tokens": LENGTH, "do_sample": False},
        )
        assert piped[0]["generated_text"].strip() == prediction.prediction
        assert ask(world, sample).text == prediction.prediction


def test_memories_are_shown_best_first_with_their_texts(world, questions):
    found = ask(world, questions[4])
    assert len(found.memories) == 2
    texts = dict(zip(world.retriever.bank.ids, world.retriever.bank.texts))
    for name, text, similarity in found.memories:
        assert texts[name] == text
        assert -1.001 <= similarity <= 1.001
    assert found.memories[0][2] >= found.memories[1][2]


def test_a_bank_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(BankError, match=r"mine.*: cannot be read \(Permission denied\)"):
        find_bank(tmp_path / "mine")


def test_a_picture_of_the_bank_finds_itself(world):
    """Unlike evaluation, asking hides nothing: what is remembered may be told."""
    hit = world.retriever.bank.ids.index("bank3")
    entry = world.retriever.bank.entry(hit)
    image = load_image(make_sample(3).images[0])
    found = answer(world.model, world.processor, image, entry.instruction, max_new_tokens=1)
    assert found.memories[0][0] == "bank3"
    assert found.memories[0][2] == pytest.approx(1, abs=1e-3)


def test_a_retriever_can_be_lent_for_one_question(detached, questions):
    without = ask(detached, questions[4])
    lent = ask(detached, questions[4], retriever=detached.retriever)
    assert without.memories == []
    assert len(lent.memories) == 2
    assert detached.model.retriever is None
    assert not detached.processor.memory_enabled
    assert detached.processor.query_tokenizer is None


def test_files_grey_and_transparent_pictures_are_taken(world, photo, tmp_path: Path):
    photo.convert("L").save(tmp_path / "grey.png")
    photo.convert("RGBA").save(tmp_path / "clear.png")
    for name in ("grey.png", "clear.png"):
        found = answer(world.model, world.processor, tmp_path / name, "what?", max_new_tokens=2)
        assert len(found.memories) == 2
    assert answer(world.model, world.processor, photo.convert("L"), "", max_new_tokens=2).memories
    with pytest.raises(DataError, match=r"gone\.png"):
        answer(world.model, world.processor, tmp_path / "gone.png", "what?")


def test_a_transparent_picture_in_memory_is_seen_as_its_file_is(world, photo, tmp_path: Path):
    clear = photo.convert("RGBA")
    clear.putalpha(60)
    clear.save(tmp_path / "clear.png")
    from_file, in_memory = (
        answer(world.model, world.processor, image, "what?", max_new_tokens=1).memories
        for image in (tmp_path / "clear.png", clear)
    )
    assert from_file == in_memory


def test_a_saved_soft_prompt_speaks_in_a_bare_pipeline_as_when_asked(
    perceiver, photo, tiny_vision_dir, tiny_llm_dir, tmp_path: Path
):
    from transformers import pipeline

    settings = {"k": 2, "memory_source": "soft_prompt"}
    model, processor = make_model(tiny_vision_dir, tiny_llm_dir, perceiver, **settings)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("image-text-to-text", model=str(tmp_path))
    content = [{"type": "image", "image": photo}, {"type": "text", "text": "what?"}]

    def piped() -> str:
        found = pipe(
            text=[{"role": "user", "content": content}],
            return_full_text=False,
            generate_kwargs={"max_new_tokens": LENGTH, "do_sample": False},
        )
        return found[0]["generated_text"].strip()

    before = piped()
    assert answer(model, processor, photo, "what?", max_new_tokens=LENGTH).text == before
    with torch.no_grad():
        pipe.model.model.memory_connector.fusion.mlp.output.bias.add_(5.0)
    assert piped() != before


def test_asking_leaves_the_models_mode_alone(world, questions):
    world.model.train()
    try:
        in_training = ask(world, questions[5])
        assert world.model.training
    finally:
        world.model.eval()
    assert in_training == ask(world, questions[5])
    assert not torch.is_inference_mode_enabled()


def test_the_best_of_several_is_the_one_that_neighbours_agree_with(world, questions):
    sample = questions[3]
    torch.manual_seed(0)
    judged = evaluate(
        world.model, world.processor, [sample], task="vqa", retriever=world.retriever,
        max_new_tokens=LENGTH, best_of=4, loss=False,
    )  # fmt: skip
    assert judged.results.decoding["best_of"] == 4
    torch.manual_seed(0)
    found = ask(world, sample, decoding=Decoding(LENGTH, best_of=4))
    assert found.text == judged.predictions[0].prediction
    assert [name for name, _, _ in found.memories] == list(judged.predictions[0].memory_ids)


def test_an_answer_is_copied_where_the_gate_is_open(world, questions):
    """An untrained model says the answer that its memories agree on."""
    sample = questions[3]
    alone = ask(world, sample).text
    world.model.copier = Copier(world.processor, CopyGate.constant(0.999))
    try:
        told = ask(world, sample).text
    finally:
        world.model.copier = None
    assert told != alone
    assert told in {entry.answer for entry in world.retriever.bank.entries.at(range(20)).values()}
