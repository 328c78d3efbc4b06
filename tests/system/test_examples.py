"""Every package in examples/ works from outside the library, as its README says."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from ral_system.rewards.judge import judge
from ral_system.rewards.response import Response
from tests.examples import EXAMPLES, installed
from tests.unit.rewards.settings import reward_config

pytestmark = pytest.mark.system
LOCAL = ("cluster=local", "cluster.threads_per_process=1")


@pytest.fixture
def run(commands, left, tmp_path: Path):
    """Run `ral-train` with the overlay of an example, in its folder; what the run left."""

    def ran(name: str, *overrides: str, **environment: str):
        folder = EXAMPLES / name
        done = commands(
            "ral-train", "--config-dir", str(folder), f"experiment={name}", *LOCAL, f"runs_dir={tmp_path}", *overrides,
            cwd=folder, **environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return left(tmp_path / name)

    return ran


def test_the_guide_shows_a_whole_package(commands, left, uninterrupted, tmp_path: Path) -> None:
    """The files in docs/extending.md can be installed, and their signal pays in a run."""
    guide = (EXAMPLES.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", guide, re.DOTALL):
        (package / name).write_text(text, encoding="utf-8")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([*install, str(site), str(package)], check=True, timeout=120)
    (line,) = re.findall("^ +pip install .* && ral-train (.*)$", guide, re.MULTILINE)
    short = ("experiment=smoke", *LOCAL, f"start_model={uninterrupted.folder / 'model'}", "algorithm.steps=2")
    done = commands("ral-rl", *shlex.split(line), *short, cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    steps = left(tmp_path / "runs" / "smoke").rl_steps()
    assert len(steps) == 2
    assert all(0 < step["reward/concise"] <= 1 and step["reward/errors"] == 0 for step in steps)


def test_half_an_answer_is_worth_half_and_few_words_are_worth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "own_reward")
    own_reward = import_module("own_reward")
    config = reward_config(verifier="function", function="own_reward:half_right")
    answers = {"b3": 1.0, "b4": 0.5, "c4": 0.0}
    for given, worth in answers.items():
        response = Response(f"<answer> {given} </answer>", "b3", "position", "answer_only")
        assert judge(response, config)["correctness"] == own_reward.nearly(given, "b3", config) == worth
        assert own_reward.brevity(response, config) == pytest.approx(1 / 3)
    assert own_reward.brevity(replace(response, text=""), config) == 1


def test_own_reward(run, tmp_path: Path) -> None:
    found = run("own_reward", "stages=[perceive,rl]", PYTHONPATH=installed("own_reward", tmp_path))
    steps = found.rl_steps()
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["reward/errors"] == 0 for step in steps)
    assert all(0 < step["reward/brevity"] <= 1 for step in steps)
    assert "  verifier: nearly\n" in (found.folder / "config.yaml").read_text()


@pytest.mark.long
def test_a_reward_function_without_a_package(run) -> None:
    function = ("reward.verifier=function", "reward.function=own_reward:half_right", "~reward.signals.brevity")
    steps = run("own_reward", "stages=[perceive,rl]", *function).rl_steps()
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["reward/errors"] == 0 and "reward/brevity" not in step for step in steps)


def test_own_divergence(run, with_signal, tmp_path: Path) -> None:
    """The first update is at the old policy, later ones are not."""
    learns = [override for override in with_signal if override.startswith(("algorithm=", "sft."))]
    found = run("own_divergence", *learns, PYTHONPATH=installed("own_divergence", tmp_path))
    assert all(step["attention/divergence_first_update"] <= 1e-9 for step in found.rl_steps())
    assert any(step["attention/divergence"] > 0 for step in found.rl_steps())


def test_own_policy_loss(run, with_signal, tmp_path: Path) -> None:
    learns = [override for override in with_signal if override.startswith(("algorithm=", "sft."))]
    path = installed("own_policy_loss", tmp_path)
    found = run("own_policy_loss", "algorithm.policy_loss.width=0.1", *learns, PYTHONPATH=path)
    assert "policy_loss:\n    name: soft\n    width: 0.1\n" in (found.folder / "config.yaml").read_text()
    assert any(step["learner/grad_norm"] > 0 for step in found.rl_steps())


def test_own_data(run) -> None:
    found = run("own_data")
    assert {line["stage"] for line in found.lines()} == {"sft", "rl"}
    assert len(found.rl_steps()) == 4
    rows = (found.folder / "data" / "questions.jsonl").read_text().splitlines()
    assert len(rows) == 12 and not (found.folder / "data" / "quarantine.jsonl").read_text()


def test_own_weight_transfer(run, tmp_path: Path) -> None:
    found = run("own_weight_transfer", PYTHONPATH=installed("own_weight_transfer", tmp_path))
    assert found.summary()["weight_tensors_verified"] > 0
    assert found.summary()["weight_checksum_failures"] == 0


def test_own_family(run, tmp_path: Path) -> None:
    path = installed("own_family", tmp_path)
    make = [sys.executable, str(EXAMPLES / "own_family" / "make_model.py"), str(tmp_path / "model")]
    subprocess.run(make, check=True, timeout=120, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path})
    found = run("own_family", f"start_model={tmp_path / 'model'}", PYTHONPATH=path)
    assert len(found.rl_steps()) == 4
    assert found.summary()["media_tokens_sampled"] == 0
