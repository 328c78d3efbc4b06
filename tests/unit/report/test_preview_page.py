from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ral_system.report.preview_page import (
    Drawn,
    Figures,
    Judged,
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

HOSTILE = "<script>alert('\"')</script>"
FIGURES = Figures(
    rows=1204,
    train=1000,
    held_out=1,
    left_out={"broken": 202, "too_long": 1},
    reasons=[Reason("answer: empty", 190, "answer: empty"), Reason("path: …", 10, "path: a.png")],
    tokens=Spread(311, 702, 1904),
    visual_tokens=Spread(256, 600, 1800),
    counted="all questions in use",
    judged=[Judged("number", "numeric", own=True, rows=901), Judged("", "exact", own=False, rows=100)],
    drawn=[Drawn("main", 700, 0.25), Drawn("geo", 301, 0.75)],
    absent=["data.sources.geo.columns.videos=videos"],
)


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (124, 116, 104))


def row(text: str = "what moves ?") -> ShownRow:
    pieces = [
        Piece("special", "<|im_start|>", 1),
        Piece("text", f"user\n{text}", 4),
        Piece("media", "<|video_pad|>", 1360),
    ]
    picture = ShownMedium("image", (84, 56), Layout("image", (View(2, 3),)), [grey(84, 56)])
    video = ShownMedium(
        "video",
        (112, 84),
        Layout("video", (View(3, 4),) * 20),
        [grey(112, 84)] * 2,
        times_s=(0.0, 19.5),
        sampled=40,
        duration_s=20.0,
    )
    return ShownRow(f"main/{text}", f"kind {text}", pieces, [picture, video], f"red {text}", f"it is {text}")


def preview(text: str = "what moves ?", error: str | None = None) -> Preview:
    left = [LeftOut(f"main/{text}9", text, "too_long", text), LeftOut("main/10", None, "broken", "answer: empty")]
    origin = Origin(f"run {text}", f"ral-data name='{text}'", f"org/{text}")
    return Preview(origin, f"rows {text}", FIGURES, [row(text), replace(row(text), media=())], [row(text)], left, error)


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.split("<body>")[1]).split())


def test_the_page_says_what_there_is(tmp_path: Path) -> None:
    path = write_preview(tmp_path, preview())
    assert path == tmp_path / "preview.html"
    page = path.read_text()
    said = text_of(page)
    for part in (
        "ral-data name=&#x27;what moves ?&#x27;",
        "Rows 1,204 Train 1,000 Held out 1 Left out 203 202 broken, 1 too long",
        "Tokens per prompt 311 median · 95 % 702 · max 1,904",
        "The first 2 of 1,000, in the order of training.",
        "All 1, in the order in which they are evaluated.",
        "1,365 tokens · 1,360 visual",
        "84 × 56 px · 1 × 2 × 3 = 6 visual tokens",
        "0.0 s 19.5 s 2 of the 40 frames are shown",
        "40 frames of 20.0 s · 112 × 84 px · 20 × 3 × 4 = 240 visual tokens",
        "&lt;|im_start|&gt; user what moves ? &lt;|video_pad|&gt; × 1,360",
        "Answer red what moves ? Thought it is what moves ?",
        "The first 2 of 203, in the order of their file.",
        "190 × answer: empty 10 × path: …; for example: path: a.png … and 2 others",
        "main: 700 questions, 25.0% of the training questions drawn",
        "number → numeric , 901 questions no kind → exact (reward.verifier) , 100 questions",
        "Columns without values data.sources.geo.columns.videos=videos",
        "main/10 broken answer: empty",
    ):
        assert part in said, part
    assert "No run can use" not in said
    assert page.count("<img ") == 6  # a row without media has none


def test_nothing_is_asked_of_the_network_and_texts_are_escaped(tmp_path: Path) -> None:
    page = write_preview(tmp_path, preview(HOSTILE, error=HOSTILE)).read_text()
    assert HOSTILE not in page and "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page


def test_an_error_is_told_and_the_order_is_the_files(tmp_path: Path) -> None:
    page = write_preview(tmp_path, preview(error="202 of 1204 rows cannot be used")).read_text()
    assert "No run can use these data yet. 202 of 1204 rows cannot be used" in text_of(page)
    assert "in the order of training" not in page and "in the order of their file" in page


def test_nothing_at_all_is_a_page_too(tmp_path: Path) -> None:
    none = Figures(0, 0, 0, {}, [], None, None, "none")
    empty = Preview(Origin("n", "c", "m"), "d", none, [], [], [], "cannot read")
    page = write_preview(tmp_path, empty).read_text()
    assert "<section" not in page and "Tokens" not in text_of(page)
