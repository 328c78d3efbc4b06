"""One training step of Reinforced Attention Learning, in the order of the algorithm.

    prompts ─► rollout engines (mu) ─► rewards (since the rollout) ─────────────────► group advantages
                    ▲               └► old log-probs and attention (learner),                │
                    │                  reference log-probs (scorer), a teacher's             │
                    │                  distributions and attention (since the rollout)       │
                    │                                 │                                      ▼
                    └─ weights, version + 1 ── K inner updates ◄─────────────────────────────┘

Tensors travel from role to role by reference; this file sees scalars and token ids.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ral_system.algorithms.advantages import group_advantages
from ral_system.config.schema import RunConfig
from ral_system.errors import GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import Ref, Roles
from ral_system.rewards.penalty import with_kl_penalty
from ral_system.rewards.visual import with_visual_reward
from ral_system.sync.publish import publish_weights
from ral_system.training.plan import plan_updates
from ral_system.types import Completion, Prompt, RewardResult, RewardStatus, Rollout, Sample, Sampling

FIRST_UPDATE = {"float32": 1e-9, "bfloat16": 1e-4}
"""Largest mean divergence of the first update by learner dtype; of total variation, which is linear, the root.

The two passes are the same computation and differ by exactly 0 on CPU; this leaves room for kernels whose sums have no
fixed order."""

_SIGNS = ("positive", "negative")

Group = tuple[Prompt, list[Completion]]
"""A prompt's completions, by index."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did."""

    rollouts: tuple[Rollout, ...]
    metrics: dict[str, float]


class TrainingLoop:
    """Runs steps against the roles. `version` counts trained batches: the weights that rollouts are made with.

    `train_prompt(i)` is the i-th prompt of the endless training sequence; step s consumes the next `prompts_per_step`.
    """

    def __init__(
        self, config: RunConfig, roles: Roles, train_prompt: Callable[[int], Prompt], timer: PhaseTimer
    ) -> None:
        self._config = config
        self._roles = roles
        self._train_prompt = train_prompt
        self._timer = timer
        self.version = 0
        self.next_prompt = 0

    def publish(self) -> int:
        """Give the rollout engines the learner's weights; call once before the first step and after a resume.

        Returns the number of tensors verified.
        """
        with self._timer.phase("sync"):
            return publish_weights(self._roles.learner, self._roles.generator, self.version)

    def step(self) -> Step:
        """One rollout batch: generate, judge, score, update K times, publish."""
        algorithm, learner = self._config.algorithm, self._roles.learner

        prompts = [self._train_prompt(self.next_prompt + i) for i in range(algorithm.prompts_per_step)]
        groups = self._generate(prompts)
        plan = plan_updates(
            [unjudged_sample(prompt, c) for prompt, group in groups for c in group],
            updates=algorithm.updates_per_step,
            world_size=learner.world_size,
            micro_batch=self._config.learner.micro_batch,
        )
        with self._timer.phase("score"):
            reference = self._roles.reference.score(plan) if self._roles.reference else None
            behaviour = learner.score(plan)
            teaching = [teacher.collect(plan) for teacher in self._roles.teachers]
            looks, kl = self._visual_rewards(behaviour, reference), self._kl(behaviour, reference)
        rollouts = self._judge(groups, looks, kl)
        plan = plan.with_advantages({rollout.completion.id: rollout.advantage for rollout in rollouts})
        with self._timer.phase("update"):
            updates = [
                learner.update(plan, k, behaviour, reference, *teaching) for k in range(algorithm.updates_per_step)
            ]
        if algorithm.attention.anchor == "old":
            exact = FIRST_UPDATE[self._config.learner.dtype]
            check_first_update(updates[0], exact**0.5 if algorithm.attention.divergence == "tv" else exact)

        self.version += 1
        tensors_verified = self.publish()
        metrics = {**rollout_metrics(rollouts), **update_metrics(updates), "prompts/first": float(self.next_prompt)}
        self.next_prompt += len(prompts)
        metrics["attention/divergence_first_update"] = updates[0]["attention/divergence"]
        metrics |= {"gate/prompts_verified": float(len(rollouts)), "gate/tensors_verified": float(tensors_verified)}
        metrics |= {"prompts/end": float(self.next_prompt), "learner/version": float(self.version)}
        metrics |= self._timer.drain()
        metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / metrics["time/rollout_s"]
        return Step(tuple(rollouts), metrics)

    def _generate(self, prompts: Sequence[Prompt]) -> list[Group]:
        """The completions of each prompt, in a fixed order whatever order they finish in.

        Rewards are computed, and teachers score, while generation goes on. Teachers get whole groups in the order of
        the prompts, so that what they compute together is always the same.
        """
        by_id = {prompt.id: prompt for prompt in prompts}
        sampling = Sampling(
            completions=self._config.algorithm.completions_per_prompt,
            temperature=self._config.rollout.temperature,
            max_new_tokens=self._config.rollout.max_new_tokens,
            seed=step_seed(self._config.seed, self.version),
            top_tokens=self._config.rollout_top_tokens,
        )
        groups: dict[str, list[Completion]] = defaultdict(list)
        unfinished = deque(prompts)
        with self._timer.phase("rollout"):
            for completion in self._roles.generator.generate(prompts, sampling):
                if completion.weight_version != self.version:
                    raise GateError(
                        f"sample {completion.id}: made with weights {completion.weight_version}, "
                        f"but the learner is at {self.version}"
                    )
                self._roles.rewarder.submit(completion, by_id[completion.prompt_id])
                groups[completion.prompt_id].append(completion)
                while unfinished and len(groups[unfinished[0].id]) == sampling.completions:
                    prompt = unfinished.popleft()
                    groups[prompt.id].sort(key=lambda c: c.index)
                    self._teach([unjudged_sample(prompt, c) for c in groups[prompt.id]])
        for prompt in prompts:
            if len(groups[prompt.id]) != sampling.completions:
                raise GateError(f"prompt {prompt.id}: {len(groups[prompt.id])} completions came back")
        return [(prompt, groups[prompt.id]) for prompt in prompts]

    def _teach(self, samples: Sequence[Sample]) -> None:
        for teacher in self._roles.teachers:
            teacher.submit(samples)

    def _visual_rewards(self, behaviour: Sequence[Ref], reference: Sequence[Ref] | None) -> Mapping[str, float]:
        """Sample id → how much the response looks at pictures; nothing when that is not rewarded."""
        if self._config.visual_reward_by("policy"):
            return self._roles.learner.visual_rewards(behaviour)
        if self._config.visual_reward_by("reference"):
            assert self._roles.reference is not None and reference is not None
            return self._roles.reference.visual_rewards(reference)
        return {}

    def _kl(self, behaviour: Sequence[Ref], reference: Sequence[Ref] | None) -> Mapping[str, float]:
        """Sample id → KL to the reference; nothing when it does not enter the reward."""
        if self._config.algorithm.kl.coefficient == 0 or self._config.algorithm.kl.place == "loss":
            return {}
        assert reference is not None
        return self._roles.learner.kl(behaviour, reference)

    def _judge(self, groups: Sequence[Group], looks: Mapping[str, float], kl: Mapping[str, float]) -> list[Rollout]:
        """Wait for what is left of the rewards, complete each, and compare it with its group's."""
        with self._timer.phase("reward"):
            verdicts = self._roles.rewarder.collect()
        reward, beta = self._config.reward, self._config.algorithm.kl.coefficient

        def completed(id: str) -> RewardResult:
            return with_kl_penalty(with_visual_reward(reward, verdicts[id], looks.get(id)), beta * kl.get(id, 0.0))

        results = [[completed(c.id) for c in group] for _, group in groups]
        advantages = group_advantages(self._config.algorithm.advantage, results, reward.weights)
        return [
            Rollout(prompt, completion, result, advantage)
            for (prompt, group), of_group in zip(groups, zip(results, advantages, strict=True), strict=True)
            for completion, result, advantage in zip(group, *of_group, strict=True)
        ]


def unjudged_sample(prompt: Prompt, c: Completion) -> Sample:
    """What frozen policies read of a rollout before its reward is known."""
    return Sample(c.id, prompt, c.token_ids, c.log_probs, weight_version=c.weight_version, rollout_top=c.top)


def check_first_update(update: Mapping[str, float], tolerance: float) -> None:
    """The first update sees the weights that were just scored, so its attention is the old policy's (GateError)."""
    divergence = update["attention/divergence"]
    if not divergence <= tolerance:
        raise GateError(
            f"the first update attends unlike the old policy that was just scored (divergence {divergence:.3g}, more "
            f"than {tolerance:g}); scoring and training see different inputs or weights"
        )


def step_seed(seed: int, version: int) -> int:
    """The sampling seed of one step: a pure function of run seed and weight version."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{version}".encode()).digest()[:6])


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over the batch: reward parts and total over verdicts reached, lengths, share of groups without signal."""
    judged = [r.reward for r in rollouts if r.reward.status is RewardStatus.OK]
    parts: dict[str, list[float]] = defaultdict(list)
    for reward in judged:
        for name, value in reward.parts.items():
            parts[name].append(value)
    lengths = [len(r.completion.token_ids) for r in rollouts]
    groups: dict[str, set[float]] = defaultdict(set)
    for rollout in rollouts:
        groups[rollout.prompt.id].add(rollout.advantage)
    return {
        **{f"reward/{name}": sum(values) / len(values) for name, values in sorted(parts.items())},
        "reward/total": sum(r.total for r in judged) / max(1, len(judged)),
        "reward/unjudged": float(len(rollouts) - len(judged)),
        "rollout/length_mean": sum(lengths) / len(lengths),
        "rollout/truncated": sum(r.completion.finish_reason == "length" for r in rollouts) / len(rollouts),
        "rollout/tokens": float(sum(lengths)),
        "rollout/groups_without_signal": sum(a == {0.0} for a in groups.values()) / len(groups),
    }


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the updates that have a metric; maxima stay maxima. The last update's divergences are kept beside."""
    combined = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        combined[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    last = {f"attention/divergence_{sign}_last": updates[-1][f"attention/divergence_{sign}"] for sign in _SIGNS}
    return combined | last
