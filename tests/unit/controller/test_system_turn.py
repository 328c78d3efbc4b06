"""A reward that needs a system turn, and templates that add one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.controller.start import run_stage
from ral_system.errors import ConfigError
from ral_system.runs.folder import RunFolder


class RolesAreWantedError(Exception):
    """What was checked before is in order."""


def start_roles(*_: Any) -> NoReturn:
    raise RolesAreWantedError


def test_the_visual_reward_needs_a_system_turn_from_the_configuration_or_the_template(
    tiny_model: Path, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(tiny_model, own)
    template = (own / "chat_template.jinja").read_text()
    turn = "{% if messages[0]['role'] != 'system' %}<|im_start|>system answer<|im_end|>{% endif %}"
    (own / "chat_template.jinja").write_text(turn + template)

    def begin(model: Path, *overrides: str) -> None:
        config = make_config("reward.visual.weight=0.3", *overrides)
        run_stage(config, RunFolder(tmp_path / "run"), "perceive", model, start_roles, lambda: None, ["perceive"])

    says = "^reward.visual.weight=0.3 compares .* data.system_prompt is empty, and the model's chat template adds none;"
    with pytest.raises(ConfigError, match=says):
        begin(tiny_model, "data.system_prompt=''")
    for model, given in ((tiny_model, "answer"), (own, "''")):
        with pytest.raises(RolesAreWantedError):
            begin(model, f"data.system_prompt={given}")
    with pytest.raises(RolesAreWantedError):
        begin(tiny_model, "data.system_prompt=''", "reward.visual.form=laser_pays_length")
