"""The page's server over a real connection: every address, wrong requests, and who may ask."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount

from tinyalign.data.images import load_image
from tinyalign.errors import ConfigError
from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.changes import add_samples, remove_entries
from tinyalign.memory.building.editor import compact
from tinyalign.memory.search.retriever import Retriever
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.serving.browse import app as app_module
from tinyalign.serving.browse import view as view_module
from tinyalign.serving.browse.app import browse_app
from tinyalign.serving.browse.guard import HEADERS
from tinyalign.serving.browse.pictures import Pictures
from tinyalign.serving.browse.server import BrowseServer
from tinyalign.serving.browse.view import BankView

from ...memory.conftest import bank, make_sample, perceiver, png, samples, vision  # noqa: F401


@dataclass
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends requests as they are written, where a browser or urllib would tidy them up."""

    def __init__(self, server: BrowseServer) -> None:
        self.server = server

    def send(
        self, method: str, target: str, body: bytes | None = None, **headers: str | None
    ) -> Reply:
        address, port = self.server.server_address[:2]
        connection = http.client.HTTPConnection(str(address), port, timeout=60)
        try:
            connection.putrequest(method, target, skip_host=True)
            headers = {"Host": f"127.0.0.1:{port}"} | headers
            if body is not None and "Content_Length" not in headers:
                headers["Content_Length"] = str(len(body))
            for name, value in headers.items():
                if value is not None:
                    connection.putheader(name.replace("_", "-"), value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def get(self, path: str, **values: Any) -> Reply:
        return self.send("GET", f"{path}?{urlencode(values, doseq=True)}")

    def post(self, body: bytes, **values: Any) -> Reply:
        return self.send("POST", f"/api/search?{urlencode(values)}", body)


@contextmanager
def running(server: BrowseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(bank: MemoryBank, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the bank of twelve, to be changed."""
    return Path(shutil.copytree(bank.folder, tmp_path / "bank"))


@pytest.fixture
def client(folder: Path, samples, tiny_vision_dir: Path) -> Iterator[Client]:  # noqa: F811
    """The page of that bank, with the samples as its data set."""
    view = BankView(MemoryBank.open(folder), Pictures(samples), vision_name=str(tiny_vision_dir))
    with BrowseServer(view) as server, running(server):
        yield Client(server)


def ids(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [entry["id"] for entry in reply.json["entries"]]


# ------------------------------------------------------------------------------- page and entries


def test_the_page_and_its_parts_are_served_and_may_load_nothing_from_elsewhere(client: Client):
    page = client.get("/")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    parts = re.findall(rb'(?:src|href)="(assets/[\w.]+)"', page.body)
    parts += [b"assets/map.js", b"assets/parts.js"]  # imported by page.js
    assert len(parts) == 4
    for part in parts:
        reply = client.get(f"/{part.decode()}")
        assert (reply.status, len(reply.body) > 100) == (200, True)
        assert not re.search(rb"https?://|@import|//[a-z]+\.", reply.body), part
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert all(page.headers[name] == value for name, value in HEADERS.items())


def test_every_asset_in_the_package_is_served_and_no_other():
    names = {each.name for each in files("tinyalign.serving.browse").joinpath("assets").iterdir()}
    assert names == {*app_module.ASSETS, "index.html"}


def test_the_head_of_the_page(client: Client, folder: Path):
    facts = client.get("/api/bank").json
    manifest = MemoryBank.open(folder).manifest
    assert (facts["name"], facts["count"], facts["sources"]) == ("bank", 12, {"made": 12})
    assert facts["key_kind"] == manifest.key_kind
    assert facts["vision_loaded"] is False


def test_pages_together_are_the_bank(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(view_module, "PAGE_SIZE", 5)
    assert client.get("/api/entries", page=1).json["pages"] == 3
    oldest = [name for page in (1, 2, 3) for name in ids(client.get("/api/entries", page=page))]
    assert oldest == [f"s{i}" for i in range(12)]
    newest = ids(client.get("/api/entries", page=1, order="newest"))
    assert newest == oldest[:-6:-1]


def test_an_entry_by_id_and_by_row(client: Client, samples):  # noqa: F811
    found = client.get("/api/entry", id="s3").json
    assert (found["text"], found["instruction"]) == (samples[3].text, samples[3].instruction)
    assert client.get("/api/entry", row=found["row"], generation=1).json == found


@pytest.mark.parametrize(
    ("path", "values", "status", "word"),
    [
        ("/api/entries", {"page": 2}, 404, "last one is 1"),
        ("/api/entries", {"page": 0}, 404, "no page 0"),
        ("/api/entries", {"page": "x"}, 400, "whole number"),
        ("/api/entries", {"page": "9" * 40}, 400, "whole number"),
        ("/api/entries", {"order": "random"}, 400, "oldest, newest"),
        ("/api/entries", {"source": "nowhere"}, 404, "nowhere"),
        ("/api/entry", {"id": "s99"}, 404, "s99"),
        ("/api/entry", {}, 400, "row"),
        ("/api/entry", {"row": 12, "generation": 1}, 404, "row 12"),
        ("/api/entry", {"row": -1, "generation": 1}, 400, "whole number"),
        ("/api/entry", {"row": 0, "generation": 7}, 409, "compacted"),
        ("/api/neighbours", {}, 400, "id"),
        ("/api/neighbours", {"id": "s99"}, 404, "s99"),
        ("/api/neighbours", {"id": "s1", "k": 0}, 400, "1 to 200"),
        ("/api/search", {}, 400, "nothing to search by"),
        ("/api/search", {"text": "red", "k": 201}, 400, "1 to 200"),
        ("/api/search", {"text": "red", "source": "nowhere"}, 404, "nowhere"),
        ("/api/map", {"method": "tsne"}, 400, "tsne"),
        ("/image/0000000000000000", {}, 404, "no picture"),
        ("/image/0000000000000000", {"size": "huge"}, 400, "small, large"),
        ("/elsewhere", {}, 404, "nothing at this address"),
    ],
)
def test_wrong_questions_are_answered_with_what_is_wrong(
    client: Client, path: str, values: dict, status: int, word: str
):
    reply = client.get(path, **values)
    assert reply.status == status
    assert word in reply.json["error"]


# ------------------------------------------------------------------------------------- searching


def test_search_is_the_retrievers(client: Client, folder: Path, samples, tiny_vision_dir):  # noqa: F811
    retriever = Retriever.open(MemoryBank.open(folder), 5)
    encoder = VisionEncoder.load(tiny_vision_dir, dtype=torch.bfloat16)  # as models hold theirs
    picture, text = png(4), "What colour is shape 2?"
    image = load_image(samples[4].images[0])
    for reply, asked in (
        (client.get("/api/search", text=text, k=5), {"text": text}),
        (client.post(picture, k=5), {"image": image}),
        (client.post(picture, k=5, text=text), {"image": image, "text": text}),
    ):
        hits = retriever.search(**asked, vision=encoder, k=5)
        assert ids(reply) == [hit.entry.id for hit in hits]
        scores = [entry["score"] for entry in reply.json["entries"]]
        assert scores == pytest.approx([hit.score for hit in hits])
    assert ids(client.post(picture, k=5))[0] == "s4"
    assert client.get("/api/bank").json["vision_loaded"] is True


def test_sources_filter_pages_and_searches(client: Client, folder: Path, vision):  # noqa: F811
    from dataclasses import replace

    others = [replace(make_sample(i), source="other") for i in (20, 21)]
    add_samples(folder, others, vision)
    facts = client.get("/api/bank").json
    assert facts["sources"] == {"made": 12, "other": 2}
    assert ids(client.get("/api/entries", source="other")) == ["s20", "s21"]
    assert set(ids(client.get("/api/search", text="red", source="other"))) == {"s20", "s21"}
    assert set(ids(client.get("/api/neighbours", id="s0", source="other"))) == {"s20", "s21"}
    both = client.get("/api/search", text="red", source=["other", "made"])
    assert len(ids(both)) == 14


def test_neighbours_are_by_the_stored_keys(client: Client, folder: Path):
    found = MemoryBank.open(folder)
    keys = np.asarray(found.keys, dtype=np.float64)
    similar = keys @ keys[9]
    expected = [found.ids[row] for row in np.argsort(-similar) if row != 9][:4]
    assert ids(client.get("/api/neighbours", id="s9", k=4)) == expected
    assert "s0" in ids(client.get("/api/neighbours", id="s9"))  # the same picture
    others = ids(client.get("/api/neighbours", id="s9", images="other"))
    assert set(others) == {f"s{i}" for i in range(12)} - {"s0", "s9"}


@pytest.mark.parametrize("body", [b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", png(0)[:60]])
def test_an_upload_that_is_no_picture(client: Client, body: bytes):
    reply = client.post(body)
    assert reply.status == 415
    assert "picture" in reply.json["error"]


def test_an_upload_that_is_too_large_or_of_unknown_length(client: Client, monkeypatch):
    monkeypatch.setattr(app_module, "LARGEST_UPLOAD", 100)
    assert client.post(b"x" * 101).status == 413
    assert client.send("POST", "/api/search", None).status == 411
    chunked = client.send("POST", "/api/search", None, Transfer_Encoding="chunked")
    assert chunked.status == 411
    assert client.send("POST", "/api/search", b"", Content_Length="-1").status == 400
    assert client.send("POST", "/api/entries", b"").status == 404


def test_a_bank_of_another_encoder_refuses_the_picture(folder: Path, samples, tmp_path):  # noqa: F811
    view = BankView(MemoryBank.open(folder), Pictures(samples))
    view.vision_name = ""
    with pytest.raises(ConfigError, match="--vision"):
        view.search(load_image(samples[0].images[0]), None, 5)


# -------------------------------------------------------------------------------------- pictures


def test_pictures_come_from_the_data_set(client: Client, samples):  # noqa: F811
    entry = client.get("/api/entry", id="s5").json
    assert entry["picture"] is True
    reply = client.get(f"/image/{entry['image_hash']}")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/jpeg")
    shown = np.asarray(Image.open(io.BytesIO(reply.body)), dtype=float)
    true = np.asarray(load_image(samples[5].images[0]), dtype=float)
    assert shown.shape == true.shape
    assert abs(shown - true).mean() < 12  # a JPEG of it


def test_files_are_shown_only_while_they_are_the_entrys_picture(folder, vision, tmp_path):  # noqa: F811
    from dataclasses import replace

    from tinyalign.data.sample import ImageRef

    photo, text = tmp_path / "photo.png", tmp_path / "secret.txt"
    photo.write_bytes(png(77))
    text.write_text("secret")
    one = replace(make_sample(77), images=(ImageRef(path=str(photo)),))
    add_samples(folder, [one], vision)
    found = MemoryBank.open(folder)
    entry = found.entry(12)

    def shown() -> bytes | None:
        return Pictures().jpeg("large", entry.image_hash, (entry,))

    assert shown() is not None
    photo.write_bytes(png(78))
    assert shown() is None
    stolen = replace(entry, image_ref=str(text))
    assert Pictures().jpeg("large", entry.image_hash, (stolen,)) is None
    photo.unlink()
    assert Pictures().may_have(entry) is False
    assert Pictures().may_have(replace(entry, image_ref="\0")) is False


def test_captions_of_one_picture_share_the_sample_of_the_data_set(samples):  # noqa: F811
    from tinyalign.memory.bank.entries import Entry

    for name, there in (("s3#4", True), ("s3", True), ("s3#", True), ("x#s3", False), ("", False)):
        assert Pictures(samples).may_have(Entry(name, "", "", "", "", "")) is there, name


@pytest.mark.parametrize(
    "target",
    [
        "/assets/../server.py",
        "/assets/..%2fserver.py",
        "/assets/%2e%2e/server.py",
        "/assets//etc/passwd",
        "/assets/",
        "/assets/index.html%00",
        "/image/../../../../etc/passwd",
        "/image/%2fetc%2fpasswd",
        "/../pyproject.toml",
        "//etc/passwd",
        "/image/",
        "/api/../etc/passwd",
        "/manifest.json",
    ],
)
def test_no_other_file_can_be_reached(client: Client, target: str):
    reply = client.send("GET", target)
    assert reply.status == 404
    assert "error" in reply.json


# ----------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("evil.example@127.0.0.1.nip.example", 403),
        ("[", 403),
        ("", 403),
        (None, 400),  # no HTTP/1.1 at all
    ],
)
def test_only_a_host_header_that_names_this_machine(client: Client, host: str | None, status: int):
    for method, target in (("GET", "/"), ("GET", "/api/bank"), ("POST", "/api/search?text=red")):
        body = b"" if method == "POST" else None
        assert client.send(method, target, body, Host=host).status == status


def test_pages_of_other_sites_are_refused(client: Client):
    own = f"127.0.0.1:{client.server.server_address[1]}"
    for origin, status in ((f"http://{own}", 200), ("https://evil.example", 403), ("null", 403)):
        reply = client.send("POST", "/api/search?text=red", b"", Origin=origin, Host=own)
        assert reply.status == status


def test_it_listens_on_the_loopback_interface_unless_told_otherwise(client: Client):
    assert client.server.server_address[0] == "127.0.0.1"
    assert client.server.url == f"http://127.0.0.1:{client.server.server_address[1]}/"


def test_a_port_in_use_is_named(client: Client):
    port = client.server.server_address[1]
    with pytest.raises(ConfigError, match=f"port {port}"):
        BrowseServer(client.server.view, port=port)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS"])
def test_other_methods_do_nothing(client: Client, method: str):
    assert client.send(method, "/api/entries").status == 501


def test_head_has_the_headers_of_get_and_no_body(client: Client):
    reply = client.send("HEAD", "/")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["Content-Length"]) == len(client.get("/").body)


# ------------------------------------------------------------------------------- while it changes


def test_additions_show_when_the_page_is_loaded_again(client: Client, folder: Path, vision):  # noqa: F811
    assert client.get("/api/search", text="red", k=50).status == 200  # the index is made
    add_samples(folder, [make_sample(30)], vision)
    assert client.get("/api/entry", id="s30").status == 404
    assert client.get("/api/bank").json["count"] == 13
    assert client.get("/api/entry", id="s30").status == 200
    assert "s30" in ids(client.get("/api/search", text="red", k=50))


def test_removed_entries_vanish_at_once(client: Client, folder: Path):
    entry = client.get("/api/entry", id="s4").json
    address = f"/image/{entry['image_hash']}"
    assert client.get(address).status == 200
    assert len(rows_of(client.get("/api/map"))) == 12
    remove_entries(folder, ids=["s4"])
    assert client.get("/api/entry", id="s4").status == 404
    assert client.get("/api/entry", row=entry["row"], generation=1).status == 404
    assert client.get(address).status == 404
    assert entry["row"] not in rows_of(client.get("/api/map"))
    for path, values in (
        ("/api/entries", {}),
        ("/api/search", {"text": "red"}),
        ("/api/neighbours", {"id": "s1"}),
    ):
        assert "s4" not in ids(client.get(path, **values))


def test_a_compacted_bank_asks_for_the_page_anew(client: Client, folder: Path):
    remove_entries(folder, ids=["s0"])
    compact(folder)
    assert client.get("/api/entry", row=1, generation=1).status == 200  # the view it opened
    assert client.get("/api/bank").json["generation"] == 2
    assert client.get("/api/entry", row=1, generation=1).status == 409
    assert ids(client.get("/api/entries"))[0] == "s1"


def test_an_emptied_bank(client: Client, folder: Path):
    remove_entries(folder, ids=[f"s{i}" for i in range(12)])
    assert client.get("/api/bank").json["count"] == 0
    assert ids(client.get("/api/entries")) == []
    assert ids(client.get("/api/search", text="red")) == []
    assert client.get("/api/map").json["points"] == 0


def test_many_at_once(client: Client):
    """Threads share one bank: each gets its own answer."""
    names = [f"s{i % 12}" for i in range(36)]
    found: list[tuple[str, str]] = []

    def look(name: str) -> None:
        found.append((name, client.get("/api/entry", id=name).json["id"]))
        found.append((name, name if client.get("/api/neighbours", id=name).json else ""))

    threads = [threading.Thread(target=look, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 * len(names)
    assert all(asked == answered for asked, answered in found)


def rows_of(reply: Reply) -> list[int]:
    return np.frombuffer(base64.b64decode(reply.json["rows"]), "<u4").tolist()


def test_the_map_has_a_place_and_a_group_for_every_entry(client: Client):
    drawn = client.get("/api/map").json
    assert rows_of(client.get("/api/map")) == list(range(12))
    xy = np.frombuffer(base64.b64decode(drawn["xy"]), "<u2").reshape(12, 2)
    assert xy.min() == 0
    assert xy.max() == 65_535
    clusters = np.frombuffer(base64.b64decode(drawn["cluster"]), np.uint8)
    assert clusters.max() < len(drawn["clusters"])
    assert drawn["sources"] == ["made"]
    assert 0 < drawn["explained"] <= 1


def test_more_sources_than_colours_share_the_last(client: Client, folder: Path, vision):  # noqa: F811
    from dataclasses import replace

    more = [replace(make_sample(40 + i), source=f"source {i}") for i in range(11)]
    add_samples(folder, more, vision)
    client.get("/api/bank")
    drawn = client.get("/api/map").json
    by_source = np.frombuffer(base64.b64decode(drawn["source"]), np.uint8)
    assert len(drawn["sources"]) == view_module.DRAWN_SOURCES
    assert drawn["sources"][0] == "made"
    assert np.bincount(by_source).tolist() == [12, *[1] * 8, 3]


def test_ids_with_any_characters(client: Client, folder: Path, vision):  # noqa: F811
    from dataclasses import replace

    name = "a/b#2?c=d&e <é> \U0001f436"
    add_samples(folder, [replace(make_sample(50), id=name)], vision)
    client.get("/api/bank")
    assert client.send("GET", f"/api/entry?id={quote(name, safe='')}").json["id"] == name


# ------------------------------------------------------------------- what the server does by itself


def raw(client: Client, request: bytes) -> bytes:
    """The whole answer to a request written by hand."""
    with socket.create_connection(client.server.server_address[:2], timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_an_old_request_without_a_host_is_refused(client: Client):
    assert raw(client, b"GET /api/bank HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")


def test_several_requests_share_a_connection_until_one_fails(client: Client):
    ask = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = raw(client, ask % b"/api/bank" + ask % b"/" + ask % b"/elsewhere" + ask % b"/")
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"200", b"404"]


def test_refusals_and_errors_carry_the_headers_too(client: Client, monkeypatch, caplog):
    def broken(view: BankView) -> dict:
        raise RuntimeError("secret")

    monkeypatch.setattr(BankView, "facts", broken)
    replies = [
        client.get("/elsewhere"),
        client.send("GET", "/", Host="evil.example"),
        client.send("PUT", "/"),
        client.get("/api/bank"),
    ]
    assert [reply.status for reply in replies] == [404, 403, 501, 500]
    for reply in replies:
        assert all(reply.headers[name] == value for name, value in HEADERS.items())
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Connection"] == "close"
    assert replies[-1].json == {"error": "RuntimeError; the terminal says more"}
    assert "secret" in caplog.text


def test_addresses_that_cannot_be_read(client: Client):
    assert client.send("GET", "/api/entry?id=%ff").status == 400
    assert client.send("GET", "/api/entry?" + "&".join(["id=s1"] * 51)).status == 400
    assert client.send("GET", "/api/bank/").status == 404  # nor is it sent on to another one
    assert client.send("GET", "/", Origin="http://[").status == 403


def test_small_answers_do_not_wait_for_an_acknowledgement(client: Client):
    """asyncio switches Nagle's algorithm off only on sockets that were made as TCP."""
    assert client.server._socket.proto == socket.IPPROTO_TCP


def test_another_application_can_mount_the_page(folder: Path, samples, monkeypatch):  # noqa: F811
    view = BankView(MemoryBank.open(folder), Pictures(samples))
    outer = Starlette(routes=[Mount("/bank", browse_app(view))])
    monkeypatch.setattr("tinyalign.serving.browse.server.browse_app", lambda *_: outer)
    with BrowseServer(view) as server, running(server):
        mounted = Client(server)
        page = mounted.get("/bank/")
        assert page.body.count(b'="assets/') == 2
        for part in app_module.ASSETS:
            reply = mounted.get(f"/bank/assets/{part}")
            assert reply.status == 200
            assert not re.search(rb'["`]/(?:api|image|assets)/', reply.body), part
        assert mounted.get("/bank/api/bank").json["count"] == 12
        shown = mounted.get("/bank/api/entry", id="s5").json
        assert mounted.get(f"/bank/image/{shown['image_hash']}").status == 200
        refused = mounted.send("GET", "/bank/api/bank", Host="evil.example")
        assert (refused.status, f"{server.url}bank" in refused.json["error"]) == (403, True)
        assert mounted.get("/api/bank").status == 404


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_extra_is_named_with_the_command(folder: Path, monkeypatch, package: str):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(ConfigError, match=rf'{package}.*pip install "tinyalign-vlm\[serve\]"'):
        BrowseServer(BankView(MemoryBank.open(folder), Pictures()))


@pytest.mark.slow  # a process of its own
@pytest.mark.skipif(os.name == "nt", reason="Ctrl+C cannot be sent to one process on Windows")
def test_ctrl_c_ends_it_quietly_though_a_connection_is_open(folder: Path):
    command = [sys.executable, "-m", "tinyalign", "bank", "browse", str(folder)]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        said = re.search(r"http://(.*):(\d+)/", page.stdout.readline())
        assert said is not None
        connection = http.client.HTTPConnection(said[1], int(said[2]), timeout=60)
        connection.request("GET", "/api/bank")
        assert json.load(connection.getresponse())["count"] == 12
        page.send_signal(signal.SIGINT)
        _, errors = page.communicate(timeout=60)
        connection.close()
    finally:
        page.kill()
    assert (page.returncode, errors) == (0, "")
