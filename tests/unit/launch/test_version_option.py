import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import ral_system

COMMANDS = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize(
    "command", [*([name, "--version"] for name in COMMANDS), ["ral-train", "experiment=smoke", "--version"]]
)
def test_the_version_is_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    module, _, main = COMMANDS[command[0]].partition(":")
    monkeypatch.setattr(sys, "argv", command)
    try:
        getattr(import_module(module), main)()
    except SystemExit as ended:
        assert ended.code == 0
    assert capsys.readouterr().out == f"ral-system {ral_system.__version__}\n"
