"""README's Python, a bare pipeline and `answer` agree in a process that only imported tinyalign."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).resolve().parents[2] / "README.md"

AND_THEN = """
import json, sys
from PIL import Image
from transformers import pipeline
from tinyalign.serving.ask import answer

question = "What shape is it?"
options = {"max_new_tokens": 8, "do_sample": False}

def said(pipe, picture):
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    found = pipe(text=chat, generate_kwargs=options, return_full_text=False)
    return found[0]["generated_text"].strip()

attached = pipeline("image-text-to-text", model=model, processor=processor)
bare = pipeline("image-text-to-text", model=sys.argv[1])
for name in sys.argv[2:]:
    for picture in (Image.open(name), name):
        remembering = answer(model, processor, picture, question, max_new_tokens=8)
        alone = answer(bare.model, bare.processor, picture, question, max_new_tokens=8)
        print(json.dumps({
            "ask": [remembering.text, alone.text],
            "pipeline": [said(attached, picture), said(bare, picture)],
            "memories": [len(remembering.memories), len(alone.memories)],
        }))
"""


def readme_snippet(model: Path, bank: Path) -> str:
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert '"runs/mine/model"' in snippet
    assert '"bank"' in snippet
    return snippet.replace('"runs/mine/model"', repr(str(model))).replace('"bank"', repr(str(bank)))


@pytest.mark.slow  # processes of its own
def test_readmes_python_then_pipelines_and_ask_agree(world, photo: Image.Image, tmp_path: Path):
    model, pictures = tmp_path / "model", [tmp_path / "photo.png", tmp_path / "turned.png"]
    world.model.save_pretrained(model)
    world.processor.save_pretrained(model)
    photo.save(pictures[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.putalpha(60)
    photo.save(pictures[1], exif=exif)
    program = readme_snippet(model, Path(world.retriever.bank.folder)) + AND_THEN
    done = subprocess.run(
        [sys.executable, "-c", program, str(model), *map(str, pictures)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    asked = [json.loads(line) for line in done.stdout.splitlines()[-2 * len(pictures) :]]
    for found in asked:
        assert found["pipeline"] == found["ask"]
        assert found["memories"] == [2, 0]
    for picture, file in zip(asked[::2], asked[1::2]):
        assert picture == file
