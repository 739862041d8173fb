"""TinyAlignProcessor: chats and images in, the model's inputs out, memory placeholders included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin
from transformers.processing_utils import MultiModalData

from tinyalign.data.chat import IMAGE_TOKEN, MEMORY_TOKEN, neutralise
from tinyalign.data.sample import Message, Sample
from tinyalign.errors import ModelError
from tinyalign.model.image_inputs import as_rgb
from tinyalign.model.remote import PROCESSOR_MAP, PackageIsTheCode, write_remote_module


class TinyAlignProcessor(PackageIsTheCode, ProcessorMixin):
    """Image processor, tokenizer and chat template of a TinyAlign model.

    image_seq_length, memory_seq_length: placeholders an image and its memories take.
    memory_learned: placeholders are always emitted: the memory is a soft prompt, which is part of
    the model, or the model was trained to do without its memories. Saved with the processor.
    memory_enabled: whether memory placeholders are emitted, behind the last image of each text.
    Off until a bank is attached, and not saved: a bank is attached anew, never assumed.
    query_tokenizer: set with the bank; turns instructions into `memory_query_ids` (B, L).
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        memory_token: str = MEMORY_TOKEN,
        image_seq_length: int = 729,
        memory_seq_length: int = 0,
        memory_learned: bool = False,
        **kwargs: Any,
    ) -> None:
        self.image_token = image_token
        self.memory_token = memory_token
        self.image_seq_length = image_seq_length
        self.memory_seq_length = memory_seq_length
        self.memory_learned = memory_learned
        self.memory_enabled = False
        self.query_tokenizer: Callable[[list[str]], Tensor] | None = None
        known = tokenizer.get_added_vocab()
        for token in (image_token, memory_token):
            if token not in known:
                raise ModelError(
                    f"The tokenizer has no special token {token!r}. Add it with "
                    f"tokenizer.add_tokens([{token!r}], special_tokens=True), or let build_model."
                )
        self.image_token_id = known[image_token]
        self.memory_token_id = known[memory_token]
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in the base class, and what loads it without `import tinyalign` (`model.remote`)."""
        self.auto_map = dict(PROCESSOR_MAP)
        saved = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        write_remote_module(save_directory)
        return saved

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; images are loaded as in training (`model.image_inputs`)."""
        return super().__call__(as_rgb(images), text, *args, **kwargs)

    @property
    def n_memory_tokens(self) -> int:
        """Memory placeholders that a text with an image gets now."""
        return self.memory_seq_length if self.memory_enabled or self.memory_learned else 0

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """One `<image>` of the text, as the placeholders the model replaces by features."""
        return self.image_token * self.image_seq_length

    def get_text_with_replacements(
        self, text: list[str], images_replacements: Sequence[str] = (), *args: Any, **kwargs: Any
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """As in the base class; the last image of each text brings the memory placeholders."""
        replacements = list(images_replacements)
        found = sum(sample.count(self.image_token) for sample in text)
        if replacements and found != len(replacements):
            raise ModelError(
                f"Found {found} {self.image_token} in the text for {len(replacements)} images; "
                "every image needs one, in order."
            )
        if replacements and self.n_memory_tokens:
            seen = 0
            for sample in text:
                count = sample.count(self.image_token)
                seen += count
                if count:
                    replacements[seen - 1] += self.memory_token * self.n_memory_tokens
        return super().get_text_with_replacements(text, replacements, *args, **kwargs)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Placeholders per image; with memory on, every image is counted as the last of a text."""
        if image_sizes is None:
            return MultiModalData()
        tokens = self.image_seq_length + self.n_memory_tokens
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[tokens] * count, num_image_patches=[1] * count)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; placeholders spelt out in texts stay text, and with a bank attached
        the tokenised result holds `memory_query_ids`, made from each chat's instruction alone.
        """
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = [[*chat] for chat in (conversation if batched else [conversation])]
        safe = [[self._neutral(message) for message in chat] for chat in chats]
        out: Any = super().apply_chat_template(safe if batched else safe[0], *args, **kwargs)
        wanted = kwargs.get("tokenize") and kwargs.get("return_dict")
        if wanted and self.memory_enabled and self.query_tokenizer is not None:
            out["memory_query_ids"] = self.query_tokenizer([instruction(chat) for chat in chats])
        return out

    def _neutral(self, message: Mapping[str, Any]) -> dict[str, Any]:
        def clean(text: str) -> str:
            return neutralise(text, self.tokenizer)

        content = message["content"]
        if isinstance(content, str):
            return {**message, "content": clean(content)}
        parts = [
            {**part, "text": clean(part["text"])} if part.get("type") == "text" else part
            for part in content
        ]
        return {**message, "content": parts}

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "memory_query_ids"]

    def to_dict(self) -> dict[str, Any]:
        """What is saved. The query tokenizer belongs to the bank and is not copied."""
        attached, self.query_tokenizer = self.query_tokenizer, None
        try:
            return super().to_dict()
        finally:
            self.query_tokenizer = attached


def instruction(chat: Sequence[Mapping[str, Any]]) -> str:
    """X_I of a chat in transformers' shape: `Sample.instruction` of the same turns."""
    messages = tuple(Message(turn["role"], _text(turn["content"])) for turn in chat)
    return Sample(id="", images=(), messages=messages).instruction


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
