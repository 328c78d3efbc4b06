"""MME, ChartQA and VizWiz: answers in words about pictures, from their released files to their figures."""

from pathlib import Path
from typing import Any

import pytest

from ral_system.benchmarks import chartqa, mme, vizwiz
from ral_system.benchmarks.item import MediaFile
from ral_system.benchmarks.reading import read_items
from ral_system.errors import DataError
from tests.unit.benchmarks.released import bad, good, touch, write_json

ASK = "Please answer yes or no."
IN_FOLDERS = ("artwork", "celebrity", "landmark", "posters", "scene")


def mme_files(root: Path, pictures: int = 1) -> None:
    for category in (*mme.PERCEPTION, *mme.COGNITION):
        for number in range(pictures):
            apart = category in IN_FOLDERS
            touch(root / category, f"{'images/' if apart else ''}{number}.{'jpg' if apart else 'png'}")
            text = root / category / ("questions_answers_YN" if apart else ".") / f"{number}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(f"Is there a {category}? {ASK}\tYes\nIs there a hat? {ASK}\tNo\n")


def test_mme_items(tmp_path: Path) -> None:
    mme_files(tmp_path / "MME_Benchmark")
    items = good("mme", tmp_path)
    assert len(items) == 2 * 14 and items == good("mme", tmp_path / "MME_Benchmark")
    assert items[0].id == "existence/0/0" and items[0].references == ("yes",) and items[1].references == ("no",)
    assert items[0].text == f"<image>\nIs there a existence? {ASK}" and items[0].together == items[1].together
    assert items[0].media == (MediaFile("image", path=tmp_path / "MME_Benchmark" / "existence" / "0.png"),)
    scene = next(item for item in items if item.category == "scene")
    assert scene.media == (MediaFile("image", path=tmp_path / "MME_Benchmark" / "scene" / "images" / "0.jpg"),)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("Yes, there is", "yes"),
        ("y", "yes"),
        ("No", "no"),
        ("n.", "no"),
        ("Not that I see", "no"),
        ("a no", "no"),  # within four characters
        ("there is no hat", None),
        ("maybe", None),
        ("", None),
    ],
)
def test_an_mme_answer(tmp_path: Path, answer: str, word: str | None) -> None:
    mme_files(tmp_path)
    yes, no = good("mme", tmp_path)[:2]
    assert (mme.score(yes, answer), mme.score(no, answer)) == (word == "yes", word == "no")


def test_mme_points(tmp_path: Path) -> None:
    mme_files(tmp_path, pictures=4)
    items = good("mme", tmp_path)
    # existence: pictures with 2, 2, 1 and 0 right: 5 of 8 questions, 2 of 4 pictures; code_reasoning: all; others: none
    right = {"existence/0/0", "existence/0/1", "existence/1/0", "existence/1/1", "existence/2/0"}
    sheet = [(item, float(item.id in right or item.category == "code_reasoning")) for item in items]
    found = mme.summary(sheet)
    assert found["existence"] == 62.5 + 50 and found["code_reasoning"] == 200 and found["count"] == 0
    assert (found["score"], found["perception"], found["cognition"]) == (312.5, 112.5, 200)
    assert list(found)[:3] == ["score", "perception", "cognition"]
    perfect = mme.summary([(item, 1.0) for item in items])
    assert (perfect["score"], perfect["perception"], perfect["cognition"]) == (2800, 2000, 800)
    assert mme.summary(sheet[:1]) == {"existence": 100}  # half a pair: its picture is not right twice
    some = mme.summary([(item, 1.0) for item in items if item.category not in ("existence", "OCR")])
    assert some["cognition"] == 800 and some.keys().isdisjoint({"score", "perception", "existence"})


def test_mme_pairs_that_cannot_be_used(tmp_path: Path) -> None:
    mme_files(tmp_path, pictures=4)
    for number, content in enumerate((b"one\tYes\n", b"one\tYes\ntwo\tPerhaps\n", b"\xff")):
        (tmp_path / "color" / f"{number}.txt").write_bytes(content)
    (tmp_path / "color" / "3.png").unlink()
    reasons = bad("mme", tmp_path)
    assert list(reasons) == [f"color/{number}/{half}" for number in range(4) for half in range(2)]
    for number, says in enumerate(("0.txt: 1 questions, not 2", "1.txt: 'two", "utf-8", "no such file")):
        assert says in reasons[f"color/{number}/0"] == reasons[f"color/{number}/1"]
    assert len(list(read_items("mme", tmp_path))) == 2 * 4 * 14


def test_mme_without_a_category(tmp_path: Path) -> None:
    mme_files(tmp_path)
    (tmp_path / "color" / "0.txt").unlink()
    with pytest.raises(DataError, match="color: holds no question texts"):
        list(read_items("mme", tmp_path))


def test_chartqa(tmp_path: Path) -> None:
    touch(tmp_path, "test/png/a.png", "test/png/b.png")
    write_json(tmp_path / "test" / "test_human.json", [{"imgname": "a.png", "query": "How many?", "label": "14"}] * 2)
    write_json(tmp_path / "test" / "test_augmented.json", [{"imgname": "b.png", "query": "Who?", "label": "Japan"}])
    items = good("chartqa", tmp_path)
    assert [item.id for item in items] == ["human/0", "human/1", "augmented/0"]
    assert items[0].text == "<image>\nHow many?\nAnswer the question using a single word or phrase."
    assert items[2].media == (MediaFile("image", path=tmp_path / "test" / "png" / "b.png"),)
    sheet = [
        (item, chartqa.score(item, answer)) for item, answer in zip(items, (" 14.5\n", "20", "japan"), strict=True)
    ]
    assert chartqa.summary(sheet) == {"score": pytest.approx(200 / 3), "human": 50.0, "augmented": 100.0}


@pytest.mark.parametrize(
    ("given", "gold", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.01", "100", False),
        ("94.99", "100", False),
        ("105.005", "100", False),
        ("-105", "-100", True),
        ("100", "-100", False),
        ("2019", "2018", True),  # years are numbers too
        ("12%", "0.12", True),
        ("12", "12%", False),
        ("12%", "12%", True),
        ("0", "0", True),
        ("0.0", "0", False),  # near 0 there is no 5 %: the same text
        ("1,000", "1000", False),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("nan", "100", False),
        ("1e999", "100", False),
        ("", "100", False),
    ],
)
def test_relaxed_accuracy(given: str, gold: str, right: bool) -> None:
    assert chartqa.relaxed(given, gold) is right


def test_chartqa_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "test/png/a.png")
    rows = [{"imgname": name, "query": "?", "label": "1"} for name in ("b.png", "../../../secret", "a.png")]
    write_json(tmp_path / "test" / "test_human.json", rows)
    write_json(tmp_path / "test" / "test_augmented.json", [{"imgname": "a.png", "query": "?"}])
    reasons = bad("chartqa", tmp_path)
    assert list(reasons) == ["test_human.json:0", "test_human.json:1", "test_augmented.json:0"]
    for reason, says in zip(reasons.values(), ("no such file", "leads out of", "label: missing"), strict=True):
        assert says in reason


def photograph(*answers: str, **changes: Any) -> dict[str, Any]:
    people = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
    return {"image": "a.jpg", "question": "What?", "answers": people, "answer_type": "other", "answerable": 1} | changes


def test_vizwiz(tmp_path: Path) -> None:
    touch(tmp_path, "val/a.jpg", "val/b.jpg")
    rows = [
        photograph(*["coca cola 0"] * 2, *["soda"] * 8),
        photograph(*["unanswerable"] * 10, image="b.jpg", answer_type="unanswerable"),
    ]
    write_json(tmp_path / "Annotations" / "val.json", rows)
    first, second = good("vizwiz", tmp_path)
    assert first.id == "a.jpg" and len(first.references) == 10
    (tmp_path / "Annotations" / "val.json").rename(tmp_path / "val.json")
    assert good("vizwiz", tmp_path) == [first, second]
    assert first.text == (
        "<image>\nWhat?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    part = vizwiz.score(first, "The Coca-Cola zero.")
    assert part == pytest.approx((8 * (2 / 3) + 2 * (1 / 3)) / 10)
    assert vizwiz.score(first, "Soda") == 1 and vizwiz.score(first, "a soda can") == 0
    assert vizwiz.score(second, "Unanswerable") == 1
    assert vizwiz.summary([(first, part), (second, 1.0)]) == {
        "score": pytest.approx(50 * (part + 1)),
        "other": pytest.approx(100 * part),
        "unanswerable": 100.0,
    }


def test_vizwiz_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "val/a.jpg")
    ten = ["x"] * 10
    rows = [photograph(*ten[:9]), photograph(*ten, image="../a.jpg"), photograph(*ten, answers="x"), photograph(*ten)]
    write_json(tmp_path / "Annotations" / "val.json", rows)
    assert bad("vizwiz", tmp_path) == {
        "val.json:0": "answers: not the answers of 10 people",
        "val.json:1": f"val/../a.jpg: no such file below {tmp_path}",
        "val.json:2": "answers: not the answers of 10 people",
    }
