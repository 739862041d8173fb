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

picture = Image.open(sys.argv[1])
content = [{"type": "image", "image": picture}, {"type": "text", "text": "What shape is it?"}]
options = {"max_new_tokens": 8, "do_sample": False}

def said(pipe):
    chat = [{"role": "user", "content": content}]
    return pipe(text=chat, generate_kwargs=options, return_full_text=False)[0]["generated_text"]

remembering = answer(model, processor, picture, "What shape is it?", max_new_tokens=8)
attached = pipeline("image-text-to-text", model=model, processor=processor)
bare = pipeline("image-text-to-text", model=sys.argv[2])
alone = answer(bare.model, bare.processor, picture, "What shape is it?", max_new_tokens=8)
print(json.dumps({
    "ask": [remembering.text, alone.text],
    "pipeline": [said(attached).strip(), said(bare).strip()],
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
    model, picture = tmp_path / "model", tmp_path / "photo.png"
    world.model.save_pretrained(model)
    world.processor.save_pretrained(model)
    photo.save(picture)
    program = readme_snippet(model, Path(world.retriever.bank.folder)) + AND_THEN
    done = subprocess.run(
        [sys.executable, "-c", program, str(picture), str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pipeline"] == found["ask"]
    assert found["memories"] == [2, 0]
