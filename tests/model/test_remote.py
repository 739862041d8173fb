"""A saved model loads in a process that never imported tinyalign, through `auto_map`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, again = sys.argv[1:]
assert "tinyalign" not in sys.modules
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
bare = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
processor.save_pretrained(again)
print([type(one).__module__ for one in (config, model, processor, bare)])
"""


@pytest.fixture(scope="module")
def saved(build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = build(k=2, fusion="sequence")
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_configs_name_the_classes(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    for name in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"):
        assert config["auto_map"][name].startswith("tinyalign_auto.TinyAlign")
    processor = json.loads((saved / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "tinyalign_auto.TinyAlignProcessor"}


@pytest.mark.slow  # a process of its own
def test_a_fresh_process_loads_it_from_the_package_and_saves_it_alike(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    command = [sys.executable, "-c", LOAD, str(saved), str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'tinyalign.model.") == 4
    again = tmp_path / "again"
    for name in ("config.json", "processor_config.json"):
        expected = json.loads((saved / name).read_text())["auto_map"]
        assert json.loads((again / name).read_text())["auto_map"] == expected
    assert [path.name for path in again.glob("*.py")] == ["tinyalign_auto.py"]  # no copied code


def test_without_the_package_the_error_says_what_to_install(saved: Path) -> None:
    hide = "import sys; sys.modules['tinyalign'] = None; "
    run = f"import runpy; runpy.run_path({str(saved / 'tinyalign_auto.py')!r})"
    done = subprocess.run([sys.executable, "-c", hide + run], capture_output=True, text=True)
    assert done.returncode != 0
    assert 'pip install "tinyalign-vlm"' in done.stderr
