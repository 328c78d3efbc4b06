import json
import subprocess
import sys
from pathlib import Path

import pytest

import ral_system
from ral_system import versions
from ral_system.versions import command_line, package_versions, this_command


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(versions, "_CHECKOUT", tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_and_whether_files_differ_from_it_are_known_in_a_checkout(checkout: Path) -> None:
    git(checkout, "init", "-q")
    (checkout / "a.py").write_text("1\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    (checkout / "runs").write_text("untracked\n")
    record = this_command()
    assert (record["git_commit"], record["git_dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "a.py").write_text("2\n")
    assert this_command()["git_dirty"] is True


def test_an_installed_package_has_no_commit(checkout: Path) -> None:
    record = this_command()
    assert (record["git_commit"], record["git_dirty"]) == (None, None)
    assert json.loads(json.dumps(record)) == record


def test_versions_of_what_is_installed() -> None:
    found = package_versions()
    assert found["ral_system"] == ral_system.__version__
    assert {"python", "torch", "transformers", "wandb"} <= found.keys()
    assert all(version[0].isdigit() for version in found.values())


def test_the_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ral-train", "experiment=smoke", "rollout.tags=[a, b]", "api_key_env=K"])
    assert this_command()["command"] == "ral-train experiment=smoke 'rollout.tags=[a, b]' api_key_env=K"


@pytest.mark.parametrize(
    "argument",
    [
        "+hydra.job.env_set.WANDB_API_KEY=s3cret",
        "hydra.job.env_set={HF_TOKEN: s3cret,A: b}",
        "hydra.job.env_set={'HF_TOKEN': 's3cret'}",
        "synthesis.describer.endpoint=https://me:s3cret@host/v1",
        "x.password=s3cret",
    ],
)
def test_secrets_are_not_recorded(argument: str) -> None:
    assert "s3cret" not in command_line(["ral-train", argument])
    assert "***" in command_line(["ral-train", argument])


@pytest.mark.parametrize(
    "argument", ["rollout.max_new_tokens=7", "algorithm.distillation.tokens.weight=1", "a.url=http://h/v1"]
)
def test_other_settings_are_recorded_as_they_are(argument: str) -> None:
    assert command_line(["ral-train", argument]) == f"ral-train {argument}"
