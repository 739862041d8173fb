"""A language model as judge, behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.base import Question
from tinyalign.log import logger, progress

API_KEY = "OPENAI_API_KEY"
TRIES = 5

INSTRUCTION = """\
You grade answers to questions about an image that you do not see. You are given the question, \
the true answer and the answer of a model. In the true answer, <AND> joins parts that must all \
be in the model's answer, and <OR> joins parts of which one is enough. Give 1.0 for an answer \
that is wholly right, 0.0 for one that is wholly wrong, and a tenth between them for one that is \
right in part. Other words for the same thing are right; what contradicts the true answer is not.

Reply with the number alone."""
"""Our own instruction. The official few-shot prompt can be given as a file instead."""

_GRADE = re.compile(r"(?<![\d.])(?:0(?:\.\d+)?|1(?:\.0+)?)(?![\d.]*\d)")


@dataclass(frozen=True)
class Judge:
    """Grades answers with a chat model at temperature 0."""

    url: str
    """Base of the API, such as http://localhost:8000/v1."""
    model: str
    prompt: str | None = None
    """The official few-shot prompt, whose table each answer is appended to; else ours."""
    timeout: float = 120.0
    """Seconds a reply may take."""
    pause: float = 1.0
    """Seconds before the second try of a request that failed; doubled for each further one."""

    @property
    def label(self) -> str:
        """The judge's name in metrics: with our own instruction it says so."""
        return self.model if self.prompt else f"{self.model}, own prompt"

    def grade(self, questions: Sequence[Question], texts: Sequence[str]) -> tuple[list[float], int]:
        """(a grade in [0, 1] for each answer, how many got none and count as 0)."""
        grades, failures = [], 0
        with progress(f"Judging with {self.model}", len(texts)) as advance:
            for question, text in zip(questions, texts):
                grade = self._grade(question, text)
                if grade is None:
                    failures += 1
                    logger.warning("%s: the judge gave no grade; it counts as 0", question.id)
                grades.append(grade or 0.0)
                advance(1)
        return grades, failures

    def _grade(self, question: Question, text: str) -> float | None:
        messages = self._messages(question, text)
        for attempt in range(TRIES):
            # Grades are drawn at temperature 0; only a reply without a grade is drawn again.
            reply = self._ask(messages, temperature=0.5 * attempt)
            found = _GRADE.search(reply)
            if found:
                return float(found[0])
        return None

    def _messages(self, question: Question, text: str) -> list[dict[str, str]]:
        truth = question.references[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        if self.prompt is not None:
            row = " | ".join((question.text, truth, text, ""))
            return [{"role": "user", "content": f"{self.prompt}\n{row}"}]
        asked = f"Question: {question.text}\nTrue answer: {truth}\nModel's answer: {text}"
        return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]

    def _ask(self, messages: list[dict[str, str]], temperature: float) -> str:
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": 8,
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {os.environ[API_KEY]}"
        target = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(target, json.dumps(body).encode(), headers)
        reply = self._send(request, target)
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise EvaluationError(
                f"{target}: expected an OpenAI chat completion, found {reply!r:.120}."
            ) from error

    def _send(self, request: urllib.request.Request, target: str) -> Any:
        """The JSON reply; waits and tries again when the server is busy or gone for a moment."""
        for attempt in range(1, TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                if (error.code not in (408, 409, 429) and error.code < 500) or attempt == TRIES:
                    said = error.read().decode("utf-8", "replace")[:200]
                    raise EvaluationError(
                        f"{target}: the judge refused with status {error.code} ({said}); check "
                        f"the model name, and the key in {API_KEY}."
                    ) from error
            except (OSError, ValueError) as error:
                if attempt == TRIES:
                    raise EvaluationError(
                        f"{target}: no reply from the judge ({error}); check --judge-url."
                    ) from error
            time.sleep(self.pause * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")


def read_prompt(path: str | Path) -> str:
    """The few-shot prompt of a text file, without white space at its end."""
    try:
        return Path(path).read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: expected the judge's prompt as text ({error}).") from error
