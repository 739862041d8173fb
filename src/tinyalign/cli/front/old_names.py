"""Verbs and options by the names that they had: taken still, and told the new name."""

from __future__ import annotations

from collections.abc import Callable

from tinyalign.lazy import renamed

VERBS = {"compress train": "perceiver train"}
"""Old verb -> new verb."""
OPTIONS = {("bank build", "--compressor"): "--perceiver"}
"""(verb, old option) -> new option."""
VALUES = {
    ("evaluate", "--memory", "shuffled"): ("--control", "shuffled"),
    ("evaluate", "--memory", "random"): ("--control", "random"),
}
"""(verb, option, old value) -> (option, value)."""
SPELLINGS = {("evaluate", "--task", "easy-vqa"): ("--task", "easy_vqa")}
"""Like `VALUES`, for other spellings, of which nothing is said."""


def with_new_names(verb: str, words: list[str], tell: Callable[[str], None]) -> list[str]:
    """The words of a command with the names that its options have now."""
    found: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        if not equals and left and not left[0].startswith("--"):
            value = left[0]
        new = VALUES.get((verb, name, value)) or SPELLINGS.get((verb, name, value))
        if new is not None:
            if (verb, name, value) in VALUES:
                tell(renamed(f"{name} {value}", " ".join(new)))
            found += new
            left = left if equals else left[1:]
        elif (verb, name) in OPTIONS:
            now = OPTIONS[verb, name]
            tell(renamed(name, now))
            found.append(now + equals + (value if equals else ""))
        else:
            found.append(word)
    return found
