"""MVBench, Video-MMMU and TempCompass: benchmarks of several tasks about videos."""

from pathlib import Path
from typing import Any

import pytest

from ral_system.benchmarks import mvbench, tempcompass, video_mmmu
from ral_system.benchmarks.item import Item, MediaFile
from ral_system.benchmarks.reading import read_items
from tests.unit.benchmarks.released import bad, good, touch, write_json, write_parquet


def seen(task: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "video": "a.mp4",
        "question": "What happened?",
        "candidates": ["Ate.", "Slept."],
        "answer": "Slept.",
    }
    if task in mvbench.STRETCHES:
        row |= {"start": 2.5, "end": 9.0}
    return row | changes


def mvbench_files(folder: Path, **rows: list[Any]) -> None:
    for task, source in mvbench.FOLDERS.items():
        name = f"video/{'data0613/' if source.startswith('star') else ''}{source}/a.mp4"
        touch(folder, f"{name}/00001.jpg" if task == "episodic_reasoning" else name)
        write_json(folder / "json" / f"{task}.json", rows.get(task, [seen(task)]))


def test_mvbench(tmp_path: Path) -> None:
    mvbench_files(tmp_path, action_count=[seen("action_count")] * 2)
    items = good("mvbench", tmp_path)
    assert len(items) == 21
    by_id = {item.id: item for item in items}
    assert by_id["action_count/1"].text == (
        f"<video>\n{mvbench.SYSTEM}\n"
        "Question: What happened?\nOptions:\n(A) Ate.\n(B) Slept.\nOnly give the best option."
    )
    videos = tmp_path / "video"
    assert by_id["action_count/1"].media == (MediaFile("video", path=videos / "perception" / "videos" / "a.mp4"),)
    star = videos / "data0613" / "star" / "Charades_v1_480" / "a.mp4"
    assert by_id["action_sequence/0"].media == (MediaFile("video", path=star, start_s=2.5, end_s=9.0),)
    frames = videos / "tvqa" / "frames_fps3_hq" / "a.mp4"
    assert by_id["episodic_reasoning/0"].media == (MediaFile("video", None, frames, 2.5, 9.0, frames_per_s=3.0),)
    found = mvbench.summary([(item, float(item.category == "action_count")) for item in items])
    assert found["score"] == pytest.approx(200 / 21) and found["action_count"] == 100 and found["state_change"] == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(B) Slept.", 1),
        ("(B)", 1),
        ("B", 1),
        ("b.", 1),
        ("B) Slept.", 1),
        ("B.", 1),
        ("(B\nbecause", 1),
        ("(A)\n(B)", 0),
        ("Slept.", 0),
        ("Best option: (B)", 0),  # the first word
        ("(", 0),
        ("", 0),
    ],
)
def test_an_mvbench_answer(tmp_path: Path, answer: str, expected: int) -> None:
    mvbench_files(tmp_path)
    assert mvbench.score(good("mvbench", tmp_path)[0], answer) == expected


def test_mvbench_rows_that_cannot_be_used(tmp_path: Path) -> None:
    wrong = [
        seen("action_sequence", answer="Ran."),
        seen("action_sequence", start=9.0, end=2.5),
        seen("action_sequence", video="../../../../../x"),
        seen("action_sequence", video="a" * 5000),
        7,
    ]
    mvbench_files(tmp_path, action_sequence=wrong, fine_grained_pose=[seen("fine_grained_pose", video="b.avi")])
    (tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "b.mp4").write_bytes(b"")
    write_json(tmp_path / "json" / "episodic_reasoning.json", [seen("episodic_reasoning", video="b.mp4")])
    reasons = bad("mvbench", tmp_path)
    says = (
        "not one of the candidates",
        "9.0 to 2.5 is not a part",
        "leads out",
        "not a valid path|no such",
        "not an object",
    )
    for number, part in enumerate(says):
        assert any(one in reasons[f"action_sequence.json:{number}"] for one in part.split("|"))
    assert "video/nturgbd/b.avi: no such file" in reasons["fine_grained_pose.json:0"]
    assert "no folder of frames" in reasons["episodic_reasoning.json:0"] and len(reasons) == 7


def taught(id: str, kind: str = "multiple-choice", **changes: Any) -> dict[str, Any]:
    row = {"id": id, "question": "What is x?", "options": ["two", "three"], "answer": "B", "question_type": kind}
    return row | changes


def video_mmmu_files(folder: Path, adaptation: list[dict[str, Any]]) -> None:
    touch(folder, "Science/dev_Math_1.mp4", "Art/dev_Music_2.mp4")
    write_parquet(folder / "Perception" / "test-00000-of-00001.parquet", [taught("dev_Math_1"), taught("dev_Music_2")])
    lettered = [taught("dev_Math_1", options=["A. two", "B. three"])]
    write_parquet(folder / "Comprehension" / "test-00000-of-00001.parquet", lettered)
    write_parquet(folder / "Adaptation" / "test-00000-of-00001.parquet", adaptation)


def test_video_mmmu(tmp_path: Path) -> None:
    video_mmmu_files(tmp_path, [taught("dev_Math_1"), taught("dev_Music_2", "open", answer="7", options=[])])
    items = good("video_mmmu", tmp_path)
    assert [item.id for item in items] == [
        *("Perception/dev_Math_1", "Perception/dev_Music_2", "Comprehension/dev_Math_1"),
        *("Adaptation/dev_Math_1", "Adaptation/dev_Music_2"),
    ]
    asked = "<video>\nWhat is x?\nA. two\nB. three\nPlease ignore the Quiz question in last frame of the video."
    assert items[0].text == items[2].text == asked
    assert items[3].text == (
        "<video>\nYou should watch and learn the video content. Then apply what you learned to answer the following "
        "multi-choice question. The image for this question is at the end of the video.\nWhat is x?\nA. two\nB. three"
    )
    assert "following open-ended question" in items[4].text and items[4].text.endswith("\nWhat is x?")
    assert items[1].media == (MediaFile("video", path=tmp_path / "Art" / "dev_Music_2.mp4"),)
    for answer, expected in (
        ("B", 1),
        ("A. no: (B)", 0),
        ("(A), so B: three", 1),
        ("**B. three**", 1),
        ("x", 0),
        ("", 0),
    ):
        assert video_mmmu.score(items[3], answer) == expected
    for answer, expected in (("7", 1), ("x = 7.001", 1), ("8", 0), ("", 0)):
        assert video_mmmu.score(items[4], answer) == expected
    sheet = list(zip(items, (1.0, 0.0, 1.0, 1.0, 0.0), strict=True))
    assert video_mmmu.summary(sheet) == {"score": 60.0, "Perception": 50.0, "Comprehension": 100.0, "Adaptation": 50.0}


def test_video_mmmu_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "secret.mp4")
    rows = [taught("dev_Math_9"), taught("dev_Math_1", answer="C"), taught("../../secret", "None")]
    video_mmmu_files(tmp_path / "bench", rows)
    reasons = bad("video_mmmu", tmp_path / "bench")
    assert list(reasons) == ["Adaptation:0", "Adaptation:1", "Adaptation:2"]
    for reason, says in zip(
        reasons.values(), ("no such file", "not one of the 2 options", "leads out of"), strict=True
    ):
        assert says in reason


MAN = {"question": "What is the man doing?\nA. dunking\nB. running", "answer": "A. dunking"}
CAPTIONS = {
    "question": "Which caption matches the video better?\nCaption A: A man runs.\nCaption B: A man dunks.",
    "answer": "Caption B: A man dunks.",
}
IS = {"question": "Is the man dunking?", "answer": "yes"}


def tempcompass_files(folder: Path, **tasks: Any) -> None:
    touch(folder, "videos/1034.mp4", "videos/1034_reverse.mp4")
    released = {
        "multi-choice": {"1034": {"action": [MAN, MAN], "speed": [MAN]}},
        "yes_no": {"1034": {"action": [IS]}, "1034_reverse": {"direction": [IS | {"answer": "no"}]}},
        "caption_matching": {"1034": {"order": [CAPTIONS]}},
    }
    for task, content in (released | tasks).items():
        write_json(folder / "questions" / f"{task}.json", content)


def test_tempcompass(tmp_path: Path) -> None:
    tempcompass_files(tmp_path)
    items = good("tempcompass", tmp_path)
    assert [item.id for item in items] == [
        *("multi-choice/1034/action/0", "multi-choice/1034/action/1", "multi-choice/1034/speed/0"),
        *("yes_no/1034/action/0", "yes_no/1034_reverse/direction/0", "caption_matching/1034/order/0"),
    ]
    assert items[0].text == f"<video>\n{MAN['question']}\nPlease directly give the best option:"
    assert items[0].options == ("dunking", "running")
    assert items[4].text == "<video>\nIs the man dunking?\nPlease answer yes or no:"
    assert items[4].media == (MediaFile("video", path=tmp_path / "videos" / "1034_reverse.mp4"),)
    found = tempcompass.summary(list(zip(items, (1.0, 0.0, 1.0, 1.0, 0.0, 1.0), strict=True)))
    assert found["score"] == pytest.approx(400 / 6) and found["multi-choice"] == pytest.approx(200 / 3)
    assert (found["yes_no"], found["caption_matching"]) == (50, 100)
    assert (found["multi-choice/action"], found["multi-choice/speed"], found["yes_no/direction"]) == (50, 100, 0)


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Item]:
    twice = CAPTIONS | {"question": CAPTIONS["question"].replace("A man runs.", "A man dunks.")}
    tempcompass_files(tmp_path, caption_matching={"1034": {"order": [CAPTIONS], "same": [twice]}})
    return {item.id.rpartition("/")[0]: item for item in good("tempcompass", tmp_path)}


@pytest.mark.parametrize(
    ("item", "answer", "expected"),
    [
        ("multi-choice/1034/action", "A. dunking", 1),
        ("multi-choice/1034/action", "A", 1),
        ("multi-choice/1034/action", "A) whatever", 1),
        ("multi-choice/1034/action", "B.", 0),
        ("multi-choice/1034/action", "A man", 0),
        ("multi-choice/1034/action", "dunking", 0),
        ("multi-choice/1034/action", "", 0),
        ("yes_no/1034/action", "Yes, he is", 1),
        ("yes_no/1034/action", "no", 0),
        ("yes_no/1034/action", "He does, yes", 0),
        ("yes_no/1034_reverse/direction", "No.", 1),
        ("yes_no/1034_reverse/direction", "", 0),
        ("caption_matching/1034/order", "Caption B: A man dunks.", 1),
        ("caption_matching/1034/order", "Caption B", 1),
        ("caption_matching/1034/order", "Caption B.", 1),
        ("caption_matching/1034/order", "A man dunks.", 1),
        ("caption_matching/1034/order", "(B) A man dunks.", 1),
        ("caption_matching/1034/order", "Caption A", 0),
        ("caption_matching/1034/order", "B", 1),
        ("caption_matching/1034/order", "B.", 1),
        ("caption_matching/1034/order", "A", 0),
        ("caption_matching/1034/order", "", 0),
        ("caption_matching/1034/same", "A man dunks.", 1),  # of two captions with these words the last
    ],
)
def test_a_tempcompass_answer(tasks: dict[str, Item], item: str, answer: str, expected: int) -> None:
    assert tempcompass.score(tasks[item], answer) == expected


def test_tempcompass_entries_that_cannot_be_used(tmp_path: Path) -> None:
    wrong = {
        "1034": {"action": [MAN | {"answer": "C. flying"}, 7]},
        "2000": {"action": [MAN]},
        "../x": {"action": [MAN]},
        "1034_reverse": {"action": MAN, "speed": 7, "order": [MAN]},
        "1035": [MAN],
    }
    neither = {"1034": {"action": [IS | {"answer": "maybe"}]}}
    tempcompass_files(tmp_path, **{"multi-choice": wrong, "yes_no": neither})
    reasons = bad("tempcompass", tmp_path)
    assert list(reasons) == [
        *("multi-choice/1034/action/0", "multi-choice/1034/action/1", "multi-choice/2000/action/0"),
        *("multi-choice/../x/action/0", "multi-choice/1034_reverse/action", "multi-choice/1034_reverse/speed"),
        *("multi-choice/1035", "yes_no/1034/action/0"),
    ]
    says = ("not one of the 2", "not an object", "no such file", "no such file")
    says += ("not a list", "not a list", "not lists", "not one of the options")
    for reason, part in zip(reasons.values(), says, strict=True):
        assert part in reason
    whole = [one.id for one in read_items("tempcompass", tmp_path) if isinstance(one, Item)]
    assert whole == ["multi-choice/1034_reverse/order/0", "caption_matching/1034/order/0"]
