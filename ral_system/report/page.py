"""Shared parts of all pages, each one file that needs no network: style and pictures are embedded."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from ral_system.report.svg import STYLE, variables

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_LOSSLESS_AREA_PX = 512 * 512
"""Larger pictures take too long to be tried as PNG."""


def page(title: str, body: str, *, styles: Sequence[str] = ("report.css",), script: str | None = None) -> str:
    """Return a document around `body`, which is HTML; `styles` and `script` are files of this package."""
    assets = files("ral_system.report")
    style = variables() + STYLE + "".join(assets.joinpath(name).read_text(encoding="utf-8") for name in styles)
    code = f"<script>{assets.joinpath(script).read_text(encoding='utf-8')}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f'<body><main>{body}</main><div id="tip" role="status" hidden></div>{code}</body></html>\n'
    )


def picture(image: Image.Image, kind: str, alt: str) -> str:
    """Return an `img` of class `kind` that embeds the picture: drawings as PNG, photographs and large pictures as
    JPEG."""
    mime, encoded = _encoded(image)
    source = f"data:image/{mime};base64,{base64.b64encode(encoded).decode('ascii')}"
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img class="{kind}" alt="{escape(alt)}" {size} src="{source}">'


def frame_strip(frames: Iterable[tuple[Image.Image, str]], kind: str, alt: str, note: str = "") -> str:
    """Draw frames of a video side by side, each above its caption, with `note` below them."""
    drawn = "".join(
        f'<span class="frame">{picture(image, kind, f"{alt}, {caption}")}<small>{escape(caption)}</small></span>'
        for image, caption in frames
    )
    return f'<div class="frames">{drawn}{f"<small>{escape(note)}</small>" if note else ""}</div>'


def seconds(time_s: float) -> str:
    """Format a time within a video."""
    return f"{time_s:.1f} s"


def _encoded(image: Image.Image) -> tuple[str, bytes]:
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(jpeg, format="JPEG", quality=88, subsampling=0)
    if image.width * image.height <= _LOSSLESS_AREA_PX:
        image.save(png, format="PNG")
        if png.tell() <= 2 * jpeg.tell():
            return "png", png.getvalue()
    return "jpeg", jpeg.getvalue()
