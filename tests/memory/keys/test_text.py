from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.errors import ConfigError
from tinyalign.memory.keys.text import PAD_ID, encode_text, text_spans, train_tokenizer

TOKENIZER = train_tokenizer(["a black dog runs through the snow", "two dogs run"], 280)


@given(st.integers(0, 400), st.integers(1, 40))
def test_spans_cover_every_token_once_in_order_and_evenly(n_tokens: int, n_latents: int) -> None:
    spans = text_spans(n_tokens, n_latents)
    assert len(spans) == n_latents
    assert [token for span in spans for token in span] == list(range(n_tokens))
    lengths = [len(span) for span in spans]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_a_short_text_gives_token_j_to_latent_j() -> None:
    assert text_spans(2, 4) == [range(0, 1), range(1, 2), range(2, 2), range(2, 2)]


def test_a_long_text_is_summarised_in_contiguous_spans() -> None:
    assert text_spans(7, 3) == [range(0, 3), range(3, 5), range(5, 7)]


@given(st.text(max_size=60))
def test_any_text_comes_back_lower_cased_and_stripped(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids, mask = encode_text(TOKENIZER, [text], 1000)
    assert TOKENIZER.decode(ids[0][mask[0]].tolist()).strip() == text.strip().lower().strip()


@pytest.mark.parametrize("text", ["<PAD>", "<pad>", "a <PAD> dog"])
def test_no_text_can_spell_the_padding(text: str) -> None:
    ids, _ = encode_text(TOKENIZER, [text], 100)
    assert PAD_ID not in ids[0].tolist()


def test_batches_are_padded_at_the_end_and_cut_at_the_limit() -> None:
    ids, mask = encode_text(TOKENIZER, ["", "dog", "a black dog runs through the snow"], 4)
    assert ids.shape == (3, 4)
    assert mask.sum(dim=1).tolist()[0] == 0
    assert mask.sum(dim=1).tolist()[2] == 4
    assert (ids[~mask] == PAD_ID).all()


def test_empty_batches_of_text_still_have_a_column() -> None:
    ids, mask = encode_text(TOKENIZER, ["", "  "], 4)
    assert ids.tolist() == [[PAD_ID], [PAD_ID]]
    assert not mask.any()


def test_training_twice_gives_the_same_tokenizer() -> None:
    corpus = ["two dogs run in the snow", "a dog and a man"] * 3
    assert train_tokenizer(corpus, 300).to_str() == train_tokenizer(corpus, 300).to_str()


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="257"):
        train_tokenizer(["a"], 100)
