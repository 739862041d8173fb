"""A warning for models that never read the question they are asked."""

from __future__ import annotations

from typing import Any

from tinyalign.log import logger


def warn_of_unread_question(processor: Any) -> None:
    """Say so where the processor's chat template leaves the user's text out of the prompt."""
    from tinyalign.data.template_choice import shows_questions, template_name

    template = processor.chat_template
    if shows_questions(processor.tokenizer, template):
        return
    logger.warning(
        "this model's chat template (%s) leaves the question out: it is used to search memories "
        "only; for a model that reads it, train with --model.template chatml",
        template_name(template) or "one of its own",
    )
