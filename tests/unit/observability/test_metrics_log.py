from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ral_system.config.logging import LoggingConfig
from ral_system.observability.jsonl import read_lines
from ral_system.observability.metrics import MetricsLog, RolloutLog, recorded_media
from ral_system.types import (
    Clip,
    Completion,
    FinishReason,
    Media,
    Prompt,
    RewardResult,
    RewardStatus,
    Rollout,
    VideoSampling,
)

PICTURE = Media("ab" * 32, 84, 84)
VIDEO = Media("cd" * 32, 56, 28, Clip(VideoSampling(0.5, 128, 4), (0.0, 1.5, 3.1, 6.0), 7.5))


def config(mode: str = "disabled") -> LoggingConfig:
    return LoggingConfig.model_validate(
        {
            "wandb": mode,
            "wandb_project": "none",
            "groups_per_step": 1,
            "report_every": 1,
        }
    )


def rollout(index: int = 0) -> Rollout:
    prompt = Prompt("held_out/4", "attribute", "what colour ?", "red", (PICTURE, VIDEO), (1, 2))
    completion = Completion(prompt.id, index, (7,), (-0.1,), "<answer> red </answer>", FinishReason.STOP, 0)
    verdict = RewardResult(completion.id, {"correctness": 1.0, "format": 1.0}, 1.0, RewardStatus.OK)
    return Rollout(prompt, completion, verdict, 0.5)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_row_is_readable_at_once_and_in_the_documented_form(tmp_path: Path) -> None:
    clock = Clock()
    log = MetricsLog(tmp_path / "new" / "run", config(), "run", {}, clock=clock)
    clock.now += 1.5
    log.write("sft", 3, {"supervised/loss": np.float32(0.5), "supervised/token_accuracy": 1})
    line = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    expected = {"stage": "sft", "step": 3, "time_s": 1.5, "supervised/loss": 0.5, "supervised/token_accuracy": 1.0}
    assert json.loads(line) == expected
    assert line.endswith("\n")


def test_non_finite_values_are_valid_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, config(), "run", {}) as log:
        log.write("rl", 0, {"a/nan": float("nan"), "a/inf": float("-inf"), "a/one": 1.0})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["a/nan"], row["a/inf"], row["a/one"]) == (None, None, 1.0)


def test_the_clock_restarts_with_each_stage_and_continues_when_a_stage_is_resumed(tmp_path: Path) -> None:
    clock = Clock()
    log = MetricsLog(tmp_path, config(), "run", {}, clock=clock)
    for stage, step in (("perceive", 1), ("perceive", 2), ("sft", 1), ("sft", 2)):
        clock.now += 10
        log.write(stage, step, {})  # type: ignore[arg-type]
    log.close()
    resumed = Clock()
    log = MetricsLog(tmp_path, config(), "run", {}, clock=resumed)
    log.truncate("sft", 1)
    resumed.now += 5
    log.write("sft", 2, {})
    times = [(r["stage"], r["step"], r["time_s"]) for r in read_lines(tmp_path / "metrics.jsonl")]
    assert times == [("perceive", 1, 10), ("perceive", 2, 20), ("sft", 1, 10), ("sft", 2, 15)]


def test_truncate_drops_later_steps_and_later_stages_only(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, config(), "run", {})
    for stage in ("perceive", "sft", "rl"):
        for step in (1, 2, 3):
            log.write(stage, step, {})  # type: ignore[arg-type]
    log.truncate("sft", 2)
    log.write("sft", 3, {})
    rows = [(r["stage"], r["step"]) for r in read_lines(tmp_path / "metrics.jsonl")]
    assert rows == [("perceive", 1), ("perceive", 2), ("perceive", 3), ("sft", 1), ("sft", 2), ("sft", 3)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_drops_lines_of_the_same_step_that_came_after_the_checkpoint(tmp_path: Path) -> None:
    with RolloutLog(tmp_path) as log:
        log.write("rl", 4, "train", rollout())
        at_checkpoint = log.lines
        log.write("rl", 4, "after_rl", rollout())
    with RolloutLog(tmp_path) as log:
        assert (at_checkpoint, log.lines) == (1, 2)
        log.truncate("rl", 4, at_checkpoint)
        log.write("rl", 4, "after_rl", rollout(1))
        assert log.lines == 2
    assert [(r["phase"], r["id"]) for r in read_lines(tmp_path / "rollouts.jsonl")] == [
        ("train", "held_out/4#0"),
        ("after_rl", "held_out/4#1"),
    ]


def test_a_step_has_one_line_to_which_a_second_write_adds(tmp_path: Path) -> None:
    clock = Clock()
    with MetricsLog(tmp_path, config(), "run", {}, clock=clock) as log:
        log.write("sft", 4, {"eval/accuracy": 0.1})
        log.write("rl", 4, {"reward/total": 0.5, "time/sync_s": 1.0, "a/nan": float("nan"), "a/b": 1.0})
        lines_at_checkpoint = log.lines
        clock.now += 7.0
        log.write("rl", 4, {"eval/accuracy": 0.7, "time/sync_s": 2.0, "time/look_s": 3.0, "a/b": 2.0})
        assert log.lines == lines_at_checkpoint == 2
        log.write("rl", 5, {"reward/total": 0.6})
    assert read_lines(tmp_path / "metrics.jsonl")[1:] == [
        {
            "stage": "rl",
            "step": 4,
            "time_s": 7.0,
            "reward/total": 0.5,
            "time/sync_s": 3.0,
            "a/nan": None,
            "a/b": 2.0,
            "eval/accuracy": 0.7,
            "time/look_s": 3.0,
        },
        {"stage": "rl", "step": 5, "time_s": 7.0, "reward/total": 0.6},
    ]


def test_a_step_written_again_after_a_resume_keeps_its_one_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, config(), "run", {}) as log:
        log.write("rl", 3, {"reward/total": 0.4})
        log.write("rl", 4, {"reward/total": 0.5})
        at_checkpoint = log.lines
        log.write("rl", 4, {"eval/accuracy": 0.7})
    with MetricsLog(tmp_path, config(), "run", {}) as log:
        log.truncate("rl", 4, at_checkpoint)
        log.write("rl", 4, {"eval/accuracy": 0.7})
    rows = [{k: v for k, v in r.items() if k != "time_s"} for r in read_lines(tmp_path / "metrics.jsonl")]
    assert rows[1:] == [{"stage": "rl", "step": 4, "reward/total": 0.5, "eval/accuracy": 0.7}]
    assert len(rows) == 2


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_torn_by_a_kill_is_dropped_and_the_log_goes_on(tmp_path: Path, cut: int) -> None:
    with MetricsLog(tmp_path, config(), "run", {}) as log:
        log.write("rl", 1, {"a/b": 1.0})
        log.write("rl", 2, {"a/b": 2.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with MetricsLog(tmp_path, config(), "run", {}) as log:
        log.write("rl", 2, {"a/b": 2.5})
    assert [r["a/b"] for r in read_lines(path)] == [1.0, 2.5]


def test_a_metric_cannot_shadow_the_axes(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, config(), "run", {}) as log, pytest.raises(ValueError, match="step"):
        log.write("rl", 1, {"step": 1.0})


def test_a_rollout_keeps_texts_verdict_and_overlay(tmp_path: Path) -> None:
    with RolloutLog(tmp_path) as log:
        log.write("rl", 0, "before_rl", rollout(), [np.array([[[0.25, np.nan], [0.5, 0.0]]], dtype=np.float32)])
        log.write("rl", 1, "train", rollout(3))
    first, second = read_lines(tmp_path / "rollouts.jsonl")
    assert first["overlays"] == [[[[0.25, None], [0.5, 0.0]]]]
    assert (first["id"], first["phase"], recorded_media(first)) == ("held_out/4#0", "before_rl", [PICTURE, VIDEO])
    assert first["reward_parts"] == {"correctness": 1.0, "format": 1.0}
    assert (second["id"], second["overlays"], second["advantage"]) == ("held_out/4#3", [], 0.5)


def test_bare_digests_are_pictures() -> None:
    assert recorded_media({"media": ["ab" * 32]}) == [Media("ab" * 32, 0, 0)]
    assert recorded_media({}) == []


def test_rollouts_roll_back_like_metrics(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path)
    for step in (0, 1, 2):
        log.write("rl", step, "train", rollout(step))
    log.truncate("rl", 0)
    assert [r["step"] for r in read_lines(tmp_path / "rollouts.jsonl")] == [0]
    log.truncate("sft", 10)
    assert read_lines(tmp_path / "rollouts.jsonl") == []
