"""The page of an evaluation's answers."""

import html
import re
from pathlib import Path

from PIL import Image

from ral_system.media.store import MediaStore
from ral_system.report.answers_page import SHOWN, Answered, write_answers_page
from ral_system.report.media import ReportMedia


def answered(i: int, *scores: float, notes: tuple[str, ...] = ()) -> Answered:
    question = {"id": f"q{i}", "kind": "count", "question": f"<how> many {i} ?", "answer": "3", "media": []}
    return Answered(question, tuple(f"<think>n</think><answer>{s}</answer>" for s in scores), scores, notes)


def ids(path: Path) -> list[str]:
    return re.findall('data-question="(q[0-9]+)"', path.read_text())


def test_the_lowest_scores_come_first_and_all_answers_are_there(tmp_path: Path) -> None:
    given = [answered(0, 1.0, 1.0), answered(1, 0.0, 1.0), answered(2, 0.0, 0.0, notes=("timeout: late", ""))]
    left_out = "3 left out, most often: <no> picture"
    write_answers_page(tmp_path / "a.html", "a <model>", given, ReportMedia(tmp_path), left_out)
    text = (tmp_path / "a.html").read_text()
    assert ids(tmp_path / "a.html") == ["q2", "q1", "q0"]
    assert text.count('<p class="response">') == 6
    assert "a &lt;model&gt;" in text and "&lt;how&gt; many 1 ?" in text and "timeout: late" in text
    assert "3 questions, 1 with full score; 3 shown" in html.unescape(text)
    assert "first. 3 left out, most often: &lt;no&gt; picture.<" in text


def test_of_many_the_lowest_and_the_highest_are_shown(tmp_path: Path) -> None:
    given = [answered(i, i / 200) for i in range(201)]
    write_answers_page(tmp_path / "a.html", "t", given, ReportMedia(tmp_path))
    found = ids(tmp_path / "a.html")
    assert len(found) == len(set(found)) == SHOWN
    assert found[0] == "q0" and "q200" in found and "q100" not in found


def test_pictures_are_inside(tmp_path: Path) -> None:
    media = MediaStore(tmp_path).put(Image.new("RGB", (56, 56), "red"))
    one = answered(0, 1.0)
    record = {"digest": media.digest, "width_px": 56, "height_px": 56, "clip": None}
    write_answers_page(
        tmp_path / "a.html",
        "t",
        [Answered({**one.question, "media": [record]}, one.responses, one.scores)],
        ReportMedia(tmp_path),
    )
    assert "data:image/" in (tmp_path / "a.html").read_text()
