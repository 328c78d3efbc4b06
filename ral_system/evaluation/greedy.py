"""Held-out evaluation: generate greedily, judge, count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ral_system.config.reward import SignalsConfig
from ral_system.protocols import Rewarder
from ral_system.rewards.total import Measured, judged_signals, total_reward
from ral_system.types import Completion, Completions, Prompt, RewardStatus, Rollout, Sampling

Generate = Callable[[Sequence[Prompt], Sampling], Completions]
"""`Generator.generate`, of a pool or of one engine."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of a policy on a set of prompts."""

    rollouts: tuple[Rollout, ...]
    """Answers to each prompt, in the prompts' order; advantage 0."""

    @property
    def accuracy(self) -> float:
        """Share of answers that are right; a missing verdict counts as wrong."""
        return _mean([r.reward.parts.get("correctness", 0.0) for r in self.rollouts])

    @property
    def format_rate(self) -> float:
        """Share of responses that follow the template."""
        return _mean([r.reward.parts.get("format", 0.0) for r in self.rollouts])

    def metrics(self) -> dict[str, float]:
        """Accuracy overall and by question kind, format rate, mean reward, signals of packages, response length,
        missing verdicts.
        """
        by_kind: dict[str, list[float]] = defaultdict(list)
        for rollout in self.rollouts:
            by_kind[rollout.prompt.kind].append(rollout.reward.parts.get("correctness", 0.0))
        added = sorted({name for r in self.rollouts for name in r.reward.parts} - {"correctness", "format"})
        return {
            "eval/accuracy": self.accuracy,
            "eval/format_rate": self.format_rate,
            "eval/reward": _mean([r.reward.total for r in self.rollouts]),
            "eval/questions": float(len({r.prompt.id for r in self.rollouts})),
            "eval/length_mean": _mean([float(len(r.completion.token_ids)) for r in self.rollouts]),
            "eval/unjudged": float(sum(r.reward.status is not RewardStatus.OK for r in self.rollouts)),
            **{f"eval/signal/{name}": _mean([r.reward.parts.get(name, 0.0) for r in self.rollouts]) for name in added},
            **{f"eval/accuracy/{kind}": _mean(values) for kind, values in sorted(by_kind.items())},
        }


def evaluate(
    generate: Generate, rewarder: Rewarder, reward: SignalsConfig, prompts: Sequence[Prompt], *, max_new_tokens: int
) -> Evaluation:
    """Complete `prompts` greedily, and judge the completions like rollouts."""
    by_id = {prompt.id: prompt for prompt in prompts}
    sampling = Sampling(completions=1, temperature=0.0, max_new_tokens=max_new_tokens, seed=0)
    completions = {}
    for completion in generate(prompts, sampling):
        rewarder.submit([completion], by_id[completion.prompt_id])
        completions[completion.prompt_id] = completion
    return judged(rewarder, reward, prompts, {id: [completion] for id, completion in completions.items()})


def judged(
    rewarder: Rewarder, reward: SignalsConfig, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Completion]]
) -> Evaluation:
    """Sum up answers by prompt id, once each has its verdict. Their rewards are what verifiers judge, no more."""
    verdicts, signals = rewarder.collect(), judged_signals(reward)
    return Evaluation(
        tuple(
            Rollout(prompt, c, total_reward(signals, verdicts[c.id], Measured()), advantage=0.0)
            for prompt in prompts
            for c in answers[prompt.id]
        )
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
