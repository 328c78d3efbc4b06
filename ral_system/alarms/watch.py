"""Alarms over the steps of a run: they compare each step's figures with the first step's and with their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ral_system.alarms.health import CORRECTNESS, health, paid_parts
from ral_system.alarms.known import ALARMS, Alarm
from ral_system.config.alarms import AlarmsConfig
from ral_system.types import Rollout

_FROM_THE_START = (
    "policy/entropy",
    "attention/entropy",
    "rollout/truncated",
    "health/aux_reward",
    "health/unclosed",
    "eval/blind_gap",
    f"reward/{CORRECTNESS}",
)
"""Metrics whose first value is kept."""


class Alarms:
    """The alarms of a stage. `state()` goes into checkpoints and continues them where they were.

    An alarm rings after `consecutive` steps beyond its limit, fewer where its `enough` is less, and falls silent after
    one step within it. A step without its figure changes nothing.
    """

    def __init__(
        self,
        config: AlarmsConfig,
        weights: Mapping[str, float],
        state: Mapping[str, Any] | None = None,
        *,
        before: Mapping[str, float] | None = None,
        compares_looks: bool = False,
        target_share: float | None = None,
    ) -> None:
        """Begin, or go on from `state`; `before` are the metrics of the evaluation before the first step, and the
        attention term's share of the gradient is held at `target_share`.
        """
        self._config, self._weights = config, weights
        self._compares_looks, self._target_share = compares_looks, target_share
        state = state or {}
        self._start: dict[str, float] = dict(state.get("start", {}))
        if before is not None and "eval/blind_gap" in before:
            self._start.setdefault("eval/blind_gap", before["eval/blind_gap"])
        self._shortest: float | None = state.get("shortest")
        self._beyond: dict[str, int] = dict(state.get("beyond", {}))
        self._ringing: dict[str, float] = dict(state.get("ringing", {}))

    def state(self) -> dict[str, Any]:
        """All that later steps depend on, in types that JSON keeps exactly."""
        return {
            "start": dict(self._start),
            "shortest": self._shortest,
            "beyond": dict(self._beyond),
            "ringing": dict(self._ringing),
        }

    def check(self, rollouts: Sequence[Rollout], metrics: dict[str, float]) -> list[str]:
        """Add the step's figures and `alarm/<name>` to its metrics; return a line for every alarm that begins to ring.

        Call once a step, in order.
        """
        metrics |= health(rollouts, self._weights)
        metrics |= self._since_the_start(metrics)
        lines = []
        for alarm in ALARMS:
            limit = self._limit(alarm)
            if limit is None:
                self._silence(alarm)
                continue
            if (value := metrics.get(alarm.figure)) is not None and self._begins(alarm, value, limit):
                lines.append(alarm.says(value, limit, self._beyond[alarm.name]))
            metrics[f"alarm/{alarm.name}"] = float(alarm.name in self._ringing)
        return lines

    def stopping(self) -> str | None:
        """Say which alarm ends the stage, and how to go on; None if none does."""
        heeded = [alarm for alarm in ALARMS if alarm.stops and alarm.name in self._ringing]
        if self._config.action != "stop" or not heeded:
            return None
        lines = [
            alarm.says(self._ringing[alarm.name], limit, self._beyond[alarm.name])
            for alarm in heeded
            if (limit := self._limit(alarm)) is not None
        ]
        return f"alarms.action=stop: {'; '.join(lines)}; to go on, add alarms.action=log or other limits"

    def _begins(self, alarm: Alarm, value: float, limit: float) -> bool:
        """Count the step, and return whether the alarm begins to ring."""
        if not (value < limit if alarm.below else value > limit):
            self._silence(alarm)
            return False
        self._beyond[alarm.name] = self._beyond.get(alarm.name, 0) + 1
        if self._beyond[alarm.name] < alarm.rings_after(self._config.consecutive):
            return False
        begins = alarm.name not in self._ringing
        self._ringing[alarm.name] = value
        return begins

    def _silence(self, alarm: Alarm) -> None:
        self._beyond.pop(alarm.name, None)
        self._ringing.pop(alarm.name, None)

    def _limit(self, alarm: Alarm) -> float | None:
        return getattr(self._config, alarm.name)

    def _since_the_start(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Figures relative to the first step that had them."""
        for name in _FROM_THE_START:
            if name in metrics:
                self._start.setdefault(name, metrics[name])
        length = metrics["rollout/length_mean"]
        self._shortest = length if self._shortest is None else min(self._shortest, length)
        found = {
            "health/length_drift": growth(length, self._shortest),
            "health/unclosed_growth": metrics["health/unclosed"] - self._start["health/unclosed"],
        }
        for name, figure, without in (
            ("policy/entropy", "health/entropy", 1.0),
            ("attention/entropy", "health/attention_entropy", 1.0),
            ("rollout/truncated", "health/truncation_growth", 0.0),
        ):
            if name in metrics:
                found[figure] = metrics[name] / self._start[name] if self._start[name] > 0 else without
        if "health/aux_reward" in metrics:
            found |= self._auxiliary(metrics)
        share = metrics.get("attention/gradient_share")
        if share is not None and self._target_share is not None:
            found["health/attention_share_of_target"] = share / self._target_share
        elif share is not None and "attention/gradient_factor" not in metrics:
            found["health/attention_gradient_share"] = share
        if self._compares_looks and "attention/contrast" in metrics:
            found["health/contrast"] = metrics["attention/contrast"]
        return found

    def _auxiliary(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Compare auxiliary rewards and accuracy with those of the first step."""
        accuracy = f"reward/{CORRECTNESS}"
        most = sum(self._weights[part] for part in paid_parts(self._weights))
        grown = growth(metrics["health/aux_reward"], self._start["health/aux_reward"], most)
        gained = metrics[accuracy] - self._start[accuracy]
        found = {
            "health/aux_growth": grown,
            "health/accuracy_gain": gained,
            "health/aux_runaway": grown if gained < self._config.flat_accuracy else 0.0,
        }
        if "eval/blind_gap" in metrics:
            widened = metrics["eval/blind_gap"] - self._start["eval/blind_gap"]
            found["health/blind_runaway"] = grown if widened < self._config.flat_accuracy else 0.0
        return found


def growth(now: float, start: float, most: float = 0.0) -> float:
    """now / start - 1; where the start is 0, now as a share of the most there can be, and 0 without that."""
    if start > 0:
        return now / start - 1
    return now / most if most > 0 else 0.0
