"""Whatever form an image comes in, the processor sees the pixels that training sees."""

from __future__ import annotations

import base64
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import image_utils, pipeline

from tinyalign.data.images import load_image
from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError
from tinyalign.model.image_inputs import as_rgb


@pytest.fixture(scope="module")
def made(build):
    return build()


@pytest.fixture(scope="module")
def processor(made):
    return made[1]


def transparent(photo: Image.Image, file: Path) -> None:
    photo.putalpha(60)
    photo.save(file, "PNG")


def deep_grey(photo: Image.Image, file: Path) -> None:
    pixels = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    Image.fromarray(pixels).save(file, "PNG")


def turned(photo: Image.Image, file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save(file, "JPEG", exif=exif)


def large(photo: Image.Image, file: Path) -> None:
    photo.resize((4200, 2800), Image.Resampling.NEAREST).save(file, "PNG")


@pytest.fixture(
    params=[
        pytest.param(transparent, id="transparent"),
        pytest.param(deep_grey, id="deep_grey"),
        pytest.param(turned, id="turned"),
        pytest.param(large, id="large", marks=pytest.mark.slow),
    ]
)
def file(request, photo, tmp_path) -> Path:
    """A picture that transformers' own loading would show otherwise."""
    request.param(photo, tmp_path / "picture")
    return tmp_path / "picture"


def as_trained(processor, file: Path) -> torch.Tensor:
    image = load_image(ImageRef(path=str(file)))
    return processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]


def encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


FORMS = {
    "picture": lambda file: {"image": Image.open(file)},
    "file": lambda file: {"path": str(file)},
    "file as url": lambda file: {"url": str(file)},
    "path object": lambda file: {"image": file},
    "base64": lambda file: {"base64": encoded(file)},
    "data URI": lambda file: {"url": f"data:image/png;base64,{encoded(file)}"},
}


def asked(**image) -> list[dict]:
    content = [{"type": "image", **image}, {"type": "text", "text": "what color?"}]
    return [{"role": "user", "content": content}]


def pixels_of(processor, chat) -> torch.Tensor:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(chat, add_generation_prompt=True, **options)[
        "pixel_values"
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_chat_shows_an_image_as_training_does(processor, file, form):
    chat = asked(**FORMS[form](file))
    assert torch.equal(pixels_of(processor, chat), as_trained(processor, file))


def test_images_of_a_call_are_shown_as_in_training(processor, file):
    images = [[Image.open(file)], [str(file)]]
    out = processor(images=images, text=["<image> a", "<image> a"], return_tensors="pt")
    assert torch.equal(out["pixel_values"], as_trained(processor, file).expand(2, -1, -1, -1))


@pytest.mark.parametrize("form", ["picture", "file"])
def test_a_pipeline_shows_an_image_of_a_chat_as_training_does(made, file, form):
    model, processor = made
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    seen = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("pixel_values", *args)),
        with_kwargs=True,
    )
    ask(text=asked(**FORMS[form](file)), max_new_tokens=1)
    handle.remove()
    assert torch.equal(seen[0], as_trained(processor, file))


def test_transformers_own_loading_would_differ(processor, file):
    """Otherwise the tests above would pass without loading of our own."""
    loaded = [Image.open(file), image_utils.load_image(str(file))]
    seen = [processor.image_processor(images=[image], return_tensors="pt") for image in loaded]
    ours = as_trained(processor, file)
    assert not all(torch.equal(theirs["pixel_values"], ours) for theirs in seen)


def test_a_url_is_fetched(processor, photo, tmp_path):
    transparent(photo, tmp_path / "picture.png")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        shown = pixels_of(processor, asked(url=f"{address}/picture.png"))
        openai = [
            {"type": "image_url", "image_url": {"url": f"{address}/picture.png"}},
            {"type": "text", "text": "what color?"},
        ]
        again = pixels_of(processor, [{"role": "user", "content": openai}])
        with pytest.raises(DataError, match=r"nothing\.png: expected a picture.*404"):
            as_rgb(f"{address}/nothing.png")
        server.shutdown()
    assert torch.equal(shown, as_trained(processor, tmp_path / "picture.png"))
    assert torch.equal(again, shown)


def test_pixels_stay_as_they_are(photo):
    tensor, array = torch.zeros(3, 4, 4), np.zeros((4, 4, 3), np.uint8)
    assert as_rgb(tensor) is tensor
    assert as_rgb([[array], [None]])[0][0] is array
    assert as_rgb(None) is None


def test_the_callers_picture_is_not_changed(photo, tmp_path):
    large(photo, tmp_path / "picture")
    picture = Image.open(tmp_path / "picture")
    as_rgb(picture)
    assert picture.size == (4200, 2800)


@pytest.mark.parametrize("source", ["nowhere.jpg", "not an image", "data:image/png;base64,@@"])
def test_a_text_that_leads_to_no_image_is_named(source):
    with pytest.raises(DataError, match=r"image .*: expected a"):
        as_rgb(source)
