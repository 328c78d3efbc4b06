"""Rows of the formats that people have, and every way in which a row is unusable."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.config.data import ColumnsConfig
from ral_system.data.sources.questions import Question, read_question
from ral_system.errors import DataError

NONE = dict.fromkeys(ColumnsConfig.model_fields)
PLAIN = ColumnsConfig(
    **NONE | {"question": "problem", "answer": "answer", "images": "image", "videos": "clips", "options": "options"}
)

Read = Callable[[str, dict[str, Any]], Question]


@pytest.fixture
def read(make_config: Callable[..., TrainConfig], root: Path) -> Read:
    """A row of a published format, with the columns that conf/data/ gives for it."""

    def made(name: str, row: dict[str, Any]) -> Question:
        data = make_config(f"data={name}", "data.sources.main.path=rows.json", "stages=[rl]").data
        assert data.name == "files"
        return read_question(row, data.sources["main"].columns, root)

    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "images").mkdir(parents=True)
    (tmp_path / "root" / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "secret.png").write_bytes(b"s")
    return tmp_path / "root"


def test_video_r1(read: Read, root: Path) -> None:
    row = {
        "problem_id": 7,
        "problem": "Which one is red?",
        "data_type": "image",
        "problem_type": "multiple choice",
        "options": ["A. the star", "B. the cube"],
        "solution": "<answer>B</answer>",
        "path": "./images/a.png",
        "process": "<think>The cube is red.</think>",
    }
    found = read("video_r1", row)
    assert (found.id, found.kind, found.answer) == ("7", "multiple choice", "B")
    assert found.text == "Which one is red?\nA. the star\nB. the cube"
    assert found.thought == "The cube is red."
    assert [(m.kind, m.path) for m in found.media] == [("image", root / "images" / "a.png")]


def test_easyr1_and_verl(read: Read) -> None:
    easy = {"problem": "<image>Find x.", "answer": "3", "images": [{"bytes": b"png", "path": None}]}
    found = read("easyr1", easy)
    assert (found.text, found.answer, found.media[0].encoded) == ("<image>Find x.", "3", b"png")
    verl = {
        "data_source": "geo3k",
        "prompt": [{"role": "user", "content": "<image>Find x."}],
        "images": [{"bytes": b"png"}],
        "reward_model": {"style": "rule", "ground_truth": 2.5},
    }
    found = read("verl", verl)
    assert (found.kind, found.answer, len(found.media)) == ("geo3k", "2.5", 1)


def test_a_video_of_video_r1(read: Read, root: Path) -> None:
    row = {"problem": "what ?", "data_type": "video", "solution": "it", "path": "images/a.png", "process": "well"}
    assert [(m.kind, m.path) for m in read("video_r1", row).media] == [("video", root / "images" / "a.png")]


def test_media_are_in_the_order_of_their_marks(root: Path) -> None:
    row = GOOD | {"image": [b"one", b"two"], "clips": [b"clip"]}
    for problem, order in (
        ("<image> then <video> or <image> ?", [b"one", b"clip", b"two"]),
        ("<video><image><image>", [b"clip", b"one", b"two"]),
        ("what ?", [b"one", b"two", b"clip"]),
    ):
        found = read_question(row | {"problem": problem}, PLAIN, root)
        assert [m.encoded for m in found.media] == order
    with pytest.raises(DataError, match="problem: 0 <video> for 1 videos"):
        read_question(row | {"problem": "<image> or <image> ?"}, PLAIN, root)


def test_text_alone_and_numbers(root: Path) -> None:
    found = read_question({"problem": " 1 + 1 ? ", "answer": 2, "image": None}, PLAIN, root)
    assert (found.text, found.answer, found.media, found.id) == ("1 + 1 ?", "2", (), None)


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
    "not a number": ({"answer": float("nan")}, "answer: nan is not an answer"),
    "infinity": ({"answer": float("inf")}, "answer: a number beyond 1e300 is not an answer"),
    "four hundred digits": ({"answer": 10**400}, "answer: a number beyond 1e300 is not an answer"),
    "an empty answer": ({"answer": ""}, "answer: empty"),
    "an empty tag": ({"answer": "<answer> </answer>"}, "answer: empty"),
    "an open tag": ({"answer": "<answer>B"}, "answer: holds a tag of the response template"),
    "two tags": ({"answer": "<answer>A</answer><answer>B</answer>"}, "answer: holds a tag"),
    "options that are text": ({"options": "A or B"}, "options: not a list of texts"),
    "options that are neither": ({"options": [True, None]}, "options: not a list of texts or numbers"),
    "an option that is not a number": ({"options": [1, float("nan")]}, "options: nan is not an answer"),
    "an empty option": ({"options": ["A. one", " "]}, "options: empty"),
    "options of a megabyte": ({"options": ["a" * 10**6]}, "characters, at most 50,000"),
    "a mark in an option": ({"options": ["<image> <image>"]}, "problem: 2 <image> for 1 images"),
    "a missing picture": ({"image": "images/b.png"}, "image: images/b.png: no such file below"),
    "a folder": ({"image": "images"}, "no such file below"),
    "out of the root": ({"image": "../secret.png"}, "image: ../secret.png leads out of"),
    "an absolute path": ({"image": "/etc/passwd"}, "image: /etc/passwd leads out of"),
    "an address": ({"image": "https://example.org/a.png"}, "is an address; download it first"),
    "a number for a picture": ({"image": 7}, "image: neither a path nor bytes but int"),
    "an empty picture": ({"image": {"bytes": None, "path": None}}, "image: neither a path nor bytes but NoneType"),
    "a zero byte in a path": ({"image": "a\x00.png"}, "is not a valid path|no such file"),
    "a name that is too long": ({"image": "a" * 5000}, "is not a valid path|no such file"),
    "the second of two": ({"image": ["images/a.png", "b.png"]}, r"^image\[1\]: b.png: no such file below"),
    "more marks than pictures": ({"problem": "<image> <image> ?"}, "problem: 2 <image> for 1 images"),
    "a mark without a picture": ({"problem": "<image> ?", "image": None}, "problem: 1 <image> for 0 images"),
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
    with pytest.raises(DataError, match=r"is not a valid path|no such file"):
        read_question(GOOD | {"image": "one.png"}, PLAIN, root)


def test_a_missing_column_is_named_and_those_that_are_there(root: Path) -> None:
    for column, others in (("problem", "answer, image"), ("answer", "image, problem")):
        with pytest.raises(DataError, match=f"^{column}: not in the row, which has {others}$"):
            read_question({k: v for k, v in GOOD.items() if k != column}, PLAIN, root)
    nested = PLAIN.model_copy(update={"answer": "reward.truth"})
    with pytest.raises(DataError, match=r"^reward.truth: not in the row, whose reward has ground, style$"):
        read_question(GOOD | {"reward": {"style": "rule", "ground": "3"}}, nested, root)
    with pytest.raises(DataError, match=r"which has c00, c01, c02, c03, c04, c05, c06, c07, 12 others$"):
        read_question({f"c{n:02}": n for n in range(20)}, PLAIN, root)


USER, SYSTEM = {"role": "user", "content": "<image>Find x."}, {"role": "system", "content": "Think."}
PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "Find x, "}, {"type": "text", "text": "please."}]


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ([SYSTEM, USER], "<image>Find x."),
        ([USER, SYSTEM], "<image>Find x."),
        ([SYSTEM, {"role": "user", "content": PARTS}], "<image>Find x, please."),
        (PARTS, "<image>Find x, please."),
        ("Find x.", "Find x."),
    ],
)
def test_the_question_of_turns_is_the_user_s(read: Read, prompt: Any, asked: str) -> None:
    row = {"prompt": prompt, "images": [{"bytes": b"png"}], "reward_model": {"ground_truth": "3"}}
    assert read("verl", row).text == asked


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([SYSTEM], "prompt: holds 0 user turns; one is a question"),
        ([USER, USER], "prompt: holds 2 user turns; one is a question"),
        ([USER, {"role": "assistant", "content": "3"}], "prompt: holds a turn of the role assistant; one user turn is"),
        ([{"role": "user"}], "prompt: not text but NoneType"),
        ([{"role": "user", "content": " "}], "prompt: empty"),
        (
            [{"role": "user", "content": [{"type": "audio"}]}],
            "prompt: a part of the type audio is not one of text, image",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "prompt: a part of the type text has no text"),
        ([USER, "text"], "prompt: not text but list"),
        ([], "prompt: not text but list"),
    ],
)
def test_turns_that_are_no_question_are_a_reason(read: Read, prompt: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"^{reason}"):
        read("verl", {"prompt": prompt, "reward_model": {"ground_truth": "3"}})


def test_one_turn_by_its_number(root: Path) -> None:
    columns = PLAIN.model_copy(update={"question": "prompt.1.content"})
    assert read_question(GOOD | {"prompt": [SYSTEM, USER]}, columns, root).text == "<image>Find x."


def test_kinds_are_the_same_in_any_case(read: Read) -> None:
    row = {"problem": "what ?", "data_type": "text", "solution": "it", "path": "", "process": "well"}
    assert read("video_r1", row | {"problem_type": " Multiple Choice "}).kind == "multiple choice"


def test_options_that_are_numbers(root: Path) -> None:
    found = read_question(GOOD | {"options": [1, 2.5, "three"], "answer": 2.5}, PLAIN, root)
    assert (found.text, found.answer) == ("what ?\n1\n2.5\nthree", "2.5")
    assert read_question(GOOD | {"options": [1, 2], "answer": "B"}, PLAIN, root).text == "what ?\nA. 1\nB. 2"


def test_the_letter_of_an_answer_is_one_of_the_options(read: Read) -> None:
    row = {"problem": "which ?", "data_type": "text", "options": ["A. x", "B. y"], "path": "", "process": "well"}
    assert read("video_r1", row | {"solution": "(B)"}).answer == "B"
    assert read("video_r1", row | {"solution": "y"}).answer == "B"
    unlettered = read("video_r1", row | {"solution": "B", "options": ["x", "y"]})
    assert (unlettered.text, unlettered.answer) == ("which ?\nA. x\nB. y", "B")
    told = read("video_r1", row | {"solution": "y", "options": ["x", "y"]})
    assert (told.text, told.answer) == ("which ?\nx\ny", "y")
    assert read("video_r1", row | {"solution": "I", "options": ["I", "you"]}).text == "which ?\nI\nyou"
    with pytest.raises(DataError, match="solution: 'C' is not one of the 2 options"):
        read("video_r1", row | {"solution": "C", "options": ["x", "y"]})
    with pytest.raises(DataError, match="solution: the letter C of 27 options, which have none"):
        read("video_r1", row | {"solution": "C", "options": ["x"] * 27})
    for solution in ("F", "(F)", "<answer>F.</answer>"):
        with pytest.raises(DataError, match=r"solution: '\(?F[.)]?' is not one of the 2 options"):
            read("video_r1", row | {"solution": solution})


COLOURS, NAKED = ["A. red", "B. blue"], ["red", "blue"]


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        *((COLOURS, answer, "A") for answer in ("A", "a", "(a)", "Red", "red.", '"RED"', "A. red", "a) Red.")),
        *((NAKED, answer, "B") for answer in ("B", "b", "(b)", "b.", "B. blue", "b: Blue", "(B) BLUE.")),
        (["(a) red", "(b) blue"], "blue", "B"),
        (["B. blue", "A. red"], "blue", "B"),
        (["A. a", "B. c", "C. b"], "c", "B"),  # a side of a triangle, not a letter in small
        (["A. a", "B. c", "C. b"], "C", "C"),
        (["A. M", "B. m"], "m", "B"),
        (["A. 5", "B. -5"], "-5", "B"),
        (["A. .", "B. ?"], "?", "B"),
        (["A. J. Smith", "B. K. Jones"], "k. jones", "B"),
        (["A. red", "B. red", "C. blue"], "A", "A"),
        (["A. red", "B. red", "C. blue"], "blue", "C"),
    ],
)
def test_the_answer_of_lettered_options_is_a_letter(root: Path, options: list[str], answer: str, letter: str) -> None:
    found = read_question(GOOD | {"options": options, "answer": answer}, PLAIN, root)
    shown = ["A. red", "B. blue"] if options is NAKED else options
    assert (found.text, found.answer) == ("\n".join(["what ?", *shown]), letter)


@pytest.mark.parametrize(
    ("options", "answer"),
    [(NAKED, "red"), (NAKED, "Red."), (["A", "B"], "b"), (["a.m.", "p.m."], "p.m."), (["U.S.", "U.K."], "U.K.")],
)
def test_the_text_of_an_option_without_a_letter_stays(root: Path, options: list[str], answer: str) -> None:
    found = read_question(GOOD | {"options": options, "answer": answer}, PLAIN, root)
    assert (found.text, found.answer) == ("\n".join(["what ?", *options]), answer)


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        *(
            (COLOURS, answer, f"'{answer}' is not one of the 2 options")
            for answer in ("green", "e", "E. green", "B. red")
        ),
        *((COLOURS, answer, f"'{answer}' is not one of the 2 options") for answer in ("A, B", "-red", ".", "E. red")),
        *((NAKED, answer, f"'{answer}' is not one of the 2 options") for answer in ("c", "C. green", "B. red")),
        (["A. red", "B. red", "C. blue"], "red", "'red' fits options A and B; give a letter that one has alone"),
        (["A. red", "B. Red.", "C. blue"], "RED", "'RED' fits options A and B; give a letter that one has alone"),
        (["A. red", "A. blue"], "A", "'A' fits options A and A; give a letter that one has alone"),
        (["A. red", "A. blue"], "blue", "'blue' fits options A and A; give a letter that one has alone"),
    ],
)
def test_an_answer_that_is_no_one_option_is_a_reason(root: Path, options: list[str], answer: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"^answer: {re.escape(reason)}$"):
        read_question(GOOD | {"options": options, "answer": answer}, PLAIN, root)


def test_a_file_in_a_column_of_both_says_what_it_is(root: Path) -> None:
    columns = PLAIN.model_copy(update={"videos": "image"})
    heads = {"a.png": b"\x89PNG", "b.mp4": b"\0\0\0 ftypisom", "c": b"\x1aE\xdf\xa3", "d.avif": b"\0\0\0 ftypavif"}
    for name, head in heads.items():
        (root / name).write_bytes(head)
    found = read_question(GOOD | {"image": [*heads, heads["b.mp4"], heads["a.png"]]}, columns, root).media
    assert [medium.kind for medium in found] == ["image", "video", "video", "image", "video", "image"]
    marked = GOOD | {"problem": "<video> or <image> ?", "image": ["a.png", "b.mp4"]}
    assert [medium.kind for medium in read_question(marked, columns, root).media] == ["video", "image"]
    told = columns.model_copy(update={"media_type": "type"})
    assert [m.kind for m in read_question(GOOD | {"image": "a.png", "type": "video"}, told, root).media] == ["video"]


def test_what_a_medium_is_said_to_be(read: Read) -> None:
    row = {"problem": "what ?", "solution": "it", "path": "images/a.png", "process": "well"}
    assert read("video_r1", row | {"data_type": "Video"}).media[0].kind == "video"
    assert read("video_r1", row | {"data_type": "IMAGE"}).media[0].kind == "image"
    with pytest.raises(DataError, match="data_type: 'audio' is not one of image, video and text"):
        read("video_r1", row | {"data_type": "audio"})
