"""Completions and the verdicts on them."""

from __future__ import annotations

import enum
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from ral_system.types.records import TokenRecord

Switches = tuple[tuple[int, int], ...]
"""Changes of weights during a response: (first token, weight version) of every part but the first."""


class FinishReason(enum.StrEnum):
    """Reason why generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, with the rollout policy mu's log-probabilities of its own tokens.

    Example: `Completion(prompt_id="train/17", index=3, token_ids=(7, 21, 2), log_probs=(-0.1, -1.2, -0.01),
    text="<answer> red </answer>", finish_reason=FinishReason.STOP, weight_version=12)`
    """

    prompt_id: str
    index: int
    """0 … completions-1 within the prompt's group."""
    token_ids: tuple[int, ...]
    """[R] including the end-of-turn token when `finish_reason` is stop."""
    log_probs: tuple[float, ...]
    """[R] natural log, of the distribution sampled from: temperature applied, banned tokens removed."""
    text: str
    """Text of the response with the prompt's `opening`, without special tokens other than tags."""
    finish_reason: FinishReason
    weight_version: int
    """Version of the weights that made it, or its first tokens."""
    top: TokenRecord | None = None
    """mu's most likely tokens at every position, when `Sampling.top_tokens` asks for them."""
    switches: Switches = ()
    """Places where new weights took over, with `rollout.on_new_weights=continue`."""
    restarts: int = 0
    """Number of times that it started again, with `rollout.on_new_weights=discard`, also while it was queued."""
    seed: int = 0
    """Seed of this completion's sampling; with the weights, it is enough to reproduce the completion."""
    first_token_s: float = field(default=0.0, compare=False)
    """Seconds from when the engine took it on to its first token, the wait in the engine's queue included."""

    @property
    def was_cut(self) -> bool:
        """Whether the response was cut at its limit."""
        return self.finish_reason is FinishReason.LENGTH

    @property
    def id(self) -> str:
        """Unique within a step: `<prompt id>#<index>`."""
        return f"{self.prompt_id}#{self.index}"


Completions = Generator[Completion, None, None]
"""A generation under way, which yields what is finished. The consumer closes it to stop early: an engine in the same
process is then free, an actor's goes on to its end."""


class RewardStatus(enum.StrEnum):
    """Whether a verdict was reached. Only `ok` rewards enter the advantage."""

    OK = "ok"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdicts of the verifiers on one completion.

    Example: `Verdict("train/17#3", {"correctness": 1.0, "format": 1.0}, RewardStatus.OK)`
    """

    completion_id: str
    parts: Mapping[str, float]
    """The judged signals by name, each in [0, 1]; none unless `status` is ok."""
    status: RewardStatus
    detail: str = ""
    """Reason, if `status` is not ok."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """One completion's reward.

    Example: `RewardResult("train/17#3", {"correctness": 1.0, "format": 1.0}, total=1.0, status=RewardStatus.OK)`
    """

    completion_id: str
    parts: Mapping[str, float]
    """The signals by name, unweighted, as `rewards.total` defines them; none unless `status` is ok."""
    total: float
    """Weighted sum of the parts; 0 unless `status` is ok."""
    status: RewardStatus
    detail: str = ""
    """Reason, if `status` is not ok."""
