"""`tinyalign bank browse` on the command line: it says where the page is, and checks first."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import pytest

from tinyalign.serving.browse.server import BrowseServer

from ...memory.conftest import bank, perceiver, samples, vision  # noqa: F401
from ..conftest import make_pairs


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[BrowseServer]:
    """The servers that were started; each answers no request and is stopped with Ctrl+C."""
    started: list[BrowseServer] = []

    def stopped(server: BrowseServer) -> None:
        started.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(BrowseServer, "serve_forever", stopped)
    return started


def test_it_says_where_the_page_is(run, pages, bank):  # noqa: F811
    code, out, _ = run("bank", "browse", bank.folder)
    assert code == 0
    assert out.startswith(f"12 entries at {pages[0].url} ")
    code, out, _ = run("bank", "browse", bank.folder, "--json", "--device", "cpu")
    assert json.loads(out) == {"url": pages[1].url, "bank": str(bank.folder), "entries": 12}


def test_open_opens_the_browser(run, pages, bank, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run("bank", "browse", bank.folder)
    assert opened == []
    run("bank", "browse", bank.folder, "--open")
    assert opened == [pages[1].url]


def test_other_addresses_come_with_a_warning(run, pages, bank):  # noqa: F811
    assert "everybody" not in run("bank", "browse", bank.folder)[2]
    code, out, errors = run("bank", "browse", bank.folder, "--host", "0.0.0.0")
    assert code == 0
    assert "everybody" in errors
    assert "http://localhost:" in out


def test_pictures_may_come_from_any_data_set(run, pages, bank, tmp_path: Path):  # noqa: F811
    pairs = make_pairs(tmp_path / "pairs", 3)
    assert run("bank", "browse", bank.folder, "--data", pairs)[0] == 0
    found = pages[0].view.pictures.samples
    assert found is not None
    assert [one.id for one in found] == ["pair-0", "pair-1", "pair-2"]


def test_what_cannot_be_shown_is_said_before_the_page_opens(run, pages, bank, tmp_path: Path):  # noqa: F811
    broken = Path(shutil.copytree(bank.folder, tmp_path / "broken"))
    (broken / "manifest.json").unlink()
    for words, named in (
        ((tmp_path / "none",), "none"),
        ((broken,), "manifest.json"),
        ((bank.folder, "--data", tmp_path / "nothing.json"), "nothing.json"),
        ((bank.folder, "--port", 70000), "70000"),
        ((bank.folder, "--host", "no.such.host.invalid"), "no.such.host.invalid"),
    ):
        code, out, errors = run("bank", "browse", *words)
        assert (code, out) == (2, "")
        assert named in errors
    assert pages == []


def test_the_page_answers_while_it_runs(run, bank, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    import threading

    found: list[dict] = []
    serve = BrowseServer.serve_forever

    def look_once(server: BrowseServer) -> None:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        with urllib.request.urlopen(f"{server.url}api/bank", timeout=60) as reply:
            found.append(json.load(reply))
        server.shutdown()
        thread.join()

    monkeypatch.setattr(BrowseServer, "serve_forever", look_once)
    assert run("bank", "browse", bank.folder)[0] == 0
    assert found[0]["count"] == 12
