import sys

import pytest

import ral_system
from ral_system.launch.train import main


@pytest.mark.parametrize("arguments", [["--version"], ["experiment=smoke", "--version"]])
def test_the_version_is_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ral-train", *arguments])
    main()
    assert capsys.readouterr().out == f"ral-system {ral_system.__version__}\n"
