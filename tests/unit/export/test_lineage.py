import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.errors import ConfigError
from ral_system.export.lineage import Base, Lineage, lineage
from tests.unit.export.exported import end_stage


def stages(found: Lineage) -> list[tuple[str, Stage]]:
    return [(trained.run.name, trained.stage) for trained in found.stages]


def test_stages_of_one_run_go_back_to_its_new_model(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    run, config = tmp_path / "run", make_config()
    end_stage(run, config, "perceive", "models/start")
    end_stage(run, config, "sft", "models/perceive")
    assert stages(lineage(run)) == [("run", "perceive"), ("run", "sft")]
    end_stage(run, config, "rl", "models/sft")
    found = lineage(run)
    assert stages(found) == [("run", "perceive"), ("run", "sft"), ("run", "rl")]
    assert found.base == Base("random weights") and not found.base.on_hub
    assert stages(lineage(run, "perceive")) == [("run", "perceive")]


def test_a_model_of_another_run_brings_that_runs_stages(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config()
    hub = tmp_path / "hub" / "models--Qwen--Qwen2.5-VL-3B" / "snapshots" / "66285546d2b8"
    cold = end_stage(tmp_path / "cold", config, "sft", hub)
    first = end_stage(tmp_path / "first", config, "rl", cold)
    end_stage(tmp_path / "second", config, "rl", first)
    found = lineage(tmp_path / "second")
    assert stages(found) == [("cold", "sft"), ("first", "rl"), ("second", "rl")]
    assert found.base == Base("Qwen/Qwen2.5-VL-3B", "66285546d2b8") and found.base.on_hub
    shutil.rmtree(tmp_path / "cold")
    found = lineage(tmp_path / "second")
    assert stages(found) == [("first", "rl"), ("second", "rl")] and found.base == Base("a local model")


def test_a_name_that_was_used_again_does_not_go_round_for_ever(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config()
    end_stage(tmp_path / "a", config, "rl", tmp_path / "b" / "model")
    end_stage(tmp_path / "b", config, "rl", tmp_path / "a" / "model")
    assert stages(lineage(tmp_path / "a")) == [("b", "rl"), ("a", "rl")]


def test_a_run_that_did_not_record_its_start_ends_there(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    end_stage(tmp_path / "old", make_config(), "sft", None)
    assert stages(lineage(tmp_path / "old")) == [("old", "sft")] and lineage(tmp_path / "old").base is None


def test_what_cannot_be_exported_is_refused_in_one_line(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^.*empty has no config.yaml; give the folder of a run"):
        lineage(tmp_path / "empty")
    end_stage(tmp_path / "run", make_config(), "sft", "models/start")
    with pytest.raises(ConfigError, match=r"^--stage rl: not complete in .*run; complete: sft$"):
        lineage(tmp_path / "run", "rl")
    shutil.rmtree(tmp_path / "run" / "models")
    with pytest.raises(ConfigError, match=r"run: no stage is complete; continue the run, or end it here"):
        lineage(tmp_path / "run")
