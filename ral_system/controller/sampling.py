"""The rollouts of one step: generated, gated, handed on to verifiers and frozen models as they finish; drawn again on
request.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from ral_system.algorithms.advantages import differ
from ral_system.config.commands import TrainConfig
from ral_system.errors import GateError
from ral_system.observability.progress import PhaseTimer
from ral_system.protocols import Roles
from ral_system.rewards.total import Rewards
from ral_system.types import Completion, Prompt, RewardResult, RewardStatus, Sample, Sampling, Verdict

Group = tuple[Prompt, list[Completion]]
"""A prompt's completions, by index."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Batch that a step trains on; it does not depend on the order in which completions finished."""

    groups: list[Group]
    """Groups in the order of the prompts; those that only fill up the batch come last."""
    verdicts: dict[str, Verdict] | None
    """None while the verifiers still work on them."""
    reward: float | None
    """Mean reward over every prompt drawn, as far as it is known before scoring; None before the verdicts."""
    version: int
    """Oldest version of the weights that made any of its tokens."""
    drawn: int
    """Prompts taken from the training sequence, including dropped ones."""
    rounds: int
    tokens: int
    """Tokens that were kept, without those of responses that were begun again."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, for a batch that was made while something else was timed."""
    submitted: bool = False
    """Whether the frozen models already have the batch."""


class Sampler:
    """Draws batches. `train_prompt(i)` is the i-th prompt of the endless training sequence.

    `ahead`: in a thread of its own, while an earlier batch trains. Verdicts are then waited for here, since a
    verifier's answers to two batches would mix, and frozen models get the batch when it is its turn.
    """

    def __init__(
        self,
        config: TrainConfig,
        roles: Roles,
        train_prompt: Callable[[int], Prompt],
        timer: PhaseTimer,
        rewards: Rewards,
        *,
        ahead: bool = False,
    ) -> None:
        self._config, self._roles, self._train_prompt, self._timer = config, roles, train_prompt, timer
        self._rewards, self._ahead = rewards, ahead

    def draw(self, first: int, version: int) -> Batch:
        """`prompts_per_step` groups from the `first` prompt on, made with the weights of `version`.

        With `sampling_rounds` > 1 groups whose rewards are all alike teach nothing and give way to the next prompts'
        (DAPO's dynamic sampling, arXiv 2503.14476), that many rounds at most; what is missing then is filled up with
        them.
        """
        size, rounds = self._config.algorithm.prompts_per_step, self._config.algorithm.sampling_rounds
        if rounds == 1 and not self._ahead:
            scored = self._roles.shared_devices is None  # otherwise frozen models are not there yet
            groups = self._generate(first, size, version, submit=scored)
            return Batch(groups, None, None, _oldest(groups), size, 1, _tokens(groups), submitted=scored)
        kept: list[Group] = []
        alike: list[Group] = []
        verdicts: dict[str, Verdict] = {}
        rewards: list[RewardResult] = []
        drawn = used = tokens = 0
        while used < rounds and len(kept) < size:
            wanted = size - len(kept)
            groups = self._generate(first + drawn, wanted, version, submit=False)
            drawn, used, tokens = drawn + wanted, used + 1, tokens + _tokens(groups)
            with self._timer.phase("reward"):
                verdicts |= self._roles.rewarder.collect()
            for prompt, group in groups:
                of_group = [self._rewards.of(prompt, c, verdicts[c.id]) for c in group]
                rewards += of_group
                (kept if rounds == 1 or has_signal(of_group) else alike).append((prompt, group))
        times = self._timer.drain() if self._ahead else {}
        times = {name.replace("time/", "ahead/"): seconds for name, seconds in times.items()}
        groups = kept + alike[: size - len(kept)]
        return Batch(groups, verdicts, _mean_total(rewards), _oldest(groups), drawn, used, tokens, times)

    def submit(self, batch: Batch) -> None:
        """Hand the batch to the reference and the teachers, unless they have it already."""
        for prompt, group in () if batch.submitted else batch.groups:
            self._submit(prompt, group)

    def _generate(self, first: int, count: int, version: int, *, submit: bool) -> list[Group]:
        """Rewards are computed, and with `submit` frozen models score, while generation goes on.

        Verifiers get a group as soon as it is whole; frozen models in the order of the prompts, so several processes
        always share the groups in the same way.
        """
        with self._timer.phase("data"):  # waits for media that are not decoded yet
            prompts = [self._train_prompt(first + i) for i in range(count)]
        by_id = {prompt.id: prompt for prompt in prompts}
        sampling = Sampling(
            completions=self._config.algorithm.completions_per_prompt,
            temperature=self._config.rollout.temperature,
            max_new_tokens=self._config.rollout.max_new_tokens,
            seed=step_seed(self._config.seed, version),
            top_tokens=self._config.algorithm.policy_loss.top_tokens,
        )
        groups: dict[str, list[Completion]] = defaultdict(list)
        unfinished = deque(prompts)
        with (
            self._timer.phase("rollout"),
            closing(self._roles.generator.generate(prompts, sampling)) as completions,
        ):
            for completion in completions:
                newer_is_right = self._config.rollout.on_new_weights != "finish"
                if completion.weight_version < version or (completion.weight_version > version and not newer_is_right):
                    raise GateError(
                        f"sample {completion.id}: made with weights {completion.weight_version}, "
                        f"but the engines were given {version}"
                    )
                group = groups[completion.prompt_id]
                group.append(completion)
                if len(group) == sampling.completions:
                    group.sort(key=lambda c: c.index)
                    self._roles.rewarder.submit(group, by_id[completion.prompt_id])
                while unfinished and len(groups[unfinished[0].id]) == sampling.completions:
                    prompt = unfinished.popleft()
                    if submit:
                        self._submit(prompt, groups[prompt.id])
        for prompt in prompts:
            if len(groups[prompt.id]) != sampling.completions:
                raise GateError(f"prompt {prompt.id}: {len(groups[prompt.id])} completions came back")
        return [(prompt, groups[prompt.id]) for prompt in prompts]

    def _submit(self, prompt: Prompt, group: Sequence[Completion]) -> None:
        reference = self._roles.reference
        for model in [*([reference] if reference else []), *self._roles.teachers]:
            model.submit([Sample.of(prompt, c) for c in group])


def _tokens(groups: Sequence[Group]) -> int:
    return sum(len(c.token_ids) for _, group in groups for c in group)


def _oldest(groups: Sequence[Group]) -> int:
    return min(c.weight_version for _, group in groups for c in group)


def has_signal(rewards: Sequence[RewardResult]) -> bool:
    """Return whether the group's rewards differ; those without a verdict do not count."""
    return differ([r.total for r in rewards if r.status is RewardStatus.OK])


def _mean_total(rewards: Sequence[RewardResult]) -> float | None:
    totals = [r.total for r in rewards if r.status is RewardStatus.OK]
    return sum(totals) / len(totals) if totals else None


def step_seed(seed: int, version: int) -> int:
    """The sampling seed of one batch: a pure function of run seed and the weight version it was ordered with.

    With the prompt's id and the completion's index it makes the completion's own seed, which is logged with it.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{version}".encode()).digest()[:6])


def sampling_metrics(batch: Batch) -> dict[str, float]:
    """Count the prompts that a step took and dropped, and average the rewards of all of them."""
    earned = {} if batch.reward is None else {"sampling/reward": batch.reward}
    return earned | {
        "sampling/rounds": float(batch.rounds),
        "sampling/prompts_drawn": float(batch.drawn),
        "sampling/groups_dropped": float(batch.drawn - len(batch.groups)),
    }
