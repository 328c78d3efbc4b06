"""Notes of who worked when, the trace, and idle shares by hand."""

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ral_system.observability.progress import PhaseTimer
from ral_system.observability.timeline import (
    PeakMemory,
    SpanLog,
    idle_shares,
    merged,
    overlap,
    peak_memory,
    write_trace,
)


def note(folder: Path, lane: str, *spans: tuple[str, float, float], **labels: str) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    lines = [json.dumps({"name": n, "start_s": a, "end_s": b, **labels}) for n, a, b in spans]
    with (folder / "logs" / f"{lane}.spans.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def test_idle_is_what_the_controller_s_phases_have_without_a_process(tmp_path: Path) -> None:
    # the rl stage: 0 to 10 and, after an interruption, 100 to 110
    note(tmp_path, "controller", ("rollout", 0, 4), ("update", 4, 10), ("rollout", 100, 110), stage="rl")
    note(tmp_path, "controller", ("update", 20, 30), stage="sft")
    # generates 0 to 4 and 100 to 110 of 20 seconds, and once more in the other stage
    note(tmp_path, "rollout_0", ("generate", 0, 4), ("generate", 100, 110), ("generate", 20, 30))
    # 3 to 5 and 4 to 9 overlap: 6 seconds; from 95 on only 100 to 101 is inside
    note(tmp_path, "learner_0", ("score", 3, 5), ("update", 4, 9), ("update", 95, 101))
    note(tmp_path, "teacher_0", ("score", 50, 60))
    found = idle_shares(tmp_path, "rl")
    assert found == {"rollout_0": pytest.approx(1 - 14 / 20), "learner_0": pytest.approx(1 - 7 / 20)}
    assert idle_shares(tmp_path, "perceive") == {}


def test_without_notes_there_is_nothing(tmp_path: Path) -> None:
    assert idle_shares(tmp_path, "rl") == {}
    write_trace(tmp_path)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


def test_the_trace_has_a_named_lane_per_process_and_the_controller_s_is_the_first(tmp_path: Path) -> None:
    note(tmp_path, "actor_0", ("update", 1001.5, 1002.0))
    note(tmp_path, "controller", ("rollout", 1000.0, 1001.0), stage="rl")
    with (tmp_path / "logs" / "actor_0.spans.jsonl").open("a") as file:
        file.write('{"name": "torn')
    write_trace(tmp_path)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [(e["tid"], e["args"]["name"]) for e in events if e["ph"] == "M"] == [(0, "controller"), (1, "actor_0")]
    spans = {e["name"]: (e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert spans == {"rollout": (0, 0, 1_000_000), "update": (1, 1_500_000, 500_000)}


def test_phases_of_a_timer_are_noted_with_what_is_their_own(tmp_path: Path) -> None:
    spans = SpanLog(tmp_path / "logs", "controller", stage="rl")
    timer = PhaseTimer(on_end=spans.ended)
    before = time.time()
    with timer.phase("outer"):
        time.sleep(0.02)
        with timer.phase("inner"):
            time.sleep(0.02)
        time.sleep(0.02)
    spans.ended("too short to count", 1e-5)
    spans.close()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "controller.spans.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["outer", "inner", "outer"]
    assert all(line["stage"] == "rl" for line in lines)
    for earlier, later in pairwise(lines):
        assert before - 1 < earlier["start_s"] < earlier["end_s"] <= later["start_s"] + 1e-3


def test_the_most_memory_of_each_call_in_a_stage(tmp_path: Path) -> None:
    def line(name: str, start: float, end: float, gib: float, **labels: str) -> str:
        return json.dumps({"name": name, "start_s": start, "end_s": end, "peak_gib": gib, **labels}) + "\n"

    logs = tmp_path / "logs"
    logs.mkdir()
    phases = line("update", 4, 10, 1.0, stage="rl") + line("update", 20, 30, 9.0, stage="sft")
    (logs / "controller.spans.jsonl").write_text(phases)
    calls = (
        line("score", 4, 5, 3.0) + line("update", 5, 7, 5.0) + line("update", 7, 9, 4.0) + line("update", 21, 25, 8.0)
    )
    (logs / "learner_0.spans.jsonl").write_text(calls)
    note(tmp_path, "reward_0", ("judge", 4, 5))  # of an earlier version
    assert peak_memory(tmp_path, "rl") == {"controller": {"update": 1.0}, "learner_0": {"score": 3.0, "update": 5.0}}
    assert peak_memory(tmp_path, "perceive") == {}


def test_peaks_of_a_step_are_those_of_calls_that_ended_in_it(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()

    def line(name: str, gib: float) -> str:
        return json.dumps({"name": name, "start_s": 0, "end_s": 1, "peak_gib": gib}) + "\n"

    def write(lane: str, text: str) -> None:
        with (logs / f"{lane}.spans.jsonl").open("a") as file:
            file.write(text)

    write("learner_0", line("update", 99.0))  # of an earlier session
    peaks = PeakMemory(tmp_path)
    assert peaks.take() == {}
    write("learner_0", line("update", 2.0) + line("score", 1.0) + line("update", 1.5))
    write("learner_10", line("update", 3.0))
    write("controller", line("rollout", 0.5))
    assert peaks.take() == {
        "memory/controller/rollout_gib": 0.5,
        "memory/learner/update_gib": 3.0,
        "memory/learner/score_gib": 1.0,
    }
    late = line("update", 4.0)
    write("learner_0", line("score", 2.0) + late[:20])
    assert peaks.take() == {"memory/learner/score_gib": 2.0}
    write("learner_0", late[20:])
    assert peaks.take() == {"memory/learner/update_gib": 4.0}
    assert peaks.take() == {}


def test_each_call_has_its_own_peak(tmp_path: Path) -> None:
    spans = SpanLog(tmp_path / "logs", "actor_0")
    spans.ended("start", 1.0)
    held = bytearray(300 << 20)
    del held
    spans.ended("large", 1.0)
    spans.ended("small", 1.0)
    spans.close()
    lines = [json.loads(line) for line in (tmp_path / "logs" / "actor_0.spans.jsonl").read_text().splitlines()]
    start, large, small = (line["peak_gib"] for line in lines)
    assert large > small + 0.25 and large > 0.29 and start > 0


def test_merging_and_overlapping() -> None:
    assert merged([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert merged([]) == []
    assert overlap([(0, 2), (4, 8)], [(1, 5), (7, 9)]) == pytest.approx(1 + 1 + 1)
    assert overlap([], [(0, 1)]) == 0
