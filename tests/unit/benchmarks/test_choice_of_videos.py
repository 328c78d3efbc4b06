"""LongVideoBench, NExT-QA, Video-MME and LVBench, from their released files to their figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ral_system.benchmarks import longvideobench, lvbench, nextqa, video_mme
from ral_system.benchmarks.item import MediaFile
from tests.unit.benchmarks.released import bad, good, touch, write_json, write_lines, write_parquet

REFERRING = {
    "id": "v1_0",
    "video_id": "v1",
    "video_path": "v1.mp4",
    "question": "What follows?",
    "candidates": ["a bird", "a plane", "a boat", "a car", "a tree"],
    "correct_choice": 1,
    "duration_group": 15,
    "question_category": "S2E",
}


def test_longvideobench(tmp_path: Path) -> None:
    touch(tmp_path, "videos/v1.mp4")
    write_json(tmp_path / "lvb_val.json", [REFERRING, REFERRING | {"id": "v1_1", "duration_group": 3600}])
    first, second = good("longvideobench", tmp_path)
    assert first.text == (
        "<video>\nQuestion: What follows?\nA. a bird\nB. a plane\nC. a boat\nD. a car\nE. a tree\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert first.media == (MediaFile("video", path=tmp_path / "videos" / "v1.mp4"),) and first.category == "15 s"
    for answer, expected in (("B", 1), ("The answer is B", 1), ("B. a plane", 1), ("A or B", 0), ("plane", 0), ("", 0)):
        assert longvideobench.score(first, answer) == expected
    assert longvideobench.score(replace(first, references=("E",)), "E") == 1
    assert longvideobench.summary([(first, 1.0), (first, 1.0), (second, 0.0)]) == {
        "score": pytest.approx(200 / 3),
        "15 s": 100.0,
        "3600 s": 0.0,
    }


def test_longvideobench_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "videos/v1.mp4")
    hidden = {key: value for key, value in REFERRING.items() if key != "correct_choice"}
    rows = [REFERRING | {"correct_choice": 5}, hidden, REFERRING | {"video_path": "../lvb_val.json/x"}]
    write_json(tmp_path / "lvb_val.json", rows)
    reasons = list(bad("longvideobench", tmp_path).values())
    assert reasons[0] == "correct_choice: 5 is not one of the 5 candidates"
    assert reasons[1] == "correct_choice: None is not one of the 5 candidates"
    assert "no such file" in reasons[2]


HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"


def test_nextqa(tmp_path: Path) -> None:
    lines = [
        '4010069381,369,640,480,how do they play,2,6,CH,roll,tap,strum the string,"hit, with sticks",pat',
        "4010069381,369,640,480,what before,0,7,TP,a,b,c,d,e",
        "4882821564,2697,640,480,what after,1,1,TN,a,b,c,d,e",
        "4882821564,2697,640,480,how many,4,2,DC,a,b,c,d,e",
    ]
    (tmp_path / "test.csv").write_text(HEADER + "\n".join(lines))
    touch(tmp_path, "NExTVideo/4010069381.mp4", "NExTVideo/1164/4882821564.mp4")
    write_json(tmp_path / "map_vid_vidorID.json", {"4882821564": "1164/4882821564"})
    items = good("nextqa", tmp_path)
    assert [item.id for item in items] == ["4010069381_6", "4010069381_7", "4882821564_1", "4882821564_2"]
    assert items[0].text == (
        "<video>\nhow do they play\nA. roll\nB. tap\nC. strum the string\nD. hit, with sticks\nE. pat\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert items[0].media == (MediaFile("video", path=tmp_path / "NExTVideo" / "4010069381.mp4"),)
    assert items[2].media == (MediaFile("video", path=tmp_path / "NExTVideo" / "1164" / "4882821564.mp4"),)
    answers = ("C", "(B)", "B. b", "E")
    sheet = [(item, nextqa.score(item, answer)) for item, answer in zip(items, answers, strict=True)]
    assert nextqa.summary(sheet) == {
        "score": 75.0,
        "C": 100.0,
        "T": 50.0,
        "D": 100.0,
        "CH": 100.0,
        "TN": 50.0,  # with TP
        "DC": 100.0,
    }


def test_nextqa_rows_that_cannot_be_used(tmp_path: Path) -> None:
    lines = [
        "1,1,1,1,why,5,0,CW,a,b,c,d,e",
        "1,1,1,1,why,1,0,XX,a,b,c,d,e",
        "1,1,1,1,why,1,0,CW,a,b,c,d",
        "2,1,1,1,why,1,0,CW,a,b,c,d,e",
        "../../../etc/passwd,1,1,1,why,1,0,CW,a,b,c,d,e",
    ]
    (tmp_path / "test.csv").write_text(HEADER + "\n".join(lines))
    touch(tmp_path, "NExTVideo/1.mp4")
    reasons = bad("nextqa", tmp_path)
    assert list(reasons) == [f"test.csv:{number}" for number in range(5)]
    for reason, says in zip(
        reasons.values(),
        ("not one of 0 to 4", "type: XX", "not as many columns", "no such file", "leads out"),
        strict=True,
    ):
        assert says in reason


def film(number: int, duration: str, **changes: Any) -> dict[str, Any]:
    return {
        "video_id": "001",
        "videoID": "fFjv93ACGo8",
        "duration": duration,
        "domain": "Knowledge",
        "question_id": f"001-{number}",
        "task_type": "Counting Problem",
        "question": "How many?",
        "options": ["A. 4.", "B. 9.", "C. 5.", "D. 13."],
        "answer": "C",
    } | changes


def test_video_mme(tmp_path: Path) -> None:
    touch(tmp_path, "data/fFjv93ACGo8.mp4")
    rows = [film(1, "short"), film(2, "medium"), film(3, "long"), film(4, "long", domain="Sports Competition")]
    write_parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", rows)
    items = good("video_mme", tmp_path)
    assert items[0].text == (
        "<video>\nSelect the best answer to the following multiple-choice question based on the video. Respond with "
        "only the letter (A, B, C, or D) of the correct option.\nHow many?\nA. 4.\nB. 9.\nC. 5.\nD. 13.\n"
        "The best answer is:"
    )
    assert items[0].options == ("4.", "9.", "5.", "13.") and items[0].id == "001-1"
    assert items[0].media == (MediaFile("video", path=tmp_path / "data" / "fFjv93ACGo8.mp4"),)
    answers = ("C", "The best answer is C.", "five", "D")  # an answer without a letter is wrong, and counts
    sheet = [(item, video_mme.score(item, answer)) for item, answer in zip(items, answers, strict=True)]
    durations = {"short": 100.0, "medium": 100.0, "long": 0.0}
    domains = {"Knowledge": pytest.approx(200 / 3), "Sports Competition": 0.0}
    assert video_mme.summary(sheet) == {"score": 50.0, **durations, **domains}


def test_video_mme_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "data/fFjv93ACGo8.mkv")
    rows = [film(1, "short"), film(2, "short", videoID="x"), film(3, "short", answer="E")]
    write_parquet(tmp_path / "videomme" / "test-0.parquet", rows)
    reasons = bad("video_mme", tmp_path)
    assert list(reasons) == ["test:1", "test:2"]
    assert "data/x.mp4: no such file" in reasons["test:1"] and "not one of the 4 options" in reasons["test:2"]


def asked(uid: str, *types: str, **changes: Any) -> dict[str, Any]:
    return {
        "uid": uid,
        "question": "What year appears?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633",
        "answer": "D",
        "question_type": list(types),
        "time_reference": "00:15-00:19",
    } | changes


def test_lvbench(tmp_path: Path) -> None:
    touch(tmp_path, "all_videos/Cm73ma6Ibcs.mp4")
    questions = [asked("55", "reasoning"), asked("56", "reasoning", "summarization"), asked("57", "summarization")]
    write_lines(tmp_path / "video_info.meta.jsonl", [{"key": "Cm73ma6Ibcs", "type": "cartoon", "qa": questions}])
    items = good("lvbench", tmp_path)
    assert [item.id for item in items] == ["55", "56", "57"]
    assert items[0].text == f"<video>\n{questions[0]['question']}\nAnswer the question with the option letter."
    assert items[0].options == ("1636", "1366", "1363", "1633")
    assert items[0].media == (MediaFile("video", path=tmp_path / "all_videos" / "Cm73ma6Ibcs.mp4"),)  # all of it
    assert lvbench.summary([(items[0], 1.0), (items[1], 1.0), (items[2], 0.0)]) == {
        "score": pytest.approx(200 / 3),
        "reasoning": 100.0,
        "summarization": 50.0,  # a question of two abilities counts for both
    }
    for answer, expected in (
        ("D", 1),
        ("(D) 1633", 1),
        ("It is ( D )", 1),
        ("D) 1633", 1),
        ("D) 1633, not (A)", 1),
        ("D. 1633", 1),
        ("(C) or (D)", 0),
        ("The answer is D", 0),  # its first character is T
        ("d", 0),
        ("", 0),
    ):
        assert lvbench.score(items[0], answer) == expected


def test_lvbench_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "all_videos/a.mp4")
    rows = [
        {"key": "a", "qa": [asked("1", "reasoning", answer="E"), 7, asked("2", "reasoning", question="what ?")]},
        {"key": "a"},
        {"key": "../a", "qa": [asked("3", "reasoning")]},
        [],
    ]
    write_lines(tmp_path / "video_info.meta.jsonl", rows)
    reasons = bad("lvbench", tmp_path)
    name = "video_info.meta.jsonl"
    assert list(reasons) == [f"{name}:{place}" for place in ("0/0", "0/1", "0/2", "1", "2/0", "3")]
    says = (
        "not one of the 4",
        "not an object but int",
        "not one of the 0",
        "qa: not a list",
        "no such file",
        "not an object",
    )
    for reason, part in zip(reasons.values(), says, strict=True):
        assert part in reason
