"""Keys that only other commands read are refused on the command line."""

import sys

import pytest

from ral_system.config.commands import COMMANDS
from ral_system.errors import ConfigError
from ral_system.launch.foreign import refuse_foreign


@pytest.mark.parametrize(
    ("command", "override", "says"),
    [
        ("ral-train", "sweep.axis=frames", "ral-train does not read it; ral-evaluate does; remove it"),
        ("ral-rl", "sweep=frames", "ral-rl does not read it; ral-evaluate does; remove it"),
        ("ral-train", "+sweep.models={a: b}", "ral-train does not read it; ral-evaluate does; remove it"),
        ("ral-train", "intervention.image=0.15", "ral-train does not read it; ral-evaluate does; remove it"),
        ("ral-evaluate", "algorithm.steps=3", "ral-evaluate does not read it; ral-train does; remove it"),
        ("ral-evaluate", "algorithm/policy_loss=gspo", "ral-evaluate does not read it; ral-train does; remove it"),
        ("ral-evaluate", "sft.batch=1,2", "ral-evaluate does not read it; ral-train does; remove it"),
        ("ral-evaluate", "~rollout.workers", "ral-evaluate does not read it; ral-train does; remove it"),
        ("ral-data", "cluster=local", "ral-data does not read it; ral-train and ral-evaluate do; remove it"),
        ("ral-data", "reward.correctness=1", "ral-data does not read it; ral-train and ral-evaluate do; remove it"),
        ("ral-data", "+reward.signals.x=1", "ral-data does not read it; ral-train and ral-evaluate do; remove it"),
        ("ral-evaluate", "rollout.on_new_weights=discard", "ral-evaluate does not read it; ral-train does; remove it"),
        *(
            ("ral-synthesize", given, "ral-synthesize does not read it; ral-train, ral-evaluate and ral-data do;")
            for given in (
                *("data.system_prompt=x", "data.seconds=3"),
                *("+data/source@data.sources.mine=columns", "data.workers=3"),
            )
        ),
        *(
            (command, given, f"{command} does not read it; ral-train does; remove it")
            for command in ("ral-evaluate", "ral-data", "ral-synthesize")
            for given in (
                *("data.glance_share=0.5", "data.search_from=3", "data.demonstrations=a.jsonl", "data.described=4"),
                "data.small_boards=9",
            )
        ),
        ("ral-evaluate", "data.train_records=9", "ral-evaluate does not read it; ral-train, "),
        (
            "ral-synthesize",
            "seed=1",
            "ral-synthesize does not read it; ral-train, ral-evaluate and ral-data do;",
        ),
    ],
)
def test_a_key_of_another_command_is_refused(
    monkeypatch: pytest.MonkeyPatch, command: str, override: str, says: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/bin/{command}"])
    with pytest.raises(ConfigError) as refused:
        refuse_foreign(["experiment=smoke", override], COMMANDS[command])
    assert str(refused.value).startswith(f"{override}: {says}")


def test_a_key_inside_a_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/ral-train"])
    given = "evaluation={questions: 5, samples: 3}"
    with pytest.raises(ConfigError, match=r"^evaluation.samples in evaluation=\{.*: ral-train does not read it; "):
        refuse_foreign([given], COMMANDS["ral-train"])


@pytest.mark.parametrize("override", ["+hydra.sweeper.params.seed=3", "hydra.sweeper.params={seed: '3,4'}"])
def test_swept_values_are_given_as_other_values(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_foreign([override], COMMANDS["ral-train"])
    assert (
        str(refused.value) == f"{override}: hydra.sweeper.params is for files; here write -m and KEY=1,2 for each key"
    )


@pytest.mark.parametrize(
    "override",
    [
        "experiment=avar_quickstart",
        "algorithm=ral_zero",  # it has the response format
        "rollout=hf",
        "+data/source@data.sources.mine=columns",
        "data.instructions={sweep: think}",
        "hydra.sweeper.direction=maximize",
        "algorithm.stepz=3",  # Hydra refuses what no command knows
        "evaluation.questions=[1,",
    ],
)
def test_other_overrides_pass(override: str) -> None:
    for kind in COMMANDS.values():
        foreign = ("rollout", "evaluation", "+data/source", "data.instructions")
        if kind is not COMMANDS["ral-synthesize"] or not override.startswith(foreign):
            refuse_foreign([override], kind)
