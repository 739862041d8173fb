"""MMMU's reading of free text: which option, or which numbers and phrases, an answer names.

The rules are those of the benchmark's own evaluation (Yue et al., CVPR 2024), quirks included,
but a response that names no option is reported as such instead of becoming a guess in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MARKS = ",.!?;:'"
_COMMA_NUMBER = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")  # on lower-cased text, so only new lines ever split
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")

Parsed = str | float


def parse_choice(response: str, letters: Sequence[str], options: Mapping[str, str]) -> str | None:
    """The letter a response names, the last named if several; None where it names none.

    Looks for `(A)`, then for ` A `, then, in responses of more than five words, for an option's
    text. `options` maps letters to texts.
    """
    for mark in MARKS:
        response = response.strip(mark)
    response = f" {response} "
    for form in ("({})", " {} "):
        found = [x for x in letters if form.format(x) in response]
        if found:
            # max() keeps the first of equals, like the original's argmax
            return max(found, key=lambda x: response.rfind(form.format(x)))
    if len(response.split()) <= 5:
        return None
    text = response.lower()
    found = [x for x, option in options.items() if option.lower() in text]
    return max(found, key=lambda x: text.rfind(options[x].lower())) if found else None


def parse_open(response: str) -> set[Parsed]:
    """Numbers and phrases that an answer to an open question may mean."""
    phrases = _key_phrases(response)
    numbers = [number for phrase in phrases for number in _numbers(phrase)]
    return {form for text in (*phrases, *numbers) for form in normal_forms(text)}


def open_is_right(found: set[Parsed], truth: str | Sequence[str]) -> bool:
    """Whether a true text occurs in a found phrase, or a true number among the found ones."""
    truths = [truth] if isinstance(truth, str) else list(truth)
    accepted = [form for text in truths for form in normal_forms(text)]
    for each in found:
        if not isinstance(each, str):
            if each in accepted:
                return True
        elif any(isinstance(form, str) and form in each for form in accepted):
            return True
    return False


def normal_forms(text: str) -> list[Parsed]:
    """A number rounded to two decimals, or lower-cased text; one letter needs a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _key_phrases(response: str) -> list[str]:
    """The shortest tail behind an indicator word, for each line; the whole where there is none."""
    response = response.strip().strip(".").lower()
    parts = _SENTENCES.split(response)
    phrases = []
    for number, part in enumerate(parts, start=1):
        indicators = (*_INDICATORS, "=") if number == len(parts) else _INDICATORS
        shortest = ""
        for tail in (part.split(word)[-1].strip() for word in indicators if word in part):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in MARKS:
            phrases.append(shortest)
    return phrases or [response]


def _numbers(text: str) -> list[str]:
    return [*_COMMA_NUMBER.findall(text), *_SCIENTIFIC.findall(text), *_SIMPLE.findall(text)]
