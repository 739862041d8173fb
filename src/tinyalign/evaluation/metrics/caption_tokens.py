"""Words of a caption as the COCO caption scorers see them: Penn Treebank style, without points.

The public scorers call Stanford's PTB tokenizer (Java) with lower-casing and then drop seventeen
punctuation tokens. These rules give the same tokens on ordinary captions without Java; what they
leave out (URLs, e-mail addresses, the long list of English abbreviations) does not occur in them.
"""

from __future__ import annotations

import re

PUNCTUATION = frozenset(
    {
        *("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"),
        *(".", "?", "!", ",", ":", "-", "--", "...", ";"),
    }
)
"""The tokens the scorers drop. The upper-case brackets never match a lower-cased caption: a quirk
of the public code that we keep, so brackets count as words."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}

_TOKEN = re.compile(
    r"""
      \d+(?:[.,:]\d+)+                     # 3.5  10,000  12:30
    | (?:[^\W\d_]\.){2,}                   # u.s.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs)\.       # titles keep their point
    | can(?=not\b)                         # cannot -> can not
    | \w+?(?=n['’]t\b)                     # don't -> do n't
    | n['’]t\b
    | ['’](?:s|m|d|ll|re|ve)\b             # dog's -> dog 's
    | \w+(?:[-/&]\w+)*                     # words; hyphens and slashes stay inside
    | \.{3} | -{2,}
    | [^\w\s]
    """,
    re.VERBOSE,
)


def caption_tokens(caption: str) -> list[str]:
    """Lower-case PTB-like tokens of one caption, punctuation dropped; `[]` for an empty one."""
    tokens = (_BRACKETS.get(token, token) for token in _TOKEN.findall(caption.lower()))
    return [
        token.replace("’", "'")
        for token in tokens
        if token not in PUNCTUATION and token not in {'"', "“", "”", "‘", "’", "…", "–", "—"}
    ]
