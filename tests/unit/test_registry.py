"""What is chosen by name: this package's own, and what an installed package adds by an entry point."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ral_system.algorithms.divergence_sum import divergence
from ral_system.config.commands import TrainConfig
from ral_system.config.known import read_by
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError
from ral_system.registry import (
    BENCHMARKS,
    DIVERGENCES,
    FAMILIES,
    POLICY_LOSSES,
    REWARD_SIGNALS,
    VERIFIERS,
    WEIGHT_TRANSFERS,
    Registry,
)
from ral_system.report.load import RunData
from ral_system.report.sections import sections
from ral_system.rewards.pool import RewardPool
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import QuestionSettings
from ral_system.types import Completion, FinishReason, Prompt, View
from tests.composed import compose_container
from tests.unit.launch.refusals import refusal
from tests.unit.rewards.settings import reward_config

ALL = (BENCHMARKS, DIVERGENCES, FAMILIES, POLICY_LOSSES, REWARD_SIGNALS, VERIFIERS, WEIGHT_TRANSFERS)
PLUGIN = """
from typing import Annotated, Literal

from ral_system.algorithms.divergences import Divergence
from ral_system.algorithms.policy_losses.inputs import PolicyLoss, TokenLoss
from ral_system.config.base import PositiveFloat, Resumable
from ral_system.config.policy_loss import PolicyLossGroup

SQUARED = Divergence(lambda p, q: ((p - q).square(), 2 * (p - q)), title="Squared distance", unit="nats")


class Settings(PolicyLossGroup):
    name: Literal["scaled"]
    scale: PositiveFloat
    ceiling: Annotated[PositiveFloat | None, Resumable] = None


SCALED = PolicyLoss(Settings, lambda x, settings: TokenLoss(-settings.scale * x.log_probs, x.mask & False))


def last_word(given, reference, config):
    return float(given.split()[-1:] == reference.split()[-1:])


def brevity(response, config):
    return 1 / len(response.text.split())


class Two:
    ABOUT, FILES = "two questions", "two.json"
"""
ENTRIES = """
[ral_system.divergences]
squared = plugin_of_tests:SQUARED
wrong = plugin_of_tests:Two
[ral_system.policy_losses]
scaled = plugin_of_tests:SCALED
[ral_system.verifiers]
last_word = plugin_of_tests:last_word
[ral_system.reward_signals]
brevity = plugin_of_tests:brevity
[ral_system.benchmarks]
two = plugin_of_tests:Two
broken = plugin_of_tests:Three
"""


def install(site: Path, name: str, entries: str) -> None:
    info = site / f"{name.replace('-', '_')}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(entries)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_tests.py").write_text(PLUGIN)
    install(tmp_path, "plugin-of-tests", ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_of_tests", raising=False)
    for registry in ALL:
        monkeypatch.setitem(vars(registry), "_added", {})  # so that what is read below is forgotten after the test
        del vars(registry)["_added"]


@pytest.fixture
def defaults() -> dict[str, Any]:
    return read_by(TrainConfig, compose_container("cluster=local"))


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.group)
def test_everything_that_is_registered_is_there(registry: Registry) -> None:
    assert all(registry.get(name) is not None and name in registry for name in registry.names)


def test_an_unknown_name_is_answered_with_the_closest_and_all_others() -> None:
    registry = Registry("ral_system.tests", "thing", {"circle": "ral_system.types:View", "square": "ral_system.types"})
    assert registry.get("circle") is View and registry.get("square").View is View
    assert registry.names == ("circle", "square") and "triangle" not in registry and 3 not in registry
    with pytest.raises(ConfigError, match=r"^'triangle': no such thing; choose one of circle, square$"):
        registry.get("triangle")
    assert registry.unknown("Circel") == "no such thing; did you mean circle? There are circle, square"


def test_what_cannot_be_imported_is_named(plugin: None) -> None:
    with pytest.raises(
        ConfigError, match=r"^benchmark 'broken' is registered as plugin_of_tests:Three, which cannot be"
    ):
        BENCHMARKS.get("broken")


def test_what_is_of_the_wrong_kind_is_named(plugin: None) -> None:
    with pytest.raises(ConfigError, match=r"'wrong' is registered as plugin_of_tests:Two, which is a type; "):
        DIVERGENCES.get("wrong")


def test_a_name_that_two_packages_register_is_refused_with_both(
    plugin: None, tmp_path: Path, defaults: dict[str, Any]
) -> None:
    install(tmp_path, "Another_plugin", "[ral_system.policy_losses]\nscaled = plugin_of_tests:SCALED\n")
    install(tmp_path, "one-more", "[ral_system.verifiers]\nlast_word = plugin_of_tests:brevity\nexact = nothing:here\n")
    both = "each register a {} of this name; uninstall all of these packages but one"
    defaults["reward"]["verifier"] = "last_word"
    assert loss_refused(defaults, name="scaled", scale=1) == (
        f"algorithm.policy_loss.name=scaled: Another_plugin and plugin-of-tests {both.format('policy loss')}; "
        f"reward.verifier=last_word: one-more and plugin-of-tests {both.format('verifier')}"
    )
    assert DIVERGENCES.get("squared") and VERIFIERS.get("exact") and VERIFIERS.names[-1] == "last_word"


def test_an_installed_package_adds_a_divergence(plugin: None, make_config: Callable[..., TrainConfig]) -> None:
    assert make_config("algorithm.attention.divergence=squared").algorithm.attention.divergence == "squared"
    p = torch.tensor([0.75, 0.25], requires_grad=True)
    found = divergence(p, torch.tensor([0.5, 0.5]), "squared")
    found.backward()
    assert found.item() == 0.125 and p.grad is not None and p.grad.tolist() == [0.5, -0.5]
    recorded = {"algorithm": {"attention": {"divergence": "squared"}}}
    rows = [{"stage": "rl", "step": 1, "attention/divergence_positive": 0.5}]
    run = RunData("name", rows, [], {}, recorded, "", [])
    (chart,) = (chart for _, charts in sections(run) for chart in charts if chart.id == "attention-divergence")
    assert (chart.unit, chart.note.partition(" between ")[0]) == ("nats", "Squared distance")


def test_an_installed_package_adds_a_policy_loss_with_settings_of_its_own(
    plugin: None, defaults: dict[str, Any]
) -> None:
    defaults["algorithm"]["policy_loss"] = {"name": "scaled", "scale": 3}
    config = parse_config(defaults, TrainConfig)
    settings = config.algorithm.policy_loss
    assert settings.model_dump() == {"name": "scaled", "scale": 3.0, "ceiling": None}
    assert config.model_dump(mode="json")["algorithm"]["policy_loss"] == settings.model_dump()
    assert POLICY_LOSSES.get("scaled").settings is type(settings)
    assert loss_refused(defaults, name="scaled", scale=0, foo=1) == (
        "algorithm.policy_loss.scale=0: out of range; set it above 0; "
        "algorithm.policy_loss.foo: unknown key; remove it; --cfg job shows the known ones"
    )


def loss_refused(defaults: dict[str, Any], **settings: Any) -> str:
    defaults["algorithm"]["policy_loss"] = settings
    with pytest.raises(ConfigError) as refused:
        parse_config(defaults, TrainConfig)
    return str(refused.value)


def test_a_misspelt_or_misplaced_setting_of_a_package_is_answered_as_one_of_this_package(
    plugin: None, defaults: dict[str, Any]
) -> None:
    said = loss_refused(defaults, name="scaled", scale=1, cieling=2)
    assert said == "algorithm.policy_loss.cieling: unknown key; remove it; did you mean algorithm.policy_loss.ceiling?"
    said = loss_refused(defaults, name="scaled", scale=1, tau_positive=2)
    assert said == (
        "algorithm.policy_loss.tau_positive=2: algorithm.policy_loss.name=scaled has no such setting; remove it "
        "(~algorithm.policy_loss.tau_positive), or choose algorithm/policy_loss=scaled as a group, without it, or "
        "algorithm/policy_loss=sapo, which has it"
    )
    said = loss_refused(defaults, name="reinforce", ratio=True, ceiling=2)
    assert said.endswith(" without it, or algorithm/policy_loss=scaled, which has it")
    assert loss_refused(defaults, name="scaled") == "algorithm.policy_loss.scale: missing; set it in the config"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algorithm.policy_loss.cieling=2", "unknown key; did you mean algorithm.policy_loss.ceiling=2?"),
        ("algorithm.policy_loss.ceiling=2", "unknown key here; choose algorithm/policy_loss=scaled, which has it"),
        ("~algorithm.policy_loss.ceiling", "key not present; remove the override"),
    ],
)
def test_the_command_line_knows_the_settings_of_packages(
    plugin: None, monkeypatch: pytest.MonkeyPatch, override: str, says: str
) -> None:
    assert refusal(monkeypatch, override) == f"{override.partition('=')[0]}: {says}"


def test_a_run_continues_with_other_values_of_the_fields_that_a_package_marks(
    plugin: None, defaults: dict[str, Any], tmp_path: Path
) -> None:
    def config(**settings: float) -> TrainConfig:
        defaults["algorithm"]["policy_loss"] = {"name": "scaled", **settings}
        return parse_config(defaults, TrainConfig)

    run = RunFolder(tmp_path / "run")
    run.open(config(scale=3))
    run.root.joinpath("metrics.jsonl").write_text('{"stage": "rl", "step": 7, "time_s": 1.0}\n')
    run.open(config(scale=3, ceiling=2))
    assert run.record(config(scale=3, ceiling=2)) == [("algorithm.policy_loss.ceiling", None, 2.0)]
    recorded = run.config.read_text()
    run.config.write_text(recorded.replace("    ceiling: 2.0\n", ""))  # as a version without the field wrote it
    assert run.config.read_text() != recorded
    assert run.record(config(scale=3, ceiling=2)) == []
    with pytest.raises(ConfigError, match=r"was made with algorithm\.policy_loss\.scale=3\.0, now 4\.0; set another"):
        run.open(config(scale=4, ceiling=2))


def test_a_signal_of_our_own_is_not_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(REWARD_SIGNALS), "_built_in", {"tidy": "ral_system.rewards.format:format_score"})
    assert not reward_config(signals={"tidy": 0.5}).foreign


def test_the_files_own_answers_earn_no_signals(plugin: None, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config("+reward.signals.brevity=0.5")
    assert config.reward.signal_names == ("brevity",)
    assert QuestionSettings.of(config).reward.signal_names == ()


def test_an_installed_package_adds_verifiers_and_signals_which_processes_find(plugin: None) -> None:
    config = reward_config(verifier="last_word", signals={"brevity": 0.5})
    assert reward_config(verifier="last_word").foreign and reward_config(signals={"brevity": 0.5}).foreign
    prompt = Prompt("p", "k", "?", "a red star", (), (1,))
    text = "it is <answer>the star</answer>"
    with RewardPool(config, "answer_only") as pool:
        pool.submit([Completion("p", 0, (1,), (0.0,), text, FinishReason.STOP, 0)], prompt)
        assert pool.collect()["p#0"].parts == {"correctness": 1.0, "format": 0.0, "brevity": 0.25}
