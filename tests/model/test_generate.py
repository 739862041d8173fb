"""Generation: vision features once, memories fetched once, placeholders never said."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tinyalign.errors import ModelError


@pytest.fixture
def attached(build, fake_retriever):
    model, processor = build(k=2)
    processor.memory_enabled = True
    processor.query_tokenizer = lambda texts: torch.tensor([[len(text)] for text in texts])
    model.retriever = fake_retriever(2)
    return model, processor


def count_calls(monkeypatch, module):
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def test_one_vision_pass_serves_query_and_answer(attached, inputs, monkeypatch):
    model, processor = attached
    batch = inputs(processor, ["why?", "what color?"])
    calls, handle = count_calls(monkeypatch, model.model.vision_tower)
    out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    handle.remove()
    assert len(calls) == 1
    assert len(model.retriever.queries) == 1
    features, query_ids, _ = model.retriever.queries[0]
    assert query_ids.tolist() == [[4], [11]]  # the instructions, and nothing else
    assert torch.equal(features, model.get_vision_features(batch["pixel_values"]))
    assert model.last_retrieval.ids == [["a", "a"]] * 2
    # The same by hand: memories passed in, no retriever.
    found, model.retriever = model.last_retrieval, None
    batch.pop("memory_query_ids")
    by_hand = model.generate(**batch, memory_values=found.values, max_new_tokens=4, do_sample=False)
    assert torch.equal(out, by_hand)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}], ids=str)
def test_memories_follow_beams_and_uncached_steps(attached, inputs, options):
    model, processor = attached
    batch = inputs(processor, ["why?", "what color?"])
    out = model.generate(**batch, max_new_tokens=3, do_sample=False, **options)
    assert out.shape[0] == 2
    if "use_cache" in options:
        assert torch.equal(out, model.generate(**batch, max_new_tokens=3, do_sample=False))


def test_first_step_of_generate_equals_forward(attached, inputs):
    model, processor = attached
    batch = inputs(processor)
    out = model.generate(
        **batch, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    found = model.last_retrieval
    batch.pop("memory_query_ids")
    logits = model(**batch, memory_values=found.values, memory_mask=found.mask).logits[:, -1]
    torch.testing.assert_close(out.logits[0], logits, atol=1e-5, rtol=0)


def test_cached_features_and_own_memories_go_straight_through(attached, inputs, memories):
    model, processor = attached
    batch = inputs(processor)
    features = model.get_vision_features(batch.pop("pixel_values"))
    out = model.generate(
        **batch, vision_features=features, memory_values=memories(1, 2), max_new_tokens=2
    )
    assert model.retriever.queries == []
    assert out.shape[1] > batch["input_ids"].shape[1]
    model.generate(**batch, vision_features=features, memory_exclude=["a"], max_new_tokens=2)
    seen, _, exclude = model.retriever.queries[0]
    assert torch.equal(seen, features)
    assert exclude == ["a"]


def test_the_last_image_of_each_row_asks(attached, photo):
    model, processor = attached
    other = photo.rotate(180)

    def turn(*images):
        parts = [{"type": "image", "image": image} for image in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "why?"}]}]

    batch = processor.apply_chat_template(
        [turn(photo, other), turn(photo)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    model.generate(**batch, max_new_tokens=1)
    features = model.retriever.queries[0][0]
    expected = model.get_vision_features(batch["pixel_values"])[[1, 2]]
    assert torch.equal(features, expected)


def prompts(processor, *chats):
    """A left-padded batch of prompts of one user turn each: lists of images and texts."""

    def part(one):
        if isinstance(one, str):
            return {"type": "text", "text": one}
        return {"type": "image", "image": one}

    return processor.apply_chat_template(
        [[{"role": "user", "content": [part(one) for one in parts]}] for parts in chats],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def test_a_text_alone_is_answered_with_and_without_a_bank(attached):
    model, processor = attached
    options = {"max_new_tokens": 4, "do_sample": False}
    model.last_retrieval = "that of a question before"
    remembering = model.generate(**prompts(processor, ["why?"]), **options)
    assert model.retriever.queries == []
    assert model.last_retrieval is None
    model.retriever, processor.query_tokenizer = None, None
    processor.memory_enabled = False
    assert torch.equal(remembering, model.generate(**prompts(processor, ["why?"]), **options))


def test_rows_with_and_without_an_image_are_answered_as_alone(attached, photo):
    model, processor = attached
    chats = ["hm?"], [photo, "why?"], ["what color is it?"]

    def first_logits(*chats):
        options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True}
        batch = prompts(processor, *chats)
        return model.generate(**batch, **options, return_dict_in_generate=True).logits[0]

    together = first_logits(*chats)
    assert model.last_retrieval.ids == [[], ["a", "a"], []]
    assert model.last_retrieval.mask.tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert model.retriever.queries[0][1].tolist() == [[4]]
    alone = torch.cat([first_logits(chat) for chat in chats])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_soft_prompt_stands_behind_images_alone(build, photo):
    model, processor = build(k=2, memory_source="soft_prompt")
    batch = prompts(processor, ["why?"], [photo, "why?"])
    alone = model(**prompts(processor, [photo, "why?"])).logits[:, -1]
    torch.testing.assert_close(model(**batch).logits[1:, -1], alone, atol=1e-5, rtol=1e-4)


def test_memory_without_an_image_is_an_error(attached):
    model, _ = attached
    ids = torch.full((1, 40), model.config.memory_token_id)
    with pytest.raises(ModelError, match="has no image"):
        model.generate(input_ids=ids, max_new_tokens=1)


def test_placeholders_are_never_said(build, inputs):
    model, processor = build()
    placeholders = [model.config.image_token_id, model.config.memory_token_id]
    with torch.no_grad():
        model.lm_head.weight[placeholders] += 100  # they would win every step
    batch = inputs(processor)
    new = model.generate(**batch, max_new_tokens=5, do_sample=False)[
        0, batch["input_ids"].shape[1] :
    ]
    assert not set(new.tolist()) & set(placeholders)


def test_the_pipeline_gives_the_same_answer(attached, chat, photo, inputs, tmp_path):
    model, processor = attached
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert not again.memory_enabled  # a bank is attached anew, never assumed
    batch = inputs(again)
    new = loaded.generate(**batch, max_new_tokens=5, do_sample=False)
    expected = again.decode(new[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    options = {"max_new_tokens": 5, "do_sample": False}
    ask = pipeline("image-text-to-text", model=str(tmp_path))
    answer = ask(text=chat(photo), generate_kwargs=options, return_full_text=False)
    assert answer[0]["generated_text"] == expected
    # With a memory attached the pipeline passes the query on.
    ask.model.retriever, ask.processor.memory_enabled = model.retriever, True
    ask.processor.query_tokenizer = processor.query_tokenizer
    ask(text=chat(photo, "why?"), generate_kwargs=options, return_full_text=False)
    assert model.retriever.queries[-1][1].tolist() == [[4]]


def test_a_model_trained_to_do_without_memories_needs_no_bank(build, inputs, memories):
    """Its placeholders stay, and every memory is absent: what drop-out showed it in training."""
    model, processor = build(k=2)
    model.config.memory_optional = processor.memory_learned = True
    batch = inputs(processor, ["why?", "what color?"])
    assert bool((batch["input_ids"] == model.config.memory_token_id).any())
    alone = model.generate(**batch, max_new_tokens=4, do_sample=False)
    absent = torch.zeros(2, 2, dtype=torch.bool)
    by_hand = model.generate(
        **batch, memory_values=memories(2, 2), memory_mask=absent, max_new_tokens=4, do_sample=False
    )
    assert torch.equal(alone, by_hand)
    model.config.memory_optional = False
    with pytest.raises(ModelError, match="memory placeholders but no memory_values"):
        model.generate(**batch, max_new_tokens=4)
