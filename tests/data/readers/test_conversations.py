"""Turns as LLaVA writes them: who speaks, what is said, and where images were meant to go."""

from __future__ import annotations

import pytest

from tinyalign.data.readers.conversations import conversation_sample
from tinyalign.data.sample import Message, Sample
from tinyalign.errors import DataError


def sample(*turns) -> Sample:
    return conversation_sample(list(turns), (), "s", source="made", where="here")


def test_tags_are_taken_out_of_the_users_text_and_counted():
    found = sample(
        {"from": "human", "value": "<image>\nWho?<image>"},
        {"from": "gpt", "value": "The tag is <image>."},
    )
    assert found.messages == (
        Message("user", "Who?"),
        Message("assistant", "The tag is <image>."),
    )
    assert found.image_tags == 2


def test_role_and_content_are_understood_too():
    found = sample({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A dog."})
    assert (found.instruction, found.answer, found.image_tags) == ("Who?", "A dog.", 0)


@pytest.mark.parametrize(
    "turn", ["wuff", {"from": "dog", "value": "wuff"}, {"from": ["human"], "value": "Who?"}]
)
def test_a_turn_of_nobody_known_is_named(turn):
    with pytest.raises(DataError, match="here: expected a turn from"):
        sample(turn)
