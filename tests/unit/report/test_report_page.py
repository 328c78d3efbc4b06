from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ral_system.errors import SetupError
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.observability.metrics import RolloutLog
from ral_system.report.load import headline, read_run
from ral_system.report.write import write_report, write_run_report
from ral_system.types import (
    Completion,
    FinishReason,
    Media,
    Prompt,
    RewardResult,
    RewardStatus,
    Rollout,
    VideoSampling,
)
from tests.unit.media.clips import clip, noise


def lines(folder: Path, name: str, *records: dict) -> None:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))


def row(stage: str, step: int, **metrics: float | None) -> dict:
    return {"stage": stage, "step": step, "time_s": 2.0 * step, **{k.replace("__", "/"): v for k, v in metrics.items()}}


def rollout(phase: str, **changes: object) -> dict:
    made = {"stage": "rl", "step": 1, "phase": phase, "id": "held_out/1#0", "question": "q", "kind": "count",
            "answer": "2", "response": "r", "reward_parts": {"correctness": 1.0}, "reward": 1.0, "advantage": 0.0,
            "media": [], "overlays": []}  # fmt: skip
    return made | changes


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="nowhere does not exist") as error:
        write_report(tmp_path / "nowhere")
    assert "\n" not in str(error.value)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    page = write_report(tmp_path).read_text()
    assert "Nothing has been recorded" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "report.html"]


def test_only_recorded_topics_have_a_chart(tmp_path: Path) -> None:
    lines(tmp_path, "metrics.jsonl", row("sft", 1, supervised__loss=2.0), row("sft", 2, supervised__loss=None))
    page = write_report(tmp_path).read_text()
    assert page.count("data-chart=") == 1
    assert 'data-chart="supervised-loss"' in page
    assert "Does it learn?" not in page
    assert "cold start</span>" in page


def test_headline_follows_the_run_until_there_is_a_summary(tmp_path: Path) -> None:
    lines(
        tmp_path,
        "metrics.jsonl",
        row("sft", 10, eval__accuracy=0.6),
        row("rl", 0, eval__accuracy=0.7),
        row("rl", 1, gate__log_prob_diff_max=3e-7, reward__format=0.9),
        row("rl", 2, gate__log_prob_diff_max=2e-7, eval__accuracy=0.8),
    )
    top = headline(read_run(tmp_path))
    assert (top.accuracy_before, top.accuracy_after, top.format_rate) == (0.7, 0.8, 0.9)
    assert (top.log_prob_diff_max, top.gates_failed, top.finished) == (3e-7, 0, False)
    assert (top.steps, top.wall_time_s) == ({"sft": 10, "rl": 2}, 24.0)
    summary = {
        "held_out_accuracy_after_sft": 0.71,
        "held_out_accuracy_after_rl": 0.97,
        "prompt_id_mismatches": 0,
        "weight_checksum_failures": 1,
        "wall_s": {"perceive": {"total": None}, "sft": {"total": 2.0}, "rl": {"total": 7.0, "update": 5.0}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    top = headline(read_run(tmp_path))
    assert (top.accuracy_before, top.accuracy_after, top.wall_time_s) == (0.71, 0.97, 9.0)
    assert (top.gates_failed, top.finished) == (1, True)


def test_damaged_files_do_not_stop_the_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "rl", "step": 1, "policy/kl": 0.1}\n{"stage": "rl", "st\n[]\n\n')
    (tmp_path / "summary.json").write_text('{"accuracy": ')
    (tmp_path / "config.yaml").write_text("a: [1\n")
    lines(
        tmp_path,
        "rollouts.jsonl",
        rollout("train", media=["ab" * 32], overlays=[[[[1], [1, 2]]]]),
        rollout("train", media=["../../etc/passwd"], reward=None, reward_parts={"correctness": None}),
        rollout("train", media=[{"digest": ["ab"]}], overlays=[[[[1]]]]),
        rollout("train", media=[17, {}], overlays=3),
    )
    page = write_report(tmp_path).read_text()
    assert 'data-chart="kl"' in page
    assert page.count("picture not in the store") == 2


def test_texts_are_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    lines(
        tmp_path,
        "rollouts.jsonl",
        rollout("train", id=f'"{hostile}', question=hostile, answer=hostile, response=hostile, kind=hostile),
        rollout("before_rl", id=hostile, response=hostile, status=hostile, reward_parts={hostile: 1.0}),
    )
    (tmp_path / "config.yaml").write_text(f"name: '{hostile}'\nalgorithm: {{name: '{hostile}'}}\n")
    assert hostile not in write_report(tmp_path).read_text()


def test_pairs_join_on_the_prompt_and_changed_ones_come_first(tmp_path: Path) -> None:
    wrong = {"correctness": 0.0}
    lines(
        tmp_path,
        "rollouts.jsonl",
        rollout("before_rl", id="same#0"),
        rollout("before_rl", id="fixed#0", reward_parts=wrong),
        rollout("before_rl", id="broken#0"),
        rollout("after_rl", id="same#0"),
        rollout("after_rl", id="fixed#0", response="stale", reward_parts=wrong),
        rollout("after_rl", id="fixed#0", response="newest"),
        rollout("after_rl", id="broken#0", reward_parts=wrong),
    )
    page = write_report(tmp_path).read_text()
    order = [page.index(f'data-rollout="{prompt}"') for prompt in ("fixed", "broken", "same")]
    assert order == sorted(order)
    assert "3 held-out prompts: 1 became right, 1 became wrong" in page
    assert "newest" in page
    assert "stale" not in page


def test_a_later_report_replaces_the_earlier_one(tmp_path: Path) -> None:
    first = write_report(tmp_path).read_text()
    lines(tmp_path, "metrics.jsonl", row("rl", 1, policy__kl=0.1))
    assert write_report(tmp_path).read_text() != first
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def recorded(folder: Path, media: list[Media], maps: list[np.ndarray], phase: Any = "after_rl") -> None:
    prompt = Prompt("held_out/1", "k", "what moves ?", "red", tuple(media), (1,))
    completion = Completion(prompt.id, 0, (1,), (0.0,), "red", FinishReason.STOP, 0)
    verdict = RewardResult(completion.id, {"correctness": 1.0}, 1.0, RewardStatus.OK)
    with RolloutLog(folder) as log:
        log.write("rl", 1, phase, Rollout(prompt, completion, verdict, 0.0), maps)


def video(folder: Path, frames: int) -> Media:
    sampling = VideoSampling(fps=1.0, max_frames=128, min_frames=2)
    return MediaStore(folder / "media").put_video(clip(noise(1, frames, 56, 84)), sampling, VideoLimits())


def captions(page: str, kind: str) -> list[str]:
    return re.findall(rf'<span class="frame"><img class="{kind}"[^>]*><small>([^<]*)</small>', page)


def test_a_video_is_its_time_steps_and_where_the_answer_looks_on_each(tmp_path: Path) -> None:
    mass = np.array([[[0.25, 0.0, 0.0]], [[0.0, 0.125, 0.0]]])
    picture = MediaStore(tmp_path / "media").put(Image.fromarray(noise(2, 1, 28, 28)[0]))
    recorded(tmp_path, [video(tmp_path, 4), picture], [np.array([[[0.5]]]), mass])  # pictures' maps come first
    page = write_run_report(tmp_path).read_text()
    assert captions(page, "picture") == ["0.0 s", "2.0 s"]
    assert captions(page, "overlay") == ["0.0 s · 25.0%", "2.0 s · 12.5%"]
    assert len(re.findall('class="overlay"', page)) == 3 and len(re.findall('class="picture"', page)) == 3
    assert "its time and its share of all attention" in page


def test_of_a_long_video_some_steps_are_shown(tmp_path: Path) -> None:
    recorded(tmp_path, [video(tmp_path, 40)], [np.full((20, 2, 3), 0.001)], "train")
    page = write_run_report(tmp_path).read_text()
    assert captions(page, "picture") == [f"{2 * step}.0 s" for step in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert len(captions(page, "overlay")) == 8
    assert page.count("8 of 20 time steps") == 2


def test_videos_that_cannot_be_shown_leave_a_gap(tmp_path: Path) -> None:
    there = video(tmp_path, 4)
    recorded(tmp_path, [there], [np.ones((3, 1, 1))])  # a map of something else
    assert captions(write_run_report(tmp_path).read_text(), "overlay") == []
    assert write_report(tmp_path).read_text().count("video not in the store") == 2  # nobody decodes it
    MediaStore(tmp_path / "media").path(there).write_bytes(b"damaged")
    assert write_run_report(tmp_path).read_text().count("video not in the store") == 2


def test_of_every_training_group_the_worst_and_the_best_response_are_shown(tmp_path: Path) -> None:
    groups = {"train/1": (0.1, 1.0, 0.0), "train/2": (1.0, 1.0)}
    lines(
        tmp_path,
        "rollouts.jsonl",
        *(
            rollout("train", id=f"{prompt}#{i}", reward=reward)
            for prompt, rewards in groups.items()
            for i, reward in enumerate(rewards)
        ),
    )
    page = write_report(tmp_path).read_text()
    shown = re.findall(r'data-rollout="(train/[^"]+)"', page)
    assert shown == ["train/1#2", "train/1#1", "train/2#0"]


def test_versions_and_commands_are_in_a_fold(tmp_path: Path) -> None:
    lines(tmp_path, "metrics.jsonl", row("rl", 1, policy__kl=0.1))
    assert "Versions and commands" not in write_report(tmp_path).read_text()
    made = {"started": "2026-01-01T00:00:00+00:00", "git_commit": "abc", "git_dirty": True, "versions": {"torch": "2"}}
    later = {"started": "2026-01-02T00:00:00+00:00", "git_commit": None, "git_dirty": None, "versions": {"torch": "3"}}
    lines(tmp_path, "commands.jsonl", made | {"command": "ral-train a=<b>"}, later | {"command": "ral-rl"})
    page = write_report(tmp_path).read_text()
    fold = page.split("Versions and commands")[1].split("</details>")[0]
    assert re.findall(r"ral-\S+(?: \S+)?|commit .*|torch .*", fold) == [
        "ral-train a=&lt;b&gt;",
        "commit abc with changes",
        "torch 2",
        "ral-rl",
        "commit unknown",
        "torch 3</pre>",
    ]


def test_alarms_that_rang_are_listed_with_their_remedy(tmp_path: Path) -> None:
    rang = {"alarm__entropy": 1.0, "health__entropy": 0.42}
    lines(
        tmp_path,
        "metrics.jsonl",
        row("rl", 1, alarm__entropy=0.0, health__entropy=1.0, alarm__aux_only=0.0),
        row("rl", 2, **rang, alarm__aux_only=1.0),
        row("rl", 3, **rang, alarm__aux_only=0.0),
        row("rl", 4, alarm__entropy=0.0, health__entropy=0.9, alarm__aux_only=0.0),
    )
    (tmp_path / "config.yaml").write_text("alarms: {entropy: 0.5, aux_only: null}\n")
    page = write_report(tmp_path).read_text()
    assert headline(read_run(tmp_path)).alarms == 2
    assert re.findall(r'data-alarm="(\w+)"', page) == ["aux_only", "entropy"]
    entropy = page[page.index('data-alarm="entropy"') :]
    assert "<td>2, from 2 to 3</td><td>0.42, limit 0.5</td><td>lower learner.learning_rate" in entropy


def test_a_run_without_alarms_has_no_table_of_them(tmp_path: Path) -> None:
    lines(tmp_path, "metrics.jsonl", row("rl", 1, alarm__entropy=0.0, health__entropy=1.0))
    page = write_report(tmp_path).read_text()
    assert 'id="alarms"' not in page and "data-headline=alarms" not in page
