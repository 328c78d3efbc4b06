"""Roles that record what they are told, and a loop that they serve."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ral_system.config.commands import TrainConfig
from ral_system.controller.loop import TrainingLoop
from ral_system.controller.residency import residency
from ral_system.errors import LogProbError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import SharedDevices
from ral_system.types import (
    Completion,
    FinishReason,
    Prompt,
    RewardStatus,
    Sample,
    Sampling,
    TensorDigest,
    TrainPlan,
    Verdict,
    WeightManifest,
)

G = 4


def manifest(version: int, checksum: str = "aa") -> WeightManifest:
    return WeightManifest(version, {"w": TensorDigest((1,), "float32", checksum)})


def samples_of(plan: TrainPlan) -> list[Sample]:
    return [s for update in plan.updates for shard in update.shards for micro in shard for s in micro]


class FakeFrozenModel:
    """Remembers what it was asked, between the other roles' calls."""

    def __init__(self, name: str, roles: "Fakes") -> None:
        self.name, self.roles = name, roles
        self.submitted: list[list[str]] = []

    def submit(self, samples: Sequence[Sample]) -> None:
        assert all(s.advantage == 0 and s.weight_version <= self.roles.loaded_version for s in samples)
        self.submitted.append([s.id for s in samples])

    def collect(self, plan: TrainPlan) -> Sequence[str]:
        assert plan is self.roles.plans[-1]
        assert {id for group in self.submitted for id in group} >= {s.id for s in samples_of(plan)}
        self.roles.calls.append(self.name)
        return [f"{self.name} {rank}" for rank in range(2)]

    def visual_rewards(self, scores: Sequence[str]) -> Mapping[str, float]:
        return self.roles.visual_rewards(scores)


class Fakes:
    """All roles but frozen models in one. Completion i of a prompt is worth i; `calls` is what happened, in order."""

    shards = 2
    attention_kernel = "loops"

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.plans: list[TrainPlan] = []
        self.trained: list[TrainPlan] = []
        self.loaded_version = -1
        self.shuffle = random.Random(0)
        self.status: dict[str, RewardStatus] = {}
        self.drop: set[str] = set()
        self.alike: set[str] = set()
        self.held_checksum = ""
        self.first_jsd = 0.0
        self.largest_gap = 2e-6
        self.submitted: list[Completion] = []
        self.generator = self.learner = self.rewarder = self
        self.reference: FakeFrozenModel | None = FakeFrozenModel("reference", self)
        self.teachers: list[FakeFrozenModel] = []
        self.shared_devices: SharedDevices | None = None
        self.devices = 4.0

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

    def held(self, published: WeightManifest) -> Sequence[WeightManifest]:
        return [manifest(published.version, "start")] * 2

    def load_weights(self, weights: Any) -> Sequence[WeightManifest]:
        self.calls.append(("load", weights))
        self.loaded_version = int(weights.removeprefix("weights "))
        trained = f"trained {self.loaded_version}"
        return [manifest(self.loaded_version, trained), manifest(self.loaded_version, self.held_checksum or trained)]

    # rewarder
    def submit(self, completions: Sequence[Completion], prompt: Prompt) -> None:
        assert [c.id for c in completions] == [f"{prompt.id}#{i}" for i in range(len(completions))]
        self.submitted += completions

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

    # learner
    def score(self, plan: TrainPlan) -> Sequence[str]:
        self.calls.append("score")
        self.plans.append(plan)
        return [f"scores {self.calls.count('score')}"] * 2

    def check_log_probs(self, plan: TrainPlan) -> float:
        self.calls.append("check_log_probs")
        self.plans.append(plan)
        if self.largest_gap > 1e-4:
            raise LogProbError(f"rollout and learner log-probs differ by {self.largest_gap}")
        return self.largest_gap

    def kl(self, behaviour: Sequence[str], reference: Sequence[str]) -> Mapping[str, float]:
        self.calls.append(("kl", behaviour[0], reference[0]))
        return {s.id: 0.1 * int(s.id[-1]) for s in samples_of(self.plans[-1])}

    def visual_rewards(self, scores: Sequence[str]) -> Mapping[str, float]:
        self.calls.append(("visual_rewards", scores[0]))
        return {s.id: 0.5 for s in samples_of(self.plans[-1]) if s.id.endswith(("#1", "#2"))}

    def meters(self) -> Mapping[str, float]:
        return {}

    def update(
        self, plan: TrainPlan, index: int, behaviour: Sequence[str], reference: Any, *teachers: Sequence[str]
    ) -> Callable[[], Mapping[str, float]]:
        credit = {s.id: s.credit for s in samples_of(plan) if s.credit is not None}
        scored = self.plans[-1].with_advantages({s.id: s.advantage for s in samples_of(plan)}, credit)
        assert plan == scored != self.plans[-1]
        self.trained.append(plan)
        self.calls.append(("update", index, behaviour[0], reference and reference[0], *(t[1] for t in teachers)))
        return lambda: {
            "policy/loss": float(index),
            "gate/log_prob_diff_max": float(-index),
            "attention/divergence": max(index / 10 or self.first_jsd, index / 5),
            "attention/divergence_positive": index / 10 or self.first_jsd,
            "attention/divergence_negative": index / 5,
        }

    def publish(self, version: int) -> WeightManifest:
        self.calls.append(("publish", version))
        return manifest(version, f"trained {version}")

    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], str]:
        return manifest.tensors, f"weights {manifest.version}"

    def send(self, offer: str) -> Callable[[], Mapping[str, TensorDigest]]:
        return lambda: {}


def prompt(i: int) -> Prompt:
    return Prompt(f"train/{i}", ("count", "compare")[i % 2], "q", "a", (), (1, 2, 3))


def start(config: TrainConfig, roles: Fakes) -> TrainingLoop:
    reward = config.reward.model_copy(update={"correctness": 1.0, "format": 1.0})
    settings, timer = config.model_copy(update={"reward": reward}), PhaseTimer()
    loop = TrainingLoop(settings, roles, prompt, timer, residency(roles, timer))  # type: ignore[arg-type]
    loop.publish()
    roles.calls.clear()
    return loop
