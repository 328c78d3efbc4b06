"""V*, CV-Bench, MuirBench, BLINK and MMMU-Pro: choices about pictures, from their released files to their figures."""

from pathlib import Path
from typing import Any

import pytest

from ral_system.benchmarks import blink, cvbench, mmmu_pro, muirbench, vstar
from ral_system.benchmarks.item import MediaFile
from tests.unit.benchmarks.released import PNG, bad, encoded, good, touch, write_lines, write_parquet

PICTURE = MediaFile("image", encoded=PNG)

GLOVE = {
    "image": "direct_attributes/sa_1.jpg",
    "text": "What is the material of the glove?\n(A) rubber\n(B) cotton\nAnswer with the option's letter directly.",
    "category": "direct_attributes",
    "label": "A",
    "question_id": 0,
}
LEFT = GLOVE | {"image": "relative_position/sa_1.jpg", "category": "relative_position", "label": "B"}


def test_vstar(tmp_path: Path) -> None:
    touch(tmp_path, "direct_attributes/sa_1.jpg", "direct_attributes/sa_2.jpg", "relative_position/sa_1.jpg")
    write_lines(tmp_path / "test_questions.jsonl", [GLOVE, GLOVE | {"image": "direct_attributes/sa_2.jpg"}, LEFT])
    first, second, third = good("vstar", tmp_path)
    assert first.id == "direct_attributes/sa_1" and first.text == f"<image>\n{GLOVE['text']}"
    assert first.media == (MediaFile("image", path=tmp_path / "direct_attributes" / "sa_1.jpg"),)
    assert first.options == ("rubber", "cotton") and first.references == ("A",)
    sheet = [(first, vstar.score(first, "A")), (second, vstar.score(second, "(B)")), (third, vstar.score(third, "B."))]
    assert vstar.score(first, "I cannot tell") == 0
    assert vstar.summary(sheet) == {
        "score": pytest.approx(200 / 3),
        "direct_attributes": 50.0,
        "relative_position": 100.0,
    }


def test_vstar_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "bench/direct_attributes/sa_1.jpg", "secret.jpg")
    rows = [GLOVE, GLOVE | {"label": "C"}, GLOVE | {"image": "../secret.jpg"}, LEFT, GLOVE | {"text": "no options"}]
    write_lines(tmp_path / "bench" / "test_questions.jsonl", rows)
    reasons = bad("vstar", tmp_path / "bench")
    assert list(reasons) == [f"test_questions.jsonl:{number}" for number in (1, 2, 3, 4)]
    for reason, says in zip(
        reasons.values(), ("not one of the 2", "leads out of", "no such file", "not one of the 0"), strict=True
    ):
        assert says in reason


def space(idx: int, task: str, source: str, answer: str) -> dict[str, Any]:
    return {
        "idx": idx,
        "type": "2D" if source != "Omni3D" else "3D",
        "task": task,
        "image": encoded(),
        "question": "How many?",
        "choices": ["3", "4"],
        "answer": answer,
        "prompt": "How many? Select from the following choices.\n(A) 3\n(B) 4",
        "source": source,
    }


def test_cvbench(tmp_path: Path) -> None:
    two = [space(0, "Count", "ADE20K", "(A)"), space(1, "Count", "COCO", "(B)"), space(2, "Relation", "COCO", "(A)")]
    write_parquet(tmp_path / "test_2d.parquet", two)
    write_parquet(tmp_path / "test_3d.parquet", [space(3 + n, "Depth", "Omni3D", "(A)") for n in range(3)])
    items = good("cvbench", tmp_path)
    assert [item.id for item in items] == list("012345") and items[0].media == (PICTURE,)
    assert items[0].text == (
        "<image>\nHow many? Select from the following choices.\n(A) 3\n(B) 4\n"
        "Answer with the option's letter from the given choices directly."
    )
    answers = ["(A)", "B", "B", "A.", "nothing", "B) 4"]
    sheet = [(item, cvbench.score(item, answer)) for item, answer in zip(items, answers, strict=True)]
    assert [score for _, score in sheet] == [1, 1, 0, 1, 0, 0]
    two_d, three_d = (100 + 50) / 2, 100 / 3
    found = cvbench.summary(sheet)
    assert next(iter(found)) == "score" and found["score"] == pytest.approx((two_d + three_d) / 2)
    assert (found["2D"], found["COCO"], found["Count"], found["Relation"]) == (two_d, 50, 100, 0)
    assert found["3D"] == found["Omni3D"] == found["Depth"] == pytest.approx(three_d)
    assert cvbench.summary(sheet[:1]) == {"score": 100.0, "2D": 100.0, "ADE20K": 100.0, "Count": 100.0}


def test_cvbench_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [space(0, "Count", "KITTI", "(A)"), space(1, "Count", "COCO", "(C)")]
    write_parquet(tmp_path / "test_2d.parquet", rows)
    write_parquet(tmp_path / "test_3d.parquet", [space(2, "Depth", "Omni3D", "(A)")])
    assert bad("cvbench", tmp_path) == {
        "test_2d.parquet:0": "source: KITTI is not one of ADE20K, COCO, Omni3D",
        "test_2d.parquet:1": "answer: '(C)' is not one of the 2 options",
    }


def many(idx: str, question: str, options: list[str], pictures: int, task: str = "Counting") -> dict[str, Any]:
    images = [encoded(bytes([number])) for number in range(pictures)]
    return {
        "idx": idx,
        "task": task,
        "question": question,
        "options": options,
        "answer": "B",
        "image_list": images,
    }


def test_muirbench(tmp_path: Path) -> None:
    rows = [
        many("7", "Which of <image> and <image> ?", ["the first", "<image>"], 3),
        many("8", "How many ?", ["one", "two pictures"], 2, task="Ordering"),
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", rows[:1])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", rows[1:])
    first, second = good("muirbench", tmp_path)
    assert first.text == (
        "Question: Which of <image> and <image> ?\nChoices:\n(A) the first\n(B) <image>\n"
        "Hint: Please provide the correct option letter, such as A, B, C, D, directly.\nAnswer:"
    )
    assert [one.encoded for one in first.media] == [b"\x00", b"\x01", b"\x02"]
    assert second.text.startswith("<image><image>\nQuestion: How many ?")
    for answer, expected in (("(B)", 1), ("B", 1), ("It is B", 1), ("B. two", 0), ("A", 0), ("", 0)):
        assert muirbench.score(second, answer) == expected
    assert muirbench.score(second, "there are clearly two pictures to be seen") == 1
    assert muirbench.summary([(first, 1.0), (second, 0.0), (second, 0.0)]) == {
        "score": pytest.approx(100 / 3),
        "Counting": 100.0,
        "Ordering": 0.0,
    }


def test_muirbench_marks_that_do_not_fit(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "test-0.parquet", [many("7", "<image> ?", ["x", "y"], 2)])
    assert bad("muirbench", tmp_path) == {"test:0": "the text has 1 <image> for 2 media of this kind"}


def styled(task: str, number: int, answer: str, pictures: int = 1) -> dict[str, Any]:
    columns = {f"image_{n}": encoded() if n <= pictures else None for n in range(1, 5)}
    return columns | {
        "idx": f"val_{task}_{number}",
        "sub_task": task,
        "question": "Which ?",
        "choices": ["the second image", "the third image"],
        "answer": answer,
        "prompt": "Which ? Select.\n(A) the second image\n(B) the third image",
    }


def test_blink(tmp_path: Path) -> None:
    for task in blink.TASKS:
        rows = [styled(task, n, "(A)", pictures=2) for n in range(3 if task == "Jigsaw" else 1)]
        write_parquet(tmp_path / task / "val-00000-of-00001.parquet", rows)
    items = good("blink", tmp_path)
    assert len(items) == 16 and items[0].id == "val_Visual_Similarity_0"
    assert items[0].text == "<image><image>\nWhich ? Select.\n(A) the second image\n(B) the third image"
    sheet = [(item, float(item.category != "Jigsaw" or item.id.endswith("0"))) for item in items]
    found = blink.summary(sheet)
    assert found["score"] == pytest.approx((13 * 100 + 100 / 3) / 14)  # tasks count alike, questions do not
    assert found["Jigsaw"] == pytest.approx(100 / 3) and found["IQ_Test"] == 100


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A", 1),
        ("(A)", 1),
        ("B", 0),
        ("C", 0),
        ("The answer is (A) the second image", 1),
        ("(B) ?\n\nIt is (A) and not (B).", 1),  # the last paragraph's words decide
        ("Not (B) but\n\nthe other, A.", 0),  # else the one in brackets among all words
        ("A. the second image", 1),
        ("it is the second image, I am sure", 1),
        ("neither", 0),
        ("", 0),
    ],
)
def test_a_blink_answer(tmp_path: Path, answer: str, expected: int) -> None:
    for task in blink.TASKS:
        write_parquet(tmp_path / task / "val-0.parquet", [styled(task, 0, "(A)")])
    assert blink.score(good("blink", tmp_path)[0], answer) == expected


def test_blink_without_a_task_or_an_answer(tmp_path: Path) -> None:
    for task in blink.TASKS:
        write_parquet(tmp_path / task / "val-0.parquet", [styled(task, 0, "hidden")])
    reasons = bad("blink", tmp_path)
    assert len(reasons) == 14 and reasons["IQ_Test:0"] == "answer: 'hidden' is not one of the 2 options"


def expert(id: str, question: str, options: str, answer: str, subject: str = "Art", **images: Any) -> dict[str, Any]:
    columns = {f"image_{n}": images.get(f"image_{n}") for n in range(1, 8)}
    return columns | {"id": id, "question": question, "options": options, "answer": answer, "subject": subject}


def mmmu_pro_files(folder: Path, standard: list[dict[str, Any]]) -> None:
    write_parquet(folder / "standard (10 options)" / "test-00000-of-00001.parquet", standard)
    screenshots = [
        {"id": f"v{n}", "image": encoded(), "options": "['x', 'y']", "answer": "B", "subject": "Math"} for n in range(2)
    ]
    write_parquet(folder / "vision" / "test-00000-of-00001.parquet", screenshots)


def test_mmmu_pro(tmp_path: Path) -> None:
    images = {f"image_{n}": encoded(bytes([n])) for n in (1, 2, 3)}
    question = expert("s1", "Which is like <image 3>?", "['<image 2>', \"it's <image 1>\"]", "A", **images)
    mmmu_pro_files(tmp_path, [question, expert("v0", "<image 1> ?", "['x', 'y']", "B", "Math", image_1=encoded())])
    first, second, third, fourth = good("mmmu_pro", tmp_path)
    assert first.text == (
        "Which is like <image>?\nA. <image>\nB. it's <image>\n"
        "Answer with the option letter from the given choices directly."
    )
    assert [one.encoded for one in first.media] == [b"\x03", b"\x02", b"\x01"]  # by name, not by order
    assert third.text.startswith("<image>\nAnswer with the option letter") and "'Answer: $LETTER'" in third.text
    assert [item.id for item in (first, second, third, fourth)] == [
        "standard/s1",
        "standard/v0",
        "vision/v0",
        "vision/v1",
    ]
    assert mmmu_pro.summary([(first, 1.0), (second, 0.0), (third, 1.0), (fourth, 1.0), (fourth, 1.0)]) == {
        "score": 75.0,  # settings count alike, questions do not
        "standard": 50.0,
        "vision": 100.0,
        "Art": 100.0,
        "Math": 75.0,
    }
    assert mmmu_pro.summary([(third, 1.0)]) == {"score": 100.0, "vision": 100.0, "Math": 100.0}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("Let A be. Answer: B", 1),
        ("Answer: A\nAnswer: B", 1),
        ("Answer: A, no: B", 1),  # two: by MMMU's rule, the last alone
        ("Answer: A (B)?\nAnswer: A", 0),  # the last `Answer:`
        ("a USB stick", 1),  # as MMMU's rule has it
        ("(A) is wrong. Answer: $B$", 1),
        ("A", 0),
        ("Answer: none", 0),
        ("", 0),
    ],
)
def test_an_mmmu_pro_answer(tmp_path: Path, answer: str, expected: int) -> None:
    mmmu_pro_files(tmp_path, [expert("s1", "<image 1> ?", "['x', 'y']", "B", image_1=encoded())])
    assert mmmu_pro.score(good("mmmu_pro", tmp_path)[0], answer) == expected


def test_mmmu_pro_rows_that_cannot_be_used(tmp_path: Path) -> None:
    wrong = [
        expert("s1", "<image 2> ?", "['x', 'y']", "B", image_1=encoded()),
        expert("s2", "?", "x, y", "B"),
        expert("s3", "?", "__import__('os').getcwd()", "B"),
        expert("s4", "?", "['x']", "B"),
    ]
    mmmu_pro_files(tmp_path, wrong)
    assert bad("mmmu_pro", tmp_path) == {
        "standard:0": "image_2: neither a path nor bytes but NoneType",
        "standard:1": "options: not a list as Python writes it",
        "standard:2": "options: not a list as Python writes it",
        "standard:3": "answer: 'B' is not one of the 1 options",
    }
