"""Scoring short answers: the official VQA normaliser, exact match and soft accuracy.

Source: the VQA v2 evaluation script of Agrawal et al. Its quirks are kept because published
numbers contain them, and each has a test.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_AT_MOST = 32  # the script passes re.UNICODE (= 32) where `count` stands
_ARTICLES = frozenset({"a", "an", "the"})
_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNTING.split())}

_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Every listed form with exactly one of its apostrophes missing, mapped to the full form."""
    table = {
        form[:at] + form[at + 1 :]: form
        for form in _APOSTROPHES.split()
        for at, character in enumerate(form)
        if character == "'"
    }
    table["somebody'd"] = "somebodyd"  # the wrong way round in the script as well
    return table


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 16)  # a benchmark's answers repeat by the thousand
def normalise_answer(answer: str) -> str:
    """The official normal form of an answer: punctuation, case, articles, numbers, contractions.

    A punctuation mark disappears where it touches a space anywhere in the answer (or where the
    answer holds a comma between digits), and becomes a space otherwise.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = _without_punctuation(text).lower().split()
    numbered = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    result = text
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        drops = has_digit_comma or mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if drops else " ")
    return _PERIOD.sub("", result, count=_PERIODS_AT_MOST)


@lru_cache(maxsize=1 << 16)
def m4c_answer(answer: str) -> str:
    """The normal form of M4C (Hu et al., CVPR 2020), which LLaVA uses for VQAv2 and TextVQA.

    Lower case, no comma and no question mark, `'s` cut off as a word of its own; then the official
    form. `john's` and `john 's` are equal here and differ under `normalise_answer`.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_answer(text)


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean over the leave-one-out subsets of min(1, matches / 3); strings compared as they are.

    With ten references 0, 1, 2, 3 and more matches give 0, 0.3, 0.6, 0.9 and 1.
    """
    matches = sum(reference == answer for reference in references)
    without_a_match = min(1.0, (matches - 1) / 3) if matches else 0.0
    with_all = min(1.0, matches / 3)
    total = matches * without_a_match + (len(references) - matches) * with_all
    return total / len(references)


def official_vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """What the official script gives one answer, trap included.

    When all references are the same string the script normalises *nothing*: `Yes` against ten
    times `yes` scores 0. Submissions are therefore normalised beforehand.
    """
    cleaned = [r.replace("\n", " ").replace("\t", " ").strip() for r in references]
    if len(set(cleaned)) == 1:
        return soft_accuracy(answer.replace("\n", " ").replace("\t", " ").strip(), cleaned)
    return soft_accuracy(normalise_answer(answer), [normalise_answer(r) for r in cleaned])


ENOUGH_FOR_SOFT = 4
"""The leave-one-out formula can only reach 1 from four references on."""


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Score of one answer in [0, 1], both sides normalised.

    Four references or more are annotators' votes: `soft_accuracy`. Fewer are accepted answers:
    1 when the answer equals any of them, else 0. No reference scores 0.
    """
    ours, theirs = normalise_answer(answer), [normalise_answer(r) for r in references]
    if len(theirs) >= ENOUGH_FOR_SOFT:
        return soft_accuracy(ours, theirs)
    return float(ours in theirs)
