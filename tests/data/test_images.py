"""Whatever the file, the model sees upright RGB; what can't be shown is an error with its name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyalign.data.images import MAX_PIXELS, image_hash, load_image, to_rgb
from tinyalign.data.sample import ImageRef
from tinyalign.errors import DataError


def encoded(image: Image.Image, format: str = "PNG", **options) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return ImageRef(path=f"made.{format.lower()}", data=buffer.getvalue())


def pixel(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535 // 2, (127, 127, 127)),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode, color, expected):
    image = load_image(encoded(Image.new(mode, (8, 6), color)))
    assert image.mode == "RGB"
    assert image.size == (8, 6)
    assert pixel(image) == expected


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_a_picture_in_memory_is_treated_as_its_file(photo, mode):
    picture = photo.convert(mode)
    if mode == "RGBA":
        picture.putalpha(100)
    assert to_rgb(picture).tobytes() == load_image(encoded(picture)).tobytes()


def test_a_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30])
    assert pixel(load_image(encoded(image, transparency=0))) == (255, 255, 255)


def test_exif_rotation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    upright = load_image(encoded(photo, "JPEG", exif=exif))
    assert upright.size == (photo.height, photo.width)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_photo_beyond_ten_megapixels_is_made_smaller_not_refused(format):
    large = load_image(encoded(Image.new("RGB", (4200, 2800), "navy"), format))
    assert large.width * large.height <= MAX_PIXELS
    assert large.width / large.height == pytest.approx(1.5, abs=0.01)


def test_ten_megapixels_are_left_as_they_are():
    assert load_image(encoded(Image.new("L", (4000, 2500)), "JPEG")).size == (4000, 2500)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.jpg: expected a file, found none"):
        load_image(ImageRef(path=str(tmp_path / "nowhere.jpg")))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_truncated_jpeg_is_named(tmp_path: Path, kept):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG").data or b""
    file = tmp_path / "cut.jpg"
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"cut\.jpg: expected a complete image"):
        load_image(ImageRef(path=str(file)))


def test_text_instead_of_an_image_is_named():
    with pytest.raises(DataError, match=r"page\.jpg"):
        load_image(ImageRef(path="page.jpg", data=b"<html>not found</html>"))


def test_one_photo_in_two_containers_has_one_hash(photo):
    png, bmp = encoded(photo, "PNG"), encoded(photo, "BMP")
    assert png.data != bmp.data
    assert image_hash(png) == image_hash(bmp)


def test_another_shape_of_the_same_bytes_has_another_hash():
    wide, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert image_hash(encoded(wide)) != image_hash(encoded(tall))


def test_an_image_needs_a_source():
    with pytest.raises(ValueError, match="path or encoded bytes"):
        ImageRef()
