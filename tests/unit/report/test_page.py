from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ral_system.report.page import picture


def decoded(html: str) -> Image.Image:
    found = re.search(r'base64,([^"]*)"', html)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


@pytest.mark.parametrize("size", [(84, 84), (1, 300), (500, 500)])
def test_drawings_are_embedded_as_they_are(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (230, 40, 40))
    image.paste((0, 0, 0), (0, 0, 1, size[1] // 2))
    found = decoded(picture(image, "picture", "a drawing"))
    assert found.format == "PNG" and found.tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(300, 300), (900, 700)])
def test_photographs_are_embedded_small(size: tuple[int, int]) -> None:
    y, x = np.mgrid[: size[1], : size[0]]
    noise = np.random.default_rng(0).normal(0, 6, x.shape)
    noisy = (np.stack([x / 4, y / 4, (x + y) / 8], -1) + 10 + noise[..., None]).clip(0, 255).astype(np.uint8)
    found = decoded(picture(Image.fromarray(noisy), "picture", "a photograph"))
    assert (found.format, found.size) == ("JPEG", size)
    assert np.abs(np.asarray(found).astype(int) - noisy).mean() < 4


def test_descriptions_are_escaped() -> None:
    assert 'alt="&quot;&gt;"' in picture(Image.new("RGB", (2, 2)), "picture", '">')
