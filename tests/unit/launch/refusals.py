"""Errors of the command line for overrides that Hydra refuses."""

import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ral_system.config.commands import TrainConfig
from ral_system.launch.mistakes import one_line


def refusal(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    monkeypatch.setattr(sys, "argv", ["/bin/ral-train", "experiment=smoke", *overrides])
    with (
        initialize_config_module("ral_system.conf", version_base=None),
        pytest.raises((HydraException, OmegaConfBaseException, ValueError)) as refused,
    ):
        compose("config", list(overrides))
    return one_line(refused.value, TrainConfig)
