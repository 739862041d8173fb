"""Which chat template goes with a tokenizer, and a conversation rendered by it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tinyalign.data.templates import BOS, CHAT_TEMPLATES, FLATTEN
from tinyalign.errors import DataError
from tinyalign.log import logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, Any]]
"""Messages as transformers' chat templates take them: `{"role", "content": text or parts}`."""

IMAGE_TOKEN = "<image>"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

PROBE: Conversation = [
    {"role": "user", "content": "Is it blue?"},
    {"role": "assistant", "content": "No, green."},
    {"role": "user", "content": "And now?"},
]
SYSTEM: Conversation = [{"role": "system", "content": "Be brief."}]


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    chat: Conversation,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the (start, end) characters of its generation blocks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [chat],
        chat_template=template,
        return_assistant_tokens_mask=GENERATION.search(template) is not None,
        add_generation_prompt=add_generation_prompt,
        **{**tokenizer.special_tokens_map, **variables},
    )
    texts, spans = rendered
    return texts[0], spans[0] if spans else []


def choose_template(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> str:
    """The chat template to train and generate with, BOS included where the tokenizer adds it.

    With a `name`, that one of `CHAT_TEMPLATES`. Else the tokenizer's own, if it marks what the
    assistant says; else the one of ours that renders a probe as the tokenizer's own does; else
    "llava_v1", with a line in the log.

    Raises:
        DataError: no such name, or a tokenizer without the EOS token that the template ends on.
    """
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if name is not None:
        CHAT_TEMPLATES.check(name)
    elif own:
        found = _own_with_images(tokenizer, own) or _equal_of_ours(tokenizer, own)
        if found:
            return found
    if name is None:
        name = "llava_v1"
        reason = "has a chat template that marks no answers" if own else "has no chat template"
        logger.info("the tokenizer %s; using %r", reason, name)
    template = CHAT_TEMPLATES[name]
    if "eos_token" in template and tokenizer.eos_token is None:
        raise DataError(f"template {name!r} ends answers with EOS, but the tokenizer has none")
    return BOS + template if adds_bos(tokenizer) else template


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer by itself starts a text with its BOS token."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def shows_questions(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a prompt depends on what the user asks; "plain" for one leaves the question out."""
    image = {"type": "image"}
    asked: list[Conversation] = [
        [{"role": "user", "content": [image, {"type": "text", "text": question}]}]
        for question in ("Is it blue?", "Is it green?")
    ]
    one, other = (_try(tokenizer, template, chat, True) for chat in asked)
    return one is None or one != other


def template_name(template: str) -> str | None:
    """Which of `CHAT_TEMPLATES` this is, with BOS or without; None for a stranger's."""
    names = {own: name for name, own in CHAT_TEMPLATES.items()}
    return names.get(template.removeprefix(BOS))


def _own_with_images(tokenizer: PreTrainedTokenizerBase, own: str) -> str | None:
    """The tokenizer's own template, able to show images, if it has generation blocks."""
    if not GENERATION.search(own):
        return None
    image = [{"type": "image"}, {"type": "text", "text": PROBE[0]["content"]}]
    chat = [{"role": "user", "content": image}, *PROBE[1:]]
    expected = IMAGE_TOKEN + PROBE[0]["content"]
    for template in (FLATTEN + own, own):
        text = _try(tokenizer, template, chat)
        if text and expected in text and text.count(IMAGE_TOKEN) == 1:
            return template
    return None


def _equal_of_ours(tokenizer: PreTrainedTokenizerBase, own: str) -> str | None:
    """That of our templates which renders as `own` does, with its default system text if any."""
    for name, template in CHAT_TEMPLATES.items():
        if name == "plain":
            continue
        for candidate in (template, BOS + template):
            if _same(tokenizer, own, candidate):
                return candidate
            said = _default_system(tokenizer, own, candidate)
            if said:
                candidate = "{%- set default_system = " + json.dumps(said) + " -%}\n" + candidate
                if _same(tokenizer, own, candidate):
                    return candidate
    return None


def _same(tokenizer: PreTrainedTokenizerBase, own: str, candidate: str) -> bool:
    for prompt in (False, True):
        chat = PROBE if prompt else PROBE[:2]
        expected = _try(tokenizer, own, chat, prompt)
        if expected is None or expected != _try(tokenizer, candidate, chat, prompt):
            return False
        with_system = _try(tokenizer, own, SYSTEM + chat, prompt)
        if with_system and with_system != _try(tokenizer, candidate, SYSTEM + chat, prompt):
            return False
    return True


def _default_system(tokenizer: PreTrainedTokenizerBase, own: str, candidate: str) -> str | None:
    """What `own` says as the system when nobody gave it a system text."""
    bare, ours = _try(tokenizer, own, PROBE), _try(tokenizer, candidate, SYSTEM + PROBE)
    if bare is None or ours is None or SYSTEM[0]["content"] not in ours:
        return None
    before, after = ours.split(SYSTEM[0]["content"], 1)
    fits = bare.startswith(before) and bare.endswith(after) and len(bare) > len(before + after)
    return bare[len(before) : len(bare) - len(after)] if fits else None


def _try(
    tokenizer: PreTrainedTokenizerBase, template: str, chat: Conversation, prompt: bool = False
) -> str | None:
    """The rendered text; None where the template refuses (some know no system turn)."""
    try:
        return render(tokenizer, template, chat, prompt)[0]
    except Exception:  # a template is a stranger's program: it may raise anything
        return None
