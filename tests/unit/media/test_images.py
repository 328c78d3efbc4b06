"""Pictures as they come: every mode becomes upright RGB, every broken file a reason."""

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ral_system.errors import DataError
from ral_system.media.images import ImageLimits, decode_image

LIMITS = ImageLimits()


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def gradient(width: int = 12, height: int = 8) -> Image.Image:
    """No two corners alike."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8), "RGB")


def pixels(encoded: bytes) -> np.ndarray:
    image = decode_image(encoded, LIMITS)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_formats(kind: str) -> None:
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    found = pixels(encode(gradient(), kind, **options))
    assert np.abs(found - np.asarray(gradient())).max() <= (6 if kind == "JPEG" else 0)


def test_an_animation_is_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("GIF", "WEBP", "PNG"):
        encoded = encode(
            first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert (pixels(encoded) == [255, 0, 0]).all(), kind


def test_grey_palette_and_single_bits() -> None:
    grey = gradient().convert("L")
    assert (pixels(encode(grey, "PNG")) == np.asarray(grey)[..., None]).all()
    assert (pixels(encode(grey.convert("1"), "PNG"))[..., 0] == 255 * np.asarray(grey.convert("1"))).all()
    few = gradient().quantize(4)
    assert (pixels(encode(few, "PNG")) == np.asarray(few.convert("RGB"))).all()


def test_print_colours() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = pixels(encode(cmyk, "JPEG", quality=100))[8, 8]
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    deep = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    found = pixels(encode(Image.fromarray(deep), "PNG"))
    assert np.abs(found[..., 0] - deep / 257).max() <= 1


def test_floats_are_scaled_by_their_own_range() -> None:
    values = np.linspace(-2.0, 6.0, 96, dtype=np.float32).reshape(8, 12)
    found = pixels(encode(Image.fromarray(values), "TIFF"))
    assert np.abs(found[..., 0] - (values + 2) * 255 / 8).max() <= 1


def test_what_is_transparent_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 2), (255, 0, 0, 255))
    found = pixels(encode(clear, "PNG"))
    assert (found[2, 1] == [255, 0, 0]).all() and (found[0, 0] == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert (pixels(encode(palette, "PNG", transparency=0)) == 255).all()


def test_a_turned_picture_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # was taken with the camera turned: to be shown a quarter clockwise
    turned = decode_image(encode(gradient(), "JPEG", exif=exif, quality=100, subsampling=0), LIMITS)
    assert turned.size == (8, 12)
    expected = np.asarray(gradient().rotate(-90, expand=True)).astype(int)
    assert np.abs(np.asarray(turned).astype(int) - expected).max() <= 6


def test_damaged_exif_costs_the_orientation_only() -> None:
    whole = encode(gradient(), "JPEG", quality=100, subsampling=0)
    for body in (b"Exif\0\0", b"Exif\0\0II*", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0garbage garbage"):
        marked = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + whole[2:]
        assert decode_image(marked, LIMITS).size == (12, 8), body


def test_pixels_that_are_no_numbers_are_a_reason() -> None:
    values = np.ones((8, 12), np.float32)
    for odd in (np.nan, np.inf):
        values[2, 3] = odd
        with pytest.raises(DataError, match="holds pixels that are not finite"):
            decode_image(encode(Image.fromarray(values), "TIFF"), LIMITS)


def big_png(width: int, height: int) -> bytes:
    """Valid, one bit a pixel, a few kilobytes whatever its size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    compressor = zlib.compressobj(9)
    rows = b"".join(compressor.compress(b"\0" * (1 + (width + 7) // 8)) for _ in range(height)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def big_gif(width: int, height: int) -> bytes:
    """A frame that is larger than the file's header says."""
    small = encode(gradient().quantize(4), "GIF")
    at = small.index(b",\0\0\0\0" + struct.pack("<HH", 12, 8)) + 5
    return small[:at] + struct.pack("<HH", width, height) + small[at + 4 :]


GOOD_PNG, GOOD_JPEG = encode(gradient(64, 64), "PNG"), encode(gradient(64, 64), "JPEG")
BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404</html>", r"not a picture \(it begins with b'<html>40'\)"),
    "a zip": (b"PK\x03\x04" + b"\0" * 64, "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "half a jpeg": (GOOD_JPEG[: len(GOOD_JPEG) // 2], "cut short or damaged"),
    "half a png": (GOOD_PNG[: len(GOOD_PNG) // 2], "cut short or damaged"),
    "a png's signature": (GOOD_PNG[:8], "not a picture|cut short"),
    "a flipped byte": (GOOD_PNG[:60] + bytes([GOOD_PNG[60] ^ 255]) + GOOD_PNG[61:], "cut short or damaged"),
    "one pixel": (encode(gradient(1, 1), "PNG"), "too small: 1x1 px, at least 2 px a side"),
    "a line": (encode(gradient(900, 3), "PNG"), "too long and thin: 900x3 px, at most 200 to 1"),
    "four hundred million pixels": (
        big_png(20_000, 20_000),
        "^too large: 20000x20000 px, at most 100,000,000 px in all$",
    ),
    "as many in a frame": (big_gif(20_000, 20_000), "^too large: more than 100,000,000 px in all$"),
    "more than we take": (big_png(12_000, 10_000), "too large: 12000x10000 px, at most 100,000,000 px in all"),
    "a bomb": (big_png(60_000, 60_000), "^too large: 60000x60000 px, at most 100,000,000 px in all$"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_reason(name: str) -> None:
    encoded, reason = BROKEN[name]
    with pytest.raises(DataError, match=reason) as error:
        decode_image(encoded, LIMITS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_of_a_bomb_the_header_is_read_and_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(self: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    bmp, jpeg = encode(gradient(), "BMP"), encode(gradient(), "JPEG")
    sides = jpeg.index(b"\xff\xc0") + 5
    jpeg = jpeg[:sides] + struct.pack(">HH", 20_000, 20_000) + jpeg[sides + 4 :]
    for bomb in (big_png(20_000, 20_000), bmp[:18] + struct.pack("<ii", 20_000, 20_000) + bmp[26:], jpeg):
        with pytest.raises(DataError, match=r"^too large: 20000x20000 px, at most 100,000,000 px in all$"):
            decode_image(bomb, LIMITS)


def test_every_prefix_of_a_file_is_a_picture_or_a_reason() -> None:
    for encoded in (
        GOOD_PNG,
        GOOD_JPEG,
        encode(gradient(), "GIF"),
        encode(gradient(), "WEBP"),
        encode(gradient(), "TIFF"),
    ):
        for end in range(0, len(encoded), max(1, len(encoded) // 60)):
            try:
                decode_image(encoded[:end], LIMITS)
            except DataError as error:
                assert re.match("the file is empty|not a picture|cut short or damaged|too", str(error))
