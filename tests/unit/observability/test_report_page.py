from __future__ import annotations

import json
from pathlib import Path

import pytest

from ral_system.errors import SetupError
from ral_system.observability.report import write_report
from ral_system.observability.report_data import headline, read_run


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
    assert "3 held-out prompts: 1 turned right, 1 turned wrong" in page
    assert "newest" in page
    assert "stale" not in page


def test_a_later_report_replaces_the_earlier_one(tmp_path: Path) -> None:
    first = write_report(tmp_path).read_text()
    lines(tmp_path, "metrics.jsonl", row("rl", 1, policy__kl=0.1))
    assert write_report(tmp_path).read_text() != first
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
