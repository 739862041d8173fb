"""The page in a real browser without a screen: what stands in it once its scripts have run."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tinyalign.memory.bank.bank import MemoryBank
from tinyalign.memory.building.changes import add_samples
from tinyalign.serving.browse.pictures import Pictures
from tinyalign.serving.browse.server import BrowseServer
from tinyalign.serving.browse.view import BankView

from ...memory.conftest import bank, make_sample, perceiver, samples, vision  # noqa: F401

pytestmark = pytest.mark.slow  # a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'"
CARD = re.compile(r'<a class="card" href="([^"]*)">(.*?)</a>', re.DOTALL)


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    return found


@pytest.fixture(scope="module")
def url(bank, samples, vision, tmp_path_factory) -> Iterator[str]:  # noqa: F811
    """The page of the bank of twelve and one hostile entry without a picture."""
    folder = shutil.copytree(bank.folder, tmp_path_factory.mktemp("browse") / "bank")
    add_samples(folder, [replace(make_sample(90), id=HOSTILE, source=HOSTILE)], vision)
    view = BankView(MemoryBank.open(folder), Pictures(samples))
    with BrowseServer(view) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: str, url: str, tmp_path: Path) -> Callable[[str], str]:
    """`page(hash)`: the document at that address, after its scripts have had their time."""

    def load(fragment: str) -> str:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}", url + fragment,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return load


def cards(document: str) -> list[str]:
    """The address of each entry in the contact sheet."""
    sheet = document.partition('id="cards"')[2].partition('id="pager"')[0]
    return [html.unescape(href) for href, _ in CARD.findall(sheet)]


def test_the_contact_sheet(page):
    document = page("")
    assert cards(document)[:3] == ["#id=s0", "#id=s1", "#id=s2"]
    assert len(cards(document)) == 13
    assert "13 entries · 2 sources" in document
    assert document.count('src="image/') == 12


def test_texts_of_a_bank_never_become_markup(page):
    document = page("")
    assert "broken in" not in document.partition("</title>")[0]
    assert "<img src=x" not in document.replace("&lt;", "")
    assert "&lt;script&gt;document.title" in document  # it is shown, as text


def test_a_search_by_words(page):
    document = page("#text=What+colour+is+shape+1%3F")
    assert "Nearest to “What colour is shape 1?”" in document
    assert document.count('class="score"') == 13


def test_an_entry_with_its_neighbours(page):
    document = page("#id=s3")
    panel = document.partition('id="entry"')[2]
    assert "What colour is shape 0? It is grey number 3" in panel
    assert "s3" in re.findall(r"<dd>(.*?)</dd>", panel)
    assert len(CARD.findall(panel)) == 12
    assert re.search(r'<dialog[^>]* open=""', document)


def test_the_map_has_a_legend_and_says_what_it_shows(page):
    document = page("#view=map")
    assert re.search(r'id="legend".*aria-pressed="true"', document, re.DOTALL)
    assert "13 entries, placed on the two main axes" in document


def test_what_is_not_there_is_said(page):
    assert "no entry 'gone' in the bank" in page("#id=gone")
    assert "there is no page 7" in page("#page=7")
