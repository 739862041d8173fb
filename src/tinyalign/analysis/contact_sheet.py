"""A contact sheet: pictures with their question, what two models said, and what was remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from tinyalign.errors import ConfigError

RIGHT, WRONG = "#1a7f37", "#c0392b"
INK, QUIET, LINE = "#1f2328", "#6e7781", "#d8dee4"
PAPER, CARD = "#f3f5f7", "#ffffff"
BAR, BAR_BACK = "#0072b2", "#e6ebf0"

WIDTH = 500  # of a card, pixels
MARGIN = 18
PICTURE = 144
THUMBNAIL = 30
MEMORY_ROW = 38
HEADER = 74


@dataclass(frozen=True)
class Said:
    """What one model answered."""

    model: str
    text: str
    right: bool


@dataclass(frozen=True)
class Remembered:
    """One retrieved memory."""

    text: str
    similarity: float
    image: Image.Image | None = None


@dataclass(frozen=True)
class Card:
    """One question."""

    image: Image.Image
    question: str
    answer: str
    said: tuple[Said, ...]
    memories: tuple[Remembered, ...] = ()


def contact_sheet(
    cards: Sequence[Card], title: str, subtitle: str = "", columns: int = 3
) -> Image.Image:
    """Lay the cards out row by row, all of one size. Raises ConfigError without a card.

    Green with a tick is right, red with a cross is wrong; bars and numbers are similarities.
    """
    if not cards:
        raise ConfigError("a contact sheet needs at least one card, found none")
    columns = min(columns, len(cards))
    rows = -(-len(cards) // columns)
    height = card_height(cards)
    size = sheet_size(len(cards), height, columns)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN + 4, MARGIN), title, INK, _font(25))
    draw.text((MARGIN + 4, MARGIN + 34), subtitle, QUIET, _font(15))
    for i, card in enumerate(cards):
        row, column = divmod(i, columns)
        x = MARGIN + column * (WIDTH + MARGIN)
        y = MARGIN + HEADER + row * (height + MARGIN)
        sheet.paste(draw_card(card, height), (x, y))
    assert rows * columns >= len(cards)
    return sheet


def sheet_size(n_cards: int, height: int, columns: int) -> tuple[int, int]:
    """(width, height) in pixels of a sheet."""
    columns = min(columns, n_cards)
    rows = -(-n_cards // columns)
    return (
        MARGIN + columns * (WIDTH + MARGIN),
        MARGIN + HEADER + rows * (height + MARGIN),
    )


def card_height(cards: Sequence[Card]) -> int:
    """Height of every card: that of the one with most to say."""
    memories = max(len(card.memories) for card in cards)
    body = PICTURE + 2 * MARGIN
    said = max(len(card.said) for card in cards)
    body = max(body, 2 * MARGIN + 3 * 23 + 28 + said * 27)
    return body + (30 + memories * MEMORY_ROW + 8 if memories else 0)


def draw_card(card: Card, height: int) -> Image.Image:
    """One card, (WIDTH, height)."""
    picture = Image.new("RGB", (WIDTH, height), CARD)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, WIDTH - 1, height - 1), outline=LINE)
    picture.paste(_fitted(card.image, PICTURE), (MARGIN, MARGIN))
    draw.rectangle((MARGIN, MARGIN, MARGIN + PICTURE - 1, MARGIN + PICTURE - 1), outline=LINE)
    _draw_answers(picture, card)
    if card.memories:
        top = height - 8 - len(card.memories) * MEMORY_ROW
        draw.line((MARGIN, top - 30, WIDTH - MARGIN, top - 30), LINE)
        draw.text((MARGIN, top - 23), "retrieved memories", QUIET, _font(13))
        label = "similarity"
        wide = draw.textlength(label, _font(13))
        draw.text((WIDTH - MARGIN - wide, top - 23), label, QUIET, _font(13))
        for i, memory in enumerate(card.memories):
            _draw_memory(picture, memory, top + i * MEMORY_ROW)
    return picture


def _draw_answers(picture: Image.Image, card: Card) -> None:
    draw = ImageDraw.Draw(picture)
    left, y = MARGIN + PICTURE + 16, MARGIN - 2
    room = WIDTH - MARGIN - left
    for line in wrapped(card.question, _font(18), room, 3):
        draw.text((left, y), line, INK, _font(18))
        y += 23
    y += 3
    draw.text((left, y), f"answer: {card.answer}", QUIET, _font(15))
    y += 29
    label = max((draw.textlength(said.model, _font(15)) for said in card.said), default=0.0)
    for said in card.said:
        colour = RIGHT if said.right else WRONG
        draw.text((left, y + 2), said.model, QUIET, _font(15))
        icon = _icon(said.right)
        x = int(left + label + 12)
        picture.paste(icon, (x, y + 3), icon)
        text = shortened(said.text or "(nothing)", _font(17), WIDTH - MARGIN - x - 24)
        draw.text((x + 24, y), text, colour, _font(17))
        y += 27


def _draw_memory(picture: Image.Image, memory: Remembered, y: int) -> None:
    draw = ImageDraw.Draw(picture)
    x = MARGIN
    if memory.image is not None:
        picture.paste(_fitted(memory.image, THUMBNAIL), (x, y))
        draw.rectangle((x, y, x + THUMBNAIL - 1, y + THUMBNAIL - 1), outline=LINE)
        x += THUMBNAIL + 10
    bar = 56
    number = f"{memory.similarity:.2f}"
    number_left = WIDTH - MARGIN - draw.textlength(number, _font(14))
    bar_left = WIDTH - MARGIN - 36 - bar
    text = shortened(memory.text, _font(15), bar_left - 10 - x)
    draw.text((x, y + 6), text, INK, _font(15))
    draw.rectangle((bar_left, y + 12, bar_left + bar, y + 18), BAR_BACK)
    filled = round(bar * min(1.0, max(0.0, memory.similarity)))
    if filled:
        draw.rectangle((bar_left, y + 12, bar_left + filled, y + 18), BAR)
    draw.text((number_left, y + 7), number, QUIET, _font(14))


def wrapped(text: str, font: ImageFont.FreeTypeFont, room: float, lines: int) -> list[str]:
    """`text` in at most `lines` lines no wider than `room` pixels; the last ends in an ellipsis
    where there is more, and so does a word that is too long for a line."""
    words, found = text.split(), [""]
    for i, word in enumerate(words):
        longer = f"{found[-1]} {word}".strip()
        if font.getlength(longer) <= room or not found[-1]:
            found[-1] = longer
        elif len(found) < lines:
            found.append(word)
        else:
            found[-1] = " ".join([found[-1], *words[i:]])
            break
    return [shortened(line, font, room) for line in found]


def shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """`text`, cut and ended with an ellipsis if it is wider than `room` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text.rstrip() + "..."


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ConfigError(
            "a contact sheet needs Pillow with FreeType, this build has none; "
            "install Pillow from a wheel"
        )
    return font


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The whole image within a white square."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), CARD)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _icon(right: bool, side: int = 16) -> Image.Image:
    """A tick or a cross on a disc, drawn large and made smaller, so that its edges are smooth."""
    n = 8 * side
    icon = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    draw = ImageDraw.Draw(icon)
    draw.ellipse((0, 0, n - 1, n - 1), fill=RIGHT if right else WRONG)
    if right:
        points = [(0.26 * n, 0.52 * n), (0.44 * n, 0.70 * n), (0.75 * n, 0.33 * n)]
        draw.line(points, "white", n // 9, joint="curve")
    else:
        for a, b in (((0.32, 0.32), (0.68, 0.68)), ((0.32, 0.68), (0.68, 0.32))):
            draw.line([(a[0] * n, a[1] * n), (b[0] * n, b[1] * n)], "white", n // 9)
    return icon.resize((side, side), Image.Resampling.LANCZOS)
