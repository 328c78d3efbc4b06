"""What all benchmarks share: rows and paths that cannot be used, and the registry."""

from pathlib import Path
from typing import Any

import pytest

from ral_system.benchmarks import columns, files, tally
from ral_system.benchmarks.item import BadItem, Item, MediaFile
from ral_system.benchmarks.reading import read_items
from ral_system.errors import ConfigError, DataError
from ral_system.registry import BENCHMARKS
from tests.unit.benchmarks.released import PNG, touch, write_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    touch(tmp_path, "root/images/a.png", "secret.png")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", "leads out of"),
        ("/etc/passwd", "leads out of"),
        ("images/b.png", "no such file below"),
        ("a\x00.png", "is not a valid path|no such file"),
        ("a" * 5000, "is not a valid path|no such file"),
        ("images", "is a folder"),
    ],
)
def test_media_lie_below_the_folder(root: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as error:
        files.first_file(root, name)
    assert len(str(error.value)) < 300
    with pytest.raises(DataError, match=f"image: .*({reason})"):
        columns.picture({"image": {"bytes": None, "path": name}}, "image", root)


def test_links_do_not_lead_out(root: Path) -> None:
    (root / "images" / "link.png").symlink_to(root.parent / "secret.png")
    (root / "one.png").symlink_to(root / "two.png")
    (root / "two.png").symlink_to(root / "one.png")
    with pytest.raises(DataError, match="leads out of"):
        files.first_file(root, "images/link.png")
    with pytest.raises(DataError, match=r"is not a valid path|no such file"):
        files.first_file(root, "one.png")


def test_a_link_in_the_folder_is_followed_and_not_left(root: Path) -> None:
    touch(root.parent, "big/videos/a.mp4", "big/b.mp4", "other/c.png")
    (root / "videos").symlink_to(root.parent / "big" / "videos")
    (root / "c.png").symlink_to(root.parent / "other" / "c.png")
    assert files.first_file(root, "videos/a.mp4") == root.parent / "big" / "videos" / "a.mp4"
    assert files.first_file(root, "c.png") == root.parent / "other" / "c.png"
    (root.parent / "big" / "videos" / "link.mp4").symlink_to(root.parent / "big" / "b.mp4")
    for name in ("videos/../b.mp4", "videos/link.mp4", "videos/../../secret.png", "../big/videos/a.mp4"):
        with pytest.raises(DataError, match="leads out of"):
            files.first_file(root, name)
    with pytest.raises(DataError, match=r"b\.mp4: no such file below .*/big/videos"):
        files.first_file(root, "videos/b.mp4")


def test_a_picture_is_bytes_first_or_a_path(root: Path) -> None:
    both = {"image": {"bytes": PNG, "path": "/somebody/else.png"}}
    assert columns.picture(both, "image", root) == MediaFile("image", encoded=PNG)
    inside = MediaFile("image", path=root / "images" / "a.png")
    assert columns.picture({"image": "images/a.png"}, "image", root) == inside
    assert columns.pictures({"image": ["images/a.png", PNG]}, "image", root) == (inside, MediaFile("image", PNG))
    for wrong in (None, 7, "", {"bytes": None, "path": None}):
        with pytest.raises(DataError, match="image: neither a path nor bytes"):
            columns.picture({"image": wrong}, "image", root)
    with pytest.raises(DataError, match="image: not a list of pictures"):
        columns.pictures({"image": "images/a.png"}, "image", root)


def test_the_first_that_exists_is_taken_and_the_first_is_named(root: Path) -> None:
    assert files.first_file(root, "images/b.png", "images/a.png") == root / "images" / "a.png"
    with pytest.raises(DataError, match=r"images/b\.png: no such file"):
        files.first_file(root, "images/b.png", "images/c.png")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "q: missing or empty"),
        ("  ", "q: not text|q: missing or empty"),
        (7, "q: not text but int"),
        ("a\ud800", "q: holds half a character"),
        ("a\x00", "q: holds a zero byte"),
    ],
)
def test_a_text_that_is_none(value: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        columns.text({"q": value}, "q")
    assert columns.text({"q": " what ? "}, "q") == "what ?"


def test_lists_and_identifiers() -> None:
    assert columns.texts({"o": ["red", 3, 2.5]}, "o") == ("red", "3", "2.5")
    for wrong in (None, [], "red", [None], [["red"]]):
        with pytest.raises(DataError, match="o: not a list of texts"):
            columns.texts({"o": wrong}, "o")
    assert columns.identifier({"i": 0}, "i") == "0" and columns.identifier({"i": "x"}, "i") == "x"
    for wrong in (None, True, 2.5):
        with pytest.raises(DataError, match="i: "):
            columns.identifier({"i": wrong}, "i")


def test_a_table_with_broken_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffa,b\n1,"2, or 3"\n4\n5,6,7\n', encoding="utf-8")
    rows = list(files.read_csv(path))
    assert [row.fields for row in rows] == [{"a": "1", "b": "2, or 3"}, None, None]
    assert {row.problem for row in rows[1:]} == {"not as many columns as the header has"}
    path.write_bytes(b"a,b\n\xff,1\n")
    for wrong, reason in ((path, "cannot be read as CSV"), (tmp_path / "b.csv", "no such file")):
        with pytest.raises(DataError, match=f"{wrong}: {reason}"):
            list(files.read_csv(wrong))


@pytest.mark.parametrize(("content", "reason"), [("{", "cannot be read as JSON"), ("[]", "not an object but list")])
def test_a_json_file_that_is_no_object(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=reason):
        files.read_object(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file"):
        files.read_object(tmp_path / "b.json")


def test_marks_and_media_go_together() -> None:
    picture = MediaFile("image", encoded=PNG)
    assert Item("1", "", "<image> and <image>", (picture, picture), ("A",)).media == (picture, picture)
    for text, media in (("<image>", ()), ("none", (picture,)), ("<video>", (picture,))):
        with pytest.raises(DataError, match="the text has"):
            Item("1", "", text, media, ("A",))


@pytest.mark.parametrize("name", BENCHMARKS.names)
def test_a_folder_without_the_files_says_what_it_should_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as error:
        list(read_items(name, tmp_path))
    assert str(error.value).startswith(f"evaluation.benchmark.folder={tmp_path}: ")
    assert str(error.value).endswith(f"; the folder of {name} holds {BENCHMARKS.get(name).FILES}")
    with pytest.raises(ValueError, match="nothing was scored"):
        BENCHMARKS.get(name).summary([])


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'pope': no such benchmark; choose one of vstar, mme, .*tempcompass"):
        BENCHMARKS.get("pope")
    assert "did you mean vstar?" in BENCHMARKS.unknown("vstarr")


def test_an_id_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "val/a.jpg")
    row = {"image": "a.jpg", "question": "?", "answer_type": "other", "answers": [{"answer": "x"}] * 10}
    write_json(tmp_path / "Annotations" / "val.json", [row, row, 7])
    first, *others = read_items("vizwiz", tmp_path)
    assert isinstance(first, Item)
    assert others == [
        BadItem("a.jpg", "another question has this id"),
        BadItem("val.json:2", "not an object but int"),
    ]


def test_a_tally() -> None:
    a, b = Item("1", "a", "?", (), ("A",)), Item("2", "b", "?", (), ("A",))
    assert tally.accuracy([(a, 1.0), (b, 0.0), (a, 0.5), (a, 0.0)]) == {"score": 37.5, "a": 50.0, "b": 0.0}
