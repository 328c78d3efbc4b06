"""Samples that learners and scorers consume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ral_system.types.prompt import Prompt
from ral_system.types.records import TokenRecord
from ral_system.types.rollout import Completion, RewardResult, Switches


@dataclass(frozen=True, slots=True)
class Credit:
    """What a response is worth to the attention objective.

    Example: the second of three responses; only the first was right:
    `Credit(advantage=-0.71, outcomes=(0.67, -0.33, -0.33), judged=(0.67, -0.33, -0.33), reward=0.0)`
    """

    advantage: float
    """What RAL weighs its rows with."""
    outcomes: tuple[float | None, ...]
    """Reward minus the mean of the group's, for every response of the group, as the objective takes it; None for one
    that does not count."""
    judged: tuple[float | None, ...]
    """Outcomes before a control changed them."""
    reward: float | None = None
    """The response's own, or that which a control gave it; None if it does not count."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Input of a learner or scorer: a sequence, the rollout's log-probs, and its advantage.

    A demonstration (supervised stages) has no rollout log-probs and advantage 0.
    Example: `Sample(id="train/17#3", prompt=Prompt(…), response_token_ids=(7, 21, 2),
    rollout_log_probs=(-0.1, -1.2, -0.01), advantage=0.87, weight_version=12)`
    """

    id: str
    prompt: Prompt
    response_token_ids: tuple[int, ...]
    """[R]"""
    rollout_log_probs: tuple[float, ...] = ()
    """[R] or empty."""
    advantage: float = 0.0
    weight_version: int = 0
    """Version of the weights that made the response, or its first tokens."""
    rollout_top: TokenRecord | None = None
    """The rollout's most likely tokens at every position, when the policy loss reads them."""
    switches: Switches = ()
    """Positions at which other weights took over."""
    index: int = 0
    """Place in its prompt's group."""
    credit: Credit | None = None
    """None: the attention objective takes the advantage."""

    @property
    def attention_advantage(self) -> float:
        """What the attention objective weighs its rows with."""
        return self.advantage if self.credit is None else self.credit.advantage

    @classmethod
    def of(cls, prompt: Prompt, completion: Completion, advantage: float = 0.0) -> Sample:
        """A rollout as learners see it; frozen policies read it before it is judged."""
        return cls(
            id=completion.id,
            prompt=prompt,
            response_token_ids=completion.token_ids,
            rollout_log_probs=completion.log_probs,
            advantage=advantage,
            weight_version=completion.weight_version,
            rollout_top=completion.top,
            switches=completion.switches,
            index=completion.index,
        )

    @property
    def length(self) -> int:
        """T, in tokens."""
        return len(self.prompt.token_ids) + len(self.response_token_ids)

    @property
    def weight_versions(self) -> tuple[int, ...]:
        """All that made it, in the order of its tokens."""
        return (self.weight_version, *(version for _, version in self.switches))

    def token_versions(self) -> np.ndarray:
        """int64 [R], the weights that made each response token."""
        versions = np.full(len(self.response_token_ids), self.weight_version)
        for first, version in self.switches:
            versions[first:] = version
        return versions


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with its verdict and advantage: the controller's unit of account."""

    prompt: Prompt
    completion: Completion
    reward: RewardResult
    advantage: float

    def sample(self) -> Sample:
        """The learner's view of this rollout."""
        return Sample.of(self.prompt, self.completion, self.advantage)
