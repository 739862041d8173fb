"""Shards at URLs: read over HTTP with ranges, from a server on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest

from tinyalign.data.readers import open_dataset, open_stream
from tinyalign.data.readers.shards import stream as module


class Ranges(BaseHTTPRequestHandler):
    """Serves `folder`, whole or by byte ranges; fails so many answers first if told to."""

    folder: Path
    failures = 0
    served: list[tuple[str, int]]

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.folder / self.path.split("?")[0].strip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        if body and type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        low, high = 0, len(data) - 1
        if wanted:
            low, high = int(wanted[1]), min(high, int(wanted[2] or high))
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(high - low + 1))
        if wanted:
            self.send_header("Content-Range", f"bytes {low}-{high}/{len(data)}")
        self.end_headers()
        if body:
            self.served.append((path.name, low))
            self.wfile.write(data[low : high + 1])

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[Ranges]]]:
    """(URL of `tmp_path`, the handler that answers)."""
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    handler = type("Handler", (Ranges,), {"folder": tmp_path, "served": [], "failures": 0})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", handler
    running.shutdown()
    running.server_close()


def ids(samples, n=None):
    return [sample.id for sample in islice(samples, n)]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_stream_from_a_server_is_that_of_the_files(server, tmp_path, tar, parquet, kind):
    make = tar if kind == "tar" else parquet
    for shard in range(3):
        make(tmp_path / f"{shard}.{kind}", range(6 * shard, 6 * shard + 6))
    url, _ = server
    there = f"{url}/{{0..2}}.{kind}?download=1"
    local = open_stream(str(tmp_path / f"*.{kind}"), buffer=5)
    whole = list(islice(local, 40))
    first, second = open_stream(there, buffer=5), open_stream(there, buffer=5)
    for sample, other in zip(islice(first, 17), whole):
        assert (sample.id, sample.answer, sample.images[0].data) == (
            other.id, other.answer, other.images[0].data,
        )  # fmt: skip
    second.load_state_dict(first.state_dict())
    assert ids(second, 23) == [sample.id for sample in whole[17:]]


def test_what_is_not_there_is_reported_and_the_rest_is_read(server, tmp_path, tar):
    tar(tmp_path / "0.tar", range(4))
    tar(tmp_path / "2.tar", range(8, 12))
    stream = open_stream(f"{server[0]}/{{0..2}}.tar", buffer=0, epochs=1)
    assert ids(stream) == [f"id-{n}" for n in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert "nothing is there" in str(stream.report.shards["1.tar"])


def test_a_server_that_fails_for_a_moment_is_asked_again(server, tmp_path, tar, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.01)
    url, handler = server
    tar(tmp_path / "0.tar", range(4))
    handler.failures = 1
    stream = open_stream(f"{url}/0.tar", buffer=0, epochs=1)
    assert ids(stream) == [f"id-{n}" for n in range(4)]
    assert not stream.report.shards


def test_random_access_over_http(server, tmp_path, tar):
    tar(tmp_path / "0.tar", range(4))
    dataset = open_dataset(f"{server[0]}/0.tar")
    assert [dataset[index].id for index in (3, 0, 2)] == ["id-3", "id-0", "id-2"]
