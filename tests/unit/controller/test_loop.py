"""The training loop against roles that record what they are told."""

import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.controller.sampling import step_seed
from ral_system.errors import GateError, WeightSyncError
from ral_system.types import (
    Completion,
    Prompt,
    Sampling,
)
from tests.unit.controller.fakes import FakeFrozenModel, Fakes, G, start


def test_every_pass_takes_the_same_updates_with_the_same_old_scores(make_config: Callable[..., TrainConfig]) -> None:
    small = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    start(make_config(*small, "algorithm.passes_per_step=3"), roles).step()
    updates = [call for call in roles.calls if call[0] == "update"]
    assert updates == [("update", k, "scores 1", "reference 0") for _ in range(3) for k in range(2)]
    assert roles.calls.index(updates[0]) > roles.calls.index(("collect", 3 * G))
    assert [call[0] for call in roles.calls[-2:]] == ["publish", "load"]
    assert {id(plan) for plan in roles.trained} == {id(roles.trained[0])}


def test_the_first_update_must_attend_as_the_old_policy_did(config: TrainConfig) -> None:
    roles = Fakes()
    assert start(config, roles).step().metrics["attention/divergence_first_update"] == 0
    for wrong in (1e-3, float("nan")):
        roles = Fakes()
        roles.first_jsd = wrong
        with pytest.raises(GateError, match="attention differs from that of the old policy"):
            start(config, roles).step()
        assert not any(call[0] == "publish" for call in roles.calls)


def test_the_first_update_may_differ_by_the_rounding_of_its_dtype(make_config: Callable[..., TrainConfig]) -> None:
    small = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    deepspeed = [
        "cluster=ray",
        "rollout=vllm",
        "learner=deepspeed",
        "learner.world_size=1",
        "learner.zero_stage=2",
    ]
    bfloat16 = [*deepspeed, "learner.dtype=bfloat16", "rollout.dtype=bfloat16", "rollout.log_prob_gate.token=1.0"]
    roles = Fakes()
    roles.first_jsd = 1e-6
    with pytest.raises(GateError, match="divergence 1e-06, more than 1e-09"):
        start(make_config(*small), roles).step()
    roles = Fakes()
    roles.first_jsd = 1e-6
    assert start(make_config(*small, *bfloat16), roles).step().metrics["attention/divergence_first_update"] == 1e-6


def test_a_step_is_the_algorithm_in_order(config: TrainConfig) -> None:
    roles = Fakes()
    loop = start(config, roles)
    loop.step()
    assert roles.calls == [
        ("generate", ["train/0", "train/1", "train/2"], Sampling(G, 0.7, 9, step_seed(5, 0))),
        "score",  # before any update, at the weights of the rollout
        "reference",
        ("collect", 3 * G),  # the rewards, which went on meanwhile
        ("update", 0, "scores 1", "reference 0"),
        ("update", 1, "scores 1", "reference 0"),
        ("publish", 1),
        ("load", "weights 1"),
    ]
    roles.calls.clear()
    result = loop.step()
    assert roles.calls[0] == ("generate", ["train/3", "train/4", "train/5"], Sampling(G, 0.7, 9, step_seed(5, 1)))
    assert {r.completion.weight_version for r in result.rollouts} == {1}
    assert (loop.version, loop.next_prompt) == (2, 6)
    assert result.metrics["prompts/first"] == 3
    assert result.metrics["prompts/end"] == 6
    assert result.metrics["learner/version"] == 2
    assert result.metrics["rollout/tokens_per_s"] > 0


def test_a_step_s_tokens_per_second_are_of_one_device(config: TrainConfig) -> None:
    roles = Fakes()
    step = start(config, roles).step()
    tokens = sum(len(r.prompt.token_ids) + len(r.completion.token_ids) for r in step.rollouts)
    assert tokens == 3 * (G * 3 + 2 * (2 + 3))  # four prompts of three tokens, responses of two and three
    seconds = sum(value for name, value in step.metrics.items() if name.startswith("time/"))
    assert step.metrics["step/tokens_per_s_per_device"] == pytest.approx(tokens / seconds / roles.devices)


def test_without_a_reference_there_is_none_to_score(config: TrainConfig) -> None:
    roles = Fakes()
    roles.reference = None
    start(config, roles).step()
    assert roles.calls.count("score") == 1
    assert ("update", 1, "scores 1", None) in roles.calls


def test_frozen_models_score_whole_groups_in_the_order_of_the_prompts_while_rollouts_go_on(config: TrainConfig) -> None:
    for seed in range(4):
        roles = Fakes()
        roles.shuffle = random.Random(seed)
        tokens, attention = FakeFrozenModel("tokens", roles), FakeFrozenModel("attention", roles)
        roles.teachers = [tokens, attention]
        start(config, roles).step()
        groups = [[f"train/{p}#{i}" for i in range(G)] for p in range(3)]
        assert roles.reference is not None
        assert roles.reference.submitted == tokens.submitted == attention.submitted == groups
        assert roles.calls[1:-2] == [
            "score",
            "reference",
            "tokens",
            "attention",
            ("collect", 3 * G),  # rewards
            ("update", 0, "scores 1", "reference 0", "tokens 1", "attention 1"),
            ("update", 1, "scores 1", "reference 0", "tokens 1", "attention 1"),
        ]


def test_a_frozen_model_gets_a_group_before_the_last_completion_is_there(config: TrainConfig) -> None:
    roles = Fakes()
    reference = roles.reference
    assert reference is not None
    loop, seen = start(config, roles), []
    generate = roles.generate

    def in_order(prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        for completion in sorted(generate(prompts, sampling), key=lambda c: c.id):
            seen.append(len(reference.submitted))
            yield completion

    roles.generate = in_order  # type: ignore[method-assign]
    loop.step()
    assert seen == [0] * G + [1] * G + [2] * G


def test_the_order_in_which_completions_finish_does_not_matter(config: TrainConfig) -> None:
    plans, rollouts = [], []
    for seed in range(4):
        roles = Fakes()
        roles.shuffle = random.Random(seed)
        result = start(config, roles).step()
        plans.append(roles.trained[0])
        rollouts.append(result.rollouts)
    assert [r.completion.id for r in rollouts[0]] == [f"train/{p}#{i}" for p in range(3) for i in range(G)]
    assert all(plan == plans[0] for plan in plans)
    assert all(r == rollouts[0] for r in rollouts)


def test_completions_of_other_weights_are_refused(config: TrainConfig) -> None:
    class Watched(Fakes):
        ended = False

        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
            try:
                yield from super().generate(prompts, sampling)
            finally:
                self.ended = True

    roles = Watched()
    loop = start(config, roles)
    roles.loaded_version = 7
    with pytest.raises(
        GateError, match=r"sample train/\d#\d: made with weights 7, but the engines were given 0"
    ) as error:
        loop.step()
    assert "score" not in roles.calls
    assert roles.ended and error.tb is not None  # the engine is free although the error holds the frames


def test_a_completion_that_is_missing_is_noticed(config: TrainConfig) -> None:
    roles = Fakes()
    roles.drop = {"train/1#2"}
    with pytest.raises(GateError, match="prompt train/1: 3 completions came back"):
        start(config, roles).step()


def test_an_engine_with_other_weights_stops_the_run(config: TrainConfig) -> None:
    roles = Fakes()
    loop = start(config, roles)
    roles.held_checksum = "bb"  # the second of two engines
    with pytest.raises(WeightSyncError, match="1 different: w"):
        loop.step()


def test_seeds_differ_by_step_and_run() -> None:
    seeds = {step_seed(seed, version) for seed in range(20) for version in range(50)}
    assert len(seeds) == 1000
    assert step_seed(1, 11) != step_seed(11, 1)
    assert all(0 <= s < 2**48 for s in seeds)


# --- metrics ----------------------------------------------------------------------------------------------------------


# --- evaluation -------------------------------------------------------------------------------------------------------
