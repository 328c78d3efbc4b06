"""A reward is the weighted sum of its signals: those judged by verifiers and those measured by the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from ral_system.config.algorithm import KLConfig, OverlongConfig
from ral_system.config.reward import RewardConfig, SignalsConfig
from ral_system.types import Completion, Prompt, RewardResult, RewardStatus, Verdict


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of a response other than its verdict."""

    tokens: int = 0
    limit: int = 0
    """Largest number of tokens that the response could have had."""
    visual: float | None = None
    """r_vis: how much its words look at the picture; None if undefined, or not measured yet."""
    kl: float | None = None
    """Sum of its tokens' KL to the reference, in nats; None if not measured yet."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One part of a reward."""

    name: str
    weight: float
    """Negative for penalties."""
    value: Callable[[Verdict, Measured], float | None]
    """None where it is undefined: then it adds nothing."""
    needs: Literal["visual", "kl"] | None = None
    """What the learner or the reference must measure for it; the verdict and the length are always known."""


def judged_signals(reward: SignalsConfig) -> tuple[Signal, ...]:
    """List the signals that verifiers judge: correctness, format, and those of installed packages, each in [0, 1]."""
    weights = {"correctness": reward.correctness, "format": reward.format, **reward.signals}
    return tuple(Signal(name, weight, _judged(name)) for name, weight in weights.items())


def reward_signals(reward: RewardConfig, overlong: OverlongConfig, kl: KLConfig) -> tuple[Signal, ...]:
    """All signals of a training run: the judged ones, then those that the configuration turns on:

    `visual`: correctness · r_vis, since only what is correct earns it (AVAR, arXiv 2603.03825); with
    form=laser_pays_length also times format.
    `overlong`: taken off, up to 1 as a response nears its limit (DAPO, arXiv 2503.14476).
    `kl`: taken off, the response's KL to the reference, with algorithm.kl.place=reward.
    """
    found = list(judged_signals(reward))
    if reward.visual.weight > 0:
        gates = ("correctness", "format") if reward.visual.form == "laser_pays_length" else ("correctness",)
        found.append(Signal("visual", reward.visual.weight, _visual(gates), needs="visual"))
    if overlong.handling == "penalty":
        found.append(
            Signal("overlong", -1.0, lambda _, m: overlong_penalty(m.tokens, limit=m.limit, buffer=overlong.buffer))
        )
    if kl.coefficient > 0 and kl.place == "reward":
        found.append(Signal("kl", -kl.coefficient, lambda _, m: m.kl, needs="kl"))
    return tuple(found)


class Rewards:
    """The rewards of a training run. `response_limit`: prompt tokens → most tokens that a response can have."""

    def __init__(
        self, reward: RewardConfig, overlong: OverlongConfig, kl: KLConfig, response_limit: Callable[[int], int]
    ) -> None:
        self._signals = reward_signals(reward, overlong, kl)
        self._response_limit = response_limit

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the signals by name."""
        return {signal.name: signal.weight for signal in self._signals}

    def need(self, measurement: Literal["visual", "kl"]) -> bool:
        """Return whether a signal needs this measurement."""
        return any(signal.needs == measurement for signal in self._signals)

    def of(
        self,
        prompt: Prompt,
        completion: Completion,
        verdict: Verdict,
        *,
        visual: float | None = None,
        kl: float | None = None,
    ) -> RewardResult:
        """One completion's reward, computed from whatever has been measured so far."""
        limit = self._response_limit(len(prompt.token_ids))
        return total_reward(self._signals, verdict, Measured(len(completion.token_ids), limit, visual, kl))


def total_reward(signals: Sequence[Signal], verdict: Verdict, measured: Measured) -> RewardResult:
    """r = Σ weight · value over the signals that are defined; 0, without parts, where no verdict was reached."""
    parts: dict[str, float] = {}
    total = 0.0
    for signal in signals if verdict.status is RewardStatus.OK else ():
        if (value := signal.value(verdict, measured)) is not None:
            parts[signal.name] = value
            total += signal.weight * value
    return RewardResult(verdict.completion_id, parts, total, verdict.status, verdict.detail)


def overlong_penalty(length: int, *, limit: int, buffer: int) -> float:
    """DAPO's soft over-long punishment (arXiv 2503.14476): 0 up to limit - buffer tokens, then linearly to 1 at
    `limit`; from 0 tokens on where `limit` is below `buffer`.
    """
    buffer = min(buffer, limit)
    return min(1.0, max(0.0, (length - (limit - buffer)) / buffer))


def _judged(name: str) -> Callable[[Verdict, Measured], float]:
    return lambda verdict, _: verdict.parts[name]


def _visual(gates: Sequence[str]) -> Callable[[Verdict, Measured], float | None]:
    def value(verdict: Verdict, measured: Measured) -> float | None:
        return None if measured.visual is None else prod(verdict.parts[gate] for gate in gates) * measured.visual

    return value
