"""Errors of the command line for overrides that Hydra refuses."""

import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ral_system.config.commands import TrainConfig
from ral_system.launch.mistakes import one_line


def refusal(monkeypatch: pytest.MonkeyPatch, override: str) -> str:
    monkeypatch.setattr(sys, "argv", ["/bin/ral-train", "experiment=smoke", override])
    with (
        initialize_config_module("ral_system.conf", version_base=None),
        pytest.raises((HydraException, OmegaConfBaseException)) as refused,
    ):
        compose("config", [override])
    return one_line(refused.value, TrainConfig)
