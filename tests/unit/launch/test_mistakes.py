"""Hydra's errors in one line each."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ral_system.config.commands import TrainConfig
from ral_system.launch.mistakes import one_line
from tests.unit.launch.refusals import refusal

LOSSES = "There are cispo, clip,"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algorithm.stepz=5", "algorithm.stepz: unknown key; did you mean algorithm.steps=5?"),
        ("~algorithm.stepz", "algorithm.stepz: unknown key; did you mean algorithm.steps?"),
        ("learner.lr=1e-5", "learner.lr: unknown key; did you mean learner.learning_rate=1e-5?"),
        ("wandb=offline", "wandb: unknown key; did you mean logging.wandb=offline?"),
        ("algoritm=ral", "algoritm: unknown key; did you mean algorithm=ral?"),
        ("policy_loss=gspo", "policy_loss: unknown key; did you mean algorithm/policy_loss=gspo?"),
        ("trainer.epochs=1", "trainer.epochs: unknown key; ral-train --cfg job shows the known ones"),
        ("data.seconds=3", "data.seconds: unknown key here; choose data=video_search, which has it"),
        ("data.max_broken=0", "data.max_broken: unknown key here; choose data=files, which has it"),
        (
            "algorithm.policy_loss.tau_positive=1",
            "algorithm.policy_loss.tau_positive: unknown key here; choose algorithm/policy_loss=sapo, which has it",
        ),
        (
            "algorithm.policy_loss.delta=1",
            "algorithm.policy_loss.delta: unknown key here; choose algorithm/policy_loss=dppo_binary_kl, "
            "dppo_binary_tv, dppo_top_k_kl or dppo_top_k_tv, which has it",
        ),
        (
            "data.sources.main.path=x",
            "data.sources.main.path: no source is called main; add it with +data/source@data.sources.main=columns",
        ),
        ("cluster=lcoal", "cluster=lcoal: no such option; did you mean cluster=local? There are local, ray"),
        ("experiment=quikstart", "experiment=quikstart: no such option; did you mean experiment=quickstart? There are"),
        ("cluster=nope", "cluster=nope: no such option; use one of local, ray"),
        (
            "algorithm/policy_loss=gsp",
            f"algorithm/policy_loss=gsp: no such option; did you mean algorithm/policy_loss=gspo? {LOSSES}",
        ),
        ("data=rows.jsonl", "data=rows.jsonl: no such option; a file is given as data=files +data/source@"),
        ("+seed=5", "+seed: the key is there already; write it without the +"),
        ("+algorithm=grpo", "+algorithm: the group is there already; write it without the +"),
        ("~experiment=foo", "~experiment=foo: key not present; remove the override"),
        (
            "rollout.max_log_prob_difference=1",
            "rollout.max_log_prob_difference: unknown key; use rollout.log_prob_gate.",
        ),
        ("algorithm=null", "algorithm=null: not the name of an option; write algorithm=OPTION, or leave it out"),
        ("cluster=3", "cluster=3: not the name of an option; write cluster=OPTION, or leave it out"),
        ("+data/sourc@data.sources.a=columns", "+data/sourc@data.sources.a: no such group; did you mean data/source?"),
        ("seed=range(1,3)", "seed=range(1,3): several values; add -m to run a job for each"),
    ],
)
def test_a_mistake_says_what_to_write(monkeypatch: pytest.MonkeyPatch, override: str, says: str) -> None:
    line = refusal(monkeypatch, override)
    assert line.startswith(says), line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("name=${nope}", "name=${nope}: there is no key nope; correct it"),
        (
            "algorithm.steps=${oc.env:NOPE}",
            "algorithm.steps: Environment variable 'NOPE' not found; correct what stands between ${ and }",
        ),
        (
            "algorithm.steps=${foo:1}",
            "algorithm.steps: Unsupported interpolation type foo; correct what stands between ${ and }",
        ),
        (
            "algorithm.steps=${seed.x}",
            "algorithm.steps: Error trying to access seed.x: node `seed` is not a container and thus cannot contain `x`"
            "; correct what stands between ${ and }",
        ),
    ],
)
def test_a_reference_to_nothing_is_named_with_its_key(override: str, says: str) -> None:
    with (
        initialize_config_module("ral_system.conf", version_base=None),
        pytest.raises(OmegaConfBaseException) as refused,
    ):
        OmegaConf.to_container(compose("config", [override]), resolve=True)
    assert one_line(refused.value, TrainConfig) == says


SLASH = 'write override /algorithm, with a slash, in a file that begins with "# @package _global_"'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "# @package _global_\ndefaults:\n  - override /algorithms: grpo\n",
            "experiment/mine.yaml: override /algorithms: no such group; did you mean algorithm?",
        ),
        (
            "# @package _global_\ndefaults:\n  - override algorithm: grpo\n",
            f"experiment/mine.yaml: override algorithm finds no such group below experiment; {SLASH}",
        ),
        (
            "defaults:\n  - override /algorithm: grpo\n",
            f"experiment/mine.yaml: override algorithm finds no such group below experiment; {SLASH}",
        ),
        (
            "# @package _global_\ndefaults:\n  - /algorithm: grpo\n",
            "algorithm: a file chooses the group a second time; write override /algorithm there",
        ),
        (
            "# @package _global_\ndefaults:\n  - /data/sourc@data.sources.a: columns\n",
            "data/sourc=columns: no such group; did you mean data/source?",
        ),
    ],
)
def test_mistakes_in_a_users_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    mine = f"hydra.searchpath=[file://{tmp_path}]"
    line = refusal(monkeypatch, "experiment=mine", mine)
    assert line.startswith(says), line


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("algorithm=ral,grpo", ""),
        ("seed=1,2", ""),
        ("sft.learning_rate=1e-3,1e-4", ""),
        ("stages=sft,rl", ", or write stages=[sft,rl]"),
        ("data.grid=3,4", ", or write data.grid=[3,4]"),
        ("++data.grid=3,4", ", or write ++data.grid=[3,4]"),
    ],
)
def test_a_list_is_suggested_where_it_would_be_accepted(
    monkeypatch: pytest.MonkeyPatch, override: str, remedy: str
) -> None:
    assert refusal(monkeypatch, override) == f"{override}: several values; add -m to run a job for each{remedy}"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward.signals.brief=0.2", "reward.signals.brief: a new entry needs a +; write +reward.signals.brief=VALUE"),
        (
            "learner.lora.rank=4",
            "learner.lora.rank: learner.lora=null has no such key; give all of it, as in 'learner.lora={rank: 16, "
            "alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj], vision: false}'",
        ),
        ("reward.kinds={a: numeric}", "reward.kinds: a new entry needs a +, as in +reward.kinds.NAME=VALUE"),
    ],
)
def test_a_new_name_in_a_dictionary_needs_a_plus(monkeypatch: pytest.MonkeyPatch, override: str, says: str) -> None:
    assert refusal(monkeypatch, override) == says
