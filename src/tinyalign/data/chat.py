"""A conversation -> token ids and labels.

What is supervised comes from the template's `{% generation %}` blocks alone. Texts are cut where
a block starts and ends, so no token straddles a label boundary and the prompt is tokenised in
training exactly as it is when the answer is still to be generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tinyalign.data.collator import IGNORED
from tinyalign.data.sample import Message, Sample
from tinyalign.data.template_choice import (
    IMAGE_TOKEN,
    Conversation,
    adds_bos,
    choose_template,
    render,
)
from tinyalign.data.templates import CHAT_TEMPLATES
from tinyalign.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = Sample | Sequence[Message] | Sequence[Mapping[str, Any]]

MEMORY_TOKEN = "<memory>"
ANCHORS = ("\n", "a", ".", "0")


@dataclass(frozen=True)
class Encoded:
    """Token ids, and as many labels: the id where it is supervised, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def encode(
    sample: Chat,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    n_image_tokens: int,
    n_memory_tokens: int = 0,
    image_token: str = IMAGE_TOKEN,
    memory_token: str = MEMORY_TOKEN,
    max_length: int | None = None,
    add_generation_prompt: bool = False,
) -> Encoded:
    """Token ids and labels of a conversation, placeholders filled in: [H_V, H_R, H_I].

    Each image becomes `n_image_tokens` image tokens; `n_memory_tokens` memory tokens follow the
    last image. Without an image there are none, as memories are looked up by it. A placeholder or
    special token spelt out in somebody's text stays text.

    Args:
        sample: a `Sample`, its messages, or messages as transformers takes them.
        template: what `choose_template` returned, or a name in `CHAT_TEMPLATES`.
        max_length: cut the end of longer sequences; placeholders are never cut.
        add_generation_prompt: leave out a closing assistant turn and open it instead.

    Raises:
        DataError: no turn to learn from or to answer, a placeholder unknown to the tokenizer,
            placeholders beyond `max_length`, or a template that refuses the conversation.
    """
    name = f"sample {sample.id!r}" if isinstance(sample, Sample) else "conversation"
    chat = _turns(to_conversation(sample), add_generation_prompt, name)
    if template in CHAT_TEMPLATES:
        template = choose_template(tokenizer, template)

    chat, mark = _guard(
        chat, _special_pattern(tokenizer, len(tokenizer), image_token, memory_token)
    )
    try:
        text, spans = render(
            tokenizer, template, chat, add_generation_prompt, image_token=image_token
        )
    except Exception as error:
        raise DataError(f"{name}: the chat template refuses this conversation ({error})") from error

    ids: list[int] = []
    labels: list[int] = []
    for piece, supervised in _pieces(text, spans, mark):
        new = _continue(tokenizer, piece) if ids else _tokenize(tokenizer, piece)
        ids += new
        labels += new if supervised else [IGNORED] * len(new)

    images = _count(chat, "image")
    slots = Slots(
        images=images,
        image_id=_placeholder_id(tokenizer, image_token) if images else -1,
        memory_id=_placeholder_id(tokenizer, memory_token) if images and n_memory_tokens else -1,
        n_image_tokens=n_image_tokens,
        n_memory_tokens=n_memory_tokens,
    )
    return _truncate(_fill(Encoded(ids, labels), slots, name), slots, max_length, name)


def _turns(chat: Conversation, to_answer: bool, name: str) -> Conversation:
    """The turns that are shown; DataError where none is left to learn from or to answer."""
    if to_answer and chat and chat[-1]["role"] == "assistant":
        chat = chat[:-1]
    if not any(message["role"] == "user" for message in chat):
        raise DataError(f"{name}: expected at least one turn, found an empty conversation")
    if not to_answer and all(message["role"] != "assistant" for message in chat):
        raise DataError(f"{name}: expected an assistant turn to learn from, found none")
    return chat


def end_token_id(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The token that ends an answer in this template, to stop generation at.

    None where the template ends on text that is no special token of this tokenizer.
    """
    chat = [Message("user", "a"), Message("assistant", "b")]
    labels = encode(chat, tokenizer, template, n_image_tokens=0).labels
    last = [label for label in labels if label != IGNORED][-1]
    return last if last in tokenizer.added_tokens_decoder else None


def to_conversation(sample: Chat) -> Conversation:
    """Messages in transformers' shape: the sample's images first in the first user turn.

    A conversation that opens with the assistant gets an empty user turn before it.
    """
    messages = sample.messages if isinstance(sample, Sample) else sample
    chat = [_as_dict(message) for message in messages]
    opening = next((i for i, message in enumerate(chat) if message["role"] != "system"), None)
    if opening is None:
        return chat
    if chat[opening]["role"] != "user":
        chat.insert(opening, {"role": "user", "content": []})
    images = len(sample.images) if isinstance(sample, Sample) else 0
    front: list[dict[str, Any]] = [{"type": "image"}] * images
    chat[opening]["content"] = front + chat[opening]["content"]
    return chat


def _as_dict(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    role, content = (
        (message.role, message.text)
        if isinstance(message, Message)
        else (message["role"], message["content"])
    )
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    return {"role": role, "content": list(content)}


def neutralise(text: str, tokenizer: PreTrainedTokenizerBase, mark: str = "\u200b") -> str:
    """`text` with `mark` put into every spelt-out special token, after its first character.

    The text can then go through the tokenizer without becoming a special token or a placeholder:
    for callers that must hand over text, not ids. The default mark has no width.
    """
    pattern = _special_pattern(tokenizer, len(tokenizer), IMAGE_TOKEN, MEMORY_TOKEN)
    return pattern.sub(lambda _: mark, text)


@lru_cache(maxsize=32)
def _special_pattern(
    tokenizer: PreTrainedTokenizerBase, size: int, image_token: str, memory_token: str
) -> re.Pattern[str]:
    """Matches the empty string behind the first character of every special token in a text.

    `size` is the tokenizer's length: it keys the cache, so that added tokens are seen.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {*tokenizer.all_special_tokens, image_token, memory_token}
    rests: dict[str, list[str]] = {}
    for literal in sorted(special):
        if len(literal) > 1:
            rests.setdefault(literal[0], []).append(re.escape(literal[1:]))
    # Looking back over one character and ahead over the rest finds overlapping ones too.
    found = (f"(?<={re.escape(first)})(?={'|'.join(rest)})" for first, rest in rests.items())
    return re.compile("|".join(found))


def _guard(chat: Conversation, special: re.Pattern[str]) -> tuple[Conversation, str | None]:
    """Mark where texts must be cut so that no special token spelt out in them is taken for one."""
    texts = [part["text"] for message in chat for part in message["content"] if "text" in part]
    if not any(special.search(text) for text in texts):
        return chat, None
    used = set().union(*texts)
    mark = next(chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in used)
    guarded = []
    for message in chat:
        parts = [
            {**part, "text": special.sub(lambda _: mark, part["text"])} if "text" in part else part
            for part in message["content"]
        ]
        guarded.append({**message, "content": parts})
    return guarded, mark


def _pieces(
    text: str, spans: list[tuple[int, int]], mark: str | None
) -> Iterator[tuple[str, bool]]:
    """The text cut at the ends of the generation blocks and at marks: (piece, supervised)."""
    cuts = {0, len(text)}.union(*spans) if spans else {0, len(text)}
    if mark:
        cuts.update(i for i, character in enumerate(text) if character == mark)
    edges = sorted(cuts)
    for start, end in pairwise(edges):
        piece = text[start:end].replace(mark, "") if mark else text[start:end]
        if piece:
            yield piece, any(a <= start < b for a, b in spans)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _continue(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` inside a text: sentencepiece would put a space before a text of its own.

    It is tokenised behind a character that it doesn't merge with, whose ids are then dropped.
    """
    for anchor in ANCHORS:
        front = _tokenize(tokenizer, anchor)
        ids = _tokenize(tokenizer, anchor + text)
        if ids[: len(front)] == front:
            return ids[len(front) :]
    return _tokenize(tokenizer, text)


def _count(chat: Conversation, kind: str) -> int:
    return sum(part.get("type") == kind for message in chat for part in message["content"])


@dataclass(frozen=True)
class Slots:
    """How many placeholders a conversation is to hold, and their token ids (-1: none wanted)."""

    images: int
    image_id: int
    memory_id: int
    n_image_tokens: int
    n_memory_tokens: int


def _placeholder_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    known = tokenizer.get_added_vocab()
    if token not in known:
        raise DataError(
            f"expected {token!r} among the tokenizer's added tokens, found none; add it with "
            f"tokenizer.add_tokens([{token!r}], special_tokens=True)"
        )
    return known[token]


def _fill(encoded: Encoded, slots: Slots, name: str) -> Encoded:
    """Repeat each placeholder as often as the model has features for it."""
    found = encoded.input_ids.count(slots.image_id) if slots.images else 0
    if found != slots.images:
        raise DataError(
            f"{name}: the chat template shows {found} of {slots.images} images; "
            "choose another template"
        )
    memory = [] if slots.memory_id < 0 else [slots.memory_id] * slots.n_memory_tokens
    ids: list[int] = []
    labels: list[int] = []
    for token, label in zip(encoded.input_ids, encoded.labels):
        new = [token]
        if token == slots.image_id:
            found -= 1
            new = [token] * slots.n_image_tokens + ([] if found else memory)
        ids += new
        labels += [label] * len(new)
    return Encoded(ids, labels)


def _truncate(encoded: Encoded, slots: Slots, max_length: int | None, name: str) -> Encoded:
    if max_length is None or len(encoded.input_ids) <= max_length:
        return encoded
    kept = {slots.image_id, slots.memory_id}
    last = max((i for i, token in enumerate(encoded.input_ids) if token in kept), default=-1)
    if last >= max_length:
        raise DataError(
            f"{name}: its placeholders end at token {last + 1}, max_length is {max_length}; "
            "raise max_length or use fewer image or memory tokens"
        )
    return Encoded(encoded.input_ids[:max_length], encoded.labels[:max_length])


__all__ = [
    "CHAT_TEMPLATES",
    "IMAGE_TOKEN",
    "MEMORY_TOKEN",
    "Encoded",
    "adds_bos",
    "choose_template",
    "encode",
    "end_token_id",
    "neutralise",
    "render",
    "to_conversation",
]
