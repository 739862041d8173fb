"""Contact sheets: all cards of one size, text that fits, right and wrong told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from tinyalign.analysis.contact_sheet import (
    RIGHT,
    WRONG,
    Card,
    Remembered,
    Said,
    _font,
    card_height,
    contact_sheet,
    sheet_size,
    shortened,
    wrapped,
)
from tinyalign.errors import ConfigError


def card(right: bool = True, memories: int = 2, question: str = "what colour is it?") -> Card:
    return Card(
        image=Image.new("RGB", (64, 48), "navy"),
        question=question,
        answer="blue",
        said=(Said("baseline", "red", not right), Said("TinyAlign", "blue", right)),
        memories=tuple(Remembered(f"a memory {i}", 0.5, None) for i in range(memories)),
    )


@pytest.mark.parametrize(("n", "columns"), [(1, 3), (3, 3), (4, 3), (12, 4)])
def test_a_sheet_has_room_for_its_cards(n, columns):
    cards = [card() for _ in range(n)]
    sheet = contact_sheet(cards, "title", columns=columns)
    assert sheet.size == sheet_size(n, card_height(cards), columns)


def test_right_and_wrong_have_their_colours():
    colours = {colour for _, colour in contact_sheet([card()], "t").getcolors(1 << 20)}
    assert ImageColor.getrgb(RIGHT) in colours
    assert ImageColor.getrgb(WRONG) in colours


def test_memories_make_a_card_taller():
    assert card_height([card(memories=5)]) > card_height([card(memories=0)])


@given(st.text(max_size=200), st.integers(40, 300))
def test_shortened_text_fits(text, room):
    font = _font(14)
    assert font.getlength(shortened(text, font, room)) <= room


@given(st.text(max_size=300), st.integers(40, 300), st.integers(1, 4))
def test_wrapped_text_fits_its_lines(text, room, lines):
    font = _font(14)
    found = wrapped(text, font, room, lines)
    assert 1 <= len(found) <= lines
    assert all(font.getlength(line) <= room for line in found)


def test_a_sheet_without_cards_is_an_error():
    with pytest.raises(ConfigError, match="at least one card"):
        contact_sheet([], "title")
