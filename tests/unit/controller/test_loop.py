"""The training loop against roles that record what they are told."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from ral_system.config.run import RunConfig
from ral_system.controller.judging import repetition, rollout_metrics
from ral_system.controller.loop import TrainingLoop, update_metrics
from ral_system.controller.sampling import has_signal, step_seed
from ral_system.errors import GateError, WeightSyncError
from ral_system.evaluation.greedy import evaluate
from ral_system.observability.progress import PhaseTimer
from ral_system.types import (
    Completion,
    FinishReason,
    Prompt,
    RewardResult,
    RewardStatus,
    Rollout,
    Sample,
    Sampling,
    TensorDigest,
    TrainPlan,
    Verdict,
    WeightManifest,
)
from tests.unit.rewards.settings import reward_config

G = 4


def manifest(version: int, sha256: str = "aa") -> WeightManifest:
    return WeightManifest(version, {"w": TensorDigest((1,), "float32", sha256)})


def samples_of(plan: TrainPlan) -> list[Sample]:
    return [s for update in plan.updates for shard in update.shards for micro in shard for s in micro]


class FakeTeacher:
    """Remembers what it was asked, between the other roles' calls."""

    def __init__(self, name: str, roles: "Fakes") -> None:
        self.name, self.roles = name, roles
        self.submitted: list[list[str]] = []

    def submit(self, samples: Sequence[Sample]) -> None:
        assert all(s.advantage == 0 and s.weight_version == self.roles.loaded_version for s in samples)
        self.submitted.append([s.id for s in samples])

    def collect(self, plan: TrainPlan) -> Sequence[str]:
        assert plan is self.roles.plans[-1]
        self.roles.calls.append(self.name)
        return [f"{self.name} {rank}" for rank in range(2)]


class Fakes:
    """All roles in one. Completion i of a prompt is worth i; `calls` is what happened, in order."""

    world_size = 2

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.plans: list[TrainPlan] = []
        self.trained: list[TrainPlan] = []
        self.loaded_version = -1
        self.shuffle = random.Random(0)
        self.status: dict[str, RewardStatus] = {}
        self.drop: set[str] = set()
        self.alike: set[str] = set()
        self.held_sha256 = "aa"
        self.first_jsd = 0.0
        self.submitted: list[Completion] = []
        self.generator = self.learner = self.rewarder = self.reference = self
        self.teachers: list[FakeTeacher] = []

    # generator
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        self.calls.append(("generate", [p.id for p in prompts], sampling))
        made = [
            Completion(p.id, i, (7, i, 2)[: 2 + i % 2], (-0.5,) * (2 + i % 2), f"text {i}", reason, self.loaded_version)
            for p in prompts
            for i in range(sampling.completions)
            for reason in (FinishReason.LENGTH if i == 0 else FinishReason.STOP,)
        ]
        self.shuffle.shuffle(made)
        yield from (c for c in made if c.id not in self.drop)

    def load_weights(self, weights: Any) -> Sequence[WeightManifest]:
        self.calls.append(("load", weights))
        self.loaded_version = int(weights.removeprefix("weights "))
        return [manifest(self.loaded_version), manifest(self.loaded_version, self.held_sha256)]

    # rewarder
    def submit(self, completion: Completion, prompt: Prompt) -> None:
        assert completion.prompt_id == prompt.id
        self.submitted.append(completion)

    def collect(self) -> Mapping[str, Verdict]:
        self.calls.append(("collect", len(self.submitted)))
        verdicts, self.submitted = {c.id: self.judge(c) for c in self.submitted}, []
        return verdicts

    def judge(self, completion: Completion) -> Verdict:
        """Odd completions are right. With the weights of `start` completion i is worth i, or 1 for `alike` prompts."""
        status = self.status.get(completion.id, RewardStatus.OK)
        if status is not RewardStatus.OK:
            return Verdict(completion.id, {}, status, "late")
        right = float(completion.index % 2)
        worth = 1.0 if completion.prompt_id in self.alike else float(completion.index)
        return Verdict(completion.id, {"correctness": right, "format": worth - right}, status)

    # learner and reference
    def score(self, plan: TrainPlan) -> Sequence[str]:
        self.calls.append("score")
        self.plans.append(plan)
        return [f"scores {self.calls.count('score')}"] * 2

    def kl(self, behaviour: Sequence[str], reference: Sequence[str]) -> Mapping[str, float]:
        self.calls.append(("kl", behaviour[0], reference[0]))
        return {s.id: 0.1 * int(s.id[-1]) for s in samples_of(self.plans[-1])}

    def visual_rewards(self, scores: Sequence[str]) -> Mapping[str, float]:
        self.calls.append(("visual_rewards", scores[0]))
        return {s.id: 0.5 for s in samples_of(self.plans[-1]) if s.id.endswith(("#1", "#2"))}

    def update(
        self, plan: TrainPlan, index: int, behaviour: Sequence[str], reference: Any, *teachers: Sequence[str]
    ) -> Mapping[str, float]:
        scored = self.plans[-1].with_advantages({s.id: s.advantage for s in samples_of(plan)})
        assert plan == scored != self.plans[-1]
        self.trained.append(plan)
        self.calls.append(("update", index, behaviour[0], reference and reference[0], *(t[1] for t in teachers)))
        return {
            "policy/loss": float(index),
            "gate/log_prob_diff_max": float(-index),
            "attention/divergence": max(index / 10 or self.first_jsd, index / 5),
            "attention/divergence_positive": index / 10 or self.first_jsd,
            "attention/divergence_negative": index / 5,
        }

    def publish(self, version: int) -> tuple[WeightManifest, str]:
        self.calls.append(("publish", version))
        return manifest(version), f"weights {version}"

    def send(self, offer: str) -> Callable[[], None]:
        return lambda: None


def prompt(i: int) -> Prompt:
    return Prompt(f"train/{i}", ("count", "compare")[i % 2], "q", "a", (), (1, 2, 3))


@pytest.fixture
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(
        "algorithm.prompts_per_step=3",
        f"algorithm.completions_per_prompt={G}",
        "algorithm.updates_per_step=2",
        "rollout.temperature=0.7",
        "rollout.max_new_tokens=9",
        "seed=5",
    )


def start(config: RunConfig, roles: Fakes) -> TrainingLoop:
    reward = config.reward.model_copy(update={"correctness": 1.0, "format": 1.0})
    loop = TrainingLoop(config.model_copy(update={"reward": reward}), roles, prompt, PhaseTimer())  # type: ignore[arg-type]
    loop.publish()
    roles.calls.clear()
    return loop


def test_every_pass_takes_the_same_updates_with_the_same_old_scores(make_config: Callable[..., RunConfig]) -> None:
    small = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    start(make_config(*small, "algorithm.passes_per_step=3"), roles).step()
    updates = [call for call in roles.calls if call[0] == "update"]
    assert updates == [("update", k, "scores 2", "scores 1") for _ in range(3) for k in range(2)]
    assert roles.calls.index(updates[0]) > roles.calls.index(("collect", 3 * G))
    assert [call[0] for call in roles.calls[-2:]] == ["publish", "load"]
    assert {id(plan) for plan in roles.trained} == {id(roles.trained[0])}


def test_the_first_update_must_attend_as_the_old_policy_did(config: RunConfig) -> None:
    roles = Fakes()
    assert start(config, roles).step().metrics["attention/divergence_first_update"] == 0
    for wrong in (1e-3, float("nan")):
        roles = Fakes()
        roles.first_jsd = wrong
        with pytest.raises(GateError, match="attention differs from that of the old policy"):
            start(config, roles).step()
        assert not any(call[0] == "publish" for call in roles.calls)


def test_the_first_update_may_differ_by_the_rounding_of_its_dtype(make_config: Callable[..., RunConfig]) -> None:
    small = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    deepspeed = ["cluster.kind=ray", "rollout=vllm", "learner=deepspeed", "learner.world_size=1"]
    bfloat16 = [*deepspeed, "learner.dtype=bfloat16", "rollout.dtype=bfloat16", "rollout.log_prob_gate.token=1.0"]
    roles = Fakes()
    roles.first_jsd = 1e-6
    with pytest.raises(GateError, match="divergence 1e-06, more than 1e-09"):
        start(make_config(*small), roles).step()
    roles = Fakes()
    roles.first_jsd = 1e-6
    assert start(make_config(*small, *bfloat16), roles).step().metrics["attention/divergence_first_update"] == 1e-6


def test_a_step_is_the_algorithm_in_order(config: RunConfig) -> None:
    roles = Fakes()
    loop = start(config, roles)
    loop.step()
    assert roles.calls == [
        ("generate", ["train/0", "train/1", "train/2"], Sampling(G, 0.7, 9, step_seed(5, 0))),
        "score",  # the reference's
        "score",  # the learner's: before any update, at the weights of the rollout
        ("collect", 3 * G),  # the rewards, which went on meanwhile
        ("update", 0, "scores 2", "scores 1"),
        ("update", 1, "scores 2", "scores 1"),
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


def test_without_a_reference_there_is_none_to_score(config: RunConfig) -> None:
    roles = Fakes()
    roles.reference = None  # type: ignore[assignment]
    start(config, roles).step()
    assert roles.calls.count("score") == 1
    assert ("update", 1, "scores 1", None) in roles.calls


def test_teachers_score_whole_groups_in_the_order_of_the_prompts_while_rollouts_go_on(config: RunConfig) -> None:
    for seed in range(4):
        roles = Fakes()
        roles.shuffle = random.Random(seed)
        tokens, attention = FakeTeacher("tokens", roles), FakeTeacher("attention", roles)
        roles.teachers = [tokens, attention]
        start(config, roles).step()
        groups = [[f"train/{p}#{i}" for i in range(G)] for p in range(3)]
        assert tokens.submitted == attention.submitted == groups
        assert roles.calls[1:-2] == [
            "score",
            "score",
            "tokens",
            "attention",
            ("collect", 3 * G),  # rewards
            ("update", 0, "scores 2", "scores 1", "tokens 1", "attention 1"),
            ("update", 1, "scores 2", "scores 1", "tokens 1", "attention 1"),
        ]


def test_a_teacher_gets_a_group_before_the_last_completion_is_there(config: RunConfig) -> None:
    roles = Fakes()
    roles.teachers = [teacher := FakeTeacher("teacher", roles)]
    loop, seen = start(config, roles), []
    generate = roles.generate

    def in_order(prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        for completion in sorted(generate(prompts, sampling), key=lambda c: c.id):
            seen.append(len(teacher.submitted))
            yield completion

    roles.generate = in_order  # type: ignore[method-assign]
    loop.step()
    assert seen == [0] * G + [1] * G + [2] * G


def test_advantages_are_of_the_group_and_leave_verdicts_out_that_were_not_reached(config: RunConfig) -> None:
    roles = Fakes()
    roles.status = {"train/0#1": RewardStatus.TIMEOUT, "train/0#2": RewardStatus.ERROR}
    result = start(config, roles).step()
    advantages = {r.completion.id: r.advantage for r in result.rollouts}
    # group 0 has the rewards 0 and 3: ±1; the others 0, 1, 2, 3: mean 1.5, std √1.25
    assert [advantages[f"train/0#{i}"] for i in range(G)] == pytest.approx([-1, 0, 0, 1], rel=1e-5)
    assert [advantages[f"train/1#{i}"] for i in range(G)] == pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-4)
    trained = {s.id: s for s in samples_of(roles.trained[0])}
    assert {id: s.advantage for id, s in trained.items()} == advantages
    assert trained["train/1#3"].rollout_log_probs == (-0.5,) * 3
    assert result.metrics["reward/timeouts"] + result.metrics["reward/errors"] == 2


@pytest.mark.parametrize(("model", "scores"), [("policy", "scores 2"), ("reference", "scores 1")])
def test_a_right_answer_that_looks_at_the_picture_is_worth_more(make_config, model: str, scores: str) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    visual = ["reward.visual.weight=2", f"reward.visual.model={model}", "algorithm.kl.coefficient=0.1"]
    roles = Fakes()
    roles.status = {"train/0#1": RewardStatus.TIMEOUT}
    result = start(make_config(*shape, *visual), roles).step()
    assert ("visual_rewards", scores) in roles.calls
    rewards = {r.completion.id: r.reward for r in result.rollouts}
    # completion i is worth i, the odd ones are right, and r_vis is 0.5 for 1 and 2 and undefined for 0 and 3
    assert [rewards[f"train/1#{i}"].total for i in range(G)] == [0, 1 + 2 * 0.5, 2, 3]
    assert rewards["train/1#2"].parts["visual"] == 0
    assert rewards["train/0#1"].total == 0
    assert result.metrics["reward/visual"] == pytest.approx((2 * 0.5 + 3 * 0) / 5)
    # 0, 2, 2, 3: mean 7/4, variance 19/16
    advantages = [r.advantage for r in result.rollouts if r.prompt.id == "train/1"]
    assert advantages == pytest.approx([a / (19 / 16) ** 0.5 for a in (-7 / 4, 1 / 4, 1 / 4, 5 / 4)], rel=1e-5)


@pytest.mark.parametrize(("rounds", "trained", "drawn"), [(1, [0, 1, 2], 3), (2, [1, 4, 0], 5), (3, [1, 4, 5], 6)])
def test_groups_that_are_all_alike_give_way_to_the_next_prompts(
    make_config, rounds: int, trained: list[int], drawn: int
) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    roles.teachers = [teacher := FakeTeacher("teacher", roles)]
    roles.alike = {"train/0", "train/2", "train/3"}  # the second round draws 3 and 4, the third 5
    loop = start(make_config(*shape, f"algorithm.sampling_rounds={rounds}"), roles)
    result = loop.step()
    assert list(dict.fromkeys(r.prompt.id for r in result.rollouts)) == [f"train/{i}" for i in trained]
    assert loop.next_prompt == drawn
    assert result.metrics["sampling/prompts_drawn"] == drawn
    assert result.metrics["sampling/groups_dropped"] == drawn - 3
    assert result.metrics["sampling/rounds"] == rounds
    assert (result.metrics["prompts/first"], result.metrics["prompts/end"]) == (0, drawn)
    assert [ids[0].split("#")[0] for ids in teacher.submitted] == [f"train/{i}" for i in trained]
    roles.calls.clear()
    loop.step()
    assert roles.calls[0][1][0] == f"train/{drawn}"  # no prompt is lost, none is drawn twice


def test_groups_that_differ_by_their_length_alone_have_a_signal(make_config) -> None:
    """Completions have 2 or 3 tokens."""
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    roles.alike = {f"train/{i}" for i in range(99)}
    overlong = ["algorithm.overlong={handling: penalty, buffer: 2}", "rollout.max_new_tokens=3"]
    result = start(make_config(*shape, *overlong, "algorithm.sampling_rounds=2"), roles).step()
    assert result.metrics["sampling/groups_dropped"] == 0
    assert result.metrics["sampling/reward"] == 1 - (0.5 + 1) / 2


def test_rounds_end_as_soon_as_the_batch_is_full(make_config) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    result = start(make_config(*shape, "algorithm.sampling_rounds=5"), roles).step()
    assert (result.metrics["sampling/rounds"], result.metrics["sampling/groups_dropped"]) == (1, 0)


def test_a_signal_is_a_difference_between_verdicts_that_were_reached() -> None:
    def verdict(total: float, status: RewardStatus = RewardStatus.OK) -> RewardResult:
        return RewardResult("", {}, total, status)

    assert has_signal([verdict(0.0), verdict(1.0)])
    assert not has_signal([verdict(1.0), verdict(1.0)])
    assert not has_signal([verdict(1.0), verdict(0.0, RewardStatus.TIMEOUT)])
    assert not has_signal([])


def test_responses_that_were_cut_are_masked_or_punished_on_request(make_config) -> None:
    """Completion i is worth i and has 2 or 3 tokens; completion 0 is cut at the limit."""
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    limit = ["rollout.max_new_tokens=3", "algorithm.advantage=dr_grpo"]
    masked = start(make_config(*shape, *limit, "algorithm.overlong.handling=mask"), Fakes()).step()
    assert [r.advantage for r in masked.rollouts[:G]] == [0.0, -0.5, 0.5, 1.5]  # 0 would have -1.5; the mean stays 1.5
    punished = start(make_config(*shape, *limit, "algorithm.overlong={handling: penalty, buffer: 2}"), Fakes()).step()
    # 2 tokens: (2 - 1) / 2 off, 3 tokens: 1 off
    assert [r.reward.total for r in punished.rollouts[:G]] == [-0.5, 0.0, 1.5, 2.0]


def test_a_response_cut_by_the_length_of_the_model_is_punished_as_one_cut_by_its_own_limit(make_config) -> None:
    """Prompts have 3 tokens, so a model length of 6 leaves room for 3 of the 4 that a response may have."""
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    punished = [
        *("algorithm.overlong={handling: penalty, buffer: 2}", "algorithm.advantage=dr_grpo"),
        *("rollout.max_new_tokens=4", "rollout.max_model_len=6"),
    ]
    result = start(make_config(*shape, *punished), Fakes()).step()
    assert [r.reward.total for r in result.rollouts[:G]] == [-0.5, 0.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("tokens", "share"),
    [((), 0.0), ((1, 2, 3), 0.0), ((1, 2, 3, 4), 0.0), ((1, 1, 1, 1, 1), 0.5), ((1, 2, 1, 2, 1, 2), 1 / 3)],
)
def test_repetition_is_the_share_of_runs_that_were_there_before(tokens: tuple[int, ...], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_a_kl_in_the_reward_is_taken_off_what_was_judged(make_config) -> None:
    shape = ["algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}", "algorithm.updates_per_step=2"]
    roles = Fakes()
    roles.status = {"train/0#1": RewardStatus.TIMEOUT}
    config = make_config(*shape, "algorithm.kl={coefficient: 2, place: reward}", "algorithm.advantage=dr_grpo")
    result = start(config, roles).step()
    assert ("kl", "scores 2", "scores 1") in roles.calls
    assert result.metrics["reward/kl"] == pytest.approx(0.1 * (3 * 6 - 1) / 11)
    totals = {r.completion.id: r.reward.total for r in result.rollouts}
    # completion i is worth i, less 2 · 0.1 i
    assert [totals[f"train/1#{i}"] for i in range(G)] == pytest.approx([0, 0.8, 1.6, 2.4])
    assert totals["train/0#1"] == 0
    advantages = [r.advantage for r in result.rollouts if r.prompt.id == "train/1"]
    assert advantages == pytest.approx([-1.2, -0.4, 0.4, 1.2])


def test_what_is_not_rewarded_is_not_asked_for(config: RunConfig) -> None:
    roles = Fakes()
    assert "reward/visual" not in start(config, roles).step().metrics
    assert not [call for call in roles.calls if call[0] in ("visual_rewards", "kl")]


def test_the_order_in_which_completions_finish_does_not_matter(config: RunConfig) -> None:
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


def test_completions_of_other_weights_are_refused(config: RunConfig) -> None:
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


def test_a_completion_that_is_missing_is_noticed(config: RunConfig) -> None:
    roles = Fakes()
    roles.drop = {"train/1#2"}
    with pytest.raises(GateError, match="prompt train/1: 3 completions came back"):
        start(config, roles).step()


def test_an_engine_with_other_weights_stops_the_run(config: RunConfig) -> None:
    roles = Fakes()
    loop = start(config, roles)
    roles.held_sha256 = "bb"  # the second of two engines
    with pytest.raises(WeightSyncError, match="1 different: w"):
        loop.step()


def test_seeds_differ_by_step_and_run() -> None:
    seeds = {step_seed(seed, version) for seed in range(20) for version in range(50)}
    assert len(seeds) == 1000
    assert step_seed(1, 11) != step_seed(11, 1)
    assert all(0 <= s < 2**48 for s in seeds)


# --- metrics ----------------------------------------------------------------------------------------------------------


def rollout(prompt_id: int, index: int, tokens: int, reward: RewardResult, advantage: float, reason: str) -> Rollout:
    completion = Completion(
        f"train/{prompt_id}", index, (1,) * tokens, (0.0,) * tokens, "", FinishReason(reason), weight_version=0
    )
    return Rollout(prompt(prompt_id), completion, reward, advantage)


def test_rollout_metrics_by_hand() -> None:
    good = RewardResult("", {"correctness": 1.0, "format": 1.0}, 1.0, RewardStatus.OK)
    poor = RewardResult("", {"correctness": 0.0, "format": 1.0}, 0.1, RewardStatus.OK)
    late = RewardResult("", {}, 0.0, RewardStatus.TIMEOUT)
    assert rollout_metrics(
        [
            rollout(0, 0, 3, good, 1.0, "stop"),
            rollout(0, 1, 5, poor, -1.0, "length"),
            rollout(1, 0, 4, poor, 0.0, "stop"),
            rollout(1, 1, 4, late, 0.0, "stop"),
        ]
    ) == pytest.approx(
        {
            "reward/correctness": 1 / 3,
            "reward/format": 1.0,
            "reward/total": 1.2 / 3,
            "reward/timeouts": 1.0,
            "reward/errors": 0.0,
            "rollout/length_mean": 4.0,
            "rollout/length_max": 5.0,
            "rollout/repetition": 0.5 / 4,  # the five tokens are alike: one of two runs of four was there before
            "rollout/truncated": 0.25,
            "rollout/tokens": 16.0,
            "rollout/groups_without_signal": 0.5,
        }
    )


def test_a_batch_without_any_verdict_has_metrics_too() -> None:
    late = RewardResult("", {}, 0.0, RewardStatus.TIMEOUT)
    found = rollout_metrics([rollout(0, 0, 1, late, 0.0, "stop")])
    assert (found["reward/total"], found["reward/timeouts"], found["rollout/groups_without_signal"]) == (0.0, 1.0, 1.0)


def test_update_metrics_are_means_but_maxima_stay_maxima() -> None:
    names = {
        "policy/loss": 1.0,
        "gate/log_prob_diff_max": -1.0,
        "attention/divergence_positive": 0.1,
        "attention/divergence_negative": 0.2,
    }
    updates = [{name: k * value for name, value in names.items()} for k in range(3)]
    updates = [update | {"attention/gradient_share": 0.1 * k} for k, update in enumerate(updates)]
    assert update_metrics(updates) == pytest.approx(
        {
            "policy/loss": 1.0,
            "gate/log_prob_diff_max": 0.0,
            "attention/divergence_positive": 0.1,
            "attention/divergence_negative": 0.2,
            "attention/divergence_positive_last": 0.2,
            "attention/divergence_negative_last": 0.4,
            "attention/gradient_share": 0.1,
            "attention/gradient_share_update_1": 0.0,
            "attention/gradient_share_update_2": 0.1,
            "attention/gradient_share_update_3": 0.2,
        }
    )


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_is_greedy_and_counts_what_was_not_judged_as_wrong() -> None:
    roles = Fakes()
    roles.loaded_version = 3
    wrong = {"held_out/1#0": {"correctness": 0.0, "format": 1.0}}

    def judge(completion: Completion) -> Verdict:
        if completion.id == "held_out/2#0":
            return Verdict(completion.id, {}, RewardStatus.TIMEOUT)
        return Verdict(completion.id, wrong.get(completion.id, {"correctness": 1.0, "format": 1.0}), RewardStatus.OK)

    roles.judge = judge  # type: ignore[method-assign]
    prompts = [Prompt(f"held_out/{i}", ("a", "b")[i % 2], "q", "a", (), (1,)) for i in range(4)]
    found = evaluate(roles.generate, roles, reward_config(), prompts, max_new_tokens=11)  # type: ignore[arg-type]
    assert roles.calls[0] == ("generate", [p.id for p in prompts], Sampling(1, 0.0, 11, 0))
    assert [r.prompt.id for r in found.rollouts] == [p.id for p in prompts]
    assert all(r.completion.prompt_id == r.prompt.id and r.advantage == 0.0 for r in found.rollouts)
    assert found.metrics() == {
        "eval/accuracy": 0.5,
        "eval/format_rate": 0.75,
        "eval/questions": 4.0,
        "eval/length_mean": 2.0,
        "eval/unjudged": 1.0,
        "eval/accuracy/a": 0.5,
        "eval/accuracy/b": 0.5,
    }
