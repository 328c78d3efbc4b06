"""Decoding of pictures from outside to RGB pixels, or to an error. Sizes are checked before pixels are decoded."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ral_system.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read; what a file is called does not matter. Formats that run programs or call others (EPS, …) are not."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of a picture. A single pixel shows nothing; areas beyond bounds are bombs or mistakes."""

    min_side_px: int = 2
    max_area_px: int = 100_000_000
    max_ratio: float = 200.0
    """Long side to short side; image processors refuse more."""


def decode_image(encoded: bytes, limits: ImageLimits) -> Image.Image:
    """The first frame as RGB, upright as its EXIF orientation says, transparency on white, 16 bits scaled to 8.

    Raises DataError with a reason: empty, not a picture, cut short, damaged, too small, too large, too long and thin.
    Of a JPEG, which has no checksum, damage in the middle is not noticed: libjpeg decodes it to other pixels.
    """
    if not encoded:
        raise DataError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are checked next
            opened = Image.open(io.BytesIO(encoded), formats=FORMATS)
            _check_size(opened.size, limits)
            Image.open(io.BytesIO(encoded), formats=FORMATS).verify()  # checksums, which loading passes over
            opened.load()
            return _as_rgb(opened)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"not a picture (it begins with {encoded[:8]!r})") from None
    except Image.DecompressionBombError:  # PIL's own guard, above our limit: it stays on, and we say why
        size = _header_size(encoded)
        if size is not None:
            _check_size(size, limits)
        raise DataError(f"too large: more than {limits.max_area_px:,} px in all") from None
    except MemoryError:  # the limit of the process that decodes
        raise
    except Exception as error:  # PIL's decoders raise whatever the bytes make them
        raise DataError(f"cut short or damaged ({' '.join(str(error).split()) or type(error).__name__})") from None


def _header_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height, of what no pixel is decoded; None where PIL does not tell them (a GIF's frames, WebP)."""
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]  # what Image.open calls before its guard
        if accepts is not None and accepts(encoded[:16]) is True:
            with suppress(Image.DecompressionBombError):
                return factory(io.BytesIO(encoded), "").size
    return None


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    short, long = sorted(size)
    shown = f"{size[0]}x{size[1]} px"
    if short < limits.min_side_px:
        raise DataError(f"too small: {shown}, at least {limits.min_side_px} px a side")
    if short * long > limits.max_area_px:
        raise DataError(f"too large: {shown}, at most {limits.max_area_px:,} px in all")
    if long > limits.max_ratio * short:
        raise DataError(f"too long and thin: {shown}, at most {limits.max_ratio:g} to 1")


def _as_rgb(image: Image.Image) -> Image.Image:
    upright = _upright(image)
    if upright.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: `convert` would clip at 255
        upright = _scaled_to_8_bits(upright)
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        ground = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(ground, clear).convert("RGB")
    return upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; unchanged if EXIF is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit values by their range, anything else by its own extremes."""
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise DataError("holds pixels that are not finite")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and 0 <= low <= high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (values - low) * (255 / ((high - low) or 1.0))
    return Image.fromarray(scaled.round().astype(np.uint8))
