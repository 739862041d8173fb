"""A sample says what a query may see, what the answer is and what is remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinyalign.data.sample import Message, Sample

turns = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=20)),
    max_size=6,
)


def test_instruction_answer_and_text():
    sample = Sample(
        id="s",
        images=(),
        messages=(
            Message("system", "Be brief."),
            Message("user", " Who? "),
            Message("user", "Where?"),
            Message("assistant", "A dog."),
            Message("user", "Sure?"),
            Message("assistant", "Yes."),
        ),
    )
    assert sample.instruction == "Who?\nWhere?"
    assert sample.answer == "Yes."
    assert sample.text == "Who? Where? A dog. Sure? Yes."


@given(before=turns, answers=st.tuples(st.text(), st.text()), after=turns)
def test_no_answer_ever_reaches_the_instruction(before, answers, after):
    def instruction(answer: str) -> str:
        messages = (*before, Message("assistant", answer), *after)
        return Sample(id="s", images=(), messages=messages).instruction

    assert instruction(answers[0]) == instruction(answers[1])


def test_a_plain_caption_has_no_instruction():
    messages = (Message("user", ""), Message("assistant", "A dog."))
    sample = Sample(id="s", images=(), messages=messages)
    assert sample.instruction == ""
    assert sample.text == "A dog."
