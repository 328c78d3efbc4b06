"""The comparison with TRL: what can be checked without it."""

import json
import os
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from bench.peers import __main__ as command
from bench.peers import clock, environment, our_side, reward, table
from bench.peers.environment import REQUIREMENTS, pinned, prepare, telling_line
from bench.peers.errors import PeerError
from bench.peers.model import random_model
from bench.peers.our_side import batches, overrides
from bench.peers.questions import Exported, compose, export
from bench.peers.trl_side import check_prompts
from bench.peers.workloads import DRY, FULL, WORKLOADS


def run(*seconds: float) -> dict:
    phases = dict.fromkeys((*table.PHASES, "prompt_tokens", "response_tokens"), 1.0)
    return {"load_before": 0.5, "batches": [{"seconds": s, **phases} for s in seconds]}


ROUNDS = [
    {"trl": run(99.0, 4.0, 2.0), "local": run(99.0, 1.0, 2.0)},
    {"trl": run(99.0, 4.0, 4.0), "local": run(99.0, 2.0, 2.0)},
    {"trl": run(99.0, 3.0, 3.0), "local": run(99.0, 6.0, 6.0)},
]


def test_a_ratio_is_that_of_one_round_without_its_first_batches() -> None:
    assert table.ratios(ROUNDS, "local") == [2.0, 2.0, 0.5]


def test_sides_take_turns_in_going_first() -> None:
    assert [table.sides_of(i, ["trl", "local"]) for i in range(2)] == [["trl", "local"], ["local", "trl"]]


def test_the_table_has_a_row_for_every_side_with_medians_over_rounds() -> None:
    *_, peer, ours = table.table({"boards": {"rounds": ROUNDS}}).splitlines()
    assert peer == "| boards | TRL | 3.00 | 1.00 / 1.00 / 1.00 / 1.00 | 1 + 1 | 3.00, 4.00, 3.00 |  |"
    assert ours.endswith("| 2.00 | 1.00 / 1.00 / 1.00 / 1.00 | 1 + 1 | 1.50, 2.00, 6.00 | 2.00 (2.00, 2.00, 0.50) |")


def test_the_caption_says_what_was_equal_and_what_was_not() -> None:
    shape = {"prompts": 16, "completions": 8, "updates": 4, "batches": 10}
    found = {"shape": shape, "threads": {"trl": 2}, "cores": 2, "cpu": "a CPU", "model": "random"}
    text = table.caption({**found, "workloads": {"boards": {"rounds": ROUNDS}}})
    assert all(line in text for line in (*table.HELD_EQUAL, *table.NOT_HELD_EQUAL))
    assert "load 0.5 to 0.5" in text


def test_a_step_of_ours_lasts_from_record_to_record() -> None:
    phases = {"data": 0.1, "rollout": 0.2, "score": 0.3, "reward": 0.1, "update": 0.5}
    times = {f"time/{name}_s": seconds for name, seconds in phases.items()}
    steps = [{"step": i, "time_s": 2.0 + 1.5 * i, "rollout/length_mean": 12.0, **times} for i in (1, 2)]
    found = batches([{"step": 0, "time_s": 2.0}, *steps, {"step": 2, "time_s": 9.0}])
    assert [batch["seconds"] for batch in found] == [1.5, 1.5]
    assert found[0]["score_s"] == pytest.approx(0.4) and found[0]["response_tokens"] == 12.0


def test_the_clock_splits_a_batch_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    watch = clock.Clock()
    for _ in range(2):
        watch.step_begins()
        watch.batch_begins()
        now += 2.0
        watch.rolled_out(2.0, 26.0, 12.0)
        now += 1.0
        watch.made()
        now += 4.0
        watch.step_ended()
        now += 0.5
        watch.step_begins()
        now += 4.0
        watch.step_ended()
        now += 0.5
    watch.ended()
    first, second = watch.batches
    assert first == {
        "seconds": 12.0, "data_s": 1.0, "rollout_s": 2.0, "score_s": 1.0, "update_s": 8.0,
        "prompt_tokens": 26.0, "response_tokens": 12.0,
    }  # fmt: skip
    assert second["update_s"] == 8.0


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_a_configuration_with_the_attention_term(name: str) -> None:
    spread = compose(overrides(WORKLOADS[name], FULL, "ray", 1))
    assert spread.rollout.workers == spread.learner.world_size == 2
    config = compose(overrides(WORKLOADS[name], FULL, "local", 2))
    assert config.algorithm.attention.weight == 1.0 and not config.needs_reference
    assert config.algorithm.steps == FULL.batches + 1
    assert (config.rollout.max_new_tokens, config.learner.learning_rate) == (FULL.new_tokens, FULL.learning_rate)


def test_no_response_of_the_random_model_ends_by_itself_and_a_video_becomes_pictures(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model", hidden=32)
    config = compose(overrides(WORKLOADS["videos"], DRY, "local", 1))
    exported = export(config, model, tmp_path / "questions", 2)
    ends = json.loads((model / "config.json").read_text())["text_config"]["eos_token_id"]
    assert ends in exported.banned_ids
    assert json.loads((model / "generation_config.json").read_text())["eos_token_id"] == ends
    first, _ = map(json.loads, exported.file.read_text().splitlines())
    assert len(first["images"]) == 16 and all((exported.file.parent / name).is_file() for name in first["images"])
    assert (exported.visual_tokens, exported.markers) == (64, 30)


def test_other_prompts_than_ours_are_no_comparison(tmp_path: Path) -> None:
    exported = Exported(tmp_path, 80.0, 64.0, 30.0, ())
    check_prompts([{"prompt_tokens": 109.0}, {"prompt_tokens": 111.0}], exported)
    with pytest.raises(PeerError, match=r"prompts have 80\.000 tokens on average, and should have 110\.000"):
        check_prompts([{"prompt_tokens": 80.0}], exported)


def test_the_reward_is_a_signal_of_an_installed_package(tmp_path: Path) -> None:
    (found,) = distributions(path=[str(reward.register(tmp_path))])
    (entry,) = found.entry_points
    assert (entry.group, entry.name) == ("ral_system.reward_signals", reward.SIGNAL)
    assert entry.load() is reward.signal
    assert reward.even_words("red circle a1 up !") == 0.6 and reward.even_words("") == 0.0


def test_packages_are_pinned_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = REQUIREMENTS.read_text()
    assert all(len(line.split("==")) == 2 for line in pinned(wanted)) and "trl==1.16" in wanted
    (tmp_path / ".installed").write_text(wanted)
    monkeypatch.setattr(environment, "failure", lambda command: pytest.fail("installed again"))
    assert prepare(tmp_path, pytest.fail) == tmp_path


def test_without_a_network_it_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "WARNING: Retrying\nERROR: No matching distribution found for trl==1.16.0\n\n"
    monkeypatch.setattr(environment, "failure", lambda command: telling_line(output))
    with pytest.raises(
        PeerError, match=r"^TRL was not installed: No matching distribution found for trl.*PIP_INDEX_URL"
    ):
        prepare(tmp_path / "packages", lambda line: None)


def test_a_failing_side_names_its_log(tmp_path: Path) -> None:
    exported = Exported(tmp_path / "questions.jsonl", 0.0, 0.0, 0.0, ())
    missing = tmp_path / "none"
    with pytest.raises(PeerError, match=r"ral-train, cluster=local failed: start_model=.*output.log has its output"):
        our_side.run_ours(
            WORKLOADS["boards"], DRY, exported, cluster="local", threads=1, model=missing, folder=tmp_path
        )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rounds", "0"], "'0' is not a positive number"),
        (["--workloads", "audio"], "invalid choice: 'audio'"),
        (["--out", "/dev/null/peers.json"], "--out /dev/null/peers.json: /dev/null is not a folder"),
        (["--peer-micro-batch", "12"], "--peer-micro-batch 12 does not divide an update's 32"),
        (["--model", os.devnull], "is not a model folder: it has no config.json"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
