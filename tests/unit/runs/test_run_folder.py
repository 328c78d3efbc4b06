import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from ral_system.config.commands import TrainConfig
from ral_system.errors import CheckpointError, ConfigError, SetupError
from ral_system.runs.folder import RunFolder, differing_fields

MakeConfig = Callable[..., TrainConfig]


def opened(folder: RunFolder, config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Open a folder as `ral-train` does when there is something to do; return the fields that it says have changed."""
    folder.open(config)
    return folder.record(config)


def test_fields_that_differ_are_found_by_path() -> None:
    old = {"a": 1, "b": {"c": 2, "d": {"e": [1, 2]}}, "gone": None}
    new = {"a": 1, "b": {"c": 3, "d": {"e": [1, 3]}}, "added": 4}
    assert differing_fields(old, new, {}) == [("added", None, 4), ("b.c", 2, 3), ("b.d.e", [1, 2], [1, 3])]
    assert differing_fields(old, old, {}) == []


def test_fields_that_may_change_are_left_out_with_all_below_them() -> None:
    old = {"algorithm": {"steps": 1, "kl": 1}, "cluster": {"kind": "ray"}, "steps": 1}
    new = {"algorithm": {"steps": 2, "kl": 2}, "cluster": {"kind": "local"}, "steps": 2}
    found = differing_fields(old, new, {"algorithm.steps": True, "algorithm.kl": False, "cluster": True})
    assert [path for path, _, _ in found] == ["algorithm.kl", "steps"]


def test_a_field_that_a_later_version_added_does_not_bind_but_an_entry_that_somebody_added_does() -> None:
    declared = dict.fromkeys(("reward", "reward.kinds", "reward.signals", "data", "data.sources"), False)
    old = {"reward": {"kinds": {}}, "data": {"sources": {}}}
    assert differing_fields(old, {"reward": {"kinds": {}, "signals": {}}, "data": {"sources": {}}}, declared) == []
    new = {"reward": {"kinds": {"a": "ocr"}}, "data": {"sources": {"more": {}}}}
    assert [path for path, _, _ in differing_fields(old, new, declared)] == ["data.sources.more", "reward.kinds.a"]
    signals = [{"reward": {"signals": entries}} for entries in ({}, {"brevity": 0.1})]
    assert [path for path, _, _ in differing_fields(*signals, declared)] == ["reward.signals.brevity"]


def test_groups_that_do_not_bind_are_left_out() -> None:
    old, new = ({"data": {"seed": i, "synthesis": i}, "synthesis": {"rows": i}, "sft": i} for i in (1, 2))
    found = differing_fields(old, new, {"synthesis.rows": True}, ("data", "synthesis"))
    assert [path for path, _, _ in found] == ["data.seed", "data.synthesis"]


def test_a_run_is_continued_with_the_same_config(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    opened(folder, make_config())
    assert TrainConfig.model_validate(yaml.safe_load(folder.config.read_text())) == make_config()
    opened(folder, make_config())
    folder.open(make_config("algorithm.steps=99"))
    assert yaml.safe_load(folder.config.read_text())["algorithm"]["steps"] == 99  # nothing was done with the old ones
    folder.root.joinpath("metrics.jsonl").write_text('{"stage": "rl", "step": 7, "time_s": 1.0}\n')
    folder.open(make_config("algorithm.steps=100"))
    assert yaml.safe_load(folder.config.read_text())["algorithm"]["steps"] == 99  # a start may still be refused
    assert folder.record(make_config("algorithm.steps=100")) == [("algorithm.steps", 99, 100)]
    assert yaml.safe_load(folder.config.read_text())["algorithm"]["steps"] == 100


def test_what_a_failure_makes_one_change_is_allowed_and_remembered(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    opened(folder, make_config("learner.max_tokens=4096"))
    folder.root.joinpath("metrics.jsonl").write_text('{"stage": "rl", "step": 7, "time_s": 1.0}\n')
    smaller = [
        "learner.max_tokens=2048",
        "rollout.max_sequences=8",
        "reward.workers=3",
        "rollout.log_prob_gate.mean=0.1",
    ]
    assert opened(folder, make_config(*smaller)) == [
        ("learner.max_tokens", 4096, 2048),
        ("reward.workers", 1, 3),
        ("rollout.log_prob_gate.mean", None, 0.1),
        ("rollout.max_sequences", 64, 8),
    ]
    assert opened(folder, make_config(*smaller)) == []
    opened(folder, make_config(*smaller, "learner.max_tokens=1024"))
    first, second = map(json.loads, (folder.root / "changes.jsonl").read_text().splitlines())
    assert first["changed"]["learner.max_tokens"] == [4096, 2048] and len(first["changed"]) == 4
    assert second["changed"] == {"learner.max_tokens": [2048, 1024]}
    assert (first["stage"], first["step"]) == ("rl", 7)
    assert datetime.fromisoformat(first["time"]).tzinfo is not None


@pytest.mark.parametrize(
    ("result", "overrides", "finished"),
    [
        ({"steps": 600, "held_out_score": 0.7}, [], True),
        ({"steps": 600, "held_out_score": 0.7}, ["sft.max_steps=700"], False),
        ({"steps": 400, "held_out_score": 0.9}, ["sft.max_steps=700"], True),  # good enough
        ({"steps": 400, "held_out_score": 0.9}, ["sft.stop_at=0.95"], False),
    ],
)
def test_a_stage_is_finished_while_no_more_of_it_is_asked_for(
    make_config: MakeConfig, tmp_path: Path, result: dict[str, float], overrides: list[str], finished: bool
) -> None:
    folder, config = RunFolder(tmp_path), make_config(*overrides)
    assert not folder.finished("sft", config.of_stage("sft"))
    folder.complete("sft", result, lambda path: None)
    (folder.checkpoints / "sft" / f"step_{result['steps']:06d}").mkdir(parents=True)
    assert folder.finished("sft", config.of_stage("sft")) == finished
    folder.complete("rl", {"steps": config.algorithm.steps}, lambda path: None)
    assert folder.finished("rl", config.of_stage("rl"))
    more = make_config("algorithm.steps=999")
    with pytest.raises(ConfigError, match=r"its last checkpoint is gone; set another name and start_model=.*/model$"):
        folder.finished("rl", more.of_stage("rl"))
    (folder.checkpoints / "rl" / f"step_{config.algorithm.steps:06d}").mkdir(parents=True)
    assert not folder.finished("rl", more.of_stage("rl"))
    if finished:
        assert folder.finished("sft", config.of_stage("sft"))
    else:
        with pytest.raises(ConfigError, match=r"sft in .* ended at step \d+, and rl started from its model"):
            folder.finished("sft", config.of_stage("sft"))


@pytest.mark.parametrize(("stage", "field"), [("rl", "algorithm.steps"), ("sft", "sft.max_steps")])
def test_fewer_steps_than_were_made_are_refused(
    make_config: MakeConfig, tmp_path: Path, stage: Any, field: str
) -> None:
    folder = RunFolder(tmp_path)
    (folder.checkpoints / stage / "step_000008").mkdir(parents=True)
    assert not folder.finished(stage, make_config(f"{field}=8").of_stage(stage))
    with pytest.raises(ConfigError, match=rf"{field}=3: .* is already at step 8; set it to 8 to end there, or higher"):
        folder.finished(stage, make_config(f"{field}=3").of_stage(stage))


def test_a_run_is_not_continued_with_another_config(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    opened(folder, make_config())
    folder.complete("perceive", {"steps": 1}, lambda path: None)
    before = folder.config.read_text()
    with pytest.raises(
        ConfigError, match=r"made with algorithm.policy_loss.clip_low=0.2, now 0.3 \(and 1 more\); set anoth"
    ):
        folder.open(make_config("algorithm.policy_loss.clip_low=0.3", "data.seed=5"))
    with pytest.raises(ConfigError, match="holds a run already; set another name, or resume=auto"):
        folder.open(make_config("resume=never"))
    assert folder.config.read_text() == before
    RunFolder(tmp_path / "new").open(make_config("resume=never"))


def test_what_other_commands_read_does_not_bind_a_folder_that_has_it(make_config: MakeConfig, tmp_path: Path) -> None:
    """Earlier versions wrote every group of every command."""
    folder, config = RunFolder(tmp_path / "run"), make_config()
    opened(folder, config)
    folder.complete("perceive", {"steps": 1}, lambda path: None)
    recorded = config.model_dump(mode="json")
    recorded |= {"intervention": {"image": 0.1}, "evaluation": recorded["evaluation"] | {"samples": 3}}
    folder.config.write_text(yaml.safe_dump(recorded | {"synthesis": {"rows": 1}}))
    assert opened(folder, config) == []
    assert yaml.safe_load(folder.config.read_text()) == config.model_dump(mode="json")


def test_a_start_that_failed_before_its_first_step_does_not_bind_the_next(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    opened(folder, make_config("model.tiny.hidden=64"))
    folder.start_model.mkdir(parents=True)
    (folder.root / "metrics.jsonl").touch()
    opened(folder, make_config("model.tiny.hidden=128"))
    assert not folder.start_model.exists()  # it had the other width
    (folder.root / "metrics.jsonl").write_text("a line\n")
    with pytest.raises(ConfigError, match=r"made with model.tiny.hidden=128, now 64"):
        folder.open(make_config("model.tiny.hidden=64"))


def test_a_folder_that_cannot_be_written_is_one_line(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"cannot be written \(Not a directory: .*; set runs_dir") as caught:
        RunFolder(tmp_path / "file" / "run").open(make_config())
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_write_one_run(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(make_config().model_dump_json())
    code = f"""
import pathlib, time
from ral_system.config.commands import TrainConfig
from ral_system.runs.folder import RunFolder
folder = RunFolder(pathlib.Path({str(tmp_path / "run")!r}))
folder.open(TrainConfig.model_validate_json(pathlib.Path({str(tmp_path / "config.json")!r}).read_text()))
print("open", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(SetupError, match="is in use by another process; wait for it, stop it, or set another name"):
            folder.open(make_config())
    finally:
        other.kill()
        other.wait(timeout=10)
    folder.open(make_config())  # a killed process leaves no lock behind


def test_a_stage_is_complete_all_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.result("sft") is None

    def crash(path: Path) -> None:
        (path / "weights").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        folder.complete("sft", {"steps": 1}, crash)
    assert folder.result("sft") is None
    folder.complete("sft", {"steps": 2}, lambda path: (path / "config.json").write_text("{}") and None)
    assert folder.result("sft") == {"steps": 2}
    assert sorted(f.name for f in folder.model("sft").iterdir()) == ["config.json", "stage.json"]
    assert folder.model("rl") == tmp_path / "model"


def test_a_damaged_record_of_a_stage_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.complete("sft", {"steps": 2}, lambda path: None)
    (file := folder.model("sft") / "stage.json").write_text('{"steps"')
    with pytest.raises(CheckpointError, match=r"stage.json is damaged \(.*\); remove .*/models/sft to train its stage"):
        folder.result("sft")
    file.unlink()
    assert folder.result("sft") is None


def test_prepared_files_are_linked_in_and_may_not_change_under_a_run(tmp_path: Path) -> None:
    one, two = tmp_path / ".prepared" / "one", tmp_path / ".prepared" / "two"
    for prepared in (one, two):
        (prepared / "media").mkdir(parents=True)
    folder = RunFolder(tmp_path / "run")
    folder.media.mkdir(parents=True)  # of generated data, by a start without work
    folder.use_data(one)
    assert folder.data.resolve() == one and folder.media.resolve() == one / "media"
    assert not folder.data.readlink().is_absolute()  # so that the folder of all runs can be moved
    folder.use_data(two)  # nothing was done yet
    assert folder.media.resolve() == two / "media"
    (folder.root / "metrics.jsonl").write_text("{}\n")
    folder.use_data(two)
    with pytest.raises(ConfigError, match="the settings of data have changed; set another name"):
        folder.use_data(one)
    generated = RunFolder(tmp_path / "generated")
    generated.media.mkdir(parents=True)
    (generated.root / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="was made with generated data; set another name"):
        generated.use_data(one)
    assert generated.media.is_dir() and not generated.media.is_symlink()


def test_a_run_of_before_a_key_was_replaced_continues(make_config: MakeConfig, tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "run"), make_config("algorithm.steps=99")
    opened(folder, config)
    earlier = yaml.safe_load(folder.config.read_text())
    del earlier["learner"]["max_tokens"], earlier["teacher"]["max_tokens"], earlier["algorithm"]["deal"]
    earlier["learner"]["micro_batch"], earlier["teacher"]["micro_batch"] = 16, 8
    folder.config.write_text(yaml.safe_dump(earlier))
    folder.root.joinpath("metrics.jsonl").write_text('{"stage": "rl", "step": 7, "time_s": 1.0}\n')
    assert opened(folder, config) == []
    earlier["learner"]["unheard_of"] = 1
    folder.config.write_text(yaml.safe_dump(earlier))
    with pytest.raises(ConfigError, match=r"learner\.unheard_of"):
        folder.open(config)
