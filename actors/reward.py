"""The verifier pool behind Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.choices import ResponseFormat
from ral_system.config.reward import JudgeConfig
from ral_system.types import Completion, Prompt, Verdict


class RewardActor(ActorProcess):
    """Owns one `RewardPool`; its verifier processes end with this one."""

    @watched
    def build(self, reward: JudgeConfig, response_format: ResponseFormat) -> None:
        """Start the verifier processes."""
        from ral_system.rewards.pool import RewardPool

        self._pool = RewardPool(reward, response_format)

    @watched
    def submit(self, completions: Sequence[Completion], prompt: Prompt) -> None:
        """Start judging."""
        self._pool.submit(completions, prompt)

    @watched
    def collect(self) -> Mapping[str, Verdict]:
        """Wait for everything submitted since the last call."""
        return self._pool.collect()
