"""MM-Vet: grades of a judge behind a real endpoint, official grades, and a proxy that says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tinyalign.errors import EvaluationError
from tinyalign.evaluation.benchmarks.containment import containment
from tinyalign.evaluation.benchmarks.judge import Judge
from tinyalign.evaluation.benchmarks.registry import get_benchmark


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that replies with what the test puts in `replies`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, str]] = []
        self.requests: list[dict] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append({"path": self.path, **body})
        server.keys.append(self.headers.get("Authorization"))
        status, text = server.replies.pop(0)
        reply = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        content = json.dumps(reply if status == 200 else {"error": text}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = Server()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def references(write):
    entry = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5"}
    content = {
        "v1_0": {**entry, "capability": ["ocr", "math"]},
        "v1_1": {**entry, "answer": "red<OR>dark red", "capability": ["rec"]},
    }
    return write("mm-vet.json", content)


@pytest.fixture
def predictions(write):
    return write("p.json", {"v1_0": "x is -1", "v1_1": "Dark red."})


def test_a_judge_grades_every_answer(server, references, predictions, metrics_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.replies = [(200, "0.5"), (200, "Correctness: 1.0")]
    judge = Judge(server.url, "small-judge", pause=0)
    found = metrics_of("mm-vet", predictions, references, judge=judge)
    name = "score (judge=small-judge, own prompt)"
    assert found == {name: 0.75, f"math/{name}": 0.5, f"ocr/{name}": 0.5, f"rec/{name}": 1.0}
    asked = server.requests[0]
    assert asked["path"] == "/v1/chat/completions"
    assert (asked["model"], asked["temperature"]) == ("small-judge", 0)
    assert "-1 <AND> -5" in asked["messages"][-1]["content"]
    assert server.keys == ["Bearer secret"] * 2


def test_the_official_prompt_is_a_table_that_the_answer_ends(
    server, references, predictions, metrics_of
):
    server.replies = [(200, "0.5"), (200, "1")]
    judge = Judge(server.url, "gpt-4-0613", "Question | Ground truth | Prediction | Correctness")
    found = metrics_of("mm-vet", predictions, references, judge=judge)
    assert found["score (judge=gpt-4-0613)"] == 0.75
    content = server.requests[0]["messages"][0]["content"]
    assert content.split("\n")[1] == "What is x? | -1 <AND> -5 | x is -1 | "


def test_a_busy_server_is_asked_again_and_no_grade_counts_as_nothing(
    server, references, predictions, metrics_of
):
    server.replies = [(429, "busy"), (503, "gone"), (200, "0.4")] + [(200, "well")] * 5
    found = metrics_of("mm-vet", predictions, references, judge=Judge(server.url, "j", pause=0))
    assert found["score (judge=j, own prompt)"] == pytest.approx(0.2)
    assert [r["temperature"] for r in server.requests[-5:]] == [0, 0.5, 1.0, 1.5, 2.0]


def test_what_goes_wrong_with_a_judge_is_said(server, references, predictions, metrics_of):
    server.replies = [(401, "no such key")]
    with pytest.raises(EvaluationError, match=r"status 401.*no such key.*OPENAI_API_KEY"):
        metrics_of("mm-vet", predictions, references, judge=Judge(server.url, "j", pause=0))
    nobody = Judge("http://127.0.0.1:9/v1", "j", pause=0)
    with pytest.raises(EvaluationError, match="no reply from the judge"):
        metrics_of("mm-vet", predictions, references, judge=nobody)
    with pytest.raises(EvaluationError, match="MM-Vet needs a judge"):
        metrics_of("mm-vet", predictions, references)


def test_grades_of_the_official_judge_are_read(references, write, metrics_of):
    grades = {
        "v1_0": {"model": ["gpt-4-0613"] * 2, "content": ["0.5", "0.7"], "score": [0.5, 0.7]},
        "v1_1": {"model": ["gpt-4-0613"] * 2, "content": ["1.0", "1.0"], "score": [1.0, 1.0]},
    }
    found = metrics_of("mm-vet", write("grades.json", grades), references)
    assert found["score (judge=gpt-4-0613)"] == pytest.approx(0.8)
    assert found["rec/score (judge=gpt-4-0613)"] == 1.0
    grades["v1_0"]["score"] = [3.0, 0.7]
    with pytest.raises(EvaluationError, match="grades from 0 to 1"):
        metrics_of("mm-vet", write("grades.json", grades), references)
    del grades["v1_0"]
    with pytest.raises(EvaluationError, match="1 of 2 questions"):
        metrics_of("mm-vet", write("grades.json", grades), references)


def test_the_file_for_the_official_judge():
    found = get_benchmark("mm-vet").submission({"0": "a", "v1_1": "b"})
    assert found == {"v1_0": "a", "v1_1": "b"}


@pytest.mark.parametrize(
    ("truth", "text", "score"),
    [
        ("-1<AND>-5", "x = -1 or x = -5", 1.0),
        ("cat<AND>dog", "a cat", 0.5),
        ("red<OR>dark red", "It is dark red!", 1.0),
        ("cat", "category", 0.0),
        ("the", "the", 0.0),  # nothing is left of it to be found
        ("", "anything", 0.0),
    ],
)
def test_containment(truth: str, text: str, score: float):
    assert containment(truth, text) == score


def test_the_proxy_never_calls_itself_mm_vet(references, predictions, metrics_of):
    found = metrics_of("containment", predictions, references)
    assert found == {"containment": pytest.approx(0.75)}
    proxy = get_benchmark("containment")
    assert "vet" not in f"{proxy.name} {proxy.title} {proxy.rule} {list(found)}".lower()


def test_prompts(references):
    mmvet = get_benchmark("mm-vet")
    questions = mmvet.questions(references)
    assert mmvet.samples(questions, mmvet.protocol())[0].instruction == "What is x?"
    assert "step by step" in mmvet.samples(questions, mmvet.protocol("lmms-eval"))[0].instruction
