"""Rows of the formats that people have, and every way in which a row is unusable."""

from pathlib import Path
from typing import Any

import pytest

from ral_system.data.sources.questions import PRESETS, Columns, read_question
from ral_system.errors import DataError

PLAIN = Columns("problem", "answer", "image", options="options")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "root" / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "secret.png").write_bytes(b"s")
    return tmp_path / "root"


def test_video_r1(root: Path) -> None:
    row = {
        "problem_id": 7,
        "problem": "Which one is red?",
        "data_type": "image",
        "problem_type": "multiple choice",
        "options": ["A. the star", "B. the cube"],
        "solution": "<answer>B</answer>",
        "path": "./images/a.png",
    }
    found = read_question(row, PRESETS["video_r1"], root)
    assert (found.id, found.kind, found.answer) == ("7", "multiple choice", "B")
    assert found.text == "Which one is red?\nA. the star\nB. the cube"
    assert [picture.path for picture in found.pictures] == [root / "images" / "a.png"]


def test_easyr1_and_verl(root: Path) -> None:
    easy = {"problem": "<image>Find x.", "answer": "3", "images": [{"bytes": b"png", "path": None}]}
    found = read_question(easy, PRESETS["easyr1"], root)
    assert (found.text, found.answer, found.pictures[0].encoded) == ("<image>Find x.", "3", b"png")
    verl = {
        "data_source": "geo3k",
        "prompt": [{"role": "user", "content": "<image>Find x."}],
        "images": [{"bytes": b"png"}],
        "reward_model": {"style": "rule", "ground_truth": 2.5},
    }
    found = read_question(verl, PRESETS["verl"], root)
    assert (found.kind, found.answer, len(found.pictures)) == ("geo3k", "2.5", 1)


def test_text_alone_and_numbers(root: Path) -> None:
    found = read_question({"problem": " 1 + 1 ? ", "answer": 2, "image": None}, PLAIN, root)
    assert (found.text, found.answer, found.pictures, found.id) == ("1 + 1 ?", "2", (), None)


GOOD: dict[str, Any] = {"problem": "what ?", "answer": "it", "image": "images/a.png"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no question": ({"problem": None}, "problem: not text but NoneType"),
    "an empty question": ({"problem": "  "}, "problem: empty"),
    "a question that is a list": ({"problem": ["a"]}, "problem: not text but list"),
    "a question of a megabyte": ({"problem": "a" * 10**6}, "problem: 1,000,000 characters, at most 50,000"),
    "a zero byte": ({"problem": "a\x00b"}, "problem: holds a zero byte"),
    "half a character": ({"problem": "a\ud800"}, "problem: holds half a character"),
    "no answer": ({"answer": None}, "answer: not an answer but None"),
    "a yes": ({"answer": True}, "answer: not an answer but True"),
    "not a number": ({"answer": float("nan")}, "answer: nan is no answer"),
    "infinity": ({"answer": float("inf")}, "answer: a number beyond 1e300 is no answer"),
    "four hundred digits": ({"answer": 10**400}, "answer: a number beyond 1e300 is no answer"),
    "an empty answer": ({"answer": ""}, "answer: empty"),
    "an empty tag": ({"answer": "<answer> </answer>"}, "answer: empty"),
    "an open tag": ({"answer": "<answer>B"}, "answer: holds a tag of the response template"),
    "two tags": ({"answer": "<answer>A</answer><answer>B</answer>"}, "answer: holds a tag"),
    "options that are text": ({"options": "A or B"}, "options: not a list of texts"),
    "options that are numbers": ({"options": [1, 2]}, "options: not a list of texts"),
    "an empty option": ({"options": ["A. one", " "]}, "options: empty"),
    "options of a megabyte": ({"options": ["a" * 10**6]}, "characters, at most 50,000"),
    "a mark in an option": ({"options": ["<image> <image>"]}, "problem: 2 <image> for 1 pictures"),
    "a missing picture": ({"image": "images/b.png"}, "image: images/b.png: no such file below"),
    "a folder": ({"image": "images"}, "no such file below"),
    "out of the root": ({"image": "../secret.png"}, "image: ../secret.png leads out of"),
    "an absolute path": ({"image": "/etc/passwd"}, "image: /etc/passwd leads out of"),
    "an address": ({"image": "https://example.org/a.png"}, "is an address; download it first"),
    "a number for a picture": ({"image": 7}, "image: neither a path nor bytes but int"),
    "an empty picture": ({"image": {"bytes": None, "path": None}}, "image: neither a path nor bytes but NoneType"),
    "a zero byte in a path": ({"image": "a\x00.png"}, "is no path|no such file"),
    "a name that is too long": ({"image": "a" * 5000}, "is no path|no such file"),
    "more marks than pictures": ({"problem": "<image> <image> ?"}, "problem: 2 <image> for 1 pictures"),
    "a mark without a picture": ({"problem": "<image> ?", "image": None}, "problem: 1 <image> for 0 pictures"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_row_is_a_reason(root: Path, name: str) -> None:
    changes, reason = BAD[name]
    with pytest.raises(DataError, match=reason) as error:
        read_question(GOOD | changes, PLAIN, root)
    assert len(str(error.value)) < 300
    assert read_question(GOOD, PLAIN, root).answer == "it"


def test_a_link_out_of_the_root_is_refused(root: Path) -> None:
    (root / "link.png").symlink_to(root.parent / "secret.png")
    with pytest.raises(DataError, match="leads out of"):
        read_question(GOOD | {"image": "link.png"}, PLAIN, root)


def test_links_in_a_loop_are_refused(root: Path) -> None:
    (root / "one.png").symlink_to(root / "two.png")
    (root / "two.png").symlink_to(root / "one.png")
    with pytest.raises(DataError, match=r"is no path|no such file"):
        read_question(GOOD | {"image": "one.png"}, PLAIN, root)


def test_a_missing_column_is_named(root: Path) -> None:
    for column in ("problem", "answer"):
        with pytest.raises(DataError, match=f"{column}: not in the row"):
            read_question({k: v for k, v in GOOD.items() if k != column}, PLAIN, root)
