"""Pages of `ral-data` for a browser to open."""

from pathlib import Path

from PIL import Image

from ral_system.report.preview_page import (
    Figures,
    LeftOut,
    Origin,
    Piece,
    Preview,
    Reason,
    ShownMedium,
    ShownRow,
    Spread,
    write_preview,
)
from ral_system.types import Layout, View


def preview(folder: Path, hostile: str) -> Path:
    """Long words and text that looks like markup, in every place."""
    long = "word " * 400
    pieces = [Piece("special", "<|im_start|>", 1), Piece("text", f"user\n{hostile} {long}{'x' * 300}", 500)]
    frames = [Image.new("RGB", (224, 126), (9 * i, 90, 120)) for i in range(16)]
    media = [
        ShownMedium(
            "image", (1400, 700), Layout("image", (View(25, 50),)), [Image.new("RGB", (1400, 700), (200, 40, 40))]
        ),
        ShownMedium(
            "video", (448, 252), Layout("video", (View(9, 16),) * 64), frames, [float(i) for i in range(16)], 128, 128.0
        ),
    ]
    row = ShownRow("main/1", "free-form", [*pieces, Piece("media", "<|video_pad|>", 9216)], media, "red", long)
    figures = Figures(
        1204, 1000, 2, {"broken": 202}, [Reason(hostile, 9, "x" * 300)], Spread(9, 99, 999), Spread(8, 88, 888), "all"
    )
    left = [LeftOut(f"main/{i}", "x" * 100, "broken", "/a/path" * 40) for i in range(3)]
    origin = Origin("run", f"ral-data data.sources.main.path={'x' * 200}", "org/model")
    return write_preview(folder, Preview(origin, "/tmp" * 40, figures, [row] * 3, [row], left, hostile))


def preview_of_a_small_picture(folder: Path) -> Path:
    """One row."""
    picture = ShownMedium(
        "image", (84, 56), Layout("image", (View(2, 3),)), [Image.new("RGB", (84, 56), (200, 40, 40))]
    )
    row = ShownRow("main/1", "k", [Piece("text", "what", 1)], [picture], "red", None)
    figures = Figures(1, 1, 0, {}, [], Spread(1, 1, 1), Spread(0, 0, 0), "all")
    return write_preview(folder, Preview(Origin("r", "c", "m"), "d", figures, [row], [], []))
