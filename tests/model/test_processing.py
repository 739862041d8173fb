"""The processor: placeholders as the data room counts them, and texts that stay text."""

import pytest
import torch
from transformers import AutoProcessor

from tinyalign.data.chat import encode
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.errors import ModelError
from tinyalign.model.processing import TinyAlignProcessor, instruction


@pytest.fixture(scope="module")
def processor(build):
    return build(k=2)[1]


@pytest.fixture(autouse=True)
def detached(processor):
    yield
    processor.memory_enabled, processor.query_tokenizer = False, None


def test_memory_placeholders_stand_right_behind_the_image(processor, inputs):
    processor.memory_enabled = True
    ids = inputs(processor)["input_ids"][0].tolist()
    first = ids.index(processor.image_token_id)
    block = [processor.image_token_id] * 16 + [processor.memory_token_id] * 32
    assert ids[first : first + 48] == block
    assert ids.count(processor.memory_token_id) == 32


def test_memory_follows_the_last_image_of_each_chat_as_in_training(processor, photo):
    processor.memory_enabled = True

    def chat(*turns):
        """Turns of (number of images, text), user and assistant taking turns."""
        roles = ("user", "assistant")
        picture = {"type": "image", "image": photo}
        return [
            {"role": roles[i % 2], "content": [picture] * n + [{"type": "text", "text": text}]}
            for i, (n, text) in enumerate(turns)
        ]

    chats = [chat((2, "both?")), chat((1, "one?"), (0, "yes"), (1, "and this?")), chat((1, "it?"))]
    out = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    for messages, ids in zip(chats, out["input_ids"]):
        trained = encode(
            messages,
            processor.tokenizer,
            processor.chat_template,
            n_image_tokens=16,
            n_memory_tokens=32,
            add_generation_prompt=True,
        )
        assert ids == trained.input_ids


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("text", ["what color?", "an <image> and a <memory>", ""])
def test_prompts_are_tokenised_as_in_training(processor, inputs, enabled, text):
    processor.memory_enabled = enabled
    sample = Sample("a", (ImageRef("a.png"),), (Message("user", text),))
    trained = encode(
        sample,
        processor.tokenizer,
        processor.chat_template,
        n_image_tokens=16,
        n_memory_tokens=processor.n_memory_tokens,
        add_generation_prompt=True,
    )
    ids = inputs(processor, [text])["input_ids"][0].tolist()
    known = {processor.image_token_id: 16, processor.memory_token_id: 32 * enabled}
    assert {token: ids.count(token) for token in known} == known
    if "<" not in text:  # there a character without width keeps the text from being a placeholder
        assert ids == trained.input_ids


@pytest.mark.parametrize("enabled", [False, True])
def test_a_text_without_an_image_is_tokenised_as_in_training(processor, enabled):
    processor.memory_enabled = enabled
    chat = [{"role": "user", "content": [{"type": "text", "text": "what color?"}]}]
    out = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    trained = encode(
        Sample("a", (), (Message("user", "what color?"),)),
        processor.tokenizer,
        processor.chat_template,
        n_image_tokens=16,
        n_memory_tokens=32,
        add_generation_prompt=True,
    )
    assert out["input_ids"][0] == trained.input_ids
    assert processor.memory_token_id not in trained.input_ids


def test_assistant_masks_reach_past_the_placeholders(processor, chat, photo):
    processor.memory_enabled = True
    talk = [*chat(photo), {"role": "assistant", "content": [{"type": "text", "text": "blue"}]}]
    out = processor.apply_chat_template(
        [talk], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [i for i, on in zip(out["input_ids"][0], out["assistant_masks"][0]) if on]
    assert processor.tokenizer.decode(said).strip() == "blue<|im_end|>"


def test_the_query_is_the_instruction_alone(processor, photo, chat):
    processor.memory_enabled = True
    asked = []
    processor.query_tokenizer = lambda texts: (
        asked.extend(texts),
        torch.zeros(len(texts), 1, dtype=torch.long),
    )[1]
    talk = [
        {"role": "system", "content": "Be brief."},
        *chat(photo, "what color?"),
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "and now?"},
    ]
    out = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt")
    assert asked == ["what color?"]
    assert out["memory_query_ids"].shape == (1, 1)
    assert instruction(talk) == "what color?"


def test_without_a_bank_there_is_no_query(processor, inputs):
    assert "memory_query_ids" not in inputs(processor)


def test_save_and_load(processor, inputs, tmp_path):
    processor.memory_enabled = True
    processor.query_tokenizer = lambda texts: torch.zeros(len(texts), 1, dtype=torch.long)
    processor.save_pretrained(tmp_path)
    assert processor.query_tokenizer is not None
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TinyAlignProcessor
    assert loaded.query_tokenizer is None
    loaded.memory_enabled = True
    processor.query_tokenizer = None
    mine, theirs = inputs(processor), inputs(loaded)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_soft_prompts_placeholders_need_no_bank_and_are_saved(build, inputs, tmp_path):
    _, processor = build(k=2, memory_source="soft_prompt")
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    ids = inputs(loaded)["input_ids"][0].tolist()
    assert not loaded.memory_enabled
    assert ids.count(loaded.memory_token_id) == loaded.n_memory_tokens == 32


def test_counts_for_serving_agree_with_the_ids(processor, inputs):
    processor.memory_enabled = True
    counted = processor._get_num_multimodal_tokens([[48, 64]])["num_image_tokens"]
    ids = inputs(processor)["input_ids"][0].tolist()
    assert counted == [sum(i in (processor.image_token_id, processor.memory_token_id) for i in ids)]


def test_a_tokenizer_without_placeholders_is_refused(processor, make_tokenizer):
    with pytest.raises(ModelError, match="<image>"):
        TinyAlignProcessor(processor.image_processor, make_tokenizer())


def test_images_must_match_their_placeholders(processor, photo):
    with pytest.raises((ValueError, ModelError), match="2 images"):
        processor(text="<image> why?", images=[photo, photo])
